"""What all labelled data sets have in common: published splits, read once into memory as float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from gfmsum.data.sample import UNLABELLED, Labelled, Rows, Samples, constant_iou
from gfmsum.data.units import contradiction
from gfmsum.records import Task

PARTS = ("train", "val", "test")
HELD_BYTES = 8 * 2**30
"""Pixels of one task that are held. Where a data set has more (USAVars), every part of the split is thinned
alike, by a fixed permutation that sees neither pixels nor labels, and the task's caveat says so."""


@dataclass(frozen=True, slots=True)
class Shot:
    """What a sensor saw of an item on one day."""

    numbers: NDArray[Any]  # (c, h, w), as stored
    day: str = ""  # as 2020-07-15, where known


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was read."""

    shot: Shot
    # Index of its class, its value, or classes of its pixels (h, w).
    target: float | NDArray[np.uint8]
    before: Shot | None = None  # the same earlier, if the task asks for change


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
        share = HELD_BYTES / (sum(sizes.values()) * int(np.prod(self._shape)) * 4 * self._dates)
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
            self._classes(), caveat, clustered=self.located, train=len(self._rows["train"]),
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

    @property
    def _dates(self) -> int:
        """How often an item was seen."""
        return 2 if self.kind == "change_segmentation" else 1

    @property
    def _window(self) -> tuple[slice, slice]:
        """Rows and columns of an item that are used: its centre, to a multiple of MULTIPLE_PX."""
        rows, cols = (
            slice(side % MULTIPLE_PX // 2, side - (side % MULTIPLE_PX + 1) // 2)
            for side in self._shape[1:]
        )
        return rows, cols

    @cached_property
    def _labelled(self) -> Labelled:
        window = self._window
        h, w = (cut.stop - cut.start for cut in window)
        n = sum(map(len, self._rows.values()))
        pixels = np.empty((self._dates, n, self._shape[0], h, w), np.float32)
        target: NDArray[Any]
        if self.task.dense:
            target = np.empty((n, h, w), np.uint8)
        else:
            target = np.empty(n, np.int64 if self.kind == "classification" else np.float64)
        days, ids, parts = [list[str]() for _ in range(self._dates)], list[str](), list[str]()
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
                name, i = f"{self.name}/{self._names(part)[row]}", len(ids)
                shots = [item.shot] if item.before is None else [item.shot, item.before]
                for date, shot in enumerate(shots):
                    finite = np.isfinite(shot.numbers).all() and np.isfinite(item.target).all()
                    if shot.numbers.shape != self._shape or not finite:
                        raise ValueError(
                            f"{self._path(part, row)}: item {name} must be {self._shape} of finite numbers "
                            f"and is {shot.numbers.shape}; fetch it again or take it out of its split"
                        )
                    pixels[date, i] = self.physics.values(shot.numbers[:, *window])
                    days[date].append(shot.day)
                value = item.target
                target[i] = value[window] if isinstance(value, np.ndarray) else value
                kept.append(row)
                ids.append(name)
                parts.append(part)
            used[part] = np.array(kept, np.int64)
        pixels, target = pixels[:, : len(ids)], target[: len(ids)]
        kind = self.physics.kind()
        for seen in pixels:
            means = seen.mean(axis=(0, 2, 3), dtype=np.float64).tolist()
            if wrong := contradiction(kind.bands, means):
                raise ValueError(
                    f"{self._root}: {self.name}: {wrong}; these are not the published files, fetch them "
                    "again"
                )
        places = [self._lonlat(part, used[part]) for part in PARTS]
        known = [place for place in places if place is not None]
        lonlat = np.concatenate(known) if len(known) == len(PARTS) else None
        clusters = list(ids)
        if lonlat is not None:
            blocks = Ground(lonlat, self.side_m).blocks(max(BLOCK_ITEMS * self.side_m, BLOCK_MIN_M))
            clusters = [f"block {row},{col}" for row, col in blocks.tolist()]
        samples, *before = (
            Samples(
                kind.sensor, kind.bands, kind.gsd_m, seen, np.array(ids, np.str_), lonlat,
                np.array(on, np.str_) if all(on) else None,
            )
            for seen, on in zip(pixels, days, strict=True)
        )  # fmt: skip
        where = np.array(parts)
        train, val, test = (np.flatnonzero(where == part) for part in PARTS)
        folds = ((train, val, test),)
        return Labelled(self.task, samples, target, np.array(clusters), folds, *before)

    def labelled(self, task: Task) -> Labelled:
        """All items, cropped at the centre to a multiple of MULTIPLE_PX, masks like their pixels.

        Raises:
            ValueError: one line, for an item that cannot be read or holds a number that is not finite,
                for values that contradict their unit, for a mask of another size than its pixels, and where
                the floor's classes are not all tested.
        """
        found = self._labelled
        if self.metric == "balanced_accuracy":
            tested = set(found.target[found.folds[0][2]].tolist())
            absent = [name for i, name in enumerate(self._classes()) if i not in tested]
            if absent:
                raise ValueError(
                    f"{self._root}: {self.name} has no test item of class {absent[0]!r}, and its floor "
                    "counts on all classes; fetch the whole of it"
                )
        return replace(found, task=task)


class Masks(Labels):
    """A data set with a class for every pixel. An item without a labelled pixel is left out."""

    kind, metric = "segmentation", "mean_iou"
    legend: ClassVar[Mapping[int, str]]
    """The classes by their codes in the masks, ascending. Pixels of any other code are UNLABELLED."""

    @abstractmethod
    def _codes(self, part: str, row: int) -> NDArray[Any]:
        """The mask of an item as stored: integers (h, w)."""

    @abstractmethod
    def _shots(self, part: str, row: int) -> tuple[Shot, ...]:
        """What was seen of an item: now and, if the task asks for change, before."""

    def _classes(self) -> tuple[str, ...]:
        return tuple(self.legend.values())

    def _target(self, part: str, row: int) -> NDArray[np.uint8]:
        """The class of each pixel (h, w)."""
        codes, known = self._codes(part, row), np.array(list(self.legend))
        if codes.shape != self._shape[1:]:
            raise ValueError(
                f"{self._path(part, row)}: its mask is {codes.shape} px and it is {self._shape[1:]}; the two "
                "must lie on one grid, fetch both again"
            )
        index = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[index] == codes, index, UNLABELLED).astype(np.uint8)

    def _read(self, part: str, row: int) -> Item | None:
        target = self._target(part, row)
        if (target == UNLABELLED).all():
            return None
        now, *before = self._shots(part, row)
        return Item(now, target, *before)

    @property
    def _floor(self) -> float:
        """Of masks alone, without pixels."""
        train, test = self._count("train"), self._count("test")
        return constant_iou(self.metric, train, test)

    def _count(self, part: str) -> NDArray[np.int64]:
        """Labelled pixels of each class in the items of a part that are used: (classes,)."""
        count = np.zeros(UNLABELLED + 1, np.int64)
        for row in self._rows[part].tolist():
            try:
                target = self._target(part, row)[self._window]
            except (OSError, LookupError) as broken:
                raise unreadable(self._path(part, row), broken) from None
            count += np.bincount(target.ravel(), minlength=len(count))
        if not count[: len(self.legend)].any():
            raise ValueError(
                f"{self._root}: {self.name} has no labelled pixel in its {part} part; its masks must hold "
                f"codes of {', '.join(map(str, self.legend))}, fetch them again"
            )
        return count[: len(self.legend)]


def filled(numbers: NDArray[Any]) -> NDArray[Any]:
    """Numbers (c, h, w) in which pixels that hold none (NaN) take the median of their band."""
    hole = np.isnan(numbers)
    if not hole.any() or hole.all(axis=(1, 2)).any():
        return numbers  # nothing to fill, or nothing to fill it with
    return np.where(hole, np.nanmedian(numbers, axis=(1, 2), keepdims=True), numbers)
