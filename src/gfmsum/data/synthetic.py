"""Synthetic scenes: one land surface per location, seen by every sensor through its own bands.

The surface (:mod:`gfmsum.data.surface`) is the same for all sensors of a location. A sensor sees
area averages of it, mixes the signatures of what covers the ground, linearly in reflectance or in
radar power, and adds what belongs to the scene and not to the land: illumination, haze, speckle,
noise.

Where the instrument itself is to be tested, a control puts something else in the other sensors' place,
see :data:`gfmsum.config.CONTROLS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.config import CONTROLS, SyntheticConfig
from gfmsum.data.plan import stream
from gfmsum.data.sample import Labelled, Samples
from gfmsum.data.surface import (
    LANDUSES,
    MATERIALS,
    PLACES,
    Floats,
    Ground,
    Ids,
    Surface,
    generator,
    respell,
)
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Band, Sensor, Unit, unknown

VERSION = 1  # raised when a change of code changes pixels
CHUNK = 64  # locations at once: more save calls, fewer save memory
PROBES = np.uint64(2**63)  # a bit beyond PLACES that only probe locations have: none is both

LOOKS = 25  # equivalent number, of a speckle-filtered product; GRD itself has 4.4 (ESA)
NOISE_POWER = 10**-2.7  # what the radar reads from a mirror-smooth surface

_SIGNATURES = {  # of which material
    "water": "water", "dry soil": "soil", "wet soil": "soil", "sand": "sand",
    "green grass": "grass", "dry grass": "grass", "green crop": "crop", "stubble": "crop",
    "broadleaf": "trees", "needleleaf": "trees", "concrete": "built", "asphalt": "built",
}  # fmt: skip
_KINDS = [MATERIALS.index(material) for material in _SIGNATURES.values()]

# Reflectance in percent at wavelengths in um, from the shapes of published field spectra, rounded.
_SPECTRA = np.array([
    (0.40,     5,     8,     5,    18,     3,     6,   2.5,     7,   2.5,     2,    15,     7),
    (0.45,   5.5,    10,     6,    22,     4,     9,     3,     9,     3,   2.3,    19,     8),
    (0.50,   5.5,    13,     7,    27,     5,    13,     4,    12,   3.5,   2.8,    23,     9),
    (0.55,     5,    17,     9,    33,    10,    18,     8,    16,     7,   4.5,    26,    10),
    (0.60,   3.5,    21,    11,    38,     7,    23,     5,    20,     5,   3.5,    28,  10.5),
    (0.65,   2.5,    24,    13,    41,     5,    26,   3.5,    23,   3.5,     3,    30,    11),
    (0.68,     2,    25,  13.5,    42,   4.5,    27,     3,    24,     3,   2.5,    31,  11.2),
    (0.70,     2,    26,    14,    43,     9,    29,     7,    26,     7,     5,  31.5,  11.5),
    (0.72,   1.8,    27,  14.5,    44,    22,    31,    21,    27,    19,    12,    32,    12),
    (0.75,   1.5,    28,    15,    45,    38,    34,    42,    29,    36,    22,    33,    12),
    (0.80,   1.3,    30,    16,    47,    44,    38,    50,    33,    42,    27,    34,    13),
    (0.90,     1,    33,    18,    50,    46,    43,    52,    38,    44,    29,    36,    14),
    (1.00,   0.8,    36,    20,    52,    45,    46,    51,    41,    43,    29,    37,    15),
    (1.10,   0.6,    38,    21,    54,    44,    47,    49,    42,    42,    28,    38,    15),
    (1.25,   0.4,    41,    22,    57,    41,    48,    45,    44,    39,    25,    40,    16),
    (1.38,   0.3,    41,    19,    57,    29,    42,    30,    40,    25,    15,    39,    16),
    (1.45,   0.3,    40,    17,    55,    21,    38,    20,    37,    16,     9,    38,    16),
    (1.65,   0.3,    45,    21,    60,    29,    44,    28,    43,    24,    14,    41,    18),
    (1.80,   0.3,    45,    20,    60,    24,    40,    22,    40,    18,    10,    40,    18),
    (1.95,   0.2,    40,    14,    55,     9,    28,     8,    30,     6,     4,    35,    16),
    (2.20,   0.2,    42,    17,    57,    15,    32,    13,    35,    10,     6,    36,    17),
    (2.40,   0.2,    38,    14,    53,    10,    25,     8,    29,     6,     4,    33,    16),
])  # fmt: skip

# C-band backscatter in dB: smooth ground is dark, canopies scatter into VH, walls reflect into VV.
_BACKSCATTER = {
    "VV": (-20, -14.5, -10.5, -15.5, -11.5, -13.5, -9.5, -11.5, -7.5, -8, -2.5, -6),
    "VH": (-28, -23.5, -19.5, -25, -18.5, -21, -14.5, -19.5, -12.5, -13.5, -10.5, -14.5),
}  # fmt: skip

_GRID_UM = np.arange(0.35, 2.7, 0.001)
_VAPOUR = ((0.94, 0.03, 0.6), (1.13, 0.04, 0.8), (1.38, 0.05, 7.0), (1.88, 0.07, 7.0))
"""Absorption by water vapour: centre and width in um, and optical depth along a typical path."""


def respond(band: Band, spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """A spectrum as ``band`` measures it: the mean under its Gaussian response.

    Args:
        band: an optical band.
        spectrum: (..., points) on a grid of 1 nm from 0.35 um on.

    Returns:
        float64 (...,), in the spectrum's unit.
    """
    assert band.wavelength_um is not None
    assert band.fwhm_um is not None
    width = band.fwhm_um / np.sqrt(8 * np.log(2))
    weight = np.exp(-0.5 * ((_GRID_UM - band.wavelength_um) / width) ** 2)
    return np.asarray(spectrum @ (weight / weight.sum()))


def signature(band: Band) -> Floats:
    """(signatures,) of pure materials: reflectance, or backscatter as linear power."""
    if band.polarisation is not None:
        return np.asarray(10 ** (np.array(_BACKSCATTER[band.polarisation]) / 10), np.float32)
    um, *percent = _SPECTRA.T
    spectra = np.array([np.interp(_GRID_UM, um, column) for column in percent]) / 100
    return respond(band, spectra).astype(np.float32)


def _lean(band: Band) -> float:
    """How a place's tilt acts on a band: infrared against visible, VH against VV."""
    if band.wavelength_um is not None:
        return band.wavelength_um - 1
    return 0.4 if band.polarisation == "VH" else 0.0


