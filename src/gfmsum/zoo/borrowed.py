"""What all encoders of other people have in common here: the interface, the image size, the pooling.

Shapes: b images, c bands of ours, k channels of theirs, h w pixels, n patches, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfmsum.sensors import Band, unknown
from gfmsum.zoo.cards import Options
from gfmsum.zoo.channels import MISSING, Order

POOLS = ("mean", "cls")


class Borrowed(nn.Module):
    """Somebody else's encoder behind the interface of :class:`gfmsum.model.encoder.Encoder`.

    Subclasses say in :meth:`_check` which bands they understand, and in :meth:`_run` how they see them.

    Args:
        model: theirs.
        options: how it is used; an image_px of None is ``native_px``.
        native_px: side of the images of its pretraining.
        patch_px: side of what one token stands for.
        width: of the tokens.
    """

    def __init__(
        self, model: nn.Module, options: Options, *, native_px: int, patch_px: int, width: int
    ) -> None:
        super().__init__()
        if options.pool not in POOLS:
            raise ValueError(unknown("pool", options.pool, POOLS))
        if options.missing not in MISSING:
            raise ValueError(unknown("missing", options.missing, MISSING))
        self.model, self.patch_px, self.width = model, patch_px, width
        self.image_px = side(options, native_px, patch_px)
        self.pool, self.missing = options.pool, options.missing

    def forward_features(
        self, x: Tensor, bands: Sequence[Band], gsd_m: float | None = None
    ) -> Tensor:
        """One token per patch.

        Args:
            x: float (b, c, h, h), each band normalised to zero mean and unit variance.
            bands: the c bands of x.
            gsd_m: pixel size in metres; the finest band's GSD if None.

        Returns:
            float (b, n, d), patches of the resized image, row-major.

        Raises:
            ValueError: if x is not square or the model has no use for such bands.
        """
        return self._see(x, bands, gsd_m)[0]

    def embed(self, x: Tensor, bands: Sequence[Band], gsd_m: float | None = None) -> Tensor:
        """One vector per image, the mean of its patch tokens or its class token: float (b, d)."""
        tokens, whole = self._see(x, bands, gsd_m)
        if self.pool == "mean":
            return self._finish(tokens.mean(dim=1))
        if whole is None:
            raise ValueError("this model has no class token; say pool=mean")
        return self._finish(whole)

    def check(self, bands: Sequence[Band]) -> None:
        """Whether the model has a use for such bands.

        Raises:
            ValueError: one line on why not.
        """
        if not bands:
            raise ValueError("an image needs at least one band, got none; name its bands")
        self._check(bands)

    def _see(
        self, x: Tensor, bands: Sequence[Band], gsd_m: float | None
    ) -> tuple[Tensor, Tensor | None]:
        h, w = x.shape[-2:]
        if x.ndim != 4 or x.shape[1] != len(bands):
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not have one channel for each of {len(bands)} "
                f"bands ({', '.join(band.name for band in bands[:12])}); give (images, bands, h, w)"
            )
        if h != w:
            raise ValueError(f"image is {h}x{w} px; this model takes square ones, crop it first")
        self.check(bands)
        gsd = gsd_m if gsd_m is not None else min(band.gsd_m for band in bands)
        if h != self.image_px:
            size = (self.image_px, self.image_px)
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return self._run(x, bands, gsd * h / self.image_px)

    def _check(self, bands: Sequence[Band]) -> None:
        """Raises ValueError for bands that it has no use for."""

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        """Patch tokens (b, n, d) and class token (b, d), of images of the model's size."""
        raise NotImplementedError

    def _finish(self, pooled: Tensor) -> Tensor:
        """What comes after pooling: float (b, d) to float (b, d)."""
        return pooled


def side(options: Options, native_px: int, patch_px: int) -> int:
    """The side that images are resized to.

    Raises:
        ValueError: if it is no multiple of the patch.
    """
    image_px = native_px if options.image_px is None else options.image_px
    if image_px < patch_px or image_px % patch_px:
        raise ValueError(f"image_px={image_px} must be a multiple of its patch, {patch_px} px")
    return image_px


def pick(x: Tensor, order: Order) -> Tensor:
    """Bands in the order of channels, zeros where there is none: float (b, c, h, w) to (b, k, h, w)."""
    spare = x.shape[1]
    padded = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    return padded[:, [spare if place is None else place for place in order]]


def codes(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers of bands as float32 (c,) where the images are."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)
