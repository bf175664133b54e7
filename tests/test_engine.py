"""The engine: workers share the machine, and leave it when their parent does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from gfmsum.engine import workers

PATIENCE_S = 600  # for processes to start or to end on a busy machine; over as soon as they have


def test_no_more_workers_than_wanted_jobs_or_cores() -> None:
    assert workers(0, "cpu", 1_000) == len(os.sched_getaffinity(0))
    assert workers(3, "cpu", 1_000) == 3
    assert workers(3, "cpu", 2) == 2
    assert workers(0, "cuda", 1_000) == 1


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    words = ["sensor=s1", "mix=s1+s2", "budget=micro", "budget.seen=1000000", "jobs=2"]
    folders = [f"out={tmp_path / 'study'}", f"store={tmp_path / 'store'}"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "gfmsum.ablate", *words, *folders],
        env=os.environ | {"WANDB_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
            everyone = psutil.Process(parent.pid).children(recursive=True)
            children = [p for p in everyone if _works(p)]
        assert len(children) == 2
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert not alive
    finally:
        parent.kill()
        for child in children:
            if child.is_running():
                child.kill()


def _works(process: psutil.Process) -> bool:
    """Whether it is a worker that is past its start: torch is loaded."""
    try:
        return any("libtorch" in m.path for m in process.memory_maps()) and any(
            "spawn_main" in word for word in process.cmdline()
        )
    except psutil.Error:
        return False
