"""The SSL4EO archives: numbered places, each with patches of a few dates, cut into tiles.

torchgeo draws the date of a patch anew at every read, with Python's global random state. Here it is a
pure function of the place, the same for all sensors of the archive: of the dates in their order, the
one that a hash of the place points at.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchgeo.datasets import SSL4EOL, SSL4EOS12

from gfmsum.data.files import Floats, Ground
from gfmsum.data.geo.ground import Held, to_lonlat
from gfmsum.data.geo.physics import (
    SSL4EO_OLI_SR,
    SSL4EO_S1,
    SSL4EO_S2C,
    Physics,
    found_by_torchgeo,
    opened,
)
from gfmsum.data.sample import Block, Kind, Rows, Samples

SIDE = SSL4EOS12.size  # of a patch, pixels; SSL4EO-L has the same
PLACE = re.compile(r"\d{7}")  # a place's folder

type Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Footprint:
    """The bounds of a patch in its coordinate reference system."""

    crs: Any
    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def of(cls, file: Any) -> Footprint | None:
        """Of an open raster, if it says where it lies."""
        return None if file.crs is None else cls(file.crs, *file.bounds)

    def lonlat(self, row: NDArray[Any], col: NDArray[Any]) -> Floats:
        """Points in pixels of a patch of SIDE as longitude and latitude: (n, 2)."""
        x = self.left + (self.right - self.left) * np.asarray(col) / SIDE
        y = self.top - (self.top - self.bottom) * np.asarray(row) / SIDE
        return to_lonlat(self.crs, x, y)


class Split:
    """One sensor's part of an archive.

    Args:
        physics: of its numbers.
        root: the folder of its places.
        files: of a date, in the order of the bands.
        date: the pattern whose group ``date`` begins a folder's date.
    """

    def __init__(self, physics: Physics, root: Path, files: tuple[str, ...], date: str) -> None:
        self.physics, self.root, self.files = physics, root, files
        self._date = re.compile(date)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of its places, in order."""
        return tuple(sorted(name for name in os.listdir(self.root) if PLACE.fullmatch(name)))

    def dates(self, place: str) -> dict[str, str]:
        """The folders of a place and their days, by day."""
        found: dict[str, str] = {}
        for folder in os.listdir(self.root / place):
            if match := self._date.match(folder):
                day = match["date"]
                found[folder] = f"{day[:4]}-{day[4:6]}-{day[6:8]}"
        if not found:
            raise ValueError(
                f"{self.root / place}: holds no dated patch; fetch it again or remove it"
            )
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))

    def footprint(self, place: str) -> Footprint | None:
        """Where a place lies, from the header of its first file."""
        with opened(self.root / place / next(iter(self.dates(place))) / self.files[0]) as file:
            return Footprint.of(file)

    def read(self, place: str, folder: str) -> tuple[Numbers, Footprint | None]:
        """The numbers (c, SIDE, SIDE) of a patch; coarser bands are replicated, as torchgeo does."""
        bands: list[Numbers] = []
        each = len(self.physics.bands) // len(self.files)
        for i, name in enumerate(self.files):
            path = self.root / place / folder / name
            with opened(path) as file:
                self.physics.check(file, path, self.physics.theirs[i * each : (i + 1) * each])
                bands.append(file.read(out_shape=(each, SIDE, SIDE)))
                footprint = Footprint.of(file)
        return np.concatenate(bands), footprint


def s12_splits(root: Path) -> list[Split]:
    """The splits of SSL4EO-S12 that torchgeo finds in a folder: Sentinel-1 and Level-1C."""
    return [
        _s12(root, split, physics)
        for split, physics in (("s1", SSL4EO_S1), ("s2c", SSL4EO_S2C))
        if next((root / split).glob("00000*/*/*.tif"), None)  # what torchgeo looks for
    ]


def _s12(root: Path, split: Any, physics: Physics) -> Split:
    data = found_by_torchgeo(
        lambda: SSL4EOS12(str(root), split, download=False, checksum=False), root
    )
    physics.expect(data.bands, f"SSL4EOS12(split={split!r})")
    files = tuple(f"{band}.tif" for band in data.bands)
    return Split(physics, root / split, files, data.metadata[split]["filename_regex"])


