"""Probes trained by gradient descent, and what holds for every probe: planted answers, seeds, test items."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gfmsum.data.sample import UNLABELLED, Labelled
from gfmsum.probe import heads, training
from gfmsum.probe.features import BandMeans, BandStatistics, Encoded, Features
from gfmsum.probe.fit import PROBES, Probed, probe
from gfmsum.probe.heads import Attention, Layers, Tuned
from gfmsum.probe.shots import few
from gfmsum.probe.training import Answers, Lesson, Training, Turn, fit_best
from tests.probe.planted import SEGMENTS, PatchMeans, encoder, labelled, samples, task

EVERY = [(how, kind) for how, each in PROBES.items() for kind in each.kinds]


TRAINED = [(how, kind) for how, kind in EVERY if how in ("attentive", "layers", "finetune")]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "EPOCHS", 8)
    monkeypatch.setattr(heads, "TUNE_EPOCHS", 4)
    monkeypatch.setattr(heads, "HIDDEN", 16)
    monkeypatch.setattr(training, "LEAST_STEPS", 12)
    monkeypatch.setattr(training, "BATCH", 8)
    monkeypatch.setattr(heads, "RATES", (-2.5, -2.0))
    monkeypatch.setattr(heads, "TUNE_RATES", (-2.5, -2.0))


def features(how: str) -> Features:
    """Of our encoder where something is learned of many channels, else such as answers are planted in."""
    return Encoded(encoder() if how in ("attentive", "finetune") else PatchMeans())


def fitted(how: str, items: Labelled, seed: int = 0) -> Probed:
    return PROBES[how].fit(features(how), items, items.folds[0], seed)


def same(a: Probed, b: Probed) -> bool:
    return (
        np.array_equal(a.prediction, b.prediction, equal_nan=True)
        and np.array_equal(a.logits, b.logits)
        and a.strength == b.strength
        and np.array_equal(a.confusions, b.confusions)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("how", "kind"), EVERY)
def test_planted_answers_are_found_and_shuffled_ones_are_not(how: str, kind: str) -> None:
    items = task(kind, n=160)
    # The 20 nearest of 80 values lie far apart, and few epochs do not tune to the end.
    least = {"knn regression": 0.4}.get(f"{how} {kind}", 0.5 if how == "finetune" else 0.7)
    score, frame = probe(features(how), items, how)
    assert score.value > least
    assert frame["contribution"].mean() == pytest.approx(score.utility)
    shuffled = np.random.default_rng(1).permutation(items.target)
    lost, _ = probe(features(how), replace(items, target=shuffled), how)
    chance = {"classification": 1 / 3, "regression": 0.0, "segmentation": 0.2}.get(kind, 0.4)
    # Of 40 test items, whole ones vary by 0.075 and 64 pixels of each by less.
    assert lost.value < chance + (0.15 if kind in ("classification", "regression") else 0.05)


@pytest.mark.parametrize(("how", "kind"), EVERY)
def test_test_items_have_no_say(how: str, kind: str) -> None:
    items = task(kind, n=40)
    test = items.folds[0][2]
    poisoned = items.target.copy()
    if items.task.dense:
        last = len(items.task.classes) - 1
        poisoned[test] = last - poisoned[test]
    else:
        poisoned[test] = 0
    a, b = fitted(how, items), fitted(how, replace(items, target=poisoned))
    if items.task.dense:  # pixels of each answer stay, and are now counted as another class
        assert a.confusions is not None and b.confusions is not None
        b = replace(b, confusions=b.confusions[:, ::-1])
    assert same(a, b)


@pytest.mark.parametrize(("how", "kind"), EVERY)
def test_test_items_do_not_see_each_other(how: str, kind: str) -> None:
    items = task(kind, n=40)
    test = items.folds[0][2]
    pixels = items.samples.pixels.copy()
    pixels[test[0]] = 1e4
    a, b = fitted(how, items), fitted(how, replace(items, samples=samples(pixels)))
    assert a.strength == b.strength
    if items.task.dense:
        assert a.confusions is not None and b.confusions is not None
        np.testing.assert_array_equal(a.confusions[1:], b.confusions[1:])
    else:
        np.testing.assert_array_equal(a.prediction[1:], b.prediction[1:])


@pytest.mark.parametrize(("how", "kind"), EVERY)
def test_an_answer_is_the_seed_s_and_leaves_other_generators_alone(how: str, kind: str) -> None:
    items = task(kind, n=40)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = fitted(how, items)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    torch.manual_seed(6)
    assert same(first, fitted(how, items))


# Not convolutions: all of them answer shuffled labels with the most frequent class.
@pytest.mark.parametrize(
    ("how", "kind"), [("attentive", "classification"), ("finetune", "classification")]
)
def test_another_seed_is_another_head(how: str, kind: str) -> None:
    items = task(kind, n=40)
    shuffled = replace(items, target=np.random.default_rng(1).permutation(items.target))
    assert not same(fitted(how, shuffled), fitted(how, shuffled, seed=1))


@pytest.mark.parametrize("kind", ["classification", "segmentation", "change_segmentation"])
def test_tuning_leaves_the_given_encoder_as_it_was(kind: str) -> None:
    model = encoder()
    before = copy.deepcopy(model.state_dict())
    given = Encoded(model)
    items = task(kind, n=40)
    tuned = PROBES["finetune"].fit(given, items, items.folds[0], 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    # And a second time from the same start.
    assert same(tuned, PROBES["finetune"].fit(given, items, items.folds[0], 0))


def lesson(items: Labelled, epochs: int = 2, augment: bool = False, seed: int = 0) -> Lesson:
    """On the pixels themselves."""
    fold = items.folds[0]
    pixels = torch.from_numpy(items.samples.pixels)
    answers = Answers.of(items, fold[0], (pixels.shape[-2], pixels.shape[-1]))
    return Lesson(
        lambda rows: pixels[torch.from_numpy(rows)],
        answers,
        fold,
        seed,
        "cpu",
        epochs,
        (-2.5, -2.0),
        augment,
    )


def test_tuning_moves_every_part_of_the_encoder() -> None:
    items = task("classification", n=40)
    model = Tuned(encoder(), nn.Linear(16, 3), items)
    before = copy.deepcopy(model.state_dict())
    Training(model, lesson(items, augment=True), heads._groups(model, 1e-2)).run()
    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"head.weight", "encoder.norm.weight", "encoder.blocks.0.attn.qkv.weight",
            "encoder.blocks.3.mlp.fc1.weight", "encoder.embedding.kernels.kernel.weight"} <= moved  # fmt: skip


@pytest.mark.parametrize(("how", "kind"), TRAINED)
def test_before_its_first_step_a_head_is_the_linear_probe_of_mean_tokens(
    how: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "steps", lambda items, epochs: 0)
    items = task(kind, n=80)
    # Some labels are wrong: where classes come apart, solvers stop anywhere on their way to infinity.
    wrong = np.random.default_rng(2).permutation(items.target[:60:3])
    items.target[:60:3] = wrong
    found, known = fitted(how, items), PROBES["mean"].fit(features(how), items, items.folds[0], 0)
    if items.task.dense:
        assert found.confusions is not None and known.confusions is not None
        # A pixel on the border of two classes may fall to either side.
        assert np.abs(found.confusions - known.confusions).sum() <= 0.02 * known.confusions.sum()
    elif kind == "regression":
        np.testing.assert_allclose(found.prediction, known.prediction, atol=1e-3)
    else:
        np.testing.assert_allclose(found.logits, known.logits, atol=0.02)


def test_attention_can_look_at_one_token_alone() -> None:
    """Two halves of a query's width that look at different tokens, by hand."""
    model = Attention(nn.Linear(2, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.look.weight.copy_(torch.tensor([[99.0, 0.0], [0.0, 99.0]]))
        model.values.copy_(torch.tensor([[[1.0], [0.0]], [[0.0], [-1.0]]]))
        model.norm.weight.fill_(1.0)
        model.head.weight.copy_(torch.tensor([[1.0, 0.0]]))
        # The first head finds 3 in the first token's first place, the second 5 in the other's second.
        out = model(torch.tensor([[[3.0, 0.0], [0.0, 5.0]]]))
    # The norm of (3, -5) is (1, -1).
    assert out.item() == pytest.approx(1.0, abs=1e-4)


# One protocol: steps, batches, learning rates.


def test_every_rate_takes_all_steps_and_validation_items_alone_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = task("classification", n=40)
    losses = {-3.0: 0.9, -2.5: 0.7, -2.0: 0.5, -1.5: 0.6}
    taken: list[tuple[float, int]] = []
    judged: list[tuple[float, list[int]]] = []

    def groups(model: nn.Module, rate: float) -> list[dict[str, object]]:
        model.rate = round(float(np.log10(rate)), 1)  # type: ignore[assignment]
        return training.alike(model, rate)

    def loss(one: Training, rows: np.ndarray) -> float:
        judged.append((one.model.rate, rows.tolist()))  # type: ignore[arg-type]
        return losses[one.model.rate]  # type: ignore[index]

    def run(one: Training) -> None:
        whole_run(one)
        taken.append((one.model.rate, one.step))  # type: ignore[arg-type]

    whole_run = Training.run
    monkeypatch.setattr(Training, "run", run)
    monkeypatch.setattr(Training, "loss", loss)
    found = fit_best(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
        replace(lesson(items), rates=(-3.0, -2.0)),
        groups,
    )
    # All of the first rates, and one beyond the edge that won.
    assert [rate for rate, _ in judged] == [-3.0, -2.5, -2.0, -1.5]
    assert all(rows == items.folds[0][1].tolist() for _, rows in judged)
    assert found.strength == pytest.approx(10**-2.0) and not found.edge
    assert taken == [(rate, training.steps(20, 2)) for rate in losses]


def test_a_rate_at_which_training_explodes_is_given_up() -> None:
    items = task("classification", n=40)

    def groups(model: nn.Module, rate: float) -> list[dict[str, object]]:
        return training.alike(model, rate if rate < 5e-3 else float("nan"))

    found = fit_best(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), lesson(items), groups)
    # The highest rate that trains, or the one that the grid adds below it.
    assert (
        np.log10(found.strength) == pytest.approx(-2.75, abs=0.251)
        and np.isfinite(found.logits).all()
    )


@pytest.mark.parametrize("kind", ["classification", "regression", "segmentation"])
def test_the_loss_is_a_mean_over_items_whatever_the_batches(kind: str) -> None:
    items = task(kind, n=44)  # 11 to validate on: batches of unequal size
    outputs = 3 if kind != "regression" else 1
    flat = nn.Sequential(nn.Flatten(), nn.Linear(128, outputs))
    model = nn.Conv2d(2, 3, 1) if kind == "segmentation" else flat
    one = Training(model, lesson(items), training.alike(model, 1e-3))
    val = items.folds[0][1]
    want = one.lesson.answers.loss(one.outputs(val), one.lesson.answers.target(val))
    assert one.loss(val) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("items", [1, 2, 7, 10, 50, 599, 600])
def test_a_pass_shows_every_item_once_and_few_items_are_passed_often(
    items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    given = task("classification", n=2 * items)
    one = Training(nn.Linear(2, 3), lesson(given, epochs=3), training.alike(nn.Linear(2, 3), 1e-3))
    train = given.folds[0][0]
    passes = one.batches()
    sizes: list[int] = []
    seen: list[int] = []
    while len(seen) < len(train):
        batch = next(passes)
        sizes.append(len(batch))
        seen += batch.tolist()
    assert sorted(seen) == train.tolist()
    assert max(sizes) <= training.BATCH and len(sizes) >= min(4, items)
    assert one.steps == max(training.LEAST_STEPS, 3 * len(sizes))


@pytest.mark.parametrize(("how", "kind"), TRAINED)
def test_few_labels_are_enough_to_answer(how: str, kind: str) -> None:
    items = few(task(kind, n=80), 4)
    score, _ = probe(features(how), items, how)
    assert np.isfinite(score.value)


class Foreign(nn.Module):
    """Ours behind the interface that all encoders have, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = encoder()

    def forward_features(self, *args: object) -> torch.Tensor:
        return self.inside.forward_features(*args)  # type: ignore[arg-type]

    def embed(self, *args: object) -> torch.Tensor:
        return self.inside.embed(*args)  # type: ignore[arg-type]


@pytest.mark.parametrize(("how", "kind"), [(how, kind) for how, kind in TRAINED if how != "layers"])
def test_other_peoples_encoders_are_trained_as_ours(how: str, kind: str) -> None:
    items = task(kind, n=60)
    ours = PROBES[how].fit(Encoded(encoder()), items, items.folds[0], 0)
    theirs = PROBES[how].fit(Encoded(Foreign()), items, items.folds[0], 0)
    assert ours.strength == theirs.strength
    if items.task.dense:
        assert ours.confusions is not None and theirs.confusions is not None
        assert np.abs(ours.confusions - theirs.confusions).sum() <= 0.02 * ours.confusions.sum()
    elif kind == "regression":
        np.testing.assert_allclose(ours.prediction, theirs.prediction, atol=1e-2)
    else:
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=0.05)


# Learning rates within a model.


def test_learning_rates_fall_from_block_to_block_towards_the_input() -> None:
    model = Tuned(encoder(), nn.Linear(16, 3), task("classification", n=8))
    groups = heads._groups(model, 0.01)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    names = dict(model.named_parameters())
    assert set(rates) == {id(p) for p in names.values()}
    for name, parameter in names.items():
        room, _, rest = name.partition(".")
        if room == "head":
            want = 0.01
        elif rest.startswith("blocks."):
            want = 0.01 * 0.75 ** (3 - int(rest.split(".")[1]))
        elif rest.startswith("norm."):
            want = 0.01
        else:  # what makes the tokens, norms of its own among it
            want = 0.01 * 0.75**4
        assert rates[id(parameter)] == pytest.approx(want), name


def test_learning_rates_of_wrapped_encoders_and_of_convolutional_ones() -> None:
    items = task("classification", n=8)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = encoder()

    def rates(inner: nn.Module) -> dict[str, float]:
        model = Tuned(inner, nn.Linear(16, 3), items)
        found = {id(p): g["lr"] for g in heads._groups(model, 1.0) for p in g["params"]}
        return {name: found[id(p)] for name, p in model.named_parameters()}

    wrapped = rates(Wrapped())
    assert wrapped["encoder.inside.norm.weight"] == pytest.approx(1.0)
    assert wrapped["encoder.inside.blocks.2.norm1.weight"] == pytest.approx(0.75)
    assert wrapped["encoder.inside.embedding.kernels.norm.weight"] == pytest.approx(0.75**4)
    flat = rates(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    assert {v for name, v in flat.items() if "encoder" in name} == {1.0}
    assert flat["head.weight"] == 1.0


def test_other_heads_have_one_rate() -> None:
    (group,) = training.alike(Layers(nn.Linear(4, 3)), 0.02)
    assert group["lr"] == 0.02 and len(group["params"]) == 8


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("px", [8, 6])
def test_labels_turn_with_their_images(quarters: int, mirrored: bool, px: int) -> None:
    """Also where images are continued until patches fit: there labels must not slip."""
    items = task("segmentation", n=4, px=px)
    rows, turn = np.arange(4), Turn(quarters, mirrored)
    answers = Answers.of(items, rows, (8, 8))
    image = torch.full((4, 1, 8, 8), float(UNLABELLED))
    image[:, 0, :px, :px] = torch.from_numpy(items.target).float()
    turned = answers.target(rows, turn)
    assert torch.equal(turned, turn(image)[:, 0].long())
    logits = 50 * torch.stack([turn(image)[:, 0] == c for c in range(3)], dim=1).float()
    assert float(answers.loss(logits, turned)) < 1e-6


def test_unlabelled_pixels_do_not_count_in_the_loss() -> None:
    items = task("segmentation", n=4)
    items.target[:, :, 3:] = UNLABELLED
    answers = Answers.of(items, np.arange(4), (8, 8))
    outputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    want = nn.functional.cross_entropy(
        outputs[..., :3], torch.from_numpy(items.target[..., :3]).long()
    )
    found = answers.loss(outputs, answers.target(np.arange(4)))
    assert float(found) == pytest.approx(float(want))
    nothing = torch.full((4, 8, 8), UNLABELLED)
    assert float(answers.loss(outputs, nothing)) == 0.0


def test_values_come_back_in_their_own_unit() -> None:
    items = task("regression", n=80)
    far = replace(items, target=1000 + 50 * items.target)
    a, b = fitted("attentive", items), fitted("attentive", far)
    np.testing.assert_allclose(b.prediction, 1000 + 50 * a.prediction, atol=0.5)


@pytest.mark.parametrize("how", ["layers", "finetune"])
@pytest.mark.parametrize("kind", ["segmentation", "change_segmentation"])
def test_every_pixel_is_answered_where_patches_do_not_fit(how: str, kind: str) -> None:
    items = task(kind, n=40, px=10)
    found = fitted(how, items)
    assert found.confusions is not None
    assert (found.confusions.sum(axis=(1, 2)) == 100).all()


def test_images_that_are_not_square_are_tuned_on() -> None:
    target = np.random.default_rng(0).integers(3, size=(24, 8, 12))
    pixels = np.stack([target == 1, target == 2], axis=1)
    found = fitted("finetune", labelled(SEGMENTS, pixels, target))
    assert found.confusions is not None and found.confusions.sum() == 6 * 96


@pytest.mark.parametrize(
    ("how", "kind"), [(how, kind) for how, kind in EVERY if kind in ("classification", "segmentation")]
)  # fmt: skip
def test_a_class_absent_from_training_stays_finite_and_linear_and_knn_never_answer_it(
    how: str, kind: str
) -> None:
    items = task(kind, n=80)
    train = items.folds[0][0]
    items.target[train] %= 2
    score, frame = probe(features(how), items, how)
    assert np.isfinite(score.value) and np.isfinite(frame["contribution"]).all()
    if how not in ("linear", "knn"):
        return
    if kind == "segmentation":
        assert np.array(frame["confusion"].tolist()).reshape(-1, 3, 3)[..., 2].sum() == 0
    else:
        assert set(frame["prediction"]) <= {0.0, 1.0}


@pytest.mark.parametrize("how", ["attentive", "layers", "finetune"])
def test_what_is_not_finite_is_refused(how: str) -> None:
    items = task("segmentation" if how == "layers" else "classification", n=40)
    model = encoder()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"\d+ of \d+ items have features that are not finite"):
        probe(Encoded(model), items, how)


@pytest.mark.parametrize(("how", "kind"), [("layers", "segmentation"), ("finetune", "segmentation"),
                                           ("finetune", "change_segmentation")])  # fmt: skip
def test_labels_that_decide_nothing_are_refused(how: str, kind: str) -> None:
    items = task(kind, n=40)
    items.target[items.folds[0][1]] = UNLABELLED
    with pytest.raises(ValueError, match="validation items hold no label"):
        probe(features(how), items, how)


def test_statistics_have_nothing_to_tune() -> None:
    for baseline in (BandMeans(), BandStatistics()):
        with pytest.raises(ValueError, match="finetune needs an encoder"):
            probe(baseline, task("classification", n=40), "finetune")
