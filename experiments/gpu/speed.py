"""How fast a training step is from images on the device: one row for each model, batch and way.

The images are random numbers, kept and gathered as real ones are, half of them Sentinel-1's and half
Sentinel-2's. Cases come in the order of what they are worth; one that would end too late is left for later.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from attention import bias_as, measure_attention, only_fused
from constants import keep_constants
from resident import OnDevice, ResidentBatches, ResidentDataModule, Store
from results import Sink
from scenes import Code, Kept
from steps import WARM, Loop, Table, Way
from timing import copy_rate, product_rate, wait

from gfmsum.budget import BUDGETS, Architecture, Budget
from gfmsum.data.modules import MixDataModule
from gfmsum.data.sample import Kind
from gfmsum.mix import Mix
from gfmsum.pretrain import Pretraining, initialised
from gfmsum.sensors import SENSORS

PAIR = ("s1", "s2")
_BASE = BUDGETS["base"].model
MODELS = {
    "small": BUDGETS["small"].model,  # ViT-S, 96 px
    "base": _BASE,  # ViT-B, 224 px
    "base at 96 px": replace(_BASE, image_px=96),
    "smoke": Architecture(
        width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2,
        image_px=16, patch_px=4, predict_ratio=0.5, code_width=16,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed."""

    model: str
    batch: int
    way: Way
    bias: str = "as it is"  # see attention.BIASES

    @property
    def name(self) -> str:
        return f"{self.model}, {self.batch} images, {self.way}, bias {self.bias}"

    @property
    def guess_s(self) -> float:
        """Seconds that it takes, at most, on a GPU that is not alone."""
        large = 1.0 if self.model == "small" else 1.6
        return large * {"no": 8.0, "blocks": 40.0, "whole": 100.0}[self.way.compiled]


def cases(smoke: bool) -> list[Case]:
    """All of them, the most valuable first."""
    if smoke:
        return [Case("smoke", 12, Way("fp32")), Case("smoke", 12, Way("bf16"), "aligned")]
    eager, graph, blocks = Way(graph=False), Way(), Way(compiled="blocks")
    fp32, tf32, whole = Way("fp32"), Way("tf32"), Way(compiled="whole")
    return [
        Case("small", 240, eager),
        Case("small", 240, graph),
        Case("small", 240, blocks),
        Case("base", 240, eager),
        Case("base", 240, graph),
        Case("small", 240, graph, "none"),
        Case("small", 240, graph, "aligned"),
        Case("base", 240, graph, "none"),
        Case("base", 240, graph, "aligned"),
        Case("small", 960, graph),
        Case("small", 3840, graph),
        Case("base", 240, blocks),
        Case("small", 240, tf32),
        Case("small", 240, fp32),
        Case("base", 960, graph),
        Case("small", 960, blocks),
        Case("base", 240, tf32),
        Case("base", 240, fp32),
        Case("small", 3840, blocks),
        Case("small", 240, Way(compiled="blocks", graph=False)),
        Case("small", 240, whole),
        Case("base at 96 px", 960, graph),
        Case("base at 96 px", 960, blocks),
        Case("base at 96 px", 3840, graph),
        Case("base", 240, whole),
        Case("small", 240, Way(compiled="whole", graph=False)),
        Case("base", 960, blocks, "aligned"),
    ]


def measure(
    sink: Sink, device_name: str, smoke: bool, stop_at: float, done: set[str], rendering: bool
) -> None:
    """Time what has not been timed yet, until the time.

    Args:
        sink: for the rows.
        device_name: cpu or cuda.
        smoke: whether with a tiny model.
        stop_at: seconds since the epoch.
        done: names of cases that have a row.
        rendering: whether other processes keep the machine's cores busy meanwhile; it is noted.
    """
    device = torch.device(device_name)
    prepare(device)
    keep_constants(device)
    only_fused(device)
    if "copy" not in done:
        for precision in ("bf16", "tf32", "fp32"):
            rate = product_rate(precision, device) / 1e12
            sink.add("speed", {"case": f"matrix product, {precision}", "tflops": rate})
        sink.add("speed", {"case": "copy", "gb_per_s": copy_rate(device) / 1e9})
    rates: dict[str, float] = {}
    for number, case in enumerate(cases(smoke)):
        if number == (1 if smoke else 9):
            _attention(sink, device, smoke, done)
        if case.name in done or time.time() + case.guess_s * (not smoke) > stop_at:
            continue
        if case.way.precision not in rates:
            rates[case.way.precision] = product_rate(case.way.precision, device)
        row: dict[str, Any] = {
            "case": case.name, "model": case.model, "batch": case.batch, "bias": case.bias,
            "precision": case.way.precision, "compiled": case.way.compiled,
            "graph": case.way.graph and device.type == "cuda", "rendering": rendering,
        }  # fmt: skip
        try:
            with bias_as(case.bias):
                row |= time_case(case, device, rates[case.way.precision])
        except Exception as error:  # out of memory, or a compiler that fails: others may still work
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        sink.add("speed", row)
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def prepare(device: torch.device) -> None:
    """Settings of every process that trains."""
    # Ways, models and batches are compiled in one process: none of them must fall back for their number.
    limit = (
        "recompile_limit"
        if hasattr(torch._dynamo.config, "recompile_limit")
        else "cache_size_limit"
    )
    setattr(torch._dynamo.config, limit, 64)
    if device.type == "cpu":
        torch.set_num_threads(1)


