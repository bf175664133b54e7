"""Small synthetic worlds, and what tests measure of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gfmsum.config import SyntheticConfig
from gfmsum.data.plan import stream
from gfmsum.data.sample import Labelled, Samples
from gfmsum.data.surface import (
    MATERIALS,
    PLACES,
    Ground,
    Ids,
)
from gfmsum.data.synthetic import Synthetic, locations
from gfmsum.data.truths import TASKS

type Numbers = NDArray[Any]
type Views = dict[str, Numbers]

SMALL = SyntheticConfig(train=60, val=60, test=60, tasks="+".join(TASKS))


def some_places(name: str, count: int, world: int = 0) -> Ids:
    """The first locations of a random list; those of "pretraining", 3, 1 were a run's, once."""
    key = ("pretraining", 3, 1) if name == "pretraining" else (name,)
    return stream("synthetic", world, *key).bit_generator.random_raw(count) & PLACES


def rows_of(places: Ids, world: int = 0) -> Numbers:
    """The rows that show some locations: what swaps rows and places swaps them back."""
    return locations(world, places.astype(np.int64)).astype(np.int64)


def pixels(source: Synthetic, sensor: str, chosen: range, size: int = 32) -> Numbers:
    world = source.config.world
    rows = rows_of(some_places("pretraining", chosen.stop, world)[list(chosen)], world)
    return read(source, sensor, rows, size).pixels


def read(source: Synthetic, sensor: str, rows: Numbers, size: int = 16) -> Samples:
    (block,) = source.pretraining(sensor, size).blocks
    return block.read(rows)


def blocks(x: Numbers, side: int) -> Numbers:
    """Means over blocks of side x side pixels."""
    *lead, h, w = x.shape
    return x.reshape(*lead, h // side, side, w // side, side).mean((-3, -1))


def correlation(a: Numbers, b: Numbers) -> float:
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def plain_ground(n: int, material: str, size: int = 32, moisture: float = 0.5) -> Ground:
    cover = np.zeros((n, len(MATERIALS), size, size), np.float32)
    cover[:, MATERIALS.index(material)] = 1
    level = np.full((n, size, size), moisture, np.float32)
    return Ground(cover, level, np.full_like(level, 0.5), np.zeros((n, 2, size, size), np.float32))


def items_of(source: Synthetic, name: str, sensor: str, size: int = 32) -> Labelled:
    """The items of a task, by its name without the sensor's."""
    (task,) = (t for t in source.tasks(sensor) if t.name == f"{name}_{sensor}")
    return source.labelled(task, size)


def ground_of(*covers: dict[str, float]) -> Ground:
    """One location, whose pixels have these covers."""
    side = len(covers) ** 0.5
    assert side == int(side)
    ground = plain_ground(1, "soil", int(side))
    for i, shares in enumerate(covers):
        row = [shares.get(material, 0) for material in MATERIALS]
        ground.cover[0, :, *divmod(i, int(side))] = row
    return ground


def rings(x: Numbers) -> Numbers:
    """Log power in rings of spatial frequency, and how directed each ring is."""
    x = (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)
    power = np.abs(np.fft.fft2(x * np.hanning(32) * np.hanning(32)[:, None])) ** 2
    k = np.fft.fftfreq(32) * 32
    radius = np.hypot(k, k[:, None])
    parts = [power[:, :, (radius >= r) & (radius < r + 1)] for r in range(1, 15)]
    features = [np.log(p.mean(2)) for p in parts] + [np.log(p.max(2) / p.mean(2)) for p in parts]
    return np.concatenate(features, axis=1)


def fitted(model: Any, features: Numbers, items: Labelled) -> float:
    """The score on test items of a model fitted on training items."""
    train, _, test = items.folds[0]
    model = make_pipeline(StandardScaler(), model)
    model.fit(features[train], items.target[train])
    return model.score(features[test], items.target[test])
