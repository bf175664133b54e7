"""What all labelled data sets have in common: published splits, read once into memory as float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gfmsum.data.files import Ground
from gfmsum.data.geo.physics import (
    Physics,
    found_by_torchgeo,
    opened,
    undisturbed,
    unreadable,
)
from gfmsum.data.index import MULTIPLE_PX
from gfmsum.data.plan import permute
from gfmsum.data.rows import BLOCK_ITEMS, BLOCK_MIN_M
from gfmsum.data.sample import Labelled, Rows, Samples
from gfmsum.data.units import contradiction
from gfmsum.records import Task

PARTS = ("train", "val", "test")
HELD_BYTES = 8 * 2**30
"""Pixels of one task that are held. Where a data set has more (USAVars), every part of the split is thinned
alike, by a fixed permutation that sees neither pixels nor labels, and the task's caveat says so."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was read."""

    numbers: NDArray[Any]  # (c, h, w), as stored
    target: float  # index of its class, or its value
    day: str = ""  # as 2020-07-15, where known


class Labels(ABC):
    """A data set with a train, val and test part.

    Args:
        root: of torchgeo's class.
    """

    name: ClassVar[str]
    physics: ClassVar[Physics]
    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    caveat: ClassVar[str] = ""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts: dict[str, tuple[Any, tuple[str, ...]]] = {}

    # What a data set must say of itself.

    @abstractmethod
    def _open(self, part: Any) -> Any:
        """torchgeo's data set of a part."""

    @abstractmethod
    def _list(self, data: Any) -> Sequence[str]:
        """The names of a part's items, unique within the data set."""

    @abstractmethod
    def _path(self, part: str, row: int) -> Path:
        """The file that an item's pixels are in."""

    @abstractmethod
    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64] | None:
        """Where items lie, without their pixels: (n, 2), or None if the data set does not say."""

    @abstractmethod
    def _read(self, part: str, row: int) -> Item | None:
        """An item, or None if by the data set's own rule it has no label."""

    def _classes(self) -> tuple[str, ...]:
        return ()

    def _targets(self, part: str) -> NDArray[np.int64] | None:
        """The class of each item, where it is known without decoding."""
        return None

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        """Of an item (c, h, w), to judge by the first."""
        path = self._path("train", 0)
        with opened(path) as file:
            self.physics.check(file, path, self.physics.theirs)
            return file.count, file.height, file.width

    # What follows from it.

    def _data(self, part: str) -> Any:
        return self._part(part)[0]

    def _names(self, part: str) -> tuple[str, ...]:
        return self._part(part)[1]

    def _part(self, part: str) -> tuple[Any, tuple[str, ...]]:
        if part not in self._parts:
            data = found_by_torchgeo(lambda: self._open(part), self._root)
            self._parts[part] = data, tuple(self._list(data))
        return self._parts[part]

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        """The items of each part that are used."""
        sizes = {part: len(self._names(part)) for part in PARTS}
        for part, size in sizes.items():
            if not size:
                raise ValueError(
                    f"{self._root}: {self.name} has no {part} item; fetch the whole of it again"
                )
        share = HELD_BYTES / (sum(sizes.values()) * int(np.prod(self._shape)) * 4)
        if share >= 1:
            return {part: np.arange(size) for part, size in sizes.items()}
        return {
            part: np.sort(
                permute(np.arange(max(1, int(share * size))), size, "labelled", self.name, part)
            )
            for part, size in sizes.items()
        }

    @cached_property
    def task(self) -> Task:
        """Needs labels at most, no pixels."""
        used, published = (
            sum(map(len, parts)) for parts in (self._rows.values(), map(self._names, PARTS))
        )
        caveat = self.caveat
        if used < published:
            thinned = (
                f"{used} of the {published} published items are used, drawn blindly and alike from every "
                "part, so that they fit into memory."
            )
            caveat = f"{caveat} {thinned}".strip()
        return Task(
            self.name, self.physics.sensor.name, self.kind, self.metric, self._floor, 1.0,
            self._classes(), caveat, clustered=self.located,
        )  # fmt: skip

    @property
    def _floor(self) -> float:
        """The metric of an answer that ignores the image: for accuracy, the class most frequent in training."""
        if self.metric == "r2":
            return 0.0
        if self.metric == "balanced_accuracy":
            return 1 / len(self._classes())
        train, test = (self._targets(part) for part in ("train", "test"))
        assert train is not None and test is not None
        most = np.bincount(train[self._rows["train"]]).argmax()
        return float((test[self._rows["test"]] == most).mean())

    @cached_property
    def located(self) -> bool:
        """Whether items say where they lie, to judge by the first."""
        return self._lonlat("test", np.zeros(1, np.int64)) is not None

    @property
    def side_m(self) -> float:
        """Of an item's footprint."""
        return max(self._shape[1:]) * self.physics.gsd_m

    def held(self) -> list[Ground]:
        """The ground of every published validation and test item, as far as it is known."""
        found = (self._lonlat(part, np.arange(len(self._names(part)))) for part in ("val", "test"))
        return [Ground(lonlat, self.side_m) for lonlat in found if lonlat is not None]

    @cached_property
    def _items(self) -> tuple[Samples, NDArray[Any], NDArray[np.str_], tuple[Rows, Rows, Rows]]:
        c, h, w = self._shape
        top, left = h % MULTIPLE_PX // 2, w % MULTIPLE_PX // 2
        h, w = h - h % MULTIPLE_PX, w - w % MULTIPLE_PX
        pixels = np.empty((sum(map(len, self._rows.values())), c, h, w), np.float32)
        targets, days, ids, parts = list[float](), list[str](), list[str](), list[str]()
        used: dict[str, Rows] = {}
        for part in PARTS:
            kept = []
            for row in self._rows[part].tolist():
                try:
                    with undisturbed():
                        item = self._read(part, row)
                except (OSError, LookupError) as broken:
                    raise unreadable(self._path(part, row), broken) from None
                if item is None:
                    continue
                name, n = f"{self.name}/{self._names(part)[row]}", len(ids)
                finite = np.isfinite(item.numbers).all() and np.isfinite(item.target)
                if item.numbers.shape != self._shape or not finite:
                    raise ValueError(
                        f"{self._path(part, row)}: item {name} must be {self._shape} of finite numbers and "
                        f"is {item.numbers.shape}; fetch it again or take it out of its split"
                    )
                window = item.numbers[:, top : top + h, left : left + w]
                pixels[n] = self.physics.values(window)
                kept.append(row)
                targets.append(item.target)
                days.append(item.day)
                ids.append(name)
                parts.append(part)
            used[part] = np.array(kept, np.int64)
        pixels = pixels[: len(ids)]
        kind = self.physics.kind()
        means = pixels.mean(axis=(0, 2, 3), dtype=np.float64).tolist()
        if wrong := contradiction(kind.bands, means):
            raise ValueError(
                f"{self._root}: {self.name}: {wrong}; these are not the published files, fetch them again"
            )
        places = [self._lonlat(part, used[part]) for part in PARTS]
        known = [place for place in places if place is not None]
        lonlat = np.concatenate(known) if len(known) == len(PARTS) else None
        clusters = list(ids)
        if lonlat is not None:
            blocks = Ground(lonlat, self.side_m).blocks(max(BLOCK_ITEMS * self.side_m, BLOCK_MIN_M))
            clusters = [f"block {row},{col}" for row, col in blocks.tolist()]
        samples = Samples(
            kind.sensor, kind.bands, kind.gsd_m, pixels, np.array(ids, np.str_), lonlat,
            np.array(days, np.str_) if all(days) else None,
        )  # fmt: skip
        where = np.array(parts)
        train, val, test = (np.flatnonzero(where == part) for part in PARTS)
        dtype = np.int64 if self.kind == "classification" else np.float64
        return samples, np.array(targets, dtype), np.array(clusters), (train, val, test)

    def labelled(self, task: Task) -> Labelled:
        """All items, cropped at the centre to a multiple of MULTIPLE_PX.

        Raises:
            ValueError: one line, for an item that cannot be read or holds a number that is not finite,
                for values that contradict their unit, and where the floor's classes are not all tested.
        """
        samples, target, cluster, fold = self._items
        if self.metric == "balanced_accuracy":
            tested = set(target[fold[2]].tolist())
            absent = [name for i, name in enumerate(self._classes()) if i not in tested]
            if absent:
                raise ValueError(
                    f"{self._root}: {self.name} has no test item of class {absent[0]!r}, and its floor "
                    "counts on all classes; fetch the whole of it"
                )
        return Labelled(task, samples, target, cluster, (fold,))
