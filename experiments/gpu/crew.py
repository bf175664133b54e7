"""Processes that work side by side, each until its time, and what they found, written again and again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from results import Row, gather, write

TICK_S = 0.5
LAST_S = 4.0  # before the deadline, when whoever still works is ended


@dataclass(slots=True)
class Stage:
    """A process at work."""

    name: str
    process: BaseProcess
    started: float
    stop_at: float


@dataclass
class Crew:
    """All processes, what they found, and the clock."""

    out: Path
    work: Path
    started: float
    deadline: float  # seconds since the epoch
    said: dict[str, Any]
    going: list[Stage] = field(default_factory=list)
    _written: tuple[Any, ...] = ()

    def start(self, name: str, stop_at: float, do: Callable[..., None], *given: Any) -> None:
        """Fork a process that does something, and is ended at a time if it has not ended itself."""
        stop_at = min(stop_at, self.deadline - LAST_S)
        log = self.out / "log.txt"
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(name, log, do, *given)
        )
        process.start()
        self.going.append(Stage(name, process, time.time(), stop_at))

    def has(self, *names: str) -> bool:
        """Whether any process whose name starts so is at work."""
        return any(stage.name.startswith(names) for stage in self.going)

    def tick(self) -> dict[str, list[Row]]:
        """See who has ended, end who should have, and write what there is."""
        for stage in list(self.going):
            late = time.time() > stage.stop_at
            if late:
                _end(stage.process)
            if not stage.process.is_alive():
                stage.process.join()
                code = stage.process.exitcode
                outcome = (
                    "cut" if late else "done" if code == 0 else f"failed ({code}), see log.txt"
                )
                self._tell(stage, outcome)
        return self.write()

    def _tell(self, stage: Stage, outcome: str) -> None:
        self.going.remove(stage)
        self.said["stages"].append(
            {
                "name": stage.name,
                "from_s": round(stage.started - self.started, 1),
                "to_s": round(time.time() - self.started, 1),
                "outcome": outcome,
            }
        )

    def write(self) -> dict[str, list[Row]]:
        """Write results.json and the csv files, if there is anything new."""
        tables = gather(self.work)
        now = (self.said["state"], len(self.said["stages"]), *map(len, tables.values()))
        if now != self._written:
            self.said["seconds"] = round(time.time() - self.started, 1)
            write(self.out, self.said, tables)
            self._written = now
        return tables

    def wait(self, *names: str) -> None:
        """Until no process whose name starts so is at work."""
        while self.has(*names):
            self.tick()
            time.sleep(TICK_S)

    @property
    def over(self) -> bool:
        return time.time() > self.deadline - LAST_S

    def end(self, state: str) -> None:
        """End everybody, and write for the last time."""
        for stage in list(self.going):
            _end(stage.process)
            self._tell(stage, "cut")
        self.said["state"] = state
        self.write()
        shutil.rmtree(self.work, ignore_errors=True)


def _work(name: str, log: Path, do: Callable[..., None], *given: Any) -> None:
    """What a forked process does: its own session, so that whatever it starts ends with it."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        do(*given)
    except BaseException:
        print(f"[{name}]", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _end(process: BaseProcess) -> None:
    """End a process and what it started."""
    if process.pid is not None and process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet a session of its own
            process.kill()
        process.join()
