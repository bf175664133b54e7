"""What the ``index.json`` of a folder of real pixels says (schema 1), checked field by field.

It names every pretraining file, a GeoTIFF scene or a ``.npz`` stack of images, with its bands by name,
unit and reading rule, every task with its labels, splits and clusters, and sensors that this package does
not know. :data:`SCHEMA_HELP` lists the fields and shows a whole index. No other file is opened here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.catalog import CATALOG, sensors_from
from gfmsum.sensors import Band, Sensor, Unit, unknown

SCHEMA = 1
MULTIPLE_PX = 4  # labelled images keep their size, cropped to a multiple of this

DENSE = "segmentation", "change_segmentation"
KINDS = MappingProxyType(
    {"classification": ("accuracy", "balanced_accuracy"), "regression": ("r2",)}
    | dict.fromkeys(DENSE, ("mean_iou", "iou_positive"))
)
"""The kinds of tasks that have a probe, with their metrics; DENSE are those with a label per pixel."""

EXAMPLE = """\
{
  "schema": 1,
  "sensors": {
    "superdove": {
      "title": "PlanetScope SuperDove",
      "gsd_m": 3,
      "unit": "reflectance",
      "bands": {
        "red": {"wavelength_um": 0.665, "fwhm_um": 0.030},
        "nir": {"wavelength_um": 0.865, "fwhm_um": 0.040}
      }
    }
  },
  "pretrain": [
    {
      "path": "superdove/valley.tif",
      "layout": "scene",
      "sensor": "superdove",
      "bands": ["red", "nir"],
      "unit": "reflectance",
      "scale": 0.0001,
      "offset": 0,
      "nodata": 0,
      "gsd_m": 3,
      "date": "2023-07-15"
    }
  ],
  "tasks": [
    {
      "name": "orchards",
      "path": "superdove/orchards.npz",
      "kind": "classification",
      "metric": "accuracy",
      "sensor": "superdove",
      "bands": ["red", "nir"],
      "unit": "reflectance",
      "scale": 0.0001,
      "offset": 0,
      "target": "labels",
      "classes": ["field", "orchard"],
      "split": {"by": "array", "key": "split"},
      "cluster": "lonlat"
    }
  ]
}
"""
"""A whole index: one scene to pretrain on, one task with images of its own, one sensor of the user's."""

METRICS_HELP = f"\n{'':16}".join(
    f"{' or '.join(metrics)} for {kind}" for kind, metrics in KINDS.items()
)

