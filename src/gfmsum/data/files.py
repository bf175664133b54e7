"""The files that an index names: their numbers, held against the index, and the ground they show.

Files are decoded when asked for, and nothing is ever unpickled.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform as reproject

from gfmsum.data.index import Images
from gfmsum.sensors import Unit

CACHE_BYTES = 256 * 2**20  # of decoded numbers, in the files' own (small) types
EARTH_RADIUS_M = 6_371_007.2  # of the sphere of equal area

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
class Ground:
    """Square footprints of one size: centres (n, 2) as longitude and latitude in degrees."""

    lonlat: Floats
    side_m: float

    def __getitem__(self, chosen: Mask | Ints) -> Ground:
        return Ground(self.lonlat[chosen], self.side_m)

    def meets(self, other: Ground) -> Mask:
        """Which of these may overlap any of the other's: (n,). Circles around the squares meet."""
        reach = (self.side_m + other.side_m) / np.sqrt(2) / EARTH_RADIUS_M
        near = _on_sphere(self.lonlat) @ _on_sphere(other.lonlat).T > np.cos(reach)
        return np.asarray(near.any(axis=1))

    def blocks(self, side_m: float) -> Ints:
        """The cell (row, column) of each centre in a fixed grid of about square blocks: (n, 2)."""
        degree_m = np.deg2rad(EARTH_RADIUS_M)
        row = np.floor(self.lonlat[:, 1] * degree_m / side_m)
        # One width of cell per row of blocks, so that their sides meet.
        width = np.cos(np.deg2rad((row + 0.5) * side_m / degree_m))
        col = np.floor(self.lonlat[:, 0] * degree_m * width / side_m)
        return np.stack([row, col], axis=1).astype(np.int64)


def _on_sphere(lonlat: Floats) -> Floats:
    """Unit vectors (n, 3) of longitudes and latitudes in degrees."""
    lon, lat = np.deg2rad(lonlat).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


class Files:
    """The files of one folder. Up to CACHE_BYTES are kept, in the small types they are stored in.

    Raises:
        ValueError: from every method, in one line, for a file that cannot be decoded or is not what
            the index says.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cache: dict[tuple[str, str], NDArray[Any]] = {}  # the last used comes last

    def error(self, path: str, problem: str) -> ValueError:
        return ValueError(f"{self._root / path}: {problem}")

    def array(self, path: str, key: str) -> NDArray[Any]:
        """An array of a .npz, or with an empty key the bands (c, h, w) of a GeoTIFF."""
        name = path, key
        found = self._cache.pop(name, None)
        self._cache[name] = self._decode(path, key) if found is None else found
        while len(self._cache) > 1 and sum(a.nbytes for a in self._cache.values()) > CACHE_BYTES:
            del self._cache[next(iter(self._cache))]
        return self._cache[name]

    def column(self, path: str, key: str, n: int) -> NDArray[Any]:
        """An array with one entry per row."""
        column = self.array(path, key)
        if column.ndim < 1 or len(column) != n:
            raise self.error(
                path,
                f"array {key!r} has shape {column.shape}; its first side must be {n}, one per row, "
                "correct the file",
            )
        return column

    def numbers(self, images: Images) -> NDArray[Any]:
        """The images as stored, (n, c, h, w)."""
        path, numbers = images.path, self.array(images.path, images.key)
        what, sides = (f"array {images.key!r}", 4) if images.key else ("the raster", 3)
        if numbers.ndim != sides or numbers.dtype.kind not in "iuf":
            raise self.error(
                path,
                f"{what} is {numbers.dtype} {numbers.shape}, it must be {sides}-dimensional and of "
                "whole or floating-point numbers; correct the key in index.json",
            )
        names, own = tuple(band.name for band in images.bands), self._own_bands(images)
        for found, held, said in (
            (f"{what} has shape {numbers.shape}", numbers.shape, images.shape),
            (f"{what} has dtype {numbers.dtype}", numbers.dtype.name, images.dtype),
            (f"{what} has {numbers.shape[-3]} bands", numbers.shape[-3], len(names)),
            (f"the file calls its bands {', '.join(own or ())}", own or names, names),
        ):
            if said is not None and held != said:
                problem = f"{found}, the index says {said}; the two must agree, correct the index"
                raise self.error(path, problem)
        return numbers if images.key else numbers[None]

    def check_unit(self, images: Images, mean: float) -> None:
        """Refuse a file whose mean value contradicts its unit."""
        low, high = PLAUSIBLE[images.unit]
        if not low <= mean <= high:
            raise self.error(
                images.path,
                f"values are {mean:.4g} on average, {images.unit} must lie in {low}..{high}; "
                f"correct unit, scale={images.scale} or offset={images.offset} in index.json",
            )

    def ground(self, images: Images, corners: Ints, size_px: int) -> Ground | None:
        """Where cuts of ``size_px`` with corners (image, row, column) lie, if the file says so.

        A stack tells the centres of its images, so there the footprint is that of the whole image.
        """
        if images.key:
            if not self._has(images.path, "lonlat"):
                return None
            n, _, *sides = self.numbers(images).shape
            lonlat = self.column(images.path, "lonlat", n).astype(np.float64)
            if lonlat.shape != (n, 2) or not (np.abs(lonlat) <= (360, 90)).all():
                rule = "must hold a longitude and latitude per row; fix it"
                raise self.error(images.path, f"array 'lonlat' {rule}")
            return Ground(lonlat[corners[:, 0]], max(sides) * images.gsd_m)
        with self._open(images.path) as scene:
            grid, crs = scene.transform, scene.crs
        if crs is None or not len(corners):
            return None
        row, col = (corners[:, 1:] + size_px / 2).T
        x, y = grid.a * col + grid.b * row + grid.c, grid.d * col + grid.e * row + grid.f
        lonlat = np.stack(reproject(crs, "EPSG:4326", x, y)[:2], axis=1)
        return Ground(lonlat, size_px * images.gsd_m)

    def _own_bands(self, images: Images) -> tuple[str, ...] | None:
        """The producer's names, if the file has them: others ("red") say nothing about order."""
        if not images.key:
            with self._open(images.path) as scene:
                own = tuple(scene.descriptions)
        elif self._has(images.path, "bands"):
            own = tuple(self.array(images.path, "bands").tolist())
        else:
            return None
        return own if set(own) <= {band.name for band in images.sensor.bands} else None

    def _has(self, path: str, key: str) -> bool:
        with self._open(path) as arrays:
            return key in arrays.files

    def _decode(self, path: str, key: str) -> NDArray[Any]:
        with self._open(path) as file:
            if not key:
                return np.asarray(file.read())
            if key in file.files:
                return np.asarray(file[key])
            held = ", ".join(file.files)
        raise self.error(path, f"has no array {key!r}, only {held}; correct the key in index.json")

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        """A .npz or else a scene, closed in any case; says which file could not be read."""
        try:
            with warnings.catch_warnings():
                # A scene without a place is welcome: its tiles merely have no ground to compare.
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                if not path.endswith(".npz"):
                    with rasterio.open(self._root / path) as scene:
                        yield scene
                    return
                # NumPy leaves a file open that it fails to understand.
                with (
                    (self._root / path).open("rb") as file,
                    np.load(file, allow_pickle=False) as arrays,
                ):
                    yield arrays
        except UNREADABLE as broken:
            problem = f"cannot be read ({one_line(broken)}); it must be whole, fetch it again"
            raise self.error(path, problem) from None


def one_line(error: Exception) -> str:
    """What another library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
