"""Answers for every pixel: where they lie, what they score, and who may see the test items."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, jaccard_score

from gfmsum.data.sample import UNLABELLED, Labelled, Samples
from gfmsum.model.encoder import Encoder
from gfmsum.probe import dense
from gfmsum.probe.dense import (
    PIXELS_PER_IMAGE,
    TRAIN_PIXELS,
    VAL_PIXELS,
    answered,
    cells_of,
    dense_linear,
    draw,
    groups_of,
    interpolated,
)
from gfmsum.probe.features import (
    BandMeans,
    BandStatistics,
    Encoded,
    Features,
    Grid,
    OneGroup,
)
from gfmsum.probe.fit import Probed, fit_line, probe
from gfmsum.probe.tasks import confusion, measure_dense
from tests.probe.planted import CHANGES, SEGMENTS, PatchMeans, encoder, samples, split, task

FRAMES = [(4, 4, 16, 16), (4, 4, 30, 30), (3, 2, 7, 5), (1, 3, 6, 9), (8, 8, 8, 8), (9, 5, 7, 4)]


@pytest.mark.parametrize(("rows", "columns", "h", "w"), FRAMES)
def test_interpolation_is_that_of_torch_at_every_pixel(
    rows: int, columns: int, h: int, w: int
) -> None:
    cells = np.random.default_rng(0).normal(size=(2, rows, columns, 3)).astype(np.float32)
    image, y, x = (i.ravel() for i in np.indices((2, h, w)))
    found = interpolated(Grid(cells, h, w), image, y, x).reshape(2, h, w, 3)
    planes = torch.from_numpy(cells).double().permute(0, 3, 1, 2)
    want = F.interpolate(planes, (h, w), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, want.permute(0, 2, 3, 1).numpy(), atol=1e-6)


@pytest.mark.parametrize(("rows", "columns", "h", "w"), FRAMES)
def test_a_linear_map_may_come_before_or_after_interpolation(
    rows: int, columns: int, h: int, w: int
) -> None:
    """Answers made from logits of cells are those of logits of interpolated features."""
    rng = np.random.default_rng(1)
    cells = rng.normal(size=(3, rows, columns, 4)).astype(np.float32)
    weight, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    grid = Grid(cells, h, w)
    image, y, x = (i.ravel() for i in np.indices((3, h - 1, w - 1)))  # cells may cover more
    after = (interpolated(grid, image, y, x) @ weight + bias).reshape(3, h - 1, w - 1, 3)
    guess = after.argmax(axis=-1).astype(np.uint8)
    items = Labelled(
        SEGMENTS, samples(np.zeros((3, 2, h - 1, w - 1))), guess, np.array(["a", "b", "c"]), ()
    )
    found = answered(cells @ weight + bias, grid, items, np.arange(3), 1.0, False)
    want = np.stack([np.diag(np.bincount(g.ravel(), minlength=3)) for g in guess])
    assert found.confusions is not None
    np.testing.assert_array_equal(found.confusions, want)  # every pixel, each as it should be


def maps(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets, with pixels that nobody knows, and answers that are right two times in three."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([1.0, 1.0, 1.0], size=n)
    target = np.stack([rng.choice(3, size=(6, 7), p=p) for p in shares])
    guess = np.where(rng.random(target.shape) < 0.67, target, rng.integers(3, size=target.shape))
    target[rng.random(target.shape) < 0.2] = UNLABELLED
    target[3] = UNLABELLED
    return target.astype(np.uint8), guess.astype(np.uint8)


def test_confusions_are_those_of_scikit_learn_without_what_is_not_labelled() -> None:
    target, guess = maps()
    found = confusion(target, guess, 3)
    for one, true, answer in zip(found, target, guess, strict=True):
        known = true != UNLABELLED
        if known.any():
            want = confusion_matrix(true[known], answer[known], labels=[0, 1, 2])
            np.testing.assert_array_equal(one, want)
        else:
            assert not one.any()


def iou(
    metric: str, target: np.ndarray, guess: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The metric by scikit-learn, with a weight for each image."""
    known = target != UNLABELLED
    weight = np.ones(len(target)) if weights is None else weights
    each = np.broadcast_to(weight[:, None, None], target.shape)[known]
    labels = [1] if metric == "iou_positive" else np.unique(target[known])
    return float(
        jaccard_score(
            target[known], guess[known], labels=labels, average="macro", sample_weight=each
        )
    )


