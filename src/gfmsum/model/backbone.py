"""An exported encoder as a backbone in TerraTorch's terms; needs no TerraTorch itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from gfmsum.catalog import CATALOG
from gfmsum.model.encoder import Encoder, grid_places, patchify
from gfmsum.model.export import bands_of, load_encoder, read_config
from gfmsum.sensors import Band, unknown


class Backbone(nn.Module):
    """Images of one set of bands to maps of features, one for each block asked for.

    Shapes: b images, c bands, h w pixels, p pixels of a patch's side, d width.
    """

    def __init__(
        self, encoder: Encoder, bands: Sequence[Band], gsd_m: float, out_indices: Sequence[int]
    ) -> None:
        super().__init__()
        depth = len(encoder.blocks)
        chosen = [index + depth if index < 0 else index for index in out_indices]
        if not chosen or min(chosen) < 0 or max(chosen) >= depth:
            raise ValueError(f"out_indices={list(out_indices)} must lie in [-{depth}, {depth})")
        self.encoder, self.bands, self.gsd_m, self.out_indices = encoder, bands, gsd_m, chosen
        self.out_channels = [encoder.width] * len(chosen)
        self.patch_size = encoder.patch_px  # TerraTorch pads images to a multiple of it

    def forward(self, x: Tensor) -> list[Tensor]:
        """float (b, c, h, w), normalised per band, to maps float (b, d, h / p, w / p).

        The last block's features are normed, as those that probes see.
        """
        encoder, side = self.encoder, self.encoder.patch_px
        grid = (x.shape[-2] // side, x.shape[-1] // side)
        tokens = encoder.tokens(patchify(x, side), self.bands, grid, self.gsd_m)
        bias = encoder.near(grid_places(*grid)[None].to(x.device))
        maps = {}
        for index, block in enumerate(encoder.blocks):
            tokens = block(tokens, bias)
            if index in self.out_indices:
                last = index == len(encoder.blocks) - 1
                features = encoder.norm(tokens) if last else tokens
                maps[index] = features.mT.unflatten(-1, grid).contiguous()
        return [maps[index] for index in self.out_indices]


def gfmsum_encoder(
    path: str | Path,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    gsd_m: float | None = None,
    out_indices: Sequence[int] = (-1,),
    pretrained: bool = True,
) -> Backbone:
    """What TerraTorch's registry calls.

    Args:
        path: a folder that :func:`gfmsum.model.export.export_encoder` wrote.
        sensor: whose bands the images have, from the catalog; the one that the encoder saw if None.
        bands: their names, in the images' order; all if None.
        gsd_m: pixel size of the images in metres; the finest band's GSD if None.
        out_indices: blocks whose features are given, from 0 or from -1 backwards.
        pretrained: whether with the weights, or with random ones.

    Raises:
        ValueError: one line, for a folder, sensor, band or block that is none.
    """
    folder = Path(path)
    if sensor is not None and sensor not in CATALOG:
        raise ValueError(unknown("sensor", sensor, CATALOG))
    known = {band.name: band for band in (CATALOG[sensor].bands if sensor else bands_of(folder))}
    for name in bands or ():
        if name not in known:
            raise ValueError(unknown("band", name, known))
    chosen = tuple(known[name] for name in bands or known)
    encoder = load_encoder(folder) if pretrained else Encoder(read_config(folder)[1])
    return Backbone(encoder, chosen, gsd_m or min(band.gsd_m for band in chosen), out_indices)
