"""What a sensor makes of a land surface: signatures of materials, mixed in its pixels, seen through the air.

A sensor mixes the signatures of what covers the ground, linearly in reflectance or in radar power, and
adds what belongs to the scene and not to the land: illumination, haze, speckle, noise.

**Optical bands** take the mean of reflectance spectra from 0.35 to 2.7 um under a Gaussian response.

**Radar bands** start from backscatter at C band, 5.405 GHz, and scale it to another carrier by a layer
of plants over soil, the water cloud model (Attema and Ulaby 1978): power = soil * exp(-2 t) + plants *
(1 - exp(-2 t)). The plants' opacity t grows in proportion to the frequency, so that a long wave sees
the soil through a crown and a short one sees its top; and smooth ground is rougher to a shorter wave,
so that its power grows in proportion to the frequency too. What walls send back does not change.

Oxygen, thermal emission and layover are not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from gfmsum.data.patterns import Floats
from gfmsum.data.plan import stream
from gfmsum.data.surface import (
    GSD_M,
    LANDUSES,
    MATERIALS,
    Ground,
    Ids,
    Surface,
    draws,
)
from gfmsum.sensors import Band, Sensor, Unit

LOOKS = 25  # equivalent number, of a speckle-filtered product
GRD_LOOKS, BOX_PX = 4.4, 3  # of GRD itself (ESA), and the window that a plain filter averages over
NOISE_POWER = 10**-2.7  # what the radar reads from a mirror-smooth surface
SPECTRUM_UM = (0.35, 2.7)
FINEST_UM = 0.001  # of a band's width: the step of the spectra
CARRIER_GHZ = (1.0, 40.0)  # L band to Ka band
RANGE = {
    Unit.REFLECTANCE: (0.0, 0.5),
    Unit.DB: (-25.0, 0.0),
    Unit.BRIGHTNESS8: (0.0, 255.0),
    Unit.STRETCHED8: (0.0, 255.0),
}
"""Plausible values over land."""

SIGNATURES = {  # of which material
    "water": "water", "dry soil": "soil", "wet soil": "soil", "sand": "sand",
    "green grass": "grass", "dry grass": "grass", "green crop": "crop", "stubble": "crop",
    "broadleaf": "trees", "needleleaf": "trees", "concrete": "built", "asphalt": "built",
}  # fmt: skip
_KINDS = [MATERIALS.index(material) for material in SIGNATURES.values()]

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

_C_BAND_GHZ = 5.405
# Backscatter there in dB: smooth ground is dark, canopies scatter into VH, walls reflect. HH is below VV
# on smooth ground, equals it in canopies and is above it at walls; HV is VH, by reciprocity.
_BACKSCATTER = {
    "VV": (-20, -14.5, -10.5, -15.5, -11.5, -13.5, -9.5, -11.5, -7.5, -8, -2.5, -6),
    "VH": (-28, -23.5, -19.5, -25, -18.5, -21, -14.5, -19.5, -12.5, -13.5, -10.5, -14.5),
    "HH": (-24, -16, -12, -17.5, -12, -14.5, -9.5, -12.5, -7.5, -8, -1, -7),
}  # fmt: skip
_BACKSCATTER["HV"] = _BACKSCATTER["VH"]
_OPACITY = np.array([0, 0, 0, 0, 0.15, 0.1, 0.4, 0.1, 1.0, 1.0, 0, 0])  # at C band; 0: no plants
_ROUGHENS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1])  # exponent of the frequency
_UNDER_PLANTS = list(SIGNATURES).index("dry soil")

_GRID_UM = np.arange(*SPECTRUM_UM, FINEST_UM)
_VAPOUR = ((0.94, 0.03, 0.6), (1.13, 0.04, 0.8), (1.38, 0.05, 7.0), (1.88, 0.07, 7.0))
"""Absorption by water vapour: centre and width in um, and optical depth along a typical path."""


def check(sensor: Sensor) -> None:
    """Refuse what cannot be rendered.

    Raises:
        ValueError: one line with the sensor, the value, the rule and the remedy.
    """
    for band in sensor.bands:
        radar = band.polarisation is not None
        if band.unit is (Unit.REFLECTANCE if radar else Unit.DB):
            problem = f"unit={band.unit} must be {'dB' if radar else 'reflectance'} or 8 bits"
        elif radar and not CARRIER_GHZ[0] <= (band.frequency_ghz or 0) <= CARRIER_GHZ[1]:
            problem = f"frequency_ghz={band.frequency_ghz} must be {_between(CARRIER_GHZ)}"
        elif not radar and not _inside(band):
            problem = (
                f"wavelength_um={band.wavelength_um} with fwhm_um={band.fwhm_um} must lie "
                f"{_between(SPECTRUM_UM)} and be at least {FINEST_UM} wide"
            )
        else:
            continue
        raise _refusal(sensor, f"band {band.name}: {problem}")
    if not GSD_M[0] <= sensor.gsd_m <= GSD_M[1]:
        raise _refusal(sensor, f"gsd_m={sensor.gsd_m} must be {_between(GSD_M)}")


def _refusal(sensor: Sensor, problem: str) -> ValueError:
    return ValueError(
        f"synthetic land cannot show {sensor.name}: {problem}; leave it out of data.sensors"
    )


def _between(limits: tuple[float, float]) -> str:
    return "between {:g} and {:g}".format(*limits)


def _inside(band: Band) -> bool:
    assert band.wavelength_um is not None
    assert band.fwhm_um is not None
    low, high = band.wavelength_um - band.fwhm_um / 2, band.wavelength_um + band.fwhm_um / 2
    return band.fwhm_um >= FINEST_UM and SPECTRUM_UM[0] <= low and high <= SPECTRUM_UM[1]


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
        power = 10 ** (np.array(_BACKSCATTER[band.polarisation]) / 10)
        ratio = (band.frequency_ghz or _C_BAND_GHZ) / _C_BAND_GHZ
        return np.asarray(power * (_layer(power, ratio) / _layer(power, 1.0)), np.float32)
    um, *percent = _SPECTRA.T
    spectra = np.array([np.interp(_GRID_UM, um, column) for column in percent]) / 100
    return respond(band, spectra).astype(np.float32)


def _layer(power: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """(signatures,) of power at ``ratio`` times C band's frequency, from the power at C band.

    Of a plant's power at C band, what soil under it does not account for is the plant's own.
    """
    soil, through = power[_UNDER_PLANTS], np.exp(-2 * _OPACITY)
    plants = (power - soil * through) / np.where(_OPACITY > 0, 1 - through, 1)
    through = through**ratio
    layered = soil * ratio ** _ROUGHENS[_UNDER_PLANTS] * through + plants * (1 - through)
    return np.where(_OPACITY > 0, layered, power * ratio**_ROUGHENS)


def _exchange(count: int, rng: np.random.Generator, shared: float) -> NDArray[np.int64]:
    """A random permutation of ``range(count)`` that leaves ``shared`` of the numbers where they are
    and moves the others in one cycle."""
    moved = rng.permutation(count)[: round((1 - shared) * count)]
    out = np.arange(count)
    out[moved] = np.roll(moved, 1)
    return out


def _dealt_anew(common: Floats, sensor: Sensor, world: int, shared: float) -> Floats:
    """(c, signatures) as a sensor has them that keeps ``shared`` of them: each band group deals out
    the others to other materials.

    So a group's values are the common ones, but not what goes with what: neither which material is
    dark, nor what the near infrared says of the visible, or VH of VV. Of 64 ways to do so it is the one
    that shows canopies about as well as the common signatures do.
    """
    rng = stream("synthetic", world, "signatures", sensor.name)
    groups = [band.group for band in sensor.bands]

    def deal() -> Floats:
        order = {group: _exchange(len(SIGNATURES), rng, shared) for group in dict.fromkeys(groups)}
        return np.stack([row[order[group]] for row, group in zip(common, groups, strict=True)])

    wanted = _legible(common, sensor.bands)
    return min(
        (deal() for _ in range(64)), key=lambda dealt: abs(_legible(dealt, sensor.bands) - wanted)
    )


def _legible(signatures: Floats, bands: Sequence[Band]) -> float:
    """About how much of the variance of canopies is explained by a line through places' mean signals.

    Args:
        signatures: (c, signatures).
        bands: c of them.
    """
    odds = np.array(list(LANDUSES.values())).mean(0)[_KINDS] / 2  # one of TALL, one of FLAT
    mean = odds / np.bincount(_KINDS)[_KINDS]  # (signatures,) share of the ground
    cover = 0.4 * (np.diag(mean) - np.outer(mean, mean))  # covariance, of a Dirichlet's shape
    trees = np.array([material == "trees" for material in SIGNATURES.values()], float)
    signal, seen = signatures @ mean, signatures @ cover
    noise = seen @ signatures.T + np.outer(0.15 * signal, 0.15 * signal)  # of cover, and of light
    alike = (cover + np.outer(mean, mean)) * np.equal.outer(_KINDS, _KINDS)
    for tone in (np.full(len(bands), 0.35), 0.5 * np.array([_lean(band) for band in bands])):
        kinds = tone[:, None] * signatures / np.sqrt(3)  # as a place's kinds of materials differ
        noise += kinds @ alike @ kinds.T
    haze = np.array(
        [(0.07 / band.wavelength_um) ** 2 if band.wavelength_um else 0 for band in bands]
    )
    noise += np.outer(haze, haze) + np.diag((0.01 * signal) ** 2)
    canopies = seen @ trees
    return float(canopies @ np.linalg.solve(noise, canopies) / (trees @ cover @ trees))


def _lean(band: Band) -> float:
    """How a place's tilt acts on a band: infrared against visible, cross-polarised against not."""
    if band.wavelength_um is not None:
        return band.wavelength_um - 1
    return 0.4 if band.polarisation in ("VH", "HV") else 0.0


