"""Scenes on maps, MODIS tiles and NAIP quarter quads, cut into tiles along their own grids.

torchgeo's raster data sets mosaic and resample whatever lies under a query, across dates and zones. Here
they find and date the files, and every tile comes unresampled from one file's own pixels. Which tiles
hold a value in every pixel is known only from the pixels, so the first pool of a size decodes each
scene once, strip by strip.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform as reproject
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from torchgeo.datasets import NAIP, RasterDataset

from gfmsum.data.files import Ground, Mask
from gfmsum.data.geo.ground import Held, to_lonlat
from gfmsum.data.geo.physics import MOD09A1_TILES, NAIP_QUADS, Physics, found_by_torchgeo, opened
from gfmsum.data.sample import Block, Kind, Rows, Samples

FILL = -28672  # of MOD09A1
VALID = (-100, 16000)  # numbers of MOD09A1 outside are no measurement (MOD09 User's Guide)
NOT_PRODUCED = 2  # and above, in bits 0 and 1 of its quality: no product
STRIP_PX = 2**23  # of a scene, looked through at once

type Numbers = NDArray[Any]


class MOD09A1(RasterDataset):
    """Terra MODIS surface reflectance, 8-day composites at 500 m on the sinusoidal grid.

    One GeoTIFF per band, named as the granule and the band, whose date is the composite's first day::

        MOD09A1.A2020185.h10v07.061.2020194034517_sur_refl_b01.tif

    So does Microsoft's Planetary Computer name them (collection ``modis-09A1-061``), which serves them
    as they are. NASA's LP DAAC serves HDF4-EOS granules, for instance by the ``earthaccess`` package::

        earthaccess.download(earthaccess.search_data(short_name="MOD09A1", version="061", ...), ".")

    of which GDAL, built with HDF4, makes the files, one for each layer::

        gdal_translate 'HDF4_EOS:EOS_GRID:"GRANULE.hdf":MOD_Grid_500m_Surface_Reflectance:sur_refl_b01' \\
            GRANULE_sur_refl_b01.tif

    A quality layer ``GRANULE_sur_refl_qc_500m.tif`` beside them is heeded if it is there. Numbers are
    int16, reflectance times 10,000, -28672 where there is none.
    """

    filename_glob = "MOD09A1.A*_sur_refl_b01.tif"
    filename_regex = r"""
        ^MOD09A1
        \.A(?P<date>\d{7})
        \.(?P<tile>h\d{2}v\d{2})
        \.(?P<collection>\d{3})
        \.(?P<produced>\d{13})
        _(?P<band>sur_refl_b0[1-7])
        \.tif$
    """
    date_format = "%Y%j"
    separate_files = True
    all_bands = MOD09A1_TILES.theirs
    rgb_bands = ("sur_refl_b01", "sur_refl_b04", "sur_refl_b03")


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition on its own grid."""

    name: str  # unique within its data set
    ground: str  # what scenes of the same pixels at other dates share
    day: str  # as 2020-07-15
    paths: tuple[Path, ...]  # one for all bands, or one for each
    crs: Any
    transform: Any
    shape: tuple[int, int]

    @property
    def gsd_m(self) -> float:
        """Of its grid, to the centimetre: metres."""
        grid = self.transform
        return round(math.sqrt(-grid.a * grid.e) * float(self.crs.linear_units_factor[1]), 2)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top."""
        left, top = self.xy(0, 0)
        right, bottom = self.xy(*self.shape)
        return left, bottom, right, top

    def xy(self, row: Any, col: Any) -> tuple[Any, Any]:
        """Points in pixels as coordinates: its grid is north up."""
        grid = self.transform
        return grid.c + grid.a * col, grid.f + grid.e * row

    def lonlat(self, row: NDArray[Any], col: NDArray[Any]) -> NDArray[np.float64]:
        """Points in pixels as longitude and latitude: (n, 2)."""
        return to_lonlat(self.crs, *self.xy(row, col))


class Series(Protocol):
    """A data set of scenes."""

    physics: Physics

    def scenes(self) -> list[Scene]:
        """All that are used, in a fixed order; reads headers."""

    def missing(self, scene: Scene, numbers: Numbers, window: Window) -> Mask:
        """Pixels (h, w) of a window's numbers (c, h, w) that hold no value."""


