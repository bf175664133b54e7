"""The files that an index names: their numbers, held against the index, and the ground they show.

Files are decoded when asked for, a scene that is large only where it is asked for, and nothing is ever
unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.warp import transform as reproject
from rasterio.windows import Window
from scipy.spatial import cKDTree

from gfmsum.data.index import Images, Refused
from gfmsum.data.units import contradiction

CACHE_BYTES = 256 * 2**20  # of decoded numbers, in the files' own (small) types
PIECE_BYTES = 32 * 2**20  # of numbers looked at in one go
MOST_EXPANDED = 10_000  # times its size that a file may decode to: a damaged head claims anything
EARTH_RADIUS_M = 6_371_007.2  # of the sphere of equal area
GSD_TOLERANCE = 1.5  # factor by which a declared pixel size may miss the one on the ground

HEADS = MappingProxyType(
    {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
)
"""What reads the head of an array, by the version of its format."""


@dataclass(frozen=True, slots=True)
class Holds:
    """What an array may hold: NumPy's kinds of types, and in words."""

    kinds: str
    says: str


WHOLES, NUMBERS = Holds("iu", "whole numbers"), Holds("iuf", "numbers")
TEXTS, DAYS = Holds("U", "texts"), Holds("UM", "days")
PLAIN = Holds("biufU", "numbers or texts")

DAY_ONE, LAST_DAY = np.datetime64("1000-01-01"), np.datetime64("9999-12-31")

type Ints = NDArray[np.int64]
type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]
type Days = NDArray[np.datetime64]
type Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Ground:
    """Square footprints of one size: centres (n, 2) as longitude and latitude in degrees."""

    lonlat: Floats
    side_m: float

    def __getitem__(self, chosen: Mask | Ints) -> Ground:
        return Ground(self.lonlat[chosen], self.side_m)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(_on_sphere(self.lonlat))

    def meets(self, other: Ground, margin_m: float = 0.0) -> Mask:
        """Which of these may overlap any of the other's, or come within a margin of it: (n,).

        Circles around the squares are compared, along the Earth's surface, so that no overlap is missed
        whatever way the squares are turned. Memory grows with the numbers of squares, not their product.
        """
        if not len(other.lonlat):
            return np.zeros(len(self.lonlat), bool)
        reach = ((self.side_m + other.side_m) / np.sqrt(2) + margin_m) / EARTH_RADIUS_M
        chord = 2 * np.sin(min(reach, np.pi) / 2)
        # A distance is infinite where nothing is within the bound.
        nearest, _ = other._tree.query(_on_sphere(self.lonlat), distance_upper_bound=chord)
        return np.asarray(np.isfinite(nearest))

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


@dataclass(frozen=True, slots=True)
class _Head:
    """What a file says of its images."""

    shape: tuple[int, ...]  # (n, c, h, w), or (c, h, w) of a scene
    dtype: np.dtype[Any]
    bands: tuple[str, ...]  # the names it calls them by, if any


