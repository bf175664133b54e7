"""The encoder: band embedding, positions on the ground, and a ViT trunk of timm's blocks.

Shapes: b images, c bands, h w pixels, n patches, v visible patches, p pixels of a patch, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn

from gfmsum.budget import Architecture
from gfmsum.model.bands import BandEmbedding, Generated
from gfmsum.model.blocks import blocks, nearness, run_blocks, slopes
from gfmsum.sensors import Band

_WAVELENGTHS_M = (2.0, 200_000.0)  # of the position code: from an aerial patch to a MODIS image
STEEPEST = 1.0  # fall of the logits per patch of distance, in the head that looks least far


def patchify(x: Tensor, patch_px: int) -> Tensor:
    """Cut images into non-overlapping patches without mixing bands.

    Args:
        x: float (b, c, h, w).
        patch_px: side of a patch in pixels.

    Returns:
        float (b, n, c, p), patches row-major.

    Raises:
        ValueError: if h or w is not a multiple of ``patch_px``.
    """
    h, w = x.shape[-2:]
    if h % patch_px or w % patch_px:
        raise ValueError(
            f"image is {h}x{w} px, not a multiple of patch_px={patch_px}; crop it first"
        )
    return rearrange(x, "b c (i p) (j q) -> b (i j) c (p q)", p=patch_px, q=patch_px)


def pick(patches: Tensor, which: Tensor) -> Tensor:
    """Some patches of each image: float (b, n, c, p) and int64 (b, m) to float (b, m, c, p)."""
    return patches.gather(1, which[:, :, None, None].expand(-1, -1, *patches.shape[2:]))


def unpatchify(patches: Tensor, h: int, w: int, patch_px: int) -> Tensor:
    """The inverse of :func:`patchify`: float (b, n, c, p) to float (b, c, h, w)."""
    return rearrange(
        patches, "b (i j) c (p q) -> b c (i p) (j q)",
        i=h // patch_px, j=w // patch_px, p=patch_px, q=patch_px,
    )  # fmt: skip


@lru_cache(maxsize=256)
def grid_places(h: int, w: int) -> Tensor:
    """Where the patches of a grid lie, in patches from its centre: float (h * w, 2), patches row-major."""
    rows, columns = (torch.arange(count) - (count - 1) / 2 for count in (h, w))
    return torch.cartesian_prod(rows, columns)


@lru_cache(maxsize=256)
def ground_positions(h: int, w: int, gsd_m: float, width: int, amplitude: float = 1.0) -> Tensor:
    """Sine-cosine codes of where on the ground the patches of a grid lie.

    Coordinates are metres, so the code says how far patches are apart whatever the sensor. Each wave is
    averaged over its patch: waves shorter than a patch fade out instead of aliasing (as the
    integrated encoding of Barron et al. 2021 does along rays). Waves much longer than the image are
    zero at its centre and all but zero elsewhere.

    Args:
        h, w: rows and columns of patches.
        gsd_m: distance between neighbouring patches, metres.
        width: of the code, a multiple of 4.
        amplitude: of the waves.

    Returns:
        float (h * w, width), patches row-major.
    """
    shortest, longest = (math.log(length) for length in _WAVELENGTHS_M)
    waves = torch.linspace(shortest, longest, width // 4, dtype=torch.float64).exp()
    averaging = torch.sinc(gsd_m / waves)  # mean of a wave over one patch

    def axis(count: int) -> Tensor:
        centres = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * gsd_m
        angle = 2 * math.pi * centres[:, None] / waves
        return torch.cat([angle.sin() * averaging, (angle.cos() - 1) * averaging], dim=-1)

    rows, columns = axis(h), axis(w)
    grid = torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], dim=-1)
    return (amplitude * grid.flatten(0, 1)).float()


class Encoder(nn.Module):
    """Any set of bands on any grid to one token per patch."""

    def __init__(self, model: Architecture) -> None:
        super().__init__()
        self.patch_px = model.patch_px
        self.width, self.heads = model.width, model.heads
        self.embedding = BandEmbedding(model.code_width, model.patch_px, model.width, model.embed)
        self.blocks = blocks(model.width, model.depth, model.heads)
        self.norm = nn.LayerNorm(model.width)
        self.recompute = False  # what blocks computed, in the backward pass: slower, in less memory

    def tokens(
        self,
        patches: Tensor,
        bands: Sequence[Band],
        grid: tuple[int, int],
        gsd_m: float,
        visible: Tensor | None = None,
        generated: Generated | None = None,
    ) -> Tensor:
        """Patches to what enters the trunk.

        Args:
            patches: float (b, n, c, p).
            bands: the c bands.
            grid: rows and columns of patches, n in all.
            gsd_m: pixel size, metres.
            visible: int64 (b, v), values in [0, n): the patches to embed; all if None. The others
                are dropped before any arithmetic.
            generated: what the embedding's kernels gave for the bands, if they were asked before.

        Returns:
            float (b, v or n, d).
        """
        patch_m = gsd_m * math.isqrt(patches.shape[-1])
        positions = ground_positions(*grid, patch_m, self.width).to(patches.device)
        if visible is None:
            visible = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
        tokens: Tensor = self.embedding(pick(patches, visible), bands, generated)
        return tokens + positions[visible]

    def near(self, at: Tensor) -> Tensor:
        """What distance adds to attention's logits: float (b, v, 2) in patches to float (b, heads, v, v)."""
        return nearness(at, slopes(self.heads, STEEPEST))

    def trunk(self, tokens: Tensor, at: Tensor) -> Tensor:
        """The transformer: float (b, v, d) to float (b, v, d), normed.

        Args:
            tokens: of patches.
            at: float (b or 1, v, 2), where they lie, in patches.
        """
        out: Tensor = self.norm(run_blocks(self.blocks, tokens, self.near(at), self.recompute))
        return out

    def forward_features(
        self,
        x: Tensor,
        bands: Sequence[Band],
        gsd_m: float | None = None,
        patch_px: int | None = None,
    ) -> Tensor:
        """One token per patch.

        Args:
            x: float (b, c, h, w), each band normalised to zero mean and unit variance.
            bands: the c bands of x.
            gsd_m: pixel size in metres; the finest band's GSD if None.
            patch_px: side of a patch in pixels, if not that of pretraining: kernels are resized.

        Returns:
            float (b, n, d), patches row-major.

        Raises:
            ValueError: if h or w is not a multiple of the patch, or bands do not match x.
        """
        side = patch_px or self.patch_px
        patches = patchify(x, side)
        grid = (x.shape[-2] // side, x.shape[-1] // side)
        gsd = gsd_m if gsd_m is not None else min(band.gsd_m for band in bands)
        at = grid_places(*grid)[None].to(x.device)
        return self.trunk(self.tokens(patches, bands, grid, gsd), at)

    def embed(self, x: Tensor, bands: Sequence[Band], gsd_m: float | None = None) -> Tensor:
        """One vector per image, the mean of its patch tokens: float (b, d)."""
        return self.forward_features(x, bands, gsd_m).mean(dim=1)

    def embed_together(self, views: Sequence[tuple[Tensor, Sequence[Band], float]]) -> Tensor:
        """One vector for several sensors' images of the same places, which see each other in the trunk.

        Args:
            views: images (b, c, h, w) of any size, their bands, and the pixel size in metres; one for each
                sensor, row by row of the same places.

        Returns:
            float (b, d), the mean over all tokens.
        """
        side, tokens, at = self.patch_px, [], []
        finest = min(gsd_m for _, _, gsd_m in views)
        for x, bands, gsd_m in views:
            grid = (x.shape[-2] // side, x.shape[-1] // side)
            tokens.append(self.tokens(patchify(x, side), bands, grid, gsd_m))
            at.append(grid_places(*grid).to(x.device) * (gsd_m / finest))
        return self.trunk(torch.cat(tokens, dim=1), torch.cat(at)[None]).mean(dim=1)
