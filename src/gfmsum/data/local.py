"""The ``local`` source: a folder of real pixels that an ``index.json`` describes, read in place.

The index (schema 1) names every pretraining file, a GeoTIFF scene or a ``.npz`` stack of images
(n, c, h, w), with its bands, unit and reading rule (value = number * scale + offset), and every
task with its labels, splits and clusters. Bands are addressed by name; nothing is ever unpickled.

**What pretraining may see.** Scenes and images are cut into tiles. A tile is left out if it

- belongs to a validation or test row of any task, or overlaps a window that such a row points at,
  whether or not the task's ``keep`` filter, or a probe that does not exist yet, would use the row;
- may share ground with such a row: both have a longitude and latitude, and the circles around the
  two footprints meet. That misses no overlap of square footprints, whatever way their grids are
  turned, and drops tiles that only touch. It matters where one scene was cut twice: of 139 MODIS
  training patches of 32 px, 14 lie partly on 16-px validation and test patches of the probe, in
  spite of equal split names (by row and column of the scene's grid; the circles drop 38);
- lies on ground that an earlier stack of the same corpus already gave;
- holds nodata or a value that is not finite, or is constant in every band (fill).
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform as reproject
from sklearn.model_selection import KFold, StratifiedKFold

from gfmsum.config import LocalConfig as LocalConfig
from gfmsum.data.plan import stream
from gfmsum.data.sample import Labelled, Samples
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Band, Sensor, Unit, unknown

SCHEMA = 1
CACHE_BYTES = 256 * 2**20  # of decoded numbers, in the files' own (small) types
MULTIPLE_PX = 4  # labelled images keep their size, cropped to a multiple of this
BLOCK_ITEMS = 8  # side of a spatial cluster, in items
BLOCK_MIN_M = 1_000.0  # and at least this, metres
FOLD_SEED = 0
EARTH_RADIUS_M = 6_371_007.2  # of the sphere of equal area

METRICS = MappingProxyType(
    {"accuracy": "classification", "balanced_accuracy": "classification", "r2": "regression"}
)
"""The metrics that have a probe, and the kind of task each belongs to."""

KEEP: Mapping[str, Callable[[NDArray[Any], Any], NDArray[np.bool_]]] = MappingProxyType(
    {"in": np.isin, "min": np.greater_equal, "max": np.less_equal}
)
"""The rules of a task's ``keep`` filter."""

PLAUSIBLE = MappingProxyType(
    {
        Unit.REFLECTANCE: (-0.1, 1.5),
        Unit.DB: (-40.0, 0.0),  # linear backscatter is above 0
        Unit.BRIGHTNESS8: (0.0, 255.0),
        Unit.STRETCHED8: (0.0, 255.0),
    }
)
"""Where the mean of a whole file must lie: a forgotten scale does not pass for another unit."""

UNREADABLE = (OSError, EOFError, ValueError, TypeError, AttributeError, BadZipFile, zlib.error)
"""What NumPy and rasterio raise on broken files, or on files of another kind."""