@pytest.mark.parametrize("metric", ["mean_iou", "iou_positive"])
def test_a_dense_metric_is_that_of_scikit_learn_and_a_mean_of_images(metric: str) -> None:
    target, guess = maps()
    value, items = measure_dense(replace(SEGMENTS, metric=metric), confusion(target, guess, 3))
    assert value == pytest.approx(iou(metric, target, guess))
    assert items.mean() == pytest.approx(value)
    assert items[3] == pytest.approx(value)  # an image without labels moves nothing


def test_classes_that_the_targets_do_not_hold_do_not_count() -> None:
    target, guess = maps()
    target[target == 2] = 0
    value, _ = measure_dense(SEGMENTS, confusion(target, guess, 3))
    assert (guess == 2).any() and value == pytest.approx(iou("mean_iou", target, guess))


@pytest.mark.parametrize("metric", ["mean_iou", "iou_positive"])
def test_an_image_adds_what_the_metric_moves_by_when_it_counts_more(metric: str) -> None:
    target, guess = maps()
    n, step = len(target), 1e-5
    value, items = measure_dense(replace(SEGMENTS, metric=metric), confusion(target, guess, 3))
    for i in range(n):
        weights = np.ones(n)
        weights[i] += step
        moved = (iou(metric, target, guess, weights) - iou(metric, target, guess)) / step
        assert moved == pytest.approx((items[i] - value) / n, abs=1e-6)


@pytest.mark.parametrize("metric", ["mean_iou", "iou_positive"])
def test_the_spread_of_what_images_add_is_that_of_the_jackknife(metric: str) -> None:
    target, guess = maps(n=200)
    measured = replace(SEGMENTS, metric=metric)
    _, items = measure_dense(measured, confusion(target, guess, 3))
    without = [
        measure_dense(measured, np.delete(confusion(target, guess, 3), i, axis=0))[0]
        for i in range(200)
    ]
    jackknife = (199 / 200 * ((without - np.mean(without)) ** 2).sum()) ** 0.5
    assert items.std(ddof=1) / 200**0.5 == pytest.approx(jackknife, rel=0.02)


def test_a_dense_metric_by_hand_and_what_has_none() -> None:
    # Class 0: 3 right of 3 + 1 + 2; class 1: 4 right of 4 + 2 + 1.
    matrix = np.array([[[2, 1], [1, 2]], [[1, 0], [1, 2]]])
    assert measure_dense(CHANGES, matrix)[0] == pytest.approx(4 / 7)
    both = replace(CHANGES, metric="mean_iou")
    assert measure_dense(both, matrix)[0] == pytest.approx((3 / 6 + 4 / 7) / 2)
    with pytest.raises(ValueError, match="unknown metric 'f1'; use mean_iou or iou_positive"):
        measure_dense(replace(CHANGES, metric="f1"), matrix)
    for metric, nothing in (("mean_iou", matrix * 0), ("iou_positive", matrix * [[1], [0]])):
        with pytest.raises(ValueError, match=f"no labelled pixel that {metric} counts"):
            measure_dense(replace(CHANGES, metric=metric), nothing)


