"""How probes are trained by gradient descent: one protocol for every head and every encoder.

AdamW in batches of BATCH, or a quarter of the items if these are few; so many passes, and at least LEAST_STEPS
steps; a cosine after a tenth of warm-up. Every learning rate is trained to its end, and the one with the lowest
validation loss answers. No rate is given up on the way: after a quarter of the steps, in the middle of a long
schedule or at the end of a short one, the lowest rates look best, and tuning with them gains nothing. Nothing
is stopped early. The grid of rates grows by one half step where its edge wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.probe.dense import answered
from gfmsum.probe.features import Grid
from gfmsum.probe.fit import Fold, Probed, finite, search

BATCH = 32
LEAST_STEPS = 100  # a pass over ten items is soon over
WEIGHT_DECAY = 0.05
STEP = 0.5  # between rates, log10; and how far the grid may grow at either end: time is bounded

type Groups = Callable[[nn.Module, float], list[dict[str, Any]]]
"""From a model and the rate that is tried to its parameters with their rates."""


def alike(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """One rate for all parameters."""
    return [{"params": list(model.parameters()), "lr": rate}]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a task wants of a model: its loss, and its outputs in the task's terms."""

    items: Labelled
    centre: float
    spread: float
    cover: tuple[int, int]  # px that the outputs of a dense task stretch over

    @classmethod
    def of(cls, items: Labelled, train: Rows, cover: tuple[int, int] = (0, 0)) -> Answers:
        """Values are brought to zero mean and unit variance over the training items."""
        if items.task.kind != "regression":
            return cls(items, 0.0, 1.0, cover)
        values = items.target[train]
        return cls(items, float(values.mean()), float(values.std()) or 1.0, cover)

    def scaled(self, rows: Rows) -> NDArray[Any]:
        """Values of some items as the outputs should be; classes as they are."""
        wanted = np.asarray(self.items.target[rows])
        if self.items.task.kind == "regression":
            return np.asarray((wanted - self.centre) / self.spread)
        return wanted

    def target(self, rows: Rows, turn: Turn | None = None) -> Tensor:
        """What the outputs for some items should be."""
        wanted = torch.from_numpy(self.scaled(rows))
        if self.items.task.kind == "regression":
            return wanted.float()
        if not self.items.task.dense:
            return wanted.long()
        # Continued as the images are, so that both stay in place when they are turned.
        down, right = self.cover[0] - wanted.shape[-2], self.cover[1] - wanted.shape[-1]
        wide = F.pad(wanted.long(), (0, right, 0, down), value=UNLABELLED)
        return wide if turn is None else turn(wide)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy over items or labelled pixels, or mean squared error."""
        if self.items.task.kind == "regression":
            return F.mse_loss(outputs[:, 0], target)
        if self.items.task.dense:
            outputs = F.interpolate(outputs, self.cover, mode="bilinear", align_corners=False)
            lost = F.cross_entropy(outputs, target, ignore_index=UNLABELLED, reduction="sum")
            return lost / (target != UNLABELLED).sum().clamp(min=1)
        return F.cross_entropy(outputs, target)

    def probed(self, outputs: NDArray[np.float64], test: Rows, rate: float, edge: bool) -> Probed:
        """A model's outputs for the test items, as a probe gives them."""
        task = self.items.task
        finite(outputs, task)
        if task.dense:
            cells = np.moveaxis(outputs, 1, -1)
            grid = Grid(np.empty((0, *cells.shape[1:3], 0), np.float32), *self.cover)
            return answered(cells, grid, self.items, test, rate, edge)
        if task.kind == "regression":
            values = outputs[:, 0] * self.spread + self.centre
            return Probed(values, np.empty((len(test), 0)), rate, edge)
        return Probed(outputs.argmax(axis=1).astype(np.float64), outputs, rate, edge)


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the eight ways to lay a square image, for a whole batch."""

    quarters: int
    mirrored: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator, x: Tensor) -> Turn:
        """At random among those after which images (b, c, h, w) have the same shape."""
        square = x.shape[-1] == x.shape[-2]
        quarters = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
        return cls(quarters, bool(rng.integers(2)))

    def __call__(self, x: Tensor) -> Tensor:
        turned = torch.rot90(x, self.quarters, dims=(-2, -1))
        return turned.flip(-1) if self.mirrored else turned


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model is trained on, whatever its learning rate."""

    inputs: Callable[[Rows], Tensor]  # what it sees of some items
    answers: Answers
    fold: Fold
    seed: int  # of initial layers, the order of items, and how they lie
    device: str
    epochs: int  # passes over all items, unless these make fewer than LEAST_STEPS steps
    rates: tuple[float, float]  # log10 of the learning rates first tried, in half steps
    augment: bool = False  # whether images are mirrored and turned