def _vapour(band: Band) -> float:
    """Optical depth of water vapour in an optical band; radar does not see it."""
    if band.polarisation is not None:
        return 0.0
    lines = (depth * np.exp(-(((_GRID_UM - um) / width) ** 2)) for um, width, depth in _VAPOUR)
    return float(respond(band, np.sum(list(lines), axis=0)))


def _shares(surface: Surface, ground: Ground) -> Floats:
    """(n, signatures, h, w) shares of pure signatures in every pixel."""
    cover = dict(zip(MATERIALS, ground.cover.swapaxes(0, 1), strict=True))
    halves = {
        "soil": ("dry soil", "wet soil", ground.moisture),
        "grass": ("dry grass", "green grass", ground.vigour),
        "crop": ("stubble", "green crop", ground.vigour),
        "trees": ("broadleaf", "needleleaf", surface.needleleaf),
        "built": ("asphalt", "concrete", surface.concrete),
    }
    shares = {name: cover[name] for name in ("water", "sand")}
    for material, (one, other, share) in halves.items():
        shares[other] = cover[material] * share
        shares[one] = cover[material] - shares[other]
    return np.stack([shares[name] for name in _SIGNATURES], axis=1)


class _Scene:
    """What a picture owes to its moment and not to the land; numbers are (n, 1, 1, 1)."""

    def __init__(self, places: Ids, sensor: Sensor) -> None:
        self.draws = [generator(place, sensor.name) for place in places]
        drawn = [rng.random(6 + len(sensor.bands), dtype=np.float32) for rng in self.draws]
        uniform = np.stack(drawn)[:, :, None, None, None]
        self.azimuth, self.relief, self.gain, self.vapour, self.haze, self.cirrus = (
            uniform[:, i] for i in range(6)
        )
        self.balance = uniform[:, 6:, 0]  # (n, c, 1, 1)

    def shading(self, slope: Floats) -> Floats:
        """(n, 1, h, w): slopes that face the sun or the radar are brighter."""
        towards = [np.cos(2 * np.pi * self.azimuth), np.sin(2 * np.pi * self.azimuth)]
        facing = slope * np.concatenate(towards, axis=1)
        return np.asarray(np.exp(0.2 * self.relief * facing.sum(1, keepdims=True)))

    def speckle(self, like: Floats) -> Floats:
        """Multiplicative, of mean one."""
        out = np.empty_like(like)
        for row, rng in zip(out, self.draws, strict=True):
            rng.standard_gamma(LOOKS, out=row, dtype=np.float32)
        return out / np.float32(LOOKS)

    def noise(self, like: Floats) -> Floats:
        """Additive, of unit variance."""
        out = np.empty_like(like)
        for row, rng in zip(out, self.draws, strict=True):
            rng.standard_normal(out=row, dtype=np.float32)
        return out


