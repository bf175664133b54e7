"""Probes: what is fitted on features. Settings are chosen on validation items, test items touched once.

=========  =================  =============================================================================
name       tasks              what is fitted
=========  =================  =============================================================================
knn        of whole images    mean of the 20 nearest training items by cosine; of all if there are fewer
linear     all                L2 logistic or ridge regression on standardised features; for a label per
                              pixel on patch tokens, bilinear between them
attentive  of whole images    one learned query that attends to the patch tokens
layers     dense              three convolutions on the patch tokens
finetune   all                the encoder too, its last block at a tenth of the head's learning rate
=========  =================  =============================================================================

For change, the absolute difference of two dates' tokens and both of them lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.neighbors import NearestNeighbors

from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.probe.features import Features
from gfmsum.probe.solve import logistic, ridge
from gfmsum.probe.tasks import measure, measure_dense
from gfmsum.records import Score, Task
from gfmsum.sensors import unknown

# log10 of the inverse regularisation, as first searched in whole steps: weaker ones cost most.
GRID = (-5.0, 0.0)
LIMITS = (-9.0, 6.0)  # how far the grid may grow when its edge wins
NEIGHBOURS = 20
_ABSENT = -30.0  # logit of a class that the training items do not hold

type Array = NDArray[np.float64]
type Fold = tuple[Rows, Rows, Rows]
type Fits = Callable[[Sequence[float]], list[tuple[Array, float]]]
"""From log10 strengths to the outputs and the validation loss at each."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe's outcome on the test items of a fold."""

    prediction: Array  # (n,) class index or value; of dense tasks NaN
    logits: Array  # (n, classes), or (n, 0) for regression and dense tasks
    strength: (
        float  # chosen on validation items: inverse regularisation, learning rate or neighbours
    )
    edge: bool  # whether the search ended at its limit
    confusions: NDArray[np.int64] | None = None  # (n, classes, classes) of dense tasks


def search(
    fits: Fits,
    grid: tuple[float, float] = GRID,
    limits: tuple[float, float] = LIMITS,
    step: float = 1.0,
) -> tuple[Array, float, bool]:
    """The outputs with the lowest validation loss over a grid that grows while its edge wins."""
    first = np.arange(grid[0], grid[1] + step / 2, step).tolist()
    tried = dict(zip(first, fits(first), strict=True))
    while True:
        best = min(tried, key=lambda e: (tried[e][1], e))  # ties: the stronger regularisation
        edge = best + step if best == max(tried) else best - step if best == min(tried) else None
        if edge is None or not limits[0] <= edge <= limits[1]:
            return tried[best][0], 10.0**best, edge is not None
        (tried[edge],) = fits([edge])


def finite(features: NDArray[Any], task: Task) -> None:
    """Raises ValueError for features that are not finite."""
    bad = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"task {task.name}: {int(bad.sum())} of {len(features)} items have features that are not "
            "finite; check the encoder's weights"
        )


def standardise(x: NDArray[Any], train: NDArray[Any]) -> Array:
    """Features with zero mean and unit variance over those of the training items."""
    centre, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    return np.asarray((x - centre) / np.where(spread > 1e-12, spread, 1.0))


# Probes of whole images.


def linear(features: Array, target: NDArray[Any], fold: Fold, task: Task) -> Probed:
    """L2 logistic regression, by validation log loss, or ridge regression, by validation squared error.

    Args:
        features: (n, k), of all items.
        target: (n,) class indices or values.
        fold: indices of the training, validation and test items.
        task: decides between the two.
    """
    train, val, test = fold
    x = standardise(features, features[train])
    if task.kind == "regression":
        outputs, strength, edge = search(_ridge(x, target, fold))
        return Probed(outputs[:, 0], np.empty((len(test), 0)), strength, edge)
    fits = log_losses((x[train], x[val], x[test]), (target[train], target[val]), len(task.classes))
    outputs, strength, edge = search(fits)
    return Probed(outputs.argmax(axis=1).astype(np.float64), outputs, strength, edge)


