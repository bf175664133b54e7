"""Mixes and their shares."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfmsum.catalog import CATALOG
from gfmsum.mix import CORPORA, Mix

SENSORS = ["s1", "s2", "landsat", "naip", "modis"]


@pytest.mark.parametrize(
    ("text", "sensors"),
    [
        ("all", SENSORS),
        ("s2+s1", ["s1", "s2"]),
        ("all-s1", ["s2", "landsat", "naip", "modis"]),
        ("all-s1-modis", ["s2", "landsat", "naip"]),
        ("naip", ["naip"]),
    ],
)
def test_parsing(text: str, sensors: list[str]) -> None:
    mix = Mix.parse(text, SENSORS)
    assert list(mix.sensors) == sensors
    assert {share for _, share in mix.shares} == {Fraction(1, len(sensors))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3", "unknown sensor 's3'"),
        ("all-s9", "unknown sensor 's9'"),
        ("s1+s1", "names a sensor twice"),
        ("s1-s1", "is empty"),
        ("", "unknown sensor ''"),
        ("all-s1-s1", "names a sensor twice"),
        (
            "s1+s2-naip",
            "'s1[+]s2-naip' does not hold naip and cannot leave it out; it holds s1, s2",
        ),
        ("all+s1", "unknown sensor 'all'"),
        ("clay+s1", "unknown sensor 'clay'"),
        ("s1:3+s2", "weighs some sensors only; weigh all of them or none"),
        ("s1:3+s1:1", "names a sensor twice"),
        ("s1:0+s2:1", "gives s1 the weight '0': write a number above 0, like s1:3"),
        ("s1:0.0+s2:1", "gives s1 the weight '0.0'"),
        ("s1:+s2:1", "gives s1 the weight ''"),
        ("s1:1e9+s2:1", "gives s1 the weight '1e9'"),
        ("s1:1/3+s2:1", "gives s1 the weight '1/3'"),
        ("s1:1:2+s2:1", "gives s1 the weight '1:2'"),
        ("s1:٣+s2:1", "gives s1 the weight '٣'"),
        ("all:2", "unknown sensor 'all'"),
    ],
)
def test_what_cannot_be_parsed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mix.parse(text, SENSORS)


def test_shares_must_add_up() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Mix((("s1", Fraction(1, 2)),))


@given(st.integers(0, 10**8), st.integers(1, 5))
def test_a_split_covers_everything_once_and_is_within_one_of_the_share(total: int, k: int) -> None:
    mix = Mix.equal(SENSORS[:k])
    parts = list(mix.split(total).values())
    assert parts[0].start == 0 and parts[-1].stop == total
    assert all(a.stop == b.start for a, b in pairwise(parts))
    assert all(abs(len(part) - total / k) < 1 for part in parts)


def test_a_share_outside_the_mix_is_zero() -> None:
    assert Mix.parse("all-s1", SENSORS).share("s1") == 0


def test_weights_are_proportions() -> None:
    mix = Mix.parse("s2:1+s1:3", SENSORS)
    assert mix.shares == (("s1", Fraction(3, 4)), ("s2", Fraction(1, 4)))
    assert Mix.parse("s1:0.75+s2:0.25", SENSORS) == Mix.parse("s1:6+s2:2", SENSORS) == mix
    assert Mix.parse("s1:7+s2:7", SENSORS) == Mix.parse("s1+s2", SENSORS)
    assert Mix.parse("s1:3+s2:1+naip:4-naip", SENSORS) == mix


def test_published_corpora_have_their_own_shares() -> None:
    """Counts and totals as published: 72,069,364 and 8,081,411 samples."""
    clay, dofa = (Mix.parse(name, list(CATALOG)) for name in ("clay", "dofa"))
    assert clay.shares == (
        ("s1", Fraction(16_133_394, 72_069_364)),
        ("s2", Fraction(18_683_945, 72_069_364)),
        ("landsat", Fraction(11_617_984, 72_069_364)),
        ("naip", Fraction(20_984_171, 72_069_364)),
        ("modis", Fraction(1_350_864, 72_069_364)),
        ("linz", Fraction(3_299_006, 72_069_364)),
    )
    assert dofa.shares == (
        ("s1", Fraction(4_642_353, 8_081_411)),
        ("s2", Fraction(977_774, 8_081_411)),
        ("naip", Fraction(2_332_351, 8_081_411)),
        ("gaofen", Fraction(117_450, 8_081_411)),
        ("enmap", Fraction(11_483, 8_081_411)),
    )
    assert {name for counts in CORPORA.values() for name in counts} <= set(CATALOG)


def test_a_corpus_that_the_data_cannot_make_says_what_is_missing_and_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"'clay' needs linz, which .*: mix=clay-linz$") as caught:
        Mix.parse("clay", SENSORS)
    mix = Mix.parse(str(caught.value).rpartition("mix=")[2], SENSORS)
    assert mix.share("naip") == Fraction(20_984_171, 72_069_364 - 3_299_006)
    with pytest.raises(ValueError, match=r"needs gaofen, enmap, .*: mix=dofa-s1-gaofen-enmap$"):
        Mix.parse("dofa-s1", SENSORS)
    assert Mix.parse("dofa-s1-gaofen-enmap", SENSORS).sensors == ("s2", "naip")
    with pytest.raises(ValueError, match="'dofa' is empty: keep at least one of modis"):
        Mix.parse("dofa", ["modis"])
    with pytest.raises(ValueError, match="'dofa-modis' does not hold modis"):
        Mix.parse("dofa-modis", SENSORS)
    with pytest.raises(ValueError, match=r"unknown sensor 'lins'.*did you mean 'linz'"):
        Mix.parse("clay-lins", SENSORS)


@given(st.dictionaries(st.sampled_from(SENSORS), st.integers(1, 10**9), min_size=1))
def test_a_mix_is_written_as_it_is_read(weights: dict[str, int]) -> None:
    ordered = {name: weights[name] for name in SENSORS if name in weights}
    mix = Mix.weighted(ordered)
    assert Mix.parse(str(mix), SENSORS) == mix
    assert sum(share for _, share in mix.shares) == 1
    assert all(mix.share(name) * sum(weights.values()) == weights[name] for name in weights)


def test_equal_shares_are_written_without_weights() -> None:
    assert str(Mix.parse("all-s1", SENSORS)) == "s2+landsat+naip+modis"
    assert str(Mix.parse("s1:2+s2:6", SENSORS)) == "s1:1+s2:3"
    assert str(Mix(())) == "nothing"


def test_no_weight_is_no_mix() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Mix.weighted({"s1": 0, "s2": 0})
