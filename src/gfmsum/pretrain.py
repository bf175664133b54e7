"""Pretraining: one masked autoencoder, trained until its Budget is spent, with a Ledger kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from gfmsum.budget import Budget, Ledger
from gfmsum.data.modules import Batch, MixDataModule, Part
from gfmsum.data.plan import stream
from gfmsum.data.sample import Source
from gfmsum.model.mae import MaskedAutoencoder
from gfmsum.records import Run
from gfmsum.sensors import Band

type Curve = list[tuple[int, int, str, float]]
"""Rows of (step, samples seen so far, sensor or "" for the batch, loss)."""


def initialised(budget: Budget, seed: int, replicate: int) -> MaskedAutoencoder:
    """The untrained model of a replicate: the floor, and where every other arm starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, replicate, "init").integers(2**62)))
        return MaskedAutoencoder(budget.model)


class Pretraining(L.LightningModule):
    """Masked autoencoding of batches of any sensors. Usable with any data module that gives Batches.

    Args:
        mae: the model.
        steps: optimiser steps that the budget pays for; the schedule ends with them.
        learning_rate, warmup: peak, and the share of steps to reach it.
        seed: draws the masks, together with the step.
    """

    def __init__(
        self,
        mae: MaskedAutoencoder,
        *,
        steps: int,
        learning_rate: float = 1e-3,
        warmup: float = 0.1,
        seed: Sequence[int] = (0, 0),
    ) -> None:
        super().__init__()
        self.mae, self.steps, self.learning_rate, self.warmup = mae, steps, learning_rate, warmup
        self.seed = tuple(seed)
        self.curve: Curve = []
        self.ledger = Ledger()
        self._costs: dict[tuple[tuple[Band, ...], float], tuple[float, float]] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(
            int(stream(*self.seed, "mask", batch.step).integers(2**62))
        )
        views = [(part.pixels, part.bands, part.gsd_m) for part in batch.parts]
        errors = self.mae(views, rng)
        loss: torch.Tensor = torch.cat(errors).mean()
        self._enter(batch, errors, float(loss.detach()))
        return loss

    def _enter(self, batch: Batch, errors: list[torch.Tensor], loss: float) -> None:
        """Book the step."""
        if not math.isfinite(loss):
            raise ValueError(
                f"loss is {loss} at step {batch.step} on {', '.join(p.sensor for p in batch.parts)}; "
                f"lower budget.learning_rate={self.learning_rate}"
            )
        ledger, model = self.ledger, self.mae.model
        ledger.steps += 1
        by_sensor: dict[str, list[torch.Tensor]] = {}
        for part, error in zip(batch.parts, errors, strict=True):
            images = len(part.pixels)
            ledger.seen += images
            ledger.seen_by_sensor[part.sensor] = ledger.seen_by_sensor.get(part.sensor, 0) + images
            ledger.encoder_tokens += images * model.visible
            ledger.decoder_tokens += images * model.patches
            fixed, each = self._cost(part)
            ledger.flops += fixed + each * images
            by_sensor.setdefault(part.sensor, []).append(error.detach())
        self.curve.append((batch.step, ledger.seen, "", loss))
        for sensor, parts in by_sensor.items():
            self.curve.append((batch.step, ledger.seen, sensor, float(torch.cat(parts).mean())))

    def _cost(self, part: Part) -> tuple[float, float]:
        """FLOPs of a training step on this kind of images: per step, and per image.

        Counted on a step with one and one with two images; everything but the generated kernels
        grows with their number.
        """
        key = (part.bands, part.gsd_m)
        if key not in self._costs:
            counts = []
            for images in (1, 2):
                pixels = torch.zeros(images, *part.pixels.shape[1:], device=part.pixels.device)
                with torch.enable_grad(), FlopCounterMode(display=False) as counter:
                    errors = self.mae([(pixels, part.bands, part.gsd_m)], torch.Generator())
                    torch.autograd.grad(
                        errors[0].sum(), list(self.mae.parameters()), allow_unused=True
                    )
                counts.append(float(counter.get_total_flops()))
            self._costs[key] = (2 * counts[0] - counts[1], counts[1] - counts[0])
        return self._costs[key]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
            lr=self.learning_rate,
            betas=(0.9, 0.95),
            fused=True,  # one pass over all weights: a tenth of a small step's time on a CPU
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at ``step``: linear warm-up, then a cosine to zero."""
        spent = (step + 1) / self.steps
        if spent < self.warmup:
            return spent / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (spent - self.warmup) / (1 - self.warmup)))


class _Report(L.Callback):
    """Tells somebody how far the run is."""

    def __init__(self, tell: Callable[[int, dict[str, float]], None]) -> None:
        self.tell = tell

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        step = pl_module.ledger.steps
        losses = {
            f"loss/{sensor}" if sensor else "loss": value
            for at, _, sensor, value in pl_module.curve[-8:]
            if at == pl_module.curve[-1][0]
        }
        self.tell(step, losses | {"samples_seen": pl_module.ledger.seen})


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What a run leaves behind."""

    mae: MaskedAutoencoder
    ledger: Ledger
    curve: Curve
    pictures: dict[str, NDArray[np.float32]]  # see :func:`pictures`


def pretrain(
    run: Run,
    source: Source,
    *,
    device: str = "cpu",
    tell: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> Pretrained:
    """Carry out a run; the floor's takes no step.

    Args:
        run: what to do; its weights depend on nothing else.
        source: the data that ``run.data`` names.
        device: "cpu" or "cuda".
        tell: called after each step with the steps done and the step's metrics.
    """
    budget, seed = run.budget, (run.seed, run.replicate)
    mae = initialised(budget, *seed)
    module = Pretraining(
        mae,
        steps=budget.steps,
        learning_rate=budget.learning_rate,
        warmup=budget.warmup,
        seed=seed,
    )
    began = time.perf_counter()
    shown: dict[str, NDArray[np.float32]] = {}
    if budget.steps:
        data = MixDataModule(
            source,
            run.assignment,
            unique=budget.unique,
            seen=budget.seen,
            batch=budget.batch,
            sees=run.sees,
            image_px=budget.model.image_px,
            seed=seed,
        )
        trainer = L.Trainer(
            max_steps=budget.steps,
            max_epochs=1,
            accelerator=device,
            devices=1,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[_Report(tell)],
        )
        trainer.fit(module, datamodule=data)
        assert data.batches is not None
        module.ledger.unique_by_sensor = data.batches.plan.unique(budget.steps)
        mae.eval()
        shown = pictures(mae.to(device), data.batches[0], seed)
    module.ledger.seconds = time.perf_counter() - began
    module.ledger.device = device
    return Pretrained(mae.cpu().eval(), module.ledger, module.curve, shown)


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
