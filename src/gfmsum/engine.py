"""Where jobs execute. Here: worker processes of this machine, each with its own share of the cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gfmsum.job import Job, carry_out

_progress: Any = None  # the worker's end of the queue to the parent


class EngineError(RuntimeError):
    """A job failed; the message says which and why."""


def workers(wanted: int, device: str, jobs: int) -> int:
    """How many jobs to run at a time: as wanted, else one per core, or one on a GPU."""
    gpu = device == "cuda" or (device == "auto" and Path("/proc/driver/nvidia/version").exists())
    return max(1, min(wanted or (1 if gpu else len(os.sched_getaffinity(0))), jobs))


def _start(progress: Any, threads: int) -> None:
    """Prepare a worker before it imports anything heavy."""
    global _progress
    _progress = progress
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    warnings.simplefilter("ignore")
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent is gone: nothing goes on behind the user's back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(index: int, job: Job) -> None:
    import lightning.pytorch

    # Its remarks on devices and limits would run through the parent's progress.
    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.ERROR)
    carry_out(job, lambda seen: _progress.put((index, seen)))


def run_here(
    jobs: Sequence[Job], at_once: int, progress: Callable[[int, int], None]
) -> Iterator[int]:
    """Carry out jobs in worker processes.

    Args:
        jobs: independent of one another.
        at_once: worker processes.
        progress: called with a job's index and the samples it has shown.

    Yields:
        Indices of jobs as they end.

    Raises:
        EngineError: when a job fails. Jobs that had ended are kept; the others are given up.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    pool = ProcessPoolExecutor(
        at_once, context, initializer=_start, initargs=(messages, jobs[0].execution.threads)
    )
    try:
        pending = {pool.submit(_work, i, job): i for i, job in enumerate(jobs)}
        while pending:
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while True:
                try:
                    progress(*messages.get_nowait())
                except queue.Empty:
                    break
            for future in done:
                index = pending.pop(future)
                try:
                    future.result()
                except BrokenProcessPool:
                    raise EngineError(
                        f"a worker process died while {jobs[index].label!r} was running, most "
                        "likely for want of memory; try fewer at a time with jobs=1"
                    ) from None
                except Exception as error:
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise EngineError(f"run {jobs[index].label!r} failed: {reason}") from error
                yield index
        pool.shutdown()
    finally:
        # On failure or Ctrl-C, what is running must not go on behind the user's back.
        children = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        if sys.exc_info()[0] is not None:
            for child in children:
                child.terminate()
