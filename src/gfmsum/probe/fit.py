"""Probes: what is fitted on features. Settings are chosen on validation items, test items touched once.

=========  =================  =============================================================================
name       tasks              what is fitted
=========  =================  =============================================================================
knn        of whole images    mean of the 20 nearest training items by cosine; of all if there are fewer
linear     all                L2 logistic or ridge regression on the mean and deviation of patch tokens
                              beside the bands' statistics; for a label per pixel on patch tokens, bilinear
                              between them, beside the statistics of the pixel
mean       all                the same on the mean patch token alone, which the field reports; for a label per
                              pixel on patch tokens alone
attentive  of whole images    one learned query that attends to the patch tokens
layers     dense              three convolutions on the patch tokens
finetune   all                the encoder too, its last block at a tenth of the head's learning rate
=========  =================  =============================================================================

For change, the absolute difference of two dates' features and both of them lie side by side.

A linear probe is fitted on groups of features. Each is standardised and divided by the root of its width, so
that strength is per group and a wide one does not drown a narrow one; the first, an encoder's, is multiplied by
one of EMPHASES, which is chosen on validation items together with the strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.neighbors import NearestNeighbors

from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.probe.features import Features
from gfmsum.probe.solve import Axes, logistic, ridge
from gfmsum.probe.tasks import measure, measure_dense
from gfmsum.records import Score, Task
from gfmsum.sensors import unknown

# log10 of the inverse regularisation, as first searched in whole steps: weaker ones cost most.
GRID = (-1.0, 1.0)
LIMITS = (-6.0, 6.0)  # how far the grid may grow when its edge wins
EMPHASES = (0.1, 0.3, 1.0, 3.0)  # of the first group of features, where there are several
NEIGHBOURS = 20
_ABSENT = -30.0  # logit of a class that the training items do not hold

type Array = NDArray[np.float64]
type Fold = tuple[Rows, Rows, Rows]
type Groups = Sequence[NDArray[np.floating]]
"""Features (n, k) of the same items, each with a k of its own."""
type Fits[T] = Callable[[Sequence[float]], list[tuple[T, float]]]
"""From log10 strengths to what was fitted and its validation loss at each."""


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
    emphasis: float = 1.0  # what the first of several groups of features was multiplied by


def search[T](
    fits: Fits[T],
    grid: tuple[float, float] = GRID,
    limits: tuple[float, float] = LIMITS,
    step: float = 1.0,
) -> tuple[T, float, bool]:
    """What has the lowest validation loss over a grid that grows while its edge wins."""
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


def scale_of(shown: NDArray[np.floating]) -> tuple[Array, Array]:
    """Centre and unit of each feature, (k,): with them ``shown`` has zero mean and, in all, unit variance."""
    centre, spread = shown.mean(axis=0, dtype=np.float64), shown.std(axis=0, dtype=np.float64)
    return centre, np.where(spread > 1e-12, spread, 1.0) * max(1, len(centre)) ** 0.5


# Linear models of groups of features.


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted linear model of features as they come."""

    weights: tuple[Array, ...]  # (k, outputs) of each group
    bias: Array  # (outputs,)
    emphasis: float  # what the first group was multiplied by
    strength: float  # inverse regularisation
    edge: bool  # whether the search for it ended at its limit

    def __call__(self, groups: Groups) -> Array:
        """The outputs for some items: values, or logits of classes."""
        parts = [x @ weight for x, weight in zip(groups, self.weights, strict=True)]
        return np.asarray(sum(parts) + self.bias)


def fit_line(
    x: tuple[Groups, Groups],
    target: tuple[NDArray[Any], NDArray[Any]],
    task: Task,
    shown: Groups | None = None,
) -> Line:
    """Ridge regression chosen by squared error, or L2 logistic regression by log loss.

    Args:
        x: features of training and of validation items.
        target: values or class indices of both. A class that training does not hold is never answered.
        task: decides between the two; a dense task has classes.
        shown: what groups are standardised by, if not the training items.
    """
    widths = [group.shape[1] for group in x[0]]
    scales = [scale_of(group) for group in shown or x[0]]
    centre, unit = (np.concatenate(parts) for parts in zip(*scales, strict=True))
    train, val = ((np.concatenate(part, axis=1) - centre) / unit for part in x)
    emphases = EMPHASES if len(widths) > 1 else (1.0,)
    factors = np.where(np.arange(len(unit)) < widths[0], np.array(emphases)[:, None], 1.0)
    designs = [Axes.of(train * factor) for factor in factors]
    values = task.kind == "regression"
    solve, losses = (_ridge, _squared_errors) if values else (_logistic, _log_losses)
    lost: list[dict[float, float]] = [{} for _ in emphases]  # of each, by exponent

    def fits(exponents: Sequence[float]) -> list[tuple[tuple[float, Array, Array], float]]:
        # Beyond a grid's edge only what was best there: most of it would be slow, and in vain.
        going = [i for i, known in enumerate(lost) if _open(known, exponents)]
        strengths = [10.0**exponent for exponent in exponents]
        solved = solve([designs[i] for i in going], target[0], task, strengths)
        found = []
        for i, (weight, bias) in zip(going, solved, strict=True):
            weight = weight * factors[i][:, None]
            each = losses(val @ weight + bias[:, None], target[1]).tolist()
            lost[i] |= zip(exponents, each, strict=True)
            models = [(emphases[i], *model) for model in zip(weight, bias, strict=True)]
            found.append(list(zip(models, each, strict=True)))
        return [min(same, key=lambda one: one[1]) for same in zip(*found, strict=True)]

    (emphasis, weight, bias), strength, edge = search(fits)
    weight = weight / unit[:, None]
    parts = np.split(weight, np.cumsum(widths)[:-1])
    return Line(tuple(parts), bias - centre @ weight, emphasis, strength, edge)


