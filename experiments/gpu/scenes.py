"""Synthetic scenes of several sensors, rendered by many processes into memory that all of them share.

A packed store on disk (``python -m gfmsum.data pack``) is written by one process, and 120,000 places of two
sensors are 33 GB: one core would render for a quarter of an hour, and a disk might need minutes. Here the
same blocks of the same source are read in parallel, and kept as whole numbers in anonymous memory. It is
laid out in shelves, so that no single piece is refused for its size, and a page is taken when it is filled.

This module knows nothing of torch, so that processes can be forked that do.
"""

from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfmsum.config import SyntheticConfig
from gfmsum.data.sample import Kind, Labelled, Pool, Rows, Samples
from gfmsum.data.synthetic import Synthetic
from gfmsum.records import Task, fingerprint
from gfmsum.sensors import Sensor

SHELF = 4096  # places in one piece of memory
PILOT = 64  # images that a sensor's range is taken from
REACH = 16.0  # standard deviations that the numbers span to either side of the mean
MOST = 32767
RESERVE = 4 * 2**30  # bytes of the machine's memory that are left to others

type Numbers = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Code:
    """How a sensor's values are kept: value = number * step + centre, band by band.

    A step is 16/32767 of a band's standard deviation: rounding is a thousandth of float16's for radar in dB.
    """

    centre: NDArray[np.float32]  # (c, 1, 1)
    step: NDArray[np.float32]  # (c, 1, 1)

    @classmethod
    def of(cls, pixels: NDArray[np.float32]) -> Self:
        """For values like those of some images (n, c, h, w)."""
        mean = pixels.mean(axis=(0, 2, 3), dtype=np.float64)
        deviation = pixels.std(axis=(0, 2, 3), dtype=np.float64)
        step = np.maximum(deviation, 1e-9) * (REACH / MOST)
        return cls(*(part.astype(np.float32)[:, None, None] for part in (mean, step)))

    def encode(self, pixels: NDArray[np.float32]) -> Numbers:
        """The nearest numbers; values beyond the reach become its ends."""
        numbers = np.rint((pixels - self.centre) / self.step)
        return np.clip(numbers, -MOST, MOST).astype(np.int16)

    def decode(self, numbers: Numbers) -> NDArray[np.float32]:
        values: NDArray[np.float32] = numbers.astype(np.float32) * self.step + self.centre
        return values


class Scenes:
    """Places 0 to ``most`` of a world as every sensor sees them, as far as they are rendered.

    Args:
        sensors: their names.
        size_px: side of an image.
        most: places that there is room for.
        chunk: places that a process renders at a time, of all sensors.
        items: labelled items of each sensor that train, validate and test.
    """

    def __init__(
        self,
        sensors: tuple[str, ...],
        size_px: int,
        most: int,
        chunk: int = 32,
        items: tuple[int, int, int] = (600, 200, 400),
    ) -> None:
        train, val, test = items
        self.source = Synthetic(
            SyntheticConfig(sensors="+".join(sensors), train=train, val=val, test=test)
        )
        self.size_px, self.chunk, self.most = size_px, chunk, most - most % chunk
        self._blocks = {name: self.source.pretraining(name, size_px).blocks[0] for name in sensors}
        self.codes = {
            name: Code.of(block.read(np.arange(PILOT)).pixels)
            for name, block in self._blocks.items()
        }
        self.shelves = {name: self._shelves(name) for name in sensors}
        self._next = multiprocessing.get_context("fork").Value("q", 0)
        self._done = _shared((max(1, self.most // chunk),), np.uint8)

    def _shelves(self, name: str) -> list[Numbers]:
        image = (len(self._blocks[name].kind.bands), self.size_px, self.size_px)
        starts = range(0, self.most, SHELF)
        return [_shared((min(SHELF, self.most - start), *image), np.int16) for start in starts]

    @staticmethod
    def bytes_per_place(sensors: Mapping[str, Sensor], size_px: int) -> int:
        """Memory that a place takes."""
        return sum(2 * len(sensor.bands) * size_px**2 for sensor in sensors.values())

    def render(self, stop_at: float) -> None:
        """Render chunk after chunk, beside any number of processes that do the same, until the time."""
        while time.time() < stop_at and available() > RESERVE:
            with self._next.get_lock():
                mine, self._next.value = self._next.value, self._next.value + 1
            start = mine * self.chunk
            if start >= self.most:
                return
            places = np.arange(start, start + self.chunk)
            for name, block in self._blocks.items():
                numbers = self.codes[name].encode(block.read(places).pixels)
                for place, image in zip(places.tolist(), numbers, strict=True):
                    self.shelves[name][place // SHELF][place % SHELF] = image
            self._done[mine] = 1

    @property
    def rendered(self) -> int:
        """Places that are whole, up to the first that is not."""
        gaps = np.flatnonzero(self._done == 0)
        return min(self.most, self.chunk * int(gaps[0] if len(gaps) else len(self._done)))

    def kept(self, places: int) -> Kept:
        """The first so many places, as a source."""
        return Kept(self, places)


class KeptBlock:
    """A block of one sensor's kept images."""

    quick = True  # reading costs no more than turning numbers into values

    def __init__(self, kind: Kind, shelves: list[Numbers], code: Code, places: int) -> None:
        self.kind, self.shelves, self.code, self.places = kind, shelves, code, places

    def __len__(self) -> int:
        return self.places

    def read(self, rows: Rows) -> Samples:
        numbers = np.stack([self.shelves[row // SHELF][row % SHELF] for row in rows.tolist()])
        ids = np.array([f"place/{row}" for row in rows.tolist()], np.str_)
        kind = self.kind
        return Samples(kind.sensor, kind.bands, kind.gsd_m, self.code.decode(numbers), ids)


class Kept:
    """A source of what was rendered: the first places of the world, all sensors at each of them."""

    def __init__(self, scenes: Scenes, places: int) -> None:
        self._scenes, self._synthetic = scenes, scenes.source
        self.blocks = {
            name: KeptBlock(block.kind, scenes.shelves[name], scenes.codes[name], places)
            for name, block in scenes._blocks.items()
        }

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        return self._synthetic.sensors

    @property
    def identity(self) -> Mapping[str, Any]:
        codes = {
            name: fingerprint([code.centre.ravel().tolist(), code.step.ravel().tolist()])
            for name, code in self._scenes.codes.items()
        }
        places = {name: len(block) for name, block in self.blocks.items()}
        return {**self._synthetic.identity, "kept": places, "codes": codes}

    @property
    def caveats(self) -> tuple[str, ...]:
        return self._synthetic.caveats

    def places(self, sensor: str) -> str:
        return f"{self._synthetic.places(sensor)}/first {len(self.blocks[sensor])}"

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        if size_px != self._scenes.size_px:
            raise ValueError(
                f"size_px={size_px}, but scenes are kept at {self._scenes.size_px}; render anew"
            )
        return Pool((self.blocks[sensor],), self.places(sensor))

    def tasks(self, sensor: str) -> list[Task]:
        return self._synthetic.tasks(sensor)

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return []

    def labelled(self, task: Task, size_px: int) -> Labelled:
        return self._synthetic.labelled(task, size_px)


def _shared(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    """Zeros in memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype, count=int(np.prod(shape))).reshape(
        shape
    )


def available() -> int:
    """Bytes of memory that the machine can still give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**62  # a machine that does not tell
