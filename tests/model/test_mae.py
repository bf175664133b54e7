"""The masked autoencoder: what is hidden stays hidden, and mixing sensors changes nothing."""

from dataclasses import replace

import pytest
import torch

from gfmsum.budget import TINY
from gfmsum.model.mae import MaskedAutoencoder, View, group_statistics
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, SENSORS


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(replace(TINY, predict_ratio=0.5)).eval()


def view(name: str, images: int = 3, seed: int = 0) -> View:
    sensor = SENSORS[name]
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, len(sensor.bands), 32, 32, generator=rng)
    return pixels, sensor.bands, sensor.gsd_m


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_visible_patches_are_distinct_and_as_many_as_the_ratio_says(
    mae: MaskedAutoencoder,
) -> None:
    visible, hidden = mae.choose(50, 64, rng())
    for seen, unseen in zip(visible.tolist(), hidden.tolist(), strict=True):
        assert sorted(seen + unseen) == list(range(64))
    assert visible.shape == (50, TINY.visible) == (50, 16)
    assert visible.min() >= 0 and visible.max() < 64
    assert len({frozenset(row.tolist()) for row in visible}) > 45
    # Those predicted are the first of the hidden: they must not be the same in every step.
    shown = torch.bincount(hidden[:, :24].flatten(), minlength=64)
    assert shown.min() > 0 and shown.max() < 50


def test_a_mixed_batch_equals_the_sensors_one_by_one(mae: MaskedAutoencoder) -> None:
    views = [view(name) for name in SENSORS]
    together = mae(views, rng(1))
    # The masks of a mixed step are drawn for all its images at once.
    masks = zip(*(part.split(3) for part in mae.choose(3 * len(views), 64, rng(1))), strict=True)
    for one, errors, chosen in zip(views, together, masks, strict=True):
        alone = MaskedAutoencoder.__new__(MaskedAutoencoder)
        alone.__dict__ = dict(mae.__dict__)
        object.__setattr__(alone, "choose", lambda *_, chosen=chosen: chosen)
        torch.testing.assert_close(alone([one], rng())[0], errors, rtol=0, atol=1e-5)


def test_hidden_pixels_do_not_leak_into_the_prediction(mae: MaskedAutoencoder) -> None:
    pixels, bands, gsd = view("s2")
    filled, hidden = mae.reconstruct((pixels, bands, gsd), rng())
    turned = torch.where(hidden, pixels.flip(0), pixels)
    ((guess_a, *_),), ((guess_b, *_),) = (
        mae._predict([(images, bands, gsd)], rng(), 1.0) for images in (pixels, turned)
    )
    torch.testing.assert_close(guess_a, guess_b, rtol=0, atol=1e-5)
    assert hidden.float().mean() == pytest.approx(0.75)
    torch.testing.assert_close(
        torch.where(hidden, 0.0, filled), torch.where(hidden, 0.0, pixels), rtol=0, atol=0
    )


def test_a_prediction_does_not_depend_on_which_other_patches_are_predicted(
    mae: MaskedAutoencoder,
) -> None:
    """Hidden tokens attend to visible ones only, so a share of them is predicted as all of them are."""
    one = view("s1")
    ((some, chosen, _),), ((every, hidden, _),) = (
        mae._predict([one], rng(3), share) for share in (0.25, 1.0)
    )
    assert torch.equal(chosen, hidden[:, :12])
    torch.testing.assert_close(some, every[:, :12], rtol=0, atol=1e-5)


def test_the_error_is_the_mean_square_over_hidden_patches_in_group_units(
    mae: MaskedAutoencoder,
) -> None:
    one = view("naip")
    (error,) = mae([one], rng(2))
    ((guess, hidden, patches),) = mae._predict([one], rng(2), 0.5)
    assert guess.shape == (3, 24, 4, 16)  # half of 48 hidden patches
    for image in range(3):
        total = 0.0
        for group in ([0, 1, 2], [3]):
            values = patches[image][:, group]
            wanted = (values - values.mean()) / values.std(correction=0)
            squares = (guess[image][:, group] - wanted[hidden[image]]) ** 2
            total += squares.sum().item()
        assert error[image].item() == pytest.approx(total / (24 * 4 * 16), rel=1e-4)


def test_a_prediction_needs_what_it_is_decoded_beside_only_through_attention(
    mae: MaskedAutoencoder,
) -> None:
    """Alone or with all others, a hidden patch is asked for at its own place and compared with itself."""
    one = view("s1")
    ((few, which, patches),) = mae._predict([one], rng(3), 0.5)
    ((every, hidden, same),) = mae._predict([one], rng(3), 1.0)
    assert torch.equal(which, hidden[:, :24]) and torch.equal(patches, same)
    # One decoder block, whose tokens see 40 others instead of 64: near, and not in another order.
    distance = torch.cdist(few.flatten(2), every.flatten(2))
    assert (distance.argmin(dim=2) == torch.arange(24)).all()


def test_group_statistics_by_hand() -> None:
    pixels = torch.zeros(1, 4, 1, 2)  # NAIP: red, green, blue are one group, NIR another
    pixels[0, :, 0] = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 6.0], [10.0, 14.0]])
    mean, deviation = group_statistics(pixels, NAIP.bands)
    assert mean.flatten().tolist() == [2.5, 2.5, 2.5, 12]
    # Squares of (1, 3, 1, 3, 1, 6) about 2.5 add up to 19.5, of (10, 14) about 12 to 8.
    want = torch.tensor([19.5 / 6] * 3 + [4.0]).sqrt()
    torch.testing.assert_close(deviation.flatten(), want, rtol=1e-5, atol=0)


def test_a_targets_scale_does_not_change_its_weight(mae: MaskedAutoencoder) -> None:
    """Only the target is scaled: the loss of a guess of zero is the same for both."""
    for sensor in (S1, S2, LANDSAT, MODIS):
        pixels = torch.randn(2, len(sensor.bands), 32, 32)
        for factor in (1e-2, 1e2):
            mean, deviation = group_statistics(pixels * factor, sensor.bands)
            normed = (pixels.flatten(2)[:, None] * factor - mean) / deviation
            assert float((normed**2).mean()) == pytest.approx(1, abs=0.02)


def test_views_of_two_sizes_are_refused(mae: MaskedAutoencoder) -> None:
    pixels, bands, gsd = view("s1")
    with pytest.raises(ValueError, match="crop them to one size"):
        mae([(pixels, bands, gsd), (pixels[..., :16, :16], bands, gsd)], rng())


def test_every_parameter_learns(mae: MaskedAutoencoder) -> None:
    errors = mae([view("s1"), view("s2")], rng())
    torch.cat(errors).mean().backward()
    silent = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()]
    mae.zero_grad()
    # The prediction has no use for what its bias token became; the embedding has.
    assert not silent, silent
