"""Linear models for many strengths at once, against slow solvers of the same objective."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge

from gfmsum.probe.solve import SMALL, Axes, logistic, ridge

STRENGTHS = [10.0**e for e in range(-5, 3)]


def objective(
    x: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float
) -> float:
    """C times the sum of log losses plus half the squared weights, of two classes those of their difference."""
    logits = x @ weight + bias
    lost = (logsumexp(logits, axis=1) - logits[np.arange(len(x)), labels]).sum()
    free = weight if weight.shape[1] > 2 else weight[:, 1] - weight[:, 0]
    return strength * float(lost) + 0.5 * float((free**2).sum())


def drawn(n: int, k: int, classes: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of zero mean and unit variance, and labels that depend on them."""
    rng = np.random.default_rng(k * classes)
    x = rng.normal(size=(n, k))
    labels = (x @ rng.normal(size=(k, classes)) / k**0.5 + rng.gumbel(size=(n, classes))).argmax(1)
    labels[:classes] = np.arange(classes)
    if how == "ill-conditioned":  # as tokens are: a few directions hold nearly everything
        x = (x * np.logspace(0, -5, k)) @ rng.normal(size=(k, k))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    if how == "constant column":
        x[:, 0] = 0.0
    if how == "far from zero":
        x += 50.0
    if how == "class of one":
        labels[labels == classes - 1] = 0
        labels[3] = classes - 1
    return x, labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "k"), [(200, 8), (30, 60)])
@pytest.mark.parametrize(
    "how", ["plain", "ill-conditioned", "constant column", "far from zero", "class of one"]
)
def test_logistic_reaches_the_optimum_of_scikit_learn(
    n: int, k: int, classes: int, how: str
) -> None:
    x, labels = drawn(n, k, classes, how)
    found = logistic([Axes.of(x)], labels, STRENGTHS)[0]
    for strength, weight, bias in zip(STRENGTHS, found.weight, found.bias, strict=True):
        with (
            warnings.catch_warnings()
        ):  # where its last digits stall, it is the better of the two that counts
            warnings.simplefilter("ignore")
            oracle = LogisticRegression(
                C=strength, tol=1e-10, solver="newton-cholesky", max_iter=1000
            )
            oracle.fit(x, labels)
        theirs = oracle.coef_.T, oracle.intercept_
        if classes == 2:  # one weight vector, shared out among two
            theirs = np.hstack([-theirs[0], theirs[0]]) / 2, np.append(-theirs[1], theirs[1]) / 2
        best = objective(x, labels, *theirs, strength)
        assert objective(x, labels, weight, bias, strength) == pytest.approx(best, rel=1e-4)


def test_many_features_are_solved_in_single_precision_to_the_same_optimum() -> None:
    x, labels = drawn(700, 100, 3, "plain")
    assert x.size > SMALL
    found = logistic([Axes.of(x / 10)], labels, [0.1, 10.0])[0]
    for strength, weight, bias in zip([0.1, 10.0], found.weight, found.bias, strict=True):
        oracle = LogisticRegression(C=strength, tol=1e-7, max_iter=5000).fit(x / 10, labels)
        best = objective(x / 10, labels, oracle.coef_.T, oracle.intercept_, strength)
        assert objective(x / 10, labels, weight, bias, strength) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(("n", "k"), [(200, 8), (30, 60)])
def test_several_designs_are_each_solved_as_if_alone(n: int, k: int) -> None:
    x, labels = drawn(n, k, 3, "plain")
    scaled = [x * np.where(np.arange(k) < 5, weight, 1.0) for weight in (0.1, 1.0, 3.0)]
    together = logistic([Axes.of(each) for each in scaled], labels, STRENGTHS)
    for each, found in zip(scaled, together, strict=True):
        (alone,) = logistic([Axes.of(each)], labels, STRENGTHS)
        want = alone.logits(each)
        np.testing.assert_allclose(found.logits(each), want, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize(("n", "k"), [(50, 5), (20, 40)])
def test_axes_hold_the_features(n: int, k: int) -> None:
    x = np.random.default_rng(0).normal(3.0, size=(n, k)) * np.logspace(0, -3, k)
    x[:, 1] = 5.0
    axes = Axes.of(x)
    assert axes.z.shape == (n, min(n, k))
    np.testing.assert_allclose(axes.z, (x - axes.centre) @ axes.turn, atol=1e-9)
    np.testing.assert_allclose(axes.z @ axes.turn.T + axes.centre, x, atol=1e-5)
    np.testing.assert_allclose(axes.z.T @ axes.z, np.diag(axes.power), atol=1e-9 * n)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_what_a_slow_minimiser_finds_with_the_bias_free(classes: int) -> None:
    x, labels = drawn(60, 4, classes, "far from zero")
    labels[5:50] = 0  # without a free bias, such odds cost weight
    for strength in (0.001, 1.0):
        found = logistic([Axes.of(x)], labels, [strength])[0]

        def cost(flat: np.ndarray, strength: float = strength) -> float:
            both = flat.reshape(5, classes)
            return objective(x, labels, both[:4], both[4], strength)

        slow = minimize(cost, np.zeros(5 * classes), method="L-BFGS-B", tol=1e-14)
        assert cost(np.vstack([found.weight[0], found.bias[0]])) == pytest.approx(
            slow.fun, rel=1e-4
        )
        chances = np.exp(found.logits(x)[0] - logsumexp(found.logits(x)[0], axis=1, keepdims=True))
        # Where the slope along the bias is zero, mean chances are the classes' shares.
        np.testing.assert_allclose(chances.mean(axis=0), np.bincount(labels) / len(x), atol=1e-4)


def test_strengths_do_not_disturb_each_other() -> None:
    x, labels = drawn(80, 6, 3, "plain")
    together = logistic([Axes.of(x)], labels, STRENGTHS)[0].logits(x)
    for i, strength in enumerate(STRENGTHS):
        alone = logistic([Axes.of(x)], labels, [strength])[0].logits(x)[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-3 * max(1, np.abs(alone).max()))


@pytest.mark.parametrize(("n", "k"), [(50, 5), (20, 40)])
def test_ridge_is_that_of_scikit_learn(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    x, values = rng.normal(3.0, size=(n, k)), rng.normal(7.0, size=n)
    x[:, 1] = 5.0
    weights, biases = ridge(Axes.of(x), values, STRENGTHS)
    for strength, weight, bias in zip(STRENGTHS, weights, biases, strict=True):
        oracle = Ridge(alpha=1 / strength, solver="cholesky").fit(x, values)
        np.testing.assert_allclose(weight, oracle.coef_, atol=1e-7)
        assert bias == pytest.approx(oracle.intercept_, abs=1e-6)
