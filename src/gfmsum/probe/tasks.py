"""Metrics of tasks, each as a mean of item contributions, so that any interval can be recomputed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.records import Task


def measure(
    task: Task, target: NDArray[Any], prediction: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Score predictions.

    Args:
        task: whose metric counts.
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