def _open(known: dict[float, float], exponents: Sequence[float]) -> bool:
    """Whether losses are not known yet, or lowest next to one of the exponents."""
    best = min(known, key=known.__getitem__, default=exponents[0])
    return min(abs(best - exponent) for exponent in exponents) <= 1


type Solved = list[tuple[Array, Array]]
"""Weights (strengths, k, outputs) and biases (strengths, outputs) of each design."""


def _ridge(designs: Sequence[Axes], target: Array, _: Task, strengths: Sequence[float]) -> Solved:
    # Of values with unit variance, so that a strength means the same in any unit.
    centre, spread = target.mean(), target.std() or 1.0
    lines = [ridge(axes, (target - centre) / spread, strengths) for axes in designs]
    return [(w[:, :, None] * spread, b[:, None] * spread + centre) for w, b in lines]


def _squared_errors(outputs: Array, target: Array) -> Array:
    return np.asarray(((outputs[:, :, 0] - target) ** 2).mean(axis=1))


def _logistic(
    designs: Sequence[Axes], labels: NDArray[Any], task: Task, strengths: Sequence[float]
) -> Solved:
    held, known = np.unique(labels, return_inverse=True)
    found = []
    for model in logistic(designs, known, strengths):
        weight = np.zeros((*model.weight.shape[:2], len(task.classes)))
        bias = np.full((len(strengths), len(task.classes)), _ABSENT)
        weight[:, :, held], bias[:, held] = model.weight, model.bias
        found.append((weight, bias))
    return found


def _log_losses(outputs: Array, labels: NDArray[Any]) -> Array:
    chances = log_softmax(outputs, axis=2)
    return np.asarray(-chances[:, np.arange(len(labels)), labels].mean(axis=1))


# Probes of whole images.


def linear(features: Array, target: NDArray[Any], fold: Fold, task: Task) -> Probed:
    """A linear probe on one group of features.

    Args:
        features: (n, k), of all items.
        target: (n,) class indices or values.
        fold: indices of the training, validation and test items.
        task: decides between logistic and ridge regression.
    """
    return weighed((features,), target, fold, task)


def weighed(
    groups: Groups, target: NDArray[Any], fold: Fold, task: Task, images: Rows | None = None
) -> Probed:
    """A linear probe on several groups of features, standardised over ``images``, or training items if None."""
    train, val, test = fold

    def of(rows: Rows) -> Groups:
        return [group[rows] for group in groups]

    line = fit_line(
        (of(train), of(val)),
        (target[train], target[val]),
        task,
        None if images is None else of(images),
    )
    outputs = line(of(test))
    if task.kind == "regression":
        nothing = np.empty((len(test), 0))
        return Probed(outputs[:, 0], nothing, line.strength, line.edge, emphasis=line.emphasis)
    guess = outputs.argmax(axis=1).astype(np.float64)
    return Probed(guess, outputs, line.strength, line.edge, emphasis=line.emphasis)


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


def _knn(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    rows = features.pooled(items.samples, items.images_of(fold[0]))
    finite(rows, items.task)
    return knn(rows, items.target, fold, items.task)


def _linear(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    from gfmsum.probe.dense import dense_linear, groups_of

    images = items.images_of(fold[0])
    if items.task.dense:
        return dense_linear(groups_of(features, items, images), items, fold, seed)
    return _on(features.vectors(items.samples, images), items, fold)


def _mean(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    from gfmsum.probe.dense import cells_of, dense_linear

    images = items.images_of(fold[0])
    if items.task.dense:
        return dense_linear((cells_of(features, items, images),), items, fold, seed)
    return _on((features.pooled(items.samples, images),), items, fold)


def _on(groups: tuple[Array, ...], items: Labelled, fold: Fold) -> Probed:
    for group in groups:
        finite(group, items.task)
    return weighed(groups, items.target, fold, items.task, items.images_of(fold[0]))


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
        "mean": Probe((*WHOLE, *DENSE), _mean),
        "knn": Probe(WHOLE, _knn),
        "attentive": Probe(WHOLE, _trained("attentive")),
        "layers": Probe(DENSE, _trained("layers")),
        "finetune": Probe((*WHOLE, *DENSE), _trained("finetune")),
    }
)


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
