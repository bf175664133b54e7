"""Verdict: the scores of the arms, and the test items behind them, turned into judged contrasts.

The replicate is the pretraining run, never the test item. Runs and places are both drawn from
something larger, so a contrast carries two variances: of runs, and of clusters of test items that
every arm shares. Everything here is pure and needs NumPy, SciPy, pandas and statsmodels only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats  # type: ignore[import-untyped]
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from gfmsum.records import Role, plain
from gfmsum.sensors import unknown

Floats = NDArray[np.float64]
POWER = 0.8  # of the minimum detectable effect
EXACT = 1e-12  # utilities nearer than this are the same number
AGREE = 1e-6  # a score and the mean of its items may differ by this much


class Kind(StrEnum):
    """What a contrast may be judged to be."""

    MORE = "more"
    LESS = "less"
    EQUAL = "equal"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A linear combination of arms, fixed before the run.

    A confirmatory contrast is adjusted by Holm within the confirmatory family; the others are
    exploratory, adjusted by Benjamini and Hochberg, and must be called so.
    """

    name: str
    symbol: str
    weights: Mapping[str, float]  # arm to coefficient
    meaning: str
    confirmatory: bool = False

    def __post_init__(self) -> None:
        for arm in self.weights:
            if arm not in list(Role):
                raise ValueError(f"contrast {self.name}: {unknown('arm', arm, list(Role))}")
        if 0 in self.weights.values() or not self.weights or sum(self.weights.values()) != 0:
            raise ValueError(
                f"contrast {self.name}: weights {dict(self.weights)} must add up to 0 and none "
                "be 0; leave out arms that do not count"
            )


CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        "substitution", "Δ", {"mix": 1, "solo": -1},
        "mix − solo: other sensors' samples in place of the sensor's own, compute equal", True,
    ),
    Contrast(
        "addition", "α", {"mix": 1, "share": -1},
        "mix − share: other sensors' samples on top of the sensor's own, compute equal",
    ),
    Contrast(
        "dilution", "δ", {"solo": 1, "share": -1},
        "solo − share: what the sensor's own samples, given up for the mix, would have added",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Design:
    """What is compared and how it will be judged, fixed before the run."""

    target: str  # sensor whose tasks are scored
    mix: tuple[str, ...]  # sensors of the mix arm
    margin: float = 0.01  # utility; differences within ± margin count as equal
    confidence: float = 0.95
    contrasts: tuple[Contrast, ...] = CONTRASTS

    def __post_init__(self) -> None:
        names = [contrast.name for contrast in self.contrasts]
        if not self.target or len(set(self.mix)) != len(self.mix) or set(self.mix) <= {self.target}:
            raise ValueError(
                f"mix {self.mix} must name sensors once and at least one besides the target "
                f"{self.target!r}; otherwise mix and solo are the same runs"
            )
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin={self.margin} must be above 0: give it in utility, as 0.01")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} must lie in [0.5, 1): give it as 0.95")
        if len(set(names)) != len(names) or "substitution" not in names:
            raise ValueError(f"contrasts {names} must be unique and hold the substitution; add it")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A contrast, estimated and judged; None where a number does not exist.

    Value, interval, standard error and mde are in utility. standard_error² is run_variance +
    item_variance; p is two-sided, p_equivalence the larger of the two one-sided tests' p. The mde
    is at the unadjusted level.
    """

    name: str
    symbol: str
    meaning: str
    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    df: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    p_equivalence: float | None = None
    mde: float | None = None
    kind: Kind = Kind.UNDECIDED
    negligible: bool = False  # equal, although the difference from 0 is significant
    exploratory: bool = True
    run_variance: float | None = None
    item_variance: float | None = None
    why: str = ""  # what the numbers lack, if anything


@dataclass(frozen=True, slots=True)
class Utilities:
    """An arm's utility: mean over tasks, per replicate in order; and the mean over replicates."""

    utility: float
    replicates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a study of one target found; kind and sentence are those of the substitution."""

    target: str
    mix: tuple[str, ...]
    kind: Kind
    sentence: str
    margin: float
    confidence: float
    estimates: tuple[Estimate, ...]
    identity_residual: float | None  # Δ − (α − δ), zero but for rounding; None if one is absent
    arms: Mapping[str, Utilities]
    correlation: Mapping[str, float | None]  # "solo~mix": Pearson over common replicates
    tasks: tuple[Mapping[str, Any], ...]  # raw metrics; ``substitution`` in units of the metric

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, without NaN or infinity."""
        return dict(plain(self))


