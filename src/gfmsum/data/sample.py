"""What every data source gives: pixels that carry their bands, place, date and name.

A Source offers, for each sensor, one :class:`Pool`: everything that pretraining may see, read on demand.
Which rows of it a run is given is not the source's matter but the plan's (:mod:`gfmsum.data.plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gfmsum.records import Task
from gfmsum.sensors import Band, Sensor

type Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kind:
    """What samples have in common that can be stacked."""

    sensor: str
    bands: tuple[Band, ...]
    gsd_m: float  # pixel size of the grid, metres


@dataclass(frozen=True, slots=True)
class Samples:
    """Many samples of one kind, in memory.

    Shapes: n samples, c bands, h by w pixels. Pixels are in the unit of their band, without NaN.
    """

    sensor: str
    bands: tuple[Band, ...]
    gsd_m: float  # pixel size of the grid, metres
    pixels: NDArray[np.float32]  # (n, c, h, w)
    ids: NDArray[np.str_]  # (n,), unique within the source
    lonlat: NDArray[np.float64] | None = None  # (n, 2) degrees; NaN, or None for all, if not known
    dates: NDArray[np.str_] | None = None  # (n,) as 2020-07-15; empty, or None for all, likewise

    def __post_init__(self) -> None:
        n, c = self.pixels.shape[:2]
        if self.pixels.ndim != 4 or c != len(self.bands) or len(self.ids) != n:
            raise ValueError(
                f"samples of {self.sensor}: pixels {self.pixels.shape} do not match "
                f"{len(self.bands)} bands and {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> Kind:
        return Kind(self.sensor, self.bands, self.gsd_m)

    quick = True

    def read(self, rows: Rows) -> Samples:
        """Some of them, in the order of ``rows``."""
        return Samples(
            self.sensor,
            self.bands,
            self.gsd_m,
            self.pixels[rows],
            self.ids[rows],
            None if self.lonlat is None else self.lonlat[rows],
            None if self.dates is None else self.dates[rows],
        )


class Block(Protocol):
    """Samples of one kind, read on demand. :class:`Samples` are a block that is in memory."""

    @property
    def kind(self) -> Kind:
        """What all of them have in common."""

    @property
    def quick(self) -> bool:
        """Whether reading costs little more than copying, so that nothing need be kept in memory."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, rows: Rows) -> Samples:
        """The samples at ``rows``, int64 (n,) in [0, len), in that order; repeats are allowed."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All that pretraining may see of one sensor: blocks laid end to end, one row per place.

    ``places`` names the list of places that the rows show. Sensors of one list have pools of one length,
    whose rows with one number show one place: so a place can be given to one sensor only, or to all.
    """

    blocks: tuple[Block, ...]
    places: str
    limit: int | None = None  # a run is given no more rows than these, if it is scarce on purpose

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    @property
    def held(self) -> int:
        """How many samples a run can be given."""
        return len(self) if self.limit is None else min(self.limit, len(self))

    @property
    def starts(self) -> list[int]:
        """The row where each block starts, and the end of the last."""
        return [0, *accumulate(len(block) for block in self.blocks)]


UNLABELLED = 255  # of a pixel in a dense target that no class is known for


@dataclass(frozen=True, slots=True)
class Labelled:
    """A task's items: samples with target, split and cluster.

    ``folds`` lists (train, val, test) index arrays: one triple for a fixed split, several for
    cross-validation; the test parts are disjoint.
    """

    task: Task
    samples: Samples
    # (n,) int64 class index or float64 value; of dense tasks uint8 (n, h, w), see UNLABELLED.
    target: NDArray[Any]
    cluster: NDArray[np.str_]  # (n,) items of one cluster are not independent
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], ...]
    before: Samples | None = None  # the same items earlier, if the task asks for change
    # Of each fold all images to train on, labelled or not; none where all are labelled.
    images: tuple[Rows, ...] = field(default=(), kw_only=True)

    def images_of(self, train: Rows) -> Rows:
        """All training images of the fold whose labelled ones are ``train``.

        What needs no label is measured on these: pictures are at hand where labels are few.
        """
        for (labelled, _, _), images in zip(self.folds, self.images, strict=False):
            if np.array_equal(labelled, train):
                return images
        return train

    def __post_init__(self) -> None:
        n, _, h, w = self.samples.pixels.shape
        wanted = (n, h, w) if self.task.dense else (n,)
        if self.target.shape != wanted or len(self.cluster) != n:
            raise ValueError(
                f"task {self.task.name}: targets {self.target.shape} and {len(self.cluster)} clusters do "
                f"not match {n} {self.task.kind} items, which want {wanted}"
            )
        if (self.task.kind == "change_segmentation") != (self.before is not None):
            raise ValueError(
                f"task {self.task.name}: change_segmentation, and nothing else, compares with pixels before"
            )
        if self.before is not None and self.before.pixels.shape != self.samples.pixels.shape:
            raise ValueError(
                f"task {self.task.name}: pixels before have shape {self.before.pixels.shape}, those after "
                f"{self.samples.pixels.shape}; both must be the same"
            )


def constant_iou(metric: str, train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """The metric of a dense answer that ignores the image.

    Args:
        metric: ``mean_iou``, where the answer is the class most frequent in training, or
            ``iou_positive``, where it is class 1: the other answer scores 0.
        train: int64 (classes,), labelled pixels of each class in the training items.
        test: the same of the test items.
    """
    answer = 1 if metric == "iou_positive" else int(train.argmax())
    share = float(test[answer] / test.sum())
    return share if metric == "iou_positive" else share / int((test > 0).sum())


class Source(Protocol):
    """A place that pixels come from. Sources are cheap to build; pixels are made on demand."""

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        """What pretraining can see, in a fixed order."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON types that change whenever the pixels would: part of every Run's name."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that a verdict on this source must open with."""

    def places(self, sensor: str) -> str:
        """The name of the list of places that the sensor's pool shows; needs no pixels."""

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        """All samples of ``size_px`` by ``size_px`` pixels that pretraining may see of a sensor."""

    def tasks(self, sensor: str) -> list[Task]:
        """The sensor's tasks, without pixels; empty if it has no labels here."""

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        """Names and kinds of the sensor's tasks that no probe can score, or that want a package."""

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items: the same for every arm and replicate."""
