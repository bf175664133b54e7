"""The ``shards`` source: a packed store, read in place. ``python -m gfmsum.data pack`` makes one.

A store is a folder of plain arrays (schema 2)::

    manifest.json               what there is, with the SHA-256 of every file; written last
    pretraining/SENSOR/K/       block K of a sensor's pool: samples of one kind
      pixels.npy                numbers (n, c, h, w): value = number * scale + offset, see Numbers;
                                or the folder pixels/ of chunks, see gfmsum.data.chunks
      ids.npy  ids-text.npy     int64 (n,) where each id ends in the text, and the text as UTF-8 bytes
      lonlat.npy                float64 (n, 2) in degrees, NaN where unknown; if any is known
      dates.npy                 10 bytes each (n,), as 2020-07-15, empty where unknown; if any is known
    items/K/                    labelled images, in the same files; several tasks may share them
    tasks/K/                    target.npy int64 or float64 (n,), of a dense task uint8 (n, h, w);
                                cluster.npy and cluster-text.npy (n,) as ids; folds.npy int64: train,
                                val and test rows of each fold

A task of change names two of the items: the same places, earlier and later. Stores of schema 1, which
had no dense tasks, are read too.

The manifest describes every sensor and band in full, so a store needs no other description of them.
It is sealed with its own digest, which is also the store's identity. Opening a store holds every
file's size, type and shape against it; labels are held against their checksums when they are read,
pretraining pixels only by ``python -m gfmsum.data check``: reading them costs no more than copying.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.config import ShardsConfig
from gfmsum.data import chunks
from gfmsum.data.manifest import (
    AGAIN,
    JOURNAL,
    MANIFEST,
    Labels,
    Packed,
    Shape,
    Stack,
    read_manifest,
)
from gfmsum.data.sample import Block, Kind, Labelled, Pool, Rows, Samples
from gfmsum.data.units import contradiction
from gfmsum.records import Task, fingerprint
from gfmsum.sensors import Sensor, unknown

if TYPE_CHECKING:
    from gfmsum.data.files import Ground

AT_ONCE = 2**20  # rows whose places are compared at a time
HASHED_BYTES = 2**22  # at a time

type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]


# Files.


class Files:
    """The files of a store, in a folder or at an address that litdata can read from."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.remote = chunks.Remote(root) if chunks.is_remote(root) else None
        if self.remote is None and not (root and Path(root).is_dir()):
            raise ValueError(f"data.root={root!r} must be the folder of a packed store; name one")
        where = f"{root.rstrip('/')}/{MANIFEST}"
        if self.remote is not None:
            raw = self.remote.manifest()
        elif (Path(root) / MANIFEST).is_file():
            raw = (Path(root) / MANIFEST).read_bytes()
        elif (Path(root) / JOURNAL).is_file():
            raise ValueError(
                f"{root} holds a store that is not finished: {MANIFEST} is missing; give the same "
                "pack command again to go on, or remove the folder"
            )
        else:
            raise ValueError(
                f"{where} does not exist: every store has one; make one with python -m gfmsum.data pack"
            )
        self.manifest = read_manifest(raw, where)
        self.arrays = self.manifest.arrays
        if self.remote is not None:
            self.remote.settle(self.manifest.seal)
            if any(b.chunks is None for packed in self.manifest.sensors for b in packed.blocks):
                raise ValueError(
                    f"{root} is packed in one file per array; pack it with format=litdata"
                )

    def local(self, name: str) -> Path:
        """Where a file of the manifest lies on this machine; fetched there first, if need be."""
        if self.remote is not None:
            return self.remote.fetch(name, *self.manifest.files[name])
        return Path(self.root) / name

    def problems(self) -> Iterator[str]:
        """What is wrong with the files, by their sizes and heads alone."""
        for name in sorted(self.manifest.files):
            if problem := self.misfit(name):
                yield problem
        for packed in self.manifest.sensors:
            for stack in packed.blocks:
                if stack.chunks is None:
                    continue
                index, *names = stack.others
                sizes = [self.manifest.files[name][0] for name in names]
                with suppress(OSError):  # is said above
                    problem = chunks.index_problem(Path(self.root) / index, stack.chunks, sizes)
                    if problem:
                        yield problem

    def misfit(self, name: str) -> str | None:
        """What is wrong with a file, by its size and head."""
        path, array = Path(self.root) / name, self.arrays.get(name)
        size, _ = self.manifest.files[name]
        try:
            found = path.stat().st_size
            if found != size:
                return f"{path} has {found} bytes, the manifest says {size}; {AGAIN}"
            if array is not None:
                head = read_head(path)
                if head[:2] != array:
                    return f"{path} holds {head[0]} {head[1]}, the manifest says {array[0]} {array[1]}; {AGAIN}"
                if head[2] + math.prod(array[1]) * np.dtype(array[0]).itemsize != size:
                    return (
                        f"{path} has {size} bytes, which do not fit its shape {array[1]}; {AGAIN}"
                    )
        except FileNotFoundError:
            return f"{path} is missing; {AGAIN}"
        except (OSError, ValueError) as wrong:
            return f"{path} cannot be read ({wrong}); {AGAIN}"
        return None

    def altered(self, name: str, tell: Callable[[int], None] = lambda read: None) -> str | None:
        """What is wrong with a file's content, by its checksum."""
        path, (_, said) = self.local(name), self.manifest.files[name]
        try:
            found = sha256(path, tell)
        except OSError as wrong:
            return f"{path} cannot be read ({wrong.strerror}); {AGAIN}"
        if found != said:
            return f"{path} was altered: its SHA-256 is not the manifest's; {AGAIN}"
        return None


