"""Few labels: which are drawn, what a score with them is, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest

from gfmsum.data.sample import UNLABELLED
from gfmsum.probe.features import BandStatistics, Encoded
from gfmsum.probe.fit import probe
from gfmsum.probe.shots import SCARCE, draws, expand, few, score
from gfmsum.records import Task

from .planted import CLASSES, SEGMENTS, VALUES, PatchMeans, encoder, labelled, task

NOISE = np.random.default_rng(0).normal(size=(300, 2, 8, 8))
KINDS = ("classification", "regression", "segmentation", "change_segmentation")


def test_a_task_has_a_name_for_each_number_of_labels() -> None:
    classes, values = replace(CLASSES, train=90), replace(VALUES, train=40)
    names = [(t.name, t.labels) for t in expand([classes, values], (10, 30, 50, 0))]
    # 30 of each of three classes are all 90, and 50 values are more than all 40; 10 values are too few.
    assert names == [("kinds@10", 10), ("kinds", 0), ("values@30", 30), ("values", 0)]
    assert [t.name for t in expand([values], (5, 10))] == [
        "values@5",
        "values@10",
    ]  # no others asked
    assert [t.name for t in expand([SEGMENTS], (10, 20))] == ["segments@20"]
    assert [t.name for t in expand([values], (50,))] == ["values"]
    assert [t.name for t in expand([CLASSES], (50, 0))] == ["kinds@50", "kinds"]  # not known
    assert expand([classes], (10,)) == (replace(classes, name="kinds@10", labels=10),)


def test_few_labels_are_so_many_of_each_class() -> None:
    target = np.arange(300) % 3
    target[target == 2] = np.where(np.arange(100) < 3, 2, 1)
    some = labelled(CLASSES, NOISE, target)
    assert np.bincount(target[some.folds[0][0]]).tolist() == [50, 97, 3]
    drawn = few(some, 5)
    train, val, test = drawn.folds[0]
    assert np.bincount(target[train]).tolist() == [5, 5, 3]  # what has fewer gives all it has
    assert np.bincount(target[val]).tolist() == [5, 5]
    assert set(train) <= set(some.folds[0][0]) and set(val) <= set(some.folds[0][1])
    np.testing.assert_array_equal(test, some.folds[0][2])
    assert drawn.samples is some.samples and drawn.target is some.target
    assert drawn.task == replace(CLASSES, name="kinds@5", labels=5)


@pytest.mark.parametrize("kind", ["regression", "segmentation", "change_segmentation"])
def test_few_values_or_masks_are_so_many_in_all(kind: str) -> None:
    some = task(kind)
    drawn = few(some, 12).folds[0]
    assert [len(set(part)) for part in drawn] == [12, 12, 30]
    for part, whole in zip(drawn, some.folds[0], strict=True):
        assert set(part) <= set(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_depends_on_name_number_draw_and_seed_alone(kind: str) -> None:
    first = few(task(kind), 7, seed=3, draw=1).folds[0]
    other_pixels = replace(task(kind), samples=task(kind, seed=9).samples)
    again = few(other_pixels, 7, seed=3, draw=1).folds[0]
    renamed = replace(task(kind), task=replace(task(kind).task, name="another"))
    others = [few(task(kind), 7, 3, 2), few(task(kind), 7, 4, 1), few(renamed, 7, 3, 1)]
    for i in (0, 1):
        np.testing.assert_array_equal(first[i], again[i])
        assert not any(np.array_equal(first[i], other.folds[0][i]) for other in others)


def test_what_cannot_be_fitted_on_is_drawn_anew() -> None:
    """Two of 60 images are labelled in both classes: most draws of three see one class or none."""
    target = np.full((120, 8, 8), UNLABELLED)
    target[[0, 1]] = np.indices((8, 8)).sum(axis=0) % 2
    target[60:63] = 1
    some = labelled(SEGMENTS, NOISE[:120], target)
    for draw in range(20):
        train, val, _ = few(some, 3, draw=draw).folds[0]
        assert set(train) & {0, 1} and set(val) & {60, 61, 62}
    values = labelled(VALUES, NOISE[:120], np.where(np.arange(120) == 5, 1.0, 0.0))
    assert all(5 in few(values, 3, draw=draw).folds[0][0] for draw in range(10))
    same = labelled(CLASSES, NOISE[:120], np.ones(120, np.int64))
    with pytest.raises(ValueError, match="none of 100 draws of 3 labels holds two classes") as said:
        few(same, 3)
    assert "\n" not in str(said.value)


def test_every_fold_draws_its_own() -> None:
    some = task("regression")
    rows = np.arange(120)
    folds = ((rows[:50], rows[50:60], rows[60:]), (rows[60:110], rows[110:], rows[:60]))
    drawn = few(replace(some, folds=folds), 4)
    for (train, val, test), whole in zip(drawn.folds, folds, strict=True):
        assert set(train) <= set(whole[0]) and set(val) <= set(whole[1])
        np.testing.assert_array_equal(drawn.images_of(train), whole[0])
        np.testing.assert_array_equal(test, whole[2])
    assert set(drawn.folds[1][0] - 60) != set(drawn.folds[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_mean_of_its_draws_and_of_its_items(kind: str) -> None:
    some = task(kind)
    (few_score,), (every,) = (score(BandStatistics(), some, (n,), seed=2) for n in (5, 0))
    times = draws(some.task.at(5), "linear")
    takes = [few(some, 5, 2, draw) for draw in range(times)]
    alone = [probe(BandStatistics(), take, seed=2) for take in takes]
    assert len(alone) == (2 if some.task.dense else 8)
    assert few_score[0].value == pytest.approx(np.mean([one.value for one, _ in alone]))
    assert few_score[0].utility == pytest.approx(some.task.utility(few_score[0].value))
    for one, frame in (few_score, every):
        assert frame["contribution"].mean() == pytest.approx(one.utility, abs=1e-9)
        assert len(frame) == one.n_test == 30 and set(frame["task"]) == {one.task}
        assert set(frame["item"]) == {f"i{i}" for i in range(90, 120)}
    item = np.mean([frame["contribution"][4] for _, frame in alone])
    assert few_score[1]["contribution"][4] == pytest.approx(item)
    assert [(one.task, one.labels) for one, _ in (few_score, every)] == [
        (f"{some.task.name}@5", 5), (some.task.name, 0),
    ]  # fmt: skip
    assert every[0] == probe(BandStatistics(), some, seed=2)[0]


def test_what_a_row_of_several_draws_holds_beside_its_contribution() -> None:
    some = task("classification")
    ((one, frame),) = score(BandStatistics(), some, (5,))
    takes = [probe(BandStatistics(), few(some, 5, draw=draw)) for draw in range(8)]
    np.testing.assert_array_equal(frame["prediction"], takes[0][1]["prediction"])
    strengths = np.log([take.strength for take, _ in takes])
    assert np.log(one.strength) == pytest.approx(strengths.mean())
    assert one.edge == any(take.edge for take, _ in takes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_sees_every_image_once_whatever_is_labelled(kind: str) -> None:
    some = task(kind)
    alone, shared = PatchMeans(), PatchMeans()
    assert len(list(score(Encoded(alone), some, (0,)))) == 1
    features = Encoded(shared)
    assert [len(list(score(features, some, counts))) for counts in ((5, 10), (25, 0))] == [2, 2]
    assert alone.calls == shared.calls > 0


def test_bands_are_normalised_with_images_whose_labels_are_not_known() -> None:
    some = task("classification")
    train = some.folds[0][0]
    np.testing.assert_array_equal(some.images_of(train), train)
    take = few(some, 5)
    np.testing.assert_array_equal(take.images_of(take.folds[0][0]), train)
    features = Encoded(encoder())
    whole = features.pooled(some.samples, train)
    assert features.pooled(take.samples, take.images_of(take.folds[0][0])) == pytest.approx(whole)
    # Test items have no say in it, by label or by pixel.
    pixels = some.samples.pixels.copy()
    pixels[some.folds[0][2]] += 1000
    moved = Encoded(encoder()).pooled(replace(some.samples, pixels=pixels), train)
    np.testing.assert_array_equal(moved[train], whole[train])


def test_labels_that_are_not_drawn_have_no_say() -> None:
    """Wrong labels on every item to train or choose by that was not drawn change no answer."""
    some = task("classification")
    take = few(some, 5)
    drawn = np.concatenate([*take.folds[0][:2], some.folds[0][2]])
    wrong = (some.target + 1) % 3
    wrong[drawn] = some.target[drawn]
    lied = replace(take, target=wrong)
    assert probe(BandStatistics(), lied)[0] == probe(BandStatistics(), take)[0]


def test_scarcer_labels_are_drawn_more_often_and_slow_fits_less() -> None:
    ten, many = CLASSES.at(10), CLASSES.at(SCARCE)
    assert [draws(t, "linear") for t in (CLASSES, ten, many)] == [1, 8, 4]
    assert [draws(t, "finetune") for t in (CLASSES, ten, many)] == [1, 2, 1]
    assert draws(SEGMENTS.at(10), "linear") == 2
    assert draws(Task("v", "s1", "regression", "r2", 0, 1, labels=10), "knn") == 8
