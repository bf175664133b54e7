"""The synthetic world: reproducible, physically plausible, and hard for whoever ignores shape."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import pairwise
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

from gfmsum import catalog
from gfmsum.catalog import CATALOG, ENMAP, SKYSAT, UMBRA
from gfmsum.config import CONTROLS, SyntheticConfig
from gfmsum.data import instruments, synthetic
from gfmsum.data.instruments import LOOKS, RANGE, SIGNATURES, Instrument, Noise, respond, signature
from gfmsum.data.plan import permute, stream
from gfmsum.data.sample import Labelled, Pool, Samples, constant_iou
from gfmsum.data.surface import (
    LANDUSES,
    LATENTS,
    LEVELS,
    MATERIALS,
    PLACES,
    STRONG,
    Ground,
    Ids,
    Own,
    Surface,
    draws,
    respell,
    revisit,
)
from gfmsum.data.synthetic import COVERS, PAIRS, PROBES, Synthetic, locations
from gfmsum.data.units import contradiction
from gfmsum.job import probe_key
from gfmsum.records import fingerprint
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, SENSORS, Band, Sensor, Unit, optical

type Numbers = NDArray[Any]
type Views = dict[str, Numbers]

SMALL = SyntheticConfig(train=60, val=60, test=60)
# Mean of the first band over the first 8 locations of a list.
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
    """120 locations through every sensor."""
    return {name: pixels(source, name, range(120)) for name in SENSORS}


def some_places(name: str, count: int, world: int = 0) -> Ids:
    """The first locations of a random list; those of "pretraining", 3, 1 were a run's, once."""
    key = ("pretraining", 3, 1) if name == "pretraining" else (name,)
    return stream("synthetic", world, *key).bit_generator.random_raw(count) & PLACES


def rows_of(places: Ids, world: int = 0) -> Numbers:
    """The rows that show some locations: what swaps rows and places swaps them back."""
    return locations(world, places.astype(np.int64)).astype(np.int64)


def pixels(source: Synthetic, sensor: str, chosen: range, size: int = 32) -> Numbers:
    world = source.config.world
    rows = rows_of(some_places("pretraining", chosen.stop, world)[list(chosen)], world)
    return read(source, sensor, rows, size).pixels


def read(source: Synthetic, sensor: str, rows: Numbers, size: int = 16) -> Samples:
    (block,) = source.pretraining(sensor, size).blocks
    return block.read(rows)


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


# --- the pool


@pytest.mark.parametrize("sensor", SENSORS)
def test_rows_give_the_same_pixels_in_any_order_and_company(views: Views, sensor: str) -> None:
    rows = rows_of(some_places("pretraining", 120))
    order = np.array([61, 7, 61, 119, 0])
    samples = read(Synthetic(SMALL), sensor, rows[order], 32)
    assert np.array_equal(samples.pixels, views[sensor][order])
    assert samples.ids[0] == samples.ids[2]
    assert len(set(samples.ids)) == 4


def test_chunks_do_not_matter(
    views: Views, source: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 7)
    assert np.array_equal(pixels(source, "s2", range(20)), views["s2"][:20])
    monkeypatch.setattr(synthetic, "CHUNK", 1)
    assert np.array_equal(
        pixels(source, "s2", range(2), 48)[1:], pixels(source, "s2", range(1, 2), 48)
    )


