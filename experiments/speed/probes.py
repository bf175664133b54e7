"""How fast probes are: beside scikit-learn, beside encoding anew in every epoch, beside a pretraining.

    uv run python experiments/speed/probes.py [threads=1] [rounds=3] [sensor=s1] [parts=1+2+3+4]

In one process, interleaved, medians. First the linear probe, over its whole grid of strengths, beside
scikit-learn's LogisticRegressionCV on the same grid and criterion at its default tolerance: with the same
single split, and with five folds. scikit-learn is handed standardised features and fits anew on training and
validation items together, so that each is judged on the items that its answer was fitted on, at the strength
that it chose: by how far its objective lies above one solved to 1e-9. Then a frozen encoder with a linear head
that is trained by AdamW and encodes its images in every epoch, without augmentation, for the epochs and
validations of two published benchmarks: at one learning rate, which they are given, and at as many as we try
strengths.
Then all probes of one run, as a job carries them out, beside its pretraining, without the cost of its trainer;
attentive probes of its tasks of whole images together with the linear ones; and one task's fine-tuning. Seconds
of the last two are a processor's, so that others on the machine weigh less.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

from gfmsum.words import read_words

_, WORDS = read_words(sys.argv[1:], ("threads", "rounds", "sensor", "parts"))
THREADS, ROUNDS = int(WORDS.get("threads", 1)), int(WORDS.get("rounds", 3))
# Before NumPy is imported, which asks once.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import PredefinedSplit

from gfmsum.budget import BUDGETS
from gfmsum.config import SyntheticConfig
from gfmsum.data.modules import SensorDataModule, Statistics
from gfmsum.data.sample import Labelled, Rows
from gfmsum.data.synthetic import Synthetic
from gfmsum.pretrain import Pretraining, initialised
from gfmsum.probe.features import Array, Encoded
from gfmsum.probe.fit import GRID, Fold, linear, probe, scale_of
from gfmsum.probe.solve import Axes, logistic
from gfmsum.records import Task

BUDGET, SENSOR = BUDGETS["tiny"], WORDS.get("sensor", "s1")
SIDE = BUDGET.model.image_px
EPOCHS = 50  # of a linear head on images, in both
VALIDATED = {
    "Copernicus-Bench": 1,
    "PANGAEA": 5,
}  # after every how many epochs, in their configurations
STRENGTHS = 10.0 ** np.arange(GRID[0], GRID[1] + 0.5)
BATCH = 64  # images that both ways of encoding take at a time
MEASURED_SAMPLES = 320  # of a pretraining, whole batches of 20 or 40


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    source = Synthetic(SyntheticConfig())
    (landuse,) = (task for task in source.tasks(SENSOR) if task.name == f"landuse_{SENSOR}")
    items = source.labelled(landuse, SIDE)
    print(f"{THREADS} threads, medians of {ROUNDS} rounds")

    for number, (title, part) in PARTS.items():
        if number in WORDS.get("parts", "1+2+3+4").split("+"):
            print(f"\n{number}. {title}")
            part(items)


def linear_probe(items: Labelled) -> None:
    """Beside scikit-learn."""
    fold, landuse = items.folds[0], items.task
    compare(landuse.name, encoder().pooled(items.samples, fold[0]), items.target, fold, landuse)
    for width in (384, 768):
        x, labels = draws(width)
        part = np.split(np.arange(len(x)), [1200, 1600])
        task = Task("drawn", SENSOR, "classification", "accuracy", 0.1, 1.0, tuple("0123456789"))
        compare(f"drawn, width {width}", x, labels, (part[0], part[1], part[2]), task)


def encoding(items: Labelled) -> None:
    """Once, beside in every epoch."""
    passes = encoded_anew(items)
    found = {name: seconds for name, (seconds, _) in interleaved(passes).items()}
    single = found.pop("once")
    print(f"encode all items once, fit all {len(STRENGTHS)} strengths: {single:.2f} s")
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items()))
    for name, every in VALIDATED.items():
        whole = EPOCHS * (found["epoch"] + found["validation"] / every) + found["test"]
        print(
            f"{name}, {EPOCHS} epochs, validated after every {every}: {whole:.1f} s at one rate, "
            f"{whole / single:.1f} x ours; {len(STRENGTHS) * whole / single:.0f} x at {len(STRENGTHS)} rates"
        )


def whole_run(_: Labelled) -> None:
    """All probes beside the pretraining."""
    rounds = [(all_probes(), pretraining(time.perf_counter)) for _ in range(ROUNDS)]
    spent = {name: statistics.median(each[name] for each, _ in rounds) for name in rounds[0][0]}
    trained = statistics.median(seconds for _, seconds in rounds)
    print(
        f"pretraining: {trained:.1f} s (rendering and steps of {MEASURED_SAMPLES} samples measured; "
        f"multiplied to {BUDGET.unique:,} rendered and {BUDGET.seen:,} seen)"
    )
    probes = sum(spent.values())
    for name, seconds in [
        *spent.items(),
        ("all", probes),
        ("all but render", probes - spent["render"]),
    ]:
        print(f"{name:<22}{seconds:>8.2f} s{seconds / trained:>8.1%} of the pretraining")


def descents(items: Labelled) -> None:
    """Attentive probes with the linear ones, and fine-tuning, beside the pretraining."""
    source = Synthetic(SyntheticConfig())
    whole = [source.labelled(task, SIDE) for task in source.tasks(SENSOR) if not task.dense]

    def attentive() -> dict[str, float]:
        features = encoder()
        features.grid(whole[0].samples, whole[0].folds[0][0])  # once for all of them
        for how in ("linear", "attentive"):
            for each in whole:
                scores[f"{how} {each.task.name}"] = probe(features, each, how)[0].value
        return scores

    def tuned() -> dict[str, float]:
        scores[f"finetune {items.task.name}"] = probe(encoder(), items, "finetune")[0].value
        return scores

    scores: dict[str, float] = {}
    ways: dict[str, Callable[[], object]] = {
        f"linear and attentive, {len(whole)} tasks": attentive,
        f"finetune, {len(items.folds[0][0])} items": tuned,
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, go in ways.items():
            before = pretraining(time.process_time)
            began = time.process_time()
            go()
            spent = time.process_time() - began
            # The mean of before and after, so that a drift of the machine's cancels.
            ratios[name].append(2 * spent / (before + pretraining(time.process_time)))
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} of the pretraining's time")
    print(", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


def interleaved(timed: Mapping[str, Callable[[], Any]]) -> dict[str, tuple[float, Any]]:
    """Median seconds of each, and what it returns."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    last: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, go in timed.items():
            began = time.perf_counter()
            last[name] = go()
            times[name].append(time.perf_counter() - began)
    return {name: (statistics.median(found), last[name]) for name, found in times.items()}


