"""What the manifest of a packed store says (schema 2), checked field by field.

It names every array with its type and shape, every sensor and band in full, and every file with its size
and checksum; where a file lies follows from what it holds, so that no path in a manifest leads anywhere.
The store itself is described in :mod:`gfmsum.data.shards`. No other file is opened here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.data import chunks
from gfmsum.data.sample import Kind
from gfmsum.records import Task
from gfmsum.sensors import Band, Sensor, Unit

SCHEMA = 2
READ = (1, SCHEMA)  # schema 1 is the same without dense tasks
MANIFEST, JOURNAL = "manifest.json", "packing.json"
AGAIN = "fetch the file again, or pack the store anew"

type Shape = tuple[int, ...]


# How values are kept.


@dataclass(frozen=True, slots=True)
class Numbers:
    """How float32 values are kept: value = number * scale + offset, in float32."""

    dtype: str
    scale: float = 1.0
    offset: float = 0.0

    def decode(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        values = numbers.astype(np.float32, copy=False)
        if self != FLOATS:
            values = values * np.float32(self.scale) + np.float32(self.offset)
        return values

    def encode(self, values: NDArray[np.float32]) -> NDArray[Any] | None:
        """The numbers that stand for exactly these values, if there are any."""
        if self == FLOATS:
            return values
        numbers = np.rint((values.astype(np.float64) - self.offset) / self.scale)
        limits = np.iinfo(self.dtype)
        if numbers.size and not limits.min <= numbers.min() <= numbers.max() <= limits.max:
            return None
        whole = numbers.astype(self.dtype)
        return whole if np.array_equal(self.decode(whole), values) else None


FLOATS = Numbers("<f4")
BYTES = Numbers("|u1")
PRODUCTS = (
    Numbers("<u2", 1e-4),  # Sentinel-2, MODIS
    Numbers("<i2", 1e-4),
    Numbers("<u2", 1e-4, -0.1),  # Sentinel-2 from processing baseline 04.00 on
    Numbers("<u2", 2.75e-5, -0.2),  # Landsat Collection 2
)
"""How agencies deliver reflectance: ESA, Sentinel-2 products specification; NASA, MOD09 user's guide;
USGS, Landsat Collection 2 Level-2 product guide."""


def candidates(bands: Sequence[Band]) -> tuple[Numbers, ...]:
    """Ways to keep values of these bands, the smallest first; the last keeps any."""
    units = {band.unit for band in bands}
    if units <= {Unit.BRIGHTNESS8, Unit.STRETCHED8}:
        return BYTES, FLOATS
    return (*PRODUCTS, FLOATS) if units == {Unit.REFLECTANCE} else (FLOATS,)


# What a manifest says.


@dataclass(frozen=True, slots=True)
class Stack:
    """Images of one kind in a folder of the store."""

    folder: str
    kind: Kind
    rows: int
    side: tuple[int, int]  # height and width, pixels
    numbers: Numbers
    text_bytes: int  # of all ids
    lonlat: bool
    dates: bool
    chunks: tuple[int, ...] | None  # rows of each chunk; None where one .npy holds all
    means: tuple[float, ...] = ()  # per band; empty for labelled images

    @property
    def image(self) -> Shape:
        return (len(self.kind.bands), *self.side)

    @property
    def arrays(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of each .npy."""
        found: dict[str, tuple[str, Shape]] = {
            "ids": ("<i8", (self.rows,)),
            "ids-text": ("|u1", (self.text_bytes,)),
        }
        if self.chunks is None:
            found["pixels"] = self.numbers.dtype, (self.rows, *self.image)
        if self.lonlat:
            found["lonlat"] = "<f8", (self.rows, 2)
        if self.dates:
            found["dates"] = "|S10", (self.rows,)
        return {f"{self.folder}/{name}.npy": one for name, one in found.items()}

    @property
    def others(self) -> tuple[str, ...]:
        """Files that are no .npy."""
        return () if self.chunks is None else chunks.names(self.folder, len(self.chunks))


@dataclass(frozen=True, slots=True)
class Packed:
    """One sensor's part of the store."""

    sensor: Sensor
    places: str
    limit: int | None
    chosen: int  # rows that were looked at
    left_out: int  # of them, for leakage
    unplaced: int  # of the others, those whose place is not known
    unsupported: tuple[tuple[str, str], ...]
    blocks: tuple[Stack, ...]

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Labels:
    """One task's part of the store."""

    folder: str
    task: Task
    items: Stack
    before: Stack | None  # the same items earlier, if the task asks for change
    target: str
    text_bytes: int  # of all clusters
    folds: tuple[tuple[int, int, int], ...]  # train, val and test items

    @property
    def arrays(self) -> dict[str, tuple[str, Shape]]:
        n = self.items.rows
        found: dict[str, tuple[str, Shape]] = {
            "target": (self.target, (n, *self.items.side) if self.task.dense else (n,)),
            "cluster": ("<i8", (n,)),
            "cluster-text": ("|u1", (self.text_bytes,)),
            "folds": ("<i8", (sum(map(sum, self.folds)),)),
        }
        return {f"{self.folder}/{name}.npy": one for name, one in found.items()}


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a store holds."""

    size_px: int
    source: Mapping[str, Any]  # identity of what was packed
    caveats: tuple[str, ...]
    leakage_km: float
    sensors: tuple[Packed, ...]
    items: tuple[Stack, ...]
    tasks: tuple[Labels, ...]
    files: Mapping[str, tuple[int, str]]  # bytes and SHA-256 of each
    settings: Mapping[str, Any]
    seal: str

    @property
    def arrays(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every .npy, by its path in the store."""
        stacks = [block for packed in self.sensors for block in packed.blocks]
        found: dict[str, tuple[str, Shape]] = {}
        parts: tuple[Stack | Labels, ...] = (*stacks, *self.items, *self.tasks)
        for part in parts:
            found |= part.arrays
        return found

    @property
    def names(self) -> set[str]:
        """Every file but the manifest."""
        stacks = (block for packed in self.sensors for block in packed.blocks)
        return {*self.arrays, *(name for stack in stacks for name in stack.others)}


