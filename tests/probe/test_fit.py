"""Metrics, features and the linear probe against oracles and planted answers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score

from gfmsum.data.sample import Labelled, Samples
from gfmsum.probe.features import BandMeans, BandStatistics, Grid
from gfmsum.probe.fit import LIMITS, few, knn, linear, probe, search
from gfmsum.probe.tasks import measure
from gfmsum.records import Task
from gfmsum.sensors import S1

CLASSES = Task("c", "s1", "classification", "accuracy", 1 / 3, 1.0, ("a", "b", "c"))
VALUES = Task("v", "s1", "regression", "r2", 0.0, 1.0)
FOLDS = (np.arange(0, 120), np.arange(120, 180), np.arange(180, 300))


@given(st.integers(0, 10**6), st.integers(30, 60))
def test_metrics_agree_with_scikit_learn_and_are_means_of_items(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    target, guess = rng.integers(3, size=n), rng.integers(3, size=n).astype(float)
    values, predicted = rng.normal(size=n), rng.normal(size=n)
    balanced = Task("b", "s1", "classification", "balanced_accuracy", 1 / 3, 1.0, CLASSES.classes)
    present = np.isin(guess, target)  # scikit-learn warns of guesses of absent classes
    for task, y, p, oracle in (
        (CLASSES, target, guess, accuracy_score),
        (balanced, target, np.where(present, guess, target[0]), balanced_accuracy_score),
        (VALUES, values, predicted, r2_score),
    ):
        value, items = measure(task, y, p)
        assert value == pytest.approx(oracle(y, p))
        assert items.mean() == pytest.approx(value)


def test_measure_refuses_what_has_no_value() -> None:
    with pytest.raises(ValueError, match="all 3 targets are equal"):
        measure(VALUES, np.ones(3), np.zeros(3))
    unknown = Task("m", "s1", "classification", "f1", 0.0, 1.0)
    with pytest.raises(ValueError, match="unknown metric 'f1'"):
        measure(unknown, np.ones(3), np.zeros(3))


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise features of which two columns hold a class and a value."""
    rng = np.random.default_rng(seed)
    labels, values = rng.integers(3, size=300), rng.normal(size=300)
    features = rng.normal(size=(300, 20))
    features[:, 3] += 8 * labels
    features[:, 7] = values
    return features, labels, values


def test_planted_answers_are_found() -> None:
    features, labels, values = planted()
    found = linear(features, labels, FOLDS, CLASSES)
    assert (found.prediction == labels[FOLDS[2]]).mean() > 0.9
    assert found.logits.shape == (120, 3)
    np.testing.assert_array_equal(found.logits.argmax(1), found.prediction)
    regressed = linear(features, values, FOLDS, VALUES)
    np.testing.assert_allclose(regressed.prediction, values[FOLDS[2]], atol=1e-2)


def test_shuffled_labels_fall_to_chance() -> None:
    features, labels, values = planted()
    rng = np.random.default_rng(1)
    guess = linear(features, rng.permutation(labels), FOLDS, CLASSES).prediction
    # 120 test items at chance 1/3: 0.333 +- 3 x 0.043.
    assert (guess == labels[FOLDS[2]]).mean() < 0.47
    flat = linear(features, rng.permutation(values), FOLDS, VALUES).prediction
    assert r2_score(values[FOLDS[2]], flat) < 0.1


def test_test_items_have_no_say() -> None:
    features, labels, _ = planted()
    poisoned = labels.copy()
    poisoned[FOLDS[2]] = 0
    a, b = (linear(features, y, FOLDS, CLASSES) for y in (labels, poisoned))
    np.testing.assert_array_equal(a.logits, b.logits)
    assert a.strength == b.strength


def test_a_class_absent_from_training_is_never_predicted_and_stays_finite() -> None:
    features, labels, _ = planted()
    labels[FOLDS[0]] = labels[FOLDS[0]] % 2
    found = linear(features, labels, FOLDS, CLASSES)
    assert set(found.prediction) <= {0.0, 1.0}
    assert np.isfinite(found.logits).all()