@given(st.lists(st.integers(0, 2**62 - 1), unique=True, min_size=2), st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_every_row_is_a_place_and_every_place_a_row(rows: list[int], world: int) -> None:
    places = locations(world, np.array(rows))
    assert not (places & ~PLACES).any()
    assert len(set(places.tolist())) == len(rows)
    assert locations(world, places.astype(np.int64)).tolist() == rows


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_pool_is_one_block_of_all_places_rendered_when_asked_for(
    source: Synthetic, sensor: str
) -> None:
    pool = source.pretraining(sensor, 16)
    (block,) = pool.blocks
    assert len(pool) == pool.held == len(block) == 2**62
    assert pool.starts == [0, 2**62]
    assert not block.quick
    samples = block.read(np.array([2**62 - 1, 0]))
    assert samples.kind == block.kind
    assert (block.kind.bands, block.kind.gsd_m) == (SENSORS[sensor].bands, SENSORS[sensor].gsd_m)
    last, first = locations(0, np.array([2**62 - 1, 0])).tolist()
    assert samples.ids.tolist() == [f"synthetic/0/{last:016x}", f"synthetic/0/{first:016x}"]


def test_every_sensor_shows_the_same_places_by_the_same_rows(source: Synthetic) -> None:
    rows = np.array([5, 2**61, 77])
    assert len({source.places(s) for s in SENSORS}) == 1
    names = [read(source, s, rows).ids.tolist() for s in SENSORS]
    assert all(row == names[0] for row in names)
    assert all(source.pretraining(s, 16).places == source.places(s) for s in SENSORS)


def test_a_permutation_of_the_pool_picks_places_of_all_land_uses(source: Synthetic) -> None:
    rows = permute(np.arange(3000), 2**62, 0, 1, "places", source.places("s1"))
    landuse = Surface(locations(0, rows)).landuse
    for level in landuse.T:
        np.testing.assert_allclose(np.bincount(level), 500, atol=90)  # four standard deviations


def test_worlds_have_lists_of_their_own(source: Synthetic) -> None:
    other, rows = Synthetic(replace(SMALL, world=1)), np.arange(4)
    assert other.places("s2") != source.places("s2")
    here, there = read(source, "s2", rows), read(other, "s2", rows)
    assert not np.isclose(here.pixels, there.pixels).all((1, 2, 3)).any()


def test_pixels_are_those_of_this_version(views: Views) -> None:
    # A change of these numbers changes weights: raise VERSION with it.
    assert synthetic.VERSION == 1
    means = {name: float(views[name][:8, 0].mean(dtype=np.float64)) for name in SENSORS}
    assert means == pytest.approx(GOLDEN, rel=1e-4)


def test_no_row_shows_a_probe_location(source: Synthetic) -> None:
    probes = source._probe_places("test", 20_000)
    assert (probes & PROBES).all()
    assert len(np.unique(probes)) == 20_000
    # Not even the row with the same number in all other bits, nor what stands in for one.
    assert not (locations(0, rows_of(probes & PLACES)) & PROBES).any()
    view = Synthetic(replace(SMALL, shared=0.5))._views["s2"]
    own, other = view.own(probes[:40]).ids, view.own(probes[:40] & PLACES).ids
    assert (own & PROBES).all()
    assert not (other & ~PLACES).any()
    assert not (own & PLACES == other).any()


def test_any_size_and_no_rows(source: Synthetic) -> None:
    assert pixels(source, "s2", range(3), size=21).shape == (3, 13, 21, 21)
    empty = read(source, "s1", np.arange(0), 32)
    assert len(empty) == 0
    assert empty.pixels.shape == (0, 2, 32, 32)


def test_source_says_what_it_is(source: Synthetic) -> None:
    assert source.identity == {"source": "synthetic", "version": 1, "world": 0}
    assert Synthetic(replace(SMALL, train=99)).identity == source.identity
    assert "no evidence" in source.caveats[0]
    assert len(source.caveats) == 1


def test_unknown_names_are_refused(source: Synthetic) -> None:
    with pytest.raises(ValueError, match="unknown sensor 's3'"):
        source.pretraining("s3", 32)
    with pytest.raises(ValueError, match="unknown sensor 's3'"):
        source.places("s3")
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
    shine = dict(zip(SIGNATURES, Instrument(S2).signatures.T, strict=True))
    red, edge, nir = (next(i for i, b in enumerate(S2.bands) if b.name == n)
                      for n in ("B04", "B06", "B08"))  # fmt: skip
    for plant in ("green grass", "green crop", "broadleaf", "needleleaf"):
        assert shine[plant][nir] > 5 * shine[plant][red]
        assert shine[plant][red] < shine[plant][edge] < shine[plant][nir]
    assert shine["water"][nir] < shine["water"][red]


def test_backscatter_follows_the_ground() -> None:
    radar = dict(zip(SIGNATURES, Instrument(S1).signatures.T, strict=True))
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


def test_speckle_has_its_looks_and_is_independent() -> None:
    surface = Surface(some_places("x", 60))
    power = 10 ** (Instrument(S1).observe(surface, plain_ground(60, "trees")).astype(float) / 10)
    relative = power / power.mean((2, 3), keepdims=True)
    # A gamma variate of L looks has mean one, variance 1/L and skewness 2/sqrt(L).
    assert 1 / relative.var() == pytest.approx(LOOKS, rel=0.03)
    assert ((relative - 1) ** 3).mean() * LOOKS**1.5 == pytest.approx(2 / LOOKS**0.5, rel=0.06)
    assert abs(correlation(relative[:, 0], relative[:, 1])) < 0.02
    assert abs(correlation(relative[..., 1:], relative[..., :-1])) < 0.02


def test_wet_ground_scatters_more_and_reflects_less() -> None:
    surface = Surface(some_places("x", 30))
    dry, wet = (plain_ground(30, "soil", moisture=m) for m in (0.1, 0.9))
    radar, optical = Instrument(S1), Instrument(LANDSAT)
    assert (radar.observe(surface, wet) - radar.observe(surface, dry)).mean() > 1.5
    assert (optical.observe(surface, wet) < optical.observe(surface, dry)).mean() > 0.99


def test_slopes_that_face_the_light_are_brighter() -> None:
    surface = Surface(some_places("x", 20))
    flat = plain_ground(20, "soil", size=8)
    tilted = replace(flat, slope=flat.slope + np.float32(2))
    away = replace(flat, slope=flat.slope - np.float32(2))
    level, one, other = (Instrument(LANDSAT).observe(surface, g).mean((1, 2, 3))
                         for g in (flat, tilted, away))  # fmt: skip
    assert np.all((one - level) * (other - level) < 0)


def test_every_picture_has_its_own_light() -> None:
    """Two bands of one wavelength differ by more than their widths: by illumination and haze."""
    surface, ground = Surface(some_places("x", 60)), plain_ground(60, "trees", size=8)
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
    names = "landuse", "diversity", "canopy", "cover", "clearing"
    assert [t.name for t in tasks] == [f"{name}_{sensor}" for name in names]
    assert [(t.metric, t.floor, t.ceiling) for t in tasks] == [
        ("accuracy", 1 / 6, 1.0), ("r2", 0.0, 1.0), ("r2", 0.0, 1.0),
        ("mean_iou", 0.0702, 1.0), ("iou_positive", 0.0707, 1.0),
    ]  # fmt: skip
    landuse, diversity, canopy = (source.labelled(task, 32) for task in tasks[:3])
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
    for radar, camera in zip(source.tasks("s1"), source.tasks("s2"), strict=True):
        a, b = source.labelled(radar, 32), source.labelled(camera, 32)
        assert np.array_equal(a.target, b.target)
        assert a.samples.ids.tolist() == b.samples.ids.tolist()


def test_canopy_and_diversity_are_those_of_the_cover(source: Synthetic) -> None:
    task = source.tasks("landsat")[2]
    surface = Surface(respell(source._probe_places("train", 6), np.arange(6)))
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


def fitted(model: Any, features: Numbers, items: Labelled) -> float:
    """The score on test items of a model fitted on training items."""
    train, _, test = items.folds[0]
    model = make_pipeline(StandardScaler(), model)
    model.fit(features[train], items.target[train])
    return model.score(features[test], items.target[test])


@pytest.mark.parametrize("sensor", ["s1", "modis"])
def test_shape_tells_what_band_means_do_not(sensor: str) -> None:
    source = Synthetic(SyntheticConfig(train=600, val=60, test=240))
    landuse, diversity, canopy = (source.labelled(task, 32) for task in source.tasks(sensor)[:3])
    x = landuse.samples.pixels.astype(np.float64)
    means, shape = x.mean((2, 3)), rings(x)

    by_means = fitted(LogisticRegression(C=0.1), means, landuse)
    both = np.concatenate([means, shape], axis=1)
    assert by_means < 0.65
    assert fitted(LogisticRegression(C=0.1), both, landuse) > by_means + 0.1
    by_means = fitted(Ridge(10), means, diversity)
    assert by_means < 0.5
    spread = np.concatenate([means, np.log(x.std((2, 3)))], axis=1)
    assert fitted(Ridge(10), spread, diversity) > by_means + 0.05
    assert 0.2 < fitted(Ridge(1), means, canopy) < 0.8


def test_classes_are_the_land_uses(source: Synthetic) -> None:
    assert source.tasks("naip")[0].classes == tuple(LANDUSES)
    assert source.tasks("naip")[1].classes == ()
    assert source.tasks("naip")[3].classes == tuple(COVERS)
    assert len(source.tasks("naip")[4].classes) == 2


# --- dense tasks


def dense(source: Synthetic, name: str, sensor: str, size: int) -> Labelled:
    (task,) = (t for t in source.tasks(sensor) if t.name == f"{name}_{sensor}")
    return source.labelled(task, size)


def ground_of(*covers: dict[str, float]) -> Ground:
    """One location, whose pixels have these covers."""
    side = len(covers) ** 0.5
    assert side == int(side)
    ground = plain_ground(1, "soil", int(side))
    for i, shares in enumerate(covers):
        row = [shares.get(material, 0) for material in MATERIALS]
        ground.cover[0, :, *divmod(i, int(side))] = row
    return ground


def test_the_cover_of_a_pixel_is_the_group_with_most_of_it() -> None:
    assert sorted(m for group in COVERS.values() for m in group) == sorted(MATERIALS)
    ground = ground_of(
        {"trees": 0.45, "soil": 0.3, "sand": 0.25},  # no single one has more than the trees
        {"trees": 0.35, "water": 0.25, "grass": 0.2, "crop": 0.2},
        {"water": 0.51, "built": 0.49},
        {"built": 0.4, "trees": 0.35, "soil": 0.25},
    )
    names = np.array(list(COVERS))[synthetic._most(ground)[0]]
    assert names.tolist() == [["bare", "herbs"], ["water", "built"]]


@pytest.mark.parametrize("sensor", SENSORS)
def test_covers_are_those_of_the_land_and_all_occur(source: Synthetic, sensor: str) -> None:
    items = dense(source, "cover", sensor, 21)
    canopy = source.labelled(source.tasks(sensor)[2], 21)
    assert items.samples is canopy.samples
    trees = (items.target == list(COVERS).index("trees")).mean((1, 2))
    assert correlation(trees, canopy.target) > 0.9
    for part in items.folds[0]:
        share = np.bincount(items.target[part].ravel(), minlength=len(COVERS)) / (60 * 21**2)
        assert share.min() > 0.01
        assert share.sum() == pytest.approx(1)
    surface = Surface(respell(source._probe_places("train", 6), np.arange(6)))
    cover = surface.look(SENSORS[sensor].gsd_m, 21).cover
    groups = {name: cover[:, [MATERIALS.index(m) for m in group]].sum(1)
              for name, group in COVERS.items()}  # fmt: skip
    most = np.max(list(groups.values()), axis=0)
    for i, share in enumerate(groups.values()):
        here = items.target[:6] == i
        assert np.array_equal(share[here], most[here])


def places_later(n: int) -> tuple[Ids, Numbers]:
    """Some locations, and what of them was cleared between two dates if all was wood."""
    ids = some_places("later", n)
    return ids, revisit(ids, plain_ground(n, "trees"))[1]


def test_blobs_of_two_places_in_three_are_cleared() -> None:
    ids, changed = places_later(1200)
    assert 0 <= changed.min() < changed.max() <= 1
    assert (changed.max((1, 2)) == 0).mean() == pytest.approx(1 / 3, abs=0.055)  # 4 deviations
    # Pixels are inside or outside, but for the few on an edge.
    assert ((changed > 0) & (changed < 1)).mean() < 0.05
    assert (changed > 0.5).mean() == pytest.approx(0.07, abs=0.015)
    # One blob is larger than a pixel, and does not fill the footprint.
    size = (changed > 0.5).sum((1, 2))[changed.max((1, 2)) > 0.5]
    assert np.quantile(size, 0.1) > 8
    assert size.max() < 0.6 * 32**2
    again = revisit(ids[:3], plain_ground(3, "trees"))[1]
    assert np.array_equal(again, changed[:3])


def test_what_was_cleared_is_bare_or_built_and_all_else_as_it_was() -> None:
    ids, changed = places_later(60)
    for material in ("trees", "soil", "built"):
        ground = plain_ground(60, material)
        later, share = revisit(ids, ground)
        np.testing.assert_allclose(later.cover.sum(1), 1, atol=1e-5)
        assert later.cover.min() >= 0
        same = share == 0
        assert np.array_equal(
            later.cover.swapaxes(0, 1)[:, same], ground.cover.swapaxes(0, 1)[:, same]
        )
        assert np.array_equal(later.slope, ground.slope)
        # The share that is another material now: all that this material lost.
        lost = 1 - later.cover[:, MATERIALS.index(material)]
        np.testing.assert_allclose(share, lost, atol=1e-6)
        others = [MATERIALS.index(m) for m in ("soil", "built") if m != material]
        np.testing.assert_allclose(later.cover[:, others].sum(1), lost, atol=1e-6)
    bare, built = (revisit(ids, plain_ground(60, m))[1] for m in ("soil", "built"))
    # Bare ground that is laid bare is as it was: what is built over changes there, and only that.
    np.testing.assert_allclose(bare + built, changed, atol=1e-6)
    assert not ((bare.max((1, 2)) > 0) & (built.max((1, 2)) > 0)).any()
    assert bare.any()
    assert built.any()


def test_half_of_the_ground_must_change_by_hand() -> None:
    """What is 40 % wooded and 60 % bare changes by 40 % if laid bare, and wholly if built over."""
    ids, changed = places_later(60)
    ground = plain_ground(60, "trees")
    ground.cover[:, MATERIALS.index("trees")] = 0.4
    ground.cover[:, MATERIALS.index("soil")] = 0.6
    share = revisit(ids, ground)[1]
    bare = revisit(ids, plain_ground(60, "built"))[1] > 0  # where it is not for buildings
    whole = changed == 1
    np.testing.assert_allclose(share[whole & bare], 0.4, atol=1e-6)
    np.testing.assert_allclose(share[whole & ~bare], 1, atol=1e-6)


@pytest.mark.parametrize("size", [8, 21, 64])
def test_clearings_are_as_large_in_every_footprint(size: int) -> None:
    ids, changed = places_later(300)
    other = revisit(ids, plain_ground(300, "trees", size))[1]
    mean = changed.mean((1, 2))
    np.testing.assert_allclose(other.mean((1, 2)), mean, atol=0.025)
    assert other.mean() == pytest.approx(mean.mean(), rel=0.05)
    if size == 64:
        assert correlation(blocks(other, 2), changed) > 0.99


def test_seasons_come_everywhere_and_in_blobs_that_are_no_clearings() -> None:
    ids, changed = places_later(300)
    ground = Surface(ids).look(10, 32)
    later, _ = revisit(ids, ground)
    for now, then in ((later.moisture, ground.moisture), (later.vigour, ground.vigour)):
        assert 0 < now.min() < now.max() < 1
        odds = np.log(now / (1 - now)) - np.log(then / (1 - then))
        assert np.abs(odds).max() < 3.1
        assert np.abs(odds).max((1, 2)).min() > 0
        uneven = np.ptp(odds, axis=(1, 2)) > 0.02
        assert 0.55 < uneven.mean() < 0.75
        both = uneven & changed.any((1, 2))
        alike = [abs(correlation(a, b)) for a, b in zip(odds[both], changed[both], strict=True)]
        assert np.median(alike) < 0.3


@pytest.mark.parametrize("sensor", SENSORS)
def test_a_clearing_is_seen_at_two_dates(source: Synthetic, sensor: str) -> None:
    items = dense(source, "clearing", sensor, 21)
    before = items.before
    assert before is not None
    known = source.labelled(source.tasks(sensor)[0], 21).samples
    assert np.array_equal(before.pixels, known.pixels)
    assert before.ids.tolist() == items.samples.ids.tolist() == known.ids.tolist()
    assert (before.kind, items.samples.kind) == (known.kind, known.kind)
    surface = Surface(respell(source._probe_places("train", 60), np.arange(60) % 6))
    later, changed = revisit(surface.ids, surface.look(SENSORS[sensor].gsd_m, 21))
    assert np.array_equal(items.target[:60], changed > 0.5)
    unchanged = items.target.max((1, 2)) == 0
    assert not items.target[:60][changed.max((1, 2)) == 0].any()
    assert 0.2 < unchanged.mean() < 0.5
    # Nothing stays as it was: light, air, noise and season differ where the ground does not.
    a, b = items.samples.pixels[unchanged], before.pixels[unchanged]
    assert (np.abs(a - b).mean((2, 3)) > 0).all()
    assert np.abs(a.mean((1, 2, 3)) - b.mean((1, 2, 3))).min() > 0
    # Only the ground is another: at the same moment, of the same ground, it is the same picture.
    look = source._views[sensor].instrument
    again = look.observe(surface, later, moment=" later")
    np.testing.assert_allclose(again, items.samples.pixels[:60], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sensor", ["s1", "s2", "naip"])
def test_a_difference_of_pixels_is_a_hint_and_no_answer(source: Synthetic, sensor: str) -> None:
    items = dense(source, "clearing", sensor, 32)
    assert items.before is not None
    step = np.abs(items.samples.pixels - items.before.pixels)
    step = (step / step.std((0, 2, 3), keepdims=True)).mean(1)
    truth = items.target > 0
    found = [step > limit for limit in np.quantile(step, np.linspace(0.5, 0.99, 50))]
    best = max((f & truth).sum() / (f | truth).sum() for f in found)
    assert 2 * truth.mean() < best < 0.6


def test_cover_is_asked_of_all_items_and_on_the_same_images() -> None:
    source = Synthetic(SMALL)
    cover, landuse = dense(source, "cover", "s1", 8), source.labelled(source.tasks("s1")[0], 8)
    assert cover.samples is landuse.samples
    for a, b in zip(cover.folds[0], landuse.folds[0], strict=True):
        assert np.array_equal(a, b)


def test_change_is_asked_of_the_first_items_of_every_part() -> None:
    name = "clearing"
    world = Synthetic(replace(SMALL, train=130, val=70, test=170))
    items = dense(world, name, "naip", 8)
    for rows, (part, most) in zip(items.folds[0], PAIRS.items(), strict=True):
        names = [f"synthetic/0/{part}/{i}" for i in range(most)]
        assert items.samples.ids[rows].tolist() == items.cluster[rows].tolist() == names
    few = dense(Synthetic(SMALL), name, "naip", 8)
    for a, b in zip(few.folds[0], items.folds[0], strict=True):
        assert len(a) == 60
        assert np.array_equal(few.target[a], items.target[b[:60]])
        assert np.array_equal(few.samples.pixels[a], items.samples.pixels[b[:60]])


def test_the_floors_are_what_a_constant_answer_scores_on_the_founding_five() -> None:
    source = Synthetic(SyntheticConfig())
    kinds = {task.metric: task.floor for task in source.tasks("s1")[3:]}
    places, _, (train, _, test) = source._listed({"train": 300, "val": 100, "test": 300})
    scores: dict[str, list[float]] = {metric: [] for metric in kinds}
    for sensor in SENSORS.values():
        surface = Surface(places[np.concatenate([train, test])])
        ground = surface.look(sensor.gsd_m, 32)
        changed = revisit(surface.ids, ground)[1] > 0.5
        for metric, labels in (("mean_iou", synthetic._most(ground)), ("iou_positive", changed)):
            counts = (np.bincount(part.astype(int).ravel(), minlength=2)
                      for part in np.split(labels, [len(train)]))  # fmt: skip
            scores[metric].append(constant_iou(metric, *counts))
    for metric, floor in kinds.items():
        assert np.mean(scores[metric]) == pytest.approx(floor, abs=6e-5)
        np.testing.assert_allclose(scores[metric], floor, atol=0.01)


DENSE_LABELS = {
    "s1": ([1547, 11018, 17943, 12069, 3503], 2728, 8.423316692),
    "s2": ([1547, 11018, 17943, 12069, 3503], 2728, 0.618448463),
    "landsat": ([1427, 10627, 18349, 12170, 3507], 2710, -0.123798006),
    "naip": ([1632, 11636, 17775, 11977, 3060], 2741, -35.576837735),
    "modis": ([1072, 9941, 18940, 13079, 3048], 2802, 0.771273051),
}
"""Pixels of each cover and cleared ones at 16 px, and later pictures 58 to 61 against a cosine."""


@pytest.mark.parametrize("sensor", SENSORS)
def test_dense_labels_are_those_of_this_version(source: Synthetic, sensor: str) -> None:
    covers, cleared, cosine = DENSE_LABELS[sensor]
    cover, clearing = (dense(source, name, sensor, 16) for name in ("cover", "clearing"))
    # A rounding elsewhere may move a pixel or two across the line.
    np.testing.assert_allclose(np.bincount(cover.target.ravel()), covers, atol=3)
    assert clearing.target.sum() == pytest.approx(cleared, abs=3)
    x = clearing.samples.pixels[58:62].astype(np.float64)
    scale = 1e-5 * np.linalg.norm(x)
    assert x.ravel() @ np.cos(np.arange(x.size)) == pytest.approx(cosine, abs=scale)


# --- controls

BEFORE = {
    "s1": -7.697400613,
    "s2": -1.073320817,
    "landsat": 0.085404248,
    "naip": -685.504453662,
    "modis": -0.469732675,
}
"""Locations 2 to 4 of a list at 16 px, against a cosine: every pixel at its place counts. Taken
before there were controls, and bit for bit the same after."""


def control(name: str, target: str = "landsat", scarce: int = 0) -> Synthetic:
    return Synthetic(replace(SMALL, control=name, target=target, scarce=scarce))


@pytest.mark.parametrize("sensor", SENSORS)
def test_without_a_control_nothing_has_changed(source: Synthetic, sensor: str) -> None:
    x = pixels(source, sensor, range(2, 5), 16).astype(np.float64)
    scale = 1e-5 * np.linalg.norm(x)
    assert x.ravel() @ np.cos(np.arange(x.size)) == pytest.approx(BEFORE[sensor], abs=scale)
    assert source.sensors[sensor] is SENSORS[sensor]
    assert source.pretraining(sensor, 32).limit is None


PROBED = {
    "s1": 12.260957216,
    "s2": -0.054328574,
    "landsat": -0.005756570,
    "naip": 103.305948768,
    "modis": -0.731891180,
}
"""Items 58 to 61 at 16 px, likewise."""


@pytest.mark.parametrize("sensor", SENSORS)
def test_labelled_items_are_those_of_this_version(source: Synthetic, sensor: str) -> None:
    x = source.labelled(source.tasks(sensor)[0], 16).samples.pixels[58:62].astype(np.float64)
    scale = 1e-5 * np.linalg.norm(x)
    assert x.ravel() @ np.cos(np.arange(x.size)) == pytest.approx(PROBED[sensor], abs=scale)


def test_controls_have_no_place_in_the_names_of_scores_without_one(source: Synthetic) -> None:
    fields = {"world": 0, "train": 60, "val": 60, "test": 60}
    content = {"data": fields, "identity": source.identity, "protocol": 3, "probe": "linear"}
    assert probe_key("s1", SMALL, source.identity, "linear") == f"s1-{fingerprint(content)}"


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_leaves_the_target_as_it_is(source: Synthetic, name: str) -> None:
    world = control(name, scarce=3 * (name == "help"))
    assert world.sensors["landsat"] is LANDSAT
    for task in source.tasks("landsat"):
        plain, controlled = source.labelled(task, 16), world.labelled(task, 16)
        assert np.array_equal(plain.target, controlled.target)
        assert np.array_equal(plain.samples.pixels, controlled.samples.pixels)
        if plain.before is not None and controlled.before is not None:
            assert np.array_equal(plain.before.pixels, controlled.before.pixels)
        assert plain.samples.ids.tolist() == controlled.samples.ids.tolist()
    if name != "help":
        here, there = (pixels(s, "landsat", range(4), 16) for s in (source, world))
        assert np.array_equal(here, there)


@pytest.mark.parametrize(("target", "other"), [("landsat", "s1"), ("s1", "naip")])
def test_an_alias_is_the_target_under_another_name(target: str, other: str) -> None:
    world, one = control("alias", target), SENSORS[target]
    alias = read(world, other, rows_of(some_places("pretraining", 100)))
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
    samples = read(control("harm"), other, rows_of(some_places("pretraining", 60)))
    assert (samples.sensor, samples.bands) == (other, SENSORS[other].bands)
    x = samples.pixels
    low, high = RANGE[samples.bands[0].unit]
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
    surface = Surface(some_places("x", 4))
    noise = control("harm")._views[other].instrument
    assert isinstance(noise, Noise)
    water, trees = (noise.observe(surface, plain_ground(4, m, 16)) for m in ("water", "trees"))
    assert np.array_equal(water, trees)


@pytest.mark.parametrize("name", CONTROLS)
def test_what_stands_in_under_a_control_has_dense_tasks_too(name: str) -> None:
    world = control(name, scarce=3 * (name == "help"))
    cover, clearing = (dense(world, task, "s1", 9) for task in ("cover", "clearing"))
    bands = S1.bands if name == "harm" else LANDSAT.bands
    assert clearing.before is not None
    assert clearing.samples.bands == clearing.before.bands == bands
    assert np.array_equal(clearing.before.pixels, cover.samples.pixels)
    # Even noise is drawn anew for another moment.
    assert not np.isclose(clearing.samples.pixels, clearing.before.pixels).all((1, 2, 3)).any()
    if name != "harm":  # the same land on the same grid as the target's
        assert np.array_equal(cover.target, dense(world, "cover", "landsat", 9).target)


def test_help_leaves_the_target_scarce_and_the_others_plenty() -> None:
    world = control("help", scarce=7)
    few, others = world.pretraining("landsat", 16), world.pretraining("s2", 16)
    assert (few.held, len(few), others.held) == (7, 2**62, 2**62)
    assert few.places == world.places("landsat") != others.places == world.places("s1")

    def list_of(pool: Pool, *seed: int) -> set[str]:
        """Of which a run is given the first."""
        rows = permute(np.arange(min(pool.held, 240)), len(pool), *seed, "places", pool.places)
        return set(pool.blocks[0].read(rows).ids.tolist())

    assert len(list_of(few, 3, 1)) == 7
    assert len(list_of(others, 3, 1)) == 240
    assert not list_of(few, 3, 1) & list_of(others, 3, 1)
    assert not list_of(few, 3, 1) & list_of(few, 3, 2)
    assert read(world, "s2", np.arange(2)).bands == LANDSAT.bands


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


# --- other sensors


@pytest.fixture(scope="module")
def zoo() -> Synthetic:
    return Synthetic(replace(SMALL, sensors="+".join(CATALOG)))


@pytest.mark.parametrize("sensor", [s for s in CATALOG.values() if s.name not in SENSORS])
def test_every_sensor_of_the_catalog_looks_at_the_world(zoo: Synthetic, sensor: Sensor) -> None:
    x = pixels(zoo, sensor.name, range(24))
    assert x.shape == (24, len(sensor.bands), 32, 32)
    assert np.isfinite(x).all()
    assert contradiction(sensor.bands, x.mean((0, 2, 3)).tolist()) is None
    assert (x.std((0, 2, 3)) > 0).all()
    assert [task.sensor for task in zoo.tasks(sensor.name)] == [sensor.name] * 5
    assert zoo.places(sensor.name) == zoo.places("s1")


@pytest.mark.parametrize("sensor", CATALOG)
def test_every_sensor_of_the_catalog_has_dense_tasks(zoo: Synthetic, sensor: str) -> None:
    cover, clearing = (dense(zoo, name, sensor, 9) for name in ("cover", "clearing"))
    assert len(np.bincount(cover.target.ravel())) == len(COVERS)
    assert 0.03 < clearing.target.mean() < 0.12
    assert np.isfinite(clearing.samples.pixels).all()


def test_sensors_are_chosen_by_name_in_the_order_of_the_catalog(zoo: Synthetic) -> None:
    few = Synthetic(replace(SMALL, sensors="enmap+s1"))
    assert few.sensors == {"s1": S1, "enmap": ENMAP}
    assert np.array_equal(pixels(few, "s1", range(3)), pixels(zoo, "s1", range(3)))
    with pytest.raises(ValueError, match="unknown sensor 's2'"):
        few.tasks("s2")


def test_other_sensors_are_named_by_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(**words: str) -> dict[str, Any]:
        return dict(Synthetic(replace(SMALL, **words)).identity)

    plain = identity()
    assert identity(sensors="s2+s1") == plain
    known = identity(sensors="s1+enmap+umbra")
    assert set(known.pop("sensors")) == {"enmap", "umbra"}
    assert known == plain
    # Another sensor of the same name is another world; another title is not.
    mine = Sensor("mine", "Mine", 3, SKYSAT.bands)
    names = []
    others = replace(mine, bands=mine.bands[::-1]), replace(mine, gsd_m=4)
    for sensor in (mine, replace(mine, title="?"), *others):
        monkeypatch.setattr(synthetic, "CATALOG", {**CATALOG, "mine": sensor})
        names.append(identity(sensors="s1+mine"))
    assert names[0] == names[1]
    assert names[0] not in names[2:]


def test_a_sensor_that_is_registered_is_one_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_KNOWN", dict(CATALOG))
    monkeypatch.setattr(synthetic, "CATALOG", catalog._KNOWN)
    catalog.register(
        Sensor("viirs", "VIIRS", 750, optical(Unit.REFLECTANCE, ("M5", 750, 0.672, 0.02)))
    )
    x = pixels(Synthetic(replace(SMALL, sensors="modis+viirs")), "viirs", range(20))
    assert 0.1 < x.mean() < 0.3


def one_band(**fields: Any) -> Sensor:
    return Sensor(
        "odd", "Odd", fields.pop("grid_m", 10.0), (Band("b", **{"gsd_m": 10.0, **fields}),)
    )


@pytest.mark.parametrize(
    ("sensor", "problem"),
    [
        (one_band(unit=Unit.REFLECTANCE, wavelength_um=10.9, fwhm_um=0.6), "wavelength_um=10.9"),
        (one_band(unit=Unit.REFLECTANCE, wavelength_um=0.36, fwhm_um=0.1), "between 0.35 and 2.7"),
        (one_band(unit=Unit.REFLECTANCE, wavelength_um=0.5, fwhm_um=1e-4), "at least 0.001 wide"),
        (one_band(unit=Unit.DB, wavelength_um=0.5, fwhm_um=0.01), "unit=dB must be reflectance"),
        (one_band(unit=Unit.REFLECTANCE, polarisation="VV", frequency_ghz=5.4), "must be dB"),
        (one_band(unit=Unit.DB, polarisation="VV"), "frequency_ghz=None must be between 1 and 40"),
        (one_band(unit=Unit.DB, polarisation="VV", frequency_ghz=0.4), "frequency_ghz=0.4"),
        (replace(S2, name="odd", gsd_m=5000), "gsd_m=5000 must be between 0.1 and 3125"),
    ],
)
def test_what_physics_cannot_render_is_refused(
    sensor: Sensor, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "CATALOG", {**CATALOG, "odd": sensor})
    with pytest.raises(ValueError, match=f"cannot show odd.*{problem}.*; leave it out") as refusal:
        Synthetic(replace(SMALL, sensors="s1+odd"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"sensors": "s1+enmpa"}, "unknown sensor 'enmpa'.*did you mean 'enmap'"),
        ({"sensors": "s1+"}, "unknown sensor ''"),
        ({"sensors": "s1+s1"}, "names a sensor twice"),
        ({"sensors": "s1+s2", "control": "harm", "target": "modis"}, "unknown sensor 'modis'"),
    ],
)
def test_sensors_that_are_not_there_are_refused(words: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Synthetic(replace(SMALL, **words))


def test_neighbouring_bands_of_an_imaging_spectrometer_are_alike(zoo: Synthetic) -> None:
    x = pixels(zoo, "enmap", range(12)).astype(np.float64)
    um = np.array([band.wavelength_um for band in ENMAP.bands])
    assert np.median([correlation(x[:, i], x[:, i + 1]) for i in range(len(um) - 1)]) > 0.99
    # It and Landsat see the same plants on the same pixels, each in its own light.
    nir, red = (int(np.abs(um - centre).argmin()) for centre in (0.865, 0.655))
    landsat = pixels(zoo, "landsat", range(12))
    greenness = [
        (a - b) / (a + b) for a, b in ((x[:, nir], x[:, red]), (landsat[:, 4], landsat[:, 3]))
    ]
    assert correlation(*greenness) > 0.95


def test_bands_of_one_and_a_bit_pixels_average_over_their_own(zoo: Synthetic) -> None:
    """SkySat's 0.81 m on pixels of 0.5 m: each pixel shows the cell that its middle lies in."""
    x = pixels(zoo, "skysat", range(4))
    same = [int((i + 0.5) * 0.5 / 0.81) == int((i + 1.5) * 0.5 / 0.81) for i in range(31)]
    assert 0 < sum(same) < 31
    for i, expected in enumerate(same):
        assert (
            (x[..., i] == x[..., i + 1]).all()
            == (x[..., i, :] == x[..., i + 1, :]).all()
            == expected
        )


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_cells_share_out_the_pixels_they_cover(pieces: int, more: int, side: int) -> None:
    """A pixel has so many pieces, a cell some more: count them."""
    wide = pieces + more
    share, cell = instruments._Part([0], Unit.DB, True, wide / pieces).resample(side)
    pixel_of = np.arange(side * pieces) // pieces
    cell_of = np.arange(side * pieces) // wide
    for i, row in enumerate(share):
        count = np.bincount(pixel_of[cell_of == i], minlength=side)
        np.testing.assert_allclose(row, count / count.sum(), atol=1e-5)
    assert cell.tolist() == [int((2 * i + 1) * pieces / (2 * wide)) for i in range(side)]


def test_bands_finer_than_the_grid_are_the_grids() -> None:
    fine = replace(LANDSAT, bands=tuple(replace(band, gsd_m=5.0) for band in LANDSAT.bands))
    surface = Surface(some_places("x", 3))
    ground = surface.look(30, 16)
    a, b = (Instrument(sensor).observe(surface, ground) for sensor in (LANDSAT, fine))
    assert np.array_equal(a, b)


def test_backscatter_at_c_band_is_the_table() -> None:
    for band in S1.bands:
        table = 10 ** (np.array(instruments._BACKSCATTER[band.polarisation]) / 10)
        assert np.array_equal(signature(band), table.astype(np.float32))


def at(frequency: float, polarisation: str = "VV") -> dict[str, float]:
    """Decibels of every signature."""
    band = Band("b", 1, Unit.DB, polarisation=polarisation, frequency_ghz=frequency)
    return dict(zip(SIGNATURES, (10 * np.log10(signature(band))).tolist(), strict=True))


def test_backscatter_at_twice_c_band_by_hand() -> None:
    twice = at(2 * 5.405)
    assert twice["dry soil"] == pytest.approx(-14.5 + 3.0103, abs=1e-3)
    # Crops: exp(-0.8) = 0.44933 of the soil's 0.035481 shows through, so the plants' own power is
    # (0.112202 - 0.015943) / 0.55067 = 0.174804; at twice the frequency exp(-1.6) = 0.201897 of twice
    # the soil shows through, 0.014327, and 0.798103 of the plants, 0.139511.
    assert twice["green crop"] == pytest.approx(10 * np.log10(0.014327 + 0.139511), abs=1e-3)
    assert twice["concrete"] == pytest.approx(-2.5)


@pytest.mark.parametrize("polarisation", ["VV", "VH", "HH"])
def test_short_waves_see_the_tops_of_plants_and_rougher_ground(polarisation: str) -> None:
    long, c, x = (at(g, polarisation) for g in (1.27, 5.405, UMBRA.bands[0].frequency_ghz))
    for name in ("water", "dry soil", "green grass", "broadleaf", "needleleaf"):
        assert long[name] < c[name] < x[name]
    # Crowns are opaque at C band already: X band adds little to them and much to soil and grass.
    gain = {name: x[name] - c[name] for name in c}
    assert gain["dry soil"] > gain["green grass"] > gain["broadleaf"]
    assert gain["broadleaf"] < 1


def test_polarisations_tell_surfaces_volumes_and_walls_apart() -> None:
    vv, hh, hv, vh = (at(5.405, p) for p in ("VV", "HH", "HV", "VH"))
    assert hv == vh
    assert hh["water"] < vv["water"] - 2
    assert hh["broadleaf"] == vv["broadleaf"]
    assert hh["concrete"] > vv["concrete"]
    assert all(hv[name] < hh[name] for name in hv)


@pytest.mark.parametrize("unit", [Unit.BRIGHTNESS8, Unit.STRETCHED8])
@pytest.mark.parametrize("sensor", [S1, LANDSAT])
def test_eight_bit_units_rank_pixels_as_the_measured_ones_do(sensor: Sensor, unit: Unit) -> None:
    eight = replace(sensor, bands=tuple(replace(band, unit=unit) for band in sensor.bands))
    surface = Surface(some_places("x", 30))
    ground = surface.look(sensor.gsd_m, 32)
    a, b = (Instrument(s).observe(surface, ground) for s in (sensor, eight))
    assert np.array_equal(b, np.rint(b))
    assert b.min() >= 0
    assert b.max() <= 255
    for one, other in zip(a[:, 0], b[:, 0], strict=True):
        order = np.diff(other.ravel()[one.ravel().argsort()])
        assert order.min() >= 0
    if unit is Unit.STRETCHED8:  # 2 % at either end, and every picture by itself
        assert 0.015 < (b == 0).mean() < 0.06
        assert 0.015 < (b == 255).mean() < 0.06
        assert b.mean((2, 3)).std() < 60


def test_radar_and_optical_bands_may_share_a_sensor() -> None:
    both = Sensor("both", "Both", 10, (*S1.bands, *(b for b in S2.bands if b.gsd_m == 10)))
    surface = Surface(some_places("x", 20))
    x = Instrument(both).observe(surface, surface.look(10, 16))
    assert contradiction(both.bands, x.mean((0, 2, 3)).tolist()) is None
    assert x[:, :2].mean() < -5


# --- how much sensors share

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
        source = Synthetic(SyntheticConfig(train=400, val=60, test=200, shared=shared))
        for j, sensor in enumerate(("s1", "landsat", "modis")):
            landuse, _, canopy = (source.labelled(task, 32) for task in source.tasks(sensor)[:3])
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
        landuse, _, canopy = (source.labelled(task, 32) for task in source.tasks(sensor)[:3])
        places = respell(source._probe_places("train", 6), np.arange(6))
        surface = source._views[sensor].surface(places)
        assert landuse.target[:6].tolist() == surface.landuse[:, STRONG[0]].tolist()
        cover = surface.look(10, 32).cover[:, MATERIALS.index("trees")].mean((1, 2))
        np.testing.assert_allclose(canopy.target[:6], cover, rtol=1e-5)
        covers = synthetic._most(surface.look(10, 32))
        assert np.array_equal(dense(source, "cover", sensor, 32).target[:6], covers)
    one, other = (source.labelled(source.tasks(s)[0], 32).target for s in ("s1", "s2"))
    assert (one == other).mean() < 0.3
    one, other = (dense(source, "cover", s, 32).target for s in ("s1", "s2"))
    assert (one == other).mean() < 0.5
    for sensor in ("s1", "s2"):
        items = dense(source, "clearing", sensor, 32)
        assert items.before is not None
        known = source.labelled(source.tasks(sensor)[0], 32).samples
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


# --- random numbers


@pytest.mark.parametrize(("place", "key"), [(3, 3), (2**62 - 1, 2**62 - 1), (2**63 + 5, 2**63)])
def test_draws_are_those_of_a_generator_for_each_location(place: int, key: int) -> None:
    def numbers(rng: np.random.Generator) -> list[float]:
        return [*rng.random(3, np.float32), *rng.standard_gamma(5, 4, np.float32), rng.random()]

    first, *_, last = [numbers(rng) for rng in draws(np.array([place, 8, place], np.uint64), "s1")]
    key_of_stream = np.array([key, zlib.crc32(b"s1")], np.uint64)
    assert first == last == numbers(np.random.Generator(np.random.Philox(key=key_of_stream)))
