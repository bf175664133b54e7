"""Does the verdict do what it says, on studies whose truth is known?

    uv run python experiments/controls/simulated.py [studies per cell, default 2000]

Simulates the scores of whole studies, judges them as any other, and counts, in percent:

  covered          intervals at 95 % that hold the true substitution Δ, over five targets without any effect
  Ψ* covered       the same for the mean of the five Δ
  places alone     the same for a bootstrap over test places, which takes the runs at hand for all there are
  rliable          the same for rliable's bootstrap over runs, on the first 200 studies, if it is installed:
                   uv run --with rliable --with "pandas<3" python experiments/controls/simulated.py
  false claims     studies in which any of the five targets is called more or less (family-wise error)
  equal            targets without effect that are called equal
  false equal      targets whose Δ is the margin that are called equal
  power            single targets, called more, whose Δ is what planning says is found in 80 %

Utility of replicate r of arm a on item i of place g: a mean, plus A[a, r] of the run, C[a, g] of the place
(shared by all runs), I[a, r, g] of both, and noise of the item. Half of the variance of a mix run is common
to all targets, as they are probed on the same weights. Writes simulated.csv beside this file.
"""

from __future__ import annotations

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from gfmsum.data.plan import stream
from gfmsum.plan import Spread
from gfmsum.verdict import CONTRASTS, Design, Kind, judge
from gfmsum.verdict.panel import judge_all

try:
    from rliable.library import get_interval_estimates
except ImportError:
    get_interval_estimates = None

MARGIN = 0.01
TARGETS = ("s1", "s2", "landsat", "naip", "modis")
PLACES, ITEMS = 60, 5  # test places, and items of each
DRAWS = 400  # of a bootstrap
COMPARED = 200  # studies whose interval rliable makes too: it is slow
REPLICATES = (3, 5, 8)
CHUNK = 50  # studies that a worker judges before it says so
ARMS = ("solo", "mix")
DESIGNS = [Design(target, TARGETS, MARGIN, contrasts=CONTRASTS[:1]) for target in TARGETS]

type Floats = NDArray[np.float64]
type Count = dict[str, tuple[int, int]]  # hits and trials


@dataclass(frozen=True, slots=True)
class World:
    """Standard deviations, in utility, of what makes scores vary."""

    name: str
    runs: tuple[float, float]  # A of solo and mix
    places: float  # C, drawn for each arm
    both: float  # I
    heavy: bool = False  # runs after Student's t with 3 degrees of freedom, of the same deviation
    items: float = 0.2

    def spread(self) -> Spread:
        """What planning would know of it from a pilot without error."""
        beside = self.both**2 / PLACES + self.items**2 / (PLACES * ITEMS)
        solo, mix = (deviation**2 + beside for deviation in self.runs)
        # What the places add to Δ however many replicates there are.
        return Spread("truth", (solo, mix), 2 * self.places**2 / PLACES, PLACES)


WORLDS = (
    World("runs", (0.010, 0.010), 0.01, 0.01, items=0.04),
    World("runs and places", (0.008, 0.008), 0.05, 0.05),
    World("places", (0.003, 0.003), 0.10, 0.05),
    World("unequal runs", (0.003, 0.012), 0.03, 0.03),
    World("heavy-tailed runs", (0.010, 0.010), 0.03, 0.03, heavy=True),
    World("correlated items", (0.008, 0.008), 0.10, 0.10, items=0.04),
)


def contributions(world: World, r: int, targets: int, rng: np.random.Generator) -> Floats:
    """(targets, arms, r, items) of a study without any effect."""
    shape = (targets, len(ARMS), r)
    runs = rng.standard_t(3, shape) / np.sqrt(3) if world.heavy else rng.normal(size=shape)
    common = rng.standard_t(3, r) / np.sqrt(3) if world.heavy else rng.normal(size=r)
    if targets > 1:
        runs[:, 1] = np.sqrt(0.5) * (runs[:, 1] + common)
    place = rng.normal(0, world.places, (targets, len(ARMS), 1, PLACES))
    place = place + rng.normal(0, world.both, (*shape, PLACES))
    y = 0.5 + (runs * np.array(world.runs)[:, None])[..., None] + np.repeat(place, ITEMS, axis=3)
    return np.asarray(y + rng.normal(0, world.items, y.shape))