def _vapour(band: Band) -> float:
    """Optical depth of water vapour in an optical band; radar does not see it."""
    if band.polarisation is not None:
        return 0.0
    lines = (depth * np.exp(-(((_GRID_UM - um) / width) ** 2)) for um, width, depth in _VAPOUR)
    return float(respond(band, np.sum(list(lines), axis=0)))


def _shares(surface: Surface, ground: Ground, shading: Floats) -> Floats:
    """(n, signatures, h, w) shares of pure signatures in every pixel, times how bright it is."""
    cover = dict(zip(MATERIALS, ground.cover.swapaxes(0, 1), strict=True))
    halves = {
        "soil": ("dry soil", "wet soil", ground.moisture),
        "grass": ("dry grass", "green grass", ground.vigour),
        "crop": ("stubble", "green crop", ground.vigour),
        "trees": ("broadleaf", "needleleaf", surface.needleleaf),
        "built": ("asphalt", "concrete", surface.concrete),
    }
    n, _, *pixels = ground.cover.shape
    out = np.empty((n, len(SIGNATURES), *pixels), np.float32)
    shares = dict(zip(SIGNATURES, out.swapaxes(0, 1), strict=True))
    for material in ("water", "sand"):
        shares[material][:] = cover[material]
    for material, (one, other, share) in halves.items():
        np.multiply(cover[material], share, out=shares[other])
        np.subtract(cover[material], shares[other], out=shares[one])
    out *= shading
    return out


