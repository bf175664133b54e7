"""Transformer blocks and linear layers, started so that a short pretraining gets going.

Attention falls with distance, by a fixed slope for each head (ALiBi, Press et al. 2022, in two dimensions).
So a hidden patch looks at its neighbours from the first step on, and the position code need not outweigh
what patches show: where it does, tokens are all but linear in the pixels, and their mean knows an
image's colour and nothing of its texture.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_FOCUS = 1.6  # of queries and keys: at 1, some seeds stayed on the plateau for most of a short run


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as in He et al. 2022: Xavier, zero bias."""
    layer = nn.Linear(inputs, outputs)
    _start(layer)
    return layer


def _start(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    """Pre-norm blocks that start from attention between like tokens.

    Queries and keys start equal, as Trockman and Kolter 2023 found them alike in trained
    transformers: tokens near each other in content and on the ground attend to each other from the
    first step. Without it, short runs never leave the plateau of predicting the mean.
    """
    stack = [Block(width, num_heads=heads, qkv_bias=True) for _ in range(depth)]
    for block in stack:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                _start(layer)
        rows = block.get_parameter(
            "attn.qkv.weight"
        ).data  # queries, keys and values, width rows each
        rows[:width] *= _FOCUS
        rows[width : 2 * width] = rows[:width]
    return nn.Sequential(*stack)


def slopes(heads: int, steepest: float) -> Tensor:
    """By how much the logits of each head fall per patch of distance: from ``steepest`` to a quarter of it.

    The last head looks equally far everywhere.

    Returns:
        float (heads,).
    """
    sloped = steepest * 2.0 ** -torch.linspace(0, 2, heads - 1)
    return torch.cat([sloped, torch.zeros(1)])


def nearness(at: Tensor, slope: Tensor, keys: int | None = None) -> Tensor:
    """What distance adds to the logits of attention.

    Args:
        at: float (b, n, 2), where tokens lie, in patches.
        slope: float (heads,), see :func:`slopes`.
        keys: only the first so many tokens can be attended to; all if None.

    Returns:
        float (b, heads, n, n), queries before keys.
    """
    distance = torch.cdist(at, at, compute_mode="donot_use_mm_for_euclid_dist")
    bias = -distance[:, None] * slope.to(distance)[:, None, None]
    if keys is not None:
        bias[..., keys:] = -torch.inf
    return bias


def run_blocks(stack: nn.Sequential, tokens: Tensor, bias: Tensor, recompute: bool) -> Tensor:
    """The blocks one after another: float (b, n, d) to float (b, n, d).

    Args:
        stack: what :func:`blocks` made.
        tokens: float (b, n, d).
        bias: float (b or 1, heads, n, n), added to the logits of attention in every block.
        recompute: keep only what goes between blocks for the backward pass.
    """
    for block in stack:
        if recompute and tokens.requires_grad:
            tokens = checkpoint(block, tokens, bias, use_reentrant=False)
        else:
            tokens = block(tokens, bias)
    return tokens