@dataclass(frozen=True, slots=True)
class _Measured:
    """The two tables as arrays: r replicates, t tasks, n items of all tasks, g clusters."""

    utility: pd.DataFrame  # rows (arm, replicate) sorted, columns tasks sorted
    items: Floats  # (runs, n) contributions in utility
    by_cluster: Floats  # (runs, g) what each cluster adds to the run's utility, centred
    clusters: dict[str, int]  # of each task

    def rows(self, arm: str) -> NDArray[np.bool_]:
        return np.asarray(self.utility.index.get_level_values("arm") == arm)

    def of(self, arm: str) -> pd.Series[float]:
        """The arm's utility by replicate: mean over tasks."""
        return self.utility[self.rows(arm)].mean(axis=1).droplevel("arm")


def judge(scores: pd.DataFrame, predictions: pd.DataFrame, design: Design) -> Verdict:
    """Estimate and judge the design's contrasts on the target's tasks.

    Args:
        scores: one row per Score, its fields as columns; other sensors' rows are ignored, rows of
            baselines appear in ``tasks`` only.
        predictions: one row per score and test item: arm, replicate, task, item, cluster and
            contribution (utility; its mean over a score's items is the score's utility). The same
            cluster name in two tasks is the same place.

    Raises:
        ValueError: for a missing arm or score, test items that differ between runs, or
            contributions that do not average to the score.
    """
    own = scores[scores["sensor"] == design.target]
    measured = _measure(own, predictions, design)
    estimates = _decide([_estimate(c, measured, design) for c in design.contrasts], design)
    headline = next(e for e in estimates if e.name == "substitution")
    by_name = {e.name: e.value for e in estimates}
    known = {"addition", "dilution"} <= set(by_name)
    present = [arm.value for arm in Role if measured.rows(arm).any()]
    arms = {arm: measured.of(arm) for arm in present}
    compared = [arm for arm in present if any(arm in c.weights for c in design.contrasts)]
    replicates = sorted({len(arms["solo"]), len(arms["mix"])})
    return Verdict(
        target=design.target,
        mix=design.mix,
        kind=headline.kind,
        sentence=_sentence(headline, design, replicates, len(measured.clusters)),
        margin=design.margin,
        confidence=design.confidence,
        estimates=estimates,
        identity_residual=by_name["substitution"] - (by_name["addition"] - by_name["dilution"])
        if known
        else None,
        arms={a: Utilities(float(u.mean()), tuple(map(float, u))) for a, u in arms.items()},
        correlation={f"{a}~{b}": _pearson(arms[a], arms[b]) for a, b in combinations(compared, 2)},
        tasks=tuple(
            _task(str(name), rows, clusters)
            for (name, rows), clusters in zip(
                own.groupby("task"), measured.clusters.values(), strict=True
            )
        ),
    )