@dataclass(frozen=True, slots=True)
class _Part:
    """The bands of a sensor that come on one grid in one unit."""

    bands: list[int]
    unit: Unit
    radar: bool
    ratio: float  # of its pixels to those of the sensor's grid, at least 1

    def resample(self, side: int) -> tuple[Floats, NDArray[np.int64]]:
        """How it sees a picture of ``side`` pixels of the sensor's grid.

        Returns:
            The shares (cells, side) that its own cells average over, and the cell (side,) in which
            the middle of each pixel of the grid lies.
        """
        pixels = np.arange(side)
        cell = ((pixels + 0.5) / self.ratio).astype(np.int64)
        start = np.arange(cell[-1] + 1)[:, None] * self.ratio
        overlap = np.minimum(pixels + 1, start + self.ratio) - np.maximum(pixels, start)
        share = np.maximum(overlap, 0).astype(np.float32)
        share /= share.sum(1, keepdims=True)
        return share, cell


def _parts(sensor: Sensor) -> list[_Part]:
    """The sensor's bands, finest first."""
    bands: dict[tuple[float, Unit, bool], list[int]] = {}
    for i, band in enumerate(sensor.bands):
        bands.setdefault((band.gsd_m, band.unit, band.polarisation is not None), []).append(i)
    return [
        _Part(bands[gsd, unit, radar], unit, radar, max(1.0, gsd / sensor.gsd_m))
        for gsd, unit, radar in sorted(bands)
    ]