class Given:
    """Features as they are given."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def pooled(self, samples: Samples, train: np.ndarray) -> np.ndarray:
        return self.rows

    def grid(self, samples: Samples, train: np.ndarray) -> Grid:
        raise NotImplementedError


@pytest.mark.parametrize("how", ["linear", "knn"])
def test_bad_features_and_labels_are_refused(how: str) -> None:
    features, labels, _ = planted()
    some = items(CLASSES)
    with pytest.raises(ValueError, match="hold one class"):
        probe(Given(features), replace(some, target=np.zeros(300, dtype=int)), how)
    with pytest.raises(ValueError, match="labels go from 0 to 7, and there are 3 classes"):
        probe(Given(features), replace(some, target=np.where(labels == 2, 7, labels)), how)
    features[5, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 300 items have features that are not finite"):
        probe(Given(features), some, how)
    values = np.full(300, np.nan)
    with pytest.raises(ValueError, match="300 targets are not finite"):
        probe(Given(features), replace(some, task=VALUES, target=values), how)


def test_a_probe_that_does_not_exist_or_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"unknown probe 'knm'.*knn"):
        probe(BandMeans(), items(CLASSES), "knm")
    with pytest.raises(ValueError, match=r"probe=layers is not for classification.*linear, knn"):
        probe(BandMeans(), items(CLASSES), "layers")
    with pytest.raises(ValueError, match="nothing to tune"):
        probe(BandMeans(), items(CLASSES), "finetune")


@pytest.mark.parametrize(
    ("best", "edge"), [(-3.0, False), (4.0, False), (-8.0, False), (9.0, True)]
)
def test_the_grid_grows_until_its_edge_no_longer_wins(best: float, edge: bool) -> None:
    tried = []

    def fits(exponents: list[float]) -> list[tuple[np.ndarray, float]]:
        tried.extend(exponents)
        return [(np.array([[e]]), abs(e - best)) for e in exponents]

    outputs, strength, at_edge = search(fits)
    assert outputs[0, 0] == min(best, LIMITS[1])
    assert strength == pytest.approx(10.0 ** min(best, LIMITS[1]))
    assert at_edge is edge
    assert len(tried) == len(set(tried))


def items(task: Task, folds: tuple = (FOLDS,)) -> Labelled:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    pixels = rng.normal(size=(300, 2, 4, 4)).astype(np.float32)
    pixels[:, 0] += labels[:, None, None]
    ids = np.array([f"i{k}" for k in range(300)])
    samples = Samples("s1", S1.bands, 10.0, pixels, ids)
    return Labelled(task, samples, labels, ids, folds)


def test_a_score_is_the_mean_of_its_items_in_utility() -> None:
    score, frame = probe(BandMeans(), items(CLASSES))
    assert score.n_test == len(frame) == 120
    assert frame["contribution"].mean() == pytest.approx(score.utility)
    assert score.utility == pytest.approx((score.value - 1 / 3) / (2 / 3))
    assert frame["item"].tolist() == [f"i{k}" for k in FOLDS[2]]
    assert score.value > 0.8


def test_cross_validation_answers_for_every_item_once() -> None:
    parts = np.array_split(np.arange(300), 5)
    folds = tuple(
        (np.concatenate([parts[j] for j in range(5) if j not in (i, (i + 1) % 5)]),
         parts[(i + 1) % 5], parts[i])
        for i in range(5)
    )  # fmt: skip
    score, frame = probe(BandMeans(), items(CLASSES, folds))
    assert sorted(frame["item"]) == sorted(f"i{k}" for k in range(300))
    assert score.n_test == 300


def test_baselines_by_hand() -> None:
    pixels = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    samples = Samples("s1", S1.bands, 10.0, pixels, np.array(["a"]))
    none = np.arange(1)
    np.testing.assert_allclose(BandMeans().pooled(samples, none), [[7.5, 23.5]])
    first = np.arange(16)
    want = [first.mean(), first.std(), np.percentile(first, 10), np.percentile(first, 90)]
    np.testing.assert_allclose(BandStatistics().pooled(samples, none)[0, ::2], want)


def nearest(features: np.ndarray, target: np.ndarray, fold: tuple, k: int) -> list[np.ndarray]:
    """Targets of the k training items that point most nearly where each test item does."""
    train, _, test = fold
    found = []
    for row in features[test]:
        cosine = [
            row @ features[i] / np.linalg.norm(row) / np.linalg.norm(features[i]) for i in train
        ]
        found.append(target[train[np.argsort(cosine)[::-1][:k]]])
    return found


@pytest.mark.parametrize("items_to_train", [120, 7])
def test_neighbours_are_those_of_a_slow_search(items_to_train: int) -> None:
    rng = np.random.default_rng(2)
    features, labels, values = (
        rng.normal(size=(300, 5)),
        rng.integers(3, size=300),
        rng.normal(size=300),
    )
    features *= rng.uniform(0.1, 10, size=(300, 1))  # lengths do not count
    fold = (FOLDS[0][:items_to_train], *FOLDS[1:])
    k = min(20, items_to_train)
    found = knn(features, labels, fold, CLASSES)
    want = [np.bincount(near, minlength=3) for near in nearest(features, labels, fold, k)]
    np.testing.assert_allclose(found.logits, np.array(want) / k)
    np.testing.assert_array_equal(found.prediction, np.argmax(want, axis=1))
    assert found.strength == k
    regressed = knn(features, values, fold, VALUES)
    np.testing.assert_allclose(
        regressed.prediction, [near.mean() for near in nearest(features, values, fold, k)]
    )
    assert regressed.logits.shape == (120, 0)


def test_tied_votes_go_to_the_lower_class() -> None:
    fold = (np.arange(4), np.arange(4, 5), np.arange(5, 6))
    found = knn(np.ones((6, 2)), np.array([2, 1, 2, 1, 0, 0]), fold, CLASSES)
    assert found.prediction.tolist() == [1.0]


def test_neighbours_find_planted_classes_and_only_those_of_training() -> None:
    features, labels, _ = planted()
    features = np.delete(features, 3, axis=1)
    features[:, :3] += 6 * np.eye(3)[labels]
    assert (knn(features, labels, FOLDS, CLASSES).prediction == labels[FOLDS[2]]).mean() > 0.95
    labels[FOLDS[0]] %= 2
    assert set(knn(features, labels, FOLDS, CLASSES).prediction) == {0.0, 1.0}


def test_few_labels_are_so_many_of_each_class() -> None:
    some = items(CLASSES)
    rare = some.target.copy()
    train = FOLDS[0]
    rare[train[rare[train] == 2]] = 1
    rare[train[:3]] = 2
    some = replace(some, target=rare)
    less = few(some, 5, 0)
    (drawn,) = less.folds
    assert np.bincount(rare[drawn[0]]).tolist() == [5, 5, 3]
    assert np.bincount(rare[drawn[1]]).tolist() == [5, 5, 5]
    assert set(drawn[0]) <= set(FOLDS[0]) and set(drawn[1]) <= set(FOLDS[1])
    np.testing.assert_array_equal(drawn[2], FOLDS[2])
    assert less.samples is some.samples and less.target is some.target
    for part, again, other in zip(
        drawn[:2], few(some, 5, 0).folds[0], few(some, 5, 1).folds[0], strict=False
    ):
        np.testing.assert_array_equal(part, again)
        assert not np.array_equal(part, other)


def test_few_values_are_so_many_in_all() -> None:
    values = replace(items(CLASSES), task=VALUES, target=np.random.default_rng(0).normal(size=300))
    (drawn,) = few(values, 12, 0).folds
    assert [len(part) for part in drawn] == [12, 12, 120]
    assert len(set(drawn[0])) == 12 and set(drawn[0]) <= set(FOLDS[0])
    (whole,) = few(values, 1000, 0).folds
    for part, all_of_it in zip(whole, FOLDS, strict=True):
        np.testing.assert_array_equal(part, all_of_it)


@pytest.mark.parametrize("how", ["linear", "knn"])
def test_few_labels_can_be_probed_on(how: str) -> None:
    score, frame = probe(BandStatistics(), few(items(CLASSES), 2, 0), how)
    assert len(frame) == score.n_test == 120
    assert np.isfinite(score.value)
    if how == "knn":
        assert score.strength == pytest.approx(6)


def test_nothing_to_choose_settings_by_is_refused() -> None:
    none = (FOLDS[0], np.arange(0), FOLDS[2])
    with pytest.raises(ValueError, match="validation items hold no label to choose settings by"):
        probe(BandMeans(), items(CLASSES, (none,)))
