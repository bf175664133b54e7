"""Pretraining: deterministic, paid for to the sample, and counted from the real graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gfmsum.budget import BUDGETS, Budget
from gfmsum.data import modules
from gfmsum.data.sample import Pool, Rows, Samples
from gfmsum.mix import Mix
from gfmsum.pretrain import Pretrained, Pretraining, initialised, pretrain
from gfmsum.records import Arm, Role, Run
from tests.data.test_modules import Noise, Slow

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


def test_what_was_seen_is_kept_with_what_it_was_normalised_by(done: Pretrained) -> None:
    """Two kinds of each sensor, brightness 30 with a deviation of 2."""
    assert [(kind.sensor, len(kind.bands), kind.gsd_m) for kind in done.seen] == [
        ("s1", 2, 10.0), ("s1", 1, 10.0), ("s2", 13, 10.0), ("s2", 1, 10.0),
    ]  # fmt: skip
    for kind in done.seen:  # at least ten images of 64 pixels: a mean is out by less than .1
        assert kind.mean == pytest.approx([30.0] * len(kind.bands), abs=0.5)
        assert kind.deviation == pytest.approx([2.0] * len(kind.bands), abs=0.35)


def test_flops_are_those_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against counting every step whole, kernels generated anew for each kind of image."""
    from torch.utils.flop_counter import FlopCounterMode

    from gfmsum.data.modules import MixDataModule
    from gfmsum.model.bands import BandKernels

    at_once = BandKernels.forward
    # What bands of different sensors have to say to each other is computed to be masked, and not counted.
    monkeypatch.setattr(
        BandKernels, "forward", lambda self, *sets: [at_once(self, bands)[0] for bands in sets]
    )
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


def test_kernels_of_each_sensors_own_are_learned_and_no_others() -> None:
    own = replace(SMALL, model=replace(SMALL.model, embed="per_sensor"))
    mixed, solo = pretrain(run(own), Noise()), pretrain(run(own, sees=("s1",)), Noise())
    start = initialised(own, 0, 0)
    for done, seen in ((mixed, ("s1", "s2")), (solo, ("s1",))):
        for sensor in ("s1", "s2"):
            (block, *_) = Noise().pretraining(sensor, 8).blocks
            start.know(block.kind.bands)
            for kernels, before in zip(
                (done.mae.encoder.embedding.kernels, done.mae.prediction.kernels),
                (start.encoder.embedding.kernels, start.prediction.kernels),
                strict=True,
            ):
                learned = not torch.allclose(
                    kernels(block.kind.bands)[0][0], before(block.kind.bands)[0][0], atol=1e-4
                )
                assert learned is (sensor in seen)


def test_loss_falls_on_something_learnable() -> None:
    curve = pretrain(run(replace(SMALL, seen=3_000)), Smooth()).curve
    losses = [loss for _, _, sensor, loss in curve if not sensor]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


class Smooth(Noise):
    """Images that are one slope each: hidden patches follow from visible ones."""

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        found = super().pretraining(sensor, size_px)
        for samples in found.blocks:
            assert isinstance(samples, Samples)
            steepness = samples.pixels[:, :1, :1, :1] - 30
            samples.pixels[:] = 30 + steepness * np.linspace(-1, 1, size_px, dtype=np.float32)
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


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "KEPT_BYTES", 0)
    with pytest.raises(
        ValueError,
        match=r"loss is nan at step \d+ on s2.*\(samples s2/\d+.*lower budget.learning_rate",
    ):
        pretrain(run(), Broken())


class Broken(Noise):
    """Pixels of s2 that go bad once they are measured."""

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        found = super().pretraining(sensor, size_px)
        if sensor != "s2":
            return found
        blocks = [Rotting(block) for block in found.blocks if isinstance(block, Samples)]
        return replace(found, blocks=tuple(blocks))


class Rotting(Slow):
    calls = 0

    def read(self, rows: Rows) -> Samples:
        self.calls += 1  # to see how large samples are, to measure them, and from then on for steps
        found = super().read(rows)
        return replace(found, pixels=found.pixels * np.nan) if self.calls > 2 else found