class Instrument:
    """A sensor that looks at surfaces. Its bands are all optical or all radar."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.signatures = np.stack([signature(band) for band in sensor.bands])  # (c, signatures)
        self._um = np.array([band.wavelength_um or 0 for band in sensor.bands], np.float32)
        self._lean = np.array([_lean(band) for band in sensor.bands], np.float32)
        self._depth = np.array([_vapour(band) for band in sensor.bands], np.float32)

    def observe(self, surface: Surface, ground: Ground) -> Floats:
        """What the sensor delivers.

        Args:
            surface: n locations.
            ground: what covers their pixels, h = w, on the sensor's grid.

        Returns:
            float32 (n, c, h, w) in the bands' units.
        """
        scene = _Scene(surface.ids, self.sensor)
        side = ground.cover.shape[-1]
        light = _shares(surface, ground) * scene.shading(ground.slope)
        out = np.empty((len(surface.ids), len(self.sensor.bands), side, side), np.float32)
        for gsd in sorted({band.gsd_m for band in self.sensor.bands}):
            bands = [i for i, band in enumerate(self.sensor.bands) if band.gsd_m == gsd]
            # A band coarser than the grid is averaged over its own pixels, then repeated.
            cell = np.arange(side) // round(gsd / self.sensor.gsd_m)
            mean = (cell == np.unique(cell)[:, None]).astype(np.float32)
            mean /= mean.sum(1, keepdims=True)
            seen = light if len(mean) == side else mean @ light @ mean.T
            pure = self._local_signatures(surface, bands)
            sent = pure @ seen.reshape(*seen.shape[:2], -1)
            sent = sent.reshape(*sent.shape[:2], *seen.shape[2:])
            radar = self.sensor.bands[0].unit is Unit.DB
            read = self._radar(sent, scene) if radar else self._camera(sent, scene, bands)
            out[:, bands] = read[:, :, cell[:, None], cell]
        return out

    def _local_signatures(self, surface: Surface, bands: list[int]) -> Floats:
        """(n, bands, signatures): every place has its own kind of soil, grass, roof ..."""
        bright, tilt = (2 * trait[:, None, _KINDS] - 1 for trait in (surface.bright, surface.tilt))
        change = np.exp(0.35 * bright + 0.5 * tilt * self._lean[bands, None])
        return np.asarray(self.signatures[bands] * change)

    def _radar(self, power: Floats, scene: _Scene) -> Floats:
        """Backscatter in dB, within what the product can hold."""
        power = power * 10 ** (0.3 * (scene.gain - 0.5)) + np.float32(NOISE_POWER)
        return np.asarray(np.clip(10 * np.log10(power * scene.speckle(power)), -35, 10))

    def _camera(self, reflectance: Floats, scene: _Scene, bands: list[int]) -> Floats:
        """Reflectance through the air, or what an aerial camera makes of it."""
        um, depth = self._um[bands, None, None], self._depth[bands, None, None]
        clear = np.exp(-(0.5 + scene.vapour) * depth)
        haze = 0.05 * scene.haze**2 * (0.55 / um) ** 2
        value = np.exp(0.5 * (scene.gain - 0.5)) * clear * (reflectance + haze)
        value += 0.006 * scene.cirrus  # lies above the vapour
        value += scene.noise(value) * (0.0005 + 0.015 * value)
        if self.sensor.bands[0].unit is Unit.REFLECTANCE:
            return np.clip(value, 0, 1.2)
        # Cameras are set for a well-exposed picture, band by band.
        exposure = np.where(um > 0.7, 1.25, 2).astype(np.float32)
        exposure = exposure * np.exp(0.16 * (scene.balance[:, bands] - 0.5))
        return np.rint(np.clip(255 * exposure * np.maximum(value, 0) ** 0.8, 0, 255))


_RANGE = {Unit.REFLECTANCE: (0.0, 0.5), Unit.DB: (-25.0, 0.0), Unit.BRIGHTNESS8: (0.0, 255.0)}
"""Plausible values over land."""


class Noise(Instrument):
    """A sensor that looks at nothing: every value is uniform and independent of all others."""

    def observe(self, surface: Surface, ground: Ground) -> Floats:
        """float32 (n, c, h, w) in the bands' units, of which only the shape is the ground's."""
        bands, side = self.sensor.bands, ground.cover.shape[-1]
        out = np.empty((len(surface.ids), len(bands), side, side), np.float32)
        for row, place in zip(out, surface.ids, strict=True):
            generator(place, f"{self.sensor.name} noise").random(out=row, dtype=np.float32)
        low, high = np.array([_RANGE[band.unit] for band in bands], np.float32).T[..., None, None]
        return np.asarray(low + (high - low) * out)


def _instruments(config: SyntheticConfig) -> dict[str, Instrument]:
    """What looks at the land under each sensor's name."""
    if not config.control:
        return {name: Instrument(sensor) for name, sensor in SENSORS.items()}
    if config.target not in SENSORS:
        raise ValueError(unknown("sensor", config.target, SENSORS))

    def other(sensor: Sensor) -> Instrument:
        if config.control == "harm":
            return Noise(sensor)
        # The name draws the scene: the same physics at another moment.
        return Instrument(replace(SENSORS[config.target], name=sensor.name))

    return {
        name: Instrument(sensor) if name == config.target else other(sensor)
        for name, sensor in SENSORS.items()
    }