SCHEMA_HELP = f"""\
index.json: what a folder of your own pixels holds

Put an index.json into a folder that has your files in it or below it. Nothing is copied or changed.
Fields without (optional) are needed; null counts as left out. value = number * scale + offset.

The whole
  schema        {SCHEMA}
  pretrain      list of files to pretrain on, each a scene or a stack, see below; may be []
  tasks         list of tasks to probe, see below; may be []
  sensors       (optional) object {{name: definition}} of sensors that are not in gfmsum.catalog, or the
                same as there:
    title         (optional) text for people
    gsd_m         number: pixel of the delivered grid, metres
    unit          (optional) of all bands that do not have their own: {", ".join(Unit)}
    bands         object {{name: definition}} in the order of delivery. Optical bands have wavelength_um
                  and fwhm_um (centre and width, micrometres); radar bands have polarisation (VV, VH, HV
                  or HH) and, if known, frequency_ghz; both may have their own gsd_m and unit

A file to pretrain on
  path          text: the file, relative to the folder
  layout        "scene": a GeoTIFF, cut into tiles; or "stack": a .npz whose array "images" is (n, c, h, w)
  sensor        text: a name in gfmsum.catalog or in sensors
  bands         list of the sensor's band names, in the file's order
  unit          of the values: {", ".join(Unit)}
  scale, offset numbers that turn stored numbers into values
  gsd_m         number: pixel size, metres
  nodata        (optional) stored number that means no data: tiles that hold it are left out
  date          (optional) day of acquisition, like 2020-07-15
  id            (optional) text: the corpus. Stacks of one corpus give one piece of ground once only
  rows          (optional) object {{array: [values]}}: use only images whose entry in each of these arrays
                of the .npz is one of the values, like {{"split": ["train"]}}
  shape, dtype  (optional) what the file must be: list of whole numbers, and text like uint16

A task
  name          text: letters, digits, _ - and . only; no two tasks share one
  kind          "classification" or "regression"; "segmentation", with a label for each pixel; or
                "change_segmentation", which also has images of the same items before the change. Other
                kinds are held back from pretraining and not probed
  metric        {METRICS_HELP}
                (iou_positive is the IoU of the second of two classes)
  path          text: a .npz with one row per item
  sensor, bands, unit, scale, offset, shape, dtype, date: as above
  gsd_m, nodata (optional) as above; those of the same file in pretrain, else the sensor's grid and none
  images        (optional) text: array (n, c, h, w) in the .npz; "images" if left out
  scene, windows, patch_px: instead of images: path of a GeoTIFF; array (n, 2) in the .npz of upper left
                rows and columns in it; side of an item in pixels. Not for change_segmentation
  images_before for change_segmentation: text: another array like images in the .npz: the same items
                earlier, in the same bands, unit, scale and offset
  target        text: array (n,) of class numbers from 0, or of values; of a segmentation or
                change_segmentation (n, h, w) of class numbers, one for each pixel of the items
  target_raster (optional) for a segmentation with windows, instead of target: path of a GeoTIFF of one
                band with the class number of each pixel of the scene, on the same grid
  ignore        (optional) for the same two kinds: whole number in target that means no label. No number
                means it by itself, not even 255
  classes       for all but regression: the classes' names, a list or the name of an array in the .npz
  split         object: {{"by": "array", "key": ARRAY}}, an array (n,) of train, val and test; or
                {{"by": "kfold", "k": 5, "stratified": true}}: each fold is test once, the next one val
  keep          (optional) object {{array: {{"in": [values]}}, array: {{"min": number, "max": number}}}}:
                only items that pass. Validation and test rows that do not pass stay held back
  cluster       (optional) array (n,) that says which items are not independent; or "lonlat": blocks of
                8 items or 1 km on the ground
  pairs_with    (optional) text: the name of another sensor's task that shows the same places row by row,
                and says so too: probes can cross from one to the other, or see both
  floor         (optional) number: the metric of an answer that ignores the image; from the labels alone
                if left out
  ceiling       (optional) number: 1 if left out
  caveat        (optional) text that a verdict must say
  n             (optional) object {{"all", "train", "val", "test": whole number}}: items that there must be

Arrays that a .npz may also have, one entry per row
  lonlat        (n, 2) numbers: longitude and latitude of the images' centres, degrees. Without them nobody
                can tell whether pretraining overlaps a task's validation and test items
  dates         (n,) texts like 2020-07-15, or days as NumPy has them
  bands         (c,) texts: checked against the index if they are names of the sensor's bands

A field that is not listed is yours and is not read, unless it looks like a slip of one that is.

Example
{"".join(f"  {line}" for line in EXAMPLE.splitlines(keepends=True))}"""
"""Every field with its type and meaning, and a whole index."""


class Refused(ValueError):
    """What is wrong with a folder, in one line each; as a message, the first."""

    def __init__(self, *problems: str) -> None:
        # A line of its own each, whatever somebody's file puts into it.
        self.problems = tuple(" ".join(problem.split()) for problem in problems)
        super().__init__(self.problems[0])


def attempt[T](problems: list[str], make: Callable[[], T]) -> T | None:
    """What ``make`` gives; or None, and why it refuses goes to the problems, which are told once."""
    try:
        return make()
    except ValueError as error:
        told = error.problems if isinstance(error, Refused) else Refused(str(error)).problems
        problems += [problem for problem in told if problem not in problems]
        return None


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
    date: str | None
    shape: tuple[int, ...] | None  # as declared, if it is
    dtype: str | None
    rows: Mapping[str, list[Any]]  # array in the .npz -> values that pretraining may see

    def values(self, numbers: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Stored numbers as values; and where they mean no data or become no finite value."""
        with np.errstate(all="ignore"):  # what overflows is found out below
            values = numbers.astype(np.float32)
            values *= self.scale
            values += self.offset
            lacking = ~np.isfinite(values)
            if self.nodata is not None:
                floats = numbers.dtype.kind == "f"  # which hold the nodata number as they round it
                lacking |= numbers == (numbers.dtype.type(self.nodata) if floats else self.nodata)
        return values, lacking


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
    before: Images | None  # the same items earlier
    target: str  # array in the .npz, empty if the labels are in a raster
    raster: Images | None  # labels of the scene's pixels
    ignore: int | None  # number in a dense target that means no label
    classes: str | tuple[str, ...]  # an array in the .npz, or the names themselves
    keep: Mapping[str, Mapping[str, Any]]  # array -> rule in KEEP -> its value
    folds: int | None  # None: the array ``split`` says train, val or test
    stratified: bool
    split: str
    cluster: str | None
    pair: str | None  # the task of another sensor whose rows show the same places
    floor: float | None
    ceiling: float
    caveat: str
    counts: Mapping[str, int]

    @property
    def probed(self) -> bool:
        return self.kind in KINDS

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label."""
        return self.kind in DENSE


@dataclass(frozen=True, slots=True)
class Index:
    """All that the index names, and what tells this folder from another."""

    known: Mapping[str, Sensor]  # the catalog's sensors, and the folder's own
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
    instead: T  # of a wrong value, so that the fields after it can be checked too


def _number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and type(value) is not bool
        and abs(value) <= sys.float_info.max
    )


