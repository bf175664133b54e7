"""Probes that answer for every pixel, linear in the tokens of patches and in the statistics of pixels.

A linear map of tokens followed by bilinear interpolation is the same map of interpolated tokens. So the head
that others train by gradient descent on whole images is a logistic regression on pixels, which has one
solution: it is fitted on a fixed draw of them, for a whole grid of strengths at once. Groups of features on
grids of different cells add up: each is mapped on its own cells, and the maps are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.probe.features import Features, Grid
from gfmsum.probe.fit import Array, Fold, Probed, finite, fit_line
from gfmsum.probe.tasks import confusion

TRAIN_PIXELS, VAL_PIXELS = 2048, 1024
"""Drawn evenly from all labelled ones."""
PIXELS_PER_IMAGE = 64  # on average: more of a few images say the same again


def cells_of(features: Features, items: Labelled, train: Rows) -> Grid:
    """What a dense task's answers are made from, one vector per cell: see :func:`groups_of`."""
    earlier = None if items.before is None else features.grid(items.before, train)
    return _both(features.grid(items.samples, train), earlier, items)


def groups_of(features: Features, items: Labelled, train: Rows) -> tuple[Grid, ...]:
    """What a dense task's answers are made from, in groups.

    For change: absolute difference, later and earlier features side by side, (n, rows, columns, 3 k); both
    dates go through one encoder, each normalised with its own training statistics.
    """
    later = features.grids(items.samples, train)
    if items.before is None:
        return tuple(_both(grid, None, items) for grid in later)
    earlier = features.grids(items.before, train)
    return tuple(_both(*pair, items) for pair in zip(later, earlier, strict=True))


def _both(later: Grid, earlier: Grid | None, items: Labelled) -> Grid:
    cells = later.cells
    if earlier is not None:
        cells = np.concatenate([np.abs(cells - earlier.cells), cells, earlier.cells], axis=-1)
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


def dense_linear(grids: tuple[Grid, ...], items: Labelled, fold: Fold, seed: int) -> Probed:
    """L2 logistic regression on groups of cells, interpolated, by the log loss of validation pixels."""
    train, val, test = fold
    task, target = items.task, items.target
    drawn = [
        draw(target, rows, min(most, PIXELS_PER_IMAGE * len(rows)), seed)
        for rows, most in ((train, TRAIN_PIXELS), (val, VAL_PIXELS))
    ]
    labels, judged = (target[pixels] for pixels in drawn)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"task {task.name}: training pixels hold one class; add items of another")
    x, checked = ([interpolated(grid, *pixels) for grid in grids] for pixels in drawn)
    line = fit_line((x, checked), (labels, judged), task)
    # Cells, not pixels, of the test items: interpolation comes after the linear map.
    logits = [grid.cells[test] @ part for grid, part in zip(grids, line.weights, strict=True)]
    logits[0] += line.bias
    found = _confusions(logits, grids, items, test)
    return _probed(found, line.strength, line.edge, line.emphasis)


def answered(
    logits: NDArray[np.floating],
    grid: Grid,
    items: Labelled,
    test: Rows,
    strength: float,
    edge: bool,
) -> Probed:
    """Test items' answers from the logits of cells, (n, rows, columns, classes)."""
    return _probed(_confusions([logits], [grid], items, test), strength, edge)


def _confusions(
    logits: Sequence[NDArray[np.floating]], grids: Sequence[Grid], items: Labelled, test: Rows
) -> NDArray[np.int64]:
    """What the sum of several groups' logits, each interpolated, gets right and wrong in test items."""
    n, h, w = items.target[test].shape
    guess = np.empty((n, h, w), np.uint8)
    for i in range(n):  # one at a time: a large image has many pixels
        total = torch.zeros(len(items.task.classes), h, w)
        for group, grid in zip(logits, grids, strict=True):
            cells = torch.from_numpy(np.moveaxis(group[i], -1, 0)[None].astype(np.float32))
            size = (grid.h_px, grid.w_px)
            wide = F.interpolate(cells, size, mode="bilinear", align_corners=False)
            total += wide[0, :, :h, :w]
        guess[i] = total.argmax(dim=0).numpy()
    return confusion(items.target[test], guess, len(items.task.classes))


def _probed(found: NDArray[np.int64], strength: float, edge: bool, emphasis: float = 1.0) -> Probed:
    nothing: Array = np.full(len(found), np.nan)
    return Probed(nothing, np.empty((len(found), 0)), strength, edge, found, emphasis)
