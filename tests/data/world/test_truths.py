"""What is asked, by choice; and the answers about arrangement, by hand and against slow oracles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import Ridge

from gfmsum.config import SyntheticConfig
from gfmsum.data import truths
from gfmsum.data.surface import JITTER, LANDUSES, LEVELS, MATERIALS, Surface
from gfmsum.data.synthetic import Synthetic
from gfmsum.data.truths import COVERS, EXTENTS, TASKS, tell
from gfmsum.job import probe_key
from gfmsum.sensors import SENSORS
from tests.data.world.scenes import (
    SMALL,
    Numbers,
    correlation,
    fitted,
    items_of,
    plain_ground,
    rings,
    some_places,
)

SMALL_PX, MIDDLING, LARGE = range(3)


def names(source: Synthetic) -> list[str]:
    return [task.name for task in source.tasks("s1")]


# --- the choice


def test_five_tasks_are_asked_unless_others_are_chosen() -> None:
    default = Synthetic(SyntheticConfig())
    assert names(default) == [f"{n}_s1" for n in SyntheticConfig().tasks.split("+")]
    assert len(names(default)) == 5
    chosen = Synthetic(replace(SMALL, tasks="extent+clearing+landuse"))
    assert names(chosen) == ["extent_s1", "clearing_s1", "landuse_s1"]


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ("landuse+lenght", r"data.tasks=landuse\+lenght: unknown task 'lenght'.*mean 'length'"),
        ("landuse+", "unknown task ''"),
        ("", "unknown task ''"),
        ("cover+landuse+cover", "data.tasks=cover.* names a task twice; name each once"),
    ],
)
def test_tasks_that_are_not_there_are_refused(tasks: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        Synthetic(replace(SMALL, tasks=tasks))
    assert "\n" not in str(refusal.value)


def test_what_is_asked_changes_the_probe_and_not_the_pixels_or_the_other_answers() -> None:
    every, few = Synthetic(SMALL), Synthetic(replace(SMALL, tasks="extent+clearing"))
    assert every.identity == few.identity
    keys = {probe_key("s1", s.config, s.identity, "linear") for s in (every, few)}
    assert len(keys) == 2
    for name in ("extent", "clearing"):
        a, b = (items_of(source, name, "s1", 16) for source in (every, few))
        assert np.array_equal(a.target, b.target)
        assert np.array_equal(a.samples.pixels, b.samples.pixels)


def test_what_is_not_asked_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Numbers) -> Numbers:
        raise AssertionError("regions were looked for")

    monkeypatch.setattr(truths, "_extent", never)
    source = Synthetic(replace(SMALL, tasks="landuse+cover+clearing"))
    for task in source.tasks("s1"):
        source.labelled(task, 8)
    with pytest.raises(AssertionError, match="regions"):
        items_of(Synthetic(SMALL), "landuse", "s1", 8)


def test_every_task_says_in_a_sentence_why_a_representation_should_help() -> None:
    reasons = [row["why"] for row in TASKS.values()]
    assert len(set(reasons)) == len(TASKS)
    for why in reasons:
        assert why[0].isupper() and why.endswith(".") and why.count(".") == 1


# --- length

RESOLVED_M = {"s1": 170, "s2": 170, "landsat": 170, "naip": 14, "modis": 6500}


@pytest.mark.parametrize("sensor", SENSORS)
def test_length_is_the_period_of_the_pattern_that_fits_the_picture(
    source: Synthetic, sensor: str
) -> None:
    length, gsd = items_of(source, "length", sensor, 16).target, SENSORS[sensor].gsd_m
    low, high = np.log(np.array(JITTER) * RESOLVED_M[sensor] / gsd)
    assert low <= length.min() < low + 0.05
    assert high - 0.05 < length.max() <= high
    level = [level.length_m for level in LEVELS].index(RESOLVED_M[sensor])
    surface = Surface(some_places("x", 5))
    told = tell(["length"], surface, surface.look(gsd, 8), gsd)["length"]
    np.testing.assert_allclose(np.exp(told) * gsd, surface.length_m[:, level], rtol=1e-5)


def test_length_does_not_depend_on_the_size_of_the_picture(source: Synthetic) -> None:
    small, large = (items_of(source, "length", "naip", size).target for size in (8, 16))
    assert np.array_equal(small, large)


def test_rows_come_again_after_their_length() -> None:
    """Orchards have one crest per length: count them along the rows' direction, by the spectrum."""
    surface = Surface(some_places("x", 900))
    level = 3  # of 170 m, with which orchards of 5 m have some 13 to 18 periods on 64 pixels
    rows = surface.landuse[:, level] == list(LANDUSES).index("orchard")
    surface = Surface(surface.ids[rows])
    side, gsd = 64, 20.0
    axis = ((np.arange(side) - side / 2) * gsd).astype(np.float32)
    height = surface._heights([level], axis).reshape(-1, side, side)
    height = height - height.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(height * np.hanning(side) * np.hanning(side)[:, None])) ** 2
    k = np.fft.fftfreq(side)
    peak = power.reshape(len(power), -1).argmax(1)
    found = -np.log(np.hypot(*np.meshgrid(k, k)).ravel()[peak])  # logarithm of the period in pixels
    told = tell(["length"], surface, surface.look(gsd, 8), gsd)["length"]
    assert len(told) > 100
    assert np.median(np.abs(found - told)) < 0.1
    assert correlation(found, told) > 0.9


