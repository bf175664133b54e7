"""What needs nobody's weights: band statistics and our own architecture, untrained or exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from gfmsum.budget import BUDGETS
from gfmsum.data.sample import Samples
from gfmsum.model.encoder import Encoder
from gfmsum.model.export import load_encoder
from gfmsum.pretrain import initialised
from gfmsum.probe.features import BandStatistics
from gfmsum.sensors import Band
from gfmsum.zoo.borrowed import Borrowed
from gfmsum.zoo.cards import OURS, STATISTICS, Entry, Options
from gfmsum.zoo.recipe import Recipe


class ImageStatistics(Borrowed):
    """Mean, deviation and two percentiles of each band, by the arithmetic of the probe's baseline.

    A token is a block's statistics, a vector the whole image's: both are 4 c wide.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(nn.Identity(), options, native_px=16, patch_px=16, width=0)

    def forward_features(
        self, x: Tensor, bands: Sequence[Band], gsd_m: float | None = None
    ) -> Tensor:
        """Of each block of 16 by 16 px: float (b, n, 4 c), blocks row-major."""
        h, w = x.shape[-2:]
        if h % self.patch_px or w % self.patch_px:
            raise ValueError(
                f"image is {h}x{w} px, not a multiple of {self.patch_px}; crop it first"
            )
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
