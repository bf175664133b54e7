"""Judging: contrasts estimated from runs and places, adjusted as families, and called by a kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from gfmsum.records import Role
from gfmsum.verdict.design import CHANGED, EXACT, Design, Estimate, Kind, Verdict
from gfmsum.verdict.text import sentence
from gfmsum.verdict.variance import Floats, Measured, mean_squares, measure, of_design

if TYPE_CHECKING:  # when used, so that --help and mistakes do not wait seconds for it
    import pandas as pd

POWER = 0.8  # of the minimum detectable effect
NO_ITEMS = "without test items the interval carries runs only, not how places vary"


def judge(
    scores: pd.DataFrame,
    design: Design,
    predictions: pd.DataFrame | None = None,
    recorded: str | None = None,
) -> Verdict:
    """Estimate and judge the design's contrasts on the target's tasks.

    Args:
        scores: one row per Score, its fields as columns. Other sensors' rows are ignored; those of
            baselines, whose arm is no Role, appear in ``tasks`` only.
        design: what is compared.
        predictions: one row per score and test item: arm, replicate, task, item, cluster and
            contribution (utility; its mean over a score's items is the score's utility). The same
            cluster name in two tasks is the same place. None if unknown: then the intervals carry
            the variance of runs only, and every estimate says so.
        recorded: fingerprint of the design as written down before the runs, if it was.

    Raises:
        ValueError: for a missing arm or score, a floor that is not below its ceiling, test items
            that differ between runs, or contributions that do not average to the score.
    """
    own, measured = read(scores, predictions, design)
    judged, _ = decide(estimates(measured, design), design)
    return conclude(own, measured, design, judged, recorded)


def read(
    scores: pd.DataFrame, predictions: pd.DataFrame | None, design: Design
) -> tuple[pd.DataFrame, Measured]:
    """The scores of the design's runs on its target, checked, and all of them as matrices."""
    own = of_design(scores[scores["sensor"] == design.target], design)
    if missing := [task for task in design.tasks if task not in set(own["task"])]:
        raise ValueError(
            f"no score of task {missing[0]!r}, which the design names; probe every run on it, or judge by a "
            "design without it and say so"
        )
    for task, rows in own.groupby("task"):
        ends = rows[["floor", "ceiling"]].drop_duplicates()
        if len(ends) > 1:
            raise ValueError(
                f"task {task!r} has {len(ends)} scales: floors {ends['floor'].to_list()} and "
                f"ceilings {ends['ceiling'].to_list()}; freeze one for all of its rows"
            )
        floor, ceiling = ends.iloc[0]
        if not -math.inf < floor < ceiling < math.inf:
            raise ValueError(
                f"task {task!r}: floor {floor:g} must be below ceiling {ceiling:g}; swap them, or "
                "negate a metric of which less is better"
            )
    if predictions is not None:
        predictions = of_design(predictions, design)
    return own, measure(own, predictions, design)


def estimates(measured: Measured, design: Design) -> list[Estimate]:
    """The design's contrasts, each alone."""
    return [
        infer(
            Estimate(c.name, c.symbol, c.meaning, 0.0, exploratory=not c.confirmatory),
            c.weights,
            measured,
            design,
        )
        for c in design.contrasts
    ]


