"""The pool of scenes: reproducible, without end, and apart from what is probed."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfmsum.data import synthetic
from gfmsum.data.plan import permute
from gfmsum.data.surface import (
    PLACES,
    Surface,
    draws,
)
from gfmsum.data.synthetic import PROBES, Synthetic, locations
from gfmsum.sensors import SENSORS
from tests.data.world.scenes import (
    SMALL,
    Views,
    pixels,
    read,
    rows_of,
    some_places,
)

# Mean of the first band over the first 8 locations of a list.
GOLDEN = {
    "s1": -9.965978,
    "s2": 0.11322562,
    "landsat": 0.089731042,
    "naip": 99.49353,
    "modis": 0.14305532,
}


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


@pytest.mark.parametrize(("place", "key"), [(3, 3), (2**62 - 1, 2**62 - 1), (2**63 + 5, 2**63)])
def test_draws_are_those_of_a_generator_for_each_location(place: int, key: int) -> None:
    def numbers(rng: np.random.Generator) -> list[float]:
        return [*rng.random(3, np.float32), *rng.standard_gamma(5, 4, np.float32), rng.random()]

    first, *_, last = [numbers(rng) for rng in draws(np.array([place, 8, place], np.uint64), "s1")]
    key_of_stream = np.array([key, zlib.crc32(b"s1")], np.uint64)
    assert first == last == numbers(np.random.Generator(np.random.Philox(key=key_of_stream)))
