"""Linear interpolation of hidden patches: closed forms, known worlds, and what must not change it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from gfmsum.data import interpolation
from gfmsum.data.interpolation import Covariance, interpolated, interpolation_loss, normalised
from gfmsum.data.plan import stream
from gfmsum.data.sample import Pool, Samples, Source
from gfmsum.model.mae import group_statistics
from gfmsum.sensors import SENSORS

type Images = NDArray[np.float32]


def exponential(side: int, length: float) -> NDArray[np.float64]:
    """Covariance of all pixels with all: exp(-distance / length)."""
    at = np.indices((side, side)).reshape(2, -1)
    apart = np.hypot(*(at[:, :, None] - at[:, None, :]))
    covariance: NDArray[np.float64] = np.exp(-apart / length)
    return covariance


def fields(covariance: NDArray[np.float64], n: int, bands: int = 1, seed: int = 0) -> Images:
    side = round(len(covariance) ** 0.5)
    noise = stream(seed, "fields").standard_normal((n * bands, len(covariance)))
    drawn = noise @ np.linalg.cholesky(covariance).T
    return drawn.reshape(n, bands, side, side).astype(np.float32)


def white(*shape: int, seed: int = 0) -> Images:
    return stream(seed, "white").standard_normal(shape).astype(np.float32)


def test_a_pixel_between_two_neighbours_has_the_weights_of_an_autoregression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interpolation, "NUGGET", 0.0)
    rho = 0.8
    at = rho ** np.add.outer(np.arange(5), np.arange(5))
    known = np.array([[0, 0, 0, 0], [0, 1, 3, 4]])
    weights = Covariance(np.eye(1), at[None]).weights(0, known, np.array([[0], [2]]))
    beside = rho / (1 + rho**2)  # and nothing beyond the neighbours
    assert weights[:, 0] == pytest.approx([0, beside, beside, 0], abs=1e-6)
    left = 1 - weights[:, 0] @ rho ** np.array([2, 1, 1, 2])
    assert left == pytest.approx((1 - rho**2) / (1 + rho**2), abs=1e-6)


def test_the_covariance_of_a_known_field_is_found() -> None:
    field = fields(exponential(16, 1.5), 1500)
    both = np.concatenate([field, 2 * fields(exponential(16, 1.5), 1500, seed=1)], axis=1)
    found = Covariance.of(both.astype(np.float64))
    assert np.abs(found.components) == pytest.approx(np.eye(2), abs=0.05)
    truth = np.exp(-np.hypot(*np.indices((6, 6))) / 1.5)
    assert found.at[0, :6, :6] == pytest.approx(truth, abs=0.03)
    assert found.at[1, :6, :6] == pytest.approx(4 * truth, abs=0.12)


def test_covariances_are_those_of_all_eight_poses() -> None:
    striped = gaussian_filter(white(32, 1, 16, 16), (0, 0, 0, 3)).astype(np.float64)
    found = Covariance.of(striped).at[0]
    for turned in (striped.swapaxes(2, 3), striped[..., ::-1], np.rot90(striped, axes=(2, 3))):
        assert Covariance.of(turned).at[0] == pytest.approx(found, abs=1e-9 * found[0, 0])
    lags = 8  # beyond them few pairs remain, and what no process can have is cut off
    straight = np.zeros((lags, lags))
    image = striped[:, 0]
    for y, x in np.ndindex(lags, lags):
        pairs = [
            (turned[:, : 16 - y, : 16 - x] * turned[:, y:, x:]).mean()
            for one in (image, image.swapaxes(1, 2))
            for turned in (one, one[:, ::-1])
        ]
        straight[y, x] = np.mean(pairs)
    assert found[:lags, :lags] == pytest.approx(straight, abs=0.1 * straight[0, 0])


def test_white_noise_cannot_be_interpolated() -> None:
    loss = interpolated(white(128, 3, 32, 32), ["a", "a", "b"], 4, 0.75)
    assert loss == pytest.approx(1.0, abs=0.01)


def best(covariance: NDArray[np.float64], masks: list[NDArray[np.bool_]]) -> float:
    """The least error of any linear prediction of hidden pixels from visible ones, by brute force.

    Pixels are those of images that are centred as a whole and measured in their expected variance, inputs
    are centred on what is visible.
    """
    n = len(covariance)
    centred = np.eye(n) - 1 / n
    target = centred @ covariance @ centred
    target *= n / np.trace(target)
    errors = []
    for hidden in masks:
        v = int((~hidden).sum())
        centre = np.eye(v) - 1 / v
        within = centre @ target[np.ix_(~hidden, ~hidden)] @ centre
        across = centre @ target[np.ix_(~hidden, hidden)]
        explained = np.einsum("vh,vh->", across, np.linalg.pinv(within, rcond=1e-8) @ across)
        errors.append((np.trace(target[np.ix_(hidden, hidden)]) - explained) / hidden.sum())
    return float(np.mean(errors))


@pytest.mark.parametrize("length", [1.5, 3.0])
def test_the_loss_of_a_known_field_is_that_of_the_best_linear_prediction(length: float) -> None:
    side, patch = 24, 2
    covariance = exponential(side, length)
    rng, masks = stream(0, "interpolation"), []
    for _ in range(interpolation.MASKS):  # the very masks that are drawn
        ((_, _, wanted),) = interpolation._views(side, side, patch, 0.75, rng)
        masks.append(np.zeros((side, side), bool))
        masks[-1][*wanted] = True
    assert {int(mask.sum()) for mask in masks} == {3 * side * side // 4}
    truth = best(covariance, [mask.ravel() for mask in masks])
    assert 0.5 < truth < 0.9
    found = interpolated(fields(covariance, 512), ["a"], patch, 0.75)
    assert found == pytest.approx(truth, abs=0.03)


def test_the_smoother_the_lower() -> None:
    losses = [interpolated(fields(exponential(16, r), 128), ["a"], 2, 0.75) for r in (0.5, 2, 8)]
    assert losses[0] > losses[1] + 0.1 > losses[2] + 0.2


def test_smooth_images_whose_estimated_covariances_fit_no_process_do_no_harm() -> None:
    smooth = gaussian_filter(white(24, 1, 32, 32), (0, 0, 4, 4), mode="wrap")
    assert interpolated(smooth, ["a"], 4, 0.75) < 0.1


def test_a_band_that_sees_the_same_helps_against_noise() -> None:
    field = fields(exponential(16, 4), 256)
    noisy = field + white(256, 2, 16, 16)
    together = interpolated(noisy, ["a", "a"], 2, 0.75)
    alone = interpolated(noisy[:, :1], ["a"], 2, 0.75)
    assert together < alone - 0.005


def test_constant_images_cost_nothing() -> None:
    constant = np.ones((16, 2, 16, 16), np.float32) * np.arange(16)[:, None, None, None]
    assert interpolated(constant.astype(np.float32), ["a", "b"], 4, 0.75) == 0.0


def test_brightness_contrast_and_order_of_bands_do_not_matter() -> None:
    images = fields(exponential(16, 3), 64, bands=3)
    loss = interpolated(images, ["a", "b", "a"], 4, 0.75)
    rng = stream(0, "levels")
    gain, offset = rng.uniform(0.5, 2, (2, 64, 2, 1, 1)).astype(np.float32)
    other = images * gain[:, [0, 1, 0]] + offset[:, [0, 1, 0]]
    assert interpolated(other, ["a", "b", "a"], 4, 0.75) == pytest.approx(loss, rel=1e-4)
    turned = interpolated(images[:, [1, 2, 0]], ["b", "a", "a"], 4, 0.75)
    assert turned == pytest.approx(loss, rel=1e-6)


def test_the_same_key_gives_the_same_number() -> None:
    images = fields(exponential(16, 3), 32)
    first = interpolated(images, ["a"], 4, 0.75)
    assert interpolated(images, ["a"], 4, 0.75) == first
    assert interpolated(images, ["a"], 4, 0.75, (1,)) != first


def test_nearest_neighbours_do_for_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = fields(exponential(32, 4), 96)
    whole = interpolated(images, ["a"], 8, 0.75)
    monkeypatch.setattr(interpolation, "NEIGHBOURS", 96)  # of 256 that are visible
    monkeypatch.setattr(interpolation, "PATCHES", 12)
    assert interpolated(images, ["a"], 8, 0.75) == pytest.approx(whole, abs=0.06)


def test_neighbours_are_visible_near_and_never_what_is_predicted() -> None:
    views = list(interpolation._views(64, 64, 16, 0.75, stream(0, "views")))
    assert len(views) == interpolation.PATCHES
    for seen, known, wanted in views:
        assert seen.shape == (2, 4 * 16 * 16)
        visible = set(map(tuple, seen.T.tolist()))
        chosen, hidden = (set(map(tuple, places.T.tolist())) for places in (known, wanted))
        assert chosen <= visible
        assert not hidden & visible
        assert len(chosen) == interpolation.NEIGHBOURS
        assert len(hidden) == interpolation.PIXELS
        assert len({(y // 16, x // 16) for y, x in hidden}) == 1  # of one patch
        low = wanted.min(axis=1) // 16 * 16

        def far(place: tuple[int, int], low: NDArray[np.int64] = low) -> float:
            return float(np.hypot(*(np.array(place) - np.clip(place, low, low + 15))))

        assert max(map(far, chosen)) <= min(map(far, visible - chosen))


def test_targets_are_normalised_as_the_model_does() -> None:
    bands = SENSORS["s2"].bands
    pixels = white(3, len(bands), 8, 8) * 2 + 1
    mean, deviation = (
        values[:, 0, :, :, None].numpy()
        for values in group_statistics(torch.from_numpy(pixels), bands)
    )
    groups = [band.group for band in bands]
    ours = normalised(pixels.astype(np.float64), groups)
    assert ours == pytest.approx((pixels - mean) / deviation, abs=1e-5)
    assert np.mean(ours**2) == pytest.approx(1, abs=1e-5)  # so much predicting zero costs


def test_inputs_are_normalised_by_what_is_visible_alone() -> None:
    visible = np.array([[[1.0, 3.0]], [[0.0, 8.0]]])  # two images of one band: 2 ± 1 and 4 ± 4
    wanted = np.array([[[2.0, 4.0, 0.0]], [[4.0, 8.0, 12.0]]])
    found = normalised(wanted, ["a"], visible)
    assert found == pytest.approx(np.array([[[0, 2, -2]], [[0, 1, 2]]]), abs=1e-5)


@pytest.mark.parametrize(("shape", "patch"), [((1, 1, 16, 16), 4), ((4, 1, 16, 18), 4)])
def test_what_cannot_be_interpolated_is_refused(shape: tuple[int, ...], patch: int) -> None:
    with pytest.raises(ValueError, match="patch_px=4"):
        interpolated(white(*shape), ["a"], patch, 0.75)


def source(*pixels: Images) -> Source:
    bands = SENSORS["naip"].bands

    def block(images: Images) -> Samples:
        ids = np.array([str(number) for number in range(len(images))])
        return Samples("naip", bands[: images.shape[1]], 1.0, images, ids)

    pool = Pool(tuple(block(images) for images in pixels), "places")
    return cast(Source, SimpleNamespace(pretraining=lambda sensor, size_px: pool))


def test_kinds_of_images_count_by_how_many_there_are() -> None:
    noise, constant = white(96, 1, 16, 16), np.ones((32, 2, 16, 16), np.float32)
    few = np.zeros((3, 4, 16, 16), np.float32)
    loss = interpolation_loss(source(noise, constant, few), "naip", 16, 4, 0.75)
    assert loss == pytest.approx(0.75, abs=0.02)
    assert interpolation_loss(source(few), "naip", 16, 4, 0.75) is None


def test_units_do_not_matter_and_samples_are_read_from_all_of_the_pool() -> None:
    images = fields(exponential(16, 3), 40, bands=3)
    loss = interpolation_loss(source(images), "naip", 16, 4, 0.75)
    scaled = images * np.float32(1e-3) + np.float32([[[[0.2]], [[5.0]], [[-9.0]]]])
    other = interpolation_loss(source(scaled), "naip", 16, 4, 0.75)
    assert other == pytest.approx(cast(Any, loss), rel=1e-3)


def test_a_pool_without_end_is_read_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[NDArray[np.int64]] = []
    kept = source(white(64, 1, 16, 16)).pretraining("naip", 16).blocks[0]

    class Endless:
        kind, quick = kept.kind, True

        def __len__(self) -> int:
            return 2**62

        def read(self, rows: NDArray[np.int64]) -> Samples:
            asked.append(rows)
            return kept.read(rows % 64)

    monkeypatch.setattr(interpolation, "SAMPLES", 32)
    endless = SimpleNamespace(pretraining=lambda sensor, size_px: Pool((Endless(),), "places"))
    assert interpolation_loss(cast(Source, endless), "naip", 16, 4, 0.75) is not None
    assert (np.diff(asked[0]) == 2**62 // 32).all()
    assert asked[0][0] == 0
