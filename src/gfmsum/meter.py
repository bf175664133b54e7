"""Meter: time, memory and energy of this machine while a run is carried out, as far as it tells."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from gfmsum.budget import Ledger

RAPL = Path("/sys/class/powercap")
"""Where Linux counts the energy of the CPU's packages (running average power limit)."""


class Meter:
    """Adds what was spent since the last entry to a ledger.

    Args:
        device: "cpu" or "cuda".
        devices: how many work alike, of which this process drives one.
    """

    def __init__(self, device: str, devices: int = 1) -> None:
        self.device, self.devices = device, devices
        self._last = self._read()

    def enter(self, ledger: Ledger) -> None:
        """Book seconds, device seconds, joules, and the largest memory so far."""
        now = self._read()
        (wall, busy, energy), (wall_then, busy_then, energy_then) = now, self._last
        ledger.seconds += wall - wall_then
        ledger.device_seconds += (busy - busy_then) * self.devices
        # A counter that overflowed says nothing.
        if energy is not None and energy_then is not None and energy >= energy_then:
            ledger.joules = (ledger.joules or 0.0) + energy - energy_then
        ledger.peak_bytes = max(ledger.peak_bytes, self._peak())
        self._last = now

    def _read(self) -> tuple[float, float, float | None]:
        """Wall time, time of the device, and energy so far."""
        wall = time.perf_counter()
        if self.device == "cuda":
            import torch

            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
            return wall, wall, _nvidia_joules()
        return wall, time.process_time(), _package_joules()

    def _peak(self) -> int:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _package_joules() -> float | None:
    """Energy of all CPU packages so far; None where it cannot be read, as without privileges."""
    try:
        counters = sorted(RAPL.glob("intel-rapl:?/energy_uj"))
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None


def _nvidia_joules() -> float | None:
    """Energy of the GPU since its driver was loaded; None without NVIDIA's library."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except Exception:  # no library, no driver, no such counter: then it is not known
        return None