class _Scene:
    """What a picture owes to its moment and not to the land; numbers are (n, 1, 1, 1).

    Args:
        places: (n,) location numbers.
        sensor: whose name, with that of the moment, draws the numbers.
        grain: of each part: whether it is a radar's, and the shape (bands, h, w) of its speckle or noise.
        moment: of the sensor's, empty for the first.
        smooth: whether neighbouring pixels share speckle, as in GRD after a filter.
    """

    def __init__(
        self,
        places: Ids,
        sensor: Sensor,
        grain: Sequence[tuple[bool, tuple[int, int, int]]],
        moment: str,
        smooth: bool,
    ) -> None:
        looks, more = (GRD_LOOKS, BOX_PX - 1) if smooth else (LOOKS, 0)
        uniform = np.empty((len(places), 6 + len(sensor.bands)), np.float32)
        # Multiplicative of mean one, or additive of mean zero and variance one.
        self.grain = [
            np.empty((len(places), bands, h + more * radar, w + more * radar), np.float32)
            for radar, (bands, h, w) in grain
        ]
        for i, rng in enumerate(draws(places, sensor.name + moment)):
            rng.random(out=uniform[i], dtype=np.float32)
            for (radar, _), out in zip(grain, self.grain, strict=True):
                if radar:
                    rng.standard_gamma(looks, out=out[i], dtype=np.float32)
                else:
                    rng.standard_normal(out=out[i], dtype=np.float32)
        for i, (radar, _) in enumerate(grain):
            if radar:
                self.grain[i] /= np.float32(looks)
            if radar and smooth:
                box = uniform_filter(self.grain[i], BOX_PX, axes=(2, 3))
                self.grain[i] = box[..., 1:-1, 1:-1]  # only whole windows
        uniform = uniform[:, :, None, None, None]
        self.azimuth, self.relief, self.gain, self.vapour, self.haze, self.cirrus = (
            uniform[:, i] for i in range(6)
        )
        self.balance = uniform[:, 6:, 0]  # (n, c, 1, 1)

    def shading(self, slope: Floats) -> Floats:
        """(n, 1, h, w): slopes that face the sun or the radar are brighter."""
        towards = [np.cos(2 * np.pi * self.azimuth), np.sin(2 * np.pi * self.azimuth)]
        facing = slope * np.concatenate(towards, axis=1)
        return np.asarray(np.exp(0.2 * self.relief * facing.sum(1, keepdims=True)))


