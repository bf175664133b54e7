"""Features of an encoder: where tokens lie, which blocks they come from, how often they are computed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import generic_filter

from gfmsum.data.modules import Statistics
from gfmsum.data.sample import Samples
from gfmsum.model.blocks import nearness, slopes
from gfmsum.model.encoder import STEEPEST, grid_places
from gfmsum.probe.features import (
    BandMeans,
    BandStatistics,
    Cache,
    Encoded,
    Grid,
    Kept,
    OneGroup,
    trunk_of,
    whole_patches,
)
from gfmsum.probe.fit import probe
from gfmsum.probe.views import Across, SideBySide, Together
from gfmsum.zoo.floors import CELL_PX, FILTERS, RandomConvolutions, Texture, baselines
from tests.probe.planted import PatchMeans, arranged, encoder, samples, task

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
        bias = nearness(grid_places(2, 2)[None], slopes(model.heads, STEEPEST))
        given = []
        for block in model.blocks:
            tokens = block(tokens, bias)
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
    np.testing.assert_allclose(changed, kept[:, :2] + 1)  # the mean comes first


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
    shown, train = samples(images(n=2, h=7, w=9)), np.arange(2)
    means, statistics = BandMeans().grid(shown, train), BandStatistics().grid(shown, train)
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


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_groups_are_moments_of_tokens_and_statistics_of_bands(blocks: int) -> None:
    shown = samples(images(h=10))
    features = Encoded(encoder(), blocks=blocks, batch=3)
    own, statistics = features.vectors(shown, TRAIN)
    tokens = Encoded(encoder(), blocks=blocks).grid(shown, TRAIN).cells
    want = np.hstack([tokens.mean(axis=(1, 2)), tokens.std(axis=(1, 2))])
    np.testing.assert_allclose(own, want, atol=1e-5)
    np.testing.assert_array_equal(statistics, BandStatistics().pooled(shown, TRAIN))
    np.testing.assert_array_equal(own[:, : 16 * blocks], features.pooled(shown, TRAIN))
    # The same where tokens are there already.
    features = Encoded(encoder(), blocks=blocks)
    tokens_, pixels = features.grids(shown, TRAIN)
    np.testing.assert_allclose(features.vectors(shown, TRAIN)[0], want, atol=1e-5)
    np.testing.assert_array_equal(tokens_.cells, tokens)
    np.testing.assert_array_equal(pixels.cells, BandStatistics().grid(shown, TRAIN).cells)


class Theirs(torch.nn.Module):
    """Somebody's encoder, whose vector is its tokens' mean times ``gain``."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward_features(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return x.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-1, -2)).flatten(2).mT

    def embed(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return self.gain * self.forward_features(x).mean(dim=1)


class Mute(torch.nn.Module):
    """An encoder that gives no tokens."""

    def embed(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return x.amax(dim=(2, 3))


def test_of_others_the_vector_counts_too_unless_it_is_the_mean() -> None:
    shown = samples(images())
    tokens = Encoded(PatchMeans()).grid(shown, TRAIN).cells
    moments = np.hstack([tokens.mean(axis=(1, 2)), tokens.std(axis=(1, 2))])
    for gain, want in ((1.0, moments), (3.0, np.hstack([3 * moments[:, :2], moments]))):
        own, statistics = Encoded(Theirs(gain)).vectors(shown, TRAIN)
        np.testing.assert_allclose(own, want, atol=1e-5)
        assert statistics.shape == (10, 8)
    normal = Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels)
    np.testing.assert_allclose(
        Encoded(Mute()).vectors(shown, TRAIN)[0], normal.max(axis=(2, 3)), atol=1e-6
    )


class Asked(OneGroup):
    """Counts how often it is asked."""

    calls = 0

    def pooled(self, shown: Samples, train: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full((len(shown), 1), float(len(train)))

    def grid(self, shown: Samples, train: np.ndarray) -> Grid:
        self.calls += 1
        return Grid(np.zeros((len(shown), 1, 1, 1), np.float32), 8, 8)


def test_what_is_kept_is_asked_for_once() -> None:
    inner = Asked()
    kept, shown = Kept(inner), samples(images())
    for _ in range(2):
        assert kept.vectors(shown, TRAIN)[0][0] == 6
        kept.grids(shown, TRAIN)
    assert inner.calls == 2
    assert kept.vectors(shown, TRAIN[:4])[0][0] == 4
    assert len(kept.pooled(samples(images(n=3)), TRAIN)) == 3
    assert inner.calls == 4


def test_views_give_the_groups_of_their_parts() -> None:
    items = task("classification", n=40)
    others = samples(items.samples.pixels[:, ::-1] + 1)
    train, _, test = items.folds[0]
    features = Encoded(encoder())
    own, foreign = features.vectors(items.samples, train), features.vectors(others, train)
    (crossed,) = Across(features, items, others).vectors(items.samples, train)
    np.testing.assert_array_equal(crossed[test], foreign[0][test])
    np.testing.assert_array_equal(np.delete(crossed, test, axis=0), np.delete(own[0], test, axis=0))
    beside = SideBySide(((features, None), (features, others))).vectors(items.samples, train)
    for found, a, b in zip(beside, own, foreign, strict=True):
        np.testing.assert_array_equal(found, np.hstack([a, b]))
    mean, statistics = Together(features, (others,)).vectors(items.samples, train)
    assert mean.shape == (40, 16)
    np.testing.assert_array_equal(statistics, np.hstack([own[1], foreign[1]]))


def test_views_cross_where_few_images_are_labelled() -> None:
    items = task("classification", n=40)
    train, val, test = items.folds[0]
    less = replace(items, folds=((train[:6], val, test),), images=(train,))
    others = samples(items.samples.pixels + 1)
    score, _ = probe(Across(Encoded(encoder()), less, others), less)
    assert np.isfinite(score.value)


# Floors that are not ours to learn.


def test_texture_is_what_a_loop_over_pixels_measures() -> None:
    shown = samples(images(n=8, h=9, w=10))
    found, statistics = Texture().vectors(shown, TRAIN)
    assert found.shape == (8, 15 * 2)
    np.testing.assert_array_equal(statistics, BandStatistics().pooled(shown, TRAIN))
    normal = Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels).astype(float)
    for image, band in ((0, 0), (7, 1)):
        plane, want = normal[image, band], []
        for lag in (1, 2, 4):
            for dy, dx in ((0, lag), (lag, 0), (lag, lag), (lag, -lag)):
                pairs = [
                    abs(plane[y + dy, x + dx] - plane[y, x])
                    for y in range(9)
                    for x in range(10)
                    if 0 <= y + dy < 9 and 0 <= x + dx < 10
                ]
                want.append(np.mean(pairs))
        for side in (2, 4, 8):
            means = [
                plane[y : y + side, x : x + side].mean()
                for y in range(10 - side)
                for x in range(11 - side)
            ]
            want.append(np.std(means))
        np.testing.assert_allclose(found[image, band::2], want, atol=1e-5)


def test_texture_around_a_cell_is_that_of_its_neighbourhood() -> None:
    """Away from borders, cells see squares of 8 px around them, and nothing else."""
    pixels = images(n=8, h=24, w=24)
    shown = samples(pixels)
    grid = Texture().grid(shown, TRAIN)
    assert grid.cells.shape == (8, 6, 6, 30) and (grid.h_px, grid.w_px) == (24, 24)
    normal = Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels)
    # A pair along rows lies left of its middle: columns 6 to 13 of a map of 23.
    steps = np.abs(np.diff(normal, axis=3))
    np.testing.assert_allclose(
        grid.cells[:, 2, 2, :2], steps[:, :, 6:14, 6:14].mean(axis=(2, 3)), atol=1e-5
    )
    far = pixels.copy()
    far[6, :, 16:] += 50  # not a training image, so the scale of bands stays
    moved = Texture().grid(samples(far), TRAIN).cells
    np.testing.assert_array_equal(moved[:6], grid.cells[:6])
    np.testing.assert_allclose(moved[6, :2], grid.cells[6, :2], atol=1e-5)
    assert not np.allclose(moved[6, 4], grid.cells[6, 4], atol=0.1)


