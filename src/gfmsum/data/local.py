"""The ``local`` source: a folder of real pixels that an ``index.json`` describes, read in place.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.config import LocalConfig
from gfmsum.data.files import Files, Ground, Ints, Mask
from gfmsum.data.index import Images, read_index
from gfmsum.data.plan import stream
from gfmsum.data.rows import Rows, cut
from gfmsum.data.sample import Labelled, Samples
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Band, Sensor, unknown


@dataclass(frozen=True, slots=True)
class _Pool:
    """The tiles of one file that pretraining may see: (image, row, column) of their corners."""

    images: Images
    tiles: Ints  # (n, 3)
    ground: Ground | None

    def __getitem__(self, chosen: Mask | Ints) -> _Pool:
        return _Pool(self.images, self.tiles[chosen], self.ground and self.ground[chosen])


class Local:
    """Pretraining tiles and tasks of a folder with an ``index.json``.

    Building one reads the index only; files are decoded when pixels or labels are asked for.

    Args:
        config: its ``root`` is the folder.

    Raises:
        ValueError: one line with file, value, rule and remedy, for anything in the index that is
            unknown, missing or leads outside the folder; and, once pixels or labels are read, for a
            file that cannot be decoded or is not what the index says.
    """

    def __init__(self, config: LocalConfig) -> None:
        self._index = read_index(config.root)
        self._files = Files(Path(config.root))
        self._rows = [Rows(self._files, labels) for labels in self._index.tasks]
        self._pools: dict[tuple[str, int], list[_Pool]] = {}

    # What is there: no pixels needed.

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        """Sensors with pretraining files, in the order of SENSORS."""
        present = {images.sensor.name for images in self._index.pretrain}
        return {name: sensor for name, sensor in SENSORS.items() if name in present}

    @property
    def identity(self) -> Mapping[str, Any]:
        """SHA-256 of the index, and the size in bytes of every file it uses, by relative path."""
        return self._index.identity

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
        return [(rows.labels.name, rows.labels.kind) for rows in self._rows_of(sensor, False)]

    def _rows_of(self, sensor: str, probed: bool) -> list[Rows]:
        if sensor not in SENSORS:
            raise ValueError(unknown("sensor", sensor, SENSORS))
        return [
            rows
            for rows in self._rows
            if rows.labels.images.sensor.name == sensor and rows.labels.probed is probed
        ]

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
        ends = np.cumsum([len(pool.tiles) for pool in pools])
        order = stream(*seed, "local", sensor).permutation(ends[-1])
        chosen = np.sort(order[: len(slots)])

        groups: dict[tuple[tuple[Band, ...], float], list[_Pool]] = {}
        wanted = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
        for pool, end, mine in zip(pools, ends, wanted, strict=True):
            if mine.size:
                part = pool[mine - end]  # counted from the end of the file's tiles
                groups.setdefault((part.images.bands, part.images.gsd_m), []).append(part)
        return [self._cut(parts, size_px) for parts in groups.values()]

    def _cut(self, parts: Sequence[_Pool], size_px: int) -> Samples:
        """The tiles of files with the same bands and pixel size, as values."""
        first = parts[0].images
        shape = (sum(len(part.tiles) for part in parts), len(first.bands), size_px, size_px)
        pixels = np.empty(shape, np.float32)
        ids: list[str] = []
        for part in parts:
            block = pixels[len(ids) : len(ids) + len(part.tiles)]
            part.images.values(cut(self._files.numbers(part.images), part.tiles, block))
            ids += [f"{part.images.path}#{i},{row},{col}" for i, row, col in part.tiles.tolist()]
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
            for images in self._index.pretrain:
                if images.sensor.name == sensor:
                    pools.append(self._usable(images, size_px, pools))
            self._pools[key] = pools
        return self._pools[key]

    def _usable(self, images: Images, size: int, earlier: Sequence[_Pool]) -> _Pool:
        """The tiles of one file that pretraining may see, row-major, image by image."""
        numbers = self._files.numbers(images)
        rows, cols = numbers.shape[2] // size, numbers.shape[3] // size

        def tiled(pixels: NDArray[Any]) -> NDArray[Any]:
            whole = pixels[..., : rows * size, : cols * size]
            return whole.reshape(*pixels.shape[:-2], rows, size, cols, size)

        grid = tiled(numbers)
        low, high = grid.min(axis=(3, 5)), grid.max(axis=(3, 5))  # (n, c, rows, cols), NaN stays
        good = np.isfinite(low + high.astype(np.float64)).all(axis=1)
        good &= (low != high).any(axis=1)
        if images.nodata is not None:
            good &= ~(grid == images.nodata).any(axis=(1, 3, 5))
        good &= self._allowed(images, len(numbers))[:, None, None]
        for task in self._rows:
            if task.labels.images.path == images.path:
                good &= ~tiled(task.held_pixels(numbers)).any(axis=(2, 4))

        image, row, col = np.nonzero(good)
        if image.size:
            middle = (low.astype(np.float64) + high)[image, :, row, col] / 2
            mean = float(middle.mean()) * images.scale + images.offset
            self._files.check_unit(images, mean)
        tiles = np.stack([image, row * size, col * size], axis=1)
        pool = _Pool(images, tiles, self._files.ground(images, tiles, size))
        if pool.ground is None:
            return pool
        # Windows of this very scene are known to the pixel, which is better than by footprint.
        taken = [
            task.held_ground
            for task in self._rows
            if images.key or task.labels.images.path != images.path
        ]
        # Stacks of one corpus can be cuts of one scene; scenes are different acquisitions.
        if images.key:
            same = [other for other in earlier if other.images.corpus == images.corpus]
            taken += [other.ground for other in same if other.images.key]
        free = np.ones(len(tiles), bool)
        for ground in taken:
            if ground is not None:
                free &= ~pool.ground.meets(ground)
        return pool[free]

    def _allowed(self, images: Images, n: int) -> Mask:
        """Images of a stack whose rows the index allows: (n,)."""
        allowed = np.ones(n, bool)
        if images.key:
            for key, values in images.rows.items():
                allowed &= np.isin(self._files.column(images.path, key, n), values)
        if not allowed.any():
            problem = f"rows {dict(images.rows)} leave no image; correct the values in index.json"
            raise self._files.error(images.path, problem)
        return allowed

    # Tasks.

    def tasks(self, sensor: str) -> list[Task]:
        """The sensor's classification and regression tasks, without pixels.

        Where the index gives no ``floor``, it comes from the labels alone: the test accuracy of the
        training majority class, one over the number of classes for balanced accuracy, 0 for r2.
        """
        return [rows.task for rows in self._rows_of(sensor, True)]

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items at their own size, cropped at the centre to a multiple of MULTIPLE_PX.

        ``size_px`` does not matter: encoders take images of any size, and cutting them down would
        change the question. Clusters are what the index says: values of an array (an item without a
        value is its own), or blocks of 8 x 8 items: on the ground for ``lonlat`` (1 km at least),
        in pixels for windows of one scene.

        Raises:
            ValueError: if an item holds nodata or a value that is not finite. Nothing is filled in
                or dropped silently: the number of items is the index's.
        """
        probed = {rows.labels.name: rows for rows in self._rows if rows.labels.probed}
        if task.name not in probed:
            raise ValueError(unknown("task", task.name, probed))
        return probed[task.name].labelled(task)
