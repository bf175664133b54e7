"""The rows of a task: which are held back, where they lie, and the labelled items they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedKFold

from gfmsum.data.files import Files, Ground, Ints, Mask, one_line
from gfmsum.data.index import KEEP, MULTIPLE_PX, Labels
from gfmsum.data.sample import Labelled, Samples
from gfmsum.records import Task

BLOCK_ITEMS = 8  # side of a spatial cluster, in items
BLOCK_MIN_M = 1_000.0  # and at least this, metres
FOLD_SEED = 0
PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class _Items:
    """The rows that the filter keeps. Folds index into ``rows``."""

    rows: Ints
    target: NDArray[Any]
    classes: tuple[str, ...]
    folds: tuple[tuple[Ints, Ints, Ints], ...]


class Rows:
    """One task of the index and its files.

    Raises:
        ValueError: from every method, in one line, for a file that is not what the index says.
    """

    def __init__(self, files: Files, labels: Labels) -> None:
        self.labels = labels
        self._files = files

    # What pretraining must not see.

    def held_pixels(self, numbers: NDArray[Any]) -> Mask:
        """Where the task's images (n, c, h, w) show validation or test rows: (n, h, w)."""
        n, _, *sides = numbers.shape
        held, side = np.zeros((n, *sides), bool), self.labels.window_px or max(sides)
        for i, row, col in self._corners(numbers)[self._held].tolist():
            held[i, row : row + side, col : col + side] = True
        return held

    @cached_property
    def held_ground(self) -> Ground | None:
        """Footprints of the validation and test rows, where known."""
        return self._ground and self._ground[self._held]

    @property
    def _held(self) -> Mask:
        """Rows that are, or under another filter would be, validation or test items: (n,)."""
        everything = np.ones(self._count, bool)
        return everything if self.labels.folds is not None else self._split != "train"

    # What a probe sees.

    @property
    def task(self) -> Task:
        """The task, with a floor from the labels alone where the index gives none."""
        labels, items = self.labels, self._items
        floor = _floor(labels.metric, items) if labels.floor is None else labels.floor
        if not labels.ceiling > floor:
            raise self._files.error(
                "index.json",
                f"task {labels.name} has ceiling={labels.ceiling} and floor={floor}; "
                "the ceiling must be above the floor, raise it",
            )
        return Task(
            name=labels.name,
            sensor=labels.images.sensor.name,
            kind=labels.kind,
            metric=labels.metric,
            floor=floor,
            ceiling=labels.ceiling,
            classes=items.classes,
            caveat=labels.caveat,
            clustered=labels.cluster is not None or labels.windows is not None,
        )

    def labelled(self, task: Task) -> Labelled:
        """The items, cropped at the centre to a multiple of MULTIPLE_PX.

        Raises:
            ValueError: if one holds nodata or a value that is not finite.
        """
        labels, items, images = self.labels, self._items, self.labels.images
        numbers = self._files.numbers(images)
        sides = np.array([labels.window_px] * 2 if labels.windows else numbers.shape[2:])
        over = sides % MULTIPLE_PX
        corners = self._corners(numbers)[items.rows] + [0, *over // 2]
        numbers = cut(
            numbers,
            corners,
            np.empty((len(corners), numbers.shape[1], *sides - over), numbers.dtype),
        )
        bad = ~np.isfinite(numbers)
        if images.nodata is not None:
            bad |= numbers == images.nodata
        if bad.any():
            row = items.rows[bad.any(axis=(1, 2, 3)).argmax()]
            raise self._error(
                f"row {row} of task {labels.name} holds nodata or a value that is not finite; "
                "fill it in the file or filter it with keep"
            )
        pixels = images.values(numbers.astype(np.float32))
        self._files.check_unit(images, float(pixels.mean(dtype=np.float64)))
        samples = Samples(
            images.sensor.name,
            images.bands,
            images.gsd_m,
            pixels,
            np.array([f"{labels.path}#{row}" for row in items.rows], np.str_),
            None if self._ground is None else self._ground.lonlat[items.rows],
        )
        return Labelled(task, samples, items.target, self._clusters[items.rows], items.folds)

    # Every row.

    def _error(self, problem: str) -> ValueError:
        return self._files.error(self.labels.path, problem)

    def _column(self, key: str) -> NDArray[Any]:
        return self._files.column(self.labels.path, key, self._count)

    @property
    def _count(self) -> int:
        return len(self._files.array(self.labels.path, self.labels.target))

    def _corners(self, numbers: NDArray[Any]) -> Ints:
        """(image, row, column) where each row's image begins in ``numbers`` (n, c, h, w)."""
        labels, (n, _, *sides) = self.labels, numbers.shape
        if labels.windows is None:
            self._files.column(labels.path, labels.target, n)
            return np.pad(np.arange(n)[:, None], [(0, 0), (0, 2)])
        corners = self._column(labels.windows)
        limit = np.array(sides) - labels.window_px
        if corners.shape[1:] != (2,) or (corners < 0).any() or (corners > limit).any():
            raise self._error(
                f"array {labels.windows!r} has windows of {labels.window_px} px outside the scene "
                f"of {sides[0]}x{sides[1]} px; correct them or patch_px"
            )
        return np.pad(corners.astype(np.int64), [(0, 0), (1, 0)])

    @cached_property
    def _ground(self) -> Ground | None:
        """The footprint of every row, where known."""
        corners = self._corners(self._files.numbers(self.labels.images))
        return self._files.ground(self.labels.images, corners, self.labels.window_px)

    @property
    def _split(self) -> NDArray[Any]:
        split = self._column(self.labels.split)
        strange = sorted(set(split.tolist()) - set(PARTS))
        if strange:
            raise self._error(
                f"array {self.labels.split!r} holds {strange[0]!r}; a row is train, val or test, "
                "correct it"
            )
        return split

    @property
    def _clusters(self) -> NDArray[np.str_]:
        """The cluster of every row. Tasks on one file share names, as they share places."""
        labels, blocks = self.labels, None
        names = [f"row {row}" for row in range(self._count)]
        if labels.cluster == "lonlat":
            if self._ground is None:
                raise self._error(f"task {labels.name} clusters by a missing 'lonlat'; add it")
            blocks = self._ground.blocks(max(BLOCK_ITEMS * self._ground.side_m, BLOCK_MIN_M))
        elif labels.cluster is not None:
            values = self._column(labels.cluster).tolist()
            names = [str(value) or own for value, own in zip(values, names, strict=True)]
        elif labels.windows is not None:
            blocks = self._column(labels.windows) // (BLOCK_ITEMS * labels.window_px)
        if blocks is not None:
            names = [f"block {row},{col}" for row, col in blocks.tolist()]
        return np.array([f"{labels.path}@{name}" for name in names], np.str_)

    # The rows that the filter keeps.

    @cached_property
    def _items(self) -> _Items:
        labels, keep = self.labels, np.ones(self._count, bool)
        for key, rules in labels.keep.items():
            column = self._column(key)
            for rule, bound in rules.items():
                if rule != "in" and column.dtype.kind not in "iuf":
                    raise self._error(
                        f"array {key!r} is {column.dtype}, keep rule {rule!r} needs numbers; "
                        "use 'in'"
                    )
                keep &= KEEP[rule][0](column, bound)
        rows = np.flatnonzero(keep)
        if not rows.size:
            raise self._error(f"task {labels.name} keeps no row; loosen its keep filter")
        target = self._column(labels.target)[rows]
        classes: tuple[str, ...] = ()
        if labels.kind == "classification":
            kept, target = np.unique(target, return_inverse=True)
            classes = self._class_names(kept)
        else:
            target = target.astype(np.float64)
            if not np.isfinite(target).all():
                raise self._error(
                    f"array {labels.target!r} holds values that are not finite; filter with keep"
                )
        items = _Items(rows, target, classes, self._folds(rows, target))
        found = {"all": len(rows)}
        if labels.folds is None:
            found |= zip(PARTS, map(len, items.folds[0]), strict=True)
        for part, said in labels.counts.items():
            if found.get(part) != said:
                raise self._error(
                    f"task {labels.name} has {found.get(part)} {part} items, the index says "
                    f"{said}; the two must agree, correct the index"
                )
        return items

    def _class_names(self, kept: NDArray[Any]) -> tuple[str, ...]:
        """Names of the classes that the filter left, in the order of their labels."""
        labels, given = self.labels, self.labels.classes
        names: Sequence[Any] = given
        if isinstance(given, str):
            names = self._files.array(labels.path, given).tolist()
        if kept.dtype.kind not in "iu" or kept.min() < 0 or kept.max() >= len(names):
            raise self._error(
                f"array {labels.target!r} holds labels {kept[0]} to {kept[-1]}, task {labels.name} "
                f"names {len(names)} classes; labels must be 0 to {len(names) - 1}, use keep"
            )
        return tuple(str(names[label]) for label in kept)

    def _folds(self, rows: Ints, target: NDArray[Any]) -> tuple[tuple[Ints, Ints, Ints], ...]:
        """(train, val, test) over the kept rows. Of k folds, i is test and the next one val."""
        labels = self.labels
        if labels.folds is None:
            split = self._split[rows]
            train, val, test = (np.flatnonzero(split == part) for part in PARTS)
            for part, found in zip(PARTS, (train, val, test), strict=True):
                if not found.size:
                    raise self._error(
                        f"array {labels.split!r} leaves no {part} row to task {labels.name}; "
                        "every part needs one, split anew"
                    )
            return ((train, val, test),)
        kind = StratifiedKFold if labels.stratified else KFold
        try:
            cuts = kind(labels.folds, shuffle=True, random_state=FOLD_SEED).split(rows, target)
            parts = [test.astype(np.int64) for _, test in cuts]
        except ValueError as impossible:
            problem = (
                f"{labels.folds} folds of task {labels.name}: {one_line(impossible)}; use fewer"
            )
            raise self._error(problem) from None
        everything = np.arange(len(rows))
        return tuple(
            (np.setdiff1d(everything, [*test, *val]), val, test)
            for test, val in zip(parts, [*parts[1:], parts[0]], strict=True)
        )


def _floor(metric: str, items: _Items) -> float:
    """The metric of an answer that ignores the image."""
    if metric != "accuracy":
        return 1 / len(items.classes) if metric == "balanced_accuracy" else 0.0
    hits = [
        items.target[test] == np.bincount(items.target[train]).argmax()
        for train, _, test in items.folds
    ]
    return float(np.concatenate(hits).mean())


def cut[T: NDArray[Any]](numbers: NDArray[Any], corners: Ints, out: T) -> T:
    """Fills ``out`` (m, c, h, w) from images (n, c, H, W), at corners (image, row, column)."""
    height, width = out.shape[2:]
    for tile, (i, row, col) in zip(out, corners.tolist(), strict=True):
        tile[:] = numbers[i, :, row : row + height, col : col + width]
    return out
