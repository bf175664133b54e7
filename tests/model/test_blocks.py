"""Attention that falls with distance: slopes of heads, what is hidden, and a plain loop as oracle."""

import math

import pytest
import torch

from gfmsum.model.blocks import blocks, nearness, run_blocks, slopes
from gfmsum.model.encoder import grid_places


def test_slopes_fall_to_a_quarter_and_the_last_head_has_none() -> None:
    assert slopes(4, 1.0).tolist() == [1.0, 0.5, 0.25, 0.0]
    assert slopes(6, 2.0).tolist() == pytest.approx([2, 2**0.5, 1, 2**-0.5, 0.5, 0])
    assert slopes(2, 3.0).tolist() == [3.0, 0.0]
    assert slopes(1, 3.0).tolist() == [0.0]


def test_places_are_centred_and_row_major() -> None:
    assert grid_places(2, 3).tolist() == [
        [-0.5, -1.0], [-0.5, 0.0], [-0.5, 1.0], [0.5, -1.0], [0.5, 0.0], [0.5, 1.0],
    ]  # fmt: skip


def test_nearness_is_minus_slope_times_distance() -> None:
    at = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]]])
    bias = nearness(at, torch.tensor([1.0, 0.5]))
    assert bias.shape == (1, 2, 3, 3)
    assert bias[0, 0, 0].tolist() == [0.0, -5.0, -2.0]
    assert bias[0, 1, 1].tolist() == pytest.approx([-2.5, 0.0, -((9 + 4) ** 0.5) / 2])
    shut = nearness(at, torch.tensor([1.0]), keys=2)
    assert shut[0, 0, :, 2].tolist() == [-math.inf] * 3
    assert torch.equal(shut[..., :2], nearness(at, torch.tensor([1.0]))[..., :2])


def test_what_cannot_be_attended_to_has_no_effect() -> None:
    torch.manual_seed(0)
    stack, at = blocks(32, 2, 4).eval(), grid_places(2, 3)[None]
    bias = nearness(at, slopes(4, 1.0), keys=4)
    tokens = torch.randn(2, 6, 32)
    other = torch.cat([tokens[:, :4], torch.randn(2, 2, 32)], dim=1)
    one, two = (run_blocks(stack, x, bias, recompute=False) for x in (tokens, other))
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


def test_a_block_attends_as_a_plain_loop_does() -> None:
    torch.manual_seed(0)
    (block,) = blocks(16, 1, 2).eval().double().requires_grad_(False)
    at, tokens = torch.randn(1, 5, 2).double(), torch.randn(1, 5, 16).double()
    slope = torch.tensor([0.7, 0.0])
    found = block.attn(tokens, attn_mask=nearness(at, slope))
    q, k, v = block.attn.qkv(tokens)[0].view(5, 3, 2, 8).unbind(1)  # (n, heads, width of a head)
    rows = []
    for i in range(5):
        heads = []
        for h in range(2):
            logits = [
                float(q[i, h] @ k[j, h]) / 8**0.5
                - float(slope[h]) * math.dist(at[0, i].tolist(), at[0, j].tolist())
                for j in range(5)
            ]
            heads.append(torch.tensor(logits).double().softmax(0) @ v[:, h])
        rows.append(torch.cat(heads))
    # The bias is made in single precision for double tokens too, as positions are.
    torch.testing.assert_close(found[0], block.attn.proj(torch.stack(rows)), rtol=0, atol=1e-6)


def test_recomputed_blocks_have_the_same_gradient() -> None:
    torch.manual_seed(0)
    stack, bias = blocks(32, 2, 4), nearness(grid_places(2, 2)[None], slopes(4, 1.0))
    gradients = []
    for recompute in (False, True):
        tokens = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        run_blocks(stack, tokens, bias, recompute).square().sum().backward()
        gradients.append(tokens.grad)
    torch.testing.assert_close(*gradients)
