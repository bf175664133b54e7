"""Plan: how many replicates a wanted effect needs, and what they cost, before anything is run.

    python -m gfmsum.plan [key=value ...]

  effect=0.01       utility to be detected; 0.01 is one point. Says how many replicates it needs
  hours=10          says how many replicates they pay for, and what those can detect
  pilot=PATH        a finished study's folder or verdict.json, or a folder with scores.parquet:
                    its variance is used. Without: each arm's seed SD is 0.006 to 0.010
  target=s1         sensor whose tasks the pilot scored, if its scores hold several
  budget=tiny       what each run may spend, see python -m gfmsum.budget; default that of the ledger
  ledger=PATH       a study's ledger.json, for FLOPs and hours; default the one in the pilot's folder
  confidence=0.95   of the verdict's intervals

A row of the table says which substitution effect R replicates of each arm would detect with 80 %
power (MDE, in points of utility) and what they cost in all: pretraining runs of the solo, share and
mix arms, samples shown, FLOPs, and, if a ledger says what a run takes, hours of the ledger's device,
one run at a time. Without a ledger, FLOPs are reckoned for the five sensors' mean number of bands.
Probing is not counted. The floor arm is not pretrained.

The power is that of the verdict's own procedure before any adjustment: variances and degrees of
freedom are estimated anew in each study, which costs power when runs are few.

Exit codes: 0, or 2 for words or files that cannot be used.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.budget import BUDGETS, Budget
from gfmsum.records import Role
from gfmsum.sensors import SENSORS, unknown
from gfmsum.verdict import CONTRASTS, Design, detectable, judge, satterthwaite
from gfmsum.verdict.judging import POWER
from gfmsum.verdict.tables import read_tables
from gfmsum.words import command, read_number

OPTIONS = ("effect", "hours", "pilot", "target", "budget", "ledger", "confidence")
TRAINED = (Role.SOLO, Role.SHARE, Role.MIX)
SHOWN = (2, 3, 5, 8, 12, 20)  # replicates
MOST = 200  # replicates beyond which nobody looks
CAUTION = 0.8  # one-sided confidence of a pilot's upper variance


@dataclass(frozen=True, slots=True)
class Spread:
    """What makes the substitution Δ vary, in squared utility."""

    label: str
    runs: tuple[float, ...]  # variance between the runs of each compared arm; replicates average it
    places: float = 0.0  # variance of Δ from the test places all arms share; replicates do not
    clusters: int = 0  # test places behind it

    def mde(self, replicates: int, confidence: float = 0.95) -> float:
        """Minimum detectable effect of so many replicates of each arm, in utility: 80 % power."""
        from scipy import optimize

        error, reaches = self._studies(replicates, confidence)
        # An effect as far beyond the longest reach as beyond 0 is found in every study.
        most = float(reaches.max()) + 4 * error
        return float(optimize.brentq(lambda x: _power(x, error, reaches) - POWER, 0.0, most))

    def power(self, effect: float, replicates: int, confidence: float = 0.95) -> float:
        """Share of studies with so many replicates of each arm that find an effect, in utility."""
        return _power(effect, *self._studies(replicates, confidence))

    def _studies(self, replicates: int, confidence: float) -> tuple[float, NDArray[np.float64]]:
        """The true standard error, and how far the intervals of 4096 possible studies reach.

        Each study estimates the mean squares, and from them Satterthwaite's degrees of freedom, by the
        verdict's rule. Places count as one mean square here, as three in the verdict.
        """
        from scipy import stats

        true = [variance / replicates for variance in self.runs]
        known = [replicates - 1.0] * len(true)
        if self.places > 0:
            true, known = [*true, self.places], [*known, self.clusters - 1.0]
        df = np.array(known)
        evenly = stats.qmc.Sobol(len(true), rng=0).random_base2(12)
        squares = np.array(true) * stats.chi2.ppf(evenly, df) / df
        total = squares.sum(axis=1)
        found = np.maximum(1.0, total**2 / (squares**2 / df).sum(axis=1))
        reach = stats.t.ppf((1 + confidence) / 2, found) * np.sqrt(total)
        return math.sqrt(math.fsum(true)), np.asarray(reach)

    def limit(self, confidence: float = 0.95) -> float:
        """What the MDE, in utility, tends to as replicates grow: places do not average out."""
        if not self.places > 0:
            return 0.0
        return detectable(math.sqrt(self.places), self.clusters - 1, confidence)

    def needed(self, effect: float, confidence: float = 0.95) -> int | None:
        """The fewest replicates that detect an effect in utility; None if 200 do not."""
        # One by one: with very few places the MDE can rise again with the replicates.
        enough = (r for r in range(2, MOST + 1) if self.power(effect, r, confidence) >= POWER)
        return next(enough, None)


def _power(effect: float, error: float, reaches: NDArray[np.float64]) -> float:
    """Chance that an estimate with this standard error lies farther from 0 than an interval reaches."""
    from scipy.special import ndtr

    above, below = ndtr((effect - reaches) / error), ndtr((-effect - reaches) / error)
    return float(np.mean(above + below))


ASSUMED = tuple(Spread(f"SD {100 * sd:.1f}", (sd**2, sd**2)) for sd in (0.006, 0.010))
"""Without a pilot: a seed SD of 0.6 to 1.0 points in each arm, and no variance of places."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one replicate of all trained arms costs."""

    runs: int
    samples: int  # shown in pretraining, repeats included
    flops: float  # forward and backward
    seconds: float | None = None  # of pretraining, one run at a time
    device: str = ""

    @classmethod
    def of(cls, budget: Budget) -> Cost:
        """What a budget fixes: runs, samples and, for images with a mean number of bands, FLOPs."""
        samples = len(TRAINED) * budget.steps * budget.batch
        each = np.mean([budget.model.flops(len(sensor.bands)) for sensor in SENSORS.values()])
        return cls(len(TRAINED), samples, samples * float(each))

    def replicates(self, hours: float) -> int:
        """How many replicates so many hours pay for.

        Raises:
            ValueError: if nothing is known of what a run takes.
        """
        if not self.seconds:
            raise ValueError(
                f"hours={hours:g} cannot be spent without knowing what a run takes; give "
                "ledger=PATH, the ledger.json of a pilot"
            )
        return int(hours * 3600 / self.seconds)


