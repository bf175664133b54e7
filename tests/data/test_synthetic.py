"""The synthetic world: reproducible, physically plausible, and hard for whoever ignores shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gfmsum.config import CONTROLS, SyntheticConfig
from gfmsum.data import synthetic
from gfmsum.data.sample import Labelled
from gfmsum.data.surface import (
    LANDUSES,
    LEVELS,
    MATERIALS,
    PLACES,
    STRONG,
    Ground,
    Surface,
    respell,
)
from gfmsum.data.synthetic import LOOKS, PROBES, Instrument, Synthetic, respond
from gfmsum.job import probe_key
from gfmsum.records import fingerprint
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, SENSORS, Band, Sensor, Unit

type Numbers = NDArray[Any]
type Views = dict[str, Numbers]

SMALL = SyntheticConfig(train=60, val=60, test=60)
# Mean of the first band over the first 8 locations.
GOLDEN = {
    "s1": -9.965978,
    "s2": 0.11322562,
    "landsat": 0.089731042,
    "naip": 99.49353,
    "modis": 0.14305532,
}


@pytest.fixture(scope="module")
def source() -> Synthetic:
    return Synthetic(SMALL)


@pytest.fixture(scope="module")
def views(source: Synthetic) -> Views:
    """The first 120 locations of one list, through every sensor."""
    return {name: pixels(source, name, range(120)) for name in SENSORS}


def pixels(
    source: Synthetic, sensor: str, slots: range, size: int = 32, seed: tuple[int, int] = (3, 1)
) -> Numbers:
    (samples,) = source.pretraining(sensor, slots, size, seed)
    return samples.pixels


def blocks(x: Numbers, side: int) -> Numbers:
    """Means over blocks of side x side pixels."""
    *lead, h, w = x.shape
    return x.reshape(*lead, h // side, side, w // side, side).mean((-3, -1))


def correlation(a: Numbers, b: Numbers) -> float:
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def plain_ground(n: int, material: str, size: int = 32, moisture: float = 0.5) -> Ground:
    cover = np.zeros((n, len(MATERIALS), size, size), np.float32)
    cover[:, MATERIALS.index(material)] = 1
    level = np.full((n, size, size), moisture, np.float32)
    return Ground(cover, level, np.full_like(level, 0.5), np.zeros((n, 2, size, size), np.float32))


# --- lists of locations


@pytest.mark.parametrize("sensor", SENSORS)
def test_a_sub_range_of_slots_gives_the_same_pixels(views: Views, sensor: str) -> None:
    fresh = Synthetic(SMALL)
    assert np.array_equal(pixels(fresh, sensor, range(61, 70)), views[sensor][61:70])


def test_chunks_do_not_matter(
    views: Views, source: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 7)
    assert np.array_equal(pixels(source, "s2", range(20)), views["s2"][:20])


def test_every_sensor_sees_the_same_list(source: Synthetic) -> None:
    names = [source.pretraining(s, range(5), 16, (0,))[0].ids.tolist() for s in SENSORS]
    assert all(row == names[0] for row in names)
    assert len(set(names[0])) == 5


def test_seed_and_world_change_the_list(source: Synthetic) -> None:
    other = Synthetic(replace(SMALL, world=1))
    here = pixels(source, "s2", range(4))
    assert not np.isclose(here, pixels(source, "s2", range(4), seed=(3, 2))).all((1, 2, 3)).any()
    assert not np.isclose(here, pixels(other, "s2", range(4))).all((1, 2, 3)).any()


def test_pixels_are_those_of_this_version(views: Views) -> None:
    # A change of these numbers changes weights: raise VERSION with it.
    assert synthetic.VERSION == 1
    means = {name: float(views[name][:8, 0].mean(dtype=np.float64)) for name in SENSORS}
    assert means == pytest.approx(GOLDEN, rel=1e-4)


def test_probe_locations_are_never_pretraining_locations(source: Synthetic) -> None:
    many = source._places("pretraining", 0, count=20_000)
    assert not (many & ~PLACES).any()
    probes = source._places("test", count=20_000) | PROBES
    assert len(np.intersect1d(many, probes)) == 0
    assert len(np.unique(many)) == len(np.unique(probes)) == 20_000


def test_any_size_and_no_slots(source: Synthetic) -> None:
    assert pixels(source, "s2", range(3), size=21).shape == (3, 13, 21, 21)
    (empty,) = source.pretraining("s1", range(0), 32, (0,))
    assert len(empty) == 0
    assert empty.pixels.shape == (0, 2, 32, 32)


def test_source_says_what_it_is(source: Synthetic) -> None:
    assert source.identity == {"source": "synthetic", "version": 1, "world": 0}
    assert Synthetic(replace(SMALL, train=99)).identity == source.identity
    assert source.available("s1", 32) is None
    assert "no evidence" in source.caveats[0]


def test_unknown_names_are_refused(source: Synthetic) -> None:
    with pytest.raises(ValueError, match="unknown sensor 's3'"):
        source.pretraining("s3", range(2), 32, (0,))
    with pytest.raises(ValueError, match="unknown sensor 's3'"):
        source.tasks("s3")
    with pytest.raises(ValueError, match="did you mean 'landuse_s1'"):
        source.labelled(replace(source.tasks("s1")[0], name="landuse_s"), 32)


# --- the surface


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


def test_cover_is_complete(source: Synthetic) -> None:
    surface = Surface(source._places("x", count=8))
    for sensor in SENSORS.values():
        ground = surface.look(sensor.gsd_m, 16)
        assert ground.cover.min() >= 0
        np.testing.assert_allclose(ground.cover.sum(1), 1, atol=1e-5)
        assert 0 < ground.moisture.min() < ground.moisture.max() < 1


@pytest.mark.parametrize(("gsd", "factor"), [(1, 10), (10, 3), (30, 10), (100, 5)])
def test_a_coarse_pixel_is_the_mean_of_fine_ones(source: Synthetic, gsd: int, factor: int) -> None:
    surface = Surface(source._places("x", count=40))
    fine, coarse = surface.look(gsd, 10 * factor), surface.look(gsd * factor, 10)
    trees = MATERIALS.index("trees")
    a, b = blocks(fine.cover[:, trees], factor), coarse.cover[:, trees]
    assert correlation(a, b) > 0.92
    assert abs((a - b).mean()) < 0.01
    assert correlation(blocks(fine.vigour, factor), coarse.vigour) > 0.998
    for axis in (0, 1):
        assert correlation(blocks(fine.slope[:, axis], factor), coarse.slope[:, axis]) > 0.998


def test_slopes_are_those_of_one_terrain(source: Synthetic) -> None:
    """A gradient has no curl: how the eastward slope changes to the north, and the other way."""
    east, north = Surface(source._places("x", count=20)).look(1, 32).slope.swapaxes(0, 1)
    assert correlation(np.gradient(east, axis=1), np.gradient(north, axis=2)) > 0.9


def test_pixels_beyond_the_ladder_are_refused(source: Synthetic) -> None:
    with pytest.raises(ValueError, match="gsd_m=50000 lies beyond"):
        Surface(source._places("x", count=1)).look(50_000, 8)


@pytest.mark.parametrize("sensor", [NAIP, S1, S2, LANDSAT, MODIS])
def test_every_sensor_resolves_exactly_one_strong_level(sensor: Sensor) -> None:
    pixels = [LEVELS[i].length_m / sensor.gsd_m for i in STRONG]
    assert len([p for p in pixels if 4 <= p <= 32]) == 1


def test_a_location_has_one_land_use_on_its_strong_levels(source: Synthetic) -> None:
    landuse = Surface(source._places("x", count=300)).landuse
    assert (landuse[:, STRONG] == landuse[:, STRONG[:1]]).all()
    weak = [i for i in range(len(LEVELS)) if i not in STRONG]
    assert all((landuse[:, i] != landuse[:, STRONG[0]]).mean() > 0.7 for i in weak)


# --- bands


@pytest.mark.parametrize("band", [b for s in (S2, LANDSAT, NAIP, MODIS) for b in s.bands])
def test_bands_integrate_spectra(band: Band) -> None:
    grid = np.arange(0.35, 2.7, 0.001)
    assert respond(band, np.full_like(grid, 0.37)) == pytest.approx(0.37, abs=1e-12)
    # The mean of a straight line under a symmetric response is its value at the centre.
    assert respond(band, 3 * grid) == pytest.approx(3 * band.wavelength_um, abs=1e-3)


def test_the_width_of_a_band_is_its_full_width_at_half_maximum() -> None:
    grid = np.arange(0.35, 2.7, 0.001)
    band = Band("x", 10, Unit.REFLECTANCE, wavelength_um=1.0, fwhm_um=0.2)
    inside = (np.abs(grid - 1.0) < 0.1).astype(float)
    # erf(sqrt(ln 2)) = 0.7610 of a Gaussian lies within its half maximum.
    assert respond(band, inside) == pytest.approx(0.7610, abs=2e-3)


def test_plants_have_a_red_edge_and_water_has_none() -> None:
    shine = dict(zip(synthetic._SIGNATURES, Instrument(S2).signatures.T, strict=True))
    red, edge, nir = (next(i for i, b in enumerate(S2.bands) if b.name == n)
                      for n in ("B04", "B06", "B08"))  # fmt: skip
    for plant in ("green grass", "green crop", "broadleaf", "needleleaf"):
        assert shine[plant][nir] > 5 * shine[plant][red]
        assert shine[plant][red] < shine[plant][edge] < shine[plant][nir]
    assert shine["water"][nir] < shine["water"][red]


def test_backscatter_follows_the_ground() -> None:
    radar = dict(zip(synthetic._SIGNATURES, Instrument(S1).signatures.T, strict=True))
    vv, vh = 0, 1
    assert radar["wet soil"][vv] == pytest.approx(10 ** (4 / 10) * radar["dry soil"][vv])
    assert max(radar, key=lambda name: radar[name][vv]) == "concrete"  # double bounce
    assert radar["broadleaf"][vh] > radar["green crop"][vh] > radar["green grass"][vh]
    assert all(power[vv] > power[vh] for power in radar.values())


# --- pixels


def test_pixels_are_in_their_units(views: Views) -> None:
    for name, x in views.items():
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        unit = SENSORS[name].bands[0].unit
        if unit is Unit.REFLECTANCE:
            assert x.min() >= 0
            assert x.max() <= 1.2
            assert 0.1 < x.mean() < 0.4
        elif unit is Unit.DB:
            assert x.min() >= -35
            assert x.max() <= 10
            assert -14 < x[:, 0].mean() < -7
            assert -21 < x[:, 1].mean() < -13
        else:
            assert np.array_equal(x, np.rint(x))
            assert x.min() >= 0
            assert x.max() <= 255
            assert 60 < x.mean() < 180


def test_cirrus_is_the_darkest_band_over_land(views: Views) -> None:
    means = views["s2"].mean((0, 2, 3))
    assert S2.bands[means.argmin()].name == "B10"


def test_coarse_bands_repeat_their_own_pixels(views: Views) -> None:
    for i, band in enumerate(S2.bands):
        side = round(band.gsd_m / S2.gsd_m)
        x = views["s2"][:, i, :30, :30]
        repeated = np.kron(x[:, ::side, ::side], np.ones((side, side), np.float32))
        assert np.array_equal(x, repeated)
    fine = views["s2"][:, 1, :30, :30]
    assert not np.array_equal(fine, np.kron(fine[:, ::2, ::2], np.ones((2, 2), np.float32)))


def test_speckle_has_its_looks_and_is_independent(source: Synthetic) -> None:
    surface = Surface(source._places("x", count=60))
    power = 10 ** (Instrument(S1).observe(surface, plain_ground(60, "trees")).astype(float) / 10)
    relative = power / power.mean((2, 3), keepdims=True)
    # A gamma variate of L looks has mean one, variance 1/L and skewness 2/sqrt(L).
    assert 1 / relative.var() == pytest.approx(LOOKS, rel=0.03)
    assert ((relative - 1) ** 3).mean() * LOOKS**1.5 == pytest.approx(2 / LOOKS**0.5, rel=0.06)
    assert abs(correlation(relative[:, 0], relative[:, 1])) < 0.02
    assert abs(correlation(relative[..., 1:], relative[..., :-1])) < 0.02


def test_wet_ground_scatters_more_and_reflects_less(source: Synthetic) -> None:
    surface = Surface(source._places("x", count=30))
    dry, wet = (plain_ground(30, "soil", moisture=m) for m in (0.1, 0.9))
    radar, optical = Instrument(S1), Instrument(LANDSAT)
    assert (radar.observe(surface, wet) - radar.observe(surface, dry)).mean() > 1.5
    assert (optical.observe(surface, wet) < optical.observe(surface, dry)).mean() > 0.99


def test_slopes_that_face_the_light_are_brighter(source: Synthetic) -> None:
    surface = Surface(source._places("x", count=20))
    flat = plain_ground(20, "soil", size=8)
    tilted = replace(flat, slope=flat.slope + np.float32(2))
    away = replace(flat, slope=flat.slope - np.float32(2))
    level, one, other = (Instrument(LANDSAT).observe(surface, g).mean((1, 2, 3))
                         for g in (flat, tilted, away))  # fmt: skip
    assert np.all((one - level) * (other - level) < 0)


def test_every_picture_has_its_own_light(source: Synthetic) -> None:
    """Two bands of one wavelength differ by more than their widths: by illumination and haze."""
    surface, ground = Surface(source._places("x", count=60)), plain_ground(60, "trees", size=8)
    s2 = Instrument(S2).observe(surface, ground)[:, 8]
    landsat = Instrument(LANDSAT).observe(surface, ground)[:, 4]
    assert np.log(s2.mean((1, 2)) / landsat.mean((1, 2))).std() > 0.1


def test_sensors_share_the_land(views: Views) -> None:
    """S2 and the middle of Landsat see one place; so do red edge and VH."""

    def greenness(name: str, nir: int, red: int) -> Numbers:
        x = views[name] if name == "s2" else views[name][:, :, 11:21, 11:21]
        bright, dark = x[:, nir].mean((1, 2)), x[:, red].mean((1, 2))
        return (bright - dark) / (bright + dark)

    assert correlation(greenness("s2", 7, 3), greenness("landsat", 4, 3)) > 0.9
    # Raw bands agree less: each picture has its own light.
    swir = views["s2"][:, 11], views["landsat"][:, 5, 11:21, 11:21]
    assert correlation(*(band.mean((1, 2)) for band in swir)) > 0.4
    vh = views["s1"][:, 1].mean((1, 2))
    assert correlation(greenness("s2", 7, 3), vh) > 0.25
    # And pixel by pixel: shared edges, not just shared means. Shortwave infrared falls and VH
    # rises with canopies.
    inside = [correlation(blocks(a, 4), blocks(b, 4))
              for a, b in zip(views["s2"][:, 11], views["s1"][:, 1], strict=True)]  # fmt: skip
    assert np.median(inside) < -0.3


# --- tasks


@pytest.mark.parametrize("sensor", SENSORS)
def test_tasks_are_complete(source: Synthetic, sensor: str) -> None:
    tasks = source.tasks(sensor)
    assert [t.name for t in tasks] == [f"{t}_{sensor}" for t in ("landuse", "diversity", "canopy")]
    assert [(t.metric, t.floor, t.ceiling) for t in tasks] == [
        ("accuracy", 1 / 6, 1.0), ("r2", 0.0, 1.0), ("r2", 0.0, 1.0),
    ]  # fmt: skip
    landuse, diversity, canopy = (source.labelled(task, 32) for task in tasks)
    assert landuse.samples is diversity.samples is canopy.samples
    assert np.bincount(landuse.target).tolist() == [30] * 6
    for part in landuse.folds[0]:
        assert np.bincount(landuse.target[part]).tolist() == [10] * 6
    assert np.array_equal(np.concatenate(landuse.folds[0]), np.arange(180))
    assert landuse.samples.ids[landuse.folds[0][2][17]] == "synthetic/0/test/17"
    assert len(set(landuse.cluster)) == 180
    assert 0 <= diversity.target.min() < diversity.target.max() <= 1 - 1 / len(MATERIALS)
    assert diversity.target.std() > 0.05
    assert 0 <= canopy.target.min() < canopy.target.max() <= 1
    assert canopy.target.std() > 0.1


def test_labels_come_from_the_land_and_not_from_pixels(source: Synthetic) -> None:
    """S1 and S2 share a grid, so they share labels, though not a single pixel value."""
    for radar, optical in zip(source.tasks("s1"), source.tasks("s2"), strict=True):
        a, b = source.labelled(radar, 32), source.labelled(optical, 32)
        assert np.array_equal(a.target, b.target)
        assert a.samples.ids.tolist() == b.samples.ids.tolist()


def test_canopy_and_diversity_are_those_of_the_cover(source: Synthetic) -> None:
    task = source.tasks("landsat")[2]
    places = source._places("train", count=6) | PROBES
    surface = Surface(respell(places, np.arange(6)))
    cover = surface.look(30, 32).cover
    want = cover[:, MATERIALS.index("trees")].mean((1, 2))
    np.testing.assert_allclose(source.labelled(task, 32).target[:6], want, rtol=1e-5)
    # The chance that two points drawn from the footprint lie on different materials.
    flat = cover[0].reshape(len(MATERIALS), -1).astype(np.float64)
    differ = 1 - (flat.T @ flat).mean()
    diversity = source.labelled(source.tasks("landsat")[1], 32).target[0]
    assert diversity == pytest.approx(differ, rel=1e-5)


def test_labelled_items_do_not_depend_on_how_many_there_are(source: Synthetic) -> None:
    more = Synthetic(replace(SMALL, test=66))
    task = source.tasks("s1")[0]
    few, many = source.labelled(task, 32), more.labelled(task, 32)
    assert np.array_equal(few.samples.pixels, many.samples.pixels[:180])


def rings(x: Numbers) -> Numbers:
    """Log power in rings of spatial frequency, and how directed each ring is."""
    x = (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)
    power = np.abs(np.fft.fft2(x * np.hanning(32) * np.hanning(32)[:, None])) ** 2
    k = np.fft.fftfreq(32) * 32
    radius = np.hypot(k, k[:, None])
    parts = [power[:, :, (radius >= r) & (radius < r + 1)] for r in range(1, 15)]
    features = [np.log(p.mean(2)) for p in parts] + [np.log(p.max(2) / p.mean(2)) for p in parts]
    return np.concatenate(features, axis=1)


@pytest.mark.parametrize("sensor", ["s1", "modis"])
def test_shape_tells_what_band_means_do_not(sensor: str) -> None:
    source = Synthetic(SyntheticConfig(train=600, val=60, test=240))
    landuse, diversity, canopy = (source.labelled(task, 32) for task in source.tasks(sensor))
    x = landuse.samples.pixels.astype(np.float64)
    train, _, test = landuse.folds[0]
    means, shape = x.mean((2, 3)), rings(x)

    def score(model: Any, features: Numbers, items: Labelled) -> float:
        model = make_pipeline(StandardScaler(), model)
        model.fit(features[train], items.target[train])
        return model.score(features[test], items.target[test])

    by_means = score(LogisticRegression(C=0.1), means, landuse)
    both = np.concatenate([means, shape], axis=1)
    assert by_means < 0.65
    assert score(LogisticRegression(C=0.1), both, landuse) > by_means + 0.1
    by_means = score(Ridge(10), means, diversity)
    assert by_means < 0.5
    spread = np.concatenate([means, np.log(x.std((2, 3)))], axis=1)
    assert score(Ridge(10), spread, diversity) > by_means + 0.05
    assert 0.2 < score(Ridge(1), means, canopy) < 0.8


def test_classes_are_the_land_uses(source: Synthetic) -> None:
    assert source.tasks("naip")[0].classes == tuple(LANDUSES)
    assert source.tasks("naip")[1].classes == ()


# --- controls

BEFORE = {
    "s1": -7.697400613,
    "s2": -1.073320817,
    "landsat": 0.085404248,
    "naip": -685.504453662,
    "modis": -0.469732675,
}
"""Slots 2 to 4 at 16 px, seed (3, 1), against a cosine: every pixel at its place counts. Taken
before there were controls, and bit for bit the same after."""


def control(name: str, target: str = "landsat", scarce: int = 0) -> Synthetic:
    return Synthetic(replace(SMALL, control=name, target=target, scarce=scarce))


@pytest.mark.parametrize("sensor", SENSORS)
def test_without_a_control_nothing_has_changed(source: Synthetic, sensor: str) -> None:
    x = pixels(source, sensor, range(2, 5), 16).astype(np.float64)
    scale = 1e-5 * np.linalg.norm(x)
    assert x.ravel() @ np.cos(np.arange(x.size)) == pytest.approx(BEFORE[sensor], abs=scale)
    assert source.sensors[sensor] is SENSORS[sensor]
    assert source.available(sensor, 32) is None


def test_scores_from_before_there_were_controls_keep_their_names(source: Synthetic) -> None:
    fields = {"world": 0, "train": 60, "val": 60, "test": 60}
    content = {"data": fields, "identity": source.identity, "protocol": 1}
    assert probe_key("s1", SMALL, source.identity) == f"s1-{fingerprint(content)}"


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_leaves_the_target_as_it_is(source: Synthetic, name: str) -> None:
    world = control(name, scarce=3 * (name == "help"))
    assert world.sensors["landsat"] is LANDSAT
    for task in source.tasks("landsat"):
        plain, controlled = source.labelled(task, 16), world.labelled(task, 16)
        assert np.array_equal(plain.target, controlled.target)
        assert np.array_equal(plain.samples.pixels, controlled.samples.pixels)
        assert plain.samples.ids.tolist() == controlled.samples.ids.tolist()
    if name != "help":
        here, there = (pixels(s, "landsat", range(4), 16) for s in (source, world))
        assert np.array_equal(here, there)


@pytest.mark.parametrize(("target", "other"), [("landsat", "s1"), ("s1", "naip")])
def test_an_alias_is_the_target_under_another_name(target: str, other: str) -> None:
    world, one = control("alias", target), SENSORS[target]
    (alias,) = world.pretraining(other, range(100), 16, (3, 1))
    assert alias.sensor == world.sensors[other].name == other
    assert (alias.bands, alias.gsd_m) == (one.bands, one.gsd_m)
    # One list of locations: pixel by pixel the same land, but at another moment.
    own = pixels(world, target, range(100), 16)
    for a, b in zip(alias.pixels.swapaxes(0, 1), own.swapaxes(0, 1), strict=True):
        assert 0.5 < correlation(a, b) < 0.95
        # Neither mean, spread nor texture of a scene tells which of the two took it.
        for measure in (np.mean, np.std, lambda x, axis: np.diff(x).std(axis)):
            assert ks_2samp(measure(a, axis=(1, 2)), measure(b, axis=(1, 2))).pvalue > 1e-3


def test_aliases_differ_from_one_another() -> None:
    world = control("alias")
    views = [pixels(world, name, range(3), 16) for name in ("s1", "s2", "modis")]
    assert all(not np.isclose(views[0], view).all((1, 2, 3)).any() for view in views[1:])


@pytest.mark.parametrize("other", ["s1", "s2", "naip"])
def test_harm_is_noise_that_knows_nothing_of_the_ground(other: str) -> None:
    (samples,) = control("harm").pretraining(other, range(60), 16, (3, 1))
    assert (samples.sensor, samples.bands) == (other, SENSORS[other].bands)
    x = samples.pixels
    low, high = synthetic._RANGE[samples.bands[0].unit]
    assert low <= x.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < x.max() <= high
    x = (x - low) / (high - low)
    assert x.var() == pytest.approx(1 / 12, rel=0.02)
    # Each of these averages over more than 10,000 pairs of values.
    assert abs(correlation(x[..., 1:], x[..., :-1])) < 0.03  # neighbours
    assert abs(correlation(x[..., 1:, :], x[..., :-1, :])) < 0.03
    assert abs(correlation(x[:, 0], x[:, 1])) < 0.03  # bands
    assert abs(correlation(x[::2], x[1::2])) < 0.03  # places
    # Places do not even differ in their means by more than chance.
    spread = x.mean((2, 3)).var() * 12 * 16**2
    assert spread == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("other", ["s1", "modis"])
def test_harm_does_not_depend_on_what_covers_the_ground(other: str) -> None:
    surface = Surface(Synthetic(SMALL)._places("x", count=4))
    noise = control("harm")._instruments[other]
    water, trees = (noise.observe(surface, plain_ground(4, m, 16)) for m in ("water", "trees"))
    assert np.array_equal(water, trees)


def test_help_leaves_the_target_scarce_and_the_others_plenty() -> None:
    world = control("help", scarce=7)
    assert world.available("landsat", 32) == 7
    assert world.available("s2", 32) is None
    solo, share, few = (
        world.pretraining("landsat", slots, 16, (3, 1))[0]
        for slots in (range(240), range(48, 96), range(48, 52))
    )
    assert len(solo) == 7
    assert np.array_equal(solo.pixels, share.pixels)
    assert np.array_equal(solo.pixels[:4], few.pixels)
    (other,) = world.pretraining("s2", range(240), 16, (3, 1))
    assert len(other) == 240
    assert other.bands == LANDSAT.bands
    assert not set(other.ids) & set(solo.ids)
    (again,) = world.pretraining("landsat", range(240), 16, (3, 2))
    assert not set(again.ids) & set(solo.ids)


def test_a_control_is_part_of_the_name() -> None:
    plain = {"source": "synthetic", "version": 1, "world": 0}
    landsat = {"target": "landsat"}
    assert control("alias").identity == plain | landsat | {"control": "alias"}
    assert control("alias", "s1").identity != control("alias").identity
    helped = plain | landsat | {"control": "help", "scarce": 7}
    assert control("help", scarce=7).identity == helped


def test_a_control_says_so_before_all_else() -> None:
    first, second = control("harm").caveats
    assert first == ("A control with target landsat: the other sensors are noise, so Δ < 0.")
    assert second == Synthetic(SMALL).caveats[0]


def test_a_control_needs_a_sensor_to_aim_at() -> None:
    with pytest.raises(ValueError, match=r"unknown sensor 'lansat'.*did you mean 'landsat'"):
        control("alias", "lansat")
    with pytest.raises(ValueError, match="unknown sensor ''"):
        control("alias", "")
