"""Rates of a device: how long something takes, and what it reaches in a matrix product and in a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(once: Callable[[], object], device: torch.device, spend: float = 0.1) -> float:
    """Seconds of a call, the median of three runs of many calls, after a few that do not count.

    Args:
        once: what is timed.
        device: where it works.
        spend: seconds of a run, about.
    """
    for _ in range(3):
        once()
    wait(device)
    began = time.perf_counter()
    once()
    wait(device)
    calls = max(1, min(1000, int(spend / max(1e-6, time.perf_counter() - began))))
    found = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            once()
        wait(device)
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found)


def product_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of a product of two large matrices of random numbers."""
    side = 8192 if device.type == "cuda" else 512
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
        return 2.0 * side**3 / seconds_of(lambda: a @ b, device, spend=0.3)
    finally:
        torch.set_float32_matmul_precision(before)


def copy_rate(device: torch.device) -> float:
    """Bytes a second of a copy on the device, read and written bytes both counted."""
    size = 2**32 if device.type == "cuda" else 2**24
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2.0 * size / seconds_of(lambda: b.copy_(a), device)
