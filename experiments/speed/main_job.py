"""How long and how large the main job is, as a stranger would run it.

    uv run python experiments/speed/main_job.py [key=value ...]

Runs ``--help``, the main job with the given words from nothing, and the same words again, each in a fresh
process, and prints wall time, CPU time and the largest memory of the process tree at any moment.
Wanted on 2 CPU cores: help under 1 s without torch; the default under 300 s and 4 GiB; again in seconds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def measure(*words: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak GiB (proportional set size) of the main job."""
    before = os.times()
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "gfmsum.ablate", *words], stdout=subprocess.DEVNULL
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.25)
    after = os.times()
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}")
    cpu = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return time.perf_counter() - began, cpu, peak


def resident(pid: int) -> float:
    """GiB of a process and its children; memory they share is counted once."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        pass  # a process that ended meanwhile
    return total / 2**30


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}")  # fmt: skip
    print(f"{'call':<12}{'wall s':>9}{'CPU s':>9}{'peak GiB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        here = [f"out={Path(folder) / 'study'}", f"store={Path(folder) / 'store'}", *sys.argv[1:]]
        for name, words in (("--help", ["--help"]), ("first", here), ("again", here)):
            wall, cpu, peak = measure(*words)
            print(f"{name:<12}{wall:>9.2f}{cpu:>9.2f}{peak:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
