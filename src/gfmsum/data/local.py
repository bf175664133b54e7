"""The ``local`` source: a folder of real pixels that an ``index.json`` describes, read in place.

**What pretraining may see.** Scenes and images are cut into tiles. A tile is left out if it

- belongs to a validation or test row of any task, or overlaps a window that such a row points at,
  whether or not the task's ``keep`` filter, or a probe that does not exist yet, would use the row;
- may share ground with such a row, or lies within ``leakage_km`` of it: both have a longitude and
  latitude, and the circles around the two footprints come that near. That misses no overlap of square
  footprints, whatever way their grids are turned, and drops tiles that only touch. It matters where
  one scene was cut twice: of 139 MODIS training patches of 32 px, 14 lie partly on 16-px validation
  and test patches of the probe, in spite of equal split names (by row and column of the scene's grid;
  the circles drop 38);
- lies on ground that an earlier stack of the same corpus already gave;
- holds nodata or a value that is not finite, or is constant in every band (fill).

Each sensor has its own list of places: files of two sensors may show one place, but nothing in a folder
makes whole pools follow each other row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from gfmsum.config import LocalConfig
from gfmsum.data.files import Days, Files, Floats, Ground, Ints, Mask
from gfmsum.data.index import Images, Index, attempt, read_index, survey
from gfmsum.data.rows import Rows
from gfmsum.data.sample import Kind, Labelled, Pool, Samples
from gfmsum.records import Task, fingerprint
from gfmsum.sensors import SENSORS, Sensor, unknown

PLACE_M = 10_000.0  # side of what counts as one place
FEW_PLACES = 100  # fewer make a thin sample: a share of them has a standard error above 5 points


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Tiles of one file, of which pretraining may see some or all."""

    images: Images
    corners: Ints  # (n, 3): image, row, column
    ground: Ground | None
    days: Days | None  # (n,)

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, chosen: Mask) -> _Tiles:
        ground, days = self.ground and self.ground[chosen], self.days
        return _Tiles(
            self.images, self.corners[chosen], ground, None if days is None else days[chosen]
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """Tiles of the files that have the same bands and pixel size.

    ``lonlat`` is a scene tile's centre, or the centre of the stack's image that the tile is from. In a
    block of which some files tell places, or dates, those of the others are NaN, or empty.
    """

    files: Files
    parts: tuple[_Tiles, ...]
    size_px: int

    quick = False

    @property
    def kind(self) -> Kind:
        images = self.parts[0].images
        return Kind(images.sensor.name, images.bands, images.gsd_m)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, rows: Ints) -> Samples:
        """The tiles at ``rows``, in that order. Each file is decoded once."""
        kind, side, n = self.kind, self.size_px, len(rows)
        pixels = np.empty((n, len(kind.bands), side, side), np.float32)
        ids = np.empty(n, object)
        located = any(part.ground is not None for part in self.parts)
        dated = any(part.days is not None for part in self.parts)
        lonlat = np.full((n, 2), np.nan) if located else None
        dates = np.full(n, "", "<U10") if dated else None
        starts = [0, *accumulate(map(len, self.parts))]
        which = np.searchsorted(starts, rows, side="right") - 1
        for p in np.unique(which).tolist():
            mine = np.flatnonzero(which == p)
            part, chosen = self.parts[p], rows[mine] - starts[p]
            path, corners = part.images.path, part.corners[chosen]
            pixels[mine], _ = part.images.values(self.files.cut(part.images, corners, side, side))
            ids[mine] = [f"{path}#{i},{row},{col}" for i, row, col in corners.tolist()]
            if lonlat is not None and part.ground is not None:
                lonlat[mine] = part.ground.lonlat[chosen]
            if dates is not None and part.days is not None:
                dates[mine] = np.datetime_as_string(part.days[chosen])
        return Samples(
            kind.sensor, kind.bands, kind.gsd_m, pixels, ids.astype(np.str_), lonlat, dates
        )