def _attention(sink: Sink, device: torch.device, smoke: bool, done: set[str]) -> None:
    for name, batch in [("smoke", 4)] if smoke else [("small", 240), ("base", 240)]:
        if f"attention {name}" not in done:
            measure_attention(name, MODELS[name], batch, device, sink)
            sink.add("speed", {"case": f"attention {name}"})


def random_batches(
    model: Architecture, batch: int, device: torch.device, places: int = 2048
) -> ResidentBatches:
    """Steps on random images of both sensors."""
    side, shown = model.image_px, {}
    draws = torch.Generator(device).manual_seed(0)
    for name in PAIR:
        bands = SENSORS[name].bands
        numbers = torch.randint(
            -3547, 3547, (places, len(bands), side**2), dtype=torch.int16, device=device,
            generator=draws,
        )  # fmt: skip
        ones = np.ones((len(bands), 1, 1), np.float32)
        store = Store.of(
            Kind(name, bands, SENSORS[name].gsd_m), numbers, Code(0 * ones, ones), side
        )
        shown[name] = OnDevice(store, "random", range(places), (0, 0))
    return ResidentBatches(shown, Mix.equal(PAIR), batch, 10**9, (0, 0))


def time_case(case: Case, device: torch.device, ceiling: float) -> dict[str, Any]:
    """Time the steps of a case; what a row says of it."""
    model = MODELS[case.model]
    budget = replace(BUDGETS["small"], batch=case.batch, seen=case.batch * 10_000, model=model)
    batches = random_batches(model, case.batch, device, 64 if case.model == "smoke" else 2048)
    length = 8 if device.type == "cuda" else 4
    held = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    began = time.perf_counter()
    loop = Loop(budget, batches, case.way, length)
    loop.load(Table.of(loop.mae, budget, batches, range(length)))
    loop.go(WARM + 1)
    wait(device)
    first = time.perf_counter() - began
    loss = float(loop.losses()[-1].mean())
    step = _step_seconds(loop, length, device)
    flops = step_flops(budget) / step
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else None
    return {
        "ms_step": 1e3 * step,
        "samples_per_s": case.batch / step,
        "tflops": flops / 1e12,
        "of_matrix_product": flops / ceiling,
        "matrix_product_tflops": ceiling / 1e12,
        "peak_gib": None if peak is None else peak / 2**30,
        "seconds_to_step_4": first,
        "loss_step_4": loss,
    }


def _step_seconds(loop: Loop, length: int, device: torch.device) -> float:
    """The median of three runs of about half a second each."""
    spend = 0.5 if device.type == "cuda" else 0.05

    def passes(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            loop.rewind()
            loop.go(length)
        wait(device)
        return time.perf_counter() - began

    count = max(1, int(spend / passes(1)))
    return sorted(passes(count) for _ in range(3))[1] / (count * length)


def step_flops(budget: Budget, sensors: tuple[str, ...] = PAIR) -> float:
    """FLOPs of a step on equally many images of each sensor, forward and backward."""
    each = [budget.model.flops(len(SENSORS[name].bands)) for name in sensors]
    return budget.batch * sum(each) / len(each)


# The same through Lightning, as the library runs it.


class _Clock(L.Callback):
    """Notes when steps end."""

    def __init__(self, device: torch.device, first: int) -> None:
        self.device, self.first, self.began, self.steps = device, first, 0.0, 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1
        if self.steps == self.first:
            wait(self.device)
            self.began = time.perf_counter()


def measure_lightning(sink: Sink, device_name: str, kept: Kept, budget: Budget, steps: int) -> None:
    """Time the library's own pretraining step, with images on the device and with images from the host."""
    device = torch.device(device_name)
    prepare(device)
    only_fused(device)
    budget = replace(budget, precision="bf16")  # whose optimiser lets Lightning clip gradients
    stores = {name: Store.load(block, device) for name, block in kept.blocks.items()}
    options: dict[str, Any] = {
        "unique": len(next(iter(kept.blocks.values()))), "seen": budget.seen, "batch": budget.batch,
        "image_px": budget.model.image_px, "steps": steps,
    }  # fmt: skip
    mix = Mix.equal(list(kept.sensors))
    ways: dict[str, Callable[[], MixDataModule]] = {
        "images on the device": lambda: ResidentDataModule(kept, stores, mix, **options),
        "images from the host": lambda: MixDataModule(kept, mix, **options),
    }
    for name, make in ways.items():
        clock = _Clock(device, max(1, steps // 3))
        trainer = L.Trainer(
            max_epochs=1, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1,
            precision="bf16-mixed", gradient_clip_val=1.0, logger=False, callbacks=[clock],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Pretraining(initialised(budget, 0, 0), budget), datamodule=make())
        wait(device)
        step = (time.perf_counter() - clock.began) / max(1, clock.steps - clock.first)
        sink.add(
            "speed",
            {
                "case": f"Lightning, {name}", "model": budget.name, "batch": budget.batch,
                "precision": "bf16", "compiled": "no", "graph": False, "ms_step": 1e3 * step,
                "samples_per_s": budget.batch / step, "tflops": step_flops(budget) / step / 1e12,
            },
        )  # fmt: skip
