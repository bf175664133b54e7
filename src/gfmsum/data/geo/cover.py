"""Land cover under MODIS scenes: a task for a sensor that no published benchmark labels.

MODIS's own land cover (MCD12Q1) is made from MODIS, so that an encoder would be asked for what went into the
labels. Here they come from another sensor, PROBA-V: Copernicus Global Land Service, Land Cover 100 m,
collection 3 (Buchhorn et al. 2020), the discrete classification. The files lie beside the granules, global as
at zenodo.org/records/3939050 or cut into tiles of 20 degrees as its producer serves them::

    PROBAV_LC100_global_v3.0.1_2019-nrt_Discrete-Classification-map_EPSG-4326.tif
    E000N60_PROBAV_LC100_global_v3.0.1_2019-nrt_Discrete-Classification-map_EPSG-4326.tif
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from gfmsum.data.geo.labels import PARTS, Masks, Shot
from gfmsum.data.geo.physics import MOD09A1_GRID, opened
from gfmsum.data.geo.scenes import Modis, Scene, read
from gfmsum.data.sample import Rows

MAPS = "*PROBAV_LC100_global_v3*_Discrete-Classification-map_EPSG-4326.tif"
NOTHING = (0, 255)  # codes of ground that the map says nothing of
CLOSED, OPEN = range(111, 117), range(121, 127)  # forest by its leaves: here one class each
ENDS = 0.7, 0.8  # of the shares of training and validation blocks; the rest is test


@dataclass(frozen=True, slots=True)
class _Tile:
    """A piece of a granule's grid, and the dates on which there are granules of it."""

    scenes: tuple[Scene, ...]
    row: int
    col: int

    @property
    def name(self) -> str:
        return f"{self.scenes[0].ground}#{self.row},{self.col}"

    def digest(self, what: object) -> int:
        """64 bits that depend on the granule's ground and on ``what`` only."""
        text = f"{self.scenes[0].ground}/{what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


class ModisCover(Masks):
    """The class that covers most of each MODIS pixel, in tiles of SIDE pixels.

    There is no published split. Blocks of BLOCK by BLOCK tiles, 74 km wide, are dealt to the parts by a hash of
    their place, so that it is the same on every machine and for any set of granules. A tile is shown
    on the first date on which each of its pixels has a value, from the one on that its hash points at, and left
    out if there is none. Unlabelled are open sea (200) and what the map does not know (0).
    """

    name, physics = "lc100_modis", MOD09A1_GRID
    caveat = "lc100_modis has no published split: blocks of 74 km are dealt out by a hash."
    legend: ClassVar[Mapping[int, str]] = {
        20: "shrubs", 30: "herbaceous vegetation", 40: "cropland", 50: "built-up",
        60: "bare or sparse vegetation", 70: "snow and ice", 80: "permanent water",
        90: "herbaceous wetland", 100: "moss and lichen", 111: "closed forest", 121: "open forest",
    }  # fmt: skip
    SIDE, BLOCK = 32, 5

    @staticmethod
    def maps(root: Path) -> list[Path]:
        """The files with the labels."""
        return sorted(root.rglob(MAPS))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.physics.bands), self.SIDE, self.SIDE

    @cached_property
    def _maps(self) -> list[Path]:
        return self.maps(self._root)

    @cached_property
    def _days(self) -> dict[str, Scene | None]:
        """Of tiles by name, where it is known: on which date each is shown, if on any."""
        return {}

    @cached_property
    def _series(self) -> Modis:
        return Modis(self._root)

    @cached_property
    def _tiles(self) -> list[_Tile]:
        by_ground: dict[str, list[Scene]] = {}
        for scene in self._series.scenes():
            by_ground.setdefault(scene.ground, []).append(scene)
        tiles = []
        for scenes in by_ground.values():
            rows, cols = (range(0, side - self.SIDE + 1, self.SIDE) for side in scenes[0].shape)
            tiles += [_Tile(tuple(scenes), row, col) for row in rows for col in cols]
        return tiles

    def _open(self, part: Any) -> Any:
        block = self.SIDE * self.BLOCK
        shares = np.array(
            [t.digest(f"block {t.row // block},{t.col // block}") / 2**64 for t in self._tiles]
        )
        dealt = np.searchsorted(ENDS, shares, side="right")
        return [t for t, which in zip(self._tiles, dealt, strict=True) if PARTS[which] == part]

    def _list(self, data: Any) -> Sequence[str]:
        return [tile.name for tile in data]

    def _path(self, part: str, row: int) -> Path:
        tile: _Tile = self._data(part)[row]
        return tile.scenes[0].paths[0]

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64]:
        tiles = [self._data(part)[row] for row in rows.tolist()]
        middle = [(t.row + self.SIDE / 2, t.col + self.SIDE / 2) for t in tiles]
        out = np.empty((len(tiles), 2))
        by_ground: dict[str, list[int]] = {}
        for i, tile in enumerate(tiles):
            by_ground.setdefault(tile.scenes[0].ground, []).append(i)
        for here in by_ground.values():
            row, col = np.array([middle[i] for i in here]).T
            out[here] = tiles[here[0]].scenes[0].lonlat(row, col)
        return out

    def _cut(self, tile: _Tile) -> Window:
        return Window(tile.col, tile.row, self.SIDE, self.SIDE)

    def _shown(self, tile: _Tile) -> Scene | None:
        """The date that a tile is shown on."""
        if tile.name not in self._days:
            first = tile.digest(f"date {tile.row},{tile.col}") % len(tile.scenes)
            dates = tile.scenes[first:] + tile.scenes[:first]
            self._days[tile.name] = next(
                filter(lambda scene: self._whole(scene, tile), dates), None
            )
        return self._days[tile.name]

    def _whole(self, scene: Scene, tile: _Tile) -> bool:
        window = self._cut(tile)
        (numbers,) = read(self.physics, scene, [window])
        return not self._series.missing(scene, numbers, window).any()

    def _codes(self, part: str, row: int) -> NDArray[Any]:
        tile: _Tile = self._data(part)[row]
        codes = np.zeros((self.SIDE, self.SIDE), np.uint8)
        if self._shown(tile) is None:
            return codes
        scene = tile.scenes[0]
        grid = window_transform(self._cut(tile), scene.transform)
        for path in self._maps:
            with (
                opened(path) as file,
                WarpedVRT(
                    file, crs=scene.crs, transform=grid, width=self.SIDE, height=self.SIDE,
                    resampling=Resampling.mode,
                ) as seen,
            ):  # fmt: skip
                found = seen.read(1)
            codes = np.where(np.isin(codes, NOTHING), found, codes)
        for forest in (CLOSED, OPEN):
            codes[np.isin(codes, forest)] = forest[0]
        return codes

    def _shots(self, part: str, row: int) -> tuple[Shot, ...]:
        tile: _Tile = self._data(part)[row]
        scene = self._shown(tile)
        assert scene is not None  # or no pixel of it is labelled
        (numbers,) = read(self.physics, scene, [self._cut(tile)])
        return (Shot(numbers, scene.day),)