def tables(y: Floats) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions of contributions (targets, arms, r, items)."""
    targets, arms, r, n = y.shape
    names = pd.MultiIndex.from_product([TARGETS[:targets], ARMS, range(r)])
    runs = names.to_frame(index=False, name=["sensor", "arm", "replicate"])
    runs["task"] = runs["sensor"]
    u = y.mean(axis=3).ravel()
    scores = runs.assign(metric="accuracy", value=u, utility=u, floor=0.0, ceiling=1.0)
    items = runs.drop(columns="sensor").loc[runs.index.repeat(n)]
    item = np.tile(np.arange(n), targets * arms * r)
    return scores, items.assign(item=item, cluster=item // ITEMS, contribution=y.ravel())


def percentiles(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def by_places_alone(y: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """A bootstrap's interval of the first target's Δ over places, the runs taken as given."""
    solo, mix = y[0].mean(axis=1).reshape(len(ARMS), PLACES, ITEMS).mean(axis=2)
    chosen = rng.integers(PLACES, size=(DRAWS, PLACES))
    return percentiles((mix - solo)[chosen].mean(axis=1))


def by_rliable(y: Floats) -> tuple[float, float]:
    """rliable's interval of the first target's Δ: each arm is what it calls a task."""
    pairs = {"Δ": y[0].mean(axis=2).T}  # (r, arms)
    gap = get_interval_estimates(
        pairs, lambda u: np.array([u[:, 1].mean() - u[:, 0].mean()]), reps=DRAWS
    )
    low, high = gap[1]["Δ"][:, 0]
    return float(low), float(high)


def holds(interval: tuple[float | None, float | None], truth: float) -> bool:
    low, high = interval
    return low is not None and high is not None and low <= truth <= high


def studies(task: tuple[int, int, range]) -> Count:
    """Judge some studies of a cell, and count."""
    number, r, which = task
    world, count = WORLDS[number], dict[str, tuple[int, int]]()
    planned = world.spread().mde(r)

    def enter(name: str, *hits: bool) -> None:
        found, trials = count.get(name, (0, 0))
        count[name] = found + sum(hits), trials + len(hits)

    for study in which:
        rng = stream("simulated", world.name, r, study)
        y = contributions(world, r, len(TARGETS), rng)
        scores, predictions = tables(y)
        panel = judge_all(scores, DESIGNS, predictions)
        deltas = [verdict.estimates[0] for verdict in panel.verdicts.values()]
        enter("covered", *(holds((e.low, e.high), 0.0) for e in deltas))
        if panel.strict:
            enter("Ψ* covered", holds((panel.strict.low, panel.strict.high), 0.0))
        enter("places alone", holds(by_places_alone(y, rng), 0.0))
        if get_interval_estimates and study < COMPARED:
            np.random.seed(study)  # noqa: NPY002  rliable draws from the global state
            enter("rliable", holds(by_rliable(y), 0.0))
        enter("false claims", any(e.kind in (Kind.MORE, Kind.LESS) for e in deltas))
        enter("equal", *(e.kind is Kind.EQUAL for e in deltas))
        for name, effect, kind in (
            ("false equal", MARGIN, Kind.EQUAL),
            ("power", planned, Kind.MORE),
        ):
            y = contributions(world, r, 1, rng)
            y[:, 1] += effect
            scores, predictions = tables(y)
            enter(name, judge(scores, DESIGNS[0], predictions).kind is kind)
    return count


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    cells = list(product(range(len(WORLDS)), REPLICATES))
    chunks = [range(i, min(i + CHUNK, wanted)) for i in range(0, wanted, CHUNK)]
    tasks = [(world, r, chunk) for world, r in cells for chunk in chunks]
    counts: dict[tuple[int, int], Count] = {cell: {} for cell in cells}
    with ProcessPoolExecutor() as pool:
        for (world, r, _), count in zip(
            tasks, tqdm(pool.map(studies, tasks), total=len(tasks), unit="chunk"), strict=True
        ):
            cell = counts[world, r]
            for name, (hits, trials) in count.items():
                before = cell.get(name, (0, 0))
                cell[name] = before[0] + hits, before[1] + trials
    rows = [
        {"world": WORLDS[world].name, "R": r, "studies": wanted}
        | {name: f"{100 * hits / trials:.1f}" for name, (hits, trials) in cell.items()}
        | {"planned effect": f"{100 * WORLDS[world].spread().mde(r):.2f}"}
        for (world, r), cell in counts.items()
    ]
    print(pd.DataFrame(rows).to_string(index=False))
    with (Path(__file__).parent / "simulated.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
