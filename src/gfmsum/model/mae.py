"""The masked autoencoder: hide most patches, predict them from the rest, for any mix of sensors.

Shapes: b images, c bands, h w pixels, n patches, v visible patches, p pixels of a patch, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfmsum.budget import Architecture
from gfmsum.model.bands import BandPrediction, OwnKernels
from gfmsum.model.blocks import blocks, linear, nearness, run_blocks, slopes
from gfmsum.model.encoder import (
    Encoder,
    grid_places,
    ground_positions,
    patchify,
    pick,
    unpatchify,
)
from gfmsum.sensors import Band

STEEPEST = (
    2.0  # fall of the decoder's logits per patch of distance, in the head that looks least far
)
AMPLITUDE = 4.0  # of the decoder's position code: a hidden patch is known by nothing else

type View = tuple[Tensor, Sequence[Band], float]
"""Images of one kind: pixels float (b, c, h, w), normalised; their c bands; pixel size in metres."""


def group_statistics(pixels: Tensor, bands: Sequence[Band]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image over the bands of a group.

    Targets normalised with these weigh alike for radar, optical and coarse sensors without factors set by
    hand, and keep how bands of a group differ.

    Args:
        pixels: float (b, c, h, w).
        bands: the c bands; :attr:`Band.group` says which belong together.

    Returns:
        Two float (b, 1, c, 1), equal within a group.
    """
    groups = [band.group for band in bands]
    same = torch.tensor([[a == b for b in groups] for a in groups]).to(pixels)
    same = same / same.sum(dim=1)

    def over_group(values: Tensor) -> Tensor:
        """No matrix product, whose precision mixed precision would lower."""
        return (values[:, None] * same).sum(dim=2)

    # Moments of a band first: pixels are read once, and no group of them is copied.
    variance, mean = torch.var_mean(pixels.flatten(2), dim=2, correction=0)
    centre = over_group(mean)
    spread = over_group(variance + (mean - centre) ** 2)
    deviation = (spread + 1e-6).sqrt()
    return centre[:, None, :, None], deviation[:, None, :, None]