def infer(
    estimate: Estimate, weights: Mapping[str, float], measured: Measured, design: Design
) -> Estimate:
    """All that can be said of one contrast alone: everything but the adjustment and the kind.

    Args:
        estimate: its names.
        weights: arm to coefficient.
        measured: the arms.
        design: its margin and confidence.
    """
    from scipy import stats

    arms = {arm: measured.utility[arm] for arm in weights}
    value = float(sum(weight * arms[arm].mean() for arm, weight in weights.items()))
    estimate = replace(estimate, value=value)
    if single := [arm for arm, u in arms.items() if len(u) < 2]:
        why = f"one replicate of {' and of '.join(single)} cannot show how much runs vary"
        return replace(estimate, why=why)
    runs, places = mean_squares(weights, measured)
    run_variance, item_variance = (
        math.fsum(square for square, _ in part) for part in (runs, places)
    )
    error = math.sqrt(run_variance + item_variance)
    lone = [task for task, clusters in measured.clusters.items() if clusters < 2]
    one_place = f"test items of {' and '.join(lone)} form one cluster: how places vary is unknown"
    estimate = replace(
        estimate,
        standard_error=error,
        run_variance=run_variance,
        item_variance=item_variance if len(lone) < len(measured.clusters) else None,
        why=NO_ITEMS if not measured.items else one_place if lone else "",
    )
    if error < EXACT and not measured.items:
        return replace(estimate, why=f"runs do not vary, so nothing can be inferred; {NO_ITEMS}")
    if error < EXACT:
        answers = np.vstack([measured.items[arm] for arm in arms])
        if max(abs(value), np.ptp(answers, axis=0).max()) < EXACT:
            why = "every run gave the same answer on every test item"
            return replace(estimate, low=value, high=value, kind=Kind.EQUAL, why=why)
        return replace(estimate, why="runs and places do not vary, so nothing can be inferred")
    # V_items and W vary apart: as one square, 4 clusters would cover 91 % instead of 95 %.
    df = satterthwaite([*runs, *places])
    reach = float(stats.t.ppf((1 + design.confidence) / 2, df)) * error
    above = stats.t.sf((value + design.margin) / error, df)
    below = stats.t.cdf((value - design.margin) / error, df)
    return replace(
        estimate,
        low=value - reach,
        high=value + reach,
        df=df,
        p=float(2 * stats.t.sf(abs(value) / error, df)),
        p_equivalence=float(max(above, below)),
        mde=detectable(error, df, design.confidence),
    )


