"""How far apart two sensors are, in wavelength and in ground sample distance.

Both distances are natural logarithms of ratios, so they do not depend on units, and 0.69 is a factor of
two in either. They weigh nothing against each other: that is for the law that is fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from gfmsum.sensors import Band, Sensor

LIGHT = 299_792.458
"""Speed of light in um GHz."""

RANGE_UM = (0.1, 1e7)
"""Wavelengths that can be compared: ultraviolet to a radar of 10 m."""

_CELL = 0.001  # of ln wavelength: half a nanometre in green light
_FLANK = 3.0  # of ln wavelength beyond the range: room for the flanks of the broadest bands
_EDGES = np.arange(math.log(RANGE_UM[0]) - _FLANK, math.log(RANGE_UM[1]) + _FLANK, _CELL)


def spectral_distance(a: Sensor, b: Sensor) -> float:
    """How far the light that one sensor sees must be moved to be the light that the other sees.

    The 1-Wasserstein distance between the sensors' responses over x = ln wavelength,

        d(a, b) = integral of |F_a(x) - F_b(x)| dx,    F_s = mean over the bands of s of F_band,

    where F_band is cumulative and goes from 0 to 1, so every band weighs the same: an optical band is a
    Gaussian at ln(centre) with standard deviation (FWHM / centre) / sqrt(8 ln 2), to first order in the
    relative width; a radar band is a step at ln(c / frequency). Two sensors of one band of equal relative
    width are |ln(centre_a / centre_b)| apart. Radar needs no rule of its own: it looks at waves some ten
    thousand times longer, so it is 10 to 12 from any optical sensor; C band and X band are 0.6 apart.

    A metric on responses: symmetric, 0 where they are equal, and no detour is shorter. Polarisation, unit
    and GSD are not part of the response.

    Returns:
        In natural logarithms of wavelength, good to 0.001.

    Raises:
        ValueError: for radar without a frequency, or a wavelength outside RANGE_UM.
    """
    return float(np.abs(_response(a) - _response(b)).sum())


def gsd_log_ratio(a: Sensor, b: Sensor) -> float:
    """|ln(gsd_a / gsd_b)| of the grids that images are delivered on; a metric, 0 for equal grids.

    Bands that are coarser than their sensor's grid do not count.
    """
    return abs(math.log(a.gsd_m) - math.log(b.gsd_m))


class Distance(NamedTuple):
    """Two sensors by name, and how far apart they are."""

    a: str
    b: str
    spectral: float  # ln of wavelength
    gsd: float  # ln of GSD


def distances(sensors: Iterable[Sensor]) -> list[Distance]:
    """Every pair of ``sensors`` once, in their order; ``pandas.DataFrame`` takes it as it is."""
    return [
        Distance(a.name, b.name, spectral_distance(a, b), gsd_log_ratio(a, b))
        for a, b in combinations(sensors, 2)
    ]


@lru_cache(maxsize=256)
def _response(sensor: Sensor) -> NDArray[np.float64]:
    """The area under the sensor's cumulative response in every cell, (cells,)."""
    # Areas and not samples: they are exact, and distances between them obey the triangle inequality.
    area = np.zeros(len(_EDGES) - 1)
    for band in sensor.bands:
        centre, width = _gaussian(sensor, band)
        beyond = _EDGES - centre
        if width:
            z = beyond / width
            density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
            integral = beyond * ndtr(z) + width * density
        else:
            integral = np.maximum(beyond, 0)
        area += np.diff(integral)
    return area / len(sensor.bands)


def _gaussian(sensor: Sensor, band: Band) -> tuple[float, float]:
    """Mean and standard deviation of a band's response in ln um."""
    if band.wavelength_um is not None and band.fwhm_um is not None:
        centre, width = band.wavelength_um, band.fwhm_um / band.wavelength_um
    elif band.frequency_ghz is not None:
        centre, width = LIGHT / band.frequency_ghz, 0.0
    else:
        raise ValueError(
            f"sensor {sensor.name}, band {band.name}: its wavelength is not known; give frequency_ghz"
        )
    low, high = RANGE_UM
    if not low <= centre <= high:
        raise ValueError(
            f"sensor {sensor.name}, band {band.name}: {centre:g} um must be from {low:g} to {high:g} um; "
            "check its unit"
        )
    return math.log(centre), width / math.sqrt(8 * math.log(2))