class Training:
    """A model that is fitted in place.

    Args:
        model: on the lesson's device.
        lesson: what it is trained on.
        groups: its parameters, with the peaks of their learning rates as ``lr``.
    """

    def __init__(self, model: nn.Module, lesson: Lesson, groups: list[dict[str, Any]]) -> None:
        self.model, self.lesson = model, lesson
        self.step, self.steps = 0, steps(len(lesson.fold[0]), lesson.epochs)
        self._peaks = [group["lr"] for group in groups]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        self._rng = np.random.default_rng(lesson.seed)

    def run(self) -> None:
        """Take all steps."""
        self.model.train()
        for rows in islice(self.batches(), self.steps):
            self._take(rows)
            self.step += 1

    def batches(self) -> Iterator[Rows]:
        """Pass after pass over the training items, each in another order."""
        rows = self.lesson.fold[0]
        while True:
            yield from np.array_split(self._rng.permutation(rows), _batches(len(rows)))

    def _take(self, rows: Rows) -> None:
        warm = min(1.0, (self.step + 1) / max(1, self.steps // 10))
        factor = warm * (1 + math.cos(math.pi * self.step / self.steps)) / 2
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        x, turn = self.lesson.inputs(rows).to(self.lesson.device), None
        if self.lesson.augment:
            turn = Turn.drawn(self._rng, x)
            x = turn(x)
        target = self.lesson.answers.target(rows, turn).to(self.lesson.device)
        loss = self.lesson.answers.loss(self.model(x), target)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()

    @torch.inference_mode()
    def outputs(self, rows: Rows) -> Tensor:
        """What the model says about some items."""
        self.model.eval()
        parts = np.array_split(rows, math.ceil(len(rows) / BATCH))
        inputs, device = self.lesson.inputs, self.lesson.device
        return torch.cat([self.model(inputs(part).to(device)).float() for part in parts])

    def loss(self, rows: Rows) -> float:
        """Mean over some items, infinite where it is not a number."""
        total, answers = 0.0, self.lesson.answers
        for part in np.array_split(rows, math.ceil(len(rows) / BATCH)):
            target = answers.target(part).to(self.lesson.device)
            total += float(answers.loss(self.outputs(part), target)) * len(part)
        return total / len(rows) if math.isfinite(total) else math.inf


def steps(items: int, epochs: int) -> int:
    """How many steps a training takes."""
    return max(LEAST_STEPS, epochs * _batches(items))


def _batches(items: int) -> int:
    """How many batches a pass has: at least four, if there are as many items."""
    return max(math.ceil(items / BATCH), min(items, 4))


def fit_best(build: Callable[[], nn.Module], lesson: Lesson, groups: Groups = alike) -> Probed:
    """Train a model at each learning rate, and answer test items with the best by validation items."""
    _, val, test = lesson.fold

    def fits(exponents: Sequence[float]) -> list[tuple[NDArray[np.float64], float]]:
        return [fit(10.0**exponent) for exponent in exponents]

    def fit(rate: float) -> tuple[NDArray[np.float64], float]:
        torch.manual_seed(lesson.seed)
        model = build().to(lesson.device)
        training = Training(model, lesson, groups(model, rate))
        training.run()
        return training.outputs(test).cpu().numpy().astype(np.float64), training.loss(val)

    with torch.random.fork_rng():
        first, last = lesson.rates
        outputs, rate, edge = search(fits, lesson.rates, (first - STEP, last + STEP), STEP)
    return lesson.answers.probed(outputs, test, rate, edge)