class Modis:
    """MOD09A1: of a granule that was produced several times, the last."""

    physics = MOD09A1_TILES

    def __init__(self, root: Path) -> None:
        self._root = root

    def scenes(self) -> list[Scene]:
        data = found_by_torchgeo(lambda: MOD09A1(str(self._root)), self._root)
        last: dict[tuple[str, str], Scene] = {}
        for path, match, day in _dated(data):
            granule = path.name.removesuffix("_sur_refl_b01.tif")
            paths = [path.with_name(f"{granule}_{band}.tif") for band in data.all_bands]
            for each in paths:
                if not each.is_file():
                    raise ValueError(
                        f"{each}: is missing; a granule needs all seven bands, fetch it or remove the rest"
                    )
            last[match["tile"], day] = _scene(granule, match["tile"], day, paths)
        return list(last.values())

    def missing(self, scene: Scene, numbers: Numbers, window: Window) -> Mask:
        low, high = VALID
        missing: Mask = ((numbers < low) | (numbers > high) | (numbers == FILL)).any(axis=0)
        quality = scene.paths[0].with_name(f"{scene.name}_sur_refl_qc_500m.tif")
        if quality.is_file():
            with opened(quality) as file:
                missing |= (file.read(1, window=window) & 3) >= NOT_PRODUCED
        return missing


class Naip:
    """NAIP: of a quarter quad that was flown several times, the last."""

    physics = NAIP_QUADS

    def __init__(self, root: Path) -> None:
        self._root = root

    def scenes(self) -> list[Scene]:
        data = found_by_torchgeo(lambda: NAIP(str(self._root)), self._root)
        self.physics.expect(data.all_bands, "NAIP")
        last: dict[str, Scene] = {}
        for path, match, day in _dated(data):
            quad = f"{match['quadrangle']}_{match['quarter_quad']}"
            if quad not in last or (last[quad].day, last[quad].name) < (day, path.name):
                last[quad] = _scene(path.name, quad, day, [path])
        return [last[quad] for quad in sorted(last)]

    def missing(self, scene: Scene, numbers: Numbers, window: Window) -> Mask:
        missing: Mask = (numbers == 0).all(axis=0)  # beyond the edge of the flight
        return missing


def _dated(data: RasterDataset) -> list[tuple[Path, re.Match[str], str]]:
    """The files that a data set found, what their names say, and their first days; by name."""
    found = []
    for path, times in zip(map(Path, data.index.filepath), data.index.index, strict=True):
        match = re.match(data.filename_regex, path.name, re.VERBOSE)
        assert match is not None  # or it would not have been found
        found.append((path, match, times.left.date().isoformat()))
    return sorted(found, key=lambda item: (item[0].name, str(item[0])))


def _scene(name: str, ground: str, day: str, paths: Sequence[Path]) -> Scene:
    with opened(paths[0]) as file:
        scene = Scene(name, ground, day, tuple(paths), file.crs, file.transform, file.shape)
    grid = scene.transform
    square = math.isclose(grid.a, -grid.e, rel_tol=0.01) and not grid.b and not grid.d
    if scene.crs is None or not scene.crs.is_projected or not square:
        raise ValueError(
            f"{paths[0]}: its grid must be projected, north up and of square pixels; warp it, or fetch "
            "the published file"
        )
    return scene


@dataclass(frozen=True, slots=True)
class _Part:
    """The tiles of one scene that pretraining may see, by their upper left pixels."""

    scene: Scene
    row: Rows
    col: Rows