def _measure(own: pd.DataFrame, predictions: pd.DataFrame, design: Design) -> _Measured:
    """Check that the tables are complete and agree, and lay them out as arrays."""
    roles = [arm.value for arm in Role]
    ran = own[own["arm"].isin(roles)]
    for arm in sorted({arm for contrast in design.contrasts for arm in contrast.weights}):
        if arm not in set(ran["arm"]):
            raise ValueError(f"no scores of arm {arm!r} on {design.target}; run it, then judge")
    key = ["arm", "replicate", "task"]
    if ran.duplicated(key).any():
        arm, replicate, task = ran.loc[ran.duplicated(key), key].iloc[0]
        raise ValueError(
            f"two scores of arm {arm!r}, replicate {replicate} on task {task!r}; "
            "judge one probe at a time"
        )
    for column in ("metric", "floor", "ceiling", "n_test"):
        varying = own.groupby("task")[column].nunique() > 1
        if varying.any():
            raise ValueError(
                f"task {varying.idxmax()!r} has several values of {column}, which is frozen; "
                "score every arm again with one definition of the task"
            )
    utility = ran.set_index(key)["utility"].unstack("task").sort_index()
    for i, t in np.argwhere(~np.isfinite(utility.to_numpy()))[:1]:
        arm, replicate = utility.index[i]
        raise ValueError(
            f"arm {arm!r}, replicate {replicate} has no finite score on task "
            f"{utility.columns[t]!r}; probe that run on it"
        )

    rows = predictions[predictions["arm"].isin(roles) & predictions["task"].isin(utility.columns)]
    run = utility.index.get_indexer(pd.MultiIndex.from_frame(rows[["arm", "replicate"]]))
    if (run < 0).any():
        arm, replicate = rows[["arm", "replicate"]].iloc[int(run.argmin())]
        raise ValueError(
            f"predictions of arm {arm!r}, replicate {replicate} have no score; keep both or neither"
        )
    if rows[["item", "cluster"]].isna().to_numpy().any() or not np.isfinite(
        rows["contribution"].to_numpy()
    ).all():
        raise ValueError("predictions must have an item, a cluster and a finite contribution; fix")
    item = rows.groupby(["task", "item"]).ngroup().to_numpy()
    cluster, places = pd.factorize(rows["cluster"], sort=True)
    n = int(item.max(initial=-1)) + 1
    task_of, cluster_of = np.zeros(n, np.int64), np.zeros(n, np.int64)
    task_of[item] = utility.columns.get_indexer(rows["task"])
    cluster_of[item] = cluster
    size = np.bincount(task_of, minlength=utility.shape[1])
    if not size.all():
        raise ValueError(f"no predictions on task {utility.columns[size.argmin()]!r}; store them")
    seen = np.bincount(run * n + item, minlength=len(utility) * n).reshape(-1, n)
    for i, j in np.argwhere(seen != 1)[:1]:
        arm, replicate = utility.index[i]
        task, name = rows[["task", "item"]].iloc[int((item == j).argmax())]
        raise ValueError(
            f"task {task!r}: arm {arm!r}, replicate {replicate} predicts item {name!r} "
            f"{seen[i, j]} times; every run must predict the same test items once: probe it again"
        )
    if (cluster_of[item] != cluster).any():
        wrong = rows.iloc[int((cluster_of[item] != cluster).argmax())]
        raise ValueError(
            f"task {wrong['task']!r}: item {wrong['item']!r} is in cluster {wrong['cluster']!r} "
            "and in another; give it the same in every arm"
        )

    items = np.empty(seen.shape)
    items[run, item] = rows["contribution"]
    mean = _sum_by(items, task_of, len(size)) / size
    for i, t in np.argwhere(np.abs(mean - utility.to_numpy()) > AGREE)[:1]:
        arm, replicate = utility.index[i]
        raise ValueError(
            f"arm {arm!r}, replicate {replicate}, task {utility.columns[t]!r}: contributions "
            f"average to {mean[i, t]:.6g}, the score is {utility.iat[i, t]:.6g}; they must be the "
            "utility's parts: score it again"
        )
    centred = (items - mean[:, task_of]) / (size[task_of] * len(size))
    counts = [len(np.unique(cluster_of[task_of == t])) for t in range(len(size))]
    return _Measured(
        utility,
        items,
        _sum_by(centred, cluster_of, len(places)),
        dict(zip(map(str, utility.columns), counts, strict=True)),
    )


def _sum_by(values: Floats, labels: NDArray[np.int64], n: int) -> Floats:
    """Sums over the columns (runs, items) of each label: (runs, n)."""
    return np.stack([np.bincount(labels, row, n) for row in values])


