"""Labels for every pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gfmsum.data import truths
from gfmsum.data.sample import constant_iou
from gfmsum.data.surface import (
    MATERIALS,
    Ids,
    Surface,
    respell,
    revisit,
)
from gfmsum.data.synthetic import PAIRS, Synthetic
from gfmsum.data.truths import COVERS, tell
from gfmsum.sensors import SENSORS
from tests.data.world.scenes import (
    SMALL,
    Numbers,
    blocks,
    correlation,
    ground_of,
    items_of,
    plain_ground,
    some_places,
)


def test_the_cover_of_a_pixel_is_the_group_with_most_of_it() -> None:
    assert sorted(m for group in COVERS.values() for m in group) == sorted(MATERIALS)
    ground = ground_of(
        {"trees": 0.45, "soil": 0.3, "sand": 0.25},  # no single one has more than the trees
        {"trees": 0.35, "water": 0.25, "grass": 0.2, "crop": 0.2},
        {"water": 0.51, "built": 0.49},
        {"built": 0.4, "trees": 0.35, "soil": 0.25},
    )
    names = np.array(list(COVERS))[truths.most(ground)[0]]
    assert names.tolist() == [["bare", "herbs"], ["water", "built"]]


@pytest.mark.parametrize("sensor", SENSORS)
def test_covers_are_those_of_the_land_and_all_occur(source: Synthetic, sensor: str) -> None:
    items = items_of(source, "cover", sensor, 21)
    canopy = items_of(source, "canopy", sensor, 21)
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
    items = items_of(source, "clearing", sensor, 21)
    before = items.before
    assert before is not None
    known = items_of(source, "landuse", sensor, 21).samples
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
    items = items_of(source, "clearing", sensor, 32)
    assert items.before is not None
    step = np.abs(items.samples.pixels - items.before.pixels)
    step = (step / step.std((0, 2, 3), keepdims=True)).mean(1)
    truth = items.target > 0
    found = [step > limit for limit in np.quantile(step, np.linspace(0.5, 0.99, 50))]
    best = max((f & truth).sum() / (f | truth).sum() for f in found)
    assert 2 * truth.mean() < best < 0.6


def test_cover_is_asked_of_all_items_and_on_the_same_images() -> None:
    source = Synthetic(SMALL)
    cover, landuse = items_of(source, "cover", "s1", 8), items_of(source, "landuse", "s1", 8)
    assert cover.samples is landuse.samples
    for a, b in zip(cover.folds[0], landuse.folds[0], strict=True):
        assert np.array_equal(a, b)


def test_change_is_asked_of_the_first_items_of_every_part() -> None:
    name = "clearing"
    world = Synthetic(replace(SMALL, train=130, val=70, test=170))
    items = items_of(world, name, "naip", 8)
    for rows, (part, most) in zip(items.folds[0], PAIRS.items(), strict=True):
        names = [f"synthetic/0/{part}/{i}" for i in range(most)]
        assert items.samples.ids[rows].tolist() == items.cluster[rows].tolist() == names
    few = items_of(Synthetic(SMALL), name, "naip", 8)
    for a, b in zip(few.folds[0], items.folds[0], strict=True):
        assert len(a) == 60
        assert np.array_equal(few.target[a], items.target[b[:60]])
        assert np.array_equal(few.samples.pixels[a], items.samples.pixels[b[:60]])


def test_the_floors_are_what_a_constant_answer_scores_on_the_founding_five(
    source: Synthetic,
) -> None:
    tasks = {task.name.removesuffix("_s1"): task for task in source.tasks("s1") if task.dense}
    scores: dict[str, list[float]] = {name: [] for name in tasks}
    places, _, (train, _, test) = source._listed({"train": 300, "val": 100, "test": 300})
    for sensor in SENSORS.values():
        surface = Surface(places[np.concatenate([train, test])])
        ground = surface.look(sensor.gsd_m, 32)
        answers = tell(["cover", "extent"], surface, ground, sensor.gsd_m)
        answers["clearing"] = revisit(surface.ids, ground)[1] > 0.5
        for name, labels in answers.items():
            counts = (np.bincount(part.astype(int).ravel(), minlength=2)
                      for part in np.split(labels, [len(train)]))  # fmt: skip
            scores[name].append(constant_iou(tasks[name].metric, *counts))
    # A pixel that rounding moves joins regions, or parts them: that is seen in the fourth digit.
    exact, near = {"extent": 2e-4}, {"extent": 0.03}
    for name, task in tasks.items():
        assert np.mean(scores[name]) == pytest.approx(task.floor, abs=exact.get(name, 6e-5))
        np.testing.assert_allclose(scores[name], task.floor, atol=near.get(name, 0.01))


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
    cover, clearing = (items_of(source, name, sensor, 16) for name in ("cover", "clearing"))
    # A rounding elsewhere may move a pixel or two across the line.
    np.testing.assert_allclose(np.bincount(cover.target.ravel()), covers, atol=3)
    assert clearing.target.sum() == pytest.approx(cleared, abs=3)
    x = clearing.samples.pixels[58:62].astype(np.float64)
    scale = 1e-5 * np.linalg.norm(x)
    assert x.ravel() @ np.cos(np.arange(x.size)) == pytest.approx(cosine, abs=scale)
