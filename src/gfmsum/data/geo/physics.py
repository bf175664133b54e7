"""What the numbers of each data set mean, and how its files are opened without side effects."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from gfmsum.data.sample import Kind
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, Sensor

LEAST_POWER = np.float32(1e-5)
"""Linear backscatter below this counts as this, -50 dB: where water is calm, subtracting the noise leaves 0."""


@dataclass(frozen=True, slots=True)
class Physics:
    """A data set's bands in the order of its files: value = number * scale + offset, in the sensor's unit.

    Numbers that are linear power become dB instead.
    """

    sensor: Sensor
    bands: tuple[tuple[str, str], ...]  # (their name, the sensor's name)
    gsd_m: float  # pixel size of the grid, metres
    scale: float = 1.0
    offset: float = 0.0
    dtype: str | None = (
        None  # what the numbers are stored as, where another type means another scale
    )
    power: bool = False  # whether the numbers are linear backscatter, for a unit of dB

    @property
    def theirs(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.bands)

    def kind(self, gsd_m: float | None = None) -> Kind:
        """Of samples on the data set's own grid, or on another."""
        grid = gsd_m or self.gsd_m
        names = [ours for _, ours in self.bands]
        return Kind(self.sensor.name, self.sensor.select(names, grid_m=grid), grid)

    def values(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Numbers as values: float32, of the same shape."""
        out: NDArray[np.float32] = numbers.astype(np.float32)
        if self.power:
            np.maximum(out, LEAST_POWER, out=out)
            np.log10(out, out=out)
            out *= 10
            return out
        out *= np.float32(self.scale)
        out += np.float32(self.offset)
        return out

    def expect(self, names: Sequence[str], whose: str) -> None:
        """Refuse bands that come in another order than this table's."""
        if tuple(names) != self.theirs:
            raise ValueError(
                f"{whose} gives the bands {', '.join(names)}, known are {', '.join(self.theirs)}; "
                "the order must be the same, use the release of torchgeo that gfmsum asks for"
            )

    def check(self, file: Any, path: Path, names: Sequence[str]) -> None:
        """Refuse an open raster that is not what ``names``, some of ``theirs``, are stored in."""
        if file.count != len(names):
            raise ValueError(
                f"{path}: has {file.count} bands, it must have {len(names)} ({', '.join(names)}); "
                "fetch it again"
            )
        own = tuple(file.descriptions)
        if set(own) <= set(self.theirs) and own != tuple(names):
            raise ValueError(
                f"{path}: calls its bands {', '.join(own)}, its data set has {', '.join(names)}; "
                "the two must agree, put them in this order"
            )
        if self.dtype is not None and set(file.dtypes) != {self.dtype}:
            raise ValueError(
                f"{path}: is {file.dtypes[0]}, its data set is {self.dtype} with the scale "
                f"{self.scale:g}; other numbers have another scale, fetch the published files"
            )


def _same(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


_SHORT = tuple((band.name.replace("B0", "B"), band.name) for band in S2.bands)  # B1 is B01
_EUROSAT = [band.name for band in S2.bands if band.name != "B8A"] + ["B8A"]
_LCZ = [band.name for band in S2.bands if band.name not in ("B01", "B09", "B10")]
_CLIPPED = 0.3 / 255
"""SSL4EO-L stores surface reflectance 0 to 0.3 as 0 to 255; what was brighter is 255 (its authors'
``compress_dataset.py`` and ``compress_oli_sr.sh``, in torchgeo's repository)."""

SSL4EO_S1 = Physics(S1, _same(["VV", "VH"]), 10.0)
SSL4EO_S2C = Physics(S2, _SHORT, 10.0, scale=1e-4)
SSL4EO_OLI_SR = Physics(LANDSAT, _same([b.name for b in LANDSAT.bands]), 30.0, _CLIPPED, 0, "uint8")
NAIP_QUADS = Physics(NAIP, _same(["R", "G", "B", "NIR"]), 1.0, dtype="uint8")
MOD09A1_TILES = Physics(
    MODIS, tuple((f"sur_refl_b0{i}", f"B0{i}") for i in range(1, 8)), 500.0, 1e-4, 0, "int16"
)
MOD09A1_GRID = replace(MOD09A1_TILES, gsd_m=463.31)  # which "500 m" are, to the centimetre
EUROSAT_S1 = Physics(S1, _same(["VV", "VH"]), 10.0)
EUROSAT_S2 = Physics(S2, _same(_EUROSAT), 10.0, scale=1e-4)
LCZ_S2 = Physics(S2, _same(_LCZ), 10.0)  # So2Sat divided by 10,000 before publishing
DFC2020_S1 = Physics(S1, _same(["VV", "VH"]), 10.0)
DFC2020_S2 = Physics(S2, _same([band.name for band in S2.bands]), 10.0, scale=1e-4)
# Web Mercator's pixels: 10 m at the equator, less elsewhere.
FLOOD_S1 = Physics(S1, _same(["VV", "VH"]), 10.0, power=True)
CHESAPEAKE = Physics(NAIP, _same(["R", "G", "B", "NIR"]), 1.0, dtype="uint8")
USAVARS = Physics(NAIP, _same(["R", "G", "B", "NIR"]), 4.0)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gives the global random states back as they were: torchgeo draws from them and seeds them.

    Rasters without a place are welcome.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A raster, with or without a place.

    Raises:
        ValueError: one line that names it, if it cannot be read; what the block itself raises stays.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as file:
                yield file
        except OSError as broken:  # rasterio's errors are OSErrors, in opening and in reading
            raise unreadable(path, broken) from None


def found_by_torchgeo[T](make: Callable[[], T], root: Path) -> T:
    """What a torchgeo class makes of a folder.

    Raises:
        ValueError: one line, if it cannot.
    """
    try:
        with undisturbed():
            return make()
    except (OSError, ValueError, LookupError) as error:
        raise unreadable(root, error) from None


def unreadable(path: Path, error: Exception) -> ValueError:
    """A file that another library could not read, in one line."""
    why = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path}: cannot be read ({why}); it must be whole, fetch it again")
