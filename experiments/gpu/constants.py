"""What the model makes on the host in every step although it never changes, kept on the device.

A copy from the host makes it wait for the device, and cannot be recorded in a CUDA graph. Each function here
gives what the model's function of that name gives, made once for each device and set of arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gfmsum.model import encoder, mae
from gfmsum.model.blocks import slopes
from gfmsum.model.encoder import grid_places, ground_positions
from gfmsum.sensors import Band

_MADE: dict[tuple[Any, ...], Tensor] = {}


def keep_constants(device: torch.device) -> None:
    """Put these functions in the place of the model's, for the whole process."""

    def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def found(*arguments: Any) -> Tensor:
            key = (make.__name__, device, *arguments)
            if key not in _MADE:
                _MADE[key] = make(*arguments).to(device)
            return _MADE[key]

        return found

    def group_statistics(pixels: Tensor, bands: Sequence[Band]) -> tuple[Tensor, Tensor]:
        same = shares(tuple(band.group for band in bands))
        variance, mean = torch.var_mean(pixels.flatten(2), dim=2, correction=0)
        centre = (mean[:, None] * same).sum(dim=2)
        spread = ((variance + (mean - centre) ** 2)[:, None] * same).sum(dim=2)
        return centre[:, None, :, None], (spread + 1e-6).sqrt()[:, None, :, None]

    shares = kept(group_shares)
    for module in (encoder, mae):
        for make in (grid_places, ground_positions, slopes):
            setattr(module, make.__name__, kept(make))
    mae.group_statistics = group_statistics


def group_shares(groups: tuple[str, ...]) -> Tensor:
    """The share that each band has in the mean over a band's group: float (c, c)."""
    same = torch.tensor([[a == b for b in groups] for a in groups]).float()
    return same / same.sum(dim=1)