def _ridge(x: Array, target: Array, fold: Fold) -> Fits:
    train, val, test = fold
    centre, spread = target[train].mean(), target[train].std() or 1.0

    def fits(exponents: Sequence[float]) -> list[tuple[Array, float]]:
        strengths = [10.0**exponent for exponent in exponents]
        weight, bias = ridge(x[train], (target[train] - centre) / spread, strengths)
        guess, checked = ((x[part] @ weight.T + bias) * spread + centre for part in (test, val))
        losses = ((checked - target[val][:, None]) ** 2).mean(axis=0)
        return [
            (column[:, None], float(loss)) for column, loss in zip(guess.T, losses, strict=True)
        ]

    return fits


def log_losses(
    x: tuple[Array, Array, Array], labels: tuple[NDArray[Any], NDArray[Any]], classes: int
) -> Fits:
    """Logistic regressions on training features, judged by the log loss on validation features.

    Args:
        x: features of training, validation and test items.
        labels: of training and validation items. A class that training does not hold is never answered.
        classes: how many the outputs are for.
    """
    held, train = np.unique(labels[0], return_inverse=True)
    val = labels[1].astype(np.int64)

    def fits(exponents: Sequence[float]) -> list[tuple[Array, float]]:
        model, found = logistic(x[0], train, [10.0**e for e in exponents]), []
        for checked, tested in zip(model.logits(x[1]), model.logits(x[2]), strict=True):
            chances = log_softmax(_spread(checked, held, classes), axis=1)
            loss = -chances[np.arange(len(val)), val].mean()
            found.append((_spread(tested, held, classes), float(loss)))
        return found

    return fits


def _spread(logits: Array, held: NDArray[Any], classes: int) -> Array:
    """Logits of the classes that training holds among those of all."""
    out = np.full((len(logits), classes), _ABSENT)
    out[:, held.astype(np.int64)] = logits
    return out


def knn(features: Array, target: NDArray[Any], fold: Fold, task: Task) -> Probed:
    """Votes, or the mean, of the nearest training items by cosine; ties go to the lower class."""
    train, _, test = fold
    k = min(NEIGHBOURS, len(train))
    index = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features[train])
    near = target[train][index.kneighbors(features[test], return_distance=False)]
    if task.kind == "regression":
        return Probed(near.mean(axis=1), np.empty((len(test), 0)), float(k), False)
    votes = (near[:, :, None] == np.arange(len(task.classes))).mean(axis=1)
    return Probed(votes.argmax(axis=1).astype(np.float64), votes, float(k), False)


# All probes behind one door.


