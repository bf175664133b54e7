"""The land: complete, the same at every scale, and seen in part by every sensor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfmsum.data.surface import (
    LEVELS,
    MATERIALS,
    STRONG,
    Surface,
    respell,
)
from gfmsum.data.synthetic import PROBES
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, SENSORS, Sensor
from tests.data.world.scenes import (
    blocks,
    correlation,
    some_places,
)


@given(st.integers(0, 2**62 - 1), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_respelling_changes_the_strong_levels_only(place: int, landuse: int) -> None:
    ids = np.array([place], np.uint64) | PROBES
    # Numbers at the very end of the range would carry into the next bit.
    ids &= ~np.uint64(2**61)
    spelt = respell(ids, np.array([landuse]))
    want = Surface(ids).landuse
    want[0, STRONG] = landuse
    assert np.array_equal(Surface(spelt).landuse, want)
    assert spelt[0] & PROBES


def test_cover_is_complete() -> None:
    surface = Surface(some_places("x", 8))
    for sensor in SENSORS.values():
        ground = surface.look(sensor.gsd_m, 16)
        assert ground.cover.min() >= 0
        np.testing.assert_allclose(ground.cover.sum(1), 1, atol=1e-5)
        assert 0 < ground.moisture.min() < ground.moisture.max() < 1


@pytest.mark.parametrize(
    ("gsd", "factor"), [(0.3, 5), (1, 10), (10, 3), (30, 10), (100, 5), (250, 3)]
)
def test_a_coarse_pixel_is_the_mean_of_fine_ones(gsd: float, factor: int) -> None:
    surface = Surface(some_places("x", 40))
    fine, coarse = surface.look(gsd, 10 * factor), surface.look(gsd * factor, 10)
    trees = MATERIALS.index("trees")
    a, b = blocks(fine.cover[:, trees], factor), coarse.cover[:, trees]
    assert correlation(a, b) > 0.92
    assert abs((a - b).mean()) < 0.01
    assert correlation(blocks(fine.vigour, factor), coarse.vigour) > 0.998
    for axis in (0, 1):
        assert correlation(blocks(fine.slope[:, axis], factor), coarse.slope[:, axis]) > 0.998


def test_slopes_are_those_of_one_terrain() -> None:
    """A gradient has no curl: how the eastward slope changes to the north, and the other way."""
    east, north = Surface(some_places("x", 20)).look(1, 32).slope.swapaxes(0, 1)
    assert correlation(np.gradient(east, axis=1), np.gradient(north, axis=2)) > 0.9


def test_pixels_beyond_the_ladder_are_refused() -> None:
    for gsd in (50_000, 0.05):
        with pytest.raises(ValueError, match=f"gsd_m={gsd} lies beyond .* 0.1 to 3125 m"):
            Surface(some_places("x", 1)).look(gsd, 8)


@pytest.mark.parametrize("sensor", [NAIP, S1, S2, LANDSAT, MODIS])
def test_every_sensor_resolves_exactly_one_strong_level(sensor: Sensor) -> None:
    pixels = [LEVELS[i].length_m / sensor.gsd_m for i in STRONG]
    assert len([p for p in pixels if 4 <= p <= 32]) == 1


def test_a_location_has_one_land_use_on_its_strong_levels() -> None:
    landuse = Surface(some_places("x", 300)).landuse
    assert (landuse[:, STRONG] == landuse[:, STRONG[:1]]).all()
    weak = [i for i in range(len(LEVELS)) if i not in STRONG]
    assert all((landuse[:, i] != landuse[:, STRONG[0]]).mean() > 0.7 for i in weak)
