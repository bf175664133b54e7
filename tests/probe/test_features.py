"""Features of an encoder: where tokens lie, which blocks they come from, how often they are computed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import generic_filter

from gfmsum.data.modules import Statistics
from gfmsum.probe.features import (
    BandMeans,
    BandStatistics,
    Cache,
    Encoded,
    trunk_of,
    whole_patches,
)
from tests.probe.planted import PatchMeans, encoder, samples

TRAIN = np.arange(6)


def images(n: int = 10, h: int = 8, w: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 3.0, size=(n, 2, h, w))


def test_tokens_lie_where_their_patches_are() -> None:
    shown = samples(images(h=8, w=12))
    grid = Encoded(PatchMeans(), batch=4).grid(shown, TRAIN)
    normal = Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels)
    assert grid.cells.shape == (10, 2, 3, 2)
    assert (grid.h_px, grid.w_px) == (8, 12)
    for row in range(2):
        for column in range(3):
            patch = normal[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_allclose(
                grid.cells[:, row, column], patch.mean(axis=(2, 3)), atol=1e-6
            )


@pytest.mark.parametrize("patch_px", [4, 8])
def test_images_that_patches_do_not_fit_are_continued_by_reflection(patch_px: int) -> None:
    shown = samples(images(h=30, w=29))
    grid = Encoded(PatchMeans(patch_px)).grid(shown, TRAIN)
    side = 32 // patch_px
    assert grid.cells.shape == (10, side, side, 2)
    assert (grid.h_px, grid.w_px) == (32, 32)
    normal = Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels)
    wide = np.pad(normal, ((0, 0), (0, 0), (0, 2), (0, 3)), mode="reflect")
    last = wide[:, :, -patch_px:, -patch_px:].mean(axis=(2, 3))
    np.testing.assert_allclose(grid.cells[:, -1, -1], last, atol=1e-6)


def test_an_image_too_small_to_be_continued_is_refused() -> None:
    with pytest.raises(ValueError, match="image is 8x4 px, too small for a patch of 8 px"):
        whole_patches(torch.zeros(1, 2, 8, 4), 8)


def test_statistics_of_bands_come_from_training_items_alone() -> None:
    pixels = images()
    far = pixels.copy()
    far[6:] += 1000.0
    near, moved = (Encoded(encoder()).pooled(samples(p), TRAIN) for p in (pixels, far))
    np.testing.assert_array_equal(near[TRAIN], moved[TRAIN])
    assert not np.allclose(near[6:], moved[6:])


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("h", [8, 10])
def test_a_vector_is_the_mean_of_the_tokens(blocks: int, h: int) -> None:
    shown = samples(images(h=h))
    tokens = Encoded(encoder(), blocks=blocks).grid(shown, TRAIN).cells
    pooled = Encoded(encoder(), blocks=blocks, batch=3).pooled(shown, TRAIN)
    assert pooled.shape == (10, 16 * blocks) and pooled.dtype == np.float64
    np.testing.assert_allclose(pooled, tokens.mean(axis=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(("blocks", "which"), [(2, (1, 3)), (3, (0, 2, 3)), (4, (0, 1, 2, 3))])
def test_evenly_spaced_blocks_are_seen(blocks: int, which: tuple[int, ...]) -> None:
    model, shown = encoder().eval(), samples(images())
    x = torch.from_numpy(Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels))
    found = Encoded(model, blocks=blocks).grid(shown, TRAIN).cells
    with torch.no_grad():  # the trunk by hand, block by block
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
        tokens = model.tokens(patches.reshape(10, 4, 2, 16), shown.bands, (2, 2), shown.gsd_m)
        given = []
        for block in model.blocks:
            tokens = block(tokens)
            given.append(F.layer_norm(tokens, (16,)))
    want = torch.cat([given[i] for i in which], dim=-1).reshape(10, 2, 2, -1)
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)
    # What was hung into the trunk to look is gone.
    assert not any(block._forward_hooks for block in model.blocks)


@pytest.mark.parametrize("blocks", [0, 5])
def test_more_blocks_than_there_are_is_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"blocks={blocks} must be 1 to 4"):
        Encoded(encoder(), blocks=blocks)


def test_an_encoder_without_blocks_is_refused_several() -> None:
    with pytest.raises(ValueError, match="PatchMeans has no transformer blocks; use blocks=1"):
        Encoded(PatchMeans(), blocks=2)


def test_blocks_are_found_within_wrappers() -> None:
    inner = encoder()
    wrapped = torch.nn.Sequential(torch.nn.Sequential(inner))
    assert trunk_of(wrapped) == list(inner.blocks)


def test_each_image_is_encoded_once() -> None:
    model = PatchMeans()
    features, shown = Encoded(model, batch=4), samples(images())
    for _ in range(2):
        features.pooled(shown, TRAIN)
        assert model.calls == 3  # batches of 4, 4 and 2
    for _ in range(2):
        features.grid(shown, TRAIN)
        assert model.calls == 6
    features.pooled(shown, np.arange(5))
    assert model.calls == 9
    features.pooled(samples(images(seed=1)), TRAIN)
    assert model.calls == 12


def test_vectors_come_from_tokens_that_are_there() -> None:
    model = PatchMeans()
    features, shown = Encoded(model), samples(images())
    grid = features.grid(shown, TRAIN)
    pooled = features.pooled(shown, TRAIN)
    assert model.calls == 1
    np.testing.assert_allclose(pooled, grid.cells.mean(axis=(1, 2)), atol=1e-6)


def calls(folder: Path, name: str, pixels: np.ndarray, train: np.ndarray = TRAIN) -> int:
    """How often a new encoder of that name is asked for vectors, with the folder of others."""
    model = PatchMeans()
    features = Encoded(model, cache=Cache(name, folder))
    shown = samples(pixels)
    want = Encoded(PatchMeans()).pooled(shown, train)
    np.testing.assert_array_equal(features.pooled(shown, train), want)
    return model.calls


def test_what_is_on_disk_is_loaded_and_nothing_else_taken_for_it(tmp_path: Path) -> None:
    pixels = images()
    assert calls(tmp_path, "a", pixels) == 1
    (first,) = tmp_path.iterdir()
    assert calls(tmp_path, "a", pixels) == 0
    other = pixels.copy()
    other[9, 1, 7, 7] += 1
    assert calls(tmp_path, "a", other) == 1
    assert calls(tmp_path, "a", pixels, np.arange(5)) == 1
    assert calls(tmp_path, "b", pixels) == 1
    # The same bytes as images of another shape.
    assert calls(tmp_path, "a", pixels.reshape(10, 2, 4, 16)) == 1
    assert len(list(tmp_path.iterdir())) == 5
    assert calls(tmp_path, "a", pixels) == 0
    kept = np.load(first)
    np.save(first, kept + 1)  # proof that the file is what is read
    changed = Encoded(PatchMeans(), cache=Cache("a", tmp_path)).pooled(samples(pixels), TRAIN)
    np.testing.assert_allclose(changed, kept + 1)


def test_another_gsd_or_other_blocks_are_other_features(tmp_path: Path) -> None:
    shown = samples(images())
    for what, blocks in ((shown, 1), (replace(shown, gsd_m=20.0), 1), (shown, 2)):
        want = Encoded(encoder(), blocks=blocks).pooled(what, TRAIN)
        found = Encoded(encoder(), blocks=blocks, cache=Cache("a", tmp_path)).pooled(what, TRAIN)
        np.testing.assert_array_equal(found, want)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("bytes_left", [0, 5, 40, -1])
def test_a_damaged_file_is_made_again(tmp_path: Path, bytes_left: int) -> None:
    pixels = images()
    calls(tmp_path, "a", pixels)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:bytes_left])
    assert calls(tmp_path, "a", pixels) == 1
    assert path.read_bytes() == whole
    assert calls(tmp_path, "a", pixels) == 0


def test_tokens_of_patches_and_nameless_encoders_stay_in_memory(tmp_path: Path) -> None:
    shown = samples(images())
    Encoded(PatchMeans(), cache=Cache("a", tmp_path)).grid(shown, TRAIN)
    Encoded(encoder(), blocks=2, cache=Cache("a", tmp_path)).grid(shown, TRAIN)
    Encoded(PatchMeans(), cache=Cache("", tmp_path)).pooled(shown, TRAIN)
    assert not list(tmp_path.iterdir())


def test_baselines_on_a_grid_are_pixels_and_their_neighbours() -> None:
    shown = samples(images(n=2, h=7, w=9))
    means, statistics = BandMeans().grid(shown, TRAIN), BandStatistics().grid(shown, TRAIN)
    assert (means.h_px, means.w_px) == (statistics.h_px, statistics.w_px) == (7, 9)
    np.testing.assert_array_equal(means.cells[..., 1], shown.pixels[:, 1])
    assert statistics.cells.shape == (2, 7, 9, 6)
    for image in range(2):
        for band in range(2):
            pixels = shown.pixels[image, band].astype(np.float64)
            for place, measure in ((2 + band, np.mean), (4 + band, np.std)):
                want = generic_filter(pixels, measure, size=5, mode="reflect")
                found = statistics.cells[image, ..., place]
                shift = shown.pixels[:, band].mean() if measure is np.mean else 0
                np.testing.assert_allclose(found + shift, want, atol=1e-4)
