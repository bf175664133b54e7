"""What the Ledger, checkpoints and logging cost, how long a run takes, and how soon a stopped one goes on.

    uv run python experiments/speed/pretraining.py [key=value ...]

The words are those of the main job; the run is its first mix run. In one process, interleaved, medians of
three rounds: the bare loop (the same batches, model and optimiser, nothing else), the loop as a run has it, and
the same with tracking and a checkpoint every 60 s. Then what a checkpoint costs, and how soon a run goes on.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gfmsum.checkpoint import Checkpoints
from gfmsum.config import Execution, load
from gfmsum.data.modules import MixDataModule
from gfmsum.data.plan import stream
from gfmsum.pretrain import Pretraining, initialised, pretrain
from gfmsum.records import Role
from gfmsum.study import plan
from gfmsum.track import track

ROUNDS, STEPS = 3, 300


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    study = plan(load(sys.argv[1:]))
    run = study.runs[Role.MIX, 0]
    run = replace(run, budget=replace(run.budget, seen=STEPS * run.budget.batch))
    budget, seed = run.budget, (run.seed, run.replicate)
    data = MixDataModule(
        study.source, run.assignment, unique=budget.unique, seen=budget.seen, batch=budget.batch,
        image_px=budget.model.image_px, seed=seed,
    )  # fmt: skip
    began = time.perf_counter()
    data.setup()
    prepared = time.perf_counter() - began
    execution = Execution()

    def bare() -> None:
        mae = initialised(budget, *seed)
        optimizer = Pretraining(mae, budget).configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        for batch in data.train_dataloader():
            draws = torch.Generator().manual_seed(
                int(stream(*seed, "mask", batch.step).integers(2**62))
            )
            views = [(part.pixels, part.bands, part.gsd_m) for part in batch.parts]
            optimizer.zero_grad()
            torch.cat(mae(views, draws)).mean().backward()
            torch.nn.utils.clip_grad_norm_(mae.parameters(), 1.0)
            optimizer.step()

    def whole() -> None:
        pretrain(run, study.source, execution=execution)

    def kept() -> None:
        with (
            tempfile.TemporaryDirectory() as name,
            track("speed", group="speed", kind="pretrain", config={}, folder=Path(name)) as to,
        ):
            pretrain(
                run, study.source, execution=execution, checkpoints=Path(name) / "states",
                tell=lambda step, metrics: to.log(metrics),
            )  # fmt: skip

    seconds: dict[str, list[float]] = {}
    work: dict[str, Callable[[], None]] = {
        "bare": bare,
        "run": whole,
        "run, tracked and kept": kept,
    }
    for do in work.values():  # warm
        do()
    for _ in range(ROUNDS):
        for name, do in work.items():
            began = time.perf_counter()
            do()
            # A run makes its own pixels and pictures; the bare loop is given them.
            spent = time.perf_counter() - began - (prepared if do is not bare else 0.0)
            seconds.setdefault(name, []).append(1000 * spent / STEPS)
    print(
        f"budget {budget.name}, {STEPS} steps of {budget.batch} images; pixels made in {prepared:.1f} s"
    )
    reference = statistics.median(seconds["bare"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:24}{median:8.2f} ms a step  {median / reference:6.3f}")

    with tempfile.TemporaryDirectory() as folder:
        states, mae = Path(folder), initialised(budget, *seed)
        module = Pretraining(mae, budget)
        optimizer = module.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        (torch.cat([p.flatten() for p in mae.parameters()]) ** 2).sum().backward()
        optimizer.step()
        state = {"mae": mae.state_dict(), "optimizer": optimizer.state_dict()}
        began = time.perf_counter()
        Checkpoints(states).save(state, 1)
        written = time.perf_counter() - began
        size = sum(path.stat().st_size for path in states.iterdir()) / 2**20
        began = time.perf_counter()
        Checkpoints(states).newest()
        read = time.perf_counter() - began
    print(f"a checkpoint of {size:.1f} MiB: {written:.3f} s, {written / 60:.2%} of 60 s")
    print(f"a stopped run goes on after {read:.3f} s, and {prepared:.1f} s to make its pixels anew")


if __name__ == "__main__":
    main()
