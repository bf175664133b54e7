"""Sensors and their bands: physics only, no arrays, no torch.

A :class:`Sensor` is one instrument and product. Its :class:`Band` objects carry the unit, the ground
sample distance and either a centre wavelength with its width or a polarisation, so that nothing
further down has to guess what a channel is from its position or its values.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType


class Unit(StrEnum):
    """What a pixel value measures."""

    REFLECTANCE = "reflectance"  # unitless, 0..1; clouds and snow may exceed 1
    DB = "dB"  # 10 * log10 of the backscatter coefficient (sigma0 or gamma0)
    BRIGHTNESS8 = "brightness8"  # 0..255 relative brightness, no physical scale
    STRETCHED8 = "stretched8"  # 0..255, stretched per scene: only relative within an image


@dataclass(frozen=True, slots=True)
class Band:
    """One measured channel: optical bands have a wavelength, radar bands a polarisation.

    Raises:
        ValueError: if not exactly one of the two is given, or a number is not positive.
    """

    name: str  # producer's name: "B8A", "VV"
    gsd_m: float  # ground sample distance, metres
    unit: Unit
    wavelength_um: float | None = None  # centre, micrometres
    fwhm_um: float | None = None  # full width at half maximum, micrometres
    polarisation: str | None = None  # transmit then receive: "VV", "VH", "HV", "HH"
    frequency_ghz: float | None = None  # radar's carrier; None if not known

    def __post_init__(self) -> None:
        if (self.wavelength_um is None) == (self.polarisation is None):
            raise ValueError(
                f"band {self.name}: give either wavelength_um or polarisation, "
                f"got {self.wavelength_um} and {self.polarisation}"
            )
        if (self.wavelength_um is None) != (self.fwhm_um is None):
            raise ValueError(f"band {self.name}: wavelength_um and fwhm_um go together, give both")
        if self.polarisation is not None and self.polarisation not in ("VV", "VH", "HV", "HH"):
            raise ValueError(
                f"band {self.name}: polarisation {self.polarisation!r} must be VV, VH, HV or HH"
            )
        if self.frequency_ghz is not None and self.polarisation is None:
            raise ValueError(
                f"band {self.name}: frequency_ghz is for radar; give wavelength_um alone"
            )
        for quantity in ("gsd_m", "wavelength_um", "fwhm_um", "frequency_ghz"):
            value = getattr(self, quantity)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"band {self.name}: {quantity}={value} must be above 0 and finite")

    @property
    def group(self) -> str:
        """Bands of one group are normalised together as reconstruction targets.

        Visible, near infrared and short-wave infrared, or the polarisation: within a group,
        values are of one kind and strongly correlated; between groups they are not.
        """
        if self.polarisation is not None:
            return self.polarisation
        assert self.wavelength_um is not None
        return (
            "visible" if self.wavelength_um < 0.7 else "nir" if self.wavelength_um < 1.1 else "swir"
        )


RESERVED = ("all", "clay", "dofa")
"""Words that mean something in a mix, and so name no sensor."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One instrument and product: the grid its images come on, and its bands in delivery order.

    Raises:
        ValueError: for a name that would not be safe in a mix, a path or a page, a grid that is not
            positive, or bands that are missing or not told apart by their names.
    """

    name: str  # small letters, digits and _, a letter first
    title: str
    gsd_m: float  # of the grid that images are delivered on, metres
    bands: tuple[Band, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"sensor name {self.name!r} must be small letters, digits and _, a letter first; "
                "rename it"
            )
        if self.name in RESERVED:
            raise ValueError(f"sensor name {self.name!r} already means a mix; rename it")
        if not 0 < self.gsd_m < math.inf:
            raise ValueError(f"sensor {self.name}: gsd_m={self.gsd_m} must be above 0 and finite")
        names = [band.name for band in self.bands]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"sensor {self.name}: band names {names} must be unique and not empty")

    def select(
        self, names: Sequence[str], *, unit: Unit | None = None, grid_m: float | None = None
    ) -> tuple[Band, ...]:
        """Bands by name, as some file delivers them.

        Args:
            names: in the order wanted; never by position.
            unit: replaces the bands' unit, for products that deliver another one.
            grid_m: pixel size of the file in metres. A band coarser than its native GSD takes
                the grid's, a finer grid (resampled 20 m bands at 10 m) adds no detail.

        Raises:
            ValueError: for a name this sensor does not have.
        """
        known = {band.name: band for band in self.bands}
        chosen = []
        for name in names:
            if name not in known:
                raise ValueError(f"sensor {self.name}: {unknown('band', name, known)}")
            band = known[name]
            chosen.append(
                replace(band, unit=unit or band.unit, gsd_m=max(band.gsd_m, grid_m or band.gsd_m))
            )
        return tuple(chosen)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name nobody knows: the value, the choices and the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}: choose from {', '.join(names)}{hint}"


def optical(
    unit: Unit, *rows: tuple[str, float, float, float], scale: float = 1.0
) -> tuple[Band, ...]:
    """Optical bands, one from each row.

    Args:
        unit: of all of them.
        rows: name, GSD in metres, centre and full width at half maximum.
        scale: micrometres in the unit of centre and width; 1e-3 for nanometres.
    """
    return tuple(
        Band(n, gsd, unit, centre * scale, width * scale) for n, gsd, centre, width in rows
    )


S1 = Sensor(
    "s1",
    "Sentinel-1 IW GRD",
    10.0,
    tuple(Band(p, 10.0, Unit.DB, polarisation=p, frequency_ghz=5.405) for p in ("VV", "VH")),
)
"""C-band SAR backscatter. ESA, Sentinel-1 SAR User Guide: dual polarisation over land, 10 m pixels,
centre frequency 5.405 GHz."""

S2 = Sensor(
    "s2",
    "Sentinel-2 MSI",
    10.0,
    optical(
        Unit.REFLECTANCE,
        ("B01", 60, 442.7, 20),
        ("B02", 10, 492.7, 65),
        ("B03", 10, 559.8, 35),
        ("B04", 10, 664.6, 30),
        ("B05", 20, 704.1, 14),
        ("B06", 20, 740.5, 14),
        ("B07", 20, 782.8, 19),
        ("B08", 10, 832.8, 105),
        ("B8A", 20, 864.7, 21),
        ("B09", 60, 945.1, 19),
        ("B10", 60, 1373.5, 29),
        ("B11", 20, 1613.7, 90),
        ("B12", 20, 2202.4, 174),
        scale=1e-3,
    ),
)
"""Level-1C. Centres and widths of S2A: ESA, Sentinel-2 MSI spatial and spectral resolution tables."""

LANDSAT = Sensor(
    "landsat",
    "Landsat 8 OLI surface reflectance",
    30.0,
    optical(
        Unit.REFLECTANCE,
        ("B1", 30, 0.443, 0.016),
        ("B2", 30, 0.482, 0.060),
        ("B3", 30, 0.561, 0.057),
        ("B4", 30, 0.655, 0.037),
        ("B5", 30, 0.865, 0.028),
        ("B6", 30, 1.609, 0.085),
        ("B7", 30, 2.201, 0.187),
    ),
)
"""Centres and widths: Barsi et al. 2014, The Spectral Response of the Landsat-8 OLI, table 1."""

NAIP = Sensor(
    "naip",
    "NAIP aerial imagery",
    1.0,
    optical(
        Unit.BRIGHTNESS8,
        ("R", 1, 0.635, 0.032),
        ("G", 1, 0.555, 0.060),
        ("B", 1, 0.465, 0.060),
        ("NIR", 1, 0.845, 0.074),
    ),
)
"""8-bit and uncalibrated; cameras vary by year and state. Bands of the Leica ADS100: its data sheet."""

MODIS = Sensor(
    "modis",
    "MODIS MOD09A1",
    500.0,
    optical(
        Unit.REFLECTANCE,
        ("B01", 500, 645, 50),
        ("B02", 500, 858.5, 35),
        ("B03", 500, 469, 20),
        ("B04", 500, 555, 20),
        ("B05", 500, 1240, 20),
        ("B06", 500, 1640, 24),
        ("B07", 500, 2130, 50),
        scale=1e-3,
    ),
)
"""Centres and widths from the band edges in NASA's MODIS specifications."""

SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {sensor.name: sensor for sensor in (S1, S2, LANDSAT, NAIP, MODIS)}
)
"""The founding five. :data:`gfmsum.catalog.CATALOG` holds these and every other sensor."""