def spreads(verdict: Mapping[str, Any]) -> tuple[Spread, Spread]:
    """A pilot's spread, and the same at the upper limit of its runs' variance.

    A pilot of few runs knows its variance badly: planned at the estimate, about half of all studies
    come out too small. At the upper one-sided 80 % limit (chi-square) about four in five do not
    (Browne 1995, Statistics in Medicine 14). The variance of places is taken as estimated.

    Args:
        verdict: a verdict as a dict, as in verdict.json.

    Raises:
        ValueError: if the pilot cannot show how much runs vary.
    """
    from scipy import stats

    try:
        substitution = next(e for e in verdict["estimates"] if e["name"] == "substitution")
        runs = {
            arm: list(map(float, verdict["arms"][arm]["replicates"])) for arm in ("mix", "solo")
        }
        places = float(substitution["item_variance"] or 0)
        clusters = [task["clusters"] or 0 for task in verdict["tasks"]]
    except (KeyError, TypeError, StopIteration):
        raise ValueError(
            "the pilot is no verdict of ours: judge its scores with python -m gfmsum.verdict, "
            "json=PATH"
        ) from None
    for arm, utility in runs.items():
        if len(utility) < 2:
            raise ValueError(
                f"the pilot has {len(utility)} replicate of {arm}, which cannot show how much runs "
                "vary; run it with replicates=2 or more"
            )
    variance = {arm: float(np.var(utility, ddof=1)) for arm, utility in runs.items()}
    if not sum(variance.values()) > 0:
        raise ValueError("the pilot's runs do not vary, so nothing can be planned; add replicates")
    df = satterthwaite((variance[arm] / len(u), len(u) - 1) for arm, u in runs.items())
    scale = df / float(stats.chi2.ppf(1 - CAUTION, df))
    known = min((count for count in clusters if count > 1), default=0)
    pilot = Spread("pilot", tuple(variance.values()), places if known else 0.0, known)
    cautious = replace(
        pilot, label=f"upper {CAUTION:.0%}", runs=tuple(scale * v for v in pilot.runs)
    )
    return pilot, cautious


