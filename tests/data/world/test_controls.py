"""Controls: worlds in which the sign of the effect is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from gfmsum.config import CONTROLS
from gfmsum.data.instruments import RANGE, Noise
from gfmsum.data.plan import permute
from gfmsum.data.sample import Pool
from gfmsum.data.surface import (
    Surface,
)
from gfmsum.data.synthetic import Synthetic
from gfmsum.job import probe_key
from gfmsum.records import fingerprint
from gfmsum.sensors import LANDSAT, S1, SENSORS
from tests.data.world.scenes import (
    SMALL,
    correlation,
    items_of,
    pixels,
    plain_ground,
    read,
    rows_of,
    some_places,
)

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
    x = items_of(source, "landuse", sensor, 16).samples.pixels[58:62].astype(np.float64)
    scale = 1e-5 * np.linalg.norm(x)
    assert x.ravel() @ np.cos(np.arange(x.size)) == pytest.approx(PROBED[sensor], abs=scale)


def test_controls_have_no_place_in_the_names_of_scores_without_one(source: Synthetic) -> None:
    fields = {"world": 0, "train": 60, "val": 60, "test": 60, "tasks": SMALL.tasks}
    content = {"data": fields, "identity": source.identity, "protocol": 5, "probe": "linear"}
    content |= {"labels": [0], "seed": 0}
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
    cover, clearing = (items_of(world, task, "s1", 9) for task in ("cover", "clearing"))
    bands = S1.bands if name == "harm" else LANDSAT.bands
    assert clearing.before is not None
    assert clearing.samples.bands == clearing.before.bands == bands
    assert np.array_equal(clearing.before.pixels, cover.samples.pixels)
    # Even noise is drawn anew for another moment.
    assert not np.isclose(clearing.samples.pixels, clearing.before.pixels).all((1, 2, 3)).any()
    if name != "harm":  # the same land on the same grid as the target's
        assert np.array_equal(cover.target, items_of(world, "cover", "landsat", 9).target)


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
