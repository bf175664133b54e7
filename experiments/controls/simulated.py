"""Does the verdict do what it says, on studies whose truth is known?

    uv run python experiments/controls/simulated.py [studies per cell, default 2000]

Simulates the scores of whole studies, judges them as any other, and counts: how often the 95 % interval
of the substitution Δ holds the truth; how often "more" or "less" comes out where Δ = 0, and "equal" where
Δ is the margin; and how often an effect that the plan calls detectable with 80 % power is found. Beside
it, the interval of a bootstrap over test places alone, which takes the runs at hand for all there are.

Utility of replicate r of arm a on item i of place g: a mean, plus A[a, r] of the run, C[a, g] of the place
(shared by all runs), I[a, r, g] of both, and noise of the item. Writes simulated.csv beside this file.
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

from gfmsum.data.plan import stream
from gfmsum.plan import Spread
from gfmsum.verdict import CONTRASTS, Design, Kind, judge

MARGIN = 0.01
PLACES, ITEMS = 60, 10  # test places, and items of each
DRAWS = 400  # of the bootstrap
REPLICATES = (3, 5, 8)
ARMS = ("solo", "mix")


@dataclass(frozen=True, slots=True)
class World:
    """Standard deviations, in utility, of what makes scores vary."""

    name: str
    runs: tuple[float, float]  # A of solo and mix
    places: float  # C, drawn for each arm
    both: float  # I
    heavy: bool = False  # runs after Student's t with 3 degrees of freedom, of the same deviation
    items: float = 0.3

    def runs_variance(self) -> tuple[float, float]:
        """Of each arm's utility between replicates."""
        beside = self.both**2 / PLACES + self.items**2 / (PLACES * ITEMS)
        solo, mix = (sd**2 + beside for sd in self.runs)
        return solo, mix


WORLDS = (
    World("runs", (0.010, 0.010), 0.01, 0.01, items=0.05),
    World("runs and places", (0.008, 0.008), 0.05, 0.05),
    World("places", (0.003, 0.003), 0.10, 0.05),
    World("unequal runs", (0.003, 0.012), 0.03, 0.03),
    World("heavy-tailed runs", (0.010, 0.010), 0.03, 0.03, heavy=True),
    World("correlated items", (0.008, 0.008), 0.10, 0.10, items=0.05),
)


def simulate(
    world: World, replicates: int, effect: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores and predictions of one study; ``effect`` is the true Δ."""
    scores, predictions = [], []
    item = np.arange(PLACES * ITEMS)
    for arm, mean, deviation in zip(ARMS, (0.5, 0.5 + effect), world.runs, strict=True):
        place = rng.normal(0, world.places, PLACES)
        for replicate in range(replicates):
            run = rng.standard_t(3) / np.sqrt(3) if world.heavy else rng.normal()
            at_place = place + rng.normal(0, world.both, PLACES)
            y = mean + deviation * run + np.repeat(at_place, ITEMS)
            y += rng.normal(0, world.items, len(item))
            scores.append(
                (arm, replicate, "s", "t", "accuracy", y.mean(), y.mean(), 0, 1, len(item))
            )
            predictions.append(
                pd.DataFrame(
                    {
                        "arm": arm, "replicate": replicate, "task": "t",
                        "item": item, "cluster": item // ITEMS, "contribution": y,
                    }
                )
            )  # fmt: skip
    columns = [
        "arm",
        "replicate",
        "sensor",
        "task",
        "metric",
        "value",
        "utility",
        "floor",
        "ceiling",
        "n_test",
    ]
    return pd.DataFrame(scores, columns=columns), pd.concat(predictions, ignore_index=True)


def by_places_alone(predictions: pd.DataFrame, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of a bootstrap over places, the runs taken as given."""
    mean = predictions.groupby(["arm", "cluster"])["contribution"].mean().unstack("arm")
    difference = (mean["mix"] - mean["solo"]).to_numpy()
    draws = difference[rng.integers(len(difference), size=(DRAWS, len(difference)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def cell(task: tuple[World, int, int]) -> dict[str, object]:
    """One row of the table."""
    world, replicates, studies = task
    design = Design("s", ("s", "others"), margin=MARGIN, contrasts=CONTRASTS[:1])
    # What the places add to Δ however many replicates there are.
    lasting = 2 * world.places**2 / PLACES
    planned = Spread("truth", world.runs_variance(), lasting, PLACES).mde(replicates)
    kinds: dict[str, list[Kind]] = {}
    covered, covered_alone = [], []
    for name, effect in (("null", 0.0), ("margin", MARGIN), ("planned", planned)):
        kinds[name] = []
        for study in range(studies):
            rng = stream("simulated", world.name, replicates, name, study)
            scores, predictions = simulate(world, replicates, effect, rng)
            estimate = judge(scores, predictions, design).estimates[0]
            kinds[name].append(estimate.kind)
            if name == "null" and estimate.low is not None and estimate.high is not None:
                covered.append(estimate.low <= effect <= estimate.high)
                low, high = by_places_alone(predictions, rng)
                covered_alone.append(low <= effect <= high)

    def share(name: str, *wanted: Kind) -> float:
        return 100 * float(np.mean([kind in wanted for kind in kinds[name]]))

    return {
        "world": world.name,
        "R": replicates,
        "studies": studies,
        "covered": round(100 * float(np.mean(covered)), 1),
        "places alone": round(100 * float(np.mean(covered_alone)), 1),
        "false more/less": round(share("null", Kind.MORE, Kind.LESS), 1),
        "false equal": round(share("margin", Kind.EQUAL), 1),
        "planned effect": round(100 * planned, 2),
        "power": round(share("planned", Kind.MORE), 1),
    }


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    tasks = [(world, r, studies) for world, r in product(WORLDS, REPLICATES)]
    rows = []
    with ProcessPoolExecutor() as pool:
        for row in pool.map(cell, tasks):
            if not rows:
                print("  ".join(f"{name:>17}" for name in row))
            rows.append(row)
            print("  ".join(f"{value!s:>17}" for value in row.values()), flush=True)
    with (Path(__file__).parent / "simulated.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
