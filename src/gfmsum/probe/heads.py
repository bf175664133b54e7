"""Probes that are trained by gradient descent: attentive pooling, convolutions, and the encoder itself.

All of them have one protocol for every encoder: AdamW, batches of BATCH, EPOCHS passes, a cosine after a
tenth of warm-up, and the learning rate from a grid by the validation loss at the end. Nothing is stopped early.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from gfmsum.data.modules import Statistics
from gfmsum.data.sample import UNLABELLED, Labelled, Rows
from gfmsum.model.encoder import Encoder
from gfmsum.probe.dense import answered, cells_of
from gfmsum.probe.features import Encoded, Features, Grid, on_grid, trunk_of, whole_patches
from gfmsum.probe.fit import Array, Fold, Probed, finite, search

EPOCHS, BATCH = 30, 32
WEIGHT_DECAY = 0.05
RATES = (-3.5, -2.5)  # log10 of the learning rates first tried, in half steps
RATE_LIMITS = (-5.0, -1.0)
TUNE_EPOCHS = 20
TUNE_SHARE = 0.1  # the encoder's last block's learning rate, in those of the head
TUNE_DECAY = 0.75  # from block to block, towards the input
HIDDEN = 128  # channels of the convolutions


class Attention(nn.Module):
    """One learned query looks at all tokens: float (b, n, d) to float (b, outputs)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        heads = max(h for h in (8, 4, 2, 1) if width % h == 0)
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, tokens, tokens, need_weights=False)
        out: Tensor = self.head(self.norm(pooled[:, 0]))
        return out


class Layers(nn.Module):
    """Three convolutions on tokens: float (b, rows, columns, d) to float (b, classes, rows, columns)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, HIDDEN, 1),
            nn.GELU(),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(HIDDEN, classes, 1),
        )

    def forward(self, cells: Tensor) -> Tensor:
        out: Tensor = self.layers(rearrange(cells, "b i j d -> b d i j"))
        return out


class Tuned(nn.Module):
    """An encoder with a head, for images or pairs of them: float (b, dates * c, h, w)."""

    def __init__(self, encoder: Any, head: nn.Module, items: Labelled) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.kind, self.dense = items.samples.kind, items.task.dense
        self.dates = 1 if items.before is None else 2

    def forward(self, x: Tensor) -> Tensor:
        dates = x.chunk(self.dates, dim=1)
        if not self.dense:
            out: Tensor = self.head(self.encoder.embed(x, self.kind.bands, self.kind.gsd_m))
            return out
        tokens = self.encoder.forward_features(torch.cat(dates), self.kind.bands, self.kind.gsd_m)
        later, *before = on_grid(tokens, x).chunk(self.dates)
        if before:
            later = torch.cat([(later - before[0]).abs(), later, before[0]], dim=-1)
        found: Tensor = self.head(later)
        return found


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

    @property
    def width(self) -> int:
        """Of the outputs."""
        return max(1, len(self.items.task.classes))

    def target(self, rows: Rows, turn: Turn | None = None) -> Tensor:
        """What the outputs for some items should be."""
        wanted = torch.from_numpy(np.asarray(self.items.target[rows]))
        if self.items.task.kind == "regression":
            return (wanted.float() - self.centre) / self.spread
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


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the eight ways to lay a square image, for a whole batch."""

    quarters: int
    mirrored: bool

    def __call__(self, x: Tensor) -> Tensor:
        turned = torch.rot90(x, self.quarters, dims=(-2, -1))
        return turned.flip(-1) if self.mirrored else turned