def seal(fields: Mapping[str, Any]) -> str:
    """The digest of a manifest's fields."""
    rest = {name: value for name, value in fields.items() if name != "seal"}
    canonical = json.dumps(rest, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest in a file's bytes.

    Args:
        raw: the bytes.
        where: name of the file, for messages.

    Raises:
        ValueError: one line, for anything that is not as ``pack`` writes it.
    """
    try:
        fields = json.loads(raw)
        if not isinstance(fields, dict):
            raise TypeError(f"it is a {type(fields).__name__}")
        if fields.get("schema") not in READ:
            raise ValueError(f"schema is {fields.get('schema')!r:.20}, not {SCHEMA}")
        if fields.get("seal") != seal(fields):
            raise ValueError("its seal is broken, so it was altered or cut off")
        manifest = parse(fields)
        if odd := manifest.names.symmetric_difference(manifest.files):
            raise ValueError(f"files and contents disagree on {min(odd)}")
        return manifest
    except KeyError as missing:
        raise ValueError(f"{where} has no {missing}; {AGAIN}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as wrong:
        problem = " ".join(str(wrong).split())[:200]
        raise ValueError(f"{where} is no manifest of a store: {problem}; {AGAIN}") from None


def _take[T](fields: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """A field of just this type; numbers finite, whole ones from 0 on."""
    value = fields[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    if isinstance(value, int | float) and not (abs(value) < math.inf and value < 2**62):
        raise ValueError(f"{key}={value} is out of range")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{key}={value} must be at least 0")
    return value


def _each[T](fields: Mapping[str, Any], key: str, make: Callable[[Any], T]) -> tuple[T, ...]:
    return tuple(make(one) for one in _take(fields, key, list))


def _number(kind: type[Any]) -> Callable[[Any], Any]:
    return lambda value: _take({"a number": value}, "a number", kind)


def _text(value: Any) -> str:
    return _take({"a text": value}, "a text", str)


def parse(fields: Mapping[str, Any]) -> Manifest:
    """What the fields of a manifest mean; whether its files are those it needs is not looked at."""
    size_px = _take(fields, "size_px", int)
    sensors = _each(fields, "sensors", lambda one: _packed(one, size_px))
    known = {packed.sensor.name: packed for packed in sensors}
    if not sensors or len(known) != len(sensors):
        raise ValueError("sensors must be there once each, and one at least")
    lists: dict[str, set[int]] = {}
    for packed in sensors:
        lists.setdefault(packed.places, set()).add(packed.rows)
    if any(len(lengths) > 1 for lengths in lists.values()):
        raise ValueError("sensors that share their places differ in how many they have")
    items = tuple(
        _stack(one, f"items/{k}", _take(one, "sensor", str))
        for k, one in enumerate(_take(fields, "items", list))
    )
    files = {
        name: (_take(one, "bytes", int), _take(one, "sha256", str))
        for name, one in _take(fields, "files", dict).items()
    }
    manifest = Manifest(
        size_px=size_px,
        source=_take(fields, "source", dict),
        caveats=_each(fields, "caveats", _text),
        leakage_km=_take(fields, "leakage_km", float),
        sensors=sensors,
        items=items,
        tasks=tuple(
            _labels(one, f"tasks/{k}", items) for k, one in enumerate(_take(fields, "tasks", list))
        ),
        files=files,
        settings=_take(fields, "settings", dict),
        seal=_take(fields, "seal", str),
    )
    for labels in manifest.tasks:
        if labels.task.sensor not in known or labels.task.sensor != labels.items.kind.sensor:
            raise ValueError(f"task {labels.task.name} is of another sensor than its images")
    return manifest


def _bands(fields: Mapping[str, Any]) -> tuple[Band, ...]:
    def band(one: Mapping[str, Any]) -> Band:
        texts = {key: _take(one, key, str) for key in ("name", "polarisation") if one.get(key)}
        keys = ("gsd_m", "wavelength_um", "fwhm_um", "frequency_ghz")
        numbers = {key: _take(one, key, float) for key in keys if one.get(key) is not None}
        return Band(unit=Unit(one["unit"]), **texts, **numbers)  # type: ignore[arg-type]

    return _each(fields, "bands", band)


def _stack(fields: Mapping[str, Any], folder: str, sensor: str) -> Stack:
    numbers = Numbers(
        _take(fields, "dtype", str), _take(fields, "scale", float), _take(fields, "offset", float)
    )
    kept = {way.dtype for way in (FLOATS, BYTES, *PRODUCTS)}
    if numbers.dtype not in kept or (numbers.dtype == FLOATS.dtype and numbers != FLOATS):
        raise ValueError(f"numbers {numbers} are none that a store keeps")
    bands, gsd_m = _bands(fields), _take(fields, "gsd_m", float)
    Sensor(sensor, sensor, gsd_m, bands)  # refuses what no sensor can be, before it meets a path
    whole = _number(int)
    stack = Stack(
        folder=folder,
        kind=Kind(sensor, bands, gsd_m),
        rows=_take(fields, "rows", int),
        side=(_take(fields, "height", int), _take(fields, "width", int)),
        numbers=numbers,
        text_bytes=_take(fields, "text_bytes", int),
        lonlat=_take(fields, "lonlat", bool),
        dates=_take(fields, "dates", bool),
        chunks=None if fields.get("chunks") is None else _each(fields, "chunks", whole),
        means=_each(fields, "statistics", lambda one: _take(one, "mean", float))
        if "statistics" in fields
        else (),
    )
    if not stack.rows or not all(stack.side) or math.prod((stack.rows, *stack.image)) >= 2**62:
        raise ValueError(f"{folder} has {stack.rows} images of {stack.image}")
    if stack.chunks is not None and (sum(stack.chunks) != stack.rows or not all(stack.chunks)):
        raise ValueError(f"{folder} has {sum(stack.chunks)} images in chunks, not {stack.rows}")
    return stack


def _packed(fields: Mapping[str, Any], size_px: int) -> Packed:
    name = _take(fields, "name", str)
    sensor = Sensor(
        name, _take(fields, "title", str), _take(fields, "gsd_m", float), _bands(fields)
    )
    blocks = tuple(
        _stack(one, f"pretraining/{name}/{_take(one, 'block', int)}", name)
        for one in _take(fields, "blocks", list)
    )
    if not blocks or len({block.folder for block in blocks}) != len(blocks):
        raise ValueError(f"sensor {name} must have blocks, each once")
    for block in blocks:
        if block.side != (size_px, size_px) or len(block.means) != len(block.kind.bands):
            raise ValueError(
                f"{block.folder} has images of {block.side} and {len(block.means)} means, not of "
                f"size_px={size_px} and one for each band"
            )

    def pair(one: Any) -> tuple[str, str]:
        task, kind = one
        return _text(task), _text(kind)

    return Packed(
        sensor=sensor,
        places=_take(fields, "places", str),
        limit=None if fields["limit"] is None else _take(fields, "limit", int),
        chosen=_take(fields, "chosen", int),
        left_out=_take(fields, "left_out", int),
        unplaced=_take(fields, "unplaced", int),
        unsupported=_each(fields, "unsupported", pair),
        blocks=blocks,
    )


def _labels(fields: Mapping[str, Any], folder: str, items: Sequence[Stack]) -> Labels:
    said = _take(fields, "task", dict)
    name, sensor, kind, metric, caveat = (
        _take(said, key, str) for key in ("name", "sensor", "kind", "metric", "caveat")
    )
    task = Task(
        name, sensor, kind, metric,
        floor=_take(said, "floor", float),
        ceiling=_take(said, "ceiling", float),
        classes=_each(said, "classes", _text),
        caveat=caveat,
        clustered=_take(said, "clustered", bool),
    )  # fmt: skip
    whole = _number(int)

    def fold(one: Any) -> tuple[int, int, int]:
        train, val, test = one
        return whole(train), whole(val), whole(test)

    def images(key: str) -> Stack:
        which = _take(fields, key, int)
        if which >= len(items):
            raise ValueError(f"task {task.name} has {key} {which} of {len(items)}")
        return items[which]

    target, folds = _take(fields, "target", str), _each(fields, "folds", fold)
    if target not in (("|u1",) if task.dense else ("<i8", "<f8")) or not folds:
        raise ValueError(
            f"task {task.name} ({task.kind}) has target {target} and {len(folds)} folds"
        )
    after = images("items")
    before = None if fields.get("before") is None else images("before")
    if (before is not None) != (task.kind == "change_segmentation"):
        raise ValueError(
            f"task {task.name}: change_segmentation, and nothing else, has images before"
        )
    if before is not None and _grid(before) != _grid(after):
        raise ValueError(
            f"task {task.name}: images before and after differ in number, bands or size"
        )
    text_bytes = _take(fields, "text_bytes", int)
    task = replace(task, train=min(train for train, _, _ in folds))
    return Labels(folder, task, after, before, target, text_bytes, folds)


def _grid(stack: Stack) -> tuple[Kind, int, tuple[int, int]]:
    return stack.kind, stack.rows, stack.side