def l_splits(root: Path) -> list[Split]:
    """The split of SSL4EO-L that torchgeo finds in a folder: Landsat 8-9 surface reflectance."""
    if not next(root.glob("ssl4eo_l_oli_sr/00000*/*/all_bands.tif"), None):
        return []
    data = found_by_torchgeo(
        lambda: SSL4EOL(str(root), "oli_sr", download=False, checksum=False), root
    )
    SSL4EO_OLI_SR.expect(data.metadata["oli_sr"]["all_bands"], "SSL4EOL(split='oli_sr')")
    return [Split(SSL4EO_OLI_SR, Path(data.subdir), ("all_bands.tif",), r".*_(?P<date>\d{8})$")]


class Patches:
    """Splits of one archive over the places that all of them have.

    Args:
        corpus: names the archive.
        splits: of one sensor each, at least one.
    """

    def __init__(self, corpus: str, splits: Sequence[Split]) -> None:
        self.corpus = corpus
        self._splits = {split.physics.sensor.name: split for split in splits}
        self._left_out: dict[int, Rows] = {}  # by size

    @property
    def sensors(self) -> Mapping[str, Physics]:
        return {name: split.physics for name, split in self._splits.items()}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the places, in order."""
        first, *others = self._splits.values()
        shared = set(first.names).intersection(*(split.names for split in others))
        return tuple(name for name in first.names if name in shared)

    @property
    def caveats(self) -> tuple[str, ...]:
        counts = {name: len(split.names) for name, split in self._splits.items()}
        if len(set(counts.values()) | {len(self.names)}) == 1:
            return ()
        held = " and ".join(f"{count} of {name}" for name, count in counts.items())
        used = f"only those that all of them have are used, {len(self.names)}"
        return (f"The places of {self.corpus} are {held}: {used}.",)

    def places(self, sensor: str) -> str:
        """The same name for all its sensors, of this list of places."""
        return f"{self.corpus}/{hashlib.sha256(' '.join(self.names).encode()).hexdigest()[:16]}"

    def located(self, sensor: str) -> bool:
        """Whether patches say where they lie, to judge by the first."""
        split = next(iter(self._splits.values()))
        return bool(self.names) and split.footprint(self.names[0]) is not None

    def blocks(self, sensor: str, size_px: int, held: Held) -> tuple[Block, ...]:
        """All tiles of ``size_px``, place by place and row-major, that are not near held ground."""
        if not 0 < size_px <= SIDE:
            raise ValueError(
                f"{self.corpus}: images of {size_px} px cannot be cut from patches of {SIDE} px; choose "
                f"1 to {SIDE}"
            )
        if size_px not in self._left_out:  # once for all sensors: their rows must stay alike
            self._left_out[size_px] = self._near(size_px, held)
        split = self._splits[sensor]
        return (Tiles(self.corpus, split, self.names, size_px, self._left_out[size_px]),)

    def _near(self, size: int, held: Held) -> Rows:
        """The tiles near held ground, in order: needs the header of one file of each place."""
        if not held.grounds:
            return np.empty(0, np.int64)
        split = next(iter(self._splits.values()))
        prints = ((i, split.footprint(name)) for i, name in enumerate(self.names))
        known = [(i, one) for i, one in prints if one is not None]
        if not known:
            return np.empty(0, np.int64)
        middle, gsd_m = np.array([SIDE / 2]), split.physics.gsd_m
        centres = np.concatenate([one.lonlat(middle, middle) for _, one in known])
        row, col = corners(size)
        left_out = [np.empty(0, np.int64)]
        for j in np.flatnonzero(held.near(Ground(centres, SIDE * gsd_m))).tolist():
            i, one = known[j]
            tiles = Ground(one.lonlat(row + size / 2, col + size / 2), size * gsd_m)
            left_out.append(i * len(row) + np.flatnonzero(held.near(tiles)))
        return np.concatenate(left_out)


def corners(size: int) -> tuple[Rows, Rows]:
    """Rows and columns of the upper left pixels of a patch's tiles, row-major."""
    steps = np.arange(SIDE // size) * size
    row, col = np.meshgrid(steps, steps, indexing="ij")
    return row.ravel(), col.ravel()


class Tiles:
    """The tiles of one split: a block that decodes a patch for each row's place, once per read.

    A pixel is missing if it is not finite, or 0 in all of several optical bands (SSL4EO-L pads with
    it). A tile with missing pixels is taken from the next of its place's dates that has none; if all
    have some, from the one with the fewest, and each missing pixel takes the median of its band.
    """

    quick = False

    def __init__(
        self, corpus: str, split: Split, names: Sequence[str], size: int, left_out: Rows
    ) -> None:
        self._corpus, self._split, self._names, self._size = corpus, split, names, size
        self._row, self._col = corners(size)
        self._length = len(names) * len(self._row) - len(left_out)
        # Row r is the r-th of those not left out: r and as many more as are left out before it.
        self._gaps = left_out - np.arange(len(left_out))

    @property
    def kind(self) -> Kind:
        return self._split.physics.kind()

    def __len__(self) -> int:
        return self._length

    def read(self, rows: Rows) -> Samples:
        """The tiles at ``rows``; the files of each place are decoded once."""
        every = rows + np.searchsorted(self._gaps, rows, side="right")
        place, tile = np.divmod(every, len(self._row))
        physics, size, n = self._split.physics, self._size, len(rows)
        pixels = np.empty((n, len(physics.bands), size, size), np.float32)
        lonlat, days, ids = np.full((n, 2), np.nan), [""] * n, [""] * n
        order = np.argsort(place, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
            if not mine.size:
                continue
            name = self._names[place[mine[0]]]
            patches = _Dates(self._split, name, f"{self._corpus}/{name}")
            for i in mine.tolist():
                row, col = int(self._row[tile[i]]), int(self._col[tile[i]])
                numbers, folder, days[i], footprint = patches.tile(row, col, size)
                pixels[i] = physics.values(numbers)
                ids[i] = f"{self._corpus}/{physics.sensor.name}/{name}/{folder}#{row},{col}"
                if footprint is not None:
                    middle = np.array([row, col]) + size / 2
                    lonlat[i] = footprint.lonlat(middle[:1], middle[1:])[0]
        kind = self.kind
        return Samples(
            kind.sensor, kind.bands, kind.gsd_m, pixels, np.array(ids, np.str_),
            lonlat if np.isfinite(lonlat).all() else None, np.array(days, np.str_),
        )  # fmt: skip


class _Dates:
    """The patches of one place, in the order that its hash begins; decoded when needed."""

    def __init__(self, split: Split, place: str, key: str) -> None:
        self._split, self._place = split, place
        dates = split.dates(place)
        first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(dates)
        self._folders = [*dates][first:] + [*dates][:first]
        self._days = dates
        self._patches: dict[str, tuple[Numbers, Footprint | None]] = {}

    def tile(self, row: int, col: int, size: int) -> tuple[Numbers, str, str, Footprint | None]:
        """A tile's numbers (c, size, size), its date's folder and day, and where its patch lies."""
        found: list[tuple[int, str]] = []
        for folder in self._folders:
            missing = int(self._missing(self._cut(folder, row, col, size)).sum())
            found.append((missing, folder))
            if not missing:
                break
        missing, folder = min(found, key=lambda item: item[0])  # the first of several
        numbers = self._cut(folder, row, col, size)
        if missing == size * size:
            raise ValueError(
                f"{self._split.root / self._place}: the tile at row {row}, column {col} has no pixel on "
                "any date; fetch the place again or remove it from every sensor"
            )
        if missing:
            hole = self._missing(numbers)
            numbers = numbers.copy()
            numbers[:, hole] = np.median(numbers[:, ~hole], axis=1, keepdims=True)
        return numbers, folder, self._days[folder], self._patches[folder][1]

    def _cut(self, folder: str, row: int, col: int, size: int) -> Numbers:
        if folder not in self._patches:
            self._patches[folder] = self._split.read(self._place, folder)
        return self._patches[folder][0][:, row : row + size, col : col + size]

    def _missing(self, numbers: Numbers) -> NDArray[np.bool_]:
        missing = ~np.isfinite(numbers).all(axis=0)
        if self._split.physics.scale != 1:  # 0 dB is a value
            missing |= (numbers == 0).all(axis=0)
        return missing
