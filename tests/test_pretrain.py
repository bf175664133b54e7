"""Pretraining: deterministic, paid for to the sample, and counted from the real graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gfmsum.budget import BUDGETS, Budget
from gfmsum.mix import Mix
from gfmsum.pretrain import Pretrained, Pretraining, initialised, pretrain
from gfmsum.records import Arm, Role, Run
from tests.data.test_modules import Noise

SMALL = replace(
    BUDGETS["micro"], unique=60, seen=150, batch=30,
    model=replace(BUDGETS["micro"].model, width=32, depth=1, heads=2, decoder_width=16, image_px=8,
                  decoder_heads=1, code_width=16),
)  # fmt: skip
MIX = Mix.equal(["s1", "s2"])


def run(budget: Budget = SMALL, replicate: int = 0, sees: tuple[str, ...] = ("s1", "s2")) -> Run:
    return Run.of(Arm(Role.MIX, MIX, sees), budget, {"source": "noise"}, 0, replicate)


@pytest.fixture(scope="module")
def done() -> Pretrained:
    return pretrain(run(), Noise())


def test_the_same_run_gives_the_same_weights(done: Pretrained) -> None:
    again = pretrain(run(), Noise())
    other = pretrain(run(replicate=1), Noise())
    a, b, c = (x.mae.state_dict() for x in (done, again, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert done.curve == again.curve


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    initialised(SMALL, 0, 0)
    assert torch.equal(torch.rand(3), want)


def test_the_ledger_is_exact(done: Pretrained) -> None:
    ledger = done.ledger
    assert (ledger.steps, ledger.seen) == (5, 150)
    assert ledger.seen_by_sensor == {"s1": 75, "s2": 75}
    assert ledger.unique_by_sensor == {"s1": 30, "s2": 30}
    assert (ledger.encoder_tokens, ledger.decoder_tokens) == (150, 600)  # 1 of 4 patches is seen
    assert ledger.seconds > 0


def test_flops_are_those_of_the_graph() -> None:
    """Against counting every step whole, kernels generated anew for each kind of image."""
    from torch.utils.flop_counter import FlopCounterMode

    from gfmsum.data.modules import MixDataModule

    options = {"unique": 60, "seen": 150, "batch": 30, "image_px": 8}
    data = MixDataModule(Noise(), MIX, **options)
    module = Pretraining(initialised(SMALL, 0, 0), SMALL)
    total = 0.0
    for index, batch in enumerate(data.train_dataloader()):
        views = [(part.pixels, part.bands, part.gsd_m) for part in batch.parts]
        with FlopCounterMode(display=False) as counter:
            loss = torch.cat(module.mae(views, torch.Generator())).mean()
            torch.autograd.grad(loss, list(module.mae.parameters()), allow_unused=True)
        total += counter.get_total_flops()
        module.training_step(batch, index)
    assert module.ledger.flops == pytest.approx(total, rel=1e-9)


def test_loss_falls_on_something_learnable() -> None:
    curve = pretrain(run(replace(SMALL, seen=3_000)), Smooth()).curve
    losses = [loss for _, _, sensor, loss in curve if not sensor]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


class Smooth(Noise):
    """Images that are one slope each: hidden patches follow from visible ones."""

    def pretraining(self, sensor, slots, size_px, seed):  # type: ignore[no-untyped-def]
        found = super().pretraining(sensor, slots, size_px, seed)
        for samples in found:
            slope = samples.pixels[:, :1, :1, :1] * np.linspace(-1, 1, size_px, dtype=np.float32)
            samples.pixels[:] = slope
        return found


def test_a_curve_has_a_row_per_step_and_sensor(done: Pretrained) -> None:
    assert [(s, n) for s, n, sensor, _ in done.curve if not sensor] == [
        (0, 30), (1, 60), (2, 90), (3, 120), (4, 150)
    ]  # fmt: skip
    assert {sensor for _, _, sensor, _ in done.curve} == {"", "s1", "s2"}


def test_pictures_show_original_masked_and_reconstruction(done: Pretrained) -> None:
    assert set(done.pictures) == {"s1", "s2"}
    shown = done.pictures["s2"]
    assert shown.shape[1:] == (3, 8, 8, 3)  # red, green and blue
    original, masked, filled = shown[:, 0], shown[:, 1], shown[:, 2]
    hidden = np.isnan(masked)
    assert hidden.mean() == pytest.approx(0.75)
    np.testing.assert_array_equal(original[~hidden], masked[~hidden])
    np.testing.assert_array_equal(original[~hidden], filled[~hidden])
    assert done.pictures["s1"].shape[-1] == 1


def test_the_floor_takes_no_step() -> None:
    floor = pretrain(run(sees=()), Noise())
    assert floor.ledger.steps == 0 and floor.curve == [] and floor.pictures == {}
    start = initialised(SMALL, 0, 0).state_dict()
    assert all(torch.equal(start[k], v) for k, v in floor.mae.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(
        ValueError,
        match=r"loss is nan at step 0 on s1.*\(samples s1/\d+.*lower budget.learning_rate",
    ):
        pretrain(run(), Broken())


class Broken(Noise):
    """Pixels that are not numbers."""

    def pretraining(self, sensor, slots, size_px, seed):  # type: ignore[no-untyped-def]
        found = super().pretraining(sensor, slots, size_px, seed)
        found[0].pixels[:] = np.nan
        return found