def encoder() -> Encoded:
    """Features of an untrained tiny model, nothing computed yet."""
    return Encoded(initialised(BUDGET, 0, 0).encoder, batch=BATCH)


# The linear probe beside scikit-learn.


def draws(width: int, items: int = 2000, classes: int = 10) -> tuple[Array, Rows]:
    """Features whose principal axes fall off as those of encoders do, and noisy labels."""
    rng = np.random.default_rng(width)
    spectrum = 1 / np.arange(1, width + 1)
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]  # or standardising would undo it
    z = rng.standard_normal((items, width))
    logits = (z * spectrum**0.5) @ rng.standard_normal((width, classes))
    return (z * spectrum) @ axes.T, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def compare(name: str, features: Array, labels: Rows, fold: Fold, task: Task) -> None:
    """Three ways to choose a strength and fit: seconds, and how well each has converged."""
    train, val, _ = fold
    both = np.concatenate([train, val])
    centre, unit = scale_of(features[train])
    x = (features - centre) / unit
    single = PredefinedSplit(np.where(np.arange(len(both)) < len(train), -1, 0))

    def peer(folds: PredefinedSplit | int) -> LogisticRegressionCV:
        search = LogisticRegressionCV(
            Cs=STRENGTHS, cv=folds, scoring="neg_log_loss", max_iter=100_000
        )
        return search.fit(x[both], labels[both])

    found = interleaved(
        {
            "ours": lambda: linear(features, labels, fold, task),
            "scikit-learn, one split": lambda: peer(single),
            "scikit-learn, cv=5": lambda: peer(5),
        }
    )
    print(
        f"{name}: {x.shape[1]} features of condition {np.linalg.cond(x[train]):.0e}, "
        f"{len(train)} + {len(val)} items"
    )
    for way, (seconds, model) in found.items():
        if way == "ours":  # the chosen strength, solved together with all others
            rows, strength = train, model.strength
            (fit,) = logistic([Axes.of(x[rows])], labels[rows], [strength, *STRENGTHS])
            weight, bias = fit.weight[0], fit.bias[0]
        else:
            rows, strength = both, float(np.ravel(model.C_)[0])
            weight, bias = model.coef_.T, model.intercept_
        print(
            f"  {way:<25}{seconds:>8.3f} s{seconds / found['ours'][0]:>7.1f} x ours   C = {strength:<7g}"
            f"objective {excess(x[rows], labels[rows], strength, weight, bias):.1e} above the solution's"
        )


