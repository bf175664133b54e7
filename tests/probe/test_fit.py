"""Metrics, features and the linear probe against oracles and planted answers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score

from gfmsum.data.sample import Labelled, Samples
from gfmsum.probe.features import BandMeans, BandStatistics, Encoded
from gfmsum.probe.fit import (
    EMPHASES,
    GRID,
    LIMITS,
    PROBES,
    Line,
    fit_line,
    knn,
    linear,
    probe,
    search,
    weighed,
)
from gfmsum.probe.tasks import measure
from gfmsum.records import Task
from gfmsum.sensors import S1
from tests.probe.planted import Given, PatchMeans, arranged
from tests.probe.planted import task as drawn_task

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


@pytest.mark.parametrize("how", ["linear", "mean", "knn"])
def test_bad_features_and_labels_are_refused(how: str) -> None:
    features, labels, _ = planted()
    some = items(CLASSES)
    with pytest.raises(ValueError, match="hold one class"):
        probe(Given((features,)), replace(some, target=np.zeros(300, dtype=int)), how)
    with pytest.raises(ValueError, match="labels go from 0 to 7, and there are 3 classes"):
        probe(Given((features,)), replace(some, target=np.where(labels == 2, 7, labels)), how)
    features[5, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 300 items have features that are not finite"):
        probe(Given((features,)), some, how)
    values = np.full(300, np.nan)
    with pytest.raises(ValueError, match="300 targets are not finite"):
        probe(Given((features,)), replace(some, task=VALUES, target=values), how)


def test_a_probe_that_does_not_exist_or_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"unknown probe 'knm'.*knn"):
        probe(BandMeans(), items(CLASSES), "knm")
    with pytest.raises(
        ValueError, match=r"probe=layers is not for classification.*linear, mean, knn"
    ):
        probe(BandMeans(), items(CLASSES), "layers")
    with pytest.raises(ValueError, match="nothing to tune"):
        probe(BandMeans(), items(CLASSES), "finetune")


def groups(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A wide group of noise in any units, and a narrow one."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(3.0, np.logspace(-2, 2, 40), size=(n, 40))
    return wide, rng.normal(-1.0, [0.1, 5.0, 30.0], size=(n, 3))


def scaled(parts: tuple[np.ndarray, ...], train: np.ndarray, emphasis: float) -> np.ndarray:
    """The matrix that a linear probe is said to be fitted on."""
    found = []
    for part, weight in zip(parts, (emphasis, 1.0), strict=True):
        standard = (part - part[train].mean(axis=0)) / part[train].std(axis=0)
        found.append(weight * standard / part.shape[1] ** 0.5)
    return np.hstack(found)


@pytest.mark.parametrize("items_to_train", [120, 12])
def test_values_are_those_of_scikit_learn_on_scaled_groups_with_the_best_of_all_settings(
    items_to_train: int,
) -> None:
    parts, rng = groups(), np.random.default_rng(1)
    values = 5.0 + parts[0][:, 3] / parts[0][:, 3].std() + parts[1][:, 1] + rng.normal(size=300)
    train, (_, val, test) = FOLDS[0][:items_to_train], FOLDS
    found = weighed(parts, values, (train, val, test), VALUES)
    spread = values[train].std()  # of which a unit is one for the strength
    losses, answers = {}, {}
    for emphasis in EMPHASES:
        x = scaled(parts, train, emphasis)
        for strength in 10.0 ** np.arange(GRID[0], LIMITS[1] + 1):
            oracle = Ridge(alpha=1 / strength).fit(x[train], values[train] / spread)
            guess = oracle.predict(x) * spread
            losses[emphasis, strength] = ((guess[val] - values[val]) ** 2).mean()
            answers[emphasis, strength] = guess[test]
    best = losses[found.emphasis, found.strength]
    near = {key: loss for key, loss in losses.items() if key[1] <= 10 * max(100, found.strength)}
    assert best == pytest.approx(min(near.values()))
    np.testing.assert_allclose(
        found.prediction, answers[found.emphasis, found.strength], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("items_to_train", [120, 12])
def test_classes_are_those_of_scikit_learn_on_scaled_groups(items_to_train: int) -> None:
    parts, rng = groups(), np.random.default_rng(1)
    score = (parts[0][:, :3] - 3) / parts[0][:, :3].std(axis=0) + rng.gumbel(size=(300, 3))
    labels = score.argmax(axis=1)
    train, (_, val, test) = FOLDS[0][:items_to_train], FOLDS
    found = weighed(parts, labels, (train, val, test), CLASSES)
    losses = {}
    for emphasis in EMPHASES:
        x = scaled(parts, train, emphasis)
        for strength in 10.0 ** np.arange(GRID[0], GRID[1] + 1):
            oracle = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
            logits = oracle.fit(x[train], labels[train]).decision_function(x)
            chances = log_softmax(logits, axis=1)
            losses[emphasis, strength] = -chances[val, labels[val]].mean()
            if (emphasis, strength) == (found.emphasis, found.strength):
                want = logits[test]
    assert losses[found.emphasis, found.strength] <= min(losses.values()) * 1.001
    centred = found.logits - found.logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        centred, want - want.mean(axis=1, keepdims=True), atol=0.02 * np.abs(want).max()
    )


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_the_group_that_holds_the_answer_is_given_the_weight(kind: str) -> None:
    rng = np.random.default_rng(2)
    answer = rng.normal(size=300)
    target, task = ((answer > 0).astype(int), CLASSES) if kind == "classes" else (answer, VALUES)
    chosen = []
    for holder in (0, 1):
        parts = [rng.normal(size=(300, 60)), rng.normal(size=(300, 60))]
        parts[holder][:, ::3] += answer[:, None]
        found = weighed(parts, target, FOLDS, task)
        chosen.append(found.emphasis)
        score = (
            accuracy_score(target[FOLDS[2]], found.prediction)
            if kind == "classes"
            else r2_score(target[FOLDS[2]], found.prediction)
        )
        assert score > 0.85
    assert chosen[0] > chosen[1]
    assert kind == "classes" or chosen == [max(EMPHASES), min(EMPHASES)]


def test_a_line_answers_in_the_units_of_its_features() -> None:
    parts = groups()
    labels = np.random.default_rng(3).integers(3, size=300)
    train, val, test = FOLDS
    line = fit_line(
        tuple([part[rows] for part in parts] for rows in (train, val)),
        (labels[train], labels[val]),
        CLASSES,
    )
    assert isinstance(line, Line) and [w.shape for w in line.weights] == [(40, 3), (3, 3)]
    want = sum(part[test] @ w for part, w in zip(parts, line.weights, strict=True)) + line.bias
    found = weighed(parts, labels, FOLDS, CLASSES)
    np.testing.assert_allclose(found.logits, want, atol=1e-9)
    # In other units the answer is the same.
    moved = [parts[0] * 1000 + 7, parts[1] / 50 - 2]
    again = weighed(moved, labels, FOLDS, CLASSES)
    assert (again.strength, again.emphasis) == (found.strength, found.emphasis)
    np.testing.assert_allclose(again.logits, found.logits, atol=1e-3)


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=10, deadline=None)
def test_test_items_have_no_say_in_anything(seed: int, values: bool) -> None:
    rng = np.random.default_rng(seed)
    parts = groups(90, seed)
    fold = (np.arange(40), np.arange(40, 60), np.arange(60, 90))
    target = rng.normal(size=90) if values else np.arange(90) % 3
    task = VALUES if values else CLASSES
    changed = [part.copy() for part in parts]
    poisoned = target.copy()
    for part in changed:
        part[75:] += 1000 * rng.normal(size=part[75:].shape)
    poisoned[60:] = poisoned[60]
    a, b = weighed(parts, target, fold, task), weighed(changed, poisoned, fold, task)
    assert (a.strength, a.emphasis, a.edge) == (b.strength, b.emphasis, b.edge)
    # One matrix product holds both, so the last digits may differ.
    np.testing.assert_allclose(a.prediction[:15], b.prediction[:15], rtol=1e-9, atol=1e-9)


def test_features_are_standardised_over_all_images_where_few_are_labelled() -> None:
    parts = groups()
    values = parts[1][:, 0] * 10
    few = (FOLDS[0][:5], FOLDS[1], FOLDS[2])
    found = weighed(parts, values, few, VALUES, images=FOLDS[0])
    x = scaled(parts, FOLDS[0], found.emphasis)
    spread = values[few[0]].std()
    oracle = Ridge(alpha=1 / found.strength).fit(x[few[0]], values[few[0]] / spread)
    np.testing.assert_allclose(found.prediction, oracle.predict(x[FOLDS[2]]) * spread, atol=1e-6)


def test_what_is_in_the_deviation_of_tokens_alone_is_found_there() -> None:
    some = arranged()
    assert probe(BandStatistics(), some)[0].value < 0.7
    assert probe(Encoded(PatchMeans()), some, "mean")[0].value < 0.7
    assert probe(Encoded(PatchMeans()), some)[0].value > 0.95


def test_what_is_in_the_statistics_alone_is_found_beside_tokens() -> None:
    """Checkerboards of more or less contrast: patches, of even sides, do not see them."""
    some = arranged()
    board = np.indices((16, 16)).sum(axis=0) % 2 * 2 - 1
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(160, 2, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    contrast = np.where(some.target, 1.5, 1.0)[:, None, None, None]
    some = replace(some, samples=replace(some.samples, pixels=noise + 3 * contrast * board))
    assert probe(Encoded(PatchMeans()), some, "mean")[0].value < 0.7
    assert probe(Encoded(PatchMeans()), some)[0].value > 0.95


def test_the_mean_probe_is_the_linear_one_on_a_single_group() -> None:
    for how in ("classification", "segmentation"):
        some = drawn_task(how)
        (mean, linear_) = (
            PROBES[h].fit(BandMeans(), some, some.folds[0], 0) for h in ("mean", "linear")
        )
        assert (mean.strength, mean.emphasis) == (linear_.strength, 1.0)
        np.testing.assert_array_equal(mean.prediction, linear_.prediction)


@pytest.mark.parametrize(
    ("best", "edge"), [(-3.0, False), (4.0, False), (-5.0, False), (9.0, True)]
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


def test_nothing_to_choose_settings_by_is_refused() -> None:
    none = (FOLDS[0], np.arange(0), FOLDS[2])
    with pytest.raises(ValueError, match="validation items hold no label to choose settings by"):
        probe(BandMeans(), items(CLASSES, (none,)))
