"""A world as smooth as real chips: another ladder, speckle that spreads, and all else as it was."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gfmsum.data.instruments import BOX_PX, GRD_LOOKS, Instrument
from gfmsum.data.surface import LEVELS, SMOOTH, STRONG, Surface
from gfmsum.data.synthetic import Synthetic
from gfmsum.data.truths import TASKS
from gfmsum.sensors import S1, S2, SENSORS
from tests.data.world.scenes import (
    SMALL,
    Numbers,
    correlation,
    items_of,
    pixels,
    plain_ground,
    some_places,
)

HERE = Path(__file__).parents[3] / "experiments" / "world"
sys.path.insert(0, str(HERE))

from smoothness import CHIPS, measure, rows  # noqa: E402

FIGURES = ["share", "lag1", "lag2"]


@pytest.fixture(scope="module")
def smooth() -> Synthetic:
    return Synthetic(replace(SMALL, smooth=True))


# --- the measure


def test_what_is_flat_in_patches_has_all_its_variance_between_them() -> None:
    patches = np.indices((8, 8)).sum(0) % 2  # a chessboard
    share, *lags = measure(np.kron(patches, np.ones((4, 4)))[None])
    assert share == pytest.approx(1)
    assert lags == pytest.approx([-1, 1, -1, 1])


def test_what_alternates_within_patches_has_none_between_them() -> None:
    # A chessboard of pixels, whose patches have mean 0; and stripes of 8 px, of which a patch is half.
    fine = np.indices((32, 32)).sum(0) % 2 - 0.5
    wide = np.tile(np.repeat([-0.5, 0.5], 4), (32, 4))
    # Their variances are equal, and they do not correlate: half of the sum's lies between patches.
    share, *lags = measure((fine + wide)[None])
    assert share == pytest.approx(0.5)
    # Across the stripes patches alternate, along them they are the same: the mean of both.
    assert lags == pytest.approx([0, 1, 0, 1])


def test_independent_pixels_have_a_sixteenth_of_their_variance_between_patches() -> None:
    noise = np.random.default_rng(0).normal(3, 2, (500, 32, 32))
    share, *lags = measure(noise)
    assert share == pytest.approx(1 / 16, rel=0.05)
    # Means that were subtracted leave 64 patches of a picture a correlation of -1/63.
    assert np.abs(np.array(lags) + 1 / 63).max() < 0.02
    flat = np.concatenate([noise, np.full((5, 32, 32), 7.0)])
    assert measure(flat)[0] == pytest.approx(share)


# --- the world


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    table = pd.read_csv(HERE / "smoothness.csv")
    return table[table["pixels"] == "real"].groupby("sensor")[FIGURES].agg(["min", "max"])


@pytest.mark.parametrize("sensor", SENSORS)
def test_chips_of_every_sensor_are_as_smooth_as_real_ones(
    smooth: Synthetic, real: pd.DataFrame, sensor: str
) -> None:
    found = pd.DataFrame(rows("smooth", smooth, [sensor]))[FIGURES].mean()
    for figure in FIGURES:
        low, high = real.loc[sensor, figure]
        assert low + 0.005 < found[figure] < high - 0.005, figure


def test_the_other_world_is_not(source: Synthetic, real: pd.DataFrame) -> None:
    for sensor, figure in (("landsat", "share"), ("s2", "lag2"), ("modis", "lag1")):
        found = pd.DataFrame(rows("busy", source, [sensor]))[figure].mean()
        assert found < real.loc[sensor, (figure, "min")] - 0.02


def test_the_table_is_that_of_this_version(smooth: Synthetic) -> None:
    table = pd.read_csv(HERE / "smoothness.csv")
    known = table[(table["pixels"] == "smooth=true") & (table["sensor"] == "naip")]
    found = pd.DataFrame(rows("smooth=true", smooth, ["naip"]))
    assert (known["chips"] == CHIPS).all()
    np.testing.assert_allclose(found[FIGURES], known[FIGURES], atol=1e-3)


def test_it_has_a_name_of_its_own(source: Synthetic, smooth: Synthetic) -> None:
    assert smooth.identity == {**source.identity, "smooth": True}
    assert "smooth" not in source.identity
    for sensor in ("s1", "modis"):
        a, b = (pixels(world, sensor, range(4), 16) for world in (source, smooth))
        assert not np.isclose(a, b).all((1, 2, 3)).any()


def test_a_location_has_one_land_use_from_its_patterns_up() -> None:
    surface = Surface(some_places("x", 300), levels=SMOOTH)
    assert set(STRONG) < set(surface.strong)
    for level in surface.strong:
        assert np.array_equal(surface.landuse[:, level], surface.landuse[:, STRONG[0]])
    weak = [i for i in range(len(SMOOTH)) if i not in surface.strong]
    assert all((surface.landuse[:, i] != surface.landuse[:, STRONG[0]]).mean() > 0.7 for i in weak)
    same = Surface(some_places("x", 300)).landuse
    assert np.array_equal(surface.landuse[:, STRONG], same[:, STRONG])
    assert len(SMOOTH) == len(LEVELS)


def test_large_patterns_outvote_small_ones() -> None:
    """On 64 pixels of 10 m, more of the cover's variance lies between quarters of the picture."""
    ids = some_places("x", 80)

    def between(surface: Surface) -> float:
        cover = surface.look(10, 64).cover
        quarters = cover.reshape(*cover.shape[:2], 2, 32, 2, 32).mean((3, 5))
        return float(quarters.var((2, 3)).sum() / cover.var((2, 3)).sum())

    assert between(Surface(ids, levels=SMOOTH)) > 1.5 * between(Surface(ids))


