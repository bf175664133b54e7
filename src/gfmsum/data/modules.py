"""Lightning data modules: a source, a mix and a plan, made into batches.

Usable on their own::

    from gfmsum.data.modules import MixDataModule
    from gfmsum.data.synthetic import Synthetic, SyntheticConfig

    source = Synthetic(SyntheticConfig())
    data = MixDataModule(source, Mix.parse("s1+s2", list(source.sensors)), unique=240, seen=1200, batch=60)
    trainer.fit(Pretraining(initialised(BUDGETS["micro"], 0, 0), BUDGETS["micro"]), datamodule=data)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfmsum.data.plan import BatchPlan, offsets, stream
from gfmsum.data.sample import Samples, Source
from gfmsum.mix import Mix
from gfmsum.sensors import Band


@dataclass(frozen=True, slots=True)
class Kind:
    """What the images of a part have in common."""

    sensor: str
    bands: tuple[Band, ...]
    gsd_m: float


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one kind."""

    kind: Kind
    pixels: Tensor  # float32 (b, c, h, w), each band normalised
    ids: tuple[str, ...]  # (b,) names of the samples
    rows: tuple[int, ...]  # (b,) their places among all images of the step

    @property
    def sensor(self) -> str:
        return self.kind.sensor

    @property
    def bands(self) -> tuple[Band, ...]:
        return self.kind.bands

    @property
    def gsd_m(self) -> float:
        return self.kind.gsd_m


@dataclass(frozen=True, slots=True)
class Slice:
    """Every ``of``-th image of a step, from ``first`` on: a device's, or a part of what fits on it."""

    first: int = 0
    of: int = 1


WHOLE = Slice()


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step, or of a slice of it, in parts of one kind each."""

    step: int
    parts: tuple[Part, ...]
    counts: tuple[tuple[Kind, int], ...]  # images of each kind in the whole step
    slice: Slice = WHOLE

    @property
    def images(self) -> int:
        """Of the whole step."""
        return sum(count for _, count in self.counts)

    def to(self, device: torch.device, **options: Any) -> Batch:
        """The same batch on another device."""
        moved = (replace(part, pixels=part.pixels.to(device, **options)) for part in self.parts)
        return replace(self, parts=tuple(moved))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation per band, float32 (c, 1, 1) each, in the bands' units."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, pixels: NDArray[np.float32]) -> Self:
        """Of images (n, c, h, w)."""
        mean = pixels.mean(axis=(0, 2, 3), dtype=np.float64)
        deviation = pixels.std(axis=(0, 2, 3), dtype=np.float64)
        # A band that never varies carries nothing: it becomes zero, not infinity.
        deviation[deviation < 1e-6 * np.maximum(1e-6, np.abs(mean))] = 1.0
        return cls(
            mean.astype(np.float32)[:, None, None], deviation.astype(np.float32)[:, None, None]
        )

    def normalise(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Zero mean and unit variance per band."""
        out: NDArray[np.float32] = (pixels - self.mean) / self.deviation
        return out


def turn(pixels: NDArray[np.float32], pose: NDArray[np.int64]) -> NDArray[np.float32]:
    """Flip and turn square images (b, c, h, h), each to one of the eight poses of a square."""
    out = np.empty_like(pixels)
    for code in range(8):
        chosen = pose == code
        if chosen.any():
            turned = np.rot90(pixels[chosen], code % 4, axes=(2, 3))
            out[chosen] = turned[..., ::-1] if code >= 4 else turned
    return out


