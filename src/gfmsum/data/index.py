"""What the ``index.json`` of a folder of real pixels says (schema 1), checked field by field.

It names every pretraining file, a GeoTIFF scene or a ``.npz`` stack of images (n, c, h, w), with
its bands by name, unit and reading rule (value = number * scale + offset), and every task with its
labels, splits and clusters. No other file is opened here.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.sensors import SENSORS, Band, Sensor, Unit, unknown

SCHEMA = 1
MULTIPLE_PX = 4  # labelled images keep their size, cropped to a multiple of this

METRICS = MappingProxyType(
    {"accuracy": "classification", "balanced_accuracy": "classification", "r2": "regression"}
)
"""The metrics that have a probe, and the kind of task each belongs to."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images in a file and how to read them: value = number * scale + offset, in ``unit``."""

    path: str  # relative to the root
    key: str  # of the array (n, c, h, w) in a .npz; empty for a GeoTIFF
    corpus: str
    sensor: Sensor
    bands: tuple[Band, ...]  # in the file's order
    gsd_m: float
    scale: float
    offset: float
    nodata: float | None
    shape: tuple[int, ...] | None  # as declared, if it is
    dtype: str | None
    rows: Mapping[str, list[Any]]  # array in the .npz -> values that pretraining may see

    @property
    def unit(self) -> Unit:
        return self.bands[0].unit

    def values(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turns numbers into values, in place."""
        numbers *= self.scale
        numbers += self.offset
        return numbers


@dataclass(frozen=True, slots=True)
class Labels:
    """A task: labels in a .npz, for images beside them or for windows of a scene."""

    name: str
    kind: str
    metric: str
    path: str
    images: Images
    windows: str | None  # array (n, 2) of upper left rows and columns in the scene
    window_px: int  # 0 without windows
    target: str
    classes: str | tuple[str, ...]  # an array in the .npz, or the names themselves
    keep: Mapping[str, Mapping[str, Any]]  # array -> rule in KEEP -> its value
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
class Index:
    """All that the index names, and what tells this folder from another."""

    pretrain: tuple[Images, ...]
    tasks: tuple[Labels, ...]
    identity: Mapping[str, Any]  # SHA-256 of the index, size in bytes of each file by its path


# What a field may hold.


@dataclass(frozen=True, slots=True)
class Rule[T]:
    """What a value must be, in words and as a test, and the type it then takes."""

    says: str
    holds: Callable[[Any], bool]
    make: Callable[[Any], T]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < math.inf


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _at_least(least: int, why: str) -> Rule[int]:
    says = f"at least {least}, a whole number: {why}"
    return Rule(says, lambda v: _number(v) and v == int(v) >= least, int)


TEXT = Rule("a text", lambda v: isinstance(v, str) and v != "", str)
NUMBER = Rule("a finite number", _number, float)
METRES = Rule("above 0, a finite number", lambda v: _number(v) and v > 0, float)
FOLDS = _at_least(3, "one part each for test and validation, the rest to train")
WINDOW = _at_least(MULTIPLE_PX, "pixels")
LIST = Rule("a list of values", lambda v: _all(object, v), list[Any])
SHAPE = Rule("a list of whole numbers", lambda v: _all(int, v), tuple[int, ...])
TEXTS = Rule("a list of texts, not empty", lambda v: _all(str, v) and v != [], tuple[str, ...])
NAMES = Rule(
    "a list of names that differ, not empty",
    lambda v: _all(str, v) and len(set(v)) == len(v) > 0,
    tuple[str, ...],
)
OBJECT = Rule("an object {...}", lambda v: isinstance(v, dict), dict[str, Any])
ROWS = Rule(
    "an object {array: [allowed values]}",
    lambda v: isinstance(v, dict) and _all(list, [*v.values()]),
    dict[str, list[Any]],
)

KEEP: Mapping[str, tuple[Callable[..., NDArray[np.bool_]], Rule[Any]]] = MappingProxyType(
    {"in": (np.isin, LIST), "min": (np.greater_equal, NUMBER), "max": (np.less_equal, NUMBER)}
)
"""The rules of a task's ``keep`` filter: the test of an array against the value, and its rule."""

_short = reprlib.Repr(maxstring=60).repr


class _Entry:
    """One object of the index, read field by field; errors name file, object and key."""

    def __init__(self, fields: Any, root: Path, where: str) -> None:
        if not isinstance(fields, dict):
            raise ValueError(
                f"{where} is {_short(fields)}, it must be an object {{...}}; rewrite it"
            )
        self.fields, self.root, self.where = fields, root, where

    def error(self, key: str, rule: str) -> ValueError:
        value = _short(self.fields[key]) if key in self.fields else "missing"
        return ValueError(f"{self.where}: {key} is {value}, it must be {rule}; correct it there")

    def get[T](self, key: str, rule: Rule[T]) -> T:
        value = self.fields.get(key)
        if not rule.holds(value):
            raise self.error(key, rule.says)
        return rule.make(value)

    def maybe[T, D](self, key: str, rule: Rule[T], default: D) -> T | D:
        """The field, or the default where it is missing or null."""
        return default if self.fields.get(key) is None else self.get(key, rule)

    def choice(self, key: str, choices: Iterable[str]) -> str:
        value = self.get(key, TEXT)
        if value not in choices:
            raise ValueError(f"{self.where}: {unknown(key, value, choices)}")
        return value

    def path(self, key: str) -> str:
        """A file below the root that exists, spelt in one way whatever the index does."""
        path = PurePosixPath(self.get(key, TEXT))
        if path.is_absolute() or ".." in path.parts:
            raise self.error(key, f"a relative path that stays inside {self.root}")
        if not (self.root / path).is_file():
            raise self.error(key, f"a file in {self.root}, and there is none")
        return str(path)

    def each(self, key: str) -> list[_Entry]:
        """The objects of a list."""
        fields = enumerate(self.get(key, LIST))
        return [_Entry(one, self.root, f"{self.where}: {key}[{i}]") for i, one in fields]


# The whole.


def read_index(folder: str) -> Index:
    """The index of a folder.

    Raises:
        ValueError: one line with file, value, rule and remedy, for a folder without an index and
            for anything in it that is unknown, missing or leads outside the folder.
    """
    root = Path(folder)
    file = root / "index.json"
    if not folder or not root.is_dir():
        raise ValueError(f"data.root={folder!r} must be a folder with an index.json; name one")
    if not file.is_file():
        raise ValueError(f"{file} does not exist: every root needs one; add it or name another")
    raw = file.read_bytes()
    try:
        top = _Entry(json.loads(raw), root, str(file))
    except (json.JSONDecodeError, UnicodeDecodeError) as broken:
        raise ValueError(f"{file} is not JSON: {broken}; correct it there") from None
    if top.fields.get("schema") != SCHEMA:
        raise top.error("schema", f"{SCHEMA}")

    pretrain = tuple(_pretraining(entry) for entry in top.each("pretrain"))
    tasks = tuple(_labels(entry, pretrain) for entry in top.each("tasks"))
    names = [labels.name for labels in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file}: two tasks are called {twice!r}; names must differ, rename one")
    used = {images.path for images in pretrain}
    used |= {path for labels in tasks for path in (labels.path, labels.images.path)}
    identity = {
        "source": "local",
        "index": hashlib.sha256(raw).hexdigest(),
        "files": {path: (root / path).stat().st_size for path in sorted(used)},
    }
    return Index(pretrain, tasks, MappingProxyType(identity))


def _pretraining(entry: _Entry) -> Images:
    key = "images" if entry.choice("layout", ("scene", "stack")) == "stack" else ""
    return _images(entry, entry.path("path"), key, entry.get("gsd_m", METRES), None)


def _images(
    entry: _Entry, path: str, key: str, gsd_m: float | None, nodata: float | None
) -> Images:
    sensor = SENSORS[entry.choice("sensor", SENSORS)]
    unit = Unit(entry.choice("unit", tuple(Unit)))
    names, gsd_m = entry.get("bands", NAMES), gsd_m or sensor.gsd_m
    try:
        bands = sensor.select(names, unit=unit, grid_m=gsd_m)
    except ValueError as unknown_band:
        raise ValueError(f"{entry.where}: {unknown_band}") from None
    return Images(
        path=path,
        key=key,
        corpus=entry.maybe("id", TEXT, path),
        sensor=sensor,
        bands=bands,
        gsd_m=gsd_m,
        scale=entry.get("scale", NUMBER),
        offset=entry.get("offset", NUMBER),
        nodata=entry.maybe("nodata", NUMBER, nodata),
        shape=entry.maybe("shape", SHAPE, None),
        dtype=entry.maybe("dtype", TEXT, None),
        rows=entry.maybe("rows", ROWS, {}),
    )


def _labels(entry: _Entry, pretrain: Iterable[Images]) -> Labels:
    name, kind, path = entry.get("name", TEXT), entry.get("kind", TEXT), entry.path("path")
    entry.where += f" {name!r}"
    probed, classified = kind in METRICS.values(), kind == "classification"
    metric = entry.choice("metric", METRICS) if probed else entry.get("metric", TEXT)
    if probed and METRICS[metric] != kind:
        raise entry.error("metric", f"one for {kind}, {metric} is for {METRICS[metric]}")
    scene = entry.maybe("scene", TEXT, None) and entry.path("scene")
    # A task's pixel size and nodata, where it does not say, are those of the same file above.
    twin = next((images for images in pretrain if images.path == (scene or path)), None)
    images = _images(
        entry,
        scene or path,
        "" if scene else entry.maybe("images", TEXT, "images"),
        entry.maybe("gsd_m", METRES, twin.gsd_m if twin else None),
        twin.nodata if twin else None,
    )
    split = _Entry(entry.fields.get("split"), entry.root, f"{entry.where}: split")
    kfold = split.choice("by", ("array", "kfold")) == "kfold"
    keep = entry.maybe("keep", OBJECT, {})
    for array, fields in keep.items():
        rules = _Entry(fields, entry.root, f"{entry.where}: keep {array!r}")
        for rule in fields:
            if rule not in KEEP:
                raise ValueError(f"{rules.where}: {unknown('rule', rule, KEEP)}")
            rules.get(rule, KEEP[rule][1])
    classes: str | tuple[str, ...] = ()
    if classified:
        named = isinstance(entry.fields.get("classes"), list)
        classes = entry.get("classes", TEXTS) if named else entry.get("classes", TEXT)
    return Labels(
        name=name,
        kind=kind,
        metric=metric,
        path=path,
        images=images,
        window_px=entry.get("patch_px", WINDOW) if scene else 0,
        windows=entry.get("windows", TEXT) if scene else None,
        target=entry.get("target", TEXT),
        classes=classes,
        keep=keep,
        folds=split.get("k", FOLDS) if kfold else None,
        stratified=bool(split.fields.get("stratified")) and classified,
        split="" if kfold else split.get("key", TEXT),
        cluster=entry.maybe("cluster", TEXT, None),
        floor=entry.maybe("floor", NUMBER, None),
        ceiling=entry.maybe("ceiling", NUMBER, 1.0),
        caveat=entry.maybe("caveat", TEXT, ""),
        counts=entry.maybe("n", OBJECT, {}),
    )
