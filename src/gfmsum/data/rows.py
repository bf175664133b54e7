"""The rows of a task: which are held back, where they lie, and the labelled items they make."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedKFold

from gfmsum.data.files import (
    NUMBERS,
    PLAIN,
    TEXTS,
    WHOLES,
    Files,
    Ground,
    Holds,
    Ints,
    Mask,
    one_line,
)
from gfmsum.data.index import KEEP, MULTIPLE_PX, Images, Labels, Refused, attempt
from gfmsum.data.sample import UNLABELLED, Labelled, Samples, constant_iou
from gfmsum.records import Task

BLOCK_ITEMS = 8  # side of a spatial cluster, in items
BLOCK_MIN_M = 1_000.0  # and at least this, metres
FOLD_SEED = 0
PARTS = ("train", "val", "test")

# Of some rows: targets, the names of their classes, how often each row shows each (n, classes).
type _Target = tuple[NDArray[Any], tuple[str, ...], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Items:
    """The rows that the filter keeps. Folds index into ``rows``."""

    rows: Ints
    target: NDArray[Any]
    classes: tuple[str, ...]
    shown: NDArray[Any]  # (n, classes): how often each shows each class
    folds: tuple[tuple[Ints, Ints, Ints], ...]

    def counts(self, part: str) -> Ints:
        """How often the items of one of PARTS show each class, over all folds: (classes,)."""
        rows = [fold[PARTS.index(part)] for fold in self.folds]
        return np.sum([self.shown[some].sum(axis=0) for some in rows], axis=0, dtype=np.int64)


class Rows:
    """One task of the index and its files.

    Raises:
        ValueError: from every method, in one line, for a file that is not what the index says.
    """

    def __init__(self, files: Files, labels: Labels) -> None:
        self.labels = labels
        self._files = files

    # What pretraining must not see.

    def held_tiles(self, images: Images, size: int, margin_px: int) -> Mask:
        """Which tiles of the file that the task's items are in must stay unseen: (n, rows, columns).

        All of an image that is a validation or test item, and those within a margin of a window that is.
        """
        n, _, *sides = self._files.shape(images)
        held = np.zeros((n, *(side // size for side in sides)), bool)
        corners = self._corners(n, sides)[self._held]
        if self.labels.windows is None:
            held[corners[:, 0]] = True
            return held
        first = np.maximum(corners[:, 1:] - margin_px, 0) // size
        last = (corners[:, 1:] + self.labels.window_px - 1 + margin_px) // size
        for (top, left), (bottom, right) in zip(first.tolist(), last.tolist(), strict=True):
            held[0, top : bottom + 1, left : right + 1] = True
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
            train=min(len(train) for train, _, _ in items.folds),
        )

    def labelled(self, task: Task) -> Labelled:
        """The items, cropped at the centre to a multiple of MULTIPLE_PX, images and masks alike.

        Raises:
            ValueError: if one holds nodata or a value that is not finite, or their values contradict
                the unit; and if images before the change have another shape than those after it.
        """
        labels, items, images = self.labels, self._items, self.labels.images
        days = self._files.days(images, self._origins[items.rows])
        # Two tasks that are a pair call an item alike.
        place = "+".join(sorted((labels.name, labels.pair))) if labels.pair else labels.path
        samples = Samples(
            images.sensor.name,
            images.bands,
            images.gsd_m,
            self._pixels(images),
            np.array([f"{place}#{row}" for row in items.rows], np.str_),
            None if self._ground is None else self._ground.lonlat[items.rows],
            None if days is None else np.datetime_as_string(days),
        )
        before = None
        if labels.before is not None:  # nobody says on which day
            before = replace(samples, pixels=self._pixels(labels.before), dates=None)
        clusters = self._clusters[items.rows]
        return Labelled(task, samples, items.target, clusters, items.folds, before)

    def _pixels(self, images: Images) -> NDArray[np.float32]:
        """Values (n, c, h, w) of the items, after or before."""
        labels, rows, (down, right) = self.labels, self._items.rows, self._middle
        if images is labels.before:
            self._check_before(images)
        corners = self._origins[rows] + [0, down.start, right.start]
        height, width = down.stop - down.start, right.stop - right.start
        pixels, lacking = images.values(self._files.cut(images, corners, height, width))
        bad = rows[lacking.any(axis=(1, 2, 3))]
        if bad.size:
            more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
            array = f" in array {images.key!r}" if images is labels.before else ""
            raise self._error(
                f"row {bad[0]} of task {labels.name}{more} holds nodata or a value that is not finite"
                f"{array}; fill it in the file or filter it with keep"
            )
        self._files.check_unit(images, pixels.mean(axis=(0, 2, 3), dtype=np.float64).tolist())
        return pixels

    def _check_before(self, before: Images) -> None:
        """Refuse images before that cannot be compared with those after."""
        images = self.labels.images
        found, wanted = self._files.shape(before), self._files.shape(images)
        if found != wanted:
            raise self._error(
                f"array {before.key!r} has shape {found}, array {images.key!r} {wanted}; what was before "
                "and after must agree, correct the file"
            )

    @property
    def _sides(self) -> Sequence[int]:
        """Height and width of an item as it is in the file."""
        px = self.labels.window_px
        return (px, px) if self.labels.windows else self._files.shape(self.labels.images)[2:]

    @property
    def _middle(self) -> tuple[slice, slice]:
        """The rows and columns of an item that are kept."""
        height, width = self._sides
        if min(height, width) < MULTIPLE_PX:
            raise self._files.error(
                self.labels.images.path,
                f"images are {height}x{width} px, a task's must be {MULTIPLE_PX} px at least; drop the "
                "task",
            )
        over = height % MULTIPLE_PX, width % MULTIPLE_PX
        down, right = over[0] // 2, over[1] // 2
        return slice(down, down + height - over[0]), slice(right, right + width - over[1])

    # All that is wrong at once.

    def problems(self) -> list[str]:
        """What keeps the rows from being read, and what is odd about them: one line each."""
        found = list[str]()
        labels, files = self.labels, self._files
        if attempt(found, lambda: files.shape(labels.images)):
            attempt(found, lambda: self._origins)
            attempt(found, lambda: self._ground)
        if labels.before is not None:
            attempt(found, partial(self._check_before, labels.before))
        attempt(found, lambda: self._held)
        if not labels.probed:
            return found
        items = attempt(found, lambda: self._items)
        attempt(found, lambda: self._clusters)
        if items is not None:
            attempt(found, lambda: self.task)
            for images in filter(None, (labels.images, labels.before)):
                attempt(found, partial(self._pixels, images))
            if lost := _untaught(items):
                problem = (
                    f"warning: task {labels.name} is tested on {', '.join(map(repr, lost))}, which no "
                    "train row shows; split anew, or drop it with keep"
                )
                found.append(str(self._error(problem)))
        return found

    # Every row.

    def _error(self, problem: str) -> Refused:
        return self._files.error(self.labels.path, problem)

    def _column(self, key: str, *sides: int, kinds: Holds = PLAIN) -> NDArray[Any]:
        return self._files.column(self.labels.path, key, self._count, *sides, kinds=kinds)

    @property
    def _count(self) -> int:
        return self._files.count(self.labels.path, self.labels.target or self.labels.windows or "")

    @property
    def _origins(self) -> Ints:
        """(image, row, column) where each row's image begins."""
        n, _, *sides = self._files.shape(self.labels.images)
        return self._corners(n, sides)

    def _corners(self, n: int, sides: Sequence[int]) -> Ints:
        """(image, row, column) where each row's image begins, among n images of h by w pixels."""
        labels = self.labels
        if labels.windows is None:
            if self._count != n:
                raise self._error(
                    f"array {labels.target!r} has {self._count} rows, and there are {n} images; the two "
                    "must agree, correct the file"
                )
            return np.pad(np.arange(n)[:, None], [(0, 0), (0, 2)])
        corners = self._column(labels.windows, 2, kinds=WHOLES)
        limit = np.array(sides) - labels.window_px
        if (corners < 0).any() or (corners > limit).any():
            raise self._error(
                f"array {labels.windows!r} has windows of {labels.window_px} px outside the scene "
                f"of {sides[0]}x{sides[1]} px; correct them or patch_px"
            )
        return np.pad(corners.astype(np.int64), [(0, 0), (1, 0)])

    @cached_property
    def _ground(self) -> Ground | None:
        """The footprint of every row, where known."""
        return self._files.ground(self.labels.images, self._origins, self.labels.window_px)

    @property
    def _split(self) -> NDArray[Any]:
        split = self._column(self.labels.split, kinds=TEXTS)
        strange = sorted(map(str, set(split.tolist()) - set(PARTS)))
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
            # An item without a value, empty or NaN, stands alone.
            names = [
                own if value == "" or value != value else str(value)
                for value, own in zip(values, names, strict=True)
            ]
        elif labels.windows is not None:
            corners = self._column(labels.windows, 2, kinds=WHOLES)
            blocks = corners // (BLOCK_ITEMS * labels.window_px)
        if blocks is not None:
            names = [f"block {row},{col}" for row, col in blocks.tolist()]
        return np.array([f"{labels.path}@{name}" for name in names], np.str_)

    # The rows that the filter keeps.

    @cached_property
    def _items(self) -> _Items:
        labels, keep = self.labels, np.ones(self._count, bool)
        for key, rules in labels.keep.items():
            for rule, bound in rules.items():
                column = self._column(key, kinds=PLAIN if rule == "in" else NUMBERS)
                keep &= KEEP[rule][0](column, bound)
        rows = np.flatnonzero(keep)
        if not rows.size:
            raise self._error(f"task {labels.name} keeps no row; loosen its keep filter")
        wrong = list[str]()
        ways = {"classification": self._classes, "regression": self._values}
        labelled = attempt(wrong, partial(ways.get(labels.kind, self._masks), rows))
        target, classes, shown = labelled or (np.zeros(len(rows)), (), np.zeros((len(rows), 0)))
        folds = attempt(wrong, lambda: self._folds(rows, target)) or ()
        found = {"all": len(rows)}
        if labels.folds is None and folds:
            found |= zip(PARTS, map(len, folds[0]), strict=True)
        for part, said in labels.counts.items():
            if found.get(part) != said and (folds or part == "all"):
                problem = (
                    f"task {labels.name} has {found.get(part)} {part} items, the index says {said}; the "
                    "two must agree, correct the index"
                )
                wrong.append(str(self._error(problem)))
        items = _Items(rows, target, classes, shown, folds)
        if labels.dense and labelled and folds:
            attempt(wrong, lambda: self._check_marks(items))
        if wrong:
            raise Refused(*wrong)
        return items

    def _values(self, rows: Ints) -> _Target:
        target = self._column(self.labels.target, kinds=NUMBERS)[rows].astype(np.float64)
        if not np.isfinite(target).all():
            raise self._error(
                f"array {self.labels.target!r} holds values that are not finite; filter with keep"
            )
        return target, (), np.zeros((len(rows), 0))

    def _classes(self, rows: Ints) -> _Target:
        """Classes that the filter left, in the order of their labels."""
        labels = self.labels
        kept, target = np.unique(
            self._column(labels.target, kinds=WHOLES)[rows], return_inverse=True
        )
        names = self._class_names
        if kept.min() < 0 or kept.max() >= len(names):
            raise self._error(
                f"array {labels.target!r} holds labels {kept[0]} to {kept[-1]}, task {labels.name} "
                f"names {len(names)} classes; labels must be 0 to {len(names) - 1}, use keep"
            )
        return target, tuple(names[label] for label in kept), np.eye(len(kept), dtype=bool)[target]

    def _masks(self, rows: Ints) -> _Target:
        """A class for every pixel, cropped as the images are; all classes keep their labels."""
        labels, names = self.labels, self._class_names
        most = 2 if labels.metric == "iou_positive" else UNLABELLED
        if len(names) > most or len(names) < 2:
            raise self._error(
                f"task {labels.name} names {len(names)} classes; {labels.metric} takes 2"
                f"{'' if most == 2 else f' to {most}'}, correct classes or metric in index.json"
            )
        marks = self._marks(rows)[:, *self._middle]
        ignored, also = np.zeros(marks.shape, bool), ""
        if labels.ignore is not None:
            ignored, also = marks == labels.ignore, f" or ignore={labels.ignore}"
        strange = ~ignored & ((marks < 0) | (marks >= len(names)))
        if strange.any():
            first = strange.any(axis=(1, 2)).argmax()
            raise self._files.error(
                labels.raster.path if labels.raster else labels.path,
                f"row {rows[first]} of task {labels.name} has label {marks[strange][0]}; labels must be "
                f"0 to {len(names) - 1}{also}, correct them or set ignore in index.json",
            )
        target = marks.astype(np.uint8)
        target[ignored] = UNLABELLED
        counts = [np.bincount(mask.ravel(), minlength=UNLABELLED + 1) for mask in target]
        return target, names, np.stack(counts)[:, : len(names)]

    def _marks(self, rows: Ints) -> NDArray[Any]:
        """Labels of every pixel (n, h, w) as stored."""
        labels, raster = self.labels, self.labels.raster
        if raster is None:
            return self._column(labels.target, *self._sides, kinds=WHOLES)[rows]
        self._files.check_grid(raster, labels.images)
        px = labels.window_px
        return self._files.cut(raster, self._origins[rows], px, px)[:, 0]

    def _check_marks(self, items: _Items) -> None:
        """Refuse masks that leave nothing to fit or to test."""
        labels = self.labels
        for fold in items.folds:
            for part, rows in zip(PARTS, fold, strict=True):
                if not items.shown[rows].any():
                    raise self._error(
                        f"task {labels.name} has no labelled pixel in a {part} part; every part needs "
                        "one, split anew or correct ignore"
                    )
        if labels.metric == "iou_positive" and not items.counts("test")[1]:
            raise self._error(
                f"task {labels.name} has no test pixel of class {items.classes[1]!r}, whose IoU "
                "iou_positive is; split anew or use mean_iou"
            )

    @property
    def _class_names(self) -> tuple[str, ...]:
        """Names of all classes that the index knows."""
        path, given = self.labels.path, self.labels.classes
        names: Sequence[Any] = given
        if isinstance(given, str):
            names = self._files.column(path, given, self._files.count(path, given)).tolist()
        return tuple(" ".join(str(name).split()) for name in names)

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
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of rare classes: what comes of it is said elsewhere
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


def _untaught(items: _Items) -> list[str]:
    """Classes that a probe is tested on and not trained on."""
    lost = np.zeros(len(items.classes), bool)
    for train, _, test in items.folds:
        lost |= items.shown[test].any(axis=0) & ~items.shown[train].any(axis=0)
    return [items.classes[label] for label in np.flatnonzero(lost)]


def _floor(metric: str, items: _Items) -> float:
    """The metric of an answer that ignores the image."""
    if metric == "r2":
        return 0.0
    if metric == "balanced_accuracy":
        return 1 / len(items.classes)
    if metric != "accuracy":  # pixels of all folds make one score
        return constant_iou(metric, items.counts("train"), items.counts("test"))
    hits = [
        items.shown[test, items.shown[train].sum(axis=0).argmax()] for train, _, test in items.folds
    ]
    return float(np.concatenate(hits).mean())