def attentive(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """A learned query on frozen patch tokens."""
    cells = _standard(features.grid(items.samples, fold[0]).cells, items, fold[0])
    tokens = cells.flatten(1, 2)
    answers = Answers.of(items, fold[0])
    return _searched(
        lambda: Attention(tokens.shape[-1], answers.width),
        lambda rows: tokens[torch.from_numpy(rows)],
        answers, fold, seed, _device(features),
    )  # fmt: skip


def layers(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """Convolutions on frozen patch tokens."""
    grid = cells_of(features, items, fold[0])
    cells = _standard(grid.cells, items, fold[0])
    answers = Answers.of(items, fold[0], (grid.h_px, grid.w_px))
    return _searched(
        lambda: Layers(cells.shape[-1], answers.width),
        lambda rows: cells[torch.from_numpy(rows)],
        answers, fold, seed, _device(features),
    )  # fmt: skip


def finetune(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """The whole encoder: its last block at a tenth of the head's learning rate, earlier ones at less.

    Images are mirrored and turned at random. The head is linear on the mean token, or convolutions on tokens.

    Raises:
        ValueError: for features that no encoder stands behind.
    """
    if not isinstance(features, Encoded):
        raise ValueError("finetune needs an encoder; band statistics have nothing to tune")
    train = fold[0]
    patch_px = features.encoder.patch_px if isinstance(features.encoder, Encoder) else 1
    dates = [items.samples] + ([] if items.before is None else [items.before])
    pixels = torch.cat(
        [
            whole_patches(
                torch.from_numpy(Statistics.of(s.pixels[train]).normalise(s.pixels)), patch_px
            )
            for s in dates
        ],
        dim=1,
    )
    answers = Answers.of(items, train, (pixels.shape[-2], pixels.shape[-1]))
    with torch.no_grad():
        sample = Tuned(features.encoder, nn.Identity(), items).eval()
        width = sample(pixels[:1].to(features.device)).shape[-1]

    def build() -> nn.Module:
        head = Layers(width, answers.width) if items.task.dense else nn.Linear(width, answers.width)
        return Tuned(copy.deepcopy(features.encoder), head, items)

    return _searched(
        build, lambda rows: pixels[torch.from_numpy(rows)], answers, fold, seed, features.device,
        epochs=TUNE_EPOCHS, augment=True,
    )  # fmt: skip


def _standard(cells: NDArray[np.float32], items: Labelled, train: Rows) -> Tensor:
    finite(cells, items.task)
    shown = cells[train].reshape(-1, cells.shape[-1])
    centre, spread = shown.mean(axis=0, dtype=np.float64), shown.std(axis=0, dtype=np.float64)
    scaled = (cells - centre) / np.where(spread > 1e-12, spread, 1.0)
    return torch.from_numpy(scaled.astype(np.float32))


def _device(features: Features) -> str:
    return features.device if isinstance(features, Encoded) else "cpu"


def _searched(
    build: Callable[[], nn.Module],
    inputs: Callable[[Rows], Tensor],
    answers: Answers,
    fold: Fold,
    seed: int,
    device: str,
    epochs: int = EPOCHS,
    augment: bool = False,
) -> Probed:
    """Train one model for each learning rate, and answer with the best on validation items."""
    _, val, test = fold
    task = answers.items.task

    def fits(exponents: Sequence[float]) -> list[tuple[Array, float]]:
        return [fit(10.0**exponent) for exponent in exponents]

    def fit(rate: float) -> tuple[Array, float]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build().to(device)
            _train(model, inputs, answers, fold[0], seed, rate, epochs, augment, device)
        model.eval()
        with torch.inference_mode():
            total = sum(
                float(answers.loss(model(inputs(rows).to(device)), answers.target(rows).to(device)))
                * len(rows)
                for rows in _batches(val)
            )
            found = [
                model(inputs(rows).to(device)).float().cpu().numpy() for rows in _batches(test)
            ]
        loss = total / len(val)
        return np.concatenate(found).astype(np.float64), loss if math.isfinite(loss) else math.inf

    outputs, rate, edge = search(fits, RATES, RATE_LIMITS, 0.5)
    finite(outputs, task)
    if task.dense:
        cells = np.moveaxis(outputs, 1, -1)
        grid = Grid(np.empty((0, *cells.shape[1:3], 0), np.float32), *answers.cover)
        return answered(cells, grid, answers.items, test, rate, edge)
    if task.kind == "regression":
        values = outputs[:, 0] * answers.spread + answers.centre
        return Probed(values, np.empty((len(test), 0)), rate, edge)
    return Probed(outputs.argmax(axis=1).astype(np.float64), outputs, rate, edge)


def _train(
    model: nn.Module,
    inputs: Callable[[Rows], Tensor],
    answers: Answers,
    train: Rows,
    seed: int,
    rate: float,
    epochs: int,
    augment: bool,
    device: str,
) -> None:
    """Fit a model in place."""
    rng = np.random.default_rng(seed)
    groups = _groups(model, rate)
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    total, step = epochs * math.ceil(len(train) / BATCH), 0
    model.train()
    for _ in range(epochs):
        for rows in _batches(rng.permutation(train)):
            share = step / total
            factor = (
                min(1.0, (step + 1) / max(1, total // 10)) * (1 + math.cos(math.pi * share)) / 2
            )
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            x, turn = inputs(rows).to(device), None
            if augment:
                # Only a square looks the same way round after a quarter turn.
                quarters = (
                    int(rng.integers(4)) if x.shape[-1] == x.shape[-2] else 2 * int(rng.integers(2))
                )
                turn = Turn(quarters, bool(rng.integers(2)))
                x = turn(x)
            loss = answers.loss(model(x), answers.target(rows, turn).to(device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1


def _groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Parameters with their learning rates: of an encoder, the less the nearer to its input."""
    if not isinstance(model, Tuned):
        return [{"params": list(model.parameters()), "lr": rate}]
    encoder: nn.Module = model.encoder
    try:
        trunk = trunk_of(encoder)
    except ValueError:  # a convolutional network: one rate for all of it
        trunk = []
    place = {id(p): i + 1 for i, block in enumerate(trunk) for p in block.parameters()}
    # Only the norm beside the blocks comes after them: what makes the tokens may have one too.
    first = next((name for name, m in encoder.named_modules() if trunk and m is trunk[0]), "")
    beside = first.removesuffix("blocks.0") + "norm."
    last = [p for name, p in encoder.named_parameters() if name.startswith(beside)]
    place = {id(p): len(trunk) for p in last if id(p) not in place} | place
    found = [
        {
            "params": [p],
            "lr": rate * TUNE_SHARE * TUNE_DECAY ** (len(trunk) - place.get(id(p), 0)),
        }
        for p in encoder.parameters()
        if p.requires_grad
    ]
    return [*found, {"params": list(model.head.parameters()), "lr": rate}]


def _batches(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]