def test_rough_and_smooth_images_of_one_histogram_are_told_apart_by_texture() -> None:
    some = arranged()
    assert probe(BandStatistics(), some)[0].value < 0.7
    assert probe(Texture(), some)[0].value > 0.95
    assert probe(RandomConvolutions(), some)[0].value > 0.9


def test_random_convolutions_are_those_of_torchgeo() -> None:
    from torchgeo.models import RCF

    shown = samples(images(n=70, h=9, w=12))  # more than a batch
    found, _ = RandomConvolutions().vectors(shown, TRAIN)
    assert found.shape == (70, FILTERS)
    normal = torch.from_numpy(Statistics.of(shown.pixels[TRAIN]).normalise(shown.pixels))
    np.testing.assert_allclose(found, RCF(2, FILTERS, 3, seed=1)(normal).numpy(), atol=1e-5)
    grid = RandomConvolutions().grid(shown, TRAIN)
    assert grid.cells.shape == (70, 3, 3, 128) and (grid.h_px, grid.w_px) == (12, 12)
    # A square whose map is whole: rows and columns 2 to 9 of the image, continued by reflection.
    wide = np.pad(normal.numpy(), ((0, 0), (0, 0), (0, 3), (0, 0)), mode="reflect")
    square = torch.from_numpy(wide[:, :, 1:11, 1:11])
    np.testing.assert_allclose(
        grid.cells[:, 1, 1], RCF(2, 128, 3, seed=1)(square).numpy(), atol=1e-5
    )


def test_floors_are_computed_once_and_alike() -> None:
    assert list(baselines()) == ["band means", "band statistics", "texture", "random convolutions"]
    shown = samples(images(n=8, h=CELL_PX, w=CELL_PX))  # the smallest that has a cell
    for floor, again in zip(baselines().values(), baselines().values(), strict=True):
        for a, b in zip(floor.vectors(shown, TRAIN), again.vectors(shown, TRAIN), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_array_equal(a, b)
        for grid in floor.grids(shown, TRAIN):
            assert np.isfinite(grid.cells).all()
    texture = baselines()["texture"]
    assert texture.vectors(shown, TRAIN)[0] is texture.vectors(shown, TRAIN)[0]
