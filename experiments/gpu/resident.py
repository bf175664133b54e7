"""Batches made on the device from images that lie there, the same as MixDataModule makes from them.

Which images a step shows, and in which poses, is the plan's business as everywhere
(:mod:`gfmsum.data.plan`). Only a handful of indices travel to the device.

Shapes: n images, b images of a step, c bands, p pixels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scenes import Code, Kept, KeptBlock
from torch import Tensor

from gfmsum.data.modules import MEASURED, WHOLE, Batch, MixDataModule, Part, PlannedBatches, Slice
from gfmsum.data.modules import turn as turn_on_host
from gfmsum.data.plan import BatchPlan, permute, share_out, stream
from gfmsum.data.sample import Kind, Rows
from gfmsum.mix import Mix

type Picks = dict[str, tuple[Rows, Rows]]
"""Of each sensor, rows of its images and their poses."""


def pose_table(side: int, device: torch.device) -> Tensor:
    """Where each pixel of an image in each of the eight poses comes from: int64 (8, p)."""
    pixels = np.arange(side * side, dtype=np.float32).reshape(1, 1, side, side)
    turned = turn_on_host(np.repeat(pixels, 8, axis=0), np.arange(8))
    return torch.from_numpy(turned.reshape(8, -1)).long().to(device)


@dataclass(frozen=True, slots=True)
class Store:
    """All images of a sensor on the device."""

    kind: Kind
    numbers: Tensor  # int16 (n, c, p)
    centre: Tensor  # float64 (c, 1); value = number * step + centre
    step: Tensor  # float64 (c, 1)
    side: int  # of an image, pixels

    @classmethod
    def load(cls, block: KeptBlock, device: torch.device) -> Store:
        """A block's images, copied shelf by shelf."""
        side = block.shelves[0].shape[-1]
        numbers = torch.empty(
            len(block), len(block.kind.bands), side**2, dtype=torch.int16, device=device
        )
        start = 0
        for shelf in block.shelves:
            some = torch.from_numpy(shelf[: len(block) - start]).flatten(2)
            numbers[start : start + len(some)] = some.to(device)
            start += len(some)
            if start == len(block):
                break
        return cls.of(block.kind, numbers, block.code, side)

    @classmethod
    def of(cls, kind: Kind, numbers: Tensor, code: Code, side: int) -> Store:
        centre, step = (
            torch.from_numpy(part.reshape(-1, 1).astype(np.float64)).to(numbers.device)
            for part in (code.centre, code.step)
        )
        return cls(kind, numbers, centre, step, side)

    def statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each band over some images: float64 (c, 1) each."""
        total, square = torch.zeros_like(self.centre), torch.zeros_like(self.centre)
        for some in torch.split(rows, 256):
            part = self.numbers.index_select(0, some).double()
            total += part.sum(dim=(0, 2))[:, None]
            square += (part**2).sum(dim=(0, 2))[:, None]
        count = len(rows) * self.numbers.shape[-1]
        mean = total / count
        deviation = (square / count - mean**2).clamp_min(0).sqrt() * self.step
        mean = mean * self.step + self.centre
        # As Statistics has it: a band that never varies becomes zero, not infinity.
        flat = deviation < 1e-6 * mean.abs().clamp_min(1e-6)
        return mean, deviation.masked_fill(flat, 1.0)


def take(
    numbers: Tensor, rows: Tensor, pose: Tensor, scale: Tensor, shift: Tensor, poses: Tensor
) -> Tensor:
    """Images at some rows, posed and normalised.

    Args:
        numbers: int16 (n, c, p).
        rows, pose: int64 (b,).
        scale, shift: float32 (c, 1), what makes normalised values of numbers.
        poses: int64 (8, p), see :func:`pose_table`.

    Returns:
        float32 (b, c, p).
    """
    # Two steps: of the large tensor, whole rows are copied, by a kernel that is known to count beyond 2**31.
    found = numbers.index_select(0, rows)
    where = poses.index_select(0, pose)[:, None].expand(-1, found.shape[1], -1)
    return found.gather(2, where).float() * scale + shift


class OnDevice:
    """What a run is shown of one sensor: its part of the replicate's list of places, normalised."""

    def __init__(self, store: Store, places: str, slots: range, seed: Sequence[int]) -> None:
        self.store, self._places, self._slots, self._seed = store, places, slots, tuple(seed)
        measured = self.rows(np.arange(min(len(slots), MEASURED)))
        mean, deviation = store.statistics(torch.from_numpy(measured).to(store.numbers.device))
        self.mean, self.deviation = mean, deviation
        self.scale = (store.step / deviation).float()
        self.shift = ((store.centre - mean) / deviation).float()

    def __len__(self) -> int:
        return len(self._slots)

    def rows(self, numbers: Rows) -> Rows:
        """Rows of the store that some of the run's samples are."""
        slots = numbers + self._slots.start
        return permute(slots, len(self.store.numbers), *self._seed, "places", self._places)