def spent(ledger: Mapping[str, Any]) -> Cost:
    """What one replicate of a pilot's trained arms cost, each arm's mean over its replicates.

    Args:
        ledger: of a study, as in ledger.json.

    Raises:
        ValueError: if it holds no pretraining run.
    """
    try:
        trained: dict[str, list[Mapping[str, Any]]] = {}
        for run in ledger["runs"].values():
            if run["arm"] in list(TRAINED) and run["seen"]:
                trained.setdefault(run["arm"], []).append(run)
        samples, flops, seconds = (
            math.fsum(np.mean([run[what] for run in runs]) for runs in trained.values())
            for what in ("seen", "flops", "seconds")
        )
        devices = sorted({run["device"] for runs in trained.values() for run in runs})
    except (AttributeError, KeyError, TypeError):
        raise ValueError("the ledger is no study's ledger.json; give the pilot's") from None
    if not seconds > 0:
        raise ValueError("the ledger holds no pretraining run; give that of a finished study")
    return Cost(len(trained), round(samples), flops, seconds, "+".join(devices))


def table(
    spreads: Sequence[Spread], cost: Cost, replicates: Sequence[int], confidence: float
) -> str:
    """One row per number of replicates: what it detects, in points, and what it costs in all."""
    heads = ["R", *(f"MDE, {spread.label}" for spread in spreads), "runs", "samples"]
    heads += ["FLOPs"] + ["hours"] * (cost.seconds is not None)
    rows = [heads]
    for r in replicates:
        row = [str(r), *(f"{100 * spread.mde(r, confidence):.1f}" for spread in spreads)]
        row += [f"{r * cost.runs:,}", f"{r * cost.samples:,}"]
        row.append(f"{r * cost.flops:.2g}")
        if cost.seconds is not None:
            row.append(f"{r * cost.seconds / 3600:.2f}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: if it cannot be read or holds something else.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give a file of a study") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; give a JSON file of a study") from None


def read_pilot(path: Path, target: str | None = None) -> Mapping[str, Any]:
    """A pilot's verdict as a dict: from verdict.json, from its folder, or judged from its scores.

    Raises:
        ValueError: if there is none, or the scores are of several sensors and no target is given.
    """
    if path.is_dir() and (path / "verdict.json").is_file():
        path /= "verdict.json"
    if path.suffix == ".json":
        verdict = read_json(path)
        if target not in (None, found := verdict.get("target")):
            raise ValueError(f"target={target}, but {path} is of {found}; give that study's pilot")
        return verdict
    scores, predictions = read_tables(path)
    sensors = sorted(scores["sensor"].dropna().unique())
    if target is None and len(sensors) != 1:
        raise ValueError(f"{path} holds scores of {', '.join(sensors)}; give one as target=")
    if target not in (None, *sensors):
        raise ValueError(unknown("target", target or "", sensors))
    design = Design(target or sensors[0], ("others",), contrasts=CONTRASTS[:1])
    return judge(scores, design, predictions).as_dict()


