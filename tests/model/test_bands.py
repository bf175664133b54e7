"""The dynamic band embedding: what it must not confuse, and what must not matter to it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gfmsum.model.bands import (
    BandEmbedding,
    BandKernels,
    BandPrediction,
    OwnKernels,
    band_features,
    resize,
)
from gfmsum.sensors import LANDSAT, MODIS, S1, S2, Band, Unit


@pytest.fixture
def embedding() -> BandEmbedding:
    torch.manual_seed(0)
    return BandEmbedding(code_width=64, patch_px=4, width=128).eval()


# Another order of bands is another order of summing, in a token (13 bands of 16 pixels) and in the block that
# makes its kernels: in fp32 such sums of numbers of order one differ by about 1e-6, more or less as the
# processor adds. A band that has another's kernel moves tokens by about one.
ROUNDING = 1e-5


def patches(bands: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 5, bands, 16, generator=torch.Generator().manual_seed(seed))


def test_the_order_of_bands_does_not_matter(embedding: BandEmbedding) -> None:
    x = patches(13)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = embedding(x[:, :, order], [S2.bands[i] for i in order])
    torch.testing.assert_close(shuffled, embedding(x, S2.bands), rtol=0, atol=ROUNDING)


def test_swapping_the_polarisations_matters(embedding: BandEmbedding) -> None:
    x = patches(2)
    change = (embedding(x[:, :, [1, 0]], S1.bands) - embedding(x, S1.bands)).abs().mean()
    assert change > 0.1 * embedding(x, S1.bands).abs().mean()


@pytest.mark.parametrize("count", [1, 2, 13, 224])
def test_any_number_of_bands(embedding: BandEmbedding, count: int) -> None:
    bands = [Band(f"b{i}", 30, Unit.REFLECTANCE, 0.4 + 2.1 * i / 224, 0.01) for i in range(count)]
    tokens = embedding(patches(count), bands)
    assert tokens.shape == (2, 5, 128)
    assert tokens.isfinite().all()


def test_tokens_of_white_pixels_have_the_same_size_for_one_band_or_many(
    embedding: BandEmbedding,
) -> None:
    one = embedding(patches(1), S2.bands[:1])
    assert 0.2 < one.std().item() < 5


def test_codes_are_as_near_as_the_physics() -> None:
    torch.manual_seed(0)
    kernels = BandKernels(64, 16, 128)

    def code(band: Band) -> Tensor:
        return kernels.codes([band])[0]

    def near(a: Band, b: Band) -> float:
        return torch.cosine_similarity(code(a), code(b), dim=0).item()

    (red, nir, narrow), (landsat_red,) = S2.select(["B04", "B08", "B8A"]), LANDSAT.select(["B4"])
    assert near(red, landsat_red) > near(red, nir)
    assert near(landsat_red, red) > near(landsat_red, nir)
    assert 0.5 < near(nir, narrow) < 0.999
    assert not torch.allclose(code(S1.bands[0]), code(S1.bands[1]))


def test_width_and_gsd_are_part_of_the_features() -> None:
    (red,) = S2.select(["B04"])
    same, _ = band_features([red])
    for changed in (replace(red, gsd_m=20.0), replace(red, fwhm_um=0.3)):
        other, _ = band_features([changed])
        assert not torch.allclose(same, other)


def test_radar_has_no_wavelength() -> None:
    features, polarisations = band_features(S1.bands)
    assert (features[:, :32] == 0).all()
    assert polarisations.tolist() == [[2, 2], [2, 1]]  # V is 2, H is 1, 0 is optical


def test_radars_of_different_carriers_differ_and_an_unknown_one_has_none() -> None:
    c_band = S1.bands[0]
    x_band, unknown = replace(c_band, frequency_ghz=9.65), replace(c_band, frequency_ghz=None)
    features = [band_features([band])[0] for band in (c_band, x_band, unknown)]
    assert not torch.allclose(features[0], features[1])
    assert (features[2][:, :48] == 0).all()
    torch.manual_seed(0)
    kernels = BandKernels(64, 16, 128)
    codes = [
        kernels.codes([band])[0] for band in (c_band, x_band, replace(c_band, polarisation="VH"))
    ]
    near = [torch.cosine_similarity(codes[0], code, dim=0).item() for code in codes[1:]]
    assert 0.5 < near[0] < 0.999 and near[0] > near[1]


@pytest.fixture
def own() -> BandEmbedding:
    torch.manual_seed(0)
    embedding = BandEmbedding(code_width=64, patch_px=4, width=128, embed="per_sensor")
    assert isinstance(embedding.kernels, OwnKernels)
    embedding.kernels.know(S1.bands)
    return embedding


def test_own_kernels_follow_the_bands_and_are_learned_for_known_ones_only(
    own: BandEmbedding,
) -> None:
    x = patches(13)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = own(x[:, :, order], [S2.bands[i] for i in order])
    torch.testing.assert_close(shuffled, own(x, S2.bands), rtol=0, atol=ROUNDING)
    assert 0.2 < own(patches(1), S2.bands[:1]).std().item() < 5
    assert not own(x, S2.bands).requires_grad
    own(patches(2), S1.bands).sum().backward()
    assert [p.grad is not None for p in own.parameters()] == [True, True]
    assert sum(p.numel() for p in own.parameters()) == 2 * (16 + 1) * 128


def test_own_kernels_start_alike_whatever_else_is_known_and_survive_being_stored(
    own: BandEmbedding,
) -> None:
    torch.manual_seed(0)
    later = BandEmbedding(64, 4, 128, "per_sensor")
    x = patches(2)
    torch.testing.assert_close(own(x, S1.bands), later(x, S1.bands), rtol=0, atol=0)
    torch.manual_seed(1)
    another = BandEmbedding(64, 4, 128, "per_sensor")
    assert not torch.allclose(own(x, S1.bands), another(x, S1.bands))
    another.load_state_dict(own.state_dict())
    for bands in (S1.bands, S2.bands[:2]):  # learned, and drawn from the stored seed
        torch.testing.assert_close(own(x, bands), another(x, bands), rtol=0, atol=0)


@pytest.mark.parametrize("embed", ["dynamic", "per_sensor"])
@pytest.mark.parametrize("side", [2, 3, 6, 8])
def test_resized_kernels_give_a_smooth_images_tokens(embed: str, side: int) -> None:
    torch.manual_seed(0)
    embedding = BandEmbedding(64, 4, 128, embed)
    # A plane per band, whose interpolation to another size is the same plane.
    slopes = torch.randn(3, 5, 13, 1, 1)

    def planes(px: int) -> Tensor:
        at = (torch.arange(px) + 0.5) / px - 0.5
        plane = slopes[0] + slopes[1] * at[:, None] + slopes[2] * at
        return plane.flatten(-2)[None]

    want, got = (embedding(planes(px), S2.bands) for px in (4, side))
    # Interpolation repeats the border of a patch, and a smaller patch has lost half of what it showed.
    apart = (got - want).norm() / want.norm()
    assert apart < (0.3 if side == 2 else 0.1)


@pytest.mark.parametrize("side", [5, 8])
def test_a_patch_that_grew_has_exactly_its_token(side: int) -> None:
    kernel, patch = torch.randn(16, 3), torch.randn(1, 1, 4, 4)
    grown = torch.nn.functional.interpolate(patch, size=(side, side), mode="bilinear")
    want, got = patch.flatten(1) @ kernel, grown.flatten(1) @ (resize(4, side) @ kernel)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_channel_too_many_is_refused(embedding: BandEmbedding) -> None:
    with pytest.raises(ValueError, match="3 channels for 2 bands"):
        embedding(patches(3), S1.bands)
    with pytest.raises(ValueError, match="at least one band"):
        embedding(patches(0), [])


def test_sensors_in_one_call_do_not_see_each_other(embedding: BandEmbedding) -> None:
    sets = [sensor.bands for sensor in (S1, S2, MODIS)] + [S1.bands]
    for found, bands in zip(embedding.kernels(*sets), sets, strict=True):
        ((kernels, context),) = embedding.kernels(bands)
        assert kernels.shape == found[0].shape == (len(bands), 16, embedding.kernels.token_width)
        torch.testing.assert_close(found[0], kernels, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(found[1], context, rtol=0, atol=ROUNDING)
    with pytest.raises(ValueError, match="an image needs at least one band"):
        embedding.kernels(S1.bands, [])


def test_kernels_that_were_made_without_gradients_can_be_trained(embedding: BandEmbedding) -> None:
    sets = [S1.bands[:1], S2.bands[:3], S1.bands]  # which no other test asks for
    with torch.inference_mode():
        embedding.kernels(*sets)
    fresh = BandEmbedding(code_width=64, patch_px=4, width=128)
    sum(kernels.sum() + bias.sum() for kernels, bias in fresh.kernels(*sets)).backward()
    assert all(p.grad is not None for p in fresh.kernels.parameters())


def test_predictions_follow_the_order_of_the_bands() -> None:
    torch.manual_seed(0)
    prediction = BandPrediction(64, 4, 64).eval()
    tokens = torch.randn(2, 5, 64)
    order = [3, 0, 6, 1, 2, 5, 4]
    direct = prediction(tokens, *prediction.kernels(MODIS.bands))
    assert direct.shape == (2, 5, 7, 16)
    shuffled = prediction(tokens, *prediction.kernels([MODIS.bands[i] for i in order]))
    torch.testing.assert_close(shuffled, direct[:, :, order], rtol=0, atol=ROUNDING)


def test_the_mean_over_bands_is_a_plain_loop(embedding: BandEmbedding) -> None:
    x = patches(2)
    ((kernels, context),) = embedding.kernels(S1.bands)
    want = embedding.bias(context) + sum(x[:, :, i] @ kernels[i] for i in range(2)) / 2
    torch.testing.assert_close(embedding(x, S1.bands), want, rtol=1e-5, atol=1e-5)