class ResidentBatches(PlannedBatches):
    """Item t is the batch of step t, on the device."""

    def __init__(
        self,
        on_device: Mapping[str, OnDevice],
        mix: Mix,
        batch: int,
        steps: int,
        seed: Sequence[int],
    ) -> None:
        self.on_device, self.steps, self.seed = dict(on_device), steps, tuple(seed)
        self.slices = (WHOLE,)
        self.plan = BatchPlan(
            mix, {name: len(one) for name, one in on_device.items()}, batch, self.seed
        )
        first = next(iter(self.on_device.values())).store
        self.poses = pose_table(first.side, first.numbers.device)

    def picks(self, step: int) -> Picks:
        """Which images the step shows, and in which poses: draws as PlannedBatches does."""
        poses, found = stream(*self.seed, "pose", step), {}
        for name, numbers in self.plan.step(step).items():
            pose: NDArray[np.int64] = poses.integers(8, size=len(numbers))
            found[name] = self.on_device[name].rows(numbers), pose
        return found

    def batch(self, step: int, taken: Slice = WHOLE) -> Batch:
        if taken != WHOLE:
            raise ValueError("images on the device are given in whole steps; set accumulate=1")
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not among the plan's {self.steps}")
        parts, counts, before = [], [], 0
        for name, (rows, pose) in self.picks(step).items():
            one = self.on_device[name]
            device = one.store.numbers.device
            row, turned = (torch.from_numpy(part).to(device) for part in (rows, pose))
            pixels = take(one.store.numbers, row, turned, one.scale, one.shift, self.poses)
            square = torch.unflatten(pixels, -1, (one.store.side, one.store.side))
            ids = tuple(f"place/{row}" for row in rows.tolist())
            places = tuple(range(before, before + len(rows)))
            parts.append(Part(one.store.kind, square, ids, places))
            counts.append((one.store.kind, len(rows)))
            before += len(rows)
        return Batch(step, tuple(parts), tuple(counts), WHOLE)


class ResidentDataModule(MixDataModule):
    """Pretraining batches of several sensors from images on the device; :class:`Pretraining` takes it.

    Args:
        source: the images.
        stores: the same on the device.
        options: those of MixDataModule.
    """

    def __init__(self, source: Kept, stores: Mapping[str, Store], mix: Mix, **options: Any) -> None:
        super().__init__(source, mix, **options)
        self.stores = stores

    def setup(self, stage: str | None = None) -> None:
        if self.batches is not None:
            return
        total = sum(self.mix.share(name) for name in self.sees)
        seen = Mix(tuple((name, self.mix.share(name) / total) for name in self.sees))
        shown = {name: self._place(name) for name in self.sees}
        self.batches = ResidentBatches(shown, seen, self.batch, self.steps, self.seed)

    def _place(self, sensor: str) -> OnDevice:
        pool = self.source.pretraining(sensor, self.image_px)
        places = {name: self.source.places(name) for name in self.mix.sensors}
        slots = share_out(
            self.mix, self.unique, sensor, places, pool.held, colocated=self.colocated
        )
        return OnDevice(self.stores[sensor], pool.places, slots, self.seed)

    @property
    def resident(self) -> ResidentBatches:
        """The batches; made if they are not."""
        self.setup()
        assert isinstance(self.batches, ResidentBatches)
        return self.batches
