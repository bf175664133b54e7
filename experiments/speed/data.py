"""How fast pixels come, how much memory a plan takes, and how soon the first batch is there.

    uv run python experiments/speed/data.py [local=FOLDER] [samples=4000]

In one process, interleaved, medians of three rounds, one thread: samples per second of each source
through the data module (batches as a run gets them, normalised, flipped and turned), alone and with two
loader processes, against what a training step of the same image size consumes on this machine: of the tiny
model at 32 px, and of ViT-S/16 (the ``small`` preset) at 96 px. The archives are packed here from synthetic
Sentinel-2 scenes into a temporary folder. Then the memory of a plan over pools of 10^4, 10^6 and 10^8
patches, each in a fresh process.
"""

from __future__ import annotations

import gc
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gfmsum.config import DataConfig, LocalConfig, ShardsConfig, SyntheticConfig
from gfmsum.data.sample import Kind, Pool, Rows, Samples
from gfmsum.mix import Mix
from gfmsum.sensors import S2
from gfmsum.words import read_words

ROUNDS = 3
SIZES = {"tiny": 32, "small": 96}
SENSOR = "s2"  # the one with most bands


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        return memory(int(sys.argv[2]))
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(1)
    _, words = read_words(sys.argv[1:], ("local", "samples"))
    samples = int(words.get("samples", 4000))
    with tempfile.TemporaryDirectory() as folder:
        for preset, size in SIZES.items():
            compare(preset, size, samples * 32**2 // size**2, Path(folder), words.get("local"))
    print(
        "\nmemory of a plan over n patches of one sensor, resident after 1,000 steps of 256, and its first step"
    )
    for count in (10**4, 10**6, 10**8):
        subprocess.run([sys.executable, __file__, "memory", str(count)], check=True)
    return None


def compare(preset: str, size: int, samples: int, folder: Path, local: str | None) -> None:
    """Every source at one image size, against what a step consumes."""
    configs: dict[str, DataConfig] = {"synthetic": SyntheticConfig()}
    for form in ("npy", "litdata"):
        store = folder / f"{form}-{size}"
        subprocess.run(
            [
                sys.executable, "-m", "gfmsum.data", "pack", f"out={store}", f"samples={samples}",
                f"sensors={SENSOR}", f"size_px={size}", f"format={form}",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        configs[f"shards, {form}"] = ShardsConfig(str(store))
    if local:
        configs["local"] = LocalConfig(local)
    made = {name: Feed(config, size, samples) for name, config in configs.items()}
    consumed = step(preset)
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        rates.setdefault("step", []).append(consumed())
        for name, feed in made.items():
            rates.setdefault(name, []).append(feed.rate(0))
            rates.setdefault(f"{name}, 2 workers", []).append(feed.rate(2))
    eaten = statistics.median(rates.pop("step"))
    print(
        f"\n{preset} model, {size} px, {len(S2.bands)} bands: a training step consumes {eaten:,.0f} samples/s"
    )
    print(f"{'source':<26}{'samples/s':>11}{'x step':>9}{'first batch, s':>16}{'MB/s':>8}")
    for name, found in rates.items():
        rate = statistics.median(found)
        feed = made[name.removesuffix(", 2 workers")]
        first = "" if name.endswith("workers") else f"{feed.first_s:.2f}"
        bytes_ = feed.bytes_per_sample * rate / 1e6
        print(f"{name:<26}{rate:>11,.0f}{rate / eaten:>9.1f}{first:>16}{bytes_:>8,.0f}")


class Feed:
    """A data module on one source, opened and timed to its first batch."""

    def __init__(self, config: DataConfig, size: int, samples: int) -> None:
        from gfmsum.data.modules import SensorDataModule
        from gfmsum.data.sources import open_source

        began = time.perf_counter()
        source = open_source(config)
        held = min(samples, source.pretraining(SENSOR, size).held)
        self.batch = min(100, held)
        self.module = SensorDataModule(
            source, SENSOR, unique=held, seen=20 * self.batch * (held // self.batch), batch=self.batch,
            image_px=size,
        )  # fmt: skip
        first = next(iter(self.module.train_dataloader()))
        self.first_s = time.perf_counter() - began
        self.bytes_per_sample = sum(p.pixels.numel() * 4 for p in first.parts) / self.batch

    def rate(self, workers: int, seconds: float = 2.0) -> float:
        """Samples per second, once the first batch is there."""
        self.module.num_workers = workers
        batches = iter(self.module.train_dataloader())
        next(batches)
        began, count = time.perf_counter(), 0
        for _ in batches:
            count += self.batch
            if time.perf_counter() - began > seconds:
                break
        return count / (time.perf_counter() - began)


def step(preset: str) -> Callable[[], float]:
    """Samples per second of a training step, forward, backward and update."""
    import torch

    from gfmsum.budget import BUDGETS
    from gfmsum.pretrain import Pretraining, initialised

    budget = BUDGETS[preset]
    mae = initialised(budget, 0, 0)
    optimizer = Pretraining(mae, budget).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    size, images = budget.model.image_px, 64
    views = [(torch.randn(images, len(S2.bands), size, size), S2.bands, S2.gsd_m)]

    def measure(steps: int = 4) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            torch.cat(mae(views, torch.Generator().manual_seed(0))).mean().backward()
            optimizer.step()
        return steps * images / (time.perf_counter() - began)

    measure(1)
    return measure


class Endless:
    """Patches of zeros, so that a pool may be as long as one likes."""

    quick = True

    def __init__(self, count: int) -> None:
        self.count, self.kind = count, Kind(SENSOR, S2.bands, S2.gsd_m)

    def __len__(self) -> int:
        return self.count

    def read(self, rows: Rows) -> Samples:
        pixels = np.zeros((len(rows), len(S2.bands), 4, 4), np.float32)
        return Samples(SENSOR, S2.bands, S2.gsd_m, pixels, rows.astype(np.str_))


def memory(count: int) -> None:
    """What a plan over so many patches adds to this process."""
    from gfmsum.data.modules import PlannedBatches, Shown

    pool = Pool((Endless(count),), "endless")
    gc.collect()
    before, began = resident(), time.perf_counter()
    batches = PlannedBatches(
        {SENSOR: Shown(pool, range(count), (0, 0))}, Mix.equal([SENSOR]), 256, 10**9, (0, 0)
    )
    batches.batch(0)
    first = time.perf_counter() - began
    for t in range(1000):
        batches.plan.step(t)
    each = (time.perf_counter() - began - first) / 1000
    grown = (resident() - before) / 2**20
    print(
        f"{count:>12,}: {grown:7.1f} MiB, first step {first:.3f} s, then {each * 1e3:.2f} ms to plan a step"
    )


def resident() -> int:
    """Bytes of this process that were in memory, at their most; the parent's do not count."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in one)
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
