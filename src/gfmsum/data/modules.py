"""Lightning data modules: a source, a mix and a plan, made into batches.

Usable on their own::

    from gfmsum.data.modules import MixDataModule
    from gfmsum.data.synthetic import Synthetic, SyntheticConfig

    source = Synthetic(SyntheticConfig())
    data = MixDataModule(source, Mix.parse("s1+s2", list(source.sensors)), unique=240, seen=1200, batch=60)
    trainer.fit(Pretraining(initialised(BUDGETS["micro"], 0, 0), BUDGETS["micro"]), datamodule=data)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfmsum.data.plan import BatchPlan, permute, share_out, stream
from gfmsum.data.sample import Block, Kind, Pool, Rows, Samples, Source
from gfmsum.data.units import contradiction
from gfmsum.mix import Mix
from gfmsum.records import Seen
from gfmsum.sensors import Band

KEPT_BYTES = 4 * 2**30  # of one sensor's pixels that are costly to make: kept if they are no more
MEASURED = 4096  # samples of a kind that its statistics are taken from


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


class Shown:
    """The samples of one sensor that a run sees, numbered from 0: a part of the replicate's list of places.

    Which sample a number stands for is computed when it is asked for, so that a long list costs no more
    than a short one. Pixels that are costly to make are made once, if memory allows.

    Args:
        pool: all there are.
        slots: which places of the replicate's list.
        seed: of the replicate.

    Raises:
        ValueError: if values are not finite or contradict their unit, as far as they are measured.
    """

    def __init__(self, pool: Pool, slots: range, seed: Sequence[int]) -> None:
        self._pool, self._slots, self._seed = pool, slots, tuple(seed)
        self._starts = np.array(pool.starts)
        self._kept: dict[int, tuple[Rows, Samples]] = {}
        self._statistics: dict[int, Statistics] = {}
        quick = all(block.quick for block in pool.blocks)
        if not quick and self._bytes() <= KEPT_BYTES:
            for b, block, numbers in self._of(np.arange(len(slots))):
                self._kept[b] = numbers, block.read(self._inside(b, numbers))
        first = {b: numbers for b, _, numbers in self._of(np.arange(min(len(slots), MEASURED)))}
        for b, block in enumerate(pool.blocks):
            if b in first:
                self._statistics[b] = _plausible(self._samples(b, first[b]))
            elif len(block) and len(slots):  # of a rare kind, which may come later
                self._statistics[b] = _plausible(block.read(np.arange(min(len(block), 64))))

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def seen(self) -> tuple[Seen, ...]:
        """The kinds of images, with the statistics that they are normalised by."""
        found = []
        for b, known in self._statistics.items():
            kind, both = self._pool.blocks[b].kind, (known.mean, known.deviation)
            mean, deviation = (tuple(values.ravel().tolist()) for values in both)
            found.append(Seen(kind.sensor, kind.bands, kind.gsd_m, mean, deviation))
        return tuple(found)

    def kinds(self, numbers: Rows) -> Iterator[tuple[int, Kind, Rows]]:
        """Of each kind among some samples: its block, itself, and which of them they are."""
        for b, block, mine in self._of(numbers):
            yield b, block.kind, mine

    def read(self, b: int, numbers: Rows) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Normalised pixels (n, c, h, w) and ids of samples that lie in one block."""
        samples = self._samples(b, numbers)
        return self._statistics[b].normalise(samples.pixels), tuple(samples.ids.tolist())

    def _samples(self, b: int, numbers: Rows) -> Samples:
        if b not in self._kept:
            return self._pool.blocks[b].read(self._inside(b, numbers))
        places, kept = self._kept[b]
        return kept.read(np.searchsorted(places, numbers))

    def _of(self, numbers: Rows) -> Iterator[tuple[int, Block, Rows]]:
        """Each block in which some of the samples lie, with their numbers."""
        if not len(numbers):
            return
        if len(self._pool.blocks) == 1:
            yield 0, self._pool.blocks[0], numbers
            return
        blocks = np.searchsorted(self._starts, self._rows(numbers), side="right") - 1
        for b in np.unique(blocks).tolist():
            yield b, self._pool.blocks[b], numbers[blocks == b]

    def _inside(self, b: int, numbers: Rows) -> Rows:
        """Rows of the block."""
        inside: Rows = self._rows(numbers) - self._starts[b]
        return inside

    def _rows(self, numbers: Rows) -> Rows:
        """Rows of the pool: the replicate's list is a permutation of them."""
        slots = numbers + self._slots.start
        return permute(slots, len(self._pool), *self._seed, "places", self._pool.places)

    def _bytes(self) -> int:
        """How many bytes all pixels take, if all are like the first."""
        first = np.arange(min(1, len(self._slots)))
        one = [block.read(self._inside(b, rows)) for b, block, rows in self._of(first)]
        return len(self._slots) * sum(samples.pixels.nbytes for samples in one)


