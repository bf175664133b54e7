"""Small tasks whose answers lie in the pixels, and encoders that can be seen through."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from gfmsum.budget import TINY
from gfmsum.data.sample import Labelled, Samples
from gfmsum.model.encoder import Encoder, patchify
from gfmsum.probe.features import Grid
from gfmsum.records import Task
from gfmsum.sensors import S1

CLASSES = Task("kinds", "s1", "classification", "accuracy", 1 / 3, 1.0, ("a", "b", "c"))
VALUES = Task("values", "s1", "regression", "r2", 0.0, 1.0)
SEGMENTS = Task("segments", "s1", "segmentation", "mean_iou", 0.0, 1.0, ("a", "b", "c"))
CHANGES = Task("changes", "s1", "change_segmentation", "iou_positive", 0.0, 1.0, ("same", "new"))

SMALL = replace(
    TINY, width=16, heads=2, decoder_width=8, decoder_heads=1, image_px=8, code_width=16
)
"""Four blocks of patches of 4 px."""


def samples(pixels: np.ndarray) -> Samples:
    """Of Sentinel-1, from (n, 2, h, w)."""
    names = np.array([f"i{i}" for i in range(len(pixels))])
    return Samples("s1", S1.bands, 10.0, pixels.astype(np.float32), names)


def split(n: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """One fold: half to train, a quarter to validate and a quarter to test."""
    rows = np.arange(n)
    return ((rows[: n // 2], rows[n // 2 : 3 * n // 4], rows[3 * n // 4 :]),)


def task(kind: str, n: int = 120, px: int = 8, seed: int = 0) -> Labelled:
    """A task of any kind whose answer is in the images.

    A class is where it is in the plane of the two bands, a value is what the bands differ by; labels of pixels
    are so in squares of 4 px. What changed got brighter or darker in both bands, by
    less than places differ.
    """
    rng = np.random.default_rng(seed)
    corners = np.array([[0.0, 4.0], [4.0, 0.0], [-4.0, -4.0]])
    noise = rng.normal(size=(n, 2, px, px))
    if kind == "classification":
        target = rng.integers(3, size=n)
        return labelled(CLASSES, noise + corners[target][:, :, None, None], target)
    if kind == "regression":
        values = rng.normal(size=n)
        shift = np.stack([values, -values], axis=1)[:, :, None, None]
        return labelled(VALUES, noise * 0.5 + shift, values)
    side = -(-px // 4)
    if kind == "segmentation":
        target = squares(rng.integers(3, size=(n, side, side)), px)
        return labelled(SEGMENTS, noise + np.moveaxis(corners[target], -1, 1), target)
    changed = rng.random((n, side, side)) < 0.4
    sign = rng.choice([-1.0, 1.0], size=changed.shape)
    place = squares(5 * rng.normal(size=changed.shape), px)[:, None]
    later = 0.2 * noise + place + 3 * squares(changed * sign, px)[:, None]
    before = samples(0.2 * rng.normal(size=noise.shape) + place)
    return labelled(CHANGES, later, squares(changed.astype(int), px), before)


def squares(cells: np.ndarray, px: int) -> np.ndarray:
    """Cells (n, rows, columns) as squares of 4 px, cut to ``px``."""
    return cells.repeat(4, axis=1).repeat(4, axis=2)[:, :px, :px]


def labelled(
    what: Task, pixels: np.ndarray, target: np.ndarray, before: Samples | None = None
) -> Labelled:
    """Items, each a cluster of its own."""
    shown = samples(pixels)
    wanted = target.astype(np.uint8) if what.dense else target
    return Labelled(what, shown, wanted, shown.ids, split(len(target)), before)


def encoder(seed: int = 0) -> Encoder:
    """Ours, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Encoder(SMALL)


def arranged(n: int = 160, px: int = 16, seed: int = 0) -> Labelled:
    """Two classes of images of one histogram: pixels in disorder, or sorted into rows from dark to bright.

    Bands have the same statistics and patches the same mean in both; what differs is how patches vary.
    """
    rng = np.random.default_rng(seed)
    target = rng.integers(2, size=n)
    pixels = rng.normal(size=(n, 2, px * px))
    pixels = np.where(target[:, None, None] == 1, np.sort(pixels, axis=-1), pixels)
    two = replace(CLASSES, classes=("loose", "sorted"), floor=0.5)
    return labelled(two, pixels.reshape(n, 2, px, px), target)


@dataclass(frozen=True)
class Given:
    """Features as they are given."""

    groups: tuple[np.ndarray, ...] = ()
    planes: tuple[Grid, ...] = ()

    def pooled(self, shown: Samples, train: np.ndarray) -> np.ndarray:
        return self.groups[0]

    def grid(self, shown: Samples, train: np.ndarray) -> Grid:
        return self.planes[0]

    def vectors(self, shown: Samples, train: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.groups

    def grids(self, shown: Samples, train: np.ndarray) -> tuple[Grid, ...]:
        return self.planes


class PatchMeans(Encoder):
    """Gives the mean of each band in each patch, and counts how often it is asked."""

    def __init__(self, patch_px: int = 4) -> None:
        nn.Module.__init__(self)
        self.patch_px, self.calls = patch_px, 0

    def forward_features(self, x: Tensor, *_: object) -> Tensor:
        self.calls += 1
        return patchify(x, self.patch_px).mean(dim=-1)