def _on_vectors(
    fit: Callable[[Array, NDArray[Any], Fold, Task], Probed],
) -> Callable[[Features, Labelled, Fold, int], Probed]:
    def probed(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
        rows = features.pooled(items.samples, fold[0])
        finite(rows, items.task)
        return fit(rows, items.target, fold, items.task)

    return probed


def _linear(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    from gfmsum.probe.dense import dense_linear

    if items.task.dense:
        return dense_linear(features, items, fold, seed)
    return _on_vectors(linear)(features, items, fold, seed)


def _trained(name: str) -> Callable[[Features, Labelled, Fold, int], Probed]:
    def probed(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
        from gfmsum.probe import heads

        fit: Callable[[Features, Labelled, Fold, int], Probed] = getattr(heads, name)
        return fit(features, items, fold, seed)

    return probed


WHOLE, DENSE = ("classification", "regression"), ("segmentation", "change_segmentation")


@dataclass(frozen=True, slots=True)
class Probe:
    """A way to fit, and the kinds of tasks that it is for."""

    kinds: tuple[str, ...]
    fit: Callable[[Features, Labelled, Fold, int], Probed]


PROBES: Mapping[str, Probe] = MappingProxyType(
    {
        "linear": Probe((*WHOLE, *DENSE), _linear),
        "knn": Probe(WHOLE, _on_vectors(knn)),
        "attentive": Probe(WHOLE, _trained("attentive")),
        "layers": Probe(DENSE, _trained("layers")),
        "finetune": Probe((*WHOLE, *DENSE), _trained("finetune")),
    }
)


def few(items: Labelled, shots: int, seed: int) -> Labelled:
    """The same items with fewer labels to train and to validate on: ``shots`` per class, drawn at random.

    Of regression and dense tasks ``shots`` items in all. A class that has fewer gives all it has. Test items
    stay, and so do the statistics for normalisation only if they are drawn: few labels are few images.
    """
    rng = np.random.default_rng([seed, shots])

    def draw(rows: Rows) -> Rows:
        if items.task.kind != "classification":
            return np.sort(rng.permutation(rows)[:shots])
        labels = items.target[rows]
        chosen = [rng.permutation(rows[labels == label])[:shots] for label in np.unique(labels)]
        return np.sort(np.concatenate(chosen))

    folds = tuple((draw(train), draw(val), test) for train, val, test in items.folds)
    return replace(items, folds=folds)


def probe(
    features: Features, items: Labelled, how: str = "linear", seed: int = 0
) -> tuple[Score, pd.DataFrame]:
    """Score features on a task; arm, replicate and run are for the caller to fill in.

    Args:
        features: of the task's images.
        items: the task's.
        how: one of PROBES that is for tasks of this kind.
        seed: of what is drawn: pixels of dense tasks, initial heads, batches.

    Returns:
        The score, and one row per test item with item, place, cluster, target, prediction, logits, confusion
        (of dense tasks: pixels of each true class by predicted class, row by row) and contribution (in
        utility; the mean over items is the score's utility).

    Raises:
        ValueError: one line, for a probe that is not for such tasks, features that are not finite, labels
            out of range, or fewer than two classes to train on.
    """
    task = items.task
    if how not in PROBES:
        raise ValueError(unknown("probe", how, PROBES))
    if task.kind not in PROBES[how].kinds:
        able = [name for name, each in PROBES.items() if task.kind in each.kinds]
        raise ValueError(f"probe={how} is not for {task.kind} ({task.name}); use {', '.join(able)}")
    _check(items)
    folds = [PROBES[how].fit(features, items, fold, seed) for fold in items.folds]
    order = np.concatenate([test for _, _, test in items.folds])
    prediction = np.concatenate([fold.prediction for fold in folds])
    target: Array = np.full(len(order), np.nan)
    confusions: list[list[int]] = [[] for _ in order]
    if task.dense:
        found = np.concatenate([fold.confusions for fold in folds if fold.confusions is not None])
        value, contributions = measure_dense(task, found)
        confusions = found.reshape(len(order), -1).tolist()
    else:
        target = items.target[order].astype(np.float64)
        value, contributions = measure(task, target, prediction)
    score = Score(
        arm="",
        replicate=0,
        run="",
        sensor=task.sensor,
        task=task.name,
        probe=how,
        metric=task.metric,
        value=value,
        utility=task.utility(value),
        floor=task.floor,
        ceiling=task.ceiling,
        n_test=len(order),
        strength=float(np.exp(np.mean(np.log([fold.strength for fold in folds])))),
        edge=any(fold.edge for fold in folds),
    )
    lonlat = items.samples.lonlat
    place = np.full((len(order), 2), np.nan) if lonlat is None else lonlat[order]
    frame = pd.DataFrame(
        {
            "task": task.name,
            "probe": how,
            "item": items.samples.ids[order],
            "lon": place[:, 0],
            "lat": place[:, 1],
            "cluster": items.cluster[order],
            "target": target,
            "prediction": prediction,
            "logits": [row.tolist() for fold in folds for row in fold.logits],
            "confusion": confusions,
            "contribution": (contributions - task.floor) / (task.ceiling - task.floor),
        }
    )
    return score, frame


def _check(items: Labelled) -> None:
    """Refuse labels that no probe can be fitted on."""
    task, target = items.task, items.target
    for _, val, _ in items.folds:
        if not (target[val] != UNLABELLED if task.dense else np.ones(len(val))).any():
            raise ValueError(
                f"task {task.name}: validation items hold no label to choose settings by; split anew"
            )
    if task.kind == "regression":
        if not np.isfinite(target).all():
            raise ValueError(
                f"task {task.name}: {int((~np.isfinite(target)).sum())} targets are not finite; leave "
                "these items out"
            )
        return
    known = target[target != UNLABELLED] if task.dense else target
    if known.size and (known.min() < 0 or known.max() >= len(task.classes)):
        raise ValueError(
            f"task {task.name}: labels go from {known.min()} to {known.max()}, and there are "
            f"{len(task.classes)} classes; labels must be 0 to {len(task.classes) - 1}"
        )
    for train, _, _ in items.folds:
        held = np.unique(target[train])
        if len(held[held != UNLABELLED] if task.dense else held) < 2:
            raise ValueError(
                f"task {task.name}: training items hold one class; add items of another"
            )
