"""Mixes and their shares."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfmsum.mix import Mix

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
