"""Does more compute bring more? Utility of grid.py's runs against the FLOPs that they took.

    uv run python experiments/learning/curve.py OUT FOLDER [FOLDER ...]

Each folder holds the tables of one budget. Writes OUT/curve.csv, a row per budget, sensor, probe and arm:
utility (mean over tasks and numbers of labels) and its gain over the random start of the same replicate, both
in points with their 95 % intervals over replicates (t; none of a single run), and OUT/curve.png, which shows
the gain.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats


def interval(values: pd.Series) -> tuple[float, float]:
    """Of the mean, by Student's t."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return values.mean() - half, values.mean() + half


def rows_of(folder: Path) -> pd.DataFrame:
    """One budget's rows."""
    scores, runs = pd.read_csv(folder / "scores.csv"), pd.read_csv(folder / "runs.csv")
    by = ["sensor", "probe", "replicate"]
    wide = scores.groupby([*by, "arm"])["utility"].mean().mul(100).unstack("arm")
    flops, rows = runs.groupby(["arm", "sensor"])["flops"].mean(), []
    for (sensor, probe), part in wide.groupby(["sensor", "probe"], sort=False):
        start = part.get("floor", pd.Series(dtype=float))
        for arm in (name for name in ("solo", "mix") if name in part):
            utility = part[arm].dropna()
            gain = (part[arm] - start).dropna()
            if utility.empty:
                continue
            row = {"budget": folder.name, "sensor": sensor, "probe": probe, "arm": arm}
            row |= {"flops": flops[arm, sensor], "replicates": len(utility)}
            for name, values in (("utility", utility), ("gain", gain)):
                row[name] = values.mean()
                row[f"{name} low"], row[f"{name} high"] = interval(values)
            rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Gain against FLOPs: a panel for each probe, a line for each sensor's solo runs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    solo = table[table["arm"] == "solo"]
    probes = list(solo["probe"].unique())
    figure, axes = plt.subplots(1, len(probes), figsize=(5 * len(probes), 3.6), squeeze=False)
    for ax, probe in zip(axes[0], probes, strict=True):
        for sensor, line in solo[solo["probe"] == probe].groupby("sensor", sort=False):
            line = line.sort_values("flops")
            error = (line["gain high"] - line["gain"]).fillna(0)
            ax.errorbar(line["flops"], line["gain"], error, marker="o", capsize=3, label=sensor)
        ax.axhline(0, color="0.6", linewidth=1)
        ax.set(xscale="log", title=f"probe={probe}", xlabel="FLOPs of pretraining")
    axes[0, 0].set_ylabel("gain over random start, points")
    axes[0, -1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(words: list[str]) -> None:
    out, *folders = map(Path, words)
    table = pd.concat([rows_of(folder) for folder in folders], ignore_index=True)
    table["flops"] = table["flops"].map(lambda x: float(f"{x:.3g}"))
    table.round(2).to_csv(out / "curve.csv", index=False)
    draw(table, out / "curve.png")
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