def test_pixels_are_drawn_from_labelled_ones_alone_and_evenly() -> None:
    target, _ = maps()
    rows = np.array([7, 3, 9])
    image, _, _ = draw(target, rows, 10_000, 0)
    assert len(image) == (target[rows] != UNLABELLED).sum()
    assert set(image) == {7, 9}
    some = draw(target, rows, 20, 0)
    assert len(some[0]) == 20 and (target[some] != UNLABELLED).all()
    assert len(set(zip(*some, strict=True))) == 20
    np.testing.assert_array_equal(some, draw(target, rows, 20, 0))
    assert not np.array_equal(some, draw(target, rows, 20, 1))
    most = np.bincount(np.concatenate([draw(target, rows, 20, s)[0] for s in range(200)]))
    held = (target[[7, 9]] != UNLABELLED).sum(axis=(1, 2))
    np.testing.assert_allclose(most[[7, 9]] / most.sum(), held / held.sum(), atol=0.03)


def test_pixels_that_hold_the_label_are_answered_at_the_ceiling() -> None:
    items = task("segmentation")
    pixels = np.stack([items.target == 1, items.target == 2], axis=1)
    items = replace(items, samples=samples(pixels))
    score, frame = probe(BandMeans(), items)
    assert score.value == 1.0
    assert frame["contribution"].mean() == pytest.approx(score.utility) == 1.0
    score, _ = probe(BandStatistics(), items)
    assert score.value == 1.0


@pytest.mark.parametrize("kind", ["segmentation", "change_segmentation"])
def test_tokens_that_hold_the_label_come_near_it_and_shuffled_labels_to_chance(kind: str) -> None:
    items = task(kind, n=160)
    features = Encoded(PatchMeans())
    score, frame = probe(features, items)
    assert score.value > 0.85
    assert frame["contribution"].mean() == pytest.approx(score.utility)
    assert np.array(frame["confusion"].tolist()).sum() == 40 * 64
    shuffled = np.random.default_rng(0).permutation(items.target)
    lost, _ = probe(features, replace(items, target=shuffled))
    # Three classes guessed without looking: 1/5 each; of two classes 0.4 changed: at most 0.4.
    assert lost.value < (0.27 if kind == "segmentation" else 0.42)


def test_change_needs_both_dates() -> None:
    items = task("change_segmentation", n=160)
    alone = Labelled(
        replace(CHANGES, kind="segmentation"),
        items.samples, items.target, items.cluster, items.folds,
    )  # fmt: skip
    features = Encoded(PatchMeans())
    assert probe(features, items)[0].value > probe(features, alone)[0].value + 0.3


def test_change_is_seen_in_differences_and_in_both_dates() -> None:
    items = task("change_segmentation")
    assert items.before is not None
    train = items.folds[0][0]
    features = Encoded(PatchMeans())
    later, before = (features.grid(s, train).cells for s in (items.samples, items.before))
    found = cells_of(features, items, train)
    want = np.concatenate([np.abs(later - before), later, before], axis=-1)
    np.testing.assert_array_equal(found.cells, want)


def tokens_alone(model: Encoder, items: Labelled) -> Probed:
    """The linear probe on an encoder's tokens without the statistics of pixels."""
    train = items.folds[0][0]
    return dense_linear((cells_of(Encoded(model), items, train),), items, items.folds[0], 0)