def _whole(value: Any) -> bool:
    return _number(value) and bool(int(value) == value)


def _scalar(value: Any) -> bool:
    return isinstance(value, str | bool) or _number(value)


def _every(test: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and all(map(test, values))


def _texts(values: Any) -> bool:
    return _every(_line, values) and len(values) > 0


def _line(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _day(value: Any) -> bool:
    try:
        return bool(str(date.fromisoformat(value)) == value)
    except (TypeError, ValueError):
        return False


def _between(least: int, most: int, why: str) -> Rule[int]:
    says = f"a whole number from {least} to {most}: {why}"
    return Rule(says, lambda v: _whole(v) and least <= v <= most, int, least)


TEXT = Rule("a text of one line", _line, str, "")
NAME = Rule(
    "a name of letters, digits, _, - and ., at most 80, a letter or digit first",
    lambda v: (
        isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", v) is not None
    ),
    str,
    "",
)
DAY = Rule("a day like 2020-07-15", _day, str, "")
FLAG = Rule("true or false", lambda v: isinstance(v, bool), bool, False)
NUMBER = Rule("a finite number", _number, float, 0.0)
WHOLE = Rule("a whole number", _whole, int, 0)
METRES = Rule(
    "a number from 0.001 to 1000000", lambda v: _number(v) and 1e-3 <= v <= 1e6, float, 1.0
)
FOLDS = _between(3, 1000, "one part each for test and validation, the rest to train")
WINDOW = _between(MULTIPLE_PX, 2**20, "pixels")
LIST: Rule[list[Any]] = Rule("a list", lambda v: isinstance(v, list), list, [])
SCALARS: Rule[list[Any]] = Rule(
    "a list of texts or numbers", lambda v: _every(_scalar, v), list, []
)
SHAPE: Rule[tuple[int, ...]] = Rule(
    "a list of whole numbers", lambda v: _every(_whole, v), lambda v: tuple(map(int, v)), ()
)
TEXTS: Rule[tuple[str, ...]] = Rule("a list of texts of one line, not empty", _texts, tuple, ())
NAMES: Rule[tuple[str, ...]] = Rule(
    "a list of names that differ, not empty",
    lambda v: _texts(v) and len(set(v)) == len(v),
    tuple,
    (),
)
OBJECT: Rule[dict[str, Any]] = Rule("an object {...}", lambda v: isinstance(v, dict), dict, {})
COUNTS: Rule[dict[str, int]] = Rule(
    "an object {part: whole number}",
    lambda v: isinstance(v, dict) and _every(_whole, [*v.values()]),
    dict,
    {},
)
ROWS: Rule[dict[str, list[Any]]] = Rule(
    "an object {array: [allowed values]}",
    lambda v: isinstance(v, dict) and all(_every(_scalar, values) for values in v.values()),
    dict,
    {},
)

KEEP: Mapping[str, tuple[Callable[..., NDArray[np.bool_]], Rule[Any]]] = MappingProxyType(
    {"in": (np.isin, SCALARS), "min": (np.greater_equal, NUMBER), "max": (np.less_equal, NUMBER)}
)
"""The rules of a task's ``keep`` filter: the test of an array against the value, and its rule."""

_short = reprlib.Repr(maxstring=60).repr


class _Entry:
    """One object of the index, read field by field.

    What is wrong goes to ``problems``, which it shares with the objects in it, and reading goes on:
    what is read is meaningless unless there are none.
    """

    def __init__(self, fields: Any, root: Path, where: str, problems: list[str]) -> None:
        self.root, self.where, self.problems = root, where, problems
        self.fields: dict[str, Any] = fields if isinstance(fields, dict) else {}
        self._asked = set[str]()
        if not isinstance(fields, dict):
            problems.append(
                f"{where} is {_short(fields)}, it must be an object {{...}}; rewrite it"
            )

    def fault(self, problem: str) -> None:
        self.problems.append(f"{self.where}: {problem}")

    def wrong(self, key: str, rule: str) -> None:
        value = _short(self.fields[key]) if key in self.fields else "missing"
        self.fault(f"{key} is {value}, it must be {rule}; correct it there")

    def given(self, key: str) -> bool:
        """Whether the field is there and not null."""
        self._asked.add(key)
        return self.fields.get(key) is not None

    def get[T](self, key: str, rule: Rule[T]) -> T:
        self._asked.add(key)
        value = self.fields.get(key)
        if rule.holds(value):
            return rule.make(value)
        self.wrong(key, rule.says)
        return rule.instead

    def maybe[T, D](self, key: str, rule: Rule[T], default: D) -> T | D:
        """The field, or the default where it is missing or null."""
        return self.get(key, rule) if self.given(key) else default

    def choice(self, key: str, choices: Iterable[str]) -> str:
        """One of the choices, or nothing."""
        value = self.get(key, TEXT)
        if value in choices:
            return value
        if value:
            self.fault(unknown(key, value, choices))
        return ""

    def path(self, key: str) -> str:
        """A file below the root that exists, spelt in one way whatever the index does."""
        path = PurePosixPath(name := self.get(key, TEXT))
        if not name:
            return ""
        if path.is_absolute() or ".." in path.parts:
            self.wrong(key, f"a relative path that stays inside {self.root}")
            return ""
        try:
            there = (self.root / path).is_file()
        except OSError:  # a name that no file can have
            there = False
        if not there:
            self.wrong(key, f"a file in {self.root}, and there is none")
        return str(path) if there else ""

    def child(self, key: str) -> _Entry | None:
        """An object in this one, if it is one."""
        fields = self.get(key, OBJECT)
        if not isinstance(self.fields.get(key), dict):
            return None
        return _Entry(fields, self.root, f"{self.where}: {key}", self.problems)

    def each[T](self, key: str, read: Callable[[_Entry], T]) -> dict[int, T]:
        """What sound objects of a list say, by their number in it."""
        found = {}
        for i, fields in enumerate(self.get(key, LIST)):
            problems = list[str]()
            entry = _Entry(fields, self.root, f"{self.where}: {key}[{i}]", problems)
            if not problems:  # or every field would be missing
                one = read(entry)
                entry.check_slips()
            if not problems:
                found[i] = one
            self.problems += problems
        return found

    def check_slips(self) -> None:
        """A field nobody asks for may be a slip of one that was asked for in vain, like "nodta"."""
        missing = [key for key in self._asked if key not in self.fields]
        for key in sorted(self.fields.keys() - self._asked):
            near = difflib.get_close_matches(key, sorted(missing), n=1, cutoff=0.8)
            if near:
                self.fault(f"field {key!r} is not known; did you mean {near[0]!r}? Rename it")


# The whole.


def read_index(folder: str) -> Index:
    """The index of a folder.

    Raises:
        Refused: a ValueError of one line with file, value, rule and remedy, for a folder without an
            index and for anything in it that is unknown, missing or leads outside the folder.
    """
    index, problems = survey(folder)
    if index is None or problems:
        first, *more = problems
        if more:
            first += f" ({len(more)} more: python -m gfmsum.data check {folder} lists them)"
        raise Refused(first, *more)
    return index


def survey(folder: str) -> tuple[Index | None, list[str]]:
    """What is sound in an index, None if nothing can be read; and everything that is wrong with it."""
    root, problems = Path(folder), list[str]()
    raw = attempt(problems, lambda: _content(folder))
    tree = None if raw is None else attempt(problems, lambda: _parse(root / "index.json", raw))
    if raw is None or tree is None:
        return None, problems
    top = _Entry(tree, root, str(root / "index.json"), problems)
    if problems:
        return None, problems
    if top.get("schema", Rule(f"{SCHEMA}", lambda v: v == SCHEMA and _whole(v), int, 0)) != SCHEMA:
        return None, problems

    known = dict(CATALOG) | _own_sensors(top)
    pretrain = top.each("pretrain", lambda entry: _pretraining(entry, known))
    tasks = top.each("tasks", lambda entry: _labels(entry, known, pretrain.values()))
    top.check_slips()
    first: dict[str, int] = {}
    for i, images in pretrain.items():
        if first.setdefault(images.path, i) != i:
            top.fault(
                f"pretrain[{i}] is the file of pretrain[{first[images.path]}], {images.path!r}; each "
                "file is read once, remove one"
            )
    names = [labels.name for labels in tasks.values()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        top.fault(f"two tasks are called {name!r}; names must differ, rename one")
    for i, labels in tasks.items():
        twins = [other for other in tasks.values() if other.name == labels.pair]
        if labels.pair is not None and not any(
            other.pair == labels.name and other.images.sensor != labels.images.sensor
            for other in twins
        ):
            top.fault(
                f"tasks[{i}] {labels.name!r}: pairs_with is {labels.pair!r}, which must be a task of another "
                "sensor that names this one; correct both, or leave it out"
            )
    used = {images.path for images in pretrain.values()}
    for labels in tasks.values():
        used |= {labels.path, labels.images.path, *([labels.raster.path] if labels.raster else ())}
    identity = {
        "source": "local",
        "index": hashlib.sha256(raw).hexdigest(),
        "files": {path: (root / path).stat().st_size for path in sorted(used)},
    }
    index = Index(known, (*pretrain.values(),), (*tasks.values(),), MappingProxyType(identity))
    return index, problems


def _content(folder: str) -> bytes:
    root = Path(folder)
    file = root / "index.json"
    try:
        if not folder or not root.is_dir():
            raise Refused(f"data.root={folder!r} must be a folder with an index.json; name one")
        if not file.is_file():
            raise Refused(f"{file} does not exist: every root needs one; add it or name another")
        return file.read_bytes()
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}; make it readable") from None


def _parse(file: Path, raw: bytes) -> Any:
    def differ(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:  # JSON would keep the last and say nothing
                raise Refused(f"an object has {name!r} twice; remove or rename one")
            found[name] = value
        return found

    try:
        return json.loads(raw, object_pairs_hook=differ)
    except Refused as twice:
        raise Refused(f"{file}: {twice}") from None
    except (ValueError, RecursionError) as broken:
        raise Refused(f"{file} is not JSON: {broken}; correct it there") from None


def _own_sensors(top: _Entry) -> dict[str, Sensor]:
    """The sensors that the folder brings."""
    own: dict[str, Sensor] = {}
    where = f"{top.where}: sensors"
    for name, described in top.maybe("sensors", OBJECT, {}).items():
        if described is None:
            continue
        for sensor in attempt(top.problems, lambda: sensors_from({name: described}, where)) or ():  # noqa: B023
            if CATALOG.get(sensor.name, sensor) != sensor:
                top.fault(
                    f"sensors: {sensor.name!r} is another sensor in gfmsum.catalog; rename yours, or "
                    "leave it out to use that one"
                )
            elif sensor.name in own:
                top.fault(f"sensors: {sensor.name!r} is there twice; remove or rename one")
            else:
                own[sensor.name] = sensor
    return own


def _pretraining(entry: _Entry, known: Mapping[str, Sensor]) -> Images:
    key = "images" if entry.choice("layout", ("scene", "stack")) == "stack" else ""
    path = entry.path("path")
    if path and path.endswith(".npz") != (key != ""):
        entry.wrong("layout", "'stack' for a .npz and 'scene' for a GeoTIFF")
    return _images(entry, known, path, key, entry.get("gsd_m", METRES), None)


def _images(
    entry: _Entry,
    known: Mapping[str, Sensor],
    path: str,
    key: str,
    gsd_m: float | None,
    twin: Images | None,
) -> Images:
    name, unit = entry.choice("sensor", known), entry.choice("unit", tuple(Unit))
    sensor = known[name] if name else next(iter(known.values()))
    names, gsd_m, bands = entry.get("bands", NAMES), gsd_m or sensor.gsd_m, sensor.bands
    if name and unit and names:  # each is sound, so that a mismatch is one
        try:
            bands = sensor.select(names, unit=Unit(unit), grid_m=gsd_m)
        except ValueError as mismatch:
            entry.fault(str(mismatch))
    return Images(
        path=path,
        key=key,
        corpus=entry.maybe("id", TEXT, path),
        sensor=sensor,
        bands=bands,
        gsd_m=gsd_m,
        scale=entry.get("scale", NUMBER),
        offset=entry.get("offset", NUMBER),
        nodata=entry.maybe("nodata", NUMBER, twin.nodata if twin else None),
        date=entry.maybe("date", DAY, twin.date if twin else None),
        shape=entry.maybe("shape", SHAPE, None),
        dtype=entry.maybe("dtype", TEXT, None),
        rows=entry.maybe("rows", ROWS, {}),
    )


def _labels(entry: _Entry, known: Mapping[str, Sensor], pretrain: Iterable[Images]) -> Labels:
    if name := entry.get("name", NAME):
        entry.where += f" {name!r}"
    kind, path = entry.get("kind", TEXT), entry.path("path")
    known_metrics = dict.fromkeys(metric for metrics in KINDS.values() for metric in metrics)
    metric = entry.choice("metric", known_metrics) if kind in KINDS else entry.get("metric", TEXT)
    if kind in KINDS and metric and metric not in KINDS[kind]:
        entry.wrong("metric", f"one for {kind}: {' or '.join(KINDS[kind])}")
    windowed, changed = entry.given("scene"), kind == "change_segmentation"
    scene = entry.path("scene") if windowed else ""
    mapped = kind == "segmentation" and windowed and entry.given("target_raster")
    raster = entry.path("target_raster") if mapped else ""
    for key, file, stack in (
        ("path", path, True),
        ("scene", scene, False),
        ("target_raster", raster, False),
    ):
        if file and file.endswith(".npz") != stack:
            entry.wrong(key, "a .npz" if stack else "a GeoTIFF")
    if changed and windowed:
        entry.wrong(
            "scene", "left out: change_segmentation reads images and images_before of the .npz"
        )
    # A task's pixel size, nodata and date, where it does not say, are those of the same file above.
    twin = next((images for images in pretrain if images.path == (scene or path)), None)
    images = _images(
        entry,
        known,
        scene or path,
        "" if windowed else entry.maybe("images", TEXT, "images"),
        entry.maybe("gsd_m", METRES, twin.gsd_m if twin else None),
        twin,
    )
    bands = images.bands[:1]  # a label raster has one
    before = entry.get("images_before", TEXT) if changed else ""
    if before and before == images.key:
        entry.wrong("images_before", f"another array than {before!r}, which is after the change")
    if entry.given("rows"):
        entry.wrong("rows", "left out: it is for pretraining, a task chooses its rows by keep")
    split = entry.child("split")
    by = split.choice("by", ("array", "kfold")) if split else ""
    keep = entry.maybe("keep", OBJECT, {})
    for array in keep:
        rules = _Entry(keep[array], entry.root, f"{entry.where}: keep {array!r}", entry.problems)
        for rule in rules.fields:
            if rule in KEEP:
                rules.get(rule, KEEP[rule][1])
            else:
                rules.fault(unknown("rule", rule, KEEP))
    classes: str | tuple[str, ...] = ()
    if kind in KINDS and kind != "regression":
        named = isinstance(entry.fields.get("classes"), list)
        classes = entry.get("classes", TEXTS) if named else entry.get("classes", TEXT)
    return Labels(
        name=name,
        kind=kind,
        metric=metric,
        path=path,
        images=images,
        window_px=entry.get("patch_px", WINDOW) if windowed else 0,
        windows=entry.get("windows", TEXT) if windowed else None,
        before=replace(images, key=before) if before else None,
        target="" if mapped else entry.get("target", TEXT),
        raster=replace(images, path=raster, bands=bands, shape=None, dtype=None)
        if raster
        else None,
        ignore=entry.maybe("ignore", WHOLE, None) if kind in DENSE else None,
        classes=classes,
        keep=keep,
        folds=split.get("k", FOLDS) if split and by == "kfold" else None,
        stratified=split is not None
        and split.maybe("stratified", FLAG, False)
        and kind == "classification",
        split=split.get("key", TEXT) if split and by == "array" else "",
        cluster=entry.maybe("cluster", TEXT, None),
        pair=entry.maybe("pairs_with", TEXT, None),
        floor=entry.maybe("floor", NUMBER, None),
        ceiling=entry.maybe("ceiling", NUMBER, 1.0),
        caveat=entry.maybe("caveat", TEXT, ""),
        counts=entry.maybe("n", COUNTS, {}),
    )