@pytest.mark.parametrize("sensor", ["s1", "modis"])
def test_no_mean_of_a_band_tells_a_length_but_texture_does(sensor: str) -> None:
    source = Synthetic(replace(SMALL, train=600, test=240, tasks="length"))
    length = items_of(source, "length", sensor)
    x = length.samples.pixels.astype(np.float64)
    assert fitted(Ridge(30), x.mean((2, 3)), length) < 0.08
    assert fitted(Ridge(300), rings(x), length) > 0.2


# --- coarseness and edges


def test_coarseness_of_a_ramp_by_hand() -> None:
    """Two materials that make room for one another: a step of 1/31 everywhere, each way once."""
    ground = plain_ground(1, "soil")
    share = np.arange(32, dtype=np.float32) / 31
    ground.cover[:, MATERIALS.index("soil")] = share
    ground.cover[:, MATERIALS.index("water")] = 1 - share
    # The variance of 0 ... 31 is (32² - 1) / 12 = 85.25.
    want = np.log(2 * 85.25 / 31**2 + 1e-4) - np.log(2 / 31**2 + 1e-4)
    assert truths._coarseness(ground) == pytest.approx([want], rel=1e-5)
    assert truths._coarseness(plain_ground(2, "soil")) == pytest.approx([0, 0])


def test_twice_as_coarse_is_twice_as_long() -> None:
    """Waves of 8 and 16 pixels: variance stays, and the step between neighbours halves, or nearly so."""
    answers = []
    for period in (8, 16):
        ground = plain_ground(1, "soil", 64)
        share = (0.5 + 0.5 * np.sin(2 * np.pi * np.arange(64) / period)).astype(np.float32)
        ground.cover[:, MATERIALS.index("soil")] = share
        ground.cover[:, MATERIALS.index("water")] = 1 - share
        answers.append(truths._coarseness(ground)[0])
    # A centred difference is the sine of the phase's step: log(sin²(45°) / sin²(22.5°)) = 1.228.
    assert answers[1] - answers[0] == pytest.approx(1.228, abs=0.08)


def test_edges_by_hand() -> None:
    stripes = np.tile(np.array([0, 3], np.uint8), (1, 6, 3))
    assert truths._edges(stripes) == pytest.approx([0.5**0.5])  # all across, none along
    assert truths._edges(stripes.swapaxes(1, 2)) == pytest.approx([0.5**0.5])
    assert truths._edges(np.zeros((1, 6, 6), np.uint8)) == pytest.approx([0])
    checkers = np.indices((6, 6)).sum(0)[None] % 2
    assert truths._edges(checkers.astype(np.uint8)) == pytest.approx([1])
    one = np.zeros((1, 4, 4), np.uint8)
    one[0, 0, 0] = 1  # in a corner: one of 12 pairs each way
    assert truths._edges(one) == pytest.approx([(1 / 12) ** 0.5])


# --- extent


def classes(cover: Numbers) -> Numbers:
    return truths._extent(cover.astype(np.uint8))


