"""Transformer blocks and linear layers, started so that a short pretraining gets going."""

from __future__ import annotations

from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn

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


def run_blocks(stack: nn.Sequential, tokens: Tensor, recompute: bool) -> Tensor:
    """The blocks one after another: float (b, n, d) to float (b, n, d).

    Args:
        recompute: keep only what goes between blocks for the backward pass.
    """
    if recompute and tokens.requires_grad:
        out: Tensor = checkpoint_seq(stack, tokens, use_reentrant=False)
        return out
    return stack(tokens)  # type: ignore[no-any-return]
