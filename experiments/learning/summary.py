"""Reads the tables of grid.py and says in which replicates pretraining beats a random start, and by how much.

    uv run python experiments/learning/summary.py OUT [OUT ...]

Prints, and writes to OUT/summary.csv, for each sensor, arm and probe: utility (mean over tasks and numbers
of labels) with its standard deviation over replicates, the gain over the random start of the same replicate
(mean, smallest, and in how many replicates it is above zero), the tasks that tell encoders apart (pretrained
above random start and band statistics by more than two standard deviations), and, from two replicates on,
what a contrast of two such arms could detect at three replicates. All but losses in points.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

FLOORS = ("band means", "band statistics")
PLATEAU = 0.97  # masked loss; predicting the mean costs 1


def utilities(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean over tasks and numbers of labels of every run, in points."""
    keys = ["sensor", "probe", "arm", "replicate"]
    return scores.groupby(keys)["utility"].mean().mul(100).rename("utility").reset_index()


def told_apart(scores: pd.DataFrame, sensor: str, probe: str, arm: str) -> list[str]:
    """Tasks (at each number of labels) on which the arm is beyond doubt above all floors."""
    own = scores[scores["sensor"] == sensor]
    found = []
    for task, rows in own.groupby("task", sort=False):
        mine = rows[(rows["arm"] == arm) & (rows["probe"] == probe)]["value"]
        start = rows[(rows["arm"] == "floor") & (rows["probe"] == probe)]["value"]
        free = rows[rows["arm"].isin(FLOORS)].groupby("arm")["value"].mean()
        own_spread = mine.std(ddof=1)
        both = np.hypot(own_spread, start.std(ddof=1))
        if mine.mean() - start.mean() > 2 * both and (mine.mean() - free > 2 * own_spread).all():
            found.append(str(task))
    return found


def detectable(spread: float, replicates: int = 3) -> float:
    """The difference of two arms with this SD of runs that 80 % of studies find, places apart."""
    from gfmsum.verdict.judging import detectable as least

    return least(spread * (2 / replicates) ** 0.5, 2 * (replicates - 1))


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per sensor, probe and arm."""
    table, rows = utilities(scores), []
    for (sensor, probe), part in table.groupby(["sensor", "probe"], sort=False):
        wide = part.pivot(index="replicate", columns="arm", values="utility")
        for arm in wide.columns:
            values = wide[arm].dropna()
            start = wide.get("floor", pd.Series(dtype=float))  # none yet in an unfinished table
            row = {"sensor": sensor, "probe": probe, "arm": arm, "utility": values.mean()}
            if arm in ("solo", "mix"):
                gain = (wide[arm] - start).dropna()
                apart = told_apart(scores, str(sensor), str(probe), arm)
                row |= {
                    "sd": values.std(ddof=1), "replicates": len(values), "gain": gain.mean(),
                    "least": gain.min(), "above": int((gain > 0).sum()),
                    "tasks apart": " ".join(apart),
                    "mde of 3": detectable(values.std(ddof=1)) if len(values) > 1 else np.nan,
                }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows).round(2)


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        table = summary(pd.read_csv(folder / "scores.csv"))
        table.to_csv(folder / "summary.csv", index=False)
        print(f"{folder.name}\n{table.to_string(index=False, na_rep='')}\n")
        if (folder / "runs.csv").stat().st_size > 1:
            runs = pd.read_csv(folder / "runs.csv")
            worst = runs.groupby(["arm", "sensor"])["loss"].agg(["mean", "max", "count"]).round(3)
            stuck = runs.groupby("run")["loss"].mean() > PLATEAU
            print(f"{worst.to_string()}\nruns on the plateau: {int(stuck.sum())} of {len(stuck)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