def test_speckle_of_four_looks_is_shared_within_a_window() -> None:
    surface, ground = Surface(some_places("x", 60)), plain_ground(60, "trees")
    power = 10 ** (Instrument(S1, smooth=True).observe(surface, ground).astype(float) / 10)
    assert power.shape == (60, 2, 32, 32)
    relative = power / power.mean((2, 3), keepdims=True)
    # The mean over 9 pixels of 4.4 looks each has as many as 39.6.
    assert 1 / relative.var() == pytest.approx(GRD_LOOKS * BOX_PX**2, rel=0.06)
    # At the edges of a picture too, where no window is cut off.
    edges = [relative[..., 0, :], relative[..., -1, :], relative[..., 0], relative[..., -1]]
    assert [edge.var() * GRD_LOOKS * BOX_PX**2 for edge in edges] == pytest.approx([1] * 4, abs=0.2)
    # Windows of 3 that lie 1 or 2 apart share 2/3 and 1/3 of what they hold, and farther ones nothing.
    for lag, shared in ((1, 2 / 3), (2, 1 / 3), (3, 0)):
        assert correlation(relative[..., lag:], relative[..., :-lag]) == pytest.approx(
            shared, abs=0.03
        )
        down: Numbers = relative[..., lag:, :]
        assert correlation(down, relative[..., :-lag, :]) == pytest.approx(shared, abs=0.03)
    assert abs(correlation(relative[:, 0], relative[:, 1])) < 0.03


def test_no_camera_has_speckle() -> None:
    surface, ground = Surface(some_places("x", 6)), plain_ground(6, "trees", 8)
    a, b = (Instrument(S2, smooth=smooth).observe(surface, ground) for smooth in (False, True))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("sensor", ["s1", "modis"])
def test_all_tasks_can_be_asked(smooth: Synthetic, sensor: str) -> None:
    for name in TASKS:
        target = items_of(smooth, name, sensor, 16).target
        assert np.isfinite(target).all()
        assert target.std() > 0
    assert np.bincount(items_of(smooth, "landuse", sensor, 16).target).tolist() == [30] * 6