type Ints = NDArray[np.int64]
type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Images:
    """Images in a file and how to read them: value = number * scale + offset, in ``unit``."""

    path: str  # relative to the root, as in the index
    key: str  # of the array (n, c, h, w) in a .npz; empty for a GeoTIFF
    corpus: str
    sensor: Sensor
    bands: tuple[Band, ...]
    names: tuple[str, ...]  # of the bands, in the file's order
    gsd_m: float
    scale: float
    offset: float
    nodata: float | None
    shape: tuple[int, ...] | None  # as the index declares it, to be checked
    dtype: str | None
    rows: Mapping[str, list[Any]]  # array in the .npz -> values that pretraining may see

    @property
    def unit(self) -> Unit:
        return self.bands[0].unit

    def values(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Numbers as values in the bands' unit."""
        values = numbers.astype(np.float32)
        values *= self.scale
        values += self.offset
        return values


@dataclass(frozen=True, slots=True)
class _Labels:
    """A task of the index: labels in a .npz, for images beside them or for windows of a scene."""

    name: str
    kind: str
    metric: str
    path: str
    images: _Images
    windows: str | None  # array (n, 2) of upper left rows and columns in the scene
    window_px: int
    target: str
    classes: str | tuple[str, ...]  # an array in the .npz, or the names themselves
    keep: Mapping[str, Mapping[str, Any]]
    folds: int | None  # None: the array ``split`` says train, val or test
    stratified: bool
    split: str
    cluster: str | None
    floor: float | None
    ceiling: float
    caveat: str
    counts: Mapping[str, int]

    @property
    def probed(self) -> bool:
        return self.kind in METRICS.values()


@dataclass(frozen=True, slots=True)
class _Items:
    """The rows of a task that its filter keeps. Folds index into ``rows``."""

    rows: Ints
    target: NDArray[Any]
    classes: tuple[str, ...]
    folds: tuple[tuple[Ints, Ints, Ints], ...]


@dataclass(frozen=True, slots=True)
class _Ground:
    """Square footprints of one size: centres (n, 2) as longitude and latitude in degrees."""

    lonlat: Floats
    side_m: float

    def meets(self, other: _Ground) -> Mask:
        """Which of these may overlap any of the other's: (n,). Circles around the squares meet."""
        reach = (self.side_m + other.side_m) / np.sqrt(2) / EARTH_RADIUS_M
        return np.asarray(
            (_on_sphere(self.lonlat) @ _on_sphere(other.lonlat).T > np.cos(reach)).any(axis=1)
        )

    def __getitem__(self, chosen: Mask | Ints) -> _Ground:
        return _Ground(self.lonlat[chosen], self.side_m)


@dataclass(frozen=True, slots=True)
class _Pool:
    """The tiles of one file that pretraining may see: (image, row, column) of their corners."""

    images: _Images
    tiles: Ints  # (n, 3)
    ground: _Ground | None


class _Entry:
    """One object of the index, read field by field; errors name file, object and key."""

    def __init__(self, fields: object, where: str) -> None:
        self.where = where
        if not isinstance(fields, dict):
            raise ValueError(
                f"{where} is {_short(fields)}, it must be an object {{...}}; rewrite it"
            )
        self.fields = fields

    def error(self, key: str, rule: str) -> ValueError:
        value = _short(self.fields[key]) if key in self.fields else "missing"
        return ValueError(f"{self.where}: {key} is {value}, it must be {rule}; correct it there")

    def text(self, key: str) -> str:
        value = self.fields.get(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "a text")
        return value

    def optional(self, key: str) -> str | None:
        return None if self.fields.get(key) is None else self.text(key)

    def number(self, key: str) -> float:
        value = self.fields.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def whole(self, key: str) -> int:
        value = self.number(key)
        if value != int(value):
            raise self.error(key, "a whole number")
        return int(value)

    def number_or(self, key: str, default: float) -> float:
        return default if self.fields.get(key) is None else self.number(key)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.fields.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.error(key, "a list of texts, not empty")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...] | None:
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise self.error(key, "a list of whole numbers")
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.fields.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "an object {...}")
        return MappingProxyType(value or {})

    def choice(self, key: str, choices: Sequence[str]) -> str:
        value = self.text(key)
        if value not in choices:
            raise ValueError(f"{self.where}: {unknown(key, value, choices)}")
        return value

    def path(self, key: str, root: Path) -> str:
        """A file below the root that exists."""
        value = self.text(key)
        if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
            raise self.error(key, f"a relative path that stays inside {root}")
        if not (root / value).is_file():
            raise self.error(key, f"a file in {root}, and there is none")
        return value


