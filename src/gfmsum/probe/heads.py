"""Probes that are trained by gradient descent: attentive pooling, convolutions, and the encoder itself.

All of them have one protocol for every encoder, that of :mod:`gfmsum.probe.training`. Each head starts as the
linear probe of the same tokens, its strength chosen on validation items; other layers stand beside it and
answer zero at first. So no step is spent on what has a solution, and tuning does not bend an encoder to a head
that knows nothing yet (Kumar et al. 2022). No patch is left out to save time: not every encoder can bear it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from gfmsum.data.modules import Statistics
from gfmsum.data.sample import Labelled, Rows
from gfmsum.model.encoder import Encoder
from gfmsum.probe.dense import TRAIN_PIXELS, VAL_PIXELS, cells_of, draw, interpolated
from gfmsum.probe.features import Encoded, Features, Grid, on_grid, trunk_of, whole_patches
from gfmsum.probe.fit import Fold, Line, Probed, finite, fit_line
from gfmsum.probe.training import Answers, Lesson, fit_best

EPOCHS, RATES = 12, (-3.0, -2.0)
TUNE_EPOCHS, TUNE_RATES = 8, (-4.0, -3.0)
TUNE_DECAY = 0.75  # of learning rates, from block to block, towards the input
HIDDEN = 128  # channels of the convolutions


class Attention(nn.Module):
    """One learned query looks at all tokens: float (b, n, d) to float (b, outputs).

    What it adds to the linear map of their mean is zero at first. A query that is the same for all images
    needs no keys of its own: its product with each head's key map is one vector.
    """

    def __init__(self, start: nn.Linear) -> None:
        super().__init__()
        width = start.in_features
        heads = max(h for h in (8, 4, 2, 1) if width % h == 0)
        self.start = copy.deepcopy(start)
        self.look = nn.Linear(width, heads, bias=False)
        self.values = nn.Parameter(torch.randn(heads, width, width // heads) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.head = _silent(nn.Linear(width, start.out_features))

    def forward(self, tokens: Tensor) -> Tensor:
        shares = self.look(tokens).softmax(dim=1)
        seen = shares.mT @ tokens
        pooled = torch.einsum("bhd,hdk->bhk", seen, self.values).flatten(1)
        out: Tensor = self.start(tokens.mean(dim=1)) + self.head(self.norm(pooled))
        return out


class Layers(nn.Module):
    """Three convolutions on tokens: float (b, rows, columns, d) to float (b, classes, rows, columns).

    What they add to the linear map of tokens is zero at first.
    """

    def __init__(self, start: nn.Linear) -> None:
        super().__init__()
        self.start = copy.deepcopy(start)
        self.layers = nn.Sequential(
            nn.Conv2d(start.in_features, HIDDEN, 1),
            nn.GELU(),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            nn.GELU(),
            _silent(nn.Conv2d(HIDDEN, start.out_features, 1)),
        )

    def forward(self, cells: Tensor) -> Tensor:
        known = rearrange(self.start(cells), "b i j k -> b k i j")
        out: Tensor = known + self.layers(rearrange(cells, "b i j d -> b d i j"))
        return out


def _silent[Layer: nn.Linear | nn.Conv2d](layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Scale(nn.Module):
    """Brings features to zero mean and unit variance over those that an encoder gave before it was tuned."""

    centre: Tensor
    spread: Tensor

    def __init__(self, shown: NDArray[np.floating]) -> None:
        super().__init__()
        rows = shown.reshape(-1, shown.shape[-1])
        spread = rows.std(axis=0, dtype=np.float64)
        for name, value in (
            ("centre", rows.mean(axis=0, dtype=np.float64)),
            ("spread", np.where(spread > 1e-12, spread, 1.0)),
        ):
            self.register_buffer(name, torch.from_numpy(value.astype(np.float32)))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.centre) / self.spread


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


def attentive(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """A learned query on frozen patch tokens."""
    images = items.images_of(fold[0])
    cells = features.grid(items.samples, images).cells
    finite(cells, items.task)
    tokens = Scale(cells[images])(torch.from_numpy(cells)).flatten(1, 2)
    answers = Answers.of(items, fold[0])
    start = _solved(tokens.mean(dim=1).numpy(), answers, fold)
    lesson = Lesson(_rows_of(tokens), answers, fold, seed, _device(features), EPOCHS, RATES)
    return fit_best(lambda: Attention(start), lesson)


def layers(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """Convolutions on frozen patch tokens."""
    images = items.images_of(fold[0])
    grid = cells_of(features, items, images)
    cells = Scale(grid.cells[images])(torch.from_numpy(grid.cells))
    answers = Answers.of(items, fold[0], (grid.h_px, grid.w_px))
    start = _dense_solved(replace(grid, cells=cells.numpy()), answers, fold, seed)
    lesson = Lesson(_rows_of(cells), answers, fold, seed, _device(features), EPOCHS, RATES)
    return fit_best(lambda: Layers(start), lesson)


def finetune(features: Features, items: Labelled, fold: Fold, seed: int) -> Probed:
    """The whole encoder: its last block at the head's learning rate, earlier ones at less.

    Images are mirrored and turned at random. The head is linear on the mean token, or convolutions on tokens.

    Raises:
        ValueError: for features that no encoder stands behind.
    """
    if not isinstance(features, Encoded):
        raise ValueError("finetune needs an encoder; band statistics have nothing to tune")
    images = items.images_of(fold[0])
    patch_px = features.encoder.patch_px if isinstance(features.encoder, Encoder) else 1
    dates = [items.samples] + ([] if items.before is None else [items.before])
    pixels = torch.cat(
        [
            whole_patches(
                torch.from_numpy(Statistics.of(s.pixels[images]).normalise(s.pixels)), patch_px
            )
            for s in dates
        ],
        dim=1,
    )
    answers = Answers.of(items, fold[0], (pixels.shape[-2], pixels.shape[-1]))
    head = _head(features, answers, fold, seed)
    lesson = Lesson(
        _rows_of(pixels),
        answers,
        fold,
        seed,
        features.device,
        TUNE_EPOCHS,
        TUNE_RATES,
        augment=True,
    )
    return fit_best(lambda: Tuned(copy.deepcopy(features.encoder), head(), items), lesson, _groups)


def _head(features: Encoded, answers: Answers, fold: Fold, seed: int) -> Callable[[], nn.Module]:
    """Makes heads that start as the linear probe of what the encoder gives before it is tuned."""
    items, images = answers.items, answers.items.images_of(fold[0])
    # What is tuned is what the encoder gives in the end, whatever blocks other probes see.
    if features.blocks != 1:
        features = Encoded(features.encoder, features.device, features.batch)
    if items.task.dense:
        grid = cells_of(features, items, images)
        scale = Scale(grid.cells[images])
        cells = scale(torch.from_numpy(grid.cells)).numpy()
        start = _dense_solved(replace(grid, cells=cells), answers, fold, seed)
        return lambda: nn.Sequential(copy.deepcopy(scale), Layers(start))
    rows = features.pooled(items.samples, images)
    finite(rows, items.task)
    scale = Scale(rows[images])
    start = _solved(scale(torch.from_numpy(rows.astype(np.float32))).numpy(), answers, fold)
    return lambda: nn.Sequential(copy.deepcopy(scale), copy.deepcopy(start))


def _solved(features: NDArray[np.floating], answers: Answers, fold: Fold) -> nn.Linear:
    """The linear probe of features (n, k) as a layer."""
    train, val, _ = fold
    parts = ([features[train]], [features[val]])
    target = answers.scaled(train), answers.scaled(val)
    return _layer(fit_line(parts, target, answers.items.task))


def _dense_solved(grid: Grid, answers: Answers, fold: Fold, seed: int) -> nn.Linear:
    """The dense linear probe of cells as a layer."""
    target, task = answers.items.target, answers.items.task
    train, val = draw(target, fold[0], TRAIN_PIXELS, seed), draw(target, fold[1], VAL_PIXELS, seed)
    if len(np.unique(target[train])) < 2:
        raise ValueError(f"task {task.name}: training pixels hold one class; add items of another")
    parts = ([interpolated(grid, *train)], [interpolated(grid, *val)])
    return _layer(fit_line(parts, (target[train], target[val]), task))


def _layer(line: Line) -> nn.Linear:
    (weight,) = line.weights
    with torch.random.fork_rng(), torch.no_grad():  # which a new layer would draw from
        layer = nn.Linear(*weight.shape)
        layer.weight.copy_(torch.from_numpy(weight.T))
        layer.bias.copy_(torch.from_numpy(line.bias))
    return layer


def _rows_of(stack: Tensor) -> Callable[[Rows], Tensor]:
    return lambda rows: stack[torch.from_numpy(rows)]


def _device(features: Features) -> str:
    return features.device if isinstance(features, Encoded) else "cpu"


def _groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Parameters with their learning rates: of an encoder, the less the nearer to its input."""
    assert isinstance(model, Tuned)
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
    # A group for each rate, not for each parameter: one pass of the optimiser takes a group.
    found: dict[float, list[nn.Parameter]] = {}
    for p in encoder.parameters():
        if p.requires_grad:
            depth = len(trunk) - place.get(id(p), 0)
            found.setdefault(rate * TUNE_DECAY**depth, []).append(p)
    inside = [{"params": group, "lr": lr} for lr, group in found.items()]
    return [*inside, {"params": list(model.head.parameters()), "lr": rate}]