class PlannedBatches(Dataset[Batch]):
    """Item t is the batch of step t: any sampler order, any number of workers, any resume point.

    With n slices, item t n + j is slice j of step t.
    """

    def __init__(
        self,
        pools: dict[str, list[Samples]],
        mix: Mix,
        batch: int,
        steps: int,
        seed: Sequence[int],
        slices: Sequence[Slice] = (WHOLE,),
    ) -> None:
        self.steps, self.seed, self.slices = steps, tuple(seed), tuple(slices)
        self.pools = {
            name: [
                (samples, Statistics.of(samples.pixels).normalise(samples.pixels))
                for samples in pool
                if len(samples)
            ]
            for name, pool in pools.items()
        }
        sizes = {name: sum(len(s) for s, _ in pool) for name, pool in self.pools.items()}
        self.plan = BatchPlan(mix, sizes, batch, self.seed)

    def __len__(self) -> int:
        return self.steps * len(self.slices)

    def __getitem__(self, item: int) -> Batch:
        step, which = divmod(item, len(self.slices))
        return self.batch(step, self.slices[which])

    def batch(self, step: int, taken: Slice = WHOLE) -> Batch:
        """A step's images, or a slice of them."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not among the plan's {self.steps}")
        poses, parts, counts, before = stream(*self.seed, "pose", step), [], [], 0
        for samples, normalised, inside in self._chosen(step):
            kind = Kind(samples.sensor, samples.bands, samples.gsd_m)
            pose = poses.integers(8, size=len(inside))
            rows = np.arange(before, before + len(inside))
            mine = rows % taken.of == taken.first
            if mine.any():
                pixels = turn(normalised[inside[mine]], pose[mine])
                ids = tuple(samples.ids[inside[mine]].tolist())
                parts.append(Part(kind, torch.from_numpy(pixels), ids, tuple(rows[mine].tolist())))
            counts.append((kind, len(inside)))
            before += len(inside)
        return Batch(step, tuple(parts), tuple(counts), taken)

    def _chosen(
        self, step: int
    ) -> Iterator[tuple[Samples, NDArray[np.float32], NDArray[np.int64]]]:
        """Of each kind in the step: the samples, their normalised pixels, and which are shown."""
        for name, rows in self.plan.step(step).items():
            pool = self.pools[name]
            starts = offsets([len(samples) for samples, _ in pool])
            for (samples, pixels), start, end in zip(pool, starts, starts[1:], strict=False):
                inside = rows[(rows >= start) & (rows < end)] - start
                if len(inside):
                    yield samples, pixels, inside


class MixDataModule(L.LightningDataModule):
    """Pretraining batches of several sensors, every step holding each by its share.

    Args:
        source: where pixels come from.
        mix: which sensor each of the ``unique`` locations is given to.
        unique: locations, N.
        seen: samples shown in all, repeats included.
        batch: samples of a step.
        sees: the sensors of the mix that are shown; all if None. The others' locations stay unseen.
        image_px: side of an image.
        seed: determines locations, order and poses.
        num_workers: loader processes; batches are the same for any number.
        steps: how many there are; as many as ``seen`` pays for if None.
        start: the first step that is given.
        accumulate: parts of each step that a device is given one after another.
    """

    def __init__(
        self,
        source: Source,
        mix: Mix,
        *,
        unique: int,
        seen: int,
        batch: int,
        sees: Sequence[str] | None = None,
        image_px: int = 32,
        seed: Sequence[int] = (0, 0),
        num_workers: int = 0,
        steps: int | None = None,
        start: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.source, self.mix, self.unique, self.seen, self.batch = source, mix, unique, seen, batch
        self.sees = tuple(mix.sensors if sees is None else sees)
        self.image_px, self.seed, self.num_workers = image_px, tuple(seed), num_workers
        self.steps, self.start = seen // batch if steps is None else steps, start
        self.accumulate = accumulate
        self.batches: PlannedBatches | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.batches is not None:
            return
        slots = self.mix.split(self.unique)
        pools = {
            name: self.source.pretraining(name, slots[name], self.image_px, self.seed)
            for name in self.sees
        }
        total = sum(self.mix.share(name) for name in self.sees)
        shown = Mix(tuple((name, self.mix.share(name) / total) for name in self.sees))
        rank, devices = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        of = devices * self.accumulate
        if of > self.batch:
            raise ValueError(
                f"batch={self.batch} cannot be cut into {of} slices (devices x accumulate); raise "
                "the batch or lower accumulate"
            )
        slices = [Slice(rank * self.accumulate + j, of) for j in range(self.accumulate)]
        self.batches = PlannedBatches(pools, shown, self.batch, self.steps, self.seed, slices)

    def train_dataloader(self) -> DataLoader[Batch]:
        if self.batches is None:
            self.setup()
        assert self.batches is not None
        items = range(self.start * self.accumulate, len(self.batches))
        return DataLoader(
            self.batches, batch_size=None, sampler=items, num_workers=self.num_workers
        )


class SensorDataModule(MixDataModule):
    """Pretraining batches of one sensor: a mix of one."""

    def __init__(self, source: Source, sensor: str, **options: Any) -> None:
        super().__init__(source, Mix.equal([sensor]), **options)
