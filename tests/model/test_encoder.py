"""Patches, positions on the ground, and the encoder's interface."""

import math

import numpy as np
import pytest
import torch

from gfmsum.budget import TINY
from gfmsum.model.encoder import Encoder, ground_positions, patchify, unpatchify
from gfmsum.sensors import S1, S2


def test_patchify_matches_a_plain_loop() -> None:
    x = torch.arange(144.0).view(2, 3, 4, 6)
    corners = [(i, j) for i in (0, 2) for j in (0, 2, 4)]
    want = torch.stack([x[:, :, i : i + 2, j : j + 2].flatten(2) for i, j in corners], dim=1)
    torch.testing.assert_close(patchify(x, 2), want, rtol=0, atol=0)
    torch.testing.assert_close(unpatchify(want, 4, 6, 2), x, rtol=0, atol=0)


def test_patchify_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="30x32 px, not a multiple of patch_px=4"):
        patchify(torch.zeros(1, 1, 30, 32), 4)


def test_a_position_is_the_mean_of_a_wave_over_its_patch() -> None:
    """Against numerical integration of sin and cos over each patch."""
    gsd, width, n = 40.0, 16, 3
    codes = ground_positions(n, n, gsd, width, amplitude=4.0).reshape(n, n, width)
    waves = np.geomspace(2.0, 200_000.0, width // 4)
    for row in range(n):
        start = (row - n / 2) * gsd
        x = start + (np.arange(100_000) + 0.5) * gsd / 100_000
        sines = [np.sin(2 * math.pi * x / wave).mean() for wave in waves]
        cosines = [np.cos(2 * math.pi * x / wave).mean() for wave in waves]
        averaging = [float(np.sinc(gsd / wave)) for wave in waves]
        want = 4 * np.array(sines + list(np.array(cosines) - averaging))
        np.testing.assert_allclose(codes[row, 0, : width // 2], want, atol=4e-4)


def test_positions_are_about_distance_not_about_patch_number() -> None:
    fine, coarse = ground_positions(1, 9, 40.0, 64), ground_positions(1, 3, 120.0, 64)
    long = 32 + torch.cat([torch.arange(12, 16), torch.arange(28, 32)])
    torch.testing.assert_close(fine[[1, 4, 7]][:, long], coarse[:, long], atol=8e-3, rtol=0)


@pytest.mark.parametrize("gsd", [2.4, 40.0, 1850.0])
def test_near_patches_have_nearer_codes_at_every_scale(gsd: float) -> None:
    codes = ground_positions(1, 8, gsd, 128)
    distance = torch.cdist(codes, codes)[0]
    assert (distance[1:] > 0.15).all()
    assert distance[1] < distance[3]


def test_any_image_size_and_one_vector_per_image() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY).eval()
    for h, w in ((16, 16), (32, 48), (64, 64)):
        x = torch.randn(2, 2, h, w)
        tokens = encoder.forward_features(x, S1.bands)
        assert tokens.shape == (2, h * w // 16, TINY.width)
        torch.testing.assert_close(encoder.embed(x, S1.bands), tokens.mean(1))


def test_gsd_matters_and_defaults_to_the_finest_band() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY).eval()
    x = torch.randn(1, 13, 32, 32)
    default = encoder.embed(x, S2.bands)
    torch.testing.assert_close(default, encoder.embed(x, S2.bands, 10.0))
    assert (default - encoder.embed(x, S2.bands, 60.0)).abs().max() > 1e-3


def test_bf16_tokens_are_those_of_fp32_to_its_precision() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY).eval()
    x = torch.randn(4, 13, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = encoder.forward_features(x, S2.bands)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder.forward_features(x, S2.bands).float()
    # 8 bits are 0.4 % of a number; errors of a few products in a row add up like a random walk.
    assert (rough - exact).norm() / exact.norm() < 0.02


def test_visible_tokens_are_a_selection_of_all_tokens() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY).eval()
    patches = torch.randn(2, 64, 2, 16)
    visible = torch.tensor([[0, 5, 63], [1, 2, 3]])
    every = encoder.tokens(patches, S1.bands, (8, 8), 10.0)
    some = encoder.tokens(patches, S1.bands, (8, 8), 10.0, visible)
    want = torch.stack([every[i, row] for i, row in enumerate(visible)])
    torch.testing.assert_close(some, want, rtol=1e-5, atol=1e-5)