_TASKS = json.loads(resources.files("gfmsum.data").joinpath("synthetic_tasks.json").read_text())

type _Rows = NDArray[np.int64]
type _Probe = tuple[Samples, dict[str, NDArray[Any]], tuple[_Rows, _Rows, _Rows]]


def _landscape(ground: Ground) -> dict[str, NDArray[np.float64]]:
    """Metrics of landscape ecology, (n,) each, from the cover's shares (n, materials, h, w).

    Canopy: share of the footprint under trees. Diversity: Simpson's index, the chance that two points
    of the footprint lie on different materials.
    """
    shares = ground.cover.mean((2, 3), dtype=np.float64)
    return {
        "canopy": shares[:, MATERIALS.index("trees")],
        "diversity": 1 - (shares**2).sum(1),
    }


class Synthetic:
    """Source of synthetic scenes without end, with labels from the surface and not from pixels."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._instruments = _instruments(config)
        self._probes: dict[tuple[str, int], _Probe] = {}

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        return {name: instrument.sensor for name, instrument in self._instruments.items()}

    @property
    def identity(self) -> Mapping[str, Any]:
        chosen = {name: getattr(self.config, name) for name in ("control", "target", "scarce")}
        # What is not chosen has no place in a name: runs from before there were controls keep theirs.
        chosen = {name: value for name, value in chosen.items() if value}
        return {"source": "synthetic", "version": VERSION, "world": self.config.world, **chosen}

    @property
    def caveats(self) -> tuple[str, ...]:
        synthetic = (
            "Synthetic scenes: this checks the instrument and is no evidence about real sensors.",
        )
        if not (control := self.config.control):
            return synthetic
        return (f"A control with target {self.config.target}: {CONTROLS[control]}.", *synthetic)

    def available(self, sensor: str, size_px: int) -> int | None:
        return self.config.scarce if self._is_scarce(sensor) else None

    def pretraining(
        self, sensor: str, slots: range, size_px: int, seed: Sequence[int]
    ) -> list[Samples]:
        if self._is_scarce(sensor):  # the same few for all arms of a replicate
            places = self._places("scarce", *seed, count=min(len(slots), self.config.scarce))
        else:
            places = self._places("pretraining", *seed, count=slots.stop)[list(slots)]
        names = [f"synthetic/{self.config.world}/{place:016x}" for place in places]
        return [self._samples(sensor, names, self._scenes(sensor, places, size_px)[0])]

    def tasks(self, sensor: str) -> list[Task]:
        self._instrument(sensor)
        return [
            Task(
                f"{name}_{sensor}",
                sensor,
                classes=tuple(LANDUSES) if row["kind"] == "classification" else (),
                clustered=False,
                **row,
            )
            for name, row in _TASKS["tasks"].items()
        ]

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return []

    def labelled(self, task: Task, size_px: int) -> Labelled:
        known = {t.name: t for t in self.tasks(task.sensor)}
        if task.name not in known:
            raise ValueError(unknown("task", task.name, known))
        key = task.sensor, size_px
        if key not in self._probes:
            self._probes[key] = self._probe(*key)
        samples, targets, fold = self._probes[key]
        return Labelled(
            task, samples, targets[task.name.removesuffix(f"_{task.sensor}")], samples.ids, (fold,)
        )

    def _probe(self, sensor: str, size_px: int) -> _Probe:
        places, names, parts, landuse = [], [], [], []
        for part in ("train", "val", "test"):
            count = getattr(self.config, part)
            landuse.append(np.arange(count) % len(LANDUSES))  # balanced
            places.append(respell(self._places(part, count=count) | PROBES, landuse[-1]))
            names += [f"synthetic/{self.config.world}/{part}/{i}" for i in range(count)]
            parts.append(np.arange(len(names) - count, len(names)))
        pixels, measured = self._scenes(sensor, np.concatenate(places), size_px)
        targets: dict[str, NDArray[Any]] = {"landuse": np.concatenate(landuse), **measured}
        return self._samples(sensor, names, pixels), targets, (parts[0], parts[1], parts[2])

    def _places(self, *key: int | str, count: int) -> Ids:
        """The first ``count`` locations of a list."""
        bits = stream("synthetic", self.config.world, *key).bit_generator
        return np.asarray(bits.random_raw(count)) & PLACES

    def _is_scarce(self, sensor: str) -> bool:
        return self.config.scarce > 0 and sensor == self.config.target

    def _instrument(self, sensor: str) -> Instrument:
        if sensor not in self._instruments:
            raise ValueError(unknown("sensor", sensor, self._instruments))
        return self._instruments[sensor]

    def _scenes(
        self, sensor: str, places: Ids, size_px: int
    ) -> tuple[Floats, dict[str, NDArray[np.float64]]]:
        """Pixels (n, c, h, w), and what is measured on the ground they show, (n,) each."""
        instrument = self._instrument(sensor)
        pixels = np.empty((len(places), len(instrument.sensor.bands), size_px, size_px), np.float32)
        measured = []
        for start in range(0, len(places), CHUNK):
            part = slice(start, start + CHUNK)
            surface = Surface(places[part])
            ground = surface.look(instrument.sensor.gsd_m, size_px)
            pixels[part] = instrument.observe(surface, ground)
            measured.append(_landscape(ground))
        names = measured[0] if measured else ()
        return pixels, {name: np.concatenate([m[name] for m in measured]) for name in names}

    def _samples(self, sensor: str, names: list[str], pixels: Floats) -> Samples:
        instrument = self._instrument(sensor).sensor
        return Samples(sensor, instrument.bands, instrument.gsd_m, pixels, np.array(names, np.str_))