def _plausible(samples: Samples) -> Statistics:
    """The statistics of samples, unless they contradict the declared unit."""
    holed = samples.ids[~np.isfinite(samples.pixels).all(axis=(1, 2, 3))]
    if len(holed):
        raise ValueError(
            f"{samples.sensor}: {holed[0]}: {len(holed)} of {len(samples)} samples hold pixels that are "
            "not finite; leave such samples out of the data"
        )
    statistics = Statistics.of(samples.pixels)
    if wrong := contradiction(samples.bands, statistics.mean.ravel().tolist()):
        raise ValueError(
            f"{samples.sensor} ({samples.ids[0]} and {len(samples) - 1} more): {wrong}; correct the "
            "unit or the scale where these data are described"
        )
    return statistics


class PlannedBatches(Dataset[Batch]):
    """Item t is the batch of step t: any sampler order, any number of workers, any resume point.

    With n slices, item t n + j is slice j of step t.
    """

    def __init__(
        self,
        shown: Mapping[str, Shown],
        mix: Mix,
        batch: int,
        steps: int,
        seed: Sequence[int],
        slices: Sequence[Slice] = (WHOLE,),
    ) -> None:
        self.shown, self.steps, self.seed, self.slices = shown, steps, tuple(seed), tuple(slices)
        self.plan = BatchPlan(
            mix, {name: len(one) for name, one in shown.items()}, batch, self.seed
        )

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
        for name, numbers in self.plan.step(step).items():
            for block, kind, chosen in self.shown[name].kinds(numbers):
                pose = poses.integers(8, size=len(chosen))
                rows = np.arange(before, before + len(chosen))
                mine = rows % taken.of == taken.first
                if mine.any():
                    pixels, ids = self.shown[name].read(block, chosen[mine])
                    turned = torch.from_numpy(turn(pixels, pose[mine]))
                    parts.append(Part(kind, turned, ids, tuple(rows[mine].tolist())))
                counts.append((kind, len(chosen)))
                before += len(chosen)
        return Batch(step, tuple(parts), tuple(counts), taken)


class MixDataModule(L.LightningDataModule):
    """Pretraining batches of several sensors, every step holding each by its share.

    Args:
        source: where pixels come from.
        mix: which sensor each of the ``unique`` locations is given to.
        unique: locations, N.
        seen: samples shown in all, repeats included.
        batch: samples of a step.
        sees: the sensors of the mix that are shown; all if None. The others' locations stay unseen.
        colocated: whether all sensors are shown the same locations, instead of each its own.
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
        colocated: bool = False,
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
        self.colocated = colocated
        self.image_px, self.seed, self.num_workers = image_px, tuple(seed), num_workers
        self.steps, self.start = seen // batch if steps is None else steps, start
        self.accumulate = accumulate
        self.batches: PlannedBatches | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.batches is not None:
            return
        shown = {name: self._show(name) for name in self.sees}
        total = sum(self.mix.share(name) for name in self.sees)
        seen = Mix(tuple((name, self.mix.share(name) / total) for name in self.sees))
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
        self.batches = PlannedBatches(shown, seen, self.batch, self.steps, self.seed, slices)

    def _show(self, sensor: str) -> Shown:
        pool = self.source.pretraining(sensor, self.image_px)
        places = {name: self.source.places(name) for name in self.mix.sensors}
        slots = share_out(
            self.mix, self.unique, sensor, places, pool.held, colocated=self.colocated
        )
        return Shown(pool, slots, self.seed)

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
