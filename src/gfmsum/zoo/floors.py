"""What needs nobody's weights: floors without a model, and our own architecture, untrained or exported.

A floor says what a score is worth without pretraining. Besides statistics of the bands there are the texture
measures that a remote-sensing analyst would compute by hand, and random convolutions, which rival learned
features where labels are many (Rolf et al. 2021, MOSAIKS, Nature Communications 12:4392). As an encoder's
tokens, both stand beside the statistics, and the probe weighs the two groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from gfmsum.budget import BUDGETS
from gfmsum.data.modules import Statistics
from gfmsum.data.sample import Rows, Samples
from gfmsum.model.encoder import Encoder
from gfmsum.model.export import load_encoder
from gfmsum.pretrain import initialised
from gfmsum.probe.features import (
    Array,
    BandMeans,
    BandStatistics,
    Features,
    Grid,
    Kept,
    whole_patches,
)
from gfmsum.sensors import Band
from gfmsum.zoo.borrowed import Borrowed
from gfmsum.zoo.cards import OURS, STATISTICS, Entry, Options
from gfmsum.zoo.recipe import Recipe

CELL_PX, WINDOW_PX = 4, 8  # on a grid: side of a cell, and of the square around it that is averaged
LAGS_PX = (1, 2, 4)
SCALES_PX = (2, 4, 8)
FILTERS, FILTERS_ON_GRID = 256, 128  # features of random convolutions, two of each kernel
KERNEL_PX = 3
BATCH = 4  # images at a time: maps of so few stay in the cache, ten times as fast as of 64

type Average = Callable[[Tensor, Tensor], Tensor]
"""From maps (b, m, up to h, up to w) of images (b, c, h, w) to means, (b, m, rows, columns)."""


def over_image(maps: Tensor, x: Tensor) -> Tensor:
    """Means over whole images: float (b, m, 1, 1)."""
    return maps.mean(dim=(2, 3), keepdim=True)


def around_cells(maps: Tensor, x: Tensor) -> Tensor:
    """Means over squares of WINDOW_PX around cells of CELL_PX, as far as they lie in the image.

    Maps that lack a margin, as what looks at neighbours does, are put in the middle and their edges repeated.
    """
    down, right = (whole - part for whole, part in zip(x.shape[-2:], maps.shape[-2:], strict=True))
    margins = (right // 2, right - right // 2, down // 2, down - down // 2)
    maps = F.pad(maps, margins, mode="replicate")
    pad = (WINDOW_PX - CELL_PX) // 2
    return F.avg_pool2d(maps, WINDOW_PX, CELL_PX, pad, count_include_pad=False)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measures of pixels, each band normalised over the training images, beside statistics of the bands."""

    statistics: Features = field(default_factory=BandStatistics)

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """Both groups side by side: float64 (n, k)."""
        return np.concatenate(self.vectors(samples, train), axis=1)

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """The measures alone, for cells of CELL_PX."""
        cells = self._run(samples, train, around_cells)
        h, w = samples.pixels.shape[-2:]
        return Grid(np.moveaxis(cells, 1, -1), h + -h % CELL_PX, w + -w % CELL_PX)

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, Array]:
        """Measures averaged over images, and statistics of the bands."""
        measured = self._run(samples, train, over_image)[:, :, 0, 0].astype(np.float64)
        return measured, self.statistics.pooled(samples, train)

    def grids(self, samples: Samples, train: Rows) -> tuple[Grid, Grid]:
        """Measures around cells, and statistics of every pixel."""
        return self.grid(samples, train), self.statistics.grid(samples, train)

    @torch.inference_mode()
    def _run(self, samples: Samples, train: Rows, average: Average) -> NDArray[np.float32]:
        statistics, found = Statistics.of(samples.pixels[train]), []
        for start in range(0, len(samples), BATCH):
            x = torch.from_numpy(statistics.normalise(samples.pixels[start : start + BATCH]))
            if average is around_cells:
                x = whole_patches(x, CELL_PX)
            found.append(self._measure(x, average).numpy())
        return np.concatenate(found)

    def _measure(self, x: Tensor, average: Average) -> Tensor:
        """Float (b, c, h, w), each band of zero mean and unit variance, to (b, m, rows, columns)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Texture(_Measured):
    """How rough an image is, and at which scales: 15 measures of each band.

    Mean absolute differences of pixels LAGS_PX apart, along rows, columns and both diagonals (the variogram of
    order one, or madogram), and standard deviations of means over squares of SCALES_PX. Scales that do not fit
    into an image are left out.
    """

    def _measure(self, x: Tensor, average: Average) -> Tensor:
        side, found = min(x.shape[-2:]), list[Tensor]()
        for lag in (lag for lag in LAGS_PX if lag < side):
            pairs = (
                (x[..., lag:], x[..., :-lag]),
                (x[..., lag:, :], x[..., :-lag, :]),
                (x[..., lag:, lag:], x[..., :-lag, :-lag]),
                (x[..., lag:, :-lag], x[..., :-lag, lag:]),
            )
            found += [average((a - b).abs(), x) for a, b in pairs]
        for scale in (scale for scale in SCALES_PX if scale < side):
            means = F.avg_pool2d(x, scale, 1)
            variance = average(means**2, x) - average(means, x) ** 2
            found.append(variance.clamp_min(0).sqrt())
        return torch.cat(found, dim=1)


@dataclass(frozen=True, slots=True)
class RandomConvolutions(_Measured):
    """Random kernels of 3 by 3 px over all bands, rectified at both signs and averaged: torchgeo's RCF.

    FILTERS features of an image and FILTERS_ON_GRID around a cell, from one fixed draw.
    """

    def _measure(self, x: Tensor, average: Average) -> Tensor:
        from torchgeo.models import RCF  # takes seconds

        features = FILTERS if average is over_image else FILTERS_ON_GRID
        rcf = RCF(x.shape[1], features, KERNEL_PX, seed=1)
        if average is over_image:
            pooled: Tensor = rcf(x)
            return pooled[:, :, None, None]
        maps = F.conv2d(x, rcf.weights, rcf.biases)
        return average(torch.cat([maps.clamp_min(0), -maps.clamp_max(0)], dim=1), x)


def baselines() -> dict[str, Features]:
    """Floors that need no model, by name, the simplest first; nothing is computed yet."""
    statistics = Kept(BandStatistics())
    return {
        "band means": BandMeans(),
        "band statistics": statistics,
        "texture": Kept(Texture(statistics)),
        "random convolutions": Kept(RandomConvolutions(statistics)),
    }


class ImageStatistics(Borrowed):
    """Mean, deviation and two percentiles of each band, by the arithmetic of the probe's baseline.

    A token is a block's statistics, a vector the whole image's: both are 4 c wide.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(nn.Identity(), options, native_px=16, patch_px=16, width=0)

    def forward_features(
        self, x: Tensor, bands: Sequence[Band], gsd_m: float | None = None
    ) -> Tensor:
        """Of each block of 16 by 16 px, images continued by reflection: float (b, n, 4 c), blocks row-major."""
        x = whole_patches(x, self.patch_px)
        blocks = rearrange(x, "b c (i p) (j q) -> (b i j) c p q", p=self.patch_px, q=self.patch_px)
        return self.embed(blocks, bands).reshape(len(x), -1, 4 * len(bands))

    def embed(self, x: Tensor, bands: Sequence[Band], gsd_m: float | None = None) -> Tensor:
        """Of each whole image: float (b, 4 c)."""
        pixels = x.detach().float().cpu().numpy()
        names = np.arange(len(x)).astype(str)
        images = Samples("", tuple(bands), 1.0, pixels, names)
        return torch.from_numpy(BandStatistics().pooled(images, np.arange(0))).to(x)


def recipe(entry: Entry) -> Recipe:
    """How to build a floor or an exported encoder."""

    def statistics(options: Options, path: Path | None) -> Borrowed:
        return ImageStatistics(options)

    def ours(options: Options, path: Path | None) -> Encoder:
        assert path is not None
        return load_encoder(path)

    def untrained(options: Options, path: Path | None) -> Encoder:
        return initialised(BUDGETS[entry.builds], options.seed, 0).encoder

    if entry.family is STATISTICS:
        return Recipe(statistics, reads=False)
    if entry.family is OURS:
        return Recipe(ours, draws=False)
    return Recipe(untrained, reads=False)
