"""How much of the land sensors share is a dial."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from gfmsum.catalog import ENMAP
from gfmsum.data import instruments, synthetic, truths
from gfmsum.data.instruments import Instrument
from gfmsum.data.plan import stream
from gfmsum.data.surface import (
    LANDUSES,
    LATENTS,
    MATERIALS,
    STRONG,
    Own,
    Surface,
    respell,
)
from gfmsum.data.synthetic import Synthetic
from gfmsum.data.units import contradiction
from gfmsum.sensors import MODIS, S1, S2, SENSORS, Sensor, Unit
from tests.data.world.scenes import (
    SMALL,
    Numbers,
    Views,
    correlation,
    fitted,
    items_of,
    pixels,
    rings,
    some_places,
)

DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)


def world_of(shared: float, world: int = 0) -> Synthetic:
    return Synthetic(replace(SMALL, shared=shared, world=world))


def test_with_all_shared_nothing_changes(source: Synthetic, views: Views) -> None:
    same = world_of(1.0)
    assert same.identity == source.identity
    assert same.caveats == source.caveats
    assert np.array_equal(pixels(same, "modis", range(8)), views["modis"][:8])
    # The dial's machinery at its end stop: no part is anyone's own, and the laws are the common ones.
    surface = Surface(some_places("x", 5), Own(some_places("y", 5), np.zeros((5, LATENTS), bool),
                                               synthetic._grain(stream("z"), 1.0)))  # fmt: skip
    assert np.array_equal(surface.look(10, 8).cover, Surface(some_places("x", 5)).look(10, 8).cover)
    dealt = instruments._dealt_anew(Instrument(S2).signatures, S2, 0, 1.0)
    assert np.array_equal(dealt, Instrument(S2).signatures)


def test_the_dial_is_part_of_the_name_and_of_the_caveats(source: Synthetic) -> None:
    half = world_of(0.5)
    assert half.identity == {**source.identity, "shared": 0.5}
    assert world_of(0.0).identity == {**source.identity, "shared": 0.0}
    assert "50% is common" in half.caveats[1]


@pytest.mark.parametrize("latent", ["canopy", "landuse", "moisture"])
def test_sensors_agree_the_more_on_a_place_the_more_they_share(latent: str) -> None:
    """S1 and S2 have one grid: what they have in common is the land."""
    places = some_places("x", 400)

    def seen(sensor: str, shared: float) -> Numbers:
        surface = world_of(shared)._views[sensor].surface(places)
        if latent == "landuse":
            return np.eye(len(LANDUSES))[surface.landuse[:, STRONG[0]]]
        ground = surface.look(10, 8)
        field = (
            ground.moisture if latent == "moisture" else ground.cover[:, MATERIALS.index("trees")]
        )
        return field.mean((1, 2))

    agreement = [correlation(seen("s1", shared), seen("s2", shared)) for shared in DIAL]
    assert abs(agreement[0]) < 0.12
    assert agreement[-1] == pytest.approx(1)
    assert all(less < more for less, more in pairwise(agreement))
    # A part is common to two sensors if both keep it.
    if latent == "landuse":
        np.testing.assert_allclose(agreement, np.square(DIAL), atol=0.12)


def test_raw_pixels_of_one_place_agree_only_if_shared() -> None:
    """Greenness through S2 and the middle of Landsat, as where all is shared."""
    agreement = []
    for shared in (0.0, 1.0):
        source = world_of(shared)
        s2 = pixels(source, "s2", range(100))[:, [7, 3]].mean((2, 3))
        landsat = pixels(source, "landsat", range(100))[:, [4, 3], 11:21, 11:21].mean((2, 3))
        agreement.append(correlation(*(np.log(x[:, 0] / x[:, 1]) for x in (s2, landsat))))
    assert abs(agreement[0]) < 0.3
    assert agreement[1] > 0.9


def test_what_is_common_stays_common_as_more_is_shared() -> None:
    places = some_places("x", 200)
    common, length = Surface(places).landuse, Surface(places).length_m
    before = np.zeros(length.shape, bool)
    for shared in DIAL:
        surface = world_of(shared)._views["naip"].surface(places)
        now = surface.length_m == length
        assert (now | ~before).all()
        assert (surface.landuse == common)[now].all()
        assert now.mean() == pytest.approx(shared, abs=0.06)
        # The strong levels are one part.
        assert (now[:, STRONG] == now[:, STRONG[:1]]).all()
        before = now


def test_what_stands_in_depends_on_place_and_sensor_alone() -> None:
    places = some_places("x", 50)
    views = world_of(0.0)._views
    a = views["s1"].surface(places).length_m
    assert np.array_equal(a, world_of(0.0)._views["s1"].surface(places[::-1]).length_m[::-1])
    assert not (a == views["s2"].surface(places).length_m).any()
    assert len(np.unique(a)) == a.size


def test_a_grain_moves_the_points_at_which_patterns_are_looked_up() -> None:
    ids = some_places("x", 40)
    none = np.zeros((40, LATENTS), bool)
    axis = ((np.arange(16) - 7.5) * 3).astype(np.float32)
    levels = [1, 2, 3]

    def heights(axis: Numbers, *rows: tuple[float, float]) -> Numbers:
        grain = np.array(rows, np.float32)
        return Surface(ids, Own(ids, none, grain))._heights(levels, axis).reshape(40, 3, 16, 16)

    assert set(Surface(ids).landuse[:, levels].ravel()) == set(range(6))
    plain = Surface(ids)._heights(levels, axis).reshape(40, 3, 16, 16)
    assert np.array_equal(heights(axis, (1, 0), (0, 1)), plain)
    twice = Surface(ids)._heights(levels, 2 * axis).reshape(40, 3, 16, 16)
    np.testing.assert_allclose(heights(axis, (2, 0), (0, 2)), twice, atol=2e-3)
    # The point (x, y) is looked up at (-y, x): a quarter turn.
    turned = heights(axis, (0, -1), (1, 0))
    assert np.isclose(turned, np.rot90(plain, 1, axes=(2, 3)), atol=2e-3).mean() > 0.995


def test_grains_are_the_sensors_own_and_fade() -> None:
    grains = [synthetic._grain(stream("synthetic", 0, "grain", name), 0.0) for name in SENSORS]
    for i, grain in enumerate(grains):
        np.testing.assert_allclose(grain, grain.T, atol=1e-6)
        long, short = np.linalg.eigvalsh(grain)[::-1]
        assert 1.25**2 - 1e-3 < long / short < 1.5**2 + 1e-3
        assert 0.8 - 1e-3 < np.sqrt(long * short) < 1.25 + 1e-3
        assert all(not np.allclose(grain, other, atol=0.02) for other in grains[:i])
    size = [np.linalg.norm(synthetic._grain(stream("x"), s) - np.eye(2)) for s in DIAL]
    assert sorted(size, reverse=True) == size
    assert size[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sensor", [S1, S2, MODIS, ENMAP])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_signatures_are_dealt_out_within_band_groups(sensor: Sensor, shared: float) -> None:
    common, own = Instrument(sensor).signatures, Instrument(sensor, 0, shared).signatures
    moved = (common != own).sum(1)
    assert (moved <= 12 * (1 - shared)).all()
    assert moved.max() == 12 * (1 - shared)
    groups: dict[str, list[int]] = {}
    for i, band in enumerate(sensor.bands):
        groups.setdefault(band.group, []).append(i)
    for bands in groups.values():
        assert sorted(common[bands].T.tolist()) == sorted(own[bands].T.tolist())
    assert (
        abs(
            instruments._legible(own, sensor.bands) / instruments._legible(common, sensor.bands) - 1
        )
        < 0.2
    )
    if not shared:
        assert not np.array_equal(own, Instrument(sensor, 1, shared).signatures)
        assert (own != Instrument(replace(sensor, name="other"), 0, shared).signatures).any()


def test_pixels_of_sensors_that_share_nothing_are_in_their_units() -> None:
    source = world_of(0.0)
    for name, sensor in SENSORS.items():
        x = pixels(source, name, range(60))
        assert np.isfinite(x).all()
        assert contradiction(sensor.bands, x.mean((0, 2, 3)).tolist()) is None
        if sensor.bands[0].unit is Unit.REFLECTANCE:
            assert 0.1 < x.mean() < 0.4
        elif sensor.bands[0].unit is Unit.DB:
            assert (np.abs(x.mean((0, 2, 3)) - [-10, -16.5]) < 4).all()
        else:
            assert 60 < x.mean() < 180


def test_tasks_are_about_as_hard_whatever_is_shared() -> None:
    """For who knows one sensor alone: simple features of it, and labels of its own land."""
    scores = np.zeros((2, 3, 2))  # shared or not, sensors, tasks
    for i, shared in enumerate((1.0, 0.0)):
        source = Synthetic(replace(SMALL, train=400, test=200, shared=shared))
        for j, sensor in enumerate(("s1", "landsat", "modis")):
            landuse, canopy = (items_of(source, name, sensor) for name in ("landuse", "canopy"))
            x = landuse.samples.pixels.astype(np.float64)
            features = np.concatenate([x.mean((2, 3)), np.log(x.std((2, 3))), rings(x)], axis=1)
            scores[i, j] = (
                fitted(LogisticRegression(C=0.03), features, landuse),
                fitted(Ridge(30), features, canopy),
            )
            assert np.bincount(landuse.target).max() / len(landuse.target) < 0.21
    assert (scores > 0.35).all()
    np.testing.assert_allclose(scores[0].mean(0), scores[1].mean(0), atol=0.15)


def test_labels_are_those_of_the_land_as_the_sensor_has_it() -> None:
    source = world_of(0.0)
    for sensor in ("s1", "s2"):
        landuse, canopy = (items_of(source, name, sensor) for name in ("landuse", "canopy"))
        places = respell(source._probe_places("train", 6), np.arange(6))
        surface = source._views[sensor].surface(places)
        assert landuse.target[:6].tolist() == surface.landuse[:, STRONG[0]].tolist()
        cover = surface.look(10, 32).cover[:, MATERIALS.index("trees")].mean((1, 2))
        np.testing.assert_allclose(canopy.target[:6], cover, rtol=1e-5)
        covers = truths.most(surface.look(10, 32))
        assert np.array_equal(items_of(source, "cover", sensor, 32).target[:6], covers)
    one, other = (items_of(source, "landuse", s, 32).target for s in ("s1", "s2"))
    assert (one == other).mean() < 0.3
    one, other = (items_of(source, "cover", s, 32).target for s in ("s1", "s2"))
    assert (one == other).mean() < 0.5
    for sensor in ("s1", "s2"):
        items = items_of(source, "clearing", sensor, 32)
        assert items.before is not None
        known = items_of(source, "landuse", sensor, 32).samples
        assert np.array_equal(items.before.pixels, known.pixels)


@pytest.mark.parametrize("name", ["alias", "harm"])
def test_a_control_that_knows_the_land_to_be_common_leaves_no_dial(name: str) -> None:
    with pytest.raises(ValueError, match=rf"data.shared=0.5 would break what data.control={name}"):
        Synthetic(replace(SMALL, control=name, target="s1", shared=0.5))


def test_help_may_come_from_land_of_its_own() -> None:
    world = Synthetic(replace(SMALL, control="help", target="landsat", scarce=5, shared=0.0))
    target, helper = (world._views[name] for name in ("landsat", "s1"))
    assert target.instrument.sensor.bands == helper.instrument.sensor.bands
    assert not np.array_equal(target.instrument.signatures, helper.instrument.signatures)
    assert len(world.caveats) == 3