def test_groups_on_grids_of_their_own_add_up_as_in_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(4)
    coarse = rng.normal(size=(60, 4, 3, 5)).astype(np.float32)  # the images, and 2 px beyond
    fine = rng.normal(size=(60, 14, 10, 2)).astype(np.float32)
    grids = (Grid(coarse, 16, 12), Grid(fine, 14, 10))
    image, y, x = (i.ravel() for i in np.indices((60, 14, 10)))
    rows = np.zeros((len(image), 7))
    for place, (i, row, column) in enumerate(zip(image, y, x, strict=True)):
        down, along = (row + 0.5) / 4 - 0.5, (column + 0.5) / 4 - 0.5
        for a in range(4):
            for b in range(3):  # the tent of each cell, flat beyond the outermost
                near = max(0.0, 1 - abs(np.clip(down, 0, 3) - a))
                near *= max(0.0, 1 - abs(np.clip(along, 0, 2) - b))
                rows[place, :5] += near * coarse[i, a, b]
        rows[place, 5:] = fine[i, row, column]
    truth = rows @ np.random.default_rng(5).normal(size=(7, 3)) + 0.3 * rng.gumbel(size=(8400, 3))
    target = truth.argmax(axis=1).reshape(60, 14, 10).astype(np.uint8)
    shown = samples(np.zeros((60, 2, 14, 10)))
    items = Labelled(SEGMENTS, shown, target, shown.ids, split(60))
    fold = items.folds[0]
    found = dense_linear(grids, items, fold, 0)
    assert 30 * PIXELS_PER_IMAGE < TRAIN_PIXELS and 15 * PIXELS_PER_IMAGE < VAL_PIXELS
    drawn = [draw(target, rows, len(rows) * PIXELS_PER_IMAGE, 0) for rows in fold[:2]]
    at = [np.ravel_multi_index(pixels, target.shape) for pixels in drawn]
    line = fit_line(
        tuple((rows[some][:, :5], rows[some][:, 5:]) for some in at),
        tuple(target[pixels] for pixels in drawn),
        SEGMENTS,
    )
    assert (found.strength, found.emphasis) == (line.strength, line.emphasis)
    guess = line((rows[:, :5], rows[:, 5:])).argmax(axis=1).reshape(target.shape)
    want = confusion(target[fold[2]], guess[fold[2]].astype(np.uint8), 3)
    assert found.confusions is not None
    # Interpolated in single precision: a tie or two may fall the other way.
    assert np.abs(found.confusions - want).sum() <= 4
    assert np.trace(want.sum(axis=0)) > 0.8 * 15 * 140


def test_tokens_stand_beside_the_statistics_of_pixels_at_both_dates() -> None:
    items = task("change_segmentation")
    assert items.before is not None
    train, features = items.folds[0][0], Encoded(PatchMeans())
    tokens, pixels = groups_of(features, items, train)
    np.testing.assert_array_equal(tokens.cells, cells_of(features, items, train).cells)
    later, before = (BandStatistics().grid(s, train).cells for s in (items.samples, items.before))
    want = np.concatenate([np.abs(later - before), later, before], axis=-1)
    np.testing.assert_array_equal(pixels.cells, want)


def test_pixels_finer_than_tokens_are_told_apart_by_their_statistics() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(2, size=(80, 8, 8)).astype(np.uint8)
    shown = samples(np.stack([target, 1 - target], axis=1) + 0.1 * rng.normal(size=(80, 2, 8, 8)))
    two = replace(SEGMENTS, classes=("a", "b"))
    items = Labelled(two, shown, target, shown.ids, split(80))
    features = Encoded(PatchMeans())
    assert probe(features, items)[0].value > 0.95
    assert probe(features, items, "mean")[0].value < 0.6


@pytest.mark.parametrize("patch_px", [4, 8])
def test_every_pixel_is_answered_where_patches_do_not_fit(patch_px: int) -> None:
    """30 px: the last row of patches reaches 2 px beyond the image."""
    rng = np.random.default_rng(0)
    side = 32 // patch_px
    cells = rng.integers(2, size=(60, side, side))
    wide = cells.repeat(patch_px, axis=1).repeat(patch_px, axis=2)
    target = wide[:, :30, :30].astype(np.uint8)
    shown = samples(
        np.stack([target, 1 - target], axis=1) + 0.01 * rng.normal(size=(60, 2, 30, 30))
    )
    two = replace(SEGMENTS, classes=("a", "b"))
    items = Labelled(two, shown, target, shown.ids, split(60))
    found = tokens_alone(PatchMeans(patch_px), items)
    assert found.confusions is not None and found.confusions.sum() == 15 * 900
    # Midway between cells bilinear logits meet at a corner; a shift by a pixel would cost more.
    assert measure_dense(two, found.confusions)[0] > 0.8
    corner, test = replace(items, target=target.copy()), items.folds[0][2]
    corner.target[test] = UNLABELLED
    corner.target[test, 29, 29] = target[test, 29, 29]
    held = tokens_alone(PatchMeans(patch_px), corner)
    assert held.confusions is not None and held.confusions.sum() == 15
    # The draw of pixels the line is fitted on may cost one of them.
    assert np.trace(held.confusions.sum(axis=0)) >= 14


