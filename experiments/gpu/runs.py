"""Solo and mix runs at ``small`` from images on the device, as many replicates as the time allows.

Every arm of a replicate starts from the same weights and is given the same number of samples. If the time does
not allow the preset's 2.4 million, all are given fewer, and the learning rate follows the smaller budget.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention import only_fused
from constants import keep_constants
from resident import ResidentBatches, ResidentDataModule, Store, pose_table, take
from results import Sink
from scenes import Kept
from speed import prepare, step_flops
from steps import Loop, Table, Way
from timing import product_rate, wait
from torch import Tensor

from gfmsum.budget import Budget, Ledger
from gfmsum.data.modules import Statistics, turn
from gfmsum.meter import Meter
from gfmsum.mix import Mix
from gfmsum.records import Role

CHECKED = 6  # steps that a way must take as the plain one does
CLOSE = 0.03  # share by which losses may differ: bf16 is rounded in another order
MOVED = 0.2  # share by which the length of the way that weights went may differ
SPARE = 0.9  # share of the time that the runs of a replicate are planned for


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run."""

    budget: Budget  # the preset, of which samples may be taken away
    chunk: int  # steps of a table
    replicates: int  # at most
    compiled: bool  # whether compiled blocks may be tried
    work: Path  # where weights are left
    stop_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Seeing:
    """An arm: its role and the sensors that it is trained on."""

    role: Role
    sensors: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.role} {'+'.join(self.sensors)}"


def arms(sensors: tuple[str, ...]) -> list[Seeing]:
    """The arms of a replicate: solo of the first sensor, mix, solo of the others."""
    solo = [Seeing(Role.SOLO, (name,)) for name in sensors]
    return [solo[0], Seeing(Role.MIX, sensors), *solo[1:]]


def conduct(sink: Sink, device_name: str, kept: Kept, plan: Plan) -> None:
    """Carry out replicate after replicate while there is time for a whole one."""
    device = torch.device(device_name)
    prepare(device)
    keep_constants(device)
    fused = only_fused(device)
    began = time.perf_counter()
    stores = {name: Store.load(block, device) for name, block in kept.blocks.items()}
    wait(device)
    taken = sum(store.numbers.nbytes for store in stores.values())
    loaded = time.perf_counter() - began
    sink.add("checks", {"what": "attention without its unfused form", "value": fused})
    sink.add("checks", {"what": "bytes of images on the device", "value": taken})
    sink.add("checks", {"what": "seconds to bring them there", "value": loaded})
    for name, store in stores.items():
        worst = difference(store, kept, name)
        sink.add("checks", {"what": f"largest error of normalised pixels, {name}", "value": worst})
    places = min(plan.budget.unique, min(len(block) for block in kept.blocks.values()))
    budget = replace(plan.budget, unique=places - places % 2, precision="bf16")
    everyone = tuple(kept.sensors)
    work = Work(sink, kept, stores, plan, product_rate("bf16", device))
    way = work.choose(budget, device, everyone)
    cost = {arm: work.step_seconds(budget, way, arm) for arm in arms(everyone)}
    together = sum(cost.values())
    affordable = int(SPARE * (plan.stop_at - time.time()) / together)
    steps = max(1, min(budget.steps, affordable))
    budget = replace(budget, seen=steps * budget.batch)
    said = f"{steps} of {plan.budget.steps}"
    sink.add("checks", {"what": "steps of each run, of the preset's", "value": said})
    for replicate in range(plan.replicates):
        if replicate and time.time() + 1.1 * together * steps > plan.stop_at:
            break
        for arm in cost:
            work.run(budget, way, arm, replicate)


