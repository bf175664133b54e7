"""Which of our bands goes to which channel of a model that has fixed channels; no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from gfmsum.sensors import Band, Sensor

type Order = tuple[int | None, ...]
"""For each channel, which of the image's bands fills it; None where it has none."""

COLOURS: Mapping[str, float] = MappingProxyType({"red": 0.660, "green": 0.560, "blue": 0.480})
"""Centres in µm, in the order of a photograph's channels."""

HLS: Mapping[str, float] = MappingProxyType(
    {"BLUE": 0.490, "GREEN": 0.560, "RED": 0.660, "NIR_NARROW": 0.865, "SWIR_1": 1.610, "SWIR_2": 2.200}
)  # fmt: skip
"""Prithvi's channels: centres of Harmonized Landsat Sentinel-2, between those of OLI and MSI."""

MISSING = ("refuse", "zero")
NEAR = 0.05  # of ln wavelength: S2's red edge, 0.704 µm, is no red; MODIS' 0.469 µm is a blue
SAME = 0.015  # S2A and S2B differ by up to 0.8 %, S2's and Landsat's blue by 2.2 %


def by_wavelength(bands: Sequence[Band], wanted: Mapping[str, float]) -> Order:
    """For each wanted centre in µm the nearest band within NEAR, whatever its name."""

    def gap(i: int, centre: float) -> float:
        wavelength = bands[i].wavelength_um
        return math.inf if wavelength is None else abs(math.log(wavelength / centre))

    order = []
    for centre in wanted.values():
        nearest = min(range(len(bands)), key=lambda i: gap(i, centre))
        order.append(nearest if gap(nearest, centre) < NEAR else None)
    return tuple(order)


def by_name(bands: Sequence[Band], channels: Sequence[str], sensor: Sensor) -> Order:
    """For each channel the band of that name, if it measures what the sensor's band of that name does.

    Args:
        bands: of an image.
        channels: names, in any spelling: ``B8a``, ``B8A``, ``SR_B4``, ``B4`` and ``B04`` are understood.
        sensor: whose bands the names are; a channel that it does not have stays empty.

    Raises:
        ValueError: for a band that has the name but measures something else.
    """
    known = {plain_name(band.name): band for band in sensor.bands}
    given = {plain_name(band.name): i for i, band in enumerate(bands)}
    order: list[int | None] = []
    for channel in map(plain_name, channels):
        place = given.get(channel) if channel in known else None
        if place is not None and not _alike(bands[place], known[channel]):
            raise ValueError(
                f"band {bands[place].name} ({_measures(bands[place])}) is not {sensor.title}'s "
                f"({_measures(known[channel])}); these weights read {sensor.title} only"
            )
        order.append(place)
    return tuple(order)


def complete(order: Order, channels: Sequence[str], missing: str) -> Order:
    """The order, if what becomes of missing channels is allowed.

    Raises:
        ValueError: if none can be filled, or some cannot and ``missing`` is ``refuse``.
    """
    absent = [channel for channel, place in zip(channels, order, strict=True) if place is None]
    if len(absent) == len(order):
        raise ValueError(
            f"the image has none of the bands {', '.join(channels)}; use another model"
        )
    if absent and missing == "refuse":
        raise ValueError(
            f"the image has no band for {', '.join(absent)}; say missing=zero to put zeros there, "
            "or use another model"
        )
    return order


def plain_name(name: str) -> str:
    """One spelling for all: without SR_ and leading zeros, in capitals."""
    return re.sub(r"^B0+(?=\d)", "B", name.upper().removeprefix("SR_"))


def _alike(a: Band, b: Band) -> bool:
    if a.polarisation != b.polarisation:
        return False
    if a.wavelength_um is not None and b.wavelength_um is not None:
        return abs(math.log(a.wavelength_um / b.wavelength_um)) < SAME
    known = a.frequency_ghz is not None and b.frequency_ghz is not None
    return not known or abs(math.log((a.frequency_ghz or 1) / (b.frequency_ghz or 1))) < NEAR


def _measures(band: Band) -> str:
    if band.wavelength_um is not None:
        return f"{band.wavelength_um:g} µm"
    carrier = f" at {band.frequency_ghz:g} GHz" if band.frequency_ghz else ""
    return f"{band.polarisation}{carrier}"
