"""Pretraining: one masked autoencoder, trained until its Budget is spent, with a Ledger kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gfmsum.budget import Architecture, Budget, Currency, Ledger
from gfmsum.checkpoint import Checkpoints
from gfmsum.config import Execution
from gfmsum.data.modules import Batch, MixDataModule
from gfmsum.data.plan import stream
from gfmsum.data.sample import Kind, Source
from gfmsum.meter import Meter
from gfmsum.model.mae import MaskedAutoencoder
from gfmsum.records import Run, Seen
from gfmsum.sensors import Band

type Curve = list[tuple[int, int, str, float]]
"""Rows of (step, samples seen so far, sensor or "" for the batch, loss)."""

ON_CPU = Execution()
EXPLODED = 1e3  # predicting the mean of every band group costs 1


def initialised(budget: Budget, seed: int, replicate: int) -> MaskedAutoencoder:
    """The untrained model of a replicate: the floor, and where every other arm starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, replicate, "init").integers(2**62)))
        return MaskedAutoencoder(budget.model)


_PRICES: dict[tuple[Architecture, tuple[Band, ...], float], tuple[float, float]] = {}
"""What has been counted: a process carries out many runs, and counting takes as long as many steps."""


def count_flops(mae: MaskedAutoencoder, kind: Kind) -> tuple[float, float]:
    """FLOPs of a training step on images of one kind, from the real graph: per step, and per image.

    Counted on a step with one and one with two images; everything but the generated kernels grows with
    their number. In a step of several kinds, attention between their bands is computed to be masked. It is
    not counted: at the tiny budget, 0.13 % of a step on five sensors.
    """
    side, counts = mae.model.image_px, []
    device = next(mae.parameters()).device
    for images in (1, 2):
        pixels = torch.zeros(images, len(kind.bands), side, side, device=device)
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            errors = mae([(pixels, kind.bands, kind.gsd_m)], torch.Generator())
            torch.autograd.grad(errors[0].sum(), list(mae.parameters()), allow_unused=True)
        counts.append(float(counter.get_total_flops()))
    return 2 * counts[0] - counts[1], counts[1] - counts[0]