@dataclass(frozen=True, slots=True)
class Work:
    """What all runs need."""

    sink: Sink
    kept: Kept
    stores: dict[str, Store]
    plan: Plan
    ceiling: float  # FLOP/s of a matrix product

    def batches(self, budget: Budget, arm: Seeing, replicate: int) -> ResidentBatches:
        return ResidentDataModule(
            self.kept, self.stores, Mix.equal(arm.sensors), unique=budget.unique, seen=budget.seen,
            batch=budget.batch, image_px=budget.model.image_px, seed=(0, replicate),
        ).resident  # fmt: skip

    def choose(self, budget: Budget, device: torch.device, sensors: tuple[str, ...]) -> Way:
        """The fastest way that takes the first steps as the plain way does."""
        batches = self.batches(budget, Seeing(Role.MIX, sensors), 0)
        # No warm-up: in its first steps weights hardly move, and a lost update would not show.
        budget = replace(
            budget, warmup=0.0, seen=2 * CHECKED * budget.batch,
            learning_rate=budget.learning_rate / 4,
        )  # fmt: skip
        plain = Way(graph=False)
        want, length = _first_steps(Loop(budget, batches, plain, CHECKED), budget)
        ways = [Way(), plain] if device.type == "cuda" else [plain]
        if self.plan.compiled:
            ways.insert(0, Way(compiled="blocks"))
        for way in ways:
            row: dict[str, Any] = {"what": f"first steps, {way}, beside the plain way's"}
            try:
                got, gone = _first_steps(Loop(budget, batches, way, CHECKED), budget)
            except (
                Exception
            ) as error:  # whatever a compiler or a graph may raise: the next way may do
                said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                self.sink.add("checks", row | {"value": said})
                continue
            apart = float(((got - want).abs() / want).max())
            self.sink.add("checks", row | {"value": apart, "moved": gone / length})
            if apart <= CLOSE and abs(gone / length - 1) <= MOVED:
                return way
        return plain

    def step_seconds(self, budget: Budget, way: Way, arm: Seeing) -> float:
        """What a step of an arm takes, drawing its images and masks included."""
        chunk = min(self.plan.chunk, 50)
        loop = Loop(budget, self.batches(budget, arm, 0), way, chunk)
        loop.load(Table.of(loop.mae, budget, loop.batches, range(chunk)))
        loop.go(chunk)
        wait(loop.device)
        began = time.perf_counter()
        loop.load(Table.of(loop.mae, budget, loop.batches, range(chunk)))
        drawn = time.perf_counter()
        loop.go(chunk)
        wait(loop.device)
        # The host draws while the device works: the slower of the two counts.
        return max(drawn - began, time.perf_counter() - drawn) / chunk

    def run(self, budget: Budget, way: Way, arm: Seeing, replicate: int) -> None:
        """Pretrain once; weights and rows are left when it ends, and nothing if time is over before."""
        if time.time() > self.plan.stop_at:
            return
        device = self.stores[arm.sensors[0]].numbers.device
        meter, ledger = Meter(device.type), Ledger()
        began = time.perf_counter()
        loop = Loop(budget, self.batches(budget, arm, replicate), way, self.plan.chunk)
        curve: list[Tensor] = []
        for losses in self._steps(loop, budget):
            curve.append(losses)
            row = {"arm": arm.role, "sees": "+".join(arm.sensors), "replicate": replicate}
            for name, loss in zip(arm.sensors, losses.mean(dim=0).tolist(), strict=True):
                self.sink.add("curves", {**row, "step": loop.done, "sensor": name, "loss": loss})
        seconds = time.perf_counter() - began
        meter.enter(ledger)
        flops = loop.done * step_flops(budget, arm.sensors)
        whole = loop.done == budget.steps
        weights = self.plan.work / f"{arm.role}-{'-'.join(arm.sensors)}-{replicate}.pt"
        if whole:
            state = {name: value.cpu() for name, value in loop.mae.state_dict().items()}
            torch.save(state, weights.with_suffix(".draft"))
            weights.with_suffix(".draft").rename(weights)
        self.sink.add(
            "runs",
            {
                **row, "whole": whole, "weights": weights.name if whole else None, "way": str(way),
                "steps": loop.done, "seen": loop.done * budget.batch, "unique": budget.unique,
                "seconds": seconds, "samples_per_s": loop.done * budget.batch / seconds,
                "flops": flops, "of_matrix_product": flops / seconds / self.ceiling,
                "loss_first": float(curve[0][0].mean()), "loss_last": float(curve[-1].mean()),
                "joules": ledger.joules, "peak_gib": ledger.peak_bytes / 2**30,
            },
        )  # fmt: skip

    def _steps(self, loop: Loop, budget: Budget) -> Iterator[Tensor]:
        """Take all steps, and give their losses table by table; end early when time is over."""
        starts = range(0, budget.steps, self.plan.chunk)
        parts = [range(s, min(s + self.plan.chunk, budget.steps)) for s in starts]
        table = Table.of(loop.mae, budget, loop.batches, parts[0])
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            loop.load(table)
            loop.go(len(part))
            if after:  # drawn while the device works
                table = Table.of(loop.mae, budget, loop.batches, after)
            losses = loop.losses()
            if not bool(losses.isfinite().all()):
                raise ValueError(f"loss is not finite in steps {part.start} to {part.stop}")
            yield losses
            if time.time() > self.plan.stop_at:
                return


def _first_steps(loop: Loop, budget: Budget) -> tuple[Tensor, float]:
    """Losses of the first steps, and how far they take the weights."""

    def weights() -> Tensor:
        return torch.cat([part.detach().flatten() for part in loop.mae.parameters()])

    start = weights()
    loop.load(Table.of(loop.mae, budget, loop.batches, range(CHECKED)))
    loop.go(CHECKED)
    return loop.losses(), float((weights() - start).norm())


def difference(store: Store, kept: Kept, sensor: str, images: int = 16) -> float:
    """How far normalised and posed images of the device are from those made on the host, at most."""
    block = kept.blocks[sensor]
    rows = np.linspace(0, len(block) - 1, images).astype(np.int64)
    pose = np.arange(images) % 8
    pixels = block.read(rows).pixels
    statistics = Statistics.of(pixels)
    want = turn(statistics.normalise(pixels), pose)
    device = store.numbers.device
    row, turned = (torch.from_numpy(part).to(device) for part in (rows, pose))
    mean, deviation = store.statistics(row)
    scale, shift = (store.step / deviation).float(), ((store.centre - mean) / deviation).float()
    got = take(store.numbers, row, turned, scale, shift, pose_table(store.side, device))
    return float(np.abs(got.cpu().numpy().reshape(want.shape) - want).max())