def test_ours_on_images_that_patches_do_not_fit() -> None:
    items = task("segmentation", n=40, px=10)
    score, frame = probe(Encoded(encoder()), items)
    assert np.isfinite(score.value)
    assert np.array(frame["confusion"].tolist()).sum() == 10 * 100


def test_a_class_absent_from_training_is_never_answered_and_stays_finite() -> None:
    items = task("segmentation")
    train = items.folds[0][0]
    items.target[train] %= 2
    score, frame = probe(BandMeans(), items)
    answers = np.array(frame["confusion"].tolist()).reshape(-1, 3, 3).sum(axis=(0, 1))
    assert answers[2] == 0 and answers[:2].all()
    assert np.isfinite(score.value) and np.isfinite(score.strength)


def test_labels_of_single_pixels_are_enough() -> None:
    items = task("segmentation")
    sparse = np.full_like(items.target, UNLABELLED)
    sparse[:, ::3, ::3] = items.target[:, ::3, ::3]
    tested = items.folds[0][2]
    sparse[tested] = items.target[tested]
    assert probe(BandStatistics(), replace(items, target=sparse))[0].value > 0.75


@pytest.mark.parametrize("how", ["linear", "layers"])
def test_what_a_dense_task_cannot_be_fitted_on_is_refused(how: str) -> None:
    items, nothing = task("segmentation"), task("segmentation")
    train, val, _ = items.folds[0]
    nothing.target[val] = UNLABELLED
    with pytest.raises(ValueError, match="validation items hold no label"):
        probe(BandMeans(), nothing, how)
    one = items.target.copy()
    one[train] = np.where(np.arange(8) < 4, 1, UNLABELLED)
    with pytest.raises(ValueError, match="training items hold one class"):
        probe(BandMeans(), replace(items, target=one), how)
    with pytest.raises(ValueError, match="labels go from 0 to 3, and there are 3 classes"):
        probe(BandMeans(), replace(items, target=items.target + (items.target == 2)), how)
    broken = samples(np.where(items.target[:, None] == 2, np.nan, items.samples.pixels))
    lost = int((items.target == 2).any(axis=(1, 2)).sum())
    with pytest.raises(ValueError, match=f"{lost} of 120 items have features that are not finite"):
        probe(BandMeans(), replace(items, samples=broken), how)


class Counted(OneGroup):
    """Features that are asked for and kept."""

    def __init__(self, inner: Features) -> None:
        self.inner, self.trains = inner, []

    def pooled(self, shown: Samples, train: np.ndarray) -> np.ndarray:
        raise AssertionError("a dense task has no use for whole images")

    def grid(self, shown: Samples, train: np.ndarray) -> Grid:
        self.trains.append(train)
        return self.inner.grid(shown, train)


def test_both_dates_are_normalised_by_training_items() -> None:
    items = task("change_segmentation", n=40)
    seen = Counted(BandMeans())
    probe(seen, items)
    assert len(seen.trains) == 2
    for train in seen.trains:
        np.testing.assert_array_equal(train, items.folds[0][0])


def test_pixels_are_drawn_by_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense, "TRAIN_PIXELS", 60)
    items = task("segmentation", n=40)
    items = replace(items, target=np.random.default_rng(0).permutation(items.target))
    a, b, other = (probe(BandStatistics(), items, seed=s)[1] for s in (0, 0, 1))
    assert a["confusion"].tolist() == b["confusion"].tolist()
    assert a["confusion"].tolist() != other["confusion"].tolist()
