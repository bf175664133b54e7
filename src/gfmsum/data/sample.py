"""What every data source gives: pixels that carry their bands, place and name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gfmsum.records import Task
from gfmsum.sensors import Band, Sensor


@dataclass(frozen=True, slots=True)
class Samples:
    """Many samples of one sensor on one grid with the same bands.

    Shapes: n samples, c bands, h by w pixels. Pixels are in the unit of their band, without NaN.
    """

    sensor: str
    bands: tuple[Band, ...]
    gsd_m: float  # pixel size of the grid, metres
    pixels: NDArray[np.float32]  # (n, c, h, w)
    ids: NDArray[np.str_]  # (n,), unique within the source
    lonlat: NDArray[np.float64] | None = None  # (n, 2) degrees, where the source knows it

    def __post_init__(self) -> None:
        n, c = self.pixels.shape[:2]
        if self.pixels.ndim != 4 or c != len(self.bands) or len(self.ids) != n:
            raise ValueError(
                f"samples of {self.sensor}: pixels {self.pixels.shape} do not match "
                f"{len(self.bands)} bands and {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A task's items: samples with target, split and cluster.

    ``folds`` lists (train, val, test) index arrays: one triple for a fixed split, several for
    cross-validation; the test parts are disjoint.
    """

    task: Task
    samples: Samples
    target: NDArray[Any]  # (n,) int64 class index, or float64 value
    cluster: NDArray[np.str_]  # (n,) items of one cluster are not independent
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], ...]


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

    def available(self, sensor: str, size_px: int) -> int | None:
        """How many pretraining samples of ``size_px`` there are; None if without end."""

    def pretraining(
        self, sensor: str, slots: range, size_px: int, seed: Sequence[int]
    ) -> list[Samples]:
        """The samples at ``slots`` of the replicate's list, which ``seed`` determines.

        A sensor with fewer samples than slots gives all it has. The list is the same for every
        arm of a replicate; samples of differing bands or units come in separate Samples.
        """

    def tasks(self, sensor: str) -> list[Task]:
        """The sensor's tasks, without pixels; empty if it has no labels here."""

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        """Names and kinds of the sensor's tasks that no probe can score."""

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items: the same for every arm and replicate."""
