"""Synthetic scenes: one land surface per location, seen by every sensor through its own bands.

The surface (:mod:`gfmsum.data.surface`) is the same for all sensors of a location. A sensor sees area
averages of it, mixes the signatures of what covers the ground, linearly in reflectance or in radar
power, and adds what belongs to the scene and not to the land: illumination, haze, speckle, noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.config import SyntheticConfig
from gfmsum.data.plan import stream
from gfmsum.data.sample import Labelled, Samples
from gfmsum.data.surface import (
    LANDUSES,
    LEVELS,
    MATERIALS,
    Floats,
    Ground,
    Ids,
    Surface,
    generator,
    respell,
)
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Band, Sensor, Unit, unknown

CHUNK = 32  # locations at once: more save calls, fewer stay in the cache
LOOKS = 4.4  # equivalent number of looks of Sentinel-1 IW GRD at high resolution (ESA user guide)
TYPICAL_PX = 7  # the level that a sensor's tasks ask about has patterns of about this many pixels
_TASKS = json.loads(resources.files("gfmsum.data").joinpath("synthetic_tasks.json").read_text())

# --- what materials look like -----------------------------------------------------------------------

_KNOTS_UM = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.68, 0.70, 0.72, 0.75, 0.80, 0.90, 1.00, 1.10, 1.25,
             1.38, 1.45, 1.65, 1.80, 1.95, 2.20, 2.40)  # fmt: skip
_GRID_UM = np.arange(0.35, 2.7, 0.001)

# In percent at the knots; rounded by hand from the shapes of field spectra.
_PERCENT: Mapping[str, tuple[float, ...]] = {
    "water": (5, 5.5, 5.5, 5, 3.5, 2.5, 2, 2, 1.8, 1.5, 1.3, 1, .8, .6, .4, .3, .3, .3, .3, .2, .2, .2),
    "dry soil": (8, 10, 13, 17, 21, 24, 25, 26, 27, 28, 30, 33, 36, 38, 41, 41, 40, 45, 45, 40, 42, 38),
    "wet soil": (5, 6, 7, 9, 11, 13, 13.5, 14, 14.5, 15, 16, 18, 20, 21, 22, 19, 17, 21, 20, 14, 17, 14),
    "sand": (18, 22, 27, 33, 38, 41, 42, 43, 44, 45, 47, 50, 52, 54, 57, 57, 55, 60, 60, 55, 57, 53),
    "green grass": (3, 4, 5, 10, 7, 5, 4.5, 9, 22, 38, 44, 46, 45, 44, 41, 29, 21, 29, 24, 9, 15, 10),
    "dry grass": (6, 9, 13, 18, 23, 26, 27, 29, 31, 34, 38, 43, 46, 47, 48, 42, 38, 44, 40, 28, 32, 25),
    "green crop": (2.5, 3, 4, 8, 5, 3.5, 3, 7, 21, 42, 50, 52, 51, 49, 45, 30, 20, 28, 22, 8, 13, 8),
    "stubble": (7, 9, 12, 16, 20, 23, 24, 26, 27, 29, 33, 38, 41, 42, 44, 40, 37, 43, 40, 30, 35, 29),
    "broadleaf": (2.5, 3, 3.5, 7, 5, 3.5, 3, 7, 19, 36, 42, 44, 43, 42, 39, 25, 16, 24, 18, 6, 10, 6),
    "needleleaf": (2, 2.3, 2.8, 4.5, 3.5, 3, 2.5, 5, 12, 22, 27, 29, 29, 28, 25, 15, 9, 14, 10, 4, 6, 4),
    "concrete": (15, 19, 23, 26, 28, 30, 31, 31.5, 32, 33, 34, 36, 37, 38, 40, 39, 38, 41, 40, 35, 36, 33),
    "asphalt": (7, 8, 9, 10, 10.5, 11, 11.2, 11.5, 12, 12, 13, 14, 15, 15, 16, 16, 16, 18, 18, 16, 17, 16),
}  # fmt: skip

# C-band sigma0 in dB near 39 degrees: smooth surfaces are dark, canopies scatter into VH, walls
# reflect twice into VV.
_BACKSCATTER: Mapping[str, tuple[float, ...]] = {
    "VV": (-20, -14.5, -10.5, -15.5, -11.5, -13.5, -9.5, -11.5, -7.5, -8.0, -2.0, -6.0),
    "VH": (-28, -23.5, -19.5, -25.0, -18.5, -21.0, -15.5, -19.5, -12.5, -13.0, -10.0, -15.0),
}
_SIGNATURES = tuple(_PERCENT)


def respond(band: Band, spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """A spectrum as ``band`` measures it: the mean under its Gaussian response.

    Args:
        band: an optical band.
        spectrum: (..., points) on a grid of 1 nm from 0.35 um on.

    Returns:
        float64 (...,), in the spectrum's unit.
    """
    assert band.wavelength_um is not None and band.fwhm_um is not None
    width = band.fwhm_um / np.sqrt(8 * np.log(2))
    weight = np.exp(-0.5 * ((_GRID_UM - band.wavelength_um) / width) ** 2)
    return np.asarray(spectrum @ (weight / weight.sum()))


def signature(band: Band) -> Floats:
    """(signatures,) of pure materials: reflectance, or backscatter as linear power."""
    if band.polarisation is not None:
        return np.float32(10) ** (np.array(_BACKSCATTER[band.polarisation], np.float32) / 10)
    spectra = [np.interp(_GRID_UM, _KNOTS_UM, percent) / 100 for percent in _PERCENT.values()]
    return respond(band, np.array(spectra)).astype(np.float32)


def _spread(surface: Surface, ground: Ground) -> Floats:
    """(n, signatures, h, w) shares of pure signatures in every pixel."""
    cover = dict(zip(MATERIALS, ground.cover.swapaxes(0, 1), strict=True))
    needle, concrete = surface.traits[:, 2, None, None], surface.traits[:, 3, None, None]
    halves = {
        "soil": ("dry soil", "wet soil", ground.moisture),
        "grass": ("dry grass", "green grass", ground.vigour),
        "crop": ("stubble", "green crop", ground.vigour),
        "trees": ("broadleaf", "needleleaf", needle),
        "built": ("asphalt", "concrete", concrete),
    }
    shares = {name: cover[name] for name in ("water", "sand")}
    for material, (one, other, share) in halves.items():
        shares[other] = cover[material] * share
        shares[one] = cover[material] - shares[other]
    return np.stack([shares[name] for name in _SIGNATURES], axis=1)


class Instrument:
    """A sensor that looks at surfaces."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.signatures = np.stack([signature(band) for band in sensor.bands])  # (c, signatures)

    def observe(self, surface: Surface, ground: Ground) -> Floats:
        """Pixels in the bands' units: float32 (n, c, h, w)."""
        n, side = len(surface.ids), ground.cover.shape[-1]
        draw = [generator(key, self.sensor.name) for key in surface.ids]
        scene = np.stack([rng.random(16, dtype=np.float32) for rng in draw])
        sun = 2 * np.pi * scene[:, :1]
        towards = np.stack([np.cos(sun), np.sin(sun)], axis=1)[..., None]
        relief = np.exp(0.2 * scene[:, 1, None, None] * (ground.slope * towards).sum(1))
        spread = _spread(surface, ground) * relief[:, None]
        out = np.empty((n, len(self.sensor.bands), side, side), np.float32)
        for gsd in sorted({band.gsd_m for band in self.sensor.bands}):
            at = [i for i, band in enumerate(self.sensor.bands) if band.gsd_m == gsd]
            # A band coarser than the grid is averaged over its own pixels, then repeated.
            cell = np.arange(side) // max(1, round(gsd / self.sensor.gsd_m))
            mean = (cell == np.unique(cell)[:, None]).astype(np.float32)
            mean /= mean.sum(1, keepdims=True)
            seen = spread if len(mean) == side else mean @ spread @ mean.T
            pure = self._signatures_at(surface, at)
            value = (pure @ seen.reshape(n, len(_SIGNATURES), -1)).reshape(n, -1, *seen.shape[2:])
            value = self._measure(at, value, scene, draw)
            out[:, at] = value if len(mean) == side else value[:, :, cell[:, None], cell]
        return out

    def _signatures_at(self, surface: Surface, bands: list[int]) -> Floats:
        """(n, bands, signatures): every place has its own kind of soil, grass, roof ..."""
        bright, tilt = np.split(2 * surface.traits[:, None, 4:28] - 1, 2, axis=2)
        if self.sensor.bands[0].unit is Unit.DB:
            return np.asarray(self.signatures[bands] * np.exp(0.35 * bright), np.float32)
        um = np.array([self.sensor.bands[i].wavelength_um for i in bands], np.float32)[:, None]
        return np.asarray(self.signatures[bands] * np.exp(0.25 * bright + 0.25 * tilt * (um - 1)))

    def _measure(
        self, bands: list[int], value: Floats, scene: Floats, draw: list[np.random.Generator]
    ) -> Floats:
        """From what the ground sends (reflectance or power) to pixel values."""
        unit = self.sensor.bands[0].unit
        scene = scene[:, :, None, None, None]
        if unit is Unit.DB:
            speckle = np.empty_like(value)
            for row, rng in zip(speckle, draw, strict=True):
                rng.standard_gamma(LOOKS, out=row, dtype=np.float32)
            power = (value * 10 ** (0.2 * scene[:, 2] - 0.1) + NOISE_POWER) * speckle / LOOKS
            return np.clip(10 * np.log10(power), -35, 10)
        noise = np.empty_like(value)
        for row, rng in zip(noise, draw, strict=True):
            rng.standard_normal(out=row, dtype=np.float32)
        um = np.array([self.sensor.bands[i].wavelength_um for i in bands], np.float32)[:, None, None]
        vapour = [respond(self.sensor.bands[i], _VAPOUR) for i in bands]
        depth = np.array(vapour, np.float32)[:, None, None]
        value = value * np.exp(0.5 * (scene[:, 2] - 0.5) - (0.5 + scene[:, 3]) * depth)
        value += 0.06 * scene[:, 4] ** 2 * (0.55 / um) ** 2 * np.exp(-depth) + 0.006 * scene[:, 5]
        value += noise * (0.0005 + 0.015 * value)
        if unit is Unit.REFLECTANCE:
            return np.clip(value, 0, 1.2)
        # Aerial cameras are set for a well-exposed picture, band by band.
        gain = np.where(um > 0.7, 1.25, 2.0) * np.exp(0.3 * (scene[:, 6 + np.array(bands)] - 0.5)[:, :, 0])
        return np.rint(np.clip(255 * gain.astype(np.float32) * np.maximum(value, 0) ** 0.8, 0, 255))


class Synthetic:
    """Source of synthetic scenes without end, with labels from the surface and not from pixels."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._instruments = {name: Instrument(sensor) for name, sensor in SENSORS.items()}
        self._probes: dict[tuple[str, int], _Probes] = {}

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        return SENSORS

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"source": "synthetic", "version": 1, "world": self.config.world}

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            "Synthetic scenes: this checks the instrument and is no evidence about real sensors.",
        )

    def available(self, sensor: str, size_px: int) -> int | None:
        return None

    def pretraining(
        self, sensor: str, slots: range, size_px: int, seed: Sequence[int]
    ) -> list[Samples]:
        raw = stream("synthetic", self.config.world, *seed).bit_generator.random_raw(slots.stop)
        pixels, _ = self._scenes(sensor, ids := _places(raw[list(slots)], probe=False), size_px)
        return [self._samples(sensor, pixels, [f"synthetic/{self.config.world}/{i:016x}" for i in ids])]
