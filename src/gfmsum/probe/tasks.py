"""Metrics of tasks, each as a mean of item contributions, so that any interval can be recomputed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.data.sample import UNLABELLED
from gfmsum.records import Task


def measure(
    task: Task, target: NDArray[Any], prediction: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Score predictions of a class or a value for each item.

    Args:
        task: whose metric counts; of a dense task :func:`measure_dense` is the counterpart.
        target: (n,) class indices or values.
        prediction: float (n,) class indices or values.

    Returns:
        The metric, and what each item adds: float (n,) whose mean is the metric. For R2 the
        targets' variance is taken as given, for balanced accuracy the class counts are.

    Raises:
        ValueError: for an unknown metric, or R2 of targets that do not vary.
    """
    n = len(target)
    if task.metric == "accuracy":
        items = (prediction == target).astype(np.float64)
    elif task.metric == "balanced_accuracy":
        _, index, counts = np.unique(target, return_inverse=True, return_counts=True)
        items = (prediction == target) * n / (len(counts) * counts[index])
    elif task.metric == "r2":
        total = float(((target - target.mean()) ** 2).sum())
        if total == 0:
            raise ValueError(f"task {task.name}: all {n} targets are equal, R2 does not exist")
        items = 1 - n * (prediction - target) ** 2 / total
    else:
        raise ValueError(
            f"task {task.name}: unknown metric {task.metric!r}; "
            "use accuracy, balanced_accuracy or r2"
        )
    return float(items.mean()), items


def confusion(
    target: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """Pixels of each true class by predicted class, for each image: int64 (n, classes, classes).

    Args:
        target: (n, h, w), UNLABELLED where nothing is known: such pixels do not count.
        prediction: (n, h, w), below ``classes``.
        classes: how many there are.
    """
    n = len(target)
    known = target != UNLABELLED
    image = np.broadcast_to(np.arange(n)[:, None, None], target.shape)[known]
    cell = (image * classes + target[known]) * classes + prediction[known]
    return np.bincount(cell, minlength=n * classes**2).reshape(n, classes, classes)


def measure_dense(task: Task, confusions: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Score a dense task from the confusion matrix of each image.

    Args:
        task: whose metric counts: ``iou_positive``, of class 1, or ``mean_iou``, over the classes that the
            test targets hold. Pixels of all images are pooled.
        confusions: int64 (n, classes, classes), true class by predicted class.

    Returns:
        The metric, and what each image adds: float (n,) whose mean is the metric. An intersection over
        union is a ratio of sums, and an image adds what it moves the ratio by, to first order (the
        delta method), so that intervals from these hold for the metric.

    Raises:
        ValueError: for an unknown metric, or if no pixel of the test items is labelled.
    """
    hit = np.einsum("icc->ic", confusions)
    union = confusions.sum(axis=2) + confusions.sum(axis=1) - hit
    present = np.flatnonzero(confusions.sum(axis=(0, 2)))
    if task.metric == "iou_positive":
        present = np.intersect1d(present, [1])
    elif task.metric != "mean_iou":
        raise ValueError(
            f"task {task.name}: unknown metric {task.metric!r}; use mean_iou or iou_positive"
        )
    if not present.size:
        raise ValueError(
            f"task {task.name}: the test items hold no labelled pixel that {task.metric} counts; split anew"
        )
    n, total = len(confusions), union[:, present].sum(axis=0)
    value = hit[:, present].sum(axis=0) / total
    items = value + n * (hit[:, present] - value * union[:, present]) / total
    return float(value.mean()), items.mean(axis=1)