class Files:
    """The files of one folder. Up to CACHE_BYTES are kept, in the small types they are stored in.

    Raises:
        ValueError: from every method, in one line, for a file that cannot be decoded or is not what
            the index says.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cache: dict[tuple[str, str], NDArray[Any]] = {}  # the last used comes last
        self._heads: dict[tuple[str, str], _Head] = {}
        self._names: dict[str, list[str]] = {}

    def error(self, path: str, problem: str) -> Refused:
        return Refused(f"{self._root / path}: {problem}")

    # Arrays of a .npz.

    def array(self, path: str, key: str) -> NDArray[Any]:
        """An array of a .npz, or with an empty key the bands (c, h, w) of a GeoTIFF."""
        name = path, key
        found = self._cache.pop(name, None)
        self._cache[name] = self._decode(path, key) if found is None else found
        while len(self._cache) > 1 and sum(a.nbytes for a in self._cache.values()) > CACHE_BYTES:
            del self._cache[next(iter(self._cache))]
        return self._cache[name]

    def count(self, path: str, key: str) -> int:
        """How many rows an array has."""
        array = self.array(path, key)
        if not array.ndim:
            raise self.error(path, f"array {key!r} is a single value; make it one per row")
        return len(array)

    def column(
        self, path: str, key: str, n: int, *sides: int, kinds: Holds = PLAIN
    ) -> NDArray[Any]:
        """An array (n, *sides) with one entry per row."""
        column = self.array(path, key)
        if column.shape != (n, *sides):
            raise self.error(
                path,
                f"array {key!r} has shape {column.shape}; one entry per row makes {(n, *sides)}, "
                "correct the file",
            )
        if column.dtype.kind not in kinds.kinds:
            raise self.error(
                path,
                f"array {key!r} is {column.dtype}; it must hold {kinds.says}, correct the file",
            )
        return column

    def has(self, path: str, key: str) -> bool:
        """Whether a .npz has an array."""
        if path not in self._names:
            with self._open(path) as arrays:
                self._names[path] = list(arrays.files)
        return key in self._names[path]

    # Pixels.

    def shape(self, images: Images) -> Shape:
        """(n, c, h, w) of images, once their file was held against the index."""
        head, path = self._head(images), images.path
        what = _what(images)
        if len(head.shape) != (4 if images.key else 3) or head.dtype.kind not in "iuf":
            raise self.error(
                path,
                f"{what} is {head.dtype} {head.shape}, it must be {4 if images.key else 3}-dimensional "
                "and of whole or floating-point numbers; correct the key in index.json",
            )
        names = tuple(band.name for band in images.bands)
        # Other names, like "red" for B04, say nothing about the order.
        own = head.bands if set(head.bands) <= {band.name for band in images.sensor.bands} else ()
        wrong = [
            f"{found}, the index says {said}; the two must agree, correct the index"
            for found, held, said in (
                (f"{what} has shape {head.shape}", head.shape, images.shape),
                (f"{what} has dtype {head.dtype}", head.dtype.name, images.dtype),
                (f"{what} has {head.shape[-3]} bands", head.shape[-3], len(names)),
                (f"the file calls its bands {', '.join(own)}", own or names, names),
            )
            if said is not None and held != said
        ]
        if not wrong and not prod(head.shape):
            wrong.append(f"{what} has shape {head.shape}, which holds no pixel; remove the entry")
        if wrong:
            raise Refused(*(str(self.error(path, problem)) for problem in wrong))
        n, c, h, w = head.shape if images.key else (1, *head.shape)
        return n, c, h, w

    def pieces(self, images: Images, size: int) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """All whole tiles of ``size`` px, in pieces of about PIECE_BYTES.

        Yields:
            The first image and the first row of pixels, and numbers (n, c, h, w) as stored, whose height
            and width are multiples of ``size``.
        """
        n, c, h, w = self.shape(images)
        height, width = h // size * size, w // size * size
        if not height or not width:
            return
        row_bytes = c * w * self._head(images).dtype.itemsize
        if images.key:
            step = max(1, PIECE_BYTES // (row_bytes * h))
            numbers = self._numbers(images)
            for image in range(0, n, step):
                yield image, 0, numbers[image : image + step, :, :height, :width]
            return
        step = max(1, PIECE_BYTES // (row_bytes * size)) * size
        for row in range(0, height, step):
            corners, rows = np.array([[0, row, 0]]), min(step, height - row)
            yield 0, row, self.cut(images, corners, rows, width)

    def cut(self, images: Images, corners: Ints, height: int, width: int) -> NDArray[Any]:
        """Cuts (m, c, height, width) as stored, at corners (image, row, column) of (m, 3)."""
        shape, dtype = self.shape(images), self._head(images).dtype
        out = np.empty((len(corners), shape[1], height, width), dtype)
        if images.key or prod(shape) * dtype.itemsize <= CACHE_BYTES:
            numbers = self._numbers(images)
            for tile, (i, row, col) in zip(out, corners.tolist(), strict=True):
                tile[:] = numbers[i, :, row : row + height, col : col + width]
            return out
        with self._open(images.path) as scene:
            for k in np.lexsort(corners.T[::-1]).tolist():  # neighbours share blocks of the file
                _, row, col = corners[k].tolist()
                scene.read(window=Window(col, row, width, height), out=out[k])
        return out

    def check_unit(self, images: Images, means: list[float]) -> None:
        """Refuse a file whose mean values, one per band, contradict its unit."""
        if wrong := contradiction(images.bands, means):
            raise self.error(
                images.path,
                f"{wrong}; correct unit, scale={images.scale:g} or offset={images.offset:g} of "
                f"{_what(images)} in index.json",
            )

    def check_grid(self, raster: Images, scene: Images) -> None:
        """Refuse a raster that is not of whole numbers on the very pixels of a scene."""
        self.shape(raster)
        dtype = self._head(raster).dtype
        if dtype.kind not in WHOLES.kinds:
            raise self.error(
                raster.path,
                f"the raster is {dtype}; labels must be {WHOLES.says}, correct the file",
            )
        (shape, crs, grid), (wanted, its_crs, its_grid) = map(self._grid, (raster, scene))
        if shape != wanted or crs != its_crs or not grid.almost_equals(its_grid):
            raise self.error(
                raster.path,
                f"its grid of {shape[0]}x{shape[1]} px is not that of {scene.path}, {wanted[0]}x{wanted[1]} "
                "px; size, CRS and transform must agree, warp it to the scene's",
            )

    # Where and when.

    def located(self, images: Images) -> bool:
        """Whether the file says where its images lie."""
        if images.key:
            return self.has(images.path, "lonlat")
        with self._open(images.path) as scene:
            return scene.crs is not None

    def ground(self, images: Images, corners: Ints, size_px: int) -> Ground | None:
        """Where cuts of ``size_px`` with corners (image, row, column) lie, if the file says so.

        A stack tells the centres of its images, so there the footprint is that of the whole image.
        """
        n, _, *sides = self.shape(images)
        if not self.located(images):
            return None
        if images.key:
            places = self.column(images.path, "lonlat", n, 2, kinds=NUMBERS).astype(np.float64)
            if not (np.abs(places) <= (360, 90)).all():
                rule = "must hold a longitude and latitude per row; fix it"
                raise self.error(images.path, f"array 'lonlat' {rule}")
            return Ground(places[corners[:, 0]], max(sides) * images.gsd_m)
        middle = np.array(sides) / 2 + [(0, 0), (0, 1), (1, 0)]
        asked = np.concatenate([middle, corners[:, 1:] + size_px / 2])
        lonlat = self._lonlat(images, *asked.T)
        at = _on_sphere(lonlat[:3]) * EARTH_RADIUS_M
        spacing = np.linalg.norm(at[1:] - at[0], axis=1)
        low, high = spacing.min() / GSD_TOLERANCE, spacing.max() * GSD_TOLERANCE
        if not low <= images.gsd_m <= high:
            raise self.error(
                images.path,
                f"pixels are {spacing[0]:.4g} x {spacing[1]:.4g} m on the ground, the index says gsd_m="
                f"{images.gsd_m:g}; the two must agree, correct the index",
            )
        return Ground(lonlat[3:], size_px * images.gsd_m)

    def days(self, images: Images, corners: Ints) -> Days | None:
        """When cuts with corners (image, row, column) were taken, if the file or the index says so."""
        if images.key and self.has(images.path, "dates"):
            n = self.shape(images)[0]
            said = self.column(images.path, "dates", n, kinds=DAYS)
            try:
                days = said.astype("datetime64[D]")
            except ValueError:
                days = np.full(n, "NaT", "datetime64[D]")
            # "2020-07" is a day for NumPy, and so is one in the year 200000.
            loose = said.dtype.kind == "U" and (np.datetime_as_string(days) != said).any()
            if loose or not ((days >= DAY_ONE) & (days <= LAST_DAY)).all():
                raise self.error(
                    images.path, "array 'dates' must hold a day like 2020-07-15 per row; fix it"
                )
            return np.asarray(days[corners[:, 0]])
        if images.date is None:
            return None
        return np.full(len(corners), np.datetime64(images.date), "datetime64[D]")

    # What is in the files.

    def _grid(self, images: Images) -> tuple[tuple[int, int], Any, Any]:
        """Height and width, CRS and transform of a scene."""
        with self._open(images.path) as scene:
            return scene.shape, scene.crs, scene.transform

    def _lonlat(self, images: Images, row: Floats, col: Floats) -> Floats:
        """Of pixels of a scene that has a place, (n, 2)."""
        with self._open(images.path) as scene:
            grid, crs = scene.transform, scene.crs
        x, y = grid.a * col + grid.b * row + grid.c, grid.d * col + grid.e * row + grid.f
        try:
            lonlat = np.stack(reproject(crs, "EPSG:4326", x, y)[:2], axis=1)
        except Exception:  # PROJ's errors have no other base
            lonlat = np.array([[np.inf]])
        if not np.isfinite(lonlat).all():
            raise self.error(
                images.path,
                "its CRS and transform give no longitude and latitude; correct them, or remove the CRS",
            )
        return lonlat

    def _numbers(self, images: Images) -> NDArray[Any]:
        """All images as stored, (n, c, h, w)."""
        numbers = self.array(images.path, images.key)
        return numbers if images.key else numbers[None]

    def _head(self, images: Images) -> _Head:
        name = images.path, images.key
        if name not in self._heads:
            head = self._stack(*name) if images.key else self._scene(images.path)
            size = (self._root / images.path).stat().st_size
            if (times := prod(head.shape) * head.dtype.itemsize / size) > MOST_EXPANDED:
                raise self.error(
                    images.path,
                    f"its pixels would be {times:.4g} times its size once decoded; it is damaged or "
                    "empty, fetch it again or remove the entry",
                )
            self._heads[name] = head
        return self._heads[name]

    def _stack(self, path: str, key: str) -> _Head:
        names: tuple[str, ...] = ()
        if self.has(path, "bands"):
            bands = self.array(path, "bands")
            names = tuple(bands.tolist()) if bands.ndim == 1 and bands.dtype.kind == "U" else ()
        if self.has(path, key):  # reading the head alone leaves the pixels packed
            with self._open(path) as arrays, arrays.zip.open(f"{key}.npy") as member:
                if read := HEADS.get(np.lib.format.read_magic(member)):
                    shape, _, dtype = read(member)
                    return _Head(shape, dtype, names)
        array = self.array(path, key)
        return _Head(array.shape, array.dtype, names)

    def _scene(self, path: str) -> _Head:
        with self._open(path) as scene:
            shape, dtype = (scene.count, *scene.shape), np.dtype(scene.dtypes[0])
            names = tuple(name or "" for name in scene.descriptions)
        return _Head(shape, dtype, names)

    def _decode(self, path: str, key: str) -> NDArray[Any]:
        if not key:
            with self._open(path) as scene:
                return np.asarray(scene.read())
        if self.has(path, key):
            with self._open(path) as arrays:
                return np.asarray(arrays[key])
        held = ", ".join(self._names[path])
        raise self.error(path, f"has no array {key!r}, only {held}; correct the key in index.json")

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        """A .npz or else a GeoTIFF, closed in any case; says which file could not be read."""
        try:
            with warnings.catch_warnings():
                # That a scene has no place, or a header is old, is no matter here.
                warnings.simplefilter("ignore")
                if not path.endswith(".npz"):
                    # No other driver: some follow references out of the folder.
                    with rasterio.open(self._root / path, driver="GTiff") as scene:
                        yield scene
                    return
                # NumPy leaves a file open that it fails to understand.
                with (
                    (self._root / path).open("rb") as file,
                    np.load(file, allow_pickle=False) as arrays,
                ):
                    yield arrays
        except Exception as broken:  # broken bytes make decoders raise nearly anything
            problem = f"cannot be read ({one_line(broken)}); it must be whole, fetch it again"
            raise self.error(path, problem) from None


def _what(images: Images) -> str:
    return f"array {images.key!r}" if images.key else "the raster"


def one_line(error: Exception) -> str:
    """What another library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
