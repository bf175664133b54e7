"""Few labels: what a task asks of a model when only so many of its items are labelled.

``landuse_s1@10`` is the task ``landuse_s1`` with 10 labels of each class to train on, and 10 to choose settings
by; ``length_s1@50``, which asks for a value, has 50 labelled images in all, and so has a task that asks for
every pixel. Of these, fewer than SCARCE tell no encoders apart: all lie at or below chance. All images stay at
hand without their labels, as they do in practice: what needs no label, like the statistics that bands are
normalised with, is measured on all of them, so that an encoder sees every image once, whatever is labelled.

One draw of 10 labels is luck. A score is the mean over several, which depend on the task's name, the number of
labels, the draw's number and the seed alone: every arm and every replicate is given the very same labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.data.plan import stream
from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.records import Score, Task

if TYPE_CHECKING:  # when used, so that planning does without what fits probes
    import pandas as pd

    from gfmsum.probe.features import Features

CLOSED = ("linear", "mean", "knn")  # probes with one solution, which features of any kind allow
SCARCE = 20
QUICK, SLOW = (8, 4), (2, 1)
"""Draws of fewer than SCARCE labels, and of more: where a fit takes a tenth of a second, and where seconds.

Measured on random starts at 32 px: from draw to draw of 10 labels, the difference of two encoders varies with
a standard deviation of .04 (a label per pixel) to .14 (values) of utility. So many draws leave about .006 of it
in the mean over five tasks, which is what runs of one arm vary by.
"""
ATTEMPTS = 100  # at a draw that can be fitted on


def expand(tasks: Iterable[Task], counts: Sequence[int]) -> tuple[Task, ...]:
    """Tasks with each number of labels, those of one task side by side.

    Args:
        tasks: with all their labels.
        counts: of labels, 0 for all. Where a task has no more than so many, all of them stand for it, once.
            Fewer than SCARCE are for classes of whole images, and for other tasks if nothing else is asked.
    """
    return tuple(task.at(count) for task in tasks for count in _counts(task, counts))


def _counts(task: Task, counts: Sequence[int]) -> Iterable[int]:
    if task.kind != "classification":
        counts = [count for count in counts if not 0 < count < SCARCE] or counts
    return dict.fromkeys(count if _below(task, count) else 0 for count in counts)


def _below(task: Task, count: int) -> bool:
    """Whether so many labels are surely fewer than all, as far as it is known how many there are."""
    groups = len(task.classes) if task.kind == "classification" else 1
    return not task.train or count * groups < task.train


def draws(task: Task, how: str) -> int:
    """How often a task's labels are drawn for a probe: once if it has all of them."""
    quick = how in CLOSED and not task.dense
    return (QUICK if quick else SLOW)[task.labels >= SCARCE] if task.labels else 1


def few(items: Labelled, count: int, seed: int = 0, draw: int = 0) -> Labelled:
    """The same items with ``count`` labels per class to train on and as many to validate on, drawn at random.

    Of tasks that ask for values or pixels ``count`` items in all. A class that has fewer gives all it has. Test
    items stay. A draw that nothing can be fitted on, for want of two classes or values to train on or of any
    label to validate on, is drawn anew.

    Raises:
        ValueError: if none of ATTEMPTS draws can be fitted on.
    """
    whole, key = items.task, (items.task.name, count, draw, seed)
    folds = tuple(
        (*_drawn(items, (train, val), count, *key, number), test)
        for number, (train, val, test) in enumerate(items.folds)
    )
    images = items.images or tuple(train for train, _, _ in items.folds)
    return replace(items, task=whole.at(count), folds=folds, images=images)


def _drawn(
    items: Labelled, parts: tuple[Rows, Rows], count: int, *key: int | str
) -> tuple[Rows, Rows]:
    for attempt in range(ATTEMPTS):
        rng = stream("labels", *key, attempt)
        train, val = (_some(items, rows, count, rng) for rows in parts)
        if len(np.unique(_labels(items, train))) > 1 and len(_labels(items, val)):
            return train, val
    raise ValueError(
        f"task {items.task.name}: none of {ATTEMPTS} draws of {count} labels holds two classes to train on and "
        "a label to validate on; use more labels, or labels=all"
    )


def _some(items: Labelled, rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    if items.task.kind != "classification":
        return np.sort(rng.permutation(rows)[:count])
    labels = items.target[rows]
    chosen = [rng.permutation(rows[labels == label])[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _labels(items: Labelled, rows: Rows) -> NDArray[Any]:
    """What is known of some items: a label for each, or for each labelled pixel."""
    found = items.target[rows]
    return found[found != UNLABELLED] if items.task.dense else found


def score(
    features: Features, items: Labelled, counts: Sequence[int], how: str = "linear", seed: int = 0
) -> Iterator[tuple[Score, pd.DataFrame]]:
    """Score features on a task with each number of labels.

    Args:
        features, items, how, seed: as :func:`gfmsum.probe.fit.probe` takes them; the items with all labels.
        counts: as :func:`expand` takes them.

    Yields:
        What ``probe`` gives. With few labels, value, utility and each item's contribution are means over the
        draws, so that the mean over items is still the utility; ``strength`` is the geometric mean, ``edge``
        whether any draw ended there; ``prediction``, ``logits`` and ``confusion`` are the first draw's.
    """
    from gfmsum.probe.fit import probe

    for task in expand([items.task], counts):
        found = [
            probe(
                features, few(items, task.labels, seed, draw) if task.labels else items, how, seed
            )
            for draw in range(draws(task, how))
        ]
        yield _mean(found, task.labels)


def _mean(found: Sequence[tuple[Score, pd.DataFrame]], labels: int) -> tuple[Score, pd.DataFrame]:
    """One score of several draws."""
    scores, frames = zip(*found, strict=True)
    first: Score = scores[0]
    one = replace(
        first,
        value=float(np.mean([each.value for each in scores])),
        utility=float(np.mean([each.utility for each in scores])),
        strength=float(np.exp(np.mean([np.log(each.strength) for each in scores]))),
        edge=any(each.edge for each in scores),
        labels=labels,
    )
    added = np.mean([frame["contribution"] for frame in frames], axis=0)
    return one, frames[0].assign(contribution=added)