def _variances(contrast: Contrast, measured: _Measured) -> tuple[list[tuple[float, float]], float]:
    """The run variance of each arm, with its df; and the item variance.

    Two-way random effects. Let cluster g of G add to replicate r of arm a
        y[a,g,r] = (μ[a] + A[a,r] + C[a,g] + I[a,g,r]) / G,  U[a,r] = Σ_g y[a,g,r],
    with A, I independent of variance σ²_A, σ²_I (of each arm), and C correlated between arms, as
    the places are the same; σ²_C is the variance of Σ c C. The contrast Σ c mean_r U then has
        V = Σ c² σ²_A / R  +  σ²_C / G  +  Σ c² σ²_I / (R G).
    E[Σ c² S² / R] = Σ c² (σ²_A + σ²_I / G) / R: the first and the third term.
    E[V_items]     = σ²_C / G + Σ c² σ²_I / (R G): the second and the third again.
    E[W]           = Σ c² σ²_I / (R G), as the interaction's residuals have (R − 1)(G − 1) df.
    So Σ c² S² / R + V_items − W counts each term once.
    """
    runs, difference, interaction = [], 0.0, 0.0
    for arm, weight in contrast.weights.items():
        e = measured.by_cluster[measured.rows(arm)]  # (r, g), sums to 0 over g
        r, g = e.shape
        runs.append((weight**2 * float(measured.of(arm).var()) / r, r - 1.0))
        difference = difference + weight * e.mean(axis=0)
        interaction += weight**2 * float(((e - e.mean(axis=0)) ** 2).sum()) / ((r - 1) * r)
    between = float((np.asarray(difference) ** 2).sum())
    return runs, max(0.0, between - interaction) * g / max(g - 1, 1)


def _estimate(contrast: Contrast, measured: _Measured, design: Design) -> Estimate:
    """Everything that can be said of one contrast alone."""
    utility = {arm: measured.of(arm) for arm in contrast.weights}
    blank = Estimate(
        contrast.name,
        contrast.symbol,
        contrast.meaning,
        value=float(sum(w * utility[arm].mean() for arm, w in contrast.weights.items())),
        exploratory=not contrast.confirmatory,
    )
    single = [arm for arm, values in utility.items() if len(values) < 2]
    if single:
        why = f"one replicate of {' and '.join(single)} cannot show how much runs vary"
        return replace(blank, why=why)
    runs, item_variance = _variances(contrast, measured)
    parts, why = [*runs], ""
    alone = [task for task, clusters in measured.clusters.items() if clusters < 2]
    clusters = measured.by_cluster.shape[1]
    if clusters < 2:
        why = "all test items form one cluster, so the interval holds for these places only"
    else:
        parts.append((item_variance, clusters - 1.0))
        if alone:
            why = f"the test items of {' and '.join(alone)} form one cluster: its share is unknown"
    variance = sum(v for v, _ in parts)
    error = math.sqrt(variance)
    estimate = replace(
        blank,
        standard_error=error,
        run_variance=sum(v for v, _ in runs),
        item_variance=item_variance if clusters > 1 else None,
        why=why,
    )
    if error < EXACT:
        compared = measured.items[np.any([measured.rows(arm) for arm in utility], axis=0)]
        if abs(blank.value) < EXACT and np.ptp(compared, axis=0).max() < EXACT:
            why = "every run gave the same answer on every test item"
            return replace(estimate, low=0.0, high=0.0, kind=Kind.EQUAL, why=why)
        why = "the runs do not vary at all, so the uncertainty cannot be estimated"
        return replace(estimate, why=why)
    # Satterthwaite: the df of the scaled chi-square with the variance's own variance.
    df = variance**2 / sum(v**2 / part_df for v, part_df in parts)
    reach = float(stats.t.ppf((1 + design.confidence) / 2, df)) * error
    above = stats.t.sf((blank.value + design.margin) / error, df)
    below = stats.t.cdf((blank.value - design.margin) / error, df)
    return replace(
        estimate,
        low=blank.value - reach,
        high=blank.value + reach,
        df=df,
        p=float(2 * stats.t.sf(abs(blank.value) / error, df)),
        p_equivalence=float(max(above, below)),
        mde=detectable(error, df, design.confidence),
    )