class MaskedAutoencoder(nn.Module):
    """After He et al. 2022, with a dynamic number of bands in and out."""

    def __init__(self, model: Architecture) -> None:
        super().__init__()
        self.model = model
        self.encoder = Encoder(model)
        self.decoder_input = linear(model.width, model.decoder_width)
        self.mask_token = nn.Parameter(torch.randn(model.decoder_width) * 0.02)
        self.decoder = blocks(model.decoder_width, model.decoder_depth, model.decoder_heads)
        self.decoder_norm = nn.LayerNorm(model.decoder_width)
        self.prediction = BandPrediction(
            model.code_width, model.patch_px, model.decoder_width, model.embed
        )

    def know(self, bands: Sequence[Band]) -> None:
        """Learn kernels for these bands, where each has its own; generated ones need not be told."""
        for kernels in (self.encoder.embedding.kernels, self.prediction.kernels):
            if isinstance(kernels, OwnKernels):
                kernels.know(bands)

    def choose(self, images: int, patches: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which patches the encoder sees and which are hidden: int64 (images, v) and (images, n - v).

        Values are below ``patches``, in random order.
        """
        keep = max(1, round(patches * (1 - self.model.mask_ratio)))
        order = torch.rand(images, patches, generator=rng).argsort(dim=1)
        return order[:, :keep], order[:, keep:]

    def forward(
        self,
        views: Sequence[View],
        rng: torch.Generator,
        rows: Sequence[int] | None = None,
        of: int | None = None,
    ) -> list[Tensor]:
        """The reconstruction error of each image, view by view.

        Images are embedded and predicted per view; the trunk and the decoder run once on all.

        Args:
            views: one or more kinds of images, all of one size.
            rng: draws the masks, on the CPU so that every device draws the same.
            rows: which of the ``of`` masks drawn are for these images; all of them, in order, if None.

        Returns:
            For each view float32 (b,): squared error over the share of its hidden patches that a step
            predicts, in units of each band group's variance.
        """
        errors = []
        predicted = self._predict(views, rng, self.model.predict_ratio, rows, of)
        for (guess, hidden, patches), (pixels, bands, _) in zip(predicted, views, strict=True):
            mean, deviation = group_statistics(pixels, bands)
            target = (
                pick(patches, hidden).sub_(mean).div_(deviation)
            )  # in place: memory is the cost
            error = F.mse_loss(guess.float(), target, reduction="none")
            errors.append(error.mean(dim=(1, 2, 3)))
        return errors

    @torch.no_grad()
    def reconstruct(self, view: View, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Whole images with their hidden patches filled in.

        Returns:
            float (b, c, h, w) in the input's units: visible patches as given, hidden ones
            predicted; bool (b, 1, h, w), true where hidden.
        """
        pixels, bands, _ = view
        h, w = pixels.shape[-2:]
        ((guess, hidden, patches),) = self._predict([view], rng, predict_ratio=1)
        mean, deviation = group_statistics(pixels, bands)
        index = hidden[:, :, None, None].expand(guess.shape)
        filled = patches.scatter(1, index, (guess * deviation + mean).to(patches.dtype))
        where = torch.zeros_like(patches[:, :, :1], dtype=torch.bool).scatter(
            1, index[:, :, :1], True
        )
        patch_px = self.model.patch_px
        return unpatchify(filled, h, w, patch_px), unpatchify(where, h, w, patch_px)

    def _predict(
        self,
        views: Sequence[View],
        rng: torch.Generator,
        predict_ratio: float,
        rows: Sequence[int] | None = None,
        of: int | None = None,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of every view: predictions (b, m, c, p) of m of the hidden patches, which these are (b, m), and
        all patches (b, n, c, p)."""
        patch_px = self.model.patch_px
        sizes = {tuple(pixels.shape[-2:]) for pixels, _, _ in views}
        if len(sizes) != 1:
            raise ValueError(f"views of one step have sizes {sorted(sizes)}; crop them to one size")
        h, w = sizes.pop()
        grid = (h // patch_px, w // patch_px)
        counts = [len(pixels) for pixels, _, _ in views]
        device = views[0][0].device
        visible, hidden = (
            (chosen if rows is None else chosen[list(rows)]).to(device)
            for chosen in self.choose(of or sum(counts), grid[0] * grid[1], rng)
        )
        hidden = hidden[:, : max(1, round(hidden.shape[1] * predict_ratio))]
        patches = [patchify(pixels, patch_px) for pixels, _, _ in views]
        kinds = [bands for _, bands, _ in views]
        embedded = [
            self.encoder.tokens(part, bands, grid, gsd_m, chosen, generated)
            for part, (_, bands, gsd_m), chosen, generated in zip(
                patches,
                views,
                torch.split(visible, counts),
                self.encoder.embedding.kernels(*kinds),
                strict=True,
            )
        ]
        at = grid_places(*grid).to(device)
        encoded = self.decoder_input(self.encoder.trunk(torch.cat(embedded), at[visible]))

        masked = self.mask_token.to(encoded.dtype).expand(*hidden.shape, -1)
        places = torch.cat([visible, hidden], dim=1)
        positions = [
            ground_positions(*grid, gsd_m * patch_px, encoded.shape[-1], AMPLITUDE).to(device)[
                where
            ]
            for (_, _, gsd_m), where in zip(views, torch.split(places, counts), strict=True)
        ]
        tokens = torch.cat([encoded, masked], dim=1) + torch.cat(positions)
        # Hidden patches learn from visible ones; of each other they have nothing to learn.
        slope = slopes(self.model.decoder_heads, STEEPEST)
        bias = nearness(at[places], slope, keys=visible.shape[1])
        decoded = self.decoder_norm(run_blocks(self.decoder, tokens, bias, self.encoder.recompute))
        wanted = decoded[:, visible.shape[1] :]
        return [
            (self.prediction(tokens_of, generated), which, part)
            for tokens_of, generated, which, part in zip(
                torch.split(wanted, counts),
                self.prediction.kernels(*kinds),
                torch.split(hidden, counts),
                patches,
                strict=True,
            )
        ]