class Maps:
    """The scenes of one sensor, as tiles: one for each place.

    A place is a tile's position on a grid. It is left out if no date has a value in each of its pixels,
    if it is near held ground, or if it lies on an earlier scene of another grid, which has its ground
    already. Of several dates, it is shown on the first without a gap, from the one on that its hash
    points at.
    """

    def __init__(self, corpus: str, series: Series) -> None:
        self.corpus, self._series = corpus, series
        self._parts: dict[int, list[_Part]] = {}

    @property
    def sensors(self) -> Mapping[str, Physics]:
        return {self._series.physics.sensor.name: self._series.physics}

    @property
    def caveats(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def _scenes(self) -> list[Scene]:
        return self._series.scenes()

    def places(self, sensor: str) -> str:
        names = " ".join(scene.name for scene in self._scenes)
        return f"{self.corpus}/{hashlib.sha256(names.encode()).hexdigest()[:16]}"

    def located(self, sensor: str) -> bool:
        """Always: it is what scenes on maps are."""
        return True

    def blocks(self, sensor: str, size_px: int, held: Held) -> tuple[Block, ...]:
        """One block for each pixel size, the finest first."""
        if size_px < 1:
            raise ValueError(
                f"{self.corpus}: images of {size_px} px cannot be cut; choose at least 1"
            )
        if size_px not in self._parts:
            self._parts[size_px] = self._usable(size_px, held)
        by_grid: dict[float, list[_Part]] = {}
        for part in self._parts[size_px]:
            by_grid.setdefault(part.scene.gsd_m, []).append(part)
        return tuple(
            Cuts(self.corpus, self._series.physics, by_grid[gsd], size_px)
            for gsd in sorted(by_grid)
        )

    def _usable(self, size: int, held: Held) -> list[_Part]:
        grids: dict[str, list[Scene]] = {}
        for scene in self._scenes:
            grids.setdefault(scene.ground, []).append(scene)
        parts: list[_Part] = []
        earlier: list[Scene] = []
        for ground, dates in grids.items():
            first = dates[0]
            for other in dates:
                if (other.transform, other.shape) != (first.transform, first.shape):
                    raise ValueError(
                        f"{other.paths[0]}: its grid differs from that of {first.paths[0].name}; "
                        "scenes of one place must share theirs, remove the one that was warped"
                    )
            whole = np.stack([self._whole(scene, size) for scene in dates])  # (dates, rows, cols)
            row, col = (index * size for index in np.nonzero(whole.any(axis=0)))
            middle = first.lonlat(row + size / 2, col + size / 2)
            free = ~held.near(Ground(middle, size * first.gsd_m))
            for other in _touching(first, earlier):
                free &= ~_overlaps(first, row, col, size, other)
            earlier.append(first)
            row, col = row[free], col[free]
            date = _dates(f"{self.corpus}/{ground}", row, col, whole[:, row // size, col // size])
            parts += [
                _Part(scene, row[date == d], col[date == d])
                for d, scene in enumerate(dates)
                if (date == d).any()
            ]
        return parts

    def _whole(self, scene: Scene, size: int) -> Mask:
        """Which tiles have a value in every pixel: (rows, cols)."""
        rows, cols = scene.shape[0] // size, scene.shape[1] // size
        whole = np.zeros((rows, cols), np.bool_)
        strip = max(1, STRIP_PX // max(1, cols * size * size))  # rows of tiles at once
        for i in range(0, rows, strip):
            n = min(strip, rows - i)
            window = Window(0, i * size, cols * size, n * size)
            (numbers,) = read(self._series.physics, scene, [window])
            gaps = self._series.missing(scene, numbers, window)
            whole[i : i + n] = ~gaps.reshape(n, size, cols, size).any(axis=(1, 3))
        return whole


def _dates(key: str, row: Rows, col: Rows, whole: Mask) -> Rows:
    """The date of each tile: the first whole one, from the one that its hash points at; whole (dates, n)."""
    out = np.empty(len(row), np.int64)
    for i, (r, c) in enumerate(zip(row.tolist(), col.tolist(), strict=True)):
        digest = hashlib.sha256(f"{key}#{r},{c}".encode()).digest()
        start = int.from_bytes(digest[:8]) % len(whole)
        out[i] = (start + int(np.roll(whole[:, i], -start).argmax())) % len(whole)
    return out


def _touching(scene: Scene, others: Sequence[Scene]) -> list[Scene]:
    """The others whose bounds meet the scene's."""
    found: list[Scene] = []
    for crs in {other.crs.to_wkt(): other.crs for other in others}.values():
        box = scene.bounds if crs == scene.crs else transform_bounds(scene.crs, crs, *scene.bounds)
        here = [other for other in others if other.crs == crs]
        left, bottom, right, top = np.array([other.bounds for other in here]).T
        meets = (left < box[2]) & (right > box[0]) & (bottom < box[3]) & (top > box[1])
        found += [here[i] for i in np.flatnonzero(meets)]
    return found


def _overlaps(scene: Scene, row: Rows, col: Rows, size: int, other: Scene) -> Mask:
    """Which tiles of a scene lie on another scene, by more than a hundredth of its pixels: (n,)."""
    steps = [(0, 0), (0, size), (size, 0), (size, size)]
    corners = [scene.xy(row + r, col + c) for r, c in steps]
    if scene.crs != other.crs:
        corners = [reproject(scene.crs, other.crs, *corner)[:2] for corner in corners]
    x, y = (np.array(each) for each in zip(*corners, strict=True))  # (4, n)
    left, bottom, right, top = other.bounds
    slack = abs(other.transform.a) / 100  # grids that only touch differ by rounding
    beside = (x.min(axis=0) > right - slack) | (x.max(axis=0) < left + slack)
    beside |= (y.min(axis=0) > top - slack) | (y.max(axis=0) < bottom + slack)
    return np.asarray(~beside)


def read(physics: Physics, scene: Scene, windows: Sequence[Window]) -> Numbers:
    """The numbers (n, c, h, w) of windows of one size; each file is opened once."""
    each = len(physics.bands) // len(scene.paths)
    bands = []
    for i, path in enumerate(scene.paths):
        with opened(path) as file:
            physics.check(file, path, physics.theirs[i * each : (i + 1) * each])
            if file.shape != scene.shape:
                raise ValueError(
                    f"{path}: is {file.shape}, {scene.paths[0].name} is {scene.shape}; the bands of a "
                    "scene must share a grid, fetch them again"
                )
            bands.append(np.stack([file.read(window=window) for window in windows]))
    return np.concatenate(bands, axis=1)


class Cuts:
    """Tiles of scenes with one pixel size: a block that decodes the window of each row."""

    quick = False

    def __init__(self, corpus: str, physics: Physics, parts: Sequence[_Part], size: int) -> None:
        self._corpus, self._physics, self._parts, self._size = corpus, physics, parts, size
        self._ends = np.cumsum([len(part.row) for part in parts])

    @property
    def kind(self) -> Kind:
        return self._physics.kind(self._parts[0].scene.gsd_m)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: Rows) -> Samples:
        """The tiles at ``rows``."""
        kind, size, n = self.kind, self._size, len(rows)
        pixels = np.empty((n, len(kind.bands), size, size), np.float32)
        lonlat, days, ids = np.empty((n, 2)), [""] * n, [""] * n
        which = np.searchsorted(self._ends, rows, side="right")
        for p in np.unique(which).tolist():
            part, mine = self._parts[p], np.flatnonzero(which == p)
            inside = rows[mine] - self._ends[p]  # counted from the end
            row, col = part.row[inside], part.col[inside]
            corners = list(zip(row.tolist(), col.tolist(), strict=True))
            windows = [Window(c, r, size, size) for r, c in corners]
            pixels[mine] = self._physics.values(read(self._physics, part.scene, windows))
            lonlat[mine] = part.scene.lonlat(row + size / 2, col + size / 2)
            for i, (r, c) in zip(mine.tolist(), corners, strict=True):
                ids[i], days[i] = f"{self._corpus}/{part.scene.name}#{r},{c}", part.scene.day
        return Samples(
            kind.sensor, kind.bands, kind.gsd_m, pixels, np.array(ids, np.str_), lonlat,
            np.array(days, np.str_),
        )  # fmt: skip