class Instrument:
    """A sensor that looks at surfaces.

    Args:
        sensor: one that :func:`check` lets pass.
        world: whose land it looks at; decides what it sees where materials are its own.
        smooth: whether its speckle is, see :class:`_Scene`.
    """

    def __init__(
        self, sensor: Sensor, world: int = 0, shared: float = 1, smooth: bool = False
    ) -> None:
        self.sensor, self.smooth = sensor, smooth
        self.signatures = np.stack([signature(band) for band in sensor.bands])  # (c, signatures)
        if shared < 1:
            self.signatures = _dealt_anew(self.signatures, sensor, world, shared)
        self._parts = _parts(sensor)
        self._um = np.array([band.wavelength_um or 0 for band in sensor.bands], np.float32)
        self._lean = np.array([_lean(band) for band in sensor.bands], np.float32)
        self._depth = np.array([_vapour(band) for band in sensor.bands], np.float32)

    def observe(self, surface: Surface, ground: Ground, moment: str = "") -> Floats:
        """What the sensor delivers.

        Args:
            surface: n locations.
            ground: what covers their pixels, h = w, on the sensor's grid.
            moment: another one has another light, other air, speckle and noise.

        Returns:
            float32 (n, c, h, w) in the bands' units.
        """
        side = ground.cover.shape[-1]
        grids = [part.resample(side) for part in self._parts]
        scene = _Scene(
            surface.ids,
            self.sensor,
            [
                (part.radar, (len(part.bands), len(share), len(share)))
                for part, (share, _) in zip(self._parts, grids, strict=True)
            ],
            moment,
            self.smooth,
        )
        light = _shares(surface, ground, scene.shading(ground.slope))
        out = np.empty((len(surface.ids), len(self.sensor.bands), side, side), np.float32)
        for part, (share, cell), grain in zip(self._parts, grids, scene.grain, strict=True):
            # A band coarser than the grid is averaged over its own pixels, then repeated.
            seen = light if part.ratio == 1 else share @ light @ share.T
            pure = self._local_signatures(surface, part.bands)
            sent = np.asarray(pure @ seen.reshape(*seen.shape[:2], -1)).reshape(grain.shape)
            look = self._radar if part.radar else self._camera
            read = look(sent, grain, scene, part)
            out[:, part.bands] = read if part.ratio == 1 else read[:, :, cell[:, None], cell]
        return out

    def _local_signatures(self, surface: Surface, bands: list[int]) -> Floats:
        """(n, bands, signatures): every place has its own kind of soil, grass, roof ..."""
        bright, tilt = (2 * trait[:, None, _KINDS] - 1 for trait in (surface.bright, surface.tilt))
        change = np.exp(0.35 * bright + 0.5 * tilt * self._lean[bands, None])
        return np.asarray(self.signatures[bands] * change)

    def _radar(self, power: Floats, speckle: Floats, scene: _Scene, part: _Part) -> Floats:
        """Backscatter in dB, within what the product can hold, or a picture of it; overwrites power."""
        power *= 10 ** (0.3 * (scene.gain - 0.5))
        power += np.float32(NOISE_POWER)
        power *= speckle
        decibel = np.log10(power, out=power)
        decibel *= 10
        if part.unit is Unit.DB:
            return np.clip(decibel, -35, 10, out=decibel)
        if part.unit is Unit.STRETCHED8:
            return _stretch(decibel)
        low, high = RANGE[Unit.DB]
        return _eight_bits(np.asarray(255 * (decibel - low) / (high - low)))

    def _camera(self, value: Floats, noise: Floats, scene: _Scene, part: _Part) -> Floats:
        """Reflectance through the air, or what a camera makes of it; overwrites value."""
        bands = part.bands
        um, depth = self._um[bands, None, None], self._depth[bands, None, None]
        clear = np.exp(-(0.5 + scene.vapour) * depth)
        value += 0.05 * scene.haze**2 * (0.55 / um) ** 2
        value *= np.exp(0.5 * (scene.gain - 0.5)) * clear
        value += 0.006 * scene.cirrus  # lies above the vapour
        noise *= 0.0005 + 0.015 * value
        value += noise
        if part.unit is Unit.REFLECTANCE:
            return np.clip(value, 0, 1.2, out=value)
        if part.unit is Unit.STRETCHED8:
            return _stretch(value)
        # Cameras are set for a well-exposed picture, band by band.
        exposure = np.where(um > 0.7, 1.25, 2).astype(np.float32)
        exposure = exposure * np.exp(0.16 * (scene.balance[:, bands] - 0.5))
        return _eight_bits(np.asarray(255 * exposure * np.maximum(value, 0) ** 0.8))


def _eight_bits(value: Floats) -> Floats:
    return np.rint(np.clip(value, 0, 255))


def _stretch(value: Floats) -> Floats:
    """Every band of every picture from its own 2nd to its 98th percentile."""
    low, high = np.quantile(value, (0.02, 0.98), axis=(2, 3), keepdims=True).astype(np.float32)
    return _eight_bits(255 * (value - low) / np.maximum(high - low, np.float32(1e-6)))


class Noise(Instrument):
    """A sensor that looks at nothing: every value is uniform and independent of all others."""

    def observe(self, surface: Surface, ground: Ground, moment: str = "") -> Floats:
        """float32 (n, c, h, w) in the bands' units, of which only the shape is the ground's."""
        bands, side = self.sensor.bands, ground.cover.shape[-1]
        out = np.empty((len(surface.ids), len(bands), side, side), np.float32)
        name = f"{self.sensor.name}{moment} noise"
        for row, rng in zip(out, draws(surface.ids, name), strict=True):
            rng.random(out=row, dtype=np.float32)
        low, high = np.array([RANGE[band.unit] for band in bands], np.float32).T[..., None, None]
        return np.asarray(low + (high - low) * out)