def _decide(estimates: Sequence[Estimate], design: Design) -> tuple[Estimate, ...]:
    """Adjust within the confirmatory family and among the exploratory rest, then judge each."""
    adjusted: dict[str, float] = {}
    for exploratory, method in ((False, "holm"), (True, "fdr_bh")):
        family = [e for e in estimates if e.exploratory is exploratory]
        # A contrast without a p stays a member: a family is not made smaller by what it found.
        p_values = [1.0 if e.p is None else e.p for e in family]
        adjusted |= zip((e.name for e in family), _adjust(p_values, method), strict=True)
    alpha, judged = 1 - design.confidence, []
    for e in estimates:
        if e.p is None or e.p_equivalence is None or e.low is None or e.high is None:
            judged.append(e)
            continue
        p = adjusted[e.name]
        differs = p < alpha and (e.low > 0 or e.high < 0)
        equal = e.p_equivalence < alpha
        side = Kind.MORE if e.value > 0 else Kind.LESS
        kind = Kind.EQUAL if equal else side if differs else Kind.UNDECIDED
        judged.append(replace(e, p_adjusted=p, kind=kind, negligible=equal and differs))
    return tuple(judged)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the chance of any false claim in the family stays at alpha."""
    return _adjust(p_values, "holm")


def _adjust(p_values: Sequence[float], method: str) -> list[float]:
    return [float(p) for p in multipletests(p_values, method=method)[1]] if len(p_values) else []


def detectable(standard_error: float, df: float, confidence: float = 0.95) -> float:
    """The effect that the two-sided t test at 1 − confidence finds with 80 % power.

    Root of the noncentral t distribution's power. Only where that cannot be solved, the
    approximation (t of 1 − alpha/2 + t of 0.8) · standard error stands in.
    """
    critical = float(stats.t.ppf((1 + confidence) / 2, df))

    def lacking(shift: float) -> float:
        upper, lower = stats.nct.sf(critical, df, shift), stats.nct.cdf(-critical, df, shift)
        return float(upper + lower) - POWER

    approximate = critical + float(stats.t.ppf(POWER, df))
    try:
        # The approximation errs by little, and upwards at small df: a bracket of 0 to twice it.
        return standard_error * float(optimize.brentq(lacking, 0.0, 2 * approximate))
    except (ValueError, RuntimeError):
        return standard_error * approximate


def _pearson(one: pd.Series[float], other: pd.Series[float]) -> float | None:
    """Correlation over common replicates; None below three or without variance."""
    a, b = (values.to_numpy() for values in one.align(other, join="inner"))
    if len(a) < 3 or min(np.ptp(a), np.ptp(b)) < EXACT:
        return None
    return float(stats.pearsonr(a, b).statistic)


def _task(name: str, rows: pd.DataFrame, clusters: int) -> dict[str, Any]:
    """A task's raw metric by arm and baseline, mean over replicates."""
    raw = {str(arm): float(value) for arm, value in rows.groupby("arm")["value"].mean().items()}
    order = [arm.value for arm in Role if arm in raw] + sorted(set(raw) - set(Role))
    first = rows.iloc[0]
    return {
        "task": name,
        "metric": str(first["metric"]),
        "floor": float(first["floor"]),
        "ceiling": float(first["ceiling"]),
        "n_test": int(first["n_test"]),
        "clusters": clusters,
        "means": {arm: raw[arm] if math.isfinite(raw[arm]) else None for arm in order},
        "substitution": raw["mix"] - raw["solo"],
    }


def _points(utility: float | None, signed: bool = True, digits: int = 1) -> str:
    """Utility in points with a true minus sign; a rounded zero has no sign."""
    if utility is None:
        return "n/a"
    text = f"{100 * utility:+.{digits}f}" if signed else f"{100 * utility:.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")