class _Folder:
    """An index with its files: which tiles there are, and which of them are free for pretraining.

    Raises:
        ValueError: from every method, in one line, for a file that is not what the index says.
    """

    def __init__(self, root: str, index: Index, leakage_km: float = 0.0) -> None:
        self.index, self.files, self._margin_m = index, Files(Path(root)), leakage_km * 1000
        self.rows = [Rows(self.files, labels) for labels in index.tasks]

    def free(self, images: Images, size: int, earlier: Sequence[_Tiles]) -> _Tiles:
        """The tiles of one file that pretraining may see, row-major, image by image.

        Args:
            images: the file.
            size: side of a tile in pixels.
            earlier: what files before this one give.
        """
        n, _, h, w = self.files.shape(images)
        allowed = np.zeros((n, h // size, w // size), bool)
        allowed[self._allowed(images)] = True
        for task in self.rows:
            if task.labels.images.path == images.path:
                margin_px = ceil(self._margin_m / images.gsd_m)
                allowed &= ~task.held_tiles(images, size, margin_px)
        corners, means = self._whole(images, size, allowed)
        ground, days = self.files.ground(images, corners, size), self.files.days(images, corners)
        tiles, kept = _Tiles(images, corners, ground, days), np.ones(len(corners), bool)
        if ground is not None:
            for other, margin_m in self._taken(images, earlier):
                kept &= ~ground.meets(other, margin_m)
        if kept.any():
            self.files.check_unit(images, means[kept].mean(axis=0).tolist())
        return tiles[kept]

    def _taken(self, images: Images, earlier: Sequence[_Tiles]) -> Iterator[tuple[Ground, float]]:
        """Ground that a file's tiles must not show, and how far they keep away from it, in metres."""
        for task in self.rows:
            # Windows of this very scene are known to the pixel, which is better than by footprint.
            elsewhere = images.key or task.labels.images.path != images.path
            if elsewhere and task.held_ground is not None:
                yield task.held_ground, self._margin_m
        for other in earlier:
            # Stacks of one corpus can be cuts of one scene; scenes are different acquisitions.
            stacks = images.key and other.images.key and images.corpus == other.images.corpus
            if stacks and other.ground is not None:
                yield other.ground, 0.0

    def _allowed(self, images: Images) -> Mask:
        """Which images the index lets pretraining see: (n,)."""
        n = self.files.shape(images)[0]
        allowed = np.ones(n, bool)
        if images.key:
            for key, values in images.rows.items():
                allowed &= np.isin(self.files.column(images.path, key, n), values)
        if not allowed.any():
            problem = f"rows {dict(images.rows)} leave no image; correct the values in index.json"
            raise self.files.error(images.path, problem)
        return allowed

    def _whole(self, images: Images, size: int, allowed: Mask) -> tuple[Ints, Floats]:
        """Corners (m, 3) of the allowed tiles that hold something everywhere, and means (m, c)."""
        found, means = [np.empty((0, 3), np.int64)], [np.empty((0, len(images.bands)))]
        for image, row, numbers in self.files.pieces(images, size):
            n, c, h, w = numbers.shape
            values, lacking = images.values(numbers)
            grid = n, c, h // size, size, w // size, size
            stored = numbers.reshape(grid)
            with np.errstate(all="ignore"):  # tiles with wild numbers are among the lacking
                varied = (stored.min(axis=(3, 5)) != stored.max(axis=(3, 5))).any(axis=1)
                mean = values.reshape(grid).mean(axis=(3, 5), dtype=np.float64)
            good = varied & ~lacking.reshape(grid).any(axis=(1, 3, 5))  # (n, rows, columns)
            good &= allowed[image : image + n, row // size : (row + h) // size]
            found.append(np.argwhere(good) * (1, size, size) + (image, row, 0))
            means.append(mean.transpose(0, 2, 3, 1)[good])
        return np.concatenate(found), np.concatenate(means)

    def problems(self, images: Images, size: int, earlier: list[_Tiles]) -> list[str]:
        """What keeps a file's tiles from being read, or that it has none; adds them to the earlier."""
        found = list[str]()
        _, _, h, w = attempt(found, lambda: self.files.shape(images)) or (0, 0, 0, 0)
        if not h:
            return found
        side = min(size, h, w)
        tiles = attempt(found, lambda: self.free(images, side, earlier))
        attempt(found, lambda: self.cells(images))
        if tiles is not None and not len(tiles):
            problem = (
                f"warning: no tile of {side} px is free of nodata ({images.nodata}), varied and clear of "
                "validation and test items; correct nodata, or remove the entry"
            )
            found.append(str(self.files.error(images.path, problem)))
        elif tiles is not None and side == size:  # smaller images give none
            earlier.append(tiles)
        return found

    def cells(self, images: Images) -> set[tuple[int, int]] | None:
        """The places of PLACE_M that a file shows, if it tells; without pixels of scenes."""
        _, _, h, w = self.files.shape(images)
        step = max(1, min(h, w, round(PLACE_M / images.gsd_m)))
        if images.key:
            corners = np.pad(np.flatnonzero(self._allowed(images))[:, None], [(0, 0), (0, 2)])
        else:
            corners = np.argwhere(np.ones((1, h // step, w // step))) * (1, step, step)
        ground = self.files.ground(images, corners, step)
        if ground is None:
            return None
        return {(row, col) for row, col in ground.blocks(PLACE_M).tolist()}


class Local:
    """Pretraining tiles and tasks of a folder with an ``index.json``.

    Building one reads the index only; files are decoded when pixels or labels are asked for.

    Args:
        config: its ``root`` is the folder; ``leakage_km`` is how far pretraining keeps away from
            validation and test items, 0 for no overlap.

    Raises:
        ValueError: one line with file, value, rule and remedy, for anything in the index that is
            unknown, missing or leads outside the folder; and, once pixels or labels are read, for a
            file that cannot be decoded or is not what the index says. :func:`problems` tells all.
    """

    def __init__(self, config: LocalConfig) -> None:
        self._index = read_index(config.root)
        self._folder = _Folder(config.root, self._index, config.leakage_km)
        self._leakage_km = config.leakage_km
        self._pools: dict[tuple[str, int], Pool] = {}

    # What is there: no pixels needed.

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        """Sensors with pretraining files: in the order of SENSORS, then as the index names them."""
        present = {images.sensor.name: images.sensor for images in self._index.pretrain}
        first = {name: sensor for name, sensor in SENSORS.items() if name in present}
        return first | present

    @property
    def identity(self) -> Mapping[str, Any]:
        """SHA-256 of the index, and the size in bytes of every file it uses, by relative path."""
        kept_away = {"leakage_km": self._leakage_km} if self._leakage_km else {}
        return {**self._index.identity, **kept_away}

    @cached_property
    def caveats(self) -> tuple[str, ...]:
        """What a verdict must say of how many places are seen, and of those nobody knows.

        How many tiles ``leakage_km`` leaves out shows in the length of the pools with and without it.
        """
        return (*self._thin(), *self._unknown())

    def _thin(self) -> list[str]:
        few = {}
        for name in self.sensors:
            cells = [self._folder.cells(images) for images in self._of(name)]
            known = {cell for some in cells for cell in some or ()}
            if (count := len(known) + cells.count(None)) < FEW_PLACES:
                few[name] = f"{count} of {name}"
        if not few:
            return []
        return [
            f"The sample is thin: it shows {', '.join(few.values())} places {PLACE_M / 1000:g} km wide (a "
            "file that does not tell counts as one), and no general conclusion follows."
        ]

    def _unknown(self) -> list[str]:
        files, where = self._folder.files, list[str]()
        for name in self.sensors:
            told = [files.located(images) for images in self._of(name)]
            if not all(told):
                where.append(f"{told.count(False)} of {len(told)} files of {name}")
        tasks = {labels.name: files.located(labels.images) for labels in self._index.tasks}
        where += [f"the items of {name}" for name, told in tasks.items() if not told]
        if not tasks or not where:
            return []
        near = f"within {self._leakage_km:g} km of" if self._leakage_km else "on the ground of"
        return [
            f"Nobody tells where {', '.join(where)} lie: whether pretraining tiles are {near} validation "
            "and test items cannot be checked there, beyond the rows and windows of one file."
        ]

    def _of(self, sensor: str) -> list[Images]:
        return [images for images in self._index.pretrain if images.sensor.name == sensor]

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        """Names and kinds of the sensor's tasks of a kind that no probe can score, like detection."""
        return [(rows.labels.name, rows.labels.kind) for rows in self._rows_of(sensor, False)]

    def _rows_of(self, sensor: str, probed: bool) -> list[Rows]:
        if sensor not in self._index.known:
            raise ValueError(unknown("sensor", sensor, self._index.known))
        return [
            rows
            for rows in self._folder.rows
            if rows.labels.images.sensor.name == sensor and rows.labels.probed is probed
        ]

    # Pretraining.

    def places(self, sensor: str) -> str:
        """A list of its own for each sensor, another where anything that makes the pool is."""
        if sensor not in self.sensors:
            raise ValueError(unknown("sensor", sensor, self.sensors))
        return f"local/{fingerprint(self.identity)}/{sensor}"

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        """The sensor's tiles: files in the order of the index, grouped by bands, unit and pixel size.

        Every file of the sensor is decoded once to tell which tiles are whole.
        """
        places = self.places(sensor)
        if size_px < 1:
            raise ValueError(f"size_px={size_px} must be at least 1; choose a tile size in pixels")
        key = sensor, size_px
        if key not in self._pools:
            parts: list[_Tiles] = []
            for images in self._of(sensor):
                parts.append(self._folder.free(images, size_px, parts))
            groups: dict[Kind, list[_Tiles]] = {}
            for part in filter(len, parts):
                kind = Kind(sensor, part.images.bands, part.images.gsd_m)
                groups.setdefault(kind, []).append(part)
            blocks = (
                _Block(self._folder.files, tuple(group), size_px) for group in groups.values()
            )
            self._pools[key] = Pool(tuple(blocks), places)
        return self._pools[key]

    # Tasks.

    def tasks(self, sensor: str) -> list[Task]:
        """The sensor's tasks, without pixels.

        Where the index gives no ``floor``, it comes from the labels alone: the test accuracy of the
        training majority class, one over the number of classes for balanced accuracy, 0 for r2, and of
        masks what :func:`gfmsum.data.sample.constant_iou` makes of the pixels in all folds.
        """
        return [rows.task for rows in self._rows_of(sensor, True)]

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items at their own size, cropped at the centre to a multiple of MULTIPLE_PX.

        Masks are cropped alike. Their classes are all that the index names, whether or not a kept item
        shows them; those of a classification are the ones that the ``keep`` filter left.

        ``size_px`` does not matter: encoders take images of any size, and cutting them down would
        change the question. Clusters are what the index says: values of an array (an item without a
        value is its own), or blocks of 8 x 8 items: on the ground for ``lonlat`` (1 km at least),
        in pixels for windows of one scene.

        Raises:
            ValueError: if an item holds nodata or a value that is not finite, or values contradict the
                declared unit. Nothing is filled in or dropped silently: the number of items is the
                index's.
        """
        probed = {rows.labels.name: rows for rows in self._folder.rows if rows.labels.probed}
        if task.name not in probed:
            raise ValueError(unknown("task", task.name, probed))
        return probed[task.name].labelled(task)


def problems(root: str, size_px: int = 32) -> list[str]:
    """All that is wrong with a folder, by the checks that reading makes: one line each.

    Every file is decoded. A line that says "warning" names what is odd and read all the same.

    Args:
        root: the folder.
        size_px: side of the tiles that pretraining files are cut into; smaller images are taken whole.
    """
    index, found = survey(root)
    if index is None:
        return found
    folder = _Folder(root, index)
    of_tasks = [rows.problems() for rows in folder.rows]
    # What broken tasks hold back nobody knows, and each file would say so again.
    folder.rows = [rows for rows, wrong in zip(folder.rows, of_tasks, strict=True) if not wrong]
    earlier: dict[str, list[_Tiles]] = {}
    for images in index.pretrain:
        found += folder.problems(images, size_px, earlier.setdefault(images.sensor.name, []))
    return list(dict.fromkeys([*found, *(line for wrong in of_tasks for line in wrong)]))