def excess(x: Array, labels: Rows, strength: float, weight: Array, bias: Array) -> float:
    """By what share an objective lies above that of a tightly converged solution."""
    tight = LogisticRegression(C=strength, solver="newton-cg", tol=1e-9, max_iter=100_000)
    tight.fit(x, labels)

    def objective(w: Array, b: Array) -> float:
        chances = log_softmax(x @ w + b, axis=1)[np.arange(len(x)), labels]
        return float(0.5 * (w**2).sum() - strength * chances.sum())

    return objective(weight, bias) / objective(tight.coef_.T, tight.intercept_) - 1.0


# Encoding once, beside encoding in every epoch.


def encoded_anew(items: Labelled) -> dict[str, Callable[[], None]]:
    """What is timed: all at once; an epoch, a validation and a test of a linear head on a frozen encoder."""
    ((train, val, test),) = items.folds
    pixels, kind, frozen = items.samples.pixels, items.samples.kind, encoder().encoder
    known, labels = Statistics.of(pixels[train]), torch.from_numpy(items.target)
    head = torch.nn.Linear(BUDGET.model.width, len(items.task.classes))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

    def seen(rows: Rows) -> torch.Tensor:
        x = torch.from_numpy(known.normalise(pixels[rows]))
        with torch.inference_mode():
            vectors = frozen.embed(x, kind.bands, kind.gsd_m)
        return vectors.clone()

    def batches(rows: Rows) -> list[Rows]:
        return np.split(rows, range(BATCH, len(rows), BATCH))

    def epoch() -> None:
        for rows in batches(np.random.default_rng(0).permutation(train)):
            loss = torch.nn.functional.cross_entropy(head(seen(rows)), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    def answer(part: Rows) -> None:
        for rows in batches(part):
            head(seen(rows)).argmax(dim=1)

    def once() -> None:
        fold = items.folds[0]
        linear(encoder().pooled(items.samples, train), items.target, fold, items.task)

    return {
        "once": once,
        "epoch": epoch,
        "validation": lambda: answer(val),
        "test": lambda: answer(test),
    }


# All probes beside a pretraining.


def all_probes() -> dict[str, float]:
    """Seconds of rendering the tasks' items, of encoding them, and of each task's fit."""
    source, features = Synthetic(SyntheticConfig()), encoder()
    spent = {"render": 0.0, "encode": 0.0}
    for task in sorted(source.tasks(SENSOR), key=lambda task: not task.dense):
        ticks = [time.perf_counter()]
        items = source.labelled(task, SIDE)
        ticks.append(time.perf_counter())
        if task.dense:  # what others on the same images take from memory
            for samples in (items.samples, items.before):
                if samples is not None:
                    features.grid(samples, items.folds[0][0])
        ticks.append(time.perf_counter())
        probe(features, items)
        ticks.append(time.perf_counter())
        render, encode, spent[f"fit {task.name}"] = np.diff(ticks).tolist()
        spent["render"] += render
        spent["encode"] += encode
    return spent


def pretraining(clock: Callable[[], float]) -> float:
    """Seconds of the solo run, from a few steps of it."""
    module = Pretraining(initialised(BUDGET, 0, 0), BUDGET)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    began = clock()
    data = SensorDataModule(
        Synthetic(SyntheticConfig()), SENSOR, unique=MEASURED_SAMPLES,
        seen=MEASURED_SAMPLES + BUDGET.batch, batch=BUDGET.batch, image_px=SIDE,
    )  # fmt: skip
    data.setup()  # which renders them
    render = (clock() - began) / MEASURED_SAMPLES
    for batch in data.train_dataloader():
        loss = module.training_step(batch, batch.step)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        module.on_before_optimizer_step(optimizer)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if batch.step == 0:  # the first counts FLOPs, once for all runs
            began = clock()
    step = (clock() - began) / MEASURED_SAMPLES
    return render * BUDGET.unique + step * BUDGET.seen


PARTS: dict[str, tuple[str, Callable[[Labelled], None]]] = {
    "1": ("The linear probe, whole grid of strengths", linear_probe),
    "2": ("Encoding once, beside encoding in every epoch (land use, tiny model)", encoding),
    "3": (
        f"All probes of one run on {SENSOR}, beside its pretraining (solo arm, tiny budget)",
        whole_run,
    ),
    "4": ("Probes by gradient descent, beside the same pretraining", descents),
}


if __name__ == "__main__":
    main()
