"""Probes that answer for every pixel, linear in the tokens of patches.

A linear map of tokens followed by bilinear interpolation is the same map of interpolated tokens. So the head
that others train by gradient descent on whole images is a logistic regression on pixels, which has one
solution: it is fitted on a fixed draw of them, for a whole grid of strengths at once.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.probe.features import Features, Grid
from gfmsum.probe.fit import Array, Fold, Probed, finite, log_losses, search
from gfmsum.probe.tasks import confusion

TRAIN_PIXELS, VAL_PIXELS = 4096, 2048
"""Drawn evenly from all labelled ones."""


def cells_of(features: Features, items: Labelled, train: Rows) -> Grid:
    """What a dense task's answers are made from.

    For change: absolute difference, later and earlier features side by side, (n, rows, columns, 3 k); both
    dates go through one encoder, each normalised with its own training statistics.
    """
    later = features.grid(items.samples, train)
    cells = later.cells
    if items.before is not None:
        before = features.grid(items.before, train).cells
        cells = np.concatenate([np.abs(cells - before), cells, before], axis=-1)
    finite(cells, items.task)
    return Grid(cells, later.h_px, later.w_px)


def interpolated(grid: Grid, image: Rows, y: Rows, x: Rows) -> Array:
    """Features at the centres of pixels, bilinear between those of cells, constant beyond the outermost.

    Args:
        grid: of the images.
        image, y, x: int64 (m,) each, which pixels.

    Returns:
        float64 (m, k).
    """
    _, rows, columns, _ = grid.cells.shape
    top, bottom, down = _between(y, grid.h_px, rows)
    left, right, along = _between(x, grid.w_px, columns)
    above = grid.cells[image, top, left] * (1 - along) + grid.cells[image, top, right] * along
    below = grid.cells[image, bottom, left] * (1 - along) + grid.cells[image, bottom, right] * along
    return np.asarray(above * (1 - down) + below * down, np.float64)


def _between(pixel: Rows, length_px: int, cells: int) -> tuple[Rows, Rows, Array]:
    """The cells on both sides of pixels' centres, and how far from the first (m, 1)."""
    at = np.clip((pixel + 0.5) * cells / length_px - 0.5, 0, cells - 1)
    first = at.astype(np.int64)
    return first, np.minimum(first + 1, cells - 1), (at - first)[:, None]


def draw(target: NDArray[np.uint8], rows: Rows, most: int, seed: int) -> tuple[Rows, Rows, Rows]:
    """Up to ``most`` labelled pixels of some images: image, y and x, (m,) each."""
    image, y, x = np.nonzero(target[rows] != UNLABELLED)
    if len(image) > most:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(image))[:most])
        image, y, x = image[chosen], y[chosen], x[chosen]
    return rows[image], y, x


def dense_linear(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """L2 logistic regression on patch tokens, bilinear between them, by the log loss of validation pixels."""
    train, val, test = fold
    task, target = items.task, items.target
    grid = cells_of(features, items, train)
    drawn = draw(target, train, TRAIN_PIXELS, seed), draw(target, val, VAL_PIXELS, seed)
    x, checked = (interpolated(grid, *pixels) for pixels in drawn)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    labels, judged = (target[pixels] for pixels in drawn)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"task {task.name}: training pixels hold one class; add items of another")
    # Cells, not pixels, of the test items: interpolation comes after the linear map.
    cells = (grid.cells[test].reshape(-1, x.shape[1]) - centre) / spread
    fits = log_losses(
        ((x - centre) / spread, (checked - centre) / spread, cells),
        (labels, judged),
        len(task.classes),
    )
    outputs, strength, edge = search(fits)
    logits = outputs.reshape(len(test), *grid.cells.shape[1:3], -1)
    return answered(logits, grid, items, test, strength, edge)


def answered(
    logits: NDArray[np.floating],
    grid: Grid,
    items: Labelled,
    test: Rows,
    strength: float,
    edge: bool,
) -> Probed:
    """Test items' answers from the logits of cells, (n, rows, columns, classes)."""
    n, h, w = items.target[test].shape
    guess = np.empty((n, h, w), np.uint8)
    for i, part in enumerate(logits):  # one at a time: a large image has many pixels
        whole = torch.from_numpy(np.moveaxis(part, -1, 0)[None].astype(np.float32))
        wide = F.interpolate(whole, (grid.h_px, grid.w_px), mode="bilinear", align_corners=False)
        guess[i] = wide[0, :, :h, :w].argmax(dim=0).numpy()
    found = confusion(items.target[test], guess, len(items.task.classes))
    nothing: Array = np.full(n, np.nan)
    return Probed(nothing, np.empty((n, 0)), strength, edge, found)
