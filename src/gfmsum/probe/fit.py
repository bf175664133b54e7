"""The linear probe: regularisation chosen on validation items, test items touched once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from gfmsum.data.sample import Labelled
from gfmsum.probe.features import Features
from gfmsum.probe.tasks import measure
from gfmsum.records import Score, Task

GRID = (-5.0, 2.0)  # log10 of the inverse regularisation, as first searched in whole steps
LIMITS = (-9.0, 6.0)  # how far the grid may grow when its edge wins
_ABSENT = -30.0  # logit of a class that the training items do not hold

type Array = NDArray[np.float64]
type Fit = Callable[[float], tuple[Array, float]]
"""From log10 strength to the outputs (n, classes or 1) for all items and the validation loss."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe's outcome on the test items."""

    prediction: Array  # (n,) class index or value
    logits: Array  # (n, classes), or (n, 0) for regression
    strength: float  # chosen inverse regularisation
    edge: bool  # whether the search ended at its limit


def search(fit: Fit) -> tuple[Array, float, bool]:
    """The outputs with the lowest validation loss over a grid that grows while its edge wins."""
    tried = {float(e): fit(float(e)) for e in np.arange(GRID[0], GRID[1] + 1)}
    while True:
        best = min(tried, key=lambda e: (tried[e][1], e))  # ties: the stronger regularisation
        edge = best + 1 if best == max(tried) else best - 1 if best == min(tried) else None
        if edge is None or not LIMITS[0] <= edge <= LIMITS[1]:
            return tried[best][0], 10.0**best, edge is not None
        tried[edge] = fit(edge)


def linear(
    features: Array, target: Array, folds: tuple[NDArray[np.int64], ...], task: Task
) -> Probed:
    """Fit on training items, choose on validation items, answer for test items.

    Args:
        features: (n, k), of all items.
        target: (n,) class indices or values.
        folds: indices of the training, validation and test items.
        task: decides between L2 logistic regression (by validation log loss) and ridge regression
            (by validation squared error).

    Raises:
        ValueError: for features that are not finite, or fewer than two classes to train on.
    """
    train, val, test = folds
    if not np.isfinite(features).all():
        raise ValueError(
            f"task {task.name}: {int((~np.isfinite(features)).any(axis=1).sum())} of "
            f"{len(features)} items have features that are not finite; check the encoder's weights"
        )
    centre, spread = features[train].mean(axis=0), features[train].std(axis=0)
    x = (features - centre) / np.where(spread > 1e-12, spread, 1.0)
    if task.kind == "regression":
        outputs, strength, edge = search(_ridge(x, target, train, val))
        return Probed(outputs[test, 0], np.empty((len(test), 0)), strength, edge)
    if len(np.unique(target[train])) < 2:
        raise ValueError(f"task {task.name}: training items hold one class; add items of another")
    outputs, strength, edge = search(_logistic(x, target, train, val, len(task.classes)))
    return Probed(outputs[test].argmax(axis=1).astype(np.float64), outputs[test], strength, edge)


def _ridge(x: Array, target: Array, train: NDArray[np.int64], val: NDArray[np.int64]) -> Fit:
    centre, spread = target[train].mean(), target[train].std() or 1.0

    def fit(exponent: float) -> tuple[Array, float]:
        model = Ridge(alpha=10.0**-exponent, solver="svd")
        model.fit(x[train], (target[train] - centre) / spread)
        outputs = model.predict(x) * spread + centre
        return outputs[:, None], float(((outputs[val] - target[val]) ** 2).mean())

    return fit


def _logistic(
    x: Array, target: Array, train: NDArray[np.int64], val: NDArray[np.int64], classes: int
) -> Fit:
    labels = target.astype(np.int64)
    # Warm starts follow the path from strong to weak regularisation.
    model = LogisticRegression(max_iter=300, tol=1e-4, warm_start=True)

    def fit(exponent: float) -> tuple[Array, float]:
        model.C = 10.0**exponent
        with warnings.catch_warnings():
            # A weakly regularised fit that has not converged is judged by its validation loss too.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[train], labels[train])
        raw = model.decision_function(x)
        outputs = np.full((len(x), classes), _ABSENT)
        outputs[:, model.classes_] = np.stack([0 * raw, raw], axis=1) if raw.ndim == 1 else raw
        chances = log_softmax(outputs[val], axis=1)
        return outputs, float(-chances[np.arange(len(val)), labels[val]].mean())

    return fit


def probe(features: Features, items: Labelled) -> tuple[Score, pd.DataFrame]:
    """Score features on a task; arm, replicate and run are for the caller to fill in.

    Returns:
        The score, and one row per test item with item, cluster, target, prediction, logits and
        contribution (in utility; the mean over items is the score's utility).
    """
    task, target = items.task, items.target.astype(np.float64)
    tests, probed = [], []
    for train, val, test in items.folds:
        rows = features(items.samples, train)
        probed.append(linear(rows, target, (train, val, test), task))
        tests.append(test)
    order = np.concatenate(tests)
    prediction = np.concatenate([fold.prediction for fold in probed])
    value, contributions = measure(task, target[order], prediction)
    score = Score(
        arm="",
        replicate=0,
        run="",
        sensor=task.sensor,
        task=task.name,
        probe="linear",
        metric=task.metric,
        value=value,
        utility=task.utility(value),
        floor=task.floor,
        ceiling=task.ceiling,
        n_test=len(order),
        strength=float(np.exp(np.mean(np.log([fold.strength for fold in probed])))),
        edge=any(fold.edge for fold in probed),
    )
    frame = pd.DataFrame(
        {
            "task": task.name,
            "probe": "linear",
            "item": items.samples.ids[order],
            "cluster": items.cluster[order],
            "target": target[order],
            "prediction": prediction,
            "logits": _rows([fold.logits for fold in probed]),
            "contribution": (contributions - task.floor) / (task.ceiling - task.floor),
        }
    )
    return score, frame


def _rows(logits: Sequence[Array]) -> list[list[float]]:
    return [row.tolist() for fold in logits for row in fold]