def satterthwaite(squares: Iterable[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of mean squares, each given with its own: at least 1.

    Those of the scaled chi-square that varies as much as the sum does (Satterthwaite 1946).
    """
    parts = list(squares)
    total = math.fsum(square for square, _ in parts)
    return max(1.0, total**2 / sum(square**2 / df for square, df in parts))


def decide(
    estimates: Sequence[Estimate],
    design: Design,
    unknown: int = 0,
    beside: Sequence[float] = (),
) -> tuple[list[Estimate], list[float]]:
    """Adjust within the confirmatory family and among the exploratory rest, then judge each.

    Args:
        estimates: of one or of several targets.
        design: its margin and confidence.
        unknown: confirmatory contrasts that could not be estimated at all.
        beside: p of exploratory numbers that are no contrasts.

    Returns:
        The estimates with adjusted p and kind, and ``beside`` adjusted.
    """
    from scipy import stats

    # A contrast without a p stays a member: what was found does not shrink a family.
    p_values = np.array([1.0 if e.p is None else e.p for e in estimates])
    rest = np.array([e.exploratory for e in estimates], dtype=bool)
    adjusted = np.ones(len(p_values))
    adjusted[~rest] = holm([*p_values[~rest], *[1.0] * unknown])[: int((~rest).sum())]
    explored = np.asarray(stats.false_discovery_control([*p_values[rest], *beside]))
    adjusted[rest] = explored[: int(rest.sum())]
    alpha, judged = 1 - design.confidence, []
    for e, p in zip(estimates, adjusted.tolist(), strict=True):
        if e.p is not None and e.p_equivalence is not None and e.low is not None:
            differs = p < alpha  # which implies an interval without 0
            side = Kind.MORE if e.value > 0 else Kind.LESS
            equal = e.p_equivalence < alpha
            kind = Kind.EQUAL if equal else side if differs else Kind.UNDECIDED
            e = replace(e, p_adjusted=p, kind=kind, negligible=equal and differs)
        judged.append(e)
    return judged, explored[int(rest.sum()) :].tolist()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, which bounds the chance of any false claim in the family.

    statsmodels has it too, but collects garbage in every call: longer than all the rest takes.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order, adjusted = np.argsort(p, kind="stable"), np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in adjusted]


def detectable(standard_error: float, df: float, confidence: float = 0.95) -> float:
    """The effect that the two-sided t test at 1 − confidence finds with 80 % power.

    Root of the noncentral t distribution's power. Only if that cannot be solved, the approximation
    (t of 1 − alpha/2 + t of 0.8) · standard_error stands in; at df below 3 it is too small.
    """
    from scipy import optimize, stats
    from scipy.special import nctdtr

    critical = float(stats.t.ppf((1 + confidence) / 2, df))
    approximate = critical + float(stats.t.ppf(POWER, df))

    def lacking(shift: float) -> float:
        # SciPy gives NaN for some lower tails, all of which are below 1e-12.
        lower = np.nan_to_num(nctdtr(df, shift, -critical))
        return float(1 - nctdtr(df, shift, critical) + lower) - POWER

    try:
        return standard_error * float(optimize.brentq(lacking, 0.0, 2 * approximate))
    except (ValueError, RuntimeError):
        return standard_error * approximate


def superiority(mix: Floats, solo: Floats) -> float:
    """Chance that a mix run beats a solo run, a tie counting half: 0 to 1, over all pairs of runs.

    Descriptive: with R = 3 to 8 runs it is too coarse for an interval.
    """
    gap = np.subtract.outer(mix, solo)
    return float(np.mean(np.where(np.abs(gap) < EXACT, 0.5, gap > 0)))


def conclude(
    own: pd.DataFrame,
    measured: Measured,
    design: Design,
    judged: Sequence[Estimate],
    recorded: str | None,
) -> Verdict:
    """The verdict that judged contrasts make, in words and with all that belongs beside it."""
    value = {e.name: e.value for e in judged}
    headline = judged[list(value).index("substitution")]
    arms = measured.utility
    compared = [arm for arm in arms if any(arm in c.weights for c in design.contrasts)]
    verdict = Verdict(
        target=design.target,
        mix=design.mix,
        kind=headline.kind,
        sentence=sentence(headline, design, sorted({len(arms["solo"]), len(arms["mix"])})),
        margin=design.margin,
        confidence=design.confidence,
        estimates=tuple(judged),
        identity_residual=value["substitution"] - (value["addition"] - value["dilution"])
        if {"addition", "dilution"} <= set(value)
        else None,
        superiority=superiority(arms["mix"], arms["solo"]),
        arms={
            arm: {"utility": float(u.mean()), "replicates": u.tolist()} for arm, u in arms.items()
        },
        correlation={f"{a}~{b}": _pearson(measured, a, b) for a, b in combinations(compared, 2)},
        tasks=tuple(
            _task(task, own[own["task"].astype(str) == task], clusters)
            for task, clusters in measured.clusters.items()
        ),
        design=design.fingerprint,
        recorded=recorded,
    )
    if verdict.changed:
        return replace(verdict, sentence=f"{verdict.sentence.removesuffix('.')}; {CHANGED}.")
    return verdict


def _pearson(measured: Measured, one: str, other: str) -> float | None:
    """Correlation over common replicates; None below three or without variance."""
    from scipy import stats

    a, b = (
        dict(zip(measured.replicates[arm], measured.utility[arm], strict=True))
        for arm in (one, other)
    )
    common = [replicate for replicate in a if replicate in b]
    x, y = (np.array([u[replicate] for replicate in common]) for u in (a, b))
    if len(common) < 3 or min(np.ptp(x), np.ptp(y)) < EXACT:
        return None
    return float(stats.pearsonr(x, y).statistic)


def _task(name: str, rows: pd.DataFrame, clusters: int) -> dict[str, Any]:
    """A task's raw metric, mean over replicates, of every arm and baseline."""
    raw = {str(arm): float(value) for arm, value in rows.groupby("arm")["value"].mean().items()}
    roles = [arm.value for arm in Role if arm in raw]
    labels = rows["labels"].iloc[0] if "labels" in rows else math.nan
    return {
        "task": name,
        "metric": str(rows["metric"].iloc[0]),
        "floor": float(rows["floor"].iloc[0]),
        "ceiling": float(rows["ceiling"].iloc[0]),
        "n_test": int(rows["n_test"].iloc[0]) if "n_test" in rows else None,
        "clusters": clusters or None,
        "means": {arm: _finite(raw[arm]) for arm in [*roles, *sorted(set(raw) - set(roles))]},
        "substitution": _finite(raw["mix"] - raw["solo"]),
        "labels": int(labels) if math.isfinite(labels) else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