class Local:
    """Pretraining tiles and tasks of a folder with an ``index.json``.

    Building one reads the index only. Files are decoded when pixels are asked for and kept, up to
    ``CACHE_BYTES``, in the small types they are stored in.

    Args:
        config: its ``root`` is the folder.

    Raises:
        ValueError: one line with file, value, rule and remedy, for anything in the index that is
            unknown, missing or leads outside the folder; and, once pixels or labels are read, for a
            file that cannot be decoded or is not what the index says.
    """

    def __init__(self, config: LocalConfig) -> None:
        self._root = Path(config.root)
        index = self._root / "index.json"
        if not config.root or not self._root.is_dir():
            raise ValueError(f"root={config.root!r} must be a folder with an index.json; name one")
        if not index.is_file():
            raise ValueError(
                f"{index} does not exist: every root needs one; add it or name another root"
            )
        raw = index.read_bytes()
        try:
            top = _Entry(json.loads(raw), str(index))
        except (json.JSONDecodeError, UnicodeDecodeError) as broken:
            raise ValueError(f"{index} is not JSON: {broken}; correct it there") from None
        if top.fields.get("schema") != SCHEMA:
            raise top.error("schema", f"{SCHEMA}")
        for key in ("pretrain", "tasks"):
            if not isinstance(top.fields.get(key), list):
                raise top.error(key, "a list")

        self._pretrain = [
            self._pretraining_images(_Entry(fields, f"{index}: pretrain[{i}]"))
            for i, fields in enumerate(top.fields["pretrain"])
        ]
        self._tasks = [
            self._labels(_Entry(fields, f"{index}: tasks[{i}]"))
            for i, fields in enumerate(top.fields["tasks"])
        ]
        names = [labels.name for labels in self._tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"{index}: two tasks are called {twice!r}; names must differ, rename one"
            )

        used = {file.path for file in self._pretrain}
        used |= {path for labels in self._tasks for path in (labels.path, labels.images.path)}
        self._identity = MappingProxyType(
            {
                "source": "local",
                "index": hashlib.sha256(raw).hexdigest(),
                "files": {path: (self._root / path).stat().st_size for path in sorted(used)},
            }
        )
        self._cache: OrderedDict[tuple[str, str], NDArray[Any]] = OrderedDict()
        self._pools: dict[tuple[str, int], list[_Pool]] = {}
        self._held_names: dict[str, tuple[str, ...]] = {}

    # What is there: no pixels needed.

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        """Sensors with pretraining files, in the order of SENSORS."""
        present = {file.sensor.name for file in self._pretrain}
        return {name: sensor for name, sensor in SENSORS.items() if name in present}

    @property
    def identity(self) -> Mapping[str, Any]:
        """SHA-256 of the index, and the size in bytes of every file it uses, by relative path."""
        return self._identity

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            "The sensors' pixels come from different corpora, so sensor and place are confounded: "
            "what looks like the gain from a sensor may come from its places.",
            "The sample is thin, a few places per sensor: it shows that the path works, "
            "and no general conclusion follows.",
        )

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        """Names and kinds of the sensor's tasks that no probe can score."""
        return [
            (labels.name, labels.kind) for labels in self._tasks_of(sensor) if not labels.probed
        ]

    def _tasks_of(self, sensor: str) -> list[_Labels]:
        if sensor not in SENSORS:
            raise ValueError(unknown("sensor", sensor, SENSORS))
        return [labels for labels in self._tasks if labels.images.sensor.name == sensor]

    # Pretraining.

    def available(self, sensor: str, size_px: int) -> int:
        """How many tiles of ``size_px`` the sensor has for pretraining."""
        return sum(len(pool.tiles) for pool in self._pool(sensor, size_px))

    def pretraining(
        self, sensor: str, slots: range, size_px: int, seed: Sequence[int]
    ) -> list[Samples]:
        """The first len(slots) tiles of the replicate's permutation of the sensor's pool, or all.

        The permutation depends on the seed, the sensor and its pool only, so what a smaller arm
        sees is part of what a larger one sees. Tiles come in the order of the index, grouped by
        bands, unit and pixel size. ``lonlat`` is a scene tile's centre, or the centre of the
        stack's image that the tile is from; a group in which some file has no places has none.
        """
        pools = self._pool(sensor, size_px)
        ends = np.cumsum([0, *(len(pool.tiles) for pool in pools)])
        order = stream(*seed, "local", sensor).permutation(ends[-1])
        chosen = np.sort(order[: len(slots)])

        groups: dict[tuple[tuple[Band, ...], float], list[_Pool]] = {}
        for pool, start, end in zip(pools, ends, ends[1:], strict=False):
            wanted = chosen[(chosen >= start) & (chosen < end)] - start
            if wanted.size:
                ground = None if pool.ground is None else pool.ground[wanted]
                part = _Pool(pool.images, pool.tiles[wanted], ground)
                groups.setdefault((part.images.bands, part.images.gsd_m), []).append(part)
        return [self._cut(parts, size_px) for parts in groups.values()]

    def _cut(self, parts: Sequence[_Pool], size_px: int) -> Samples:
        """The tiles of files with the same bands and pixel size, as values."""
        first = parts[0].images
        shape = (sum(len(part.tiles) for part in parts), len(first.bands), size_px, size_px)
        pixels = np.empty(shape, np.float32)
        ids: list[str] = []
        for part in parts:
            numbers = self._numbers(part.images)
            block = pixels[len(ids) : len(ids) + len(part.tiles)]
            for tile, (i, row, col) in zip(block, part.tiles.tolist(), strict=True):
                tile[:] = numbers[i, :, row : row + size_px, col : col + size_px]
                ids.append(f"{part.images.path}#{i},{row},{col}")
            block *= part.images.scale
            block += part.images.offset
        places = [part.ground.lonlat for part in parts if part.ground is not None]
        lonlat = np.concatenate(places) if len(places) == len(parts) else None
        return Samples(
            first.sensor.name, first.bands, first.gsd_m, pixels, np.array(ids, np.str_), lonlat
        )

    def _pool(self, sensor: str, size_px: int) -> list[_Pool]:
        if sensor not in self.sensors:
            raise ValueError(unknown("sensor", sensor, self.sensors))
        if size_px < 1:
            raise ValueError(f"size_px={size_px} must be at least 1; choose a tile size in pixels")
        key = sensor, size_px
        if key not in self._pools:
            pools: list[_Pool] = []
            for file in self._pretrain:
                if file.sensor.name == sensor:
                    pools.append(self._usable(file, size_px, pools))
            self._pools[key] = pools
        return self._pools[key]

    def _usable(self, file: _Images, size: int, earlier: Sequence[_Pool]) -> _Pool:
        """The tiles of one file that pretraining may see, row-major, image by image."""
        numbers = self._numbers(file)
        n, c, height, width = numbers.shape
        rows, cols = height // size, width // size
        grid = numbers[:, :, : rows * size, : cols * size].reshape(n, c, rows, size, cols, size)
        low, high = grid.min(axis=(3, 5)), grid.max(axis=(3, 5))  # (n, c, rows, cols), NaN stays
        good = np.isfinite(low + high.astype(np.float64)).all(axis=1)
        good &= (low != high).any(axis=1)
        if file.nodata is not None:
            good &= ~(grid == file.nodata).any(axis=(1, 3, 5))
        good &= ~self._held_tiles(file, rows, cols, size)
        if file.key:
            good &= self._open_rows(file, n)[:, None, None]

        image, row, col = np.nonzero(good)
        if image.size:
            middle = (low.astype(np.float64) + high)[np.nonzero(good)[0], :, row, col] / 2
            self._check_unit(file, float(middle.mean()) * file.scale + file.offset)
        tiles = np.stack([image, row * size, col * size], axis=1)
        ground = self._ground(file, tiles, size)
        if ground is None:
            return _Pool(file, tiles, None)

        # Windows of this very scene are known to the pixel, which is better than by footprint.
        taken = [held for path, held in self._held_ground if file.key or path != file.path]
        if file.key:
            # Stacks of one corpus can be cuts of one scene; scenes are different acquisitions.
            taken += [
                pool.ground
                for pool in earlier
                if pool.ground is not None and pool.images.key and pool.images.corpus == file.corpus
            ]
        free = np.ones(len(tiles), bool)
        for other in taken:
            free &= ~ground.meets(other)
        return _Pool(file, tiles[free], ground[free])

    def _open_rows(self, file: _Images, n: int) -> Mask:
        """Images of a stack that the index allows and no task holds back: (n,)."""
        open_ = np.ones(n, bool)
        for key, allowed in file.rows.items():
            open_ &= np.isin(self._column(file.path, key, n), allowed)
        if not open_.any():
            raise self._error(
                file.path,
                f"rows {dict(file.rows)} leave no image; correct the values in index.json",
            )
        for labels in self._tasks:
            if labels.path == file.path and labels.windows is None:
                self._column(labels.path, labels.target, n)
                open_ &= ~self._held(labels)
        return open_

    def _held_tiles(self, file: _Images, rows: int, cols: int, size: int) -> Mask:
        """Tiles of a scene that overlap a validation or test window: (1, rows, cols)."""
        held = np.zeros((rows * size, cols * size), bool)
        for labels in self._tasks:
            if labels.windows is not None and labels.images.path == file.path:
                for row, col in self._corners(labels)[self._held(labels)].tolist():
                    held[row : row + labels.window_px, col : col + labels.window_px] = True
        return np.asarray(held.reshape(1, rows, size, cols, size).any(axis=(2, 4)))

    def _ground(self, file: _Images, tiles: Ints, size: int) -> _Ground | None:
        """Where tiles lie, if the file says so."""
        if file.key:
            places = self._places(file.path, len(self._numbers(file)))
            return None if places is None else _Ground(places[tiles[:, 0]], self._side_m(file))
        lonlat = self._scene_lonlat(file, tiles[:, 1:] + size / 2)
        return None if lonlat is None else _Ground(lonlat, size * file.gsd_m)

    @cached_property
    def _held_ground(self) -> list[tuple[str, _Ground]]:
        """Footprints of every validation and test row that has a place, with the images' path."""
        found = []
        for labels in self._tasks:
            places = self._task_places(labels)
            if places is not None:
                ground = _Ground(places, self._item_m(labels))
                found.append((labels.images.path, ground[self._held(labels)]))
        return found

    # Tasks.

    def tasks(self, sensor: str) -> list[Task]:
        """The sensor's classification and regression tasks, without pixels.

        Where the index gives no ``floor``, it comes from the labels alone: the test accuracy of the
        training majority class, one over the number of classes for balanced accuracy, 0 for r2.
        """
        return [self._task(labels) for labels in self._tasks_of(sensor) if labels.probed]

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items at their own size, cropped at the centre to a multiple of MULTIPLE_PX.

        ``size_px`` does not matter: encoders take images of any size, and cutting them down would
        change the question. Clusters are what the index says: values of an array (an item without a
        value is its own), or blocks of BLOCK_ITEMS x BLOCK_ITEMS items on the ground for ``lonlat``
        and for windows of one scene.

        Raises:
            ValueError: if an item holds nodata or a value that is not finite. Nothing is filled in
                or dropped silently: the number of items is the index's.
        """
        labels = next((labels for labels in self._tasks if labels.name == task.name), None)
        if labels is None or not labels.probed:
            probed = [labels.name for labels in self._tasks if labels.probed]
            raise ValueError(unknown("task", task.name, probed))
        items, file = self._items(labels), labels.images
        numbers = self._numbers(file)
        if labels.windows is not None:
            side = labels.window_px
            corners = self._corners(labels)[items.rows].tolist()
            numbers = np.stack([numbers[0, :, r : r + side, c : c + side] for r, c in corners])
        else:
            self._column(labels.path, labels.target, len(numbers))
            numbers = numbers[items.rows]
        height, width = numbers.shape[2:]
        top, left = height % MULTIPLE_PX // 2, width % MULTIPLE_PX // 2
        height, width = height - height % MULTIPLE_PX, width - width % MULTIPLE_PX
        numbers = numbers[:, :, top : top + height, left : left + width]

        bad = ~np.isfinite(numbers)
        if file.nodata is not None:
            bad |= numbers == file.nodata
        if bad.any():
            row = items.rows[bad.any(axis=(1, 2, 3)).argmax()]
            raise self._error(
                labels.path,
                f"row {row} of task {labels.name} holds nodata or a value that is not finite; "
                "fill it in the file or filter it with keep",
            )
        pixels = file.values(numbers)
        self._check_unit(file, float(pixels.mean(dtype=np.float64)))
        places = self._task_places(labels)
        samples = Samples(
            file.sensor.name,
            file.bands,
            file.gsd_m,
            pixels,
            np.array([f"{labels.path}#{row}" for row in items.rows], np.str_),
            None if places is None else places[items.rows],
        )
        return Labelled(
            task, samples, items.target, self._clusters(labels)[items.rows], items.folds
        )

    def _task(self, labels: _Labels) -> Task:
        floor = labels.floor
        if floor is None:
            floor = _floor(labels.metric, self._items(labels))
        if not labels.ceiling > floor:
            raise self._error(
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
            classes=self._items(labels).classes,
            caveat=labels.caveat,
            clustered=labels.cluster is not None or labels.windows is not None,
        )

    def _items(self, labels: _Labels) -> _Items:
        """The rows a task keeps, with dense class indices and folds."""
        target = self._array(labels.path, labels.target)
        n = len(target)
        keep = np.ones(n, bool)
        for key, rules in labels.keep.items():
            column = self._column(labels.path, key, n)
            for rule, bound in rules.items():
                if rule != "in" and column.dtype.kind not in "iuf":
                    problem = f"array {key!r} is {column.dtype}, keep rule {rule!r} needs numbers"
                    raise self._error(labels.path, f"{problem}; use 'in'")
                keep &= KEEP[rule](column, bound)
        rows = np.flatnonzero(keep)
        if not rows.size:
            raise self._error(
                labels.path, f"task {labels.name} keeps no row; loosen its keep filter"
            )
        values = target[rows]
        classes: tuple[str, ...] = ()
        if labels.kind == "classification":
            kept, values = np.unique(values, return_inverse=True)
            classes, values = self._class_names(labels, kept), values.astype(np.int64)
        else:
            values = values.astype(np.float64)
            if not np.isfinite(values).all():
                problem = (
                    f"array {labels.target!r} holds values that are not finite; filter with keep"
                )
                raise self._error(labels.path, problem)
        items = _Items(rows, values, classes, self._folds(labels, rows, values))
        self._check_counts(labels, items)
        return items

    def _class_names(self, labels: _Labels, kept: NDArray[Any]) -> tuple[str, ...]:
        """Names of the classes that the filter left, in the order of their labels."""
        given = labels.classes
        names = self._array(labels.path, given).tolist() if isinstance(given, str) else given
        if kept.dtype.kind not in "iu" or kept.min() < 0 or kept.max() >= len(names):
            raise self._error(
                labels.path,
                f"array {labels.target!r} holds labels {kept[0]} to {kept[-1]}, task {labels.name} "
                f"names {len(names)} classes; labels must be 0 to {len(names) - 1}, use keep",
            )
        return tuple(str(names[label]) for label in kept)

    def _folds(
        self, labels: _Labels, rows: Ints, values: NDArray[Any]
    ) -> tuple[tuple[Ints, Ints, Ints], ...]:
        """(train, val, test) over the kept rows. Of k folds, i is test and the next one val."""
        if labels.folds is None:
            split = self._split(labels)[rows]
            train, val, test = (np.flatnonzero(split == part) for part in ("train", "val", "test"))
            for part, found in (("train", train), ("val", val), ("test", test)):
                if not found.size:
                    problem = f"array {labels.split!r} leaves no {part} row to task {labels.name}"
                    raise self._error(labels.path, f"{problem}; every part needs one, split anew")
            return ((train, val, test),)
        kind = StratifiedKFold if labels.stratified else KFold
        cut = kind(labels.folds, shuffle=True, random_state=FOLD_SEED)
        try:
            parts = [test.astype(np.int64) for _, test in cut.split(rows, values)]
        except ValueError as impossible:
            problem = f"{labels.folds} folds of task {labels.name}: {_line(impossible)}; use fewer"
            raise self._error(labels.path, problem) from None
        everything = np.arange(len(rows))
        return tuple(
            (np.setdiff1d(everything, [*test, *val]), val, test)
            for test, val in zip(parts, [*parts[1:], parts[0]], strict=True)
        )

    def _check_counts(self, labels: _Labels, items: _Items) -> None:
        found = {"all": len(items.rows)}
        if labels.folds is None:
            found |= zip(("train", "val", "test"), map(len, items.folds[0]), strict=True)
        for part, declared in labels.counts.items():
            if found.get(part) != declared:
                raise self._error(
                    labels.path,
                    f"task {labels.name} has {found.get(part)} {part} items, the index says "
                    f"{declared}; the two must agree, correct the index",
                )

    def _split(self, labels: _Labels) -> NDArray[Any]:
        n = len(self._array(labels.path, labels.target))
        split = self._column(labels.path, labels.split, n)
        strange = sorted(set(split.tolist()) - {"train", "val", "test"})
        if strange:
            problem = f"array {labels.split!r} holds {strange[0]!r}; a row is train, val or test"
            raise self._error(labels.path, f"{problem}, correct it")
        return split

    def _held(self, labels: _Labels) -> Mask:
        """Rows that are, or under another filter would be, validation or test items: (n,)."""
        if labels.folds is not None:
            return np.ones(len(self._array(labels.path, labels.target)), bool)
        return np.asarray(self._split(labels) != "train")

    def _clusters(self, labels: _Labels) -> NDArray[np.str_]:
        """The cluster of every row. Tasks on one file share names, as they share places."""
        n = len(self._array(labels.path, labels.target))
        alone = [f"row {row}" for row in range(n)]
        match labels.cluster:
            case None if labels.windows is None:
                names = alone
            case None:
                blocks = self._corners(labels) // (BLOCK_ITEMS * labels.window_px)
                names = [f"block {row},{col}" for row, col in blocks.tolist()]
            case "lonlat":
                places = self._task_places(labels)
                if places is None:
                    raise self._error(
                        labels.path, f"task {labels.name} clusters by a missing 'lonlat'"
                    )
                blocks = _blocks(places, max(BLOCK_ITEMS * self._item_m(labels), BLOCK_MIN_M))
                names = [f"block {row},{col}" for row, col in blocks.tolist()]
            case key:
                values = [str(value) for value in self._column(labels.path, key, n).tolist()]
                names = [value or own for value, own in zip(values, alone, strict=True)]
        return np.array([f"{labels.path}@{name}" for name in names], np.str_)

    def _task_places(self, labels: _Labels) -> Floats | None:
        """Longitude and latitude of every row's centre: (n, 2), where known."""
        if labels.windows is not None:
            return self._scene_lonlat(labels.images, self._corners(labels) + labels.window_px / 2)
        return self._places(labels.path, len(self._array(labels.path, labels.target)))

    def _item_m(self, labels: _Labels) -> float:
        """The ground side of a task's items."""
        if labels.windows is not None:
            return labels.window_px * labels.images.gsd_m
        return self._side_m(labels.images)

    def _corners(self, labels: _Labels) -> Ints:
        """Upper left (row, column) of every row's window in its scene: (n, 2)."""
        assert labels.windows is not None
        n = len(self._array(labels.path, labels.target))
        corners = self._column(labels.path, labels.windows, n)
        height, width = self._numbers(labels.images).shape[2:]
        limit = np.array([height, width]) - labels.window_px
        if corners.shape != (n, 2) or (corners < 0).any() or (corners > limit).any():
            raise self._error(
                labels.path,
                f"array {labels.windows!r} has windows of {labels.window_px} px outside the scene "
                f"of {height}x{width} px; correct them or patch_px",
            )
        return corners.astype(np.int64)

    # Files.

    def _array(self, path: str, key: str) -> NDArray[Any]:
        """An array of a .npz, or with an empty key the bands (c, h, w) of a GeoTIFF; cached."""
        name = path, key
        if name not in self._cache:
            self._cache[name] = self._decode(path, key)
            while (
                len(self._cache) > 1 and sum(a.nbytes for a in self._cache.values()) > CACHE_BYTES
            ):
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    def _decode(self, path: str, key: str) -> NDArray[Any]:
        if not key:
            with self._scene(path) as scene:
                return np.asarray(scene.read())
        with self._npz(path) as arrays:
            if key in arrays.files:
                return np.asarray(arrays[key])
            held = ", ".join(arrays.files)
        raise self._error(path, f"has no array {key!r}, only {held}; correct the key in index.json")

    @contextmanager
    def _npz(self, path: str) -> Iterator[Any]:
        # NumPy leaves a file open that it fails to understand; this one is closed in any case.
        with (
            self._reading(path),
            (self._root / path).open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            yield arrays

    @contextmanager
    def _scene(self, path: str) -> Iterator[Any]:
        with self._reading(path), warnings.catch_warnings():
            # A scene without a place is welcome: its tiles merely have no ground to compare.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(self._root / path) as scene:
                yield scene

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Says in one line which file another library could not read."""
        try:
            yield
        except UNREADABLE as broken:
            problem = f"cannot be read ({_line(broken)}); it must be whole, fetch it again"
            raise self._error(path, problem) from None

    def _column(self, path: str, key: str, n: int) -> NDArray[Any]:
        """An array with one entry per row."""
        column = self._array(path, key)
        if column.ndim < 1 or len(column) != n:
            problem = (
                f"array {key!r} has shape {column.shape}; its first side must be {n}, one per row"
            )
            raise self._error(path, f"{problem}, correct the file")
        return column

    def _names(self, path: str) -> tuple[str, ...]:
        """The names of a .npz's arrays, or of a GeoTIFF's bands where all have one."""
        if path not in self._held_names:
            if path.endswith(".npz"):
                with self._npz(path) as arrays:
                    names = tuple(arrays.files)
            else:
                with self._scene(path) as scene:
                    names = tuple(scene.descriptions)
            self._held_names[path] = names if all(names) else ()
        return self._held_names[path]

    def _numbers(self, file: _Images) -> NDArray[Any]:
        """The file's images as stored, (n, c, h, w), checked against what the index says."""
        numbers = self._array(file.path, file.key)
        self._check_numbers(file, numbers)
        return numbers if file.key else numbers[None]

    def _check_numbers(self, file: _Images, numbers: NDArray[Any]) -> None:
        what = f"array {file.key!r}" if file.key else "the raster"
        sides = 4 if file.key else 3
        if numbers.ndim != sides or numbers.dtype.kind not in "iuf":
            rule = f"it must be {sides}-dimensional and of whole or floating-point numbers"
            problem = (
                f"{what} is {numbers.dtype} {numbers.shape}, {rule}; correct the key in index.json"
            )
            raise self._error(file.path, problem)
        found = {"shape": numbers.shape, "dtype": numbers.dtype.name}
        for aspect, declared in (("shape", file.shape), ("dtype", file.dtype)):
            if declared is not None and declared != found[aspect]:
                problem = f"{what} has {aspect} {found[aspect]}, the index says {declared}"
                raise self._error(file.path, f"{problem}; the two must agree, correct the index")
        if numbers.shape[-3] != len(file.names):
            problem = f"{what} has {numbers.shape[-3]} bands, the index names {len(file.names)}"
            raise self._error(file.path, f"{problem}: {', '.join(file.names)}; name each band once")
        own = self._names(file.path)
        if file.key:
            own = tuple(self._array(file.path, "bands").tolist()) if "bands" in own else ()
        # Names of another vocabulary ("red") say nothing about the order; the producer's own do.
        if own != file.names and own and set(own) <= {band.name for band in file.sensor.bands}:
            problem = (
                f"the file calls its bands {', '.join(own)}, the index {', '.join(file.names)}"
            )
            raise self._error(file.path, f"{problem}; the order must agree, correct the index")

    def _check_unit(self, file: _Images, mean: float) -> None:
        """Refuse a file whose mean value contradicts its unit."""
        low, high = PLAUSIBLE[file.unit]
        if not low <= mean <= high:
            raise self._error(
                file.path,
                f"values are {mean:.4g} on average, {file.unit} must lie in {low}..{high}; "
                f"correct unit, scale={file.scale} or offset={file.offset} in index.json",
            )

    def _places(self, path: str, n: int) -> Floats | None:
        """The .npz's ``lonlat`` (n, 2) in degrees, if it has one."""
        if "lonlat" not in self._names(path):
            return None
        places = self._column(path, "lonlat", n).astype(np.float64)
        if places.shape != (n, 2) or not (np.abs(places) <= (360, 90)).all():
            raise self._error(
                path, "array 'lonlat' must hold a longitude and latitude per row; fix it"
            )
        return places

    def _scene_lonlat(self, file: _Images, centres: NDArray[Any]) -> Floats | None:
        """Longitude and latitude of (row, column) positions in a scene, if it is georeferenced."""
        with self._scene(file.path) as scene:
            grid, crs = scene.transform, scene.crs
        if crs is None or not len(centres):
            return None
        row, col = centres[:, 0], centres[:, 1]
        x, y = grid.a * col + grid.b * row + grid.c, grid.d * col + grid.e * row + grid.f
        return np.stack(reproject(crs, "EPSG:4326", x, y)[:2], axis=1)

    def _side_m(self, file: _Images) -> float:
        """The ground side of a stack's images."""
        return float(max(self._numbers(file).shape[2:]) * file.gsd_m)

    def _error(self, path: str, problem: str) -> ValueError:
        return ValueError(f"{self._root / path}: {problem}")

    # The index.

    def _pretraining_images(self, entry: _Entry) -> _Images:
        stack = entry.choice("layout", ("scene", "stack")) == "stack"
        path = entry.path("path", self._root)
        key = "images" if stack else ""
        return self._images(entry, path, key, entry.number("gsd_m"), None)

    def _images(
        self, entry: _Entry, path: str, key: str, gsd_m: float, nodata: float | None
    ) -> _Images:
        sensor = SENSORS[entry.choice("sensor", tuple(SENSORS))]
        unit = Unit(entry.choice("unit", tuple(Unit)))
        names = entry.texts("bands")
        if not gsd_m > 0:
            raise entry.error("gsd_m", "above 0, metres")
        if len(set(names)) != len(names):
            raise entry.error("bands", "names that differ")
        try:
            bands = sensor.select(names, unit=unit, grid_m=gsd_m)
        except ValueError as unknown_band:
            raise ValueError(f"{entry.where}: {unknown_band}") from None
        rows = entry.mapping("rows")
        if not all(isinstance(values, list) for values in rows.values()):
            raise entry.error("rows", "{array: [allowed values]}")
        return _Images(
            path=path,
            key=key,
            corpus=entry.optional("id") or path,
            sensor=sensor,
            bands=bands,
            names=names,
            gsd_m=gsd_m,
            scale=entry.number("scale"),
            offset=entry.number("offset"),
            nodata=nodata if entry.fields.get("nodata") is None else entry.number("nodata"),
            shape=entry.integers("shape"),
            dtype=entry.optional("dtype"),
            rows=rows,
        )

    def _labels(self, entry: _Entry) -> _Labels:
        name, kind, path = entry.text("name"), entry.text("kind"), entry.path("path", self._root)
        entry.where += f" {name!r}"
        scene = entry.optional("scene") and entry.path("scene", self._root)
        probed = kind in METRICS.values()
        metric = entry.choice("metric", tuple(METRICS)) if probed else entry.text("metric")
        if probed and METRICS[metric] != kind:
            raise entry.error("metric", f"one for {kind}, {metric} is for {METRICS[metric]}")
        # A task's pixel size and nodata, where it does not say, are those of the same file above.
        twin = next((file for file in self._pretrain if file.path == (scene or path)), None)
        sensor = SENSORS[entry.choice("sensor", tuple(SENSORS))]
        images = self._images(
            entry,
            scene or path,
            "" if scene else entry.optional("images") or "images",
            entry.number_or("gsd_m", twin.gsd_m if twin else sensor.gsd_m),
            twin.nodata if twin else None,
        )
        split = _Entry(entry.fields.get("split"), f"{entry.where}: split")
        kfold = split.choice("by", ("array", "kfold")) == "kfold"
        folds = split.whole("k") if kfold else None
        if folds is not None and folds < 3:
            raise split.error(
                "k", "at least 3: one part each for test and validation, the rest to train"
            )
        keep = entry.mapping("keep")
        for array in keep:
            rules = _Entry(keep[array], f"{entry.where}: keep {array!r}")
            for rule in rules.fields:
                if rule not in KEEP:
                    raise ValueError(f"{rules.where}: {unknown('rule', rule, KEEP)}")
                if rule != "in":
                    rules.number(rule)
                elif not isinstance(rules.fields[rule], list):
                    raise rules.error(rule, "a list of values")
        classes: str | tuple[str, ...] = ()
        if kind == "classification":
            named = isinstance(entry.fields.get("classes"), list)
            classes = entry.texts("classes") if named else entry.text("classes")
        window_px = entry.whole("patch_px") if scene else 0
        if scene and window_px < MULTIPLE_PX:
            raise entry.error("patch_px", f"at least {MULTIPLE_PX}")
        return _Labels(
            name=name,
            kind=kind,
            metric=metric,
            path=path,
            images=images,
            windows=entry.text("windows") if scene else None,
            window_px=window_px,
            target=entry.text("target"),
            classes=classes,
            keep=keep,
            folds=folds,
            stratified=bool(split.fields.get("stratified")) and kind == "classification",
            split="" if kfold else split.text("key"),
            cluster=entry.optional("cluster"),
            floor=None if entry.fields.get("floor") is None else entry.number("floor"),
            ceiling=entry.number_or("ceiling", 1.0),
            caveat=entry.optional("caveat") or "",
            counts=entry.mapping("n"),
        )


def _floor(metric: str, items: _Items) -> float:
    """The metric of an answer that ignores the image."""
    match metric:
        case "accuracy":
            hits = [
                items.target[test] == np.bincount(items.target[train]).argmax()
                for train, _, test in items.folds
            ]
            return float(np.concatenate(hits).mean())
        case "balanced_accuracy":
            return 1 / len(items.classes)
        case _:
            return 0.0


def _on_sphere(lonlat: Floats) -> Floats:
    """Unit vectors (n, 3) of longitudes and latitudes in degrees."""
    lon, lat = np.deg2rad(lonlat).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _blocks(lonlat: Floats, side_m: float) -> Ints:
    """The cell (row, column) of each place in a fixed grid of about square blocks: (n, 2)."""
    degree_m = np.deg2rad(EARTH_RADIUS_M)
    row = np.floor(lonlat[:, 1] * degree_m / side_m)
    # One width of cell per row of blocks, so that their sides meet.
    width = np.cos(np.deg2rad((row + 0.5) * side_m / degree_m))
    col = np.floor(lonlat[:, 0] * degree_m * width / side_m)
    return np.stack([row, col], axis=1).astype(np.int64)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(error: Exception) -> str:
    """What another library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
