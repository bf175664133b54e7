"""Linear probes of a run's frozen encoder on one sensor's tasks, in a process of its own."""

from __future__ import annotations

import pickle
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from results import Sink
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gfmsum.budget import Budget
from gfmsum.data.sample import Labelled
from gfmsum.data.synthetic import Synthetic
from gfmsum.pretrain import initialised
from gfmsum.probe.features import Cache, Encoded, Features
from gfmsum.probe.fit import probe
from gfmsum.records import Role
from gfmsum.zoo.floors import baselines


@dataclass(frozen=True, slots=True)
class Probed:
    """Whose encoder is probed, and on what."""

    arm: str  # a Role
    sees: str
    replicate: int
    weights: Path | None  # None for the random start
    sensor: str  # whose tasks
    items: Path  # see keep_items


def keep_items(source: Synthetic, sensor: str, size_px: int, path: Path) -> None:
    """Render a sensor's labelled items and leave them where other processes find them."""
    items = {task.name: source.labelled(task, size_px) for task in source.tasks(sensor)}
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        pickle.dump(items, file, protocol=5)
    draft.rename(path)


def score(sink: Sink, device: str, budget: Budget, one: Probed, threads: int) -> None:
    """Probe an encoder on all tasks of a sensor; one row each. A floor brings band statistics along."""
    torch.set_num_threads(threads)
    with one.items.open("rb") as file:
        items: dict[str, Labelled] = pickle.load(file)
    mae = initialised(budget, 0, one.replicate)
    if one.weights:
        mae.load_state_dict(torch.load(one.weights, weights_only=True))
    with threadpool_limits(threads):
        _score(sink, items, Encoded(mae.encoder, device, cache=Cache()), one)
        if one.arm == Role.FLOOR and not one.replicate:
            for name, features in baselines().items():
                _score(sink, items, features, one, name)


def _score(
    sink: Sink, items: dict[str, Labelled], features: Features, one: Probed, arm: str = ""
) -> None:
    # Those that need all tokens first: others on the same images have the mean of these.
    for task in sorted(items.values(), key=lambda labelled: not labelled.task.dense):
        began = time.perf_counter()
        found, _ = probe(features, task)
        row = asdict(found) | {"arm": arm or one.arm, "replicate": one.replicate}
        row |= {"sees": "" if arm else one.sees, "seconds": time.perf_counter() - began}
        del row["run"]
        sink.add("scores", row)