class Pretraining(L.LightningModule):
    """Masked autoencoding of batches of any sensors. Usable with any data module that gives Batches.

    It ends when the next step would cost more than is left; the rate follows what is spent.

    Args:
        mae: the model.
        budget: what may be spent, and the schedule.
        fraction: of what the budget allows.
        seed: draws the masks, together with the step.
    """

    def __init__(
        self,
        mae: MaskedAutoencoder,
        budget: Budget,
        *,
        fraction: Fraction = Fraction(1),
        seed: Sequence[int] = (0, 0),
    ) -> None:
        super().__init__()
        self.mae, self.budget, self.fraction, self.seed = mae, budget, fraction, tuple(seed)
        self.curve: Curve = []
        self.ledger = Ledger()
        self.started: dict[str, Any] | None = None  # an optimiser's state to go on from
        self._errors: dict[str, Tensor] = {}  # sum and number of a step's errors, by sensor

    # Before a step.

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Set the rate, or end the run if the step cannot be paid; -1 is Lightning's word for that."""
        if batch_idx % self._accumulated:
            return None
        cost, allowed = self.price(batch).spent(self.budget.match), self.budget.allowed
        spent = self.ledger.spent(self.budget.match)
        if spent + cost > allowed * self.fraction:
            return -1
        rate = self.budget.rate((spent + cost / 2) / allowed, float(self.fraction))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = rate * self.budget.learning_rate
        return None

    def price(self, batch: Batch) -> Ledger:
        """What the batch's step costs, on all devices."""
        model, cost = self.mae.model, Ledger(steps=1)
        for kind, images in batch.counts:
            fixed, each = self._price(kind)
            cost.seen += images
            cost.seen_by_sensor[kind.sensor] = cost.seen_by_sensor.get(kind.sensor, 0) + images
            cost.encoder_tokens += images * model.visible
            cost.decoder_tokens += images * (model.visible + model.predicted)
            cost.flops += fixed + each * images
        return cost

    def _price(self, kind: Kind) -> tuple[float, float]:
        """FLOPs of a training step on this kind of images: per step, and per image."""
        key = (self.mae.model, kind.bands, kind.gsd_m)
        if key not in _PRICES:
            recompute, self.mae.encoder.recompute = self.mae.encoder.recompute, False
            _PRICES[key] = count_flops(self.mae, kind)
            self.mae.encoder.recompute = recompute  # which is no work that an arm is matched in
        return _PRICES[key]

    # A step, or a slice of it.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        draws = torch.Generator().manual_seed(
            int(stream(*self.seed, "mask", batch.step).integers(2**62))
        )
        views = [(part.pixels, part.bands, part.gsd_m) for part in batch.parts]
        rows = [row for part in batch.parts for row in part.rows]
        errors = self.mae(views, draws, rows, batch.images)
        total = torch.cat(errors).sum()
        for part, error in zip(batch.parts, errors, strict=True):
            summed = torch.stack([error.detach().sum(), error.new_tensor(float(len(error)))])
            self._errors[part.sensor] = self._errors.get(part.sensor, 0) + summed
        self._check(batch, float(total.detach()))
        if not (batch_idx + 1) % self._accumulated:
            self._book(batch)
        # Slices are averaged, over devices and one after another: so their sum is the step's mean.
        loss: Tensor = total * batch.slice.of / batch.images
        return loss

    def _check(self, batch: Batch, total: float) -> None:
        """Stop at a loss that no further step can mend."""
        images = sum(len(part.ids) for part in batch.parts)
        if math.isfinite(total) and total <= EXPLODED * images:
            return
        worst = [
            part.sensor for part in batch.parts
            if not float(self._errors[part.sensor][0]) <= EXPLODED * float(self._errors[part.sensor][1])
        ]  # fmt: skip
        sensors = dict.fromkeys(worst or [part.sensor for part in batch.parts])
        ids = [name for part in batch.parts if part.sensor in sensors for name in part.ids]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise ValueError(
            f"loss is {total / images:g} at step {batch.step} on {', '.join(sensors)} (samples "
            f"{shown}); look at these, or lower budget.learning_rate={self.budget.learning_rate}"
        )

    def _book(self, batch: Batch) -> None:
        """Enter a step, at its last slice: callbacks that follow find it in the Ledger."""
        cost, ledger = self.price(batch), self.ledger
        for name in ("steps", "seen", "encoder_tokens", "decoder_tokens", "flops"):
            setattr(ledger, name, getattr(ledger, name) + getattr(cost, name))
        for sensor, images in cost.seen_by_sensor.items():
            ledger.seen_by_sensor[sensor] = ledger.seen_by_sensor.get(sensor, 0) + images
        names = list(cost.seen_by_sensor)
        sums = torch.stack(
            [self._errors.get(name, torch.zeros(2, device=self.device)) for name in names]
        )
        if self._trainer is not None and self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        self._errors = {}
        total, images = sums.sum(dim=0).tolist()
        self.curve.append((batch.step, ledger.seen, "", total / images))
        for name, (error, count) in zip(names, sums.tolist(), strict=True):
            self.curve.append((batch.step, ledger.seen, name, error / count))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the biases of attention's keys at rest.

        A softmax does not see what all keys share. The gradient is rounding noise, of which Adam would
        make whole steps: weights would differ from machine to machine for nothing.
        """
        for name, bias in self.named_parameters():
            if name.endswith("attn.qkv.bias") and bias.grad is not None:
                bias.grad.view(3, -1)[1] = 0

    @property
    def _accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self._trainer is not None else 1

    def configure_optimizers(self) -> OptimizerLRScheduler:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
            lr=self.budget.learning_rate,
            betas=(0.9, 0.95),
            # One pass over all weights: a tenth of a small step's time on a CPU. Lightning does not
            # clip gradients for it in mixed precision.
            fused=self.budget.precision == "fp32",
        )
        if self.started is not None:
            optimizer.load_state_dict(self.started)
        return optimizer


class _Report(L.Callback):
    """Tells somebody how far the run is."""

    def __init__(self, tell: Callable[[int, dict[str, float]], None]) -> None:
        self.tell = tell

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if trainer.global_rank or pl_module.ledger.steps == 0:
            return
        step = pl_module.ledger.steps
        losses = {
            f"loss/{sensor}" if sensor else "loss": value
            for at, _, sensor, value in pl_module.curve[-8:]
            if at == pl_module.curve[-1][0]
        }
        self.tell(step, losses | {"samples_seen": pl_module.ledger.seen})


class _Keep(L.Callback):
    """Writes the run's state down: from time to time, where another run branches off, and at the end."""

    def __init__(
        self, kept: Checkpoints, every_s: float, meter: Meter, branch: Fraction | None
    ) -> None:
        self.kept, self.every_s, self.meter = kept, every_s, meter
        self.branch = branch  # share of the budget that a branching run may spend
        self._shared = False  # whether the step before this one was one that both runs take
        self._last = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if self.branch is None or batch_idx % trainer.accumulate_grad_batches:
            return
        budget = pl_module.budget
        spent = pl_module.ledger.spent(budget.match)
        middle = (spent + pl_module.price(batch).spent(budget.match) / 2) / budget.allowed
        if middle <= float(self.branch) * (1 - budget.decay):
            self._shared = True
            return
        if self._shared:  # and from here on the rates differ; else they did before it was resumed
            self._save(trainer, pl_module, "branch")
        self.branch = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        assert isinstance(pl_module, Pretraining)
        due = time.monotonic() - self._last >= self.every_s
        # A sharded state would have to be gathered from all devices at one time.
        sharded = trainer.world_size > 1 and "fsdp" in type(trainer.strategy).__name__.lower()
        if due and not sharded and not (batch_idx + 1) % trainer.accumulate_grad_batches:
            self._save(trainer, pl_module, "step")
            self._last = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        if trainer.world_size > 1:  # what the processes hold ends with them
            gathered = trainer.strategy.lightning_module_state_dict()
            weights = {name.removeprefix("mae."): value for name, value in gathered.items()}
            self._save(trainer, pl_module, "end", weights)

    def _save(
        self,
        trainer: L.Trainer,
        module: Pretraining,
        name: str,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        if trainer.global_rank:
            return
        optimizer = module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.meter.enter(module.ledger)
        state = {
            "mae": weights or module.mae.state_dict(),
            "optimizer": None if weights else optimizer.state_dict(),
            "ledger": asdict(module.ledger),
            "curve": module.curve,
        }
        self.kept.save(state, module.ledger.steps, name)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What a run leaves behind."""

    mae: MaskedAutoencoder
    ledger: Ledger
    curve: Curve
    seen: tuple[Seen, ...]
    pictures: dict[str, NDArray[np.float32]]  # see :func:`pictures`


def pretrain(
    run: Run,
    source: Source,
    *,
    execution: Execution = ON_CPU,
    checkpoints: Path | None = None,
    branch: Fraction | None = None,
    trunk: Path | None = None,
    tell: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> Pretrained:
    """Carry out a run, or what is left of it; the floor's takes no step.

    Args:
        run: what to do; its weights depend on nothing else.
        source: the data that ``run.data`` names.
        execution: how to do it.
        checkpoints: a folder for the run's states. If it holds some, the run goes on from the newest.
        branch: also keep there the state from which a run with this fraction of the budget parts.
        trunk: the checkpoints of a run of which this one is a fraction. If they hold the state
            where the two part, the run goes on from there, to the same weights.
        tell: called after each step with the steps done and the step's metrics.

    Raises:
        ValueError: if the loss is not finite or explodes; checkpoints stay.
    """
    budget, seed = run.budget, (run.seed, run.replicate)
    mae = initialised(budget, *seed)
    mae.encoder.recompute = execution.recompute
    for sensor in run.sees:
        for block in source.pretraining(sensor, budget.model.image_px).blocks:
            mae.know(block.kind.bands)
    module = Pretraining(mae, budget, fraction=run.fraction, seed=seed)
    meter = Meter(execution.device, execution.devices)
    shown: dict[str, NDArray[np.float32]] = {}
    seen: tuple[Seen, ...] = ()
    if budget.allowed:
        if execution.devices > 1 and checkpoints is None:
            raise ValueError(
                f"devices={execution.devices} need a folder to hand their result over; give checkpoints="
            )
        kept = Checkpoints(checkpoints) if checkpoints else None
        state = kept.newest() if kept else None
        if state is None and trunk is not None:
            state = Checkpoints(trunk).newest("branch")
        if state is not None:
            _restore(module, state)
        data = _data(run, source, module, execution.accumulate)
        callbacks: list[L.Callback] = [_Report(tell)]
        if kept:
            callbacks.append(_Keep(kept, execution.checkpoint_s, meter, branch))
        trainer = _trainer(execution, budget, callbacks)
        trainer.fit(module, datamodule=data)
        if execution.devices > 1:
            assert kept is not None
            ended = kept.newest("end")
            assert ended is not None
            _restore(module, ended)
        data.setup()  # which several devices' processes did, and not this one
        assert data.batches is not None
        module.ledger.unique_by_sensor = data.batches.plan.unique(module.ledger.steps)
        seen = tuple(kind for one in data.batches.shown.values() for kind in one.seen)
        mae.eval()
        shown = pictures(mae.to(execution.device), data.batches.batch(0), seed)
    if execution.devices == 1:  # several devices' processes have booked their time already
        meter.enter(module.ledger)
    module.ledger.device = execution.device
    return Pretrained(mae.cpu().eval(), module.ledger, module.curve, seen, shown)


def _restore(module: Pretraining, state: dict[str, Any]) -> None:
    """Go on where a state ends."""
    module.mae.load_state_dict(state["mae"])
    module.started = state["optimizer"]
    module.ledger = Ledger(**state["ledger"])
    module.curve = [tuple(row) for row in state["curve"]]


def _data(run: Run, source: Source, module: Pretraining, accumulate: int) -> MixDataModule:
    """The run's batches, from the first that it has not seen."""
    budget, start = run.budget, module.ledger.steps
    allowed = float(run.fraction) * budget.allowed
    # More steps than can be paid for: the module ends the run, not the data.
    least = {
        Currency.SAMPLES: 1.0,
        Currency.TOKENS: float(budget.model.visible),
        Currency.FLOPS: budget.model.flops(1),
    }[Currency(budget.match)]
    return MixDataModule(
        source,
        run.assignment,
        unique=budget.unique,
        seen=budget.seen,
        batch=budget.batch,
        sees=run.sees,
        colocated=run.colocated,
        image_px=budget.model.image_px,
        seed=(run.seed, run.replicate),
        steps=int(allowed / (least * budget.batch)) + 1,
        start=start,
        accumulate=accumulate,
    )


def _trainer(execution: Execution, budget: Budget, callbacks: list[L.Callback]) -> L.Trainer:
    strategy = execution.strategy
    if strategy == "auto" and execution.devices > 1:
        strategy = "ddp_fork" if execution.device == "cpu" else "ddp_spawn"
    return L.Trainer(
        max_steps=-1,
        max_epochs=1,
        accelerator=execution.device,
        devices=execution.devices,
        strategy=strategy,
        precision="bf16-mixed" if budget.precision == "bf16" else "32-true",
        accumulate_grad_batches=execution.accumulate,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,  # the plan already gives each device its slice
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )


def pictures(
    mae: MaskedAutoencoder, batch: Batch, seed: Sequence[int], images: int = 4
) -> dict[str, NDArray[np.float32]]:
    """Originals, what the encoder sees of them, and reconstructions, for display.

    Returns:
        For each sensor float32 (images, 3, h, w, channels) in [0, 1]; hidden pixels of the second
        are NaN. Optical sensors show red, green and blue where they have them, others one band.
    """
    shown: dict[str, NDArray[np.float32]] = {}
    device = next(mae.parameters()).device
    for part in batch.parts:
        if part.sensor in shown:
            continue
        rng = torch.Generator().manual_seed(int(stream(*seed, "pictures").integers(2**62)))
        original = part.pixels[:images].to(device)
        filled, hidden = mae.reconstruct((original, part.bands, part.gsd_m), rng)
        channels = _display(part.bands)
        stack = torch.stack([original, original.masked_fill(hidden, torch.nan), filled], dim=1)
        values = stack[:, :, channels].permute(0, 1, 3, 4, 2).cpu().numpy()
        lowest, highest = np.nanpercentile(values[:, 0], [2, 98], axis=(0, 1, 2))
        shown[part.sensor] = np.clip(
            (values - lowest) / np.maximum(highest - lowest, 1e-6), 0, 1
        ).astype(np.float32)
    return shown


def _display(bands: Sequence[Band]) -> list[int]:
    """Channels nearest to red, green and blue if all are visible; else the first band."""
    chosen = []
    for centre in (0.65, 0.56, 0.48):
        gaps = [abs((band.wavelength_um or 9.0) - centre) for band in bands]
        if min(gaps) > 0.05:
            return [0]
        chosen.append(gaps.index(min(gaps)))
    return chosen