_HEAD = re.compile(
    rb"\{'descr': '([^']{2,8})', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n"
)


def read_head(path: Path) -> tuple[str, Shape, int]:
    """Type and shape of a .npy, and where its numbers begin.

    Raises:
        ValueError: if it is none of format 1.0 in C order.

    Source: NumPy Enhancement Proposal 1. Matched as text, so that nothing is evaluated.
    """
    with path.open("rb") as file:
        start = file.read(10)
        head = file.read(int.from_bytes(start[8:], "little"))
    found = _HEAD.fullmatch(head)
    if start[:8] != b"\x93NUMPY\x01\x00" or found is None:
        raise ValueError("it is no array as pack writes it")
    shape = tuple(int(side) for side in found[2].decode().split(",") if side.strip())
    return found[1].decode(), shape, 10 + len(head)


def sha256(path: Path, tell: Callable[[int], None] = lambda read: None) -> str:
    """The checksum of a file; ``tell`` hears how many bytes were read."""
    digest, read = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(HASHED_BYTES):
            digest.update(piece)
            read += len(piece)
            tell(read)
    return digest.hexdigest()


class Array:
    """A .npy of a store, mapped into memory when first read; pickled as its name."""

    def __init__(self, files: Files, name: str) -> None:
        self._files, self.name = files, name
        self.dtype, self.shape = files.arrays[name]

    @cached_property
    def mapped(self) -> NDArray[Any]:
        path = self._files.local(self.name)
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        try:
            dtype, shape, start = read_head(path)
            if (dtype, shape) != (self.dtype, self.shape):
                raise ValueError(f"it holds {dtype} {shape}")
            return np.memmap(path, self.dtype, "r", start, self.shape).view(np.ndarray)
        except (OSError, ValueError) as wrong:
            raise ValueError(f"{path} cannot be read ({wrong}); {AGAIN}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "mapped"}


class Texts:
    """Texts laid end to end, and where each ends."""

    def __init__(self, files: Files, name: str) -> None:
        self._ends, self._text = Array(files, f"{name}.npy"), Array(files, f"{name}-text.npy")

    def read(self, rows: Rows) -> NDArray[np.str_]:
        ends, text = self._ends.mapped, self._text.mapped
        stops, starts = ends[rows], np.where(rows > 0, ends[rows - 1], 0)
        try:
            if ((starts < 0) | (stops < starts) | (stops > len(text))).any():
                raise ValueError("texts end before they begin")
            spans = zip(starts.tolist(), stops.tolist(), strict=True)
            return np.array([text[a:b].tobytes().decode() for a, b in spans], np.str_)
        except ValueError as wrong:
            raise ValueError(
                f"{self._ends.name} is damaged ({wrong}); see python -m gfmsum.data check"
            ) from None


class Stored:
    """A block: the images of a stack, but for some rows.

    Args:
        files: of the store.
        stack: where they lie.
        dropped: int64 (m,) rows that are not to be seen, in rising order.
    """

    def __init__(self, files: Files, stack: Stack, dropped: Rows) -> None:
        self._stack = stack
        self._pixels: Array | chunks.Chunks
        if stack.chunks is None:
            self._pixels = Array(files, f"{stack.folder}/pixels.npy")
        else:
            sizes = tuple(files.manifest.files[name][0] for name in stack.others[1:])
            self._pixels = chunks.Chunks(
                files.remote or files.root, stack.folder, stack.chunks, sizes,
                (stack.numbers.dtype, stack.image),
            )  # fmt: skip
        self._ids = Texts(files, f"{stack.folder}/ids")
        self._lonlat = Array(files, f"{stack.folder}/lonlat.npy") if stack.lonlat else None
        self._dates = Array(files, f"{stack.folder}/dates.npy") if stack.dates else None
        # How many rows that are seen come before each that is not.
        self._gaps = dropped - np.arange(len(dropped))

    @property
    def kind(self) -> Kind:
        return self._stack.kind

    @property
    def quick(self) -> bool:
        return self._stack.chunks is None

    def __len__(self) -> int:
        return self._stack.rows - len(self._gaps)

    def read(self, rows: Rows) -> Samples:
        rows = rows + np.searchsorted(self._gaps, rows, side="right")
        pixels, kind = self._pixels, self.kind
        numbers = pixels.mapped[rows] if isinstance(pixels, Array) else pixels.read(rows)
        return Samples(
            kind.sensor,
            kind.bands,
            kind.gsd_m,
            self._stack.numbers.decode(numbers),
            self._ids.read(rows),
            None if self._lonlat is None else self._lonlat.mapped[rows],
            None if self._dates is None else _days(self._dates, rows),
        )


def _days(dates: Array, rows: Rows) -> NDArray[np.str_]:
    try:
        return dates.mapped[rows].astype(np.str_)
    except UnicodeDecodeError:
        raise ValueError(f"{dates.name} is damaged; see python -m gfmsum.data check") from None


# Leakage.


class Held:
    """Places of validation and test items, which pretraining must keep away from."""

    def __init__(self, lonlat: Floats) -> None:
        self.lonlat = lonlat[np.isfinite(lonlat).all(axis=1)]

    def near(self, lonlat: Floats | None, n: int, km: float) -> Mask:
        """Which of n places lie within ``km`` of any held one; none that is not known.

        Args:
            lonlat: (n, 2) degrees, NaN where unknown; None if all are.
            n: how many.
            km: along the great circle.
        """
        near = np.zeros(n, bool)
        if lonlat is None or not len(self.lonlat):
            return near
        known = np.isfinite(lonlat).all(axis=1)
        near[known] = _points(lonlat[known]).meets(self._ground, 1000 * km)
        return near

    @cached_property
    def _ground(self) -> Ground:
        return _points(self.lonlat)


def _points(lonlat: Floats) -> Ground:
    """Places (n, 2) without extent: a store knows the centres of its images only."""
    from gfmsum.data.files import Ground  # loads GDAL, which stores can else do without

    return Ground(lonlat, 0.0)


# The source.


class Shards:
    """Pretraining samples and tasks of a packed store.

    Args:
        config: its ``root`` is the store's folder, or for a store of chunks an address (``s3://``,
            ``gs://``, ``azure://``, ``r2://``). Where its ``leakage_km`` is more than the store was
            packed with, samples that lie nearer to validation or test items are not given.

    Raises:
        ValueError: one line with file, value, rule and remedy, for a store that is not finished, that
            is not what its manifest says, or that is damaged where it is read.
    """

    def __init__(self, config: ShardsConfig) -> None:
        self._files = Files(config.root)
        self._manifest = self._files.manifest
        if self._files.remote is None and (problem := next(self._files.problems(), None)):
            raise ValueError(problem)
        self._sensors = {packed.sensor.name: packed for packed in self._manifest.sensors}
        # None: the store was packed with as much or more.
        more = config.leakage_km > self._manifest.leakage_km
        self._leakage_km = config.leakage_km if more else None
        self._dropped: dict[str, Rows] = {}  # by the name of the list
        self._genuine: set[str] = set()  # files whose checksum was right

    # What is there: no pixels needed.

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        """As they were defined where the store was packed."""
        return {name: packed.sensor for name, packed in self._sensors.items()}

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of what was packed, and the digest of the manifest, which holds those of all files."""
        source = self._manifest.source
        more = {} if self._leakage_km is None else {"leakage_km": self._leakage_km}
        store = {"of": source.get("source"), "seal": self._manifest.seal, **more}
        return {**source, "source": "shards", "store": store}

    @property
    def caveats(self) -> tuple[str, ...]:
        """Those of what was packed, and what distance pretraining keeps from the items."""
        km = self._manifest.leakage_km if self._leakage_km is None else self._leakage_km
        if not km:
            return self._manifest.caveats
        counts = [
            f"{packed.left_out + len(self._left_out(packed.places))} of {packed.chosen} places of {name}"
            for name, packed in self._sensors.items()
        ]
        kept = (
            f"Pretraining keeps {km:g} km from the centres of validation and test items; left out for "
            f"lying nearer are {', '.join(counts)}."
        )
        unknown_places = [
            f"{packed.unplaced} of {packed.chosen} places of {name}"
            for name, packed in self._sensors.items()
            if packed.unplaced
        ] + [
            f"task {labels.task.name}" for labels in self._manifest.tasks if self._unplaced(labels)
        ]
        if not unknown_places:
            return *self._manifest.caveats, kept
        unchecked = (
            f"Leakage cannot be checked where places are not known: {', '.join(unknown_places)}."
        )
        return *self._manifest.caveats, kept, unchecked

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        """Names and kinds of the sensor's tasks that no probe can score."""
        return list(self._sensors[sensor].unsupported) if sensor in self._sensors else []

    def tasks(self, sensor: str) -> list[Task]:
        tasks = (labels.task for labels in self._manifest.tasks)
        return [task for task in tasks if task.sensor == sensor]

    # Pretraining.

    def places(self, sensor: str) -> str:
        name = self._packed(sensor).places
        return name if self._leakage_km is None else fingerprint([name, self._leakage_km])

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        packed = self._packed(sensor)
        if size_px != self._manifest.size_px:
            raise ValueError(
                f"{self._files.root} holds images of {self._manifest.size_px} px, and {size_px} px are "
                f"wanted; pack a store with size_px={size_px}"
            )
        dropped, blocks, start = self._left_out(packed.places), list[Block](), 0
        for stack in packed.blocks:
            first, last = np.searchsorted(dropped, [start, start + stack.rows])
            mine = dropped[first:last] - start
            start += stack.rows
            if len(mine) < stack.rows:
                blocks.append(Stored(self._files, stack, mine))
        if not blocks:
            raise ValueError(
                f"data.leakage_km={self._leakage_km} leaves no place of {sensor} in {self._files.root}; "
                "choose a smaller distance"
            )
        return Pool(tuple(blocks), self.places(sensor), packed.limit)

    def _packed(self, sensor: str) -> Packed:
        if sensor not in self._sensors:
            raise ValueError(unknown("sensor", sensor, self._sensors))
        return self._sensors[sensor]

    def _left_out(self, places: str) -> Rows:
        """Rows of a list that lie too near to items for any of the sensors that share it."""
        if self._leakage_km is None:
            return np.empty(0, np.int64)
        if places not in self._dropped:
            sharing = (packed for packed in self._sensors.values() if packed.places == places)
            rows = [row for packed in sharing for row in self._too_near(packed)]
            self._dropped[places] = np.unique(np.concatenate(rows))
        return self._dropped[places]

    def _too_near(self, packed: Packed) -> Iterator[Rows]:
        assert self._leakage_km is not None
        begin = 0
        for stack in packed.blocks:
            yield np.empty(0, np.int64)
            for start in range(0, stack.rows if stack.lonlat else 0, AT_ONCE):
                some = Array(self._files, f"{stack.folder}/lonlat.npy").mapped[
                    start : start + AT_ONCE
                ]
                near = self._held.near(some, len(some), self._leakage_km)
                yield np.flatnonzero(near) + begin + start
            begin += stack.rows

    @cached_property
    def _held(self) -> Held:
        places = [np.empty((0, 2))]
        for labels in self._manifest.tasks:
            if labels.items.lonlat:
                lonlat = self._array(f"{labels.items.folder}/lonlat.npy")
                places += [lonlat[rows] for _, *parts in self._folds(labels) for rows in parts]
        return Held(np.concatenate(places))

    def _unplaced(self, labels: Labels) -> bool:
        """Whether the places of some items are not known."""
        if not labels.items.lonlat:
            return True
        return not bool(np.isfinite(self._array(f"{labels.items.folder}/lonlat.npy")).all())

    # Tasks.

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items at the size they were packed in, whatever ``size_px`` is.

        Raises:
            ValueError: if any of their files is not the one that was packed.
        """
        known = {labels.task.name: labels for labels in self._manifest.tasks}
        if task.name not in known or known[task.name].task.sensor != task.sensor:
            raise ValueError(unknown("task", task.name, known))
        labels = known[task.name]
        cluster = [self._genuinely(f"{labels.folder}/cluster{end}.npy") for end in ("", "-text")]
        return Labelled(
            labels.task,
            self._images(labels.items),
            np.array(self._array(f"{labels.folder}/target.npy")),
            Texts(self._files, cluster[0].removesuffix(".npy")).read(np.arange(labels.items.rows)),
            self._folds(labels),
            None if labels.before is None else self._images(labels.before),
        )

    def _images(self, items: Stack) -> Samples:
        for name in items.arrays:
            self._genuinely(name)
        return Stored(self._files, items, np.empty(0, np.int64)).read(np.arange(items.rows))

    def _folds(self, labels: Labels) -> tuple[tuple[Rows, Rows, Rows], ...]:
        name = f"{labels.folder}/folds.npy"
        rows = np.array(self._array(name))
        if rows.size and not 0 <= rows.min() <= rows.max() < labels.items.rows:
            raise ValueError(f"{name} names items that do not exist; pack the store anew")
        parts = np.split(rows, np.cumsum([n for fold in labels.folds for n in fold])[:-1])
        return tuple(
            (train, val, test)
            for train, val, test in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        )

    def _array(self, name: str) -> NDArray[Any]:
        return Array(self._files, self._genuinely(name)).mapped

    def _genuinely(self, name: str) -> str:
        """The name of a file, which has the manifest's checksum."""
        if name not in self._genuine:
            if problem := self._files.altered(name):
                raise ValueError(problem)
            self._genuine.add(name)
        return name


def problems(root: str, tell: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Everything that is wrong with a store, one line each.

    Args:
        root: its folder.
        tell: is told how many bytes were read, of how many.
    """
    try:
        files = Files(root)
    except ValueError as wrong:
        return [str(wrong)]
    if files.remote is not None:
        return [f"{root} is far away: check the store where it lies in a folder"]
    manifest, found = files.manifest, list(files.problems())
    done, total = 0, sum(size for size, _ in manifest.files.values())

    def told(read: int) -> None:
        tell(done + read, total)

    for name, (size, _) in sorted(manifest.files.items()):
        if not files.misfit(name) and (problem := files.altered(name, told)):
            found.append(problem)
        done += size
    for packed in manifest.sensors:
        for stack in packed.blocks:
            if odd := contradiction(stack.kind.bands, list(stack.means)):
                found += [f"{Path(root) / stack.folder}: {odd}; pack it anew in its unit"]
    return found