def test_the_extent_of_a_region_by_hand() -> None:
    cover = np.zeros((3, 32, 32), int)
    cover[0, 4:14, 4:14] = 1  # 100 pixels
    cover[0, 14:23, 14:25] = 1  # 99 that touch them at a corner only
    cover[1, :, :15] = 2  # 480 and 544
    cover[2, :, :16] = 2  # 512 twice
    extent = classes(cover)
    assert list(EXTENTS) == ["small", "middling", "large"]
    assert (extent[0, 4:14, 4:14] == MIDDLING).all()
    assert (extent[0, 14:23, 14:25] == SMALL_PX).all()
    assert (extent[0][cover[0] == 0] == LARGE).all()
    assert (extent[1] == np.where(cover[1], MIDDLING, LARGE)).all()
    assert (extent[2] == LARGE).all()


def test_regions_end_where_the_picture_does() -> None:
    """Thin stripes of one cover, one above the other in a stack of pictures, are none together."""
    cover = np.zeros((40, 32, 32), int)
    cover[:, :, 0] = 1
    cover[:, :, 31] = 1
    assert (classes(cover)[cover == 1] == SMALL_PX).all()


@pytest.mark.parametrize(("side", "small", "large"), [(64, 400, 2000), (16, 25, 125)])
def test_limits_are_shares_of_the_picture(side: int, small: int, large: int) -> None:
    for limit, below, above in ((small, SMALL_PX, MIDDLING), (large, MIDDLING, LARGE)):
        cover = np.zeros((2, side * side), int)
        cover[0, :limit] = 1  # whole rows and a piece of the next: connected
        cover[1, : limit - 1] = 1
        extent = classes(cover.reshape(2, side, side))[:, 0, 0]
        assert extent.tolist() == [above, below]


def flood(cover: Numbers) -> Numbers:
    """Size of the region of every pixel, pixel by pixel."""
    size = np.zeros(cover.shape, int)
    for start in np.ndindex(cover.shape):
        if size[start]:
            continue
        region, ahead = {start}, [start]
        while ahead:
            y, x = ahead.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near[0] < len(cover) and 0 <= near[1] < len(cover)
                if inside and near not in region and cover[near] == cover[start]:
                    region.add(near)
                    ahead.append(near)
        for where in region:
            size[where] = len(region)
    return size


@given(arrays(np.uint8, (2, 9, 9), elements=st.integers(0, len(COVERS) - 1)))
@settings(max_examples=60, deadline=None)
def test_extents_are_those_of_a_flood(cover: Numbers) -> None:
    # Of 81 pixels a region of 7.9 is middling and one of 39.6 large: from 8 and from 40 on.
    want = [np.digitize(flood(picture), (7.9, 39.5)) for picture in cover]
    assert np.array_equal(classes(cover), want)


@pytest.mark.parametrize("sensor", SENSORS)
def test_all_extents_occur_in_every_part(source: Synthetic, sensor: str) -> None:
    items = items_of(source, "extent", sensor)
    assert items.samples is items_of(source, "cover", sensor).samples
    for part in items.folds[0]:
        assert (np.bincount(items.target[part].ravel(), minlength=3) > 0.08 * 60 * 32**2).all()


# --- this version

ANSWERS = {
    "s1": (2.82283, 0.4943, 0.45836, 0.28577, 0.26274, 0.45148),
    "s2": (2.82283, 0.4943, 0.45836, 0.28577, 0.26274, 0.45148),
    "landsat": (1.72422, 0.34114, 0.34752, 0.26028, 0.17129, 0.56844),
    "naip": (2.62248, 0.97888, 0.25369, 0.14204, 0.30292, 0.55504),
    "modis": (2.54741, 1.01742, 0.294, 0.1826, 0.36441, 0.45299),
}
"""Means of length, coarseness and edges, and the share of pixels of each extent, at 32 px."""


@pytest.mark.parametrize("sensor", SENSORS)
def test_answers_are_those_of_this_version(source: Synthetic, sensor: str) -> None:
    means = [
        items_of(source, name, sensor).target.mean() for name in ("length", "coarseness", "edges")
    ]
    shares = np.bincount(items_of(source, "extent", sensor).target.ravel()) / (180 * 32**2)
    np.testing.assert_allclose(means, ANSWERS[sensor][:3], rtol=1e-3)
    # One pixel of another cover can join two regions: 1,000 of 184,320 pixels.
    np.testing.assert_allclose(shares, ANSWERS[sensor][3:], atol=6e-3)