def read_cost(budget: str | None, ledger: Path | None) -> tuple[Cost, str]:
    """What a replicate costs, by the ledger if there is one, and where that is known from.

    Raises:
        ValueError: for an unknown budget, or a ledger of another one.
    """
    if budget is not None and budget not in BUDGETS:
        raise ValueError(unknown("budget", budget, BUDGETS))
    fixed = Cost.of(BUDGETS[budget or "tiny"])
    if ledger is None:
        return (
            fixed,
            f"budget {budget or 'tiny'}, FLOPs reckoned; without a ledger, hours are unknown",
        )
    cost = spent(read_json(ledger))
    seen, shown = (c.samples // c.runs for c in (cost, fixed))
    if budget is not None and seen != shown:
        raise ValueError(
            f"{ledger} is of runs that saw {seen} samples, but budget={budget} shows {shown}; "
            "give a ledger of that budget, or no budget"
        )
    return cost, f"budget, FLOPs and hours of {ledger} ({cost.device})"


def in_points(utility: float) -> str:
    return f"{100 * utility:.1f}"


def say_effect(effect: float, needed: Mapping[str, int | None]) -> str:
    """How many replicates an effect in utility needs, by spread."""
    counts = ", ".join(f"{r or f'more than {MOST}'} ({label})" for label, r in needed.items())
    return f"effect of {in_points(effect)} points: needs R = {counts}"


def say_hours(spreads: Sequence[Spread], hours: float, paid: int, confidence: float) -> str:
    """What the replicates that so many hours pay for can detect."""
    start = f"{hours:g} hours: pay for R = {paid}"
    if paid < 2:
        return f"{start}, but no interval exists below R = 2"
    effects = ", ".join(f"{in_points(s.mde(paid, confidence))} ({s.label})" for s in spreads)
    return f"{start}, which detects {effects}"


def answer(files: Sequence[str], values: Mapping[str, str]) -> str:
    """The table and the answers that command-line values ask for.

    Raises:
        ValueError: one line with value, rule and remedy.
    """
    if files:
        raise ValueError(f"cannot read {files[0]!r}: write key=value, like effect=0.01")
    below = {"effect": 1.0, "confidence": 1.0, "hours": math.inf}
    number = {k: read_number(k, values[k], top) for k, top in below.items() if k in values}
    confidence = number.get("confidence", 0.95)
    if confidence < 0.5:
        raise ValueError(f"confidence={confidence} must be in [0.5, 1); give it as 0.95")
    pilot, ledger = (Path(values[k]) if k in values else None for k in ("pilot", "ledger"))
    if "target" in values and pilot is None:
        raise ValueError(f"target={values['target']} says whose scores of a pilot; give pilot=PATH")
    known = ASSUMED
    source = "spread: none measured, so an SD of 0.6 to 1.0 points among an arm's runs is assumed"
    if pilot:
        known = spreads(read_pilot(pilot, values.get("target")))
        beside = (pilot if pilot.is_dir() else pilot.parent) / "ledger.json"
        ledger = ledger or (beside if beside.is_file() else None)
        sd = " and ".join(in_points(math.sqrt(variance)) for variance in known[0].runs)
        source = f"spread: SD of {sd} points among the runs of mix and solo in {pilot}"
    cost, origin = read_cost(values.get("budget"), ledger)
    rows, said = {*SHOWN}, list[str]()
    if "effect" in number:
        needed = {s.label: s.needed(number["effect"], confidence) for s in known}
        said.append(say_effect(number["effect"], needed))
        rows |= {r for r in needed.values() if r}
    if "hours" in number:
        paid = cost.replicates(number["hours"])
        said.append(say_hours(known, number["hours"], paid, confidence))
        rows |= {paid} if paid > 1 else set()
    if known[0].places:
        limit = in_points(known[0].limit(confidence))
        said.append(f"places: as R grows the MDE tends to {limit}; only more test places lower it")
    elif known[0].clusters:
        said.append("places: the pilot's show no variance of their own, so none is added")
    else:
        said.append("places: not in these numbers, although they add to every MDE; pilot them")
    head = [source, f"cost: {origin}", "MDE: points of utility detected with 80 % power"]
    return "\n".join([*head, "", table(known, cost, sorted(rows), confidence), "", *said])


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return command(arguments, __doc__, OPTIONS, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
