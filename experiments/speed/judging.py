"""How long judging the whole five-sensor design takes: eight replicates, 5,000 test items a task.

    uv run python experiments/speed/judging.py

Every target has the arms solo, share, part, mix and floor, and the solo runs of the four other sensors, probed
on one task: 360 runs, 1.8 million predictions. Prints medians of five rounds, interleaved, and ratios to one
pivot of the same table by pandas, the least that laying it out would otherwise cost.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from gfmsum.verdict import Design, judge
from gfmsum.verdict.__main__ import far_apart
from gfmsum.verdict.panel import judge_all

SENSORS = ("s1", "s2", "landsat", "naip", "modis")
REPLICATES, ITEMS, PLACES, ROUNDS = 8, 5_000, 500, 5


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions of random runs."""
    rng = np.random.default_rng(0)
    runs = []
    for target, replicate in product(SENSORS, range(REPLICATES)):
        arms = [("solo", name) for name in SENSORS] + [("share", target), ("part", target)]
        arms += [("mix", "+".join(SENSORS)), ("floor", "")]
        runs += [(arm, replicate, target, target, sees) for arm, sees in arms]
    scores = pd.DataFrame(runs, columns=["arm", "replicate", "sensor", "task", "sees"])
    y = rng.normal(0.5, 0.1, (len(scores), ITEMS)) + rng.normal(0, 0.02, (len(scores), 1))
    u = y.mean(axis=1)
    items = scores.drop(columns="sensor").loc[scores.index.repeat(ITEMS)].reset_index(drop=True)
    names = np.array([f"place/{i}" for i in range(ITEMS)])
    places = np.array([f"block {i % PLACES}" for i in range(ITEMS)])
    scores = scores.assign(metric="accuracy", value=u, utility=u, floor=0.0, ceiling=1.0)
    scores["samples"] = np.where(scores["arm"].isin(["share", "part"]), 800, 4_000)
    return scores, items.assign(
        item=np.tile(names, len(scores)),
        cluster=np.tile(places, len(scores)),
        contribution=y.ravel(),
    )


def main() -> None:
    scores, predictions = tables()
    designs = [Design(target, SENSORS) for target in SENSORS]
    distances = far_apart(SENSORS)
    keys = ["arm", "sees", "replicate"]
    work: dict[str, Callable[[], object]] = {
        "pivot of the table by pandas": lambda: predictions.pivot(
            index=keys, columns=["task", "item", "cluster"], values="contribution"
        ),
        "five targets as one family": lambda: judge_all(
            scores, designs, predictions, distances=distances
        ),
        "one target": lambda: judge(scores, designs[0], predictions),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _, (name, do) in product(range(ROUNDS), work.items()):
        began = time.perf_counter()
        do()
        seconds[name].append(time.perf_counter() - began)
    print(f"{len(scores)} runs, {len(predictions):,} predictions")
    reference = statistics.median(seconds["pivot of the table by pandas"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:30}{median:7.2f} s  {median / reference:5.2f}")


if __name__ == "__main__":
    main()
