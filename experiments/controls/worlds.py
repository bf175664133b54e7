"""Does the whole instrument, from pixels to verdict, find the truth where it is known?

    uv run python experiments/controls/worlds.py [studies per control, default 20]

Conducts small but complete studies of the three controls in synthetic worlds, each study with a seed and a
world of its own, and counts the verdicts:

  alias   the other sensors are the target under another name: substitution Δ = 0
  harm    the other sensors are noise: substitution Δ < 0
  help    the target has a handful of samples, the others are it under another name: addition α > 0

What a control does to the other contrast is not known beforehand, nor is the size of an effect: there the
mean over all studies stands for the truth. Writes worlds.csv, one row per control and contrast, and
worlds_studies.csv, one row per study and contrast, beside this file. All numbers are in points.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

if TYPE_CHECKING:
    from gfmsum.verdict import Estimate

HERE = Path(__file__).parent
REPLICATES = 3
CONTROLS = {
    "alias": ["data.control=alias"],
    "harm": ["data.control=harm"],
    "help": ["data.control=help", "data.scarce=4"],
}
KNOWN = {
    ("alias", "substitution"): "= 0",
    ("harm", "substitution"): "< 0",
    ("help", "addition"): "> 0",
}
KINDS = ("more", "less", "equal", "undecided")
# Sentinel-1, from which pretraining learns most, half of the default budget's samples, and the four tasks of
# whole images with all labels, which single runs settle.
STUDY = [
    "sensor=s1", "mix=s1:1+modis:4", f"replicates={REPLICATES}", "device=cpu",
    "data.train=400", "data.val=200", "data.test=400",
    "data.tasks=landuse+diversity+length+coarseness", "labels=all",
    "budget=tiny", "budget.seen=6000", "budget.unique=2000",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One contrast of one study."""

    control: str
    study: int
    contrast: str
    estimate: float
    low: float
    high: float
    mde: float
    kind: str


def conduct(control: str, number: int) -> list[Row]:
    """One study from nothing to its verdict, on one core; ``number`` is its seed and its world."""
    from gfmsum.config import load
    from gfmsum.job import carry_out
    from gfmsum.study import collect, plan
    from gfmsum.verdict import judge

    with tempfile.TemporaryDirectory() as folder:
        own = [f"seed={number}", f"data.world={number}", f"store={folder}/store", f"out={folder}"]
        study = plan(load([*STUDY, *CONTROLS[control], *own]))
        for job in study.jobs():
            carry_out(job)
        scores, predictions = collect(study)
    verdict = judge(scores=scores, predictions=predictions, design=study.design)
    return [
        Row(control, number, e.name, kind=str(e.kind), **points(e))
        for e in verdict.estimates
        if e.name in ("substitution", "addition")
    ]


def points(estimate: Estimate) -> dict[str, float]:
    """The numbers of an estimate, in points."""
    numbers = {"estimate": estimate.value, "low": estimate.low, "high": estimate.high}
    numbers["mde"] = estimate.mde
    return {name: round(100 * value, 3) for name, value in numbers.items() if value is not None}


def prepare() -> None:
    """A worker, before it imports anything heavy."""
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    warnings.simplefilter("ignore")
    import logging

    import lightning.pytorch

    # Its remarks on devices and limits would run through the progress bar.
    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.ERROR)


def conduct_all(studies: int) -> Iterator[list[Row]]:
    """Every study of every control, in whatever order they end."""
    tasks = [
        (name, len(CONTROLS) * i + j) for i in range(studies) for j, name in enumerate(CONTROLS)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn, prepare) as pool:
        ends = as_completed([pool.submit(conduct, *task) for task in tasks])
        for end in tqdm(ends, total=len(tasks), unit="study", smoothing=0.1):
            yield end.result()


def summarise(rows: pd.DataFrame) -> dict[str, object]:
    """One control and contrast over all of its studies."""
    control, contrast = rows.iloc[0][["control", "contrast"]]
    mean = float(rows["estimate"].mean())
    truth = 0.0 if KNOWN.get((control, contrast)) == "= 0" else mean
    return {
        "control": control,
        "contrast": contrast,
        "known": KNOWN.get((control, contrast), ""),
        "studies": len(rows),
        **{kind: int((rows["kind"] == kind).sum()) for kind in KINDS},
        "mean": round(mean, 2),
        "standard_error": round(float(rows["estimate"].std() / len(rows) ** 0.5), 2),
        "covered": round(float((rows["low"].le(truth) & rows["high"].ge(truth)).mean()), 3),
        "median_mde": round(float(rows["mde"].median()), 2),
    }


def write(rows: pd.DataFrame) -> pd.DataFrame:
    """Both files; returns the smaller."""
    rows["contrast"] = pd.Categorical(rows["contrast"], ["substitution", "addition"])
    rows = rows.sort_values(["study", "contrast"], ignore_index=True)
    rows.to_csv(HERE / "worlds_studies.csv", index=False)
    groups = rows.groupby(["control", "contrast"], observed=True)
    table = pd.DataFrame([summarise(group) for _, group in groups])
    table.to_csv(HERE / "worlds.csv", index=False)
    return table


def main() -> None:
    began, studies = time.perf_counter(), int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rows: list[Row] = []
    for found in conduct_all(studies):  # written as they end: what is cut short is not lost
        rows += found
        table = write(pd.DataFrame([asdict(row) for row in rows]))
    print(table.to_string(index=False))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
