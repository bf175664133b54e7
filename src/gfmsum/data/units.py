"""What values of a unit look like: pixels that contradict their declared unit are refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gfmsum.sensors import Band, Unit

PLAUSIBLE: Mapping[Unit, tuple[float, float]] = MappingProxyType(
    {
        Unit.REFLECTANCE: (-0.1, 1.5),  # digital numbers are thousands, 8-bit ones tens
        Unit.DB: (-40.0, 0.0),  # linear backscatter is above 0
        Unit.BRIGHTNESS8: (1.0, 255.0),  # 8-bit numbers brought to 0..1 are below 1
        Unit.STRETCHED8: (1.0, 255.0),
    }
)
"""Where the mean of a band over many places must lie: a forgotten scale does not pass for a unit."""


def contradiction(bands: tuple[Band, ...], means: list[float]) -> str | None:
    """What is wrong with the bands' mean values, in words without a remedy; None if nothing is."""
    for band, mean in zip(bands, means, strict=True):
        low, high = PLAUSIBLE[band.unit]
        if not low <= mean <= high:
            return f"band {band.name} is {mean:.4g} on average, {band.unit} must lie in {low:g}..{high:g}"
    return None
