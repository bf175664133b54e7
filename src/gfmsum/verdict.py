"""Verdict: the scores of the arms, and the test items behind them, turned into judged contrasts.

The replicate is the pretraining run, never the test item. Runs and places are both drawn from
something larger, so a contrast carries two variances: of runs, and of clusters of test items that
every arm shares. NumPy, SciPy, pandas and statsmodels are all that judging needs; anybody's scores
will do:

    python -m gfmsum.verdict SCORES [PREDICTIONS] target=s1 mix=s1+s2 [key=value ...]

  SCORES                a Parquet or CSV file, or a folder with scores.parquet
  PREDICTIONS           the same; default predictions.parquet beside the scores. Without any, the
                        interval carries runs but not places, and the verdict says so
  target=s1             sensor whose tasks are scored
  mix=s1+s2             sensors of the mix arm, by name
  margin=0.01           utility within which arms count as equal; 0.01 is one point
  confidence=0.95       of the intervals
  contrasts=substitution+addition+dilution    those to judge; default all three
  recorded=HEX          the design's fingerprint as written down before the runs
  json=PATH             where to write the verdict

Columns of SCORES, one row per run and task; others are ignored:

  arm        text    solo, share, mix or floor; any other name is a baseline, shown but not judged
  replicate  any     which independent pretraining of the arm
  sensor     text    whose task it is; rows of other sensors than the target are ignored
  task       text
  metric     text    more must be better
  value      number  of the metric, in its own unit
  floor      number  the metric's value that is utility 0: an answer that ignores the image
  ceiling    number  the metric's value that is utility 1; both the same in all rows of a task
  utility    number  optional: (value - floor) / (ceiling - floor)
  n_test     number  optional: test items

Columns of PREDICTIONS, one row per run, task and test item, the same items in every run:

  arm, replicate, task   as in SCORES
  item          any     name of the test item
  cluster       any     its place: items of one place are not independent. The same name in two
                        tasks is the same place
  contribution  number  utility that the item adds; its mean over a task's items is the utility

Exit codes: 0 for any verdict, 2 for words or files that cannot be used.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.records import Role, fingerprint, plain
from gfmsum.sensors import unknown
from gfmsum.tables import read_tables
from gfmsum.words import command, read_number

if TYPE_CHECKING:  # when used, so that --help and mistakes do not wait seconds for them
    import pandas as pd

Floats = NDArray[np.float64]
Squares = list[tuple[float, int]]  # mean squares with their degrees of freedom
POWER = 0.8  # of the minimum detectable effect
EXACT = 1e-12  # utilities nearer than this are the same number
AGREE = 1e-6  # a score and the mean of its items may differ by this much
CHANGED = "contrasts or margin were changed after the runs"
NO_ITEMS = "without test items the interval carries runs only, not how places vary"


class Kind(StrEnum):
    """What a contrast may be judged to be."""

    MORE = "more"
    LESS = "less"
    EQUAL = "equal"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A linear combination of arms, fixed before the run.

    Confirmatory contrasts form the family that Holm adjusts; the others are exploratory, adjusted
    after Benjamini and Hochberg, and are to be called so.
    """

    name: str
    symbol: str
    weights: Mapping[str, float]  # arm to coefficient
    meaning: str
    confirmatory: bool = False

    def __post_init__(self) -> None:
        for arm in self.weights:
            if arm not in list(Role):
                raise ValueError(f"contrast {self.name}: {unknown('arm', arm, map(str, Role))}")
        if not self.weights or abs(sum(self.weights.values())) > EXACT:
            raise ValueError(
                f"contrast {self.name}: weights {dict(self.weights)} must add up to 0, as (1, -1)"
            )


CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        "substitution", "Δ", {"mix": 1, "solo": -1},
        "mix − solo: other sensors' samples in place of the sensor's own, compute equal", True,
    ),
    Contrast(
        "addition", "α", {"mix": 1, "share": -1},
        "mix − share: other sensors' samples added to the sensor's own, compute equal",
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
    margin: float = 0.01  # utility; a difference surely within ± margin is equal
    confidence: float = 0.95
    contrasts: tuple[Contrast, ...] = CONTRASTS

    def __post_init__(self) -> None:
        names = [contrast.name for contrast in self.contrasts]
        if not self.target or len(set(self.mix)) != len(self.mix) or set(self.mix) <= {self.target}:
            raise ValueError(
                f"mix {self.mix} must name each sensor once and one besides the target "
                f"{self.target!r}, or mix and solo are the same runs; add a sensor"
            )
        if not 0 < self.margin < math.inf or not 0.5 <= self.confidence < 1:
            raise ValueError(
                f"margin={self.margin} must be above 0 and confidence={self.confidence} in "
                "[0.5, 1); give them as 0.01 and 0.95"
            )
        if len(set(names)) != len(names) or "substitution" not in names:
            raise ValueError(f"contrasts {names} must be unique and hold 'substitution'; add it")

    @property
    def fingerprint(self) -> str:
        """Names all that decides the kinds, not how it is worded or ordered: 16 hex digits."""
        contrasts = {
            c.name: [{arm: float(weight) for arm, weight in c.weights.items()}, c.confirmatory]
            for c in self.contrasts
        }
        numbers = [float(self.margin), float(self.confidence)]
        return fingerprint([self.target, sorted(self.mix), *numbers, contrasts])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A contrast, estimated and judged. All in utility; None where a number does not exist."""

    name: str
    symbol: str
    meaning: str
    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None  # root of run_variance + item_variance
    df: float | None = None
    p: float | None = None  # two-sided
    p_adjusted: float | None = None
    p_equivalence: float | None = None  # the larger of the two one-sided tests'
    mde: float | None = None  # at the unadjusted level
    kind: Kind = Kind.UNDECIDED
    negligible: bool = False  # equal, although the difference from 0 is significant
    exploratory: bool = True
    run_variance: float | None = None
    item_variance: float | None = None
    why: str = ""  # what the numbers lack, if anything


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
    identity_residual: float | None  # Δ − (α − δ): rounding only; None if one is not estimated
    arms: Mapping[str, Mapping[str, Any]]  # utility: mean; replicates: each one's mean over tasks
    correlation: Mapping[str, float | None]  # "solo~mix": Pearson over common replicates
    tasks: tuple[Mapping[str, Any], ...]  # raw: means and substitution in units of the metric
    design: str  # fingerprint of the design it was judged by
    recorded: str | None = None  # fingerprint of the design as written down before the runs

    @property
    def changed(self) -> bool:
        """Whether it was judged by another design than the recorded one."""
        return self.recorded not in (None, self.design)

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, without NaN or infinity."""
        return dict(plain(self))


@dataclass(frozen=True, slots=True)
class _Measured:
    """The two tables as arrays by arm: r replicates, n items of all tasks, g clusters."""

    utility: Mapping[str, pd.Series[float]]  # by replicate: mean over tasks
    items: Mapping[str, Floats]  # (r, n) contributions
    by_cluster: Mapping[str, Floats]  # (r, g) what a cluster adds to the utility, centred
    stratum: NDArray[np.int32]  # (g,) clusters whose tasks are linked by common places
    clusters: Mapping[str, int]  # how many each task has; 0 if its items are unknown


def judge(
    scores: pd.DataFrame,
    predictions: pd.DataFrame | None,
    design: Design,
    recorded: str | None = None,
) -> Verdict:
    """Estimate and judge the design's contrasts on the target's tasks.

    Args:
        scores: one row per Score, its fields as columns. Other sensors' rows are ignored; those of
            baselines, whose arm is no Role, appear in ``tasks`` only.
        predictions: one row per score and test item: arm, replicate, task, item, cluster and
            contribution (utility; its mean over a score's items is the score's utility). The same
            cluster name in two tasks is the same place. None if unknown: then the intervals carry
            the variance of runs only, and every estimate says so.
        recorded: fingerprint of the design as written down before the runs, if it was.

    Raises:
        ValueError: for a missing arm or score, a floor that is not below its ceiling, test items
            that differ between runs, or contributions that do not average to the score.
    """
    own = scores[scores["sensor"] == design.target]
    _check_scales(own)
    measured = _measure(own, predictions, design)
    estimates = _decide([_estimate(c, measured, design) for c in design.contrasts], design)
    value = {e.name: e.value for e in estimates}
    headline = estimates[list(value).index("substitution")]
    arms = measured.utility
    compared = [arm for arm in arms if any(arm in c.weights for c in design.contrasts)]
    sentence = _sentence(headline, design, sorted({len(arms["solo"]), len(arms["mix"])}))
    verdict = Verdict(
        target=design.target,
        mix=design.mix,
        kind=headline.kind,
        sentence=sentence,
        margin=design.margin,
        confidence=design.confidence,
        estimates=estimates,
        identity_residual=value["substitution"] - (value["addition"] - value["dilution"])
        if {"addition", "dilution"} <= set(value)
        else None,
        arms={
            arm: {"utility": float(u.mean()), "replicates": [float(x) for x in u]}
            for arm, u in arms.items()
        },
        correlation={f"{a}~{b}": _pearson(arms[a], arms[b]) for a, b in combinations(compared, 2)},
        tasks=tuple(
            _task(task, own[own["task"] == task], clusters)
            for task, clusters in measured.clusters.items()
        ),
        design=design.fingerprint,
        recorded=recorded,
    )
    if verdict.changed:
        return replace(verdict, sentence=f"{sentence.removesuffix('.')}; {CHANGED}.")
    return verdict


def _check_scales(own: pd.DataFrame) -> None:
    """Refuse a task without one floor below one ceiling."""
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


def _measure(own: pd.DataFrame, predictions: pd.DataFrame | None, design: Design) -> _Measured:
    """Check that the tables are complete and agree, and lay them out as matrices."""
    import pandas as pd
    from scipy.sparse.csgraph import connected_components

    ran = own[own["arm"].isin(list(Role))]
    for arm in sorted({arm for contrast in design.contrasts for arm in contrast.weights}):
        if arm not in set(ran["arm"]):
            raise ValueError(
                f"no score of arm {arm!r} on {design.target}; run and probe it first, or leave out "
                "the contrasts that hold it"
            )
    utility = _matrix(ran, ["task"], "utility", "probe every run once on each task, one probe only")
    u = np.ascontiguousarray(utility.to_numpy(np.float64))
    by_run = pd.Series(u.mean(axis=1), utility.index)
    arms = by_run.index.get_level_values("arm")
    rows_of = {arm.value: np.asarray(arms == arm) for arm in Role if arm in arms}
    by_arm = {arm: by_run[of].droplevel("arm") for arm, of in rows_of.items()}
    if predictions is None:
        unclustered = dict.fromkeys(map(str, utility.columns), 0)
        return _Measured(by_arm, {}, {}, np.zeros(0, dtype=np.int32), unclustered)
    rows = predictions[predictions["task"].isin(utility.columns)]
    rows = rows[rows["arm"].isin(list(Role))]
    remedy = "test items and their clusters must be the same in every arm: probe again"
    items = _matrix(rows, ["task", "item", "cluster"], "contribution", remedy, utility.index)
    task = utility.columns.get_indexer(items.columns.get_level_values("task"))
    cluster, places = items.columns.get_level_values("cluster").factorize(sort=True)
    size = np.bincount(task, minlength=utility.shape[1])
    x = np.ascontiguousarray(items.to_numpy(np.float64))
    mean = _sum_by(task, x, len(size)) / np.maximum(size, 1)
    for i, t in np.argwhere((np.abs(mean - u) > AGREE) | (size == 0)):
        arm, replicate = utility.index.to_list()[i]
        raise ValueError(
            f"arm {arm!r}, replicate {replicate!r}, task {utility.columns[t]!r}: contributions of "
            f"{size[t]} items average to {mean[i, t]:.6g} but the utility is {u[i, t]:.6g}; store "
            "the items that the score was made from"
        )
    e = _sum_by(cluster, (x - mean[:, task]) / (size[task] * len(size)), len(places))
    seen = np.zeros((len(size), len(places)), dtype=int)
    seen[task, cluster] = 1
    stratum_of_task = connected_components(seen @ seen.T, directed=False)[1]
    return _Measured(
        utility=by_arm,
        items={arm: x[of] for arm, of in rows_of.items()},
        by_cluster={arm: e[of] for arm, of in rows_of.items()},
        stratum=stratum_of_task[seen.argmax(axis=0)],
        clusters=dict(zip(map(str, utility.columns), map(int, seen.sum(axis=1)), strict=True)),
    )


def _sum_by(labels: NDArray[np.intp], values: Floats, n: int) -> Floats:
    """Sums over the columns of each of ``n`` labels: (runs, items) to (runs, n)."""
    return np.stack([np.bincount(labels, row, n) for row in values])


def _matrix(
    rows: pd.DataFrame, columns: list[str], values: str, remedy: str, runs: pd.Index | None = None
) -> pd.DataFrame:
    """``values`` with one row per run and one column per distinct ``columns``, without holes."""
    run = ["arm", "replicate"]
    names = rows[[*run, *columns]]
    problem = names.duplicated() | names.isna().any(axis=1)
    if problem.any():
        row = names[problem].iloc[0].to_dict()
        raise ValueError(f"{values} of {row} is there twice or has no name; {remedy}")
    # Sorted, so that neither sums nor messages depend on the order of the rows.
    matrix = rows.pivot(index=run, columns=columns, values=values).sort_index(axis="columns")
    matrix = matrix if runs is None else matrix.reindex(runs)
    for i, j in np.argwhere(~np.isfinite(matrix.to_numpy())):
        arm, replicate = matrix.index.to_list()[i]
        cell = matrix.columns.to_frame().iloc[j].to_dict()
        raise ValueError(
            f"arm {arm!r}, replicate {replicate!r} has no finite {values} of {cell}; {remedy}"
        )
    return matrix


def _mean_squares(contrast: Contrast, measured: _Measured) -> tuple[Squares, Squares]:
    """The runs' and the places' mean squares with their df; all of them add up to the variance.

    Two-way random effects. Let cluster g of G add to the utility of replicate r of arm a
        y[a,g,r] = (μ[a] + A[a,r] + C[a,g] + I[a,g,r]) / G,  U[a,r] = Σ_g y[a,g,r],
    with A and I independent, of variance σ²_A and σ²_I in each arm, and C correlated between arms
    because the places are the same; σ²_C is the variance of Σ c C. Then Σ c mean_r U has
        V = Σ c² σ²_A / R  +  σ²_C / G  +  Σ c² σ²_I / (R G).
    E[Σ c² S² / R] = Σ c² (σ²_A + σ²_I / G) / R: the first and the third term.
    E[V_items]     = σ²_C / G + Σ c² σ²_I / (R G): the second and again the third.
    E[W]           = Σ c² σ²_I / (R G), since the residuals of I have (G − 1)(R − 1) df.
    So Σ c² S² / R + max(0, V_items − W) counts each term once. Under normality the mean squares are
    independent. Tasks that share no place, even through others, are centred apart: each such
    stratum has its own G, V_items and W.
    """
    runs, places = Squares(), Squares()
    for arm, weight in contrast.weights.items():
        u = measured.utility[arm]
        runs.append((weight**2 * float(u.var()) / len(u), len(u) - 1))
    sizes = np.bincount(measured.stratum)
    for stratum in np.flatnonzero(sizes > 1):
        g, within = int(sizes[stratum]), measured.stratum == stratum
        difference, squares = np.zeros(g), Squares()
        for arm, weight in contrast.weights.items():
            e = measured.by_cluster[arm][:, within]  # (r, g)
            r, mean = len(e), e.mean(axis=0)
            w = float(((e - mean) ** 2).sum()) * g / ((g - 1) * (r - 1) * r)
            squares.append((-(weight**2) * w, (g - 1) * (r - 1)))
            difference += weight * mean
        squares.append((float(difference @ difference) * g / (g - 1), g - 1))
        if sum(square for square, _ in squares) > 0:
            places += squares
    return runs, places


def _estimate(contrast: Contrast, measured: _Measured, design: Design) -> Estimate:
    """All that can be said of one contrast alone: everything but the adjustment and the kind."""
    from scipy import stats

    arms = {arm: measured.utility[arm] for arm in contrast.weights}
    value = float(sum(weight * arms[arm].mean() for arm, weight in contrast.weights.items()))
    estimate = Estimate(
        contrast.name, contrast.symbol, contrast.meaning, value,
        exploratory=not contrast.confirmatory,
    )  # fmt: skip
    if single := [arm for arm, u in arms.items() if len(u) < 2]:
        why = f"one replicate of {' and of '.join(single)} cannot show how much runs vary"
        return replace(estimate, why=why)
    runs, places = _mean_squares(contrast, measured)
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


def _decide(estimates: Sequence[Estimate], design: Design) -> tuple[Estimate, ...]:
    """Adjust within the confirmatory family and among the exploratory rest, then judge each."""
    from scipy import stats

    alpha, adjusted = 1 - design.confidence, dict[str, float]()
    for exploratory, adjust in ((False, holm), (True, stats.false_discovery_control)):
        family = [e for e in estimates if e.exploratory is exploratory]
        # A contrast without a p stays a member: what was found does not shrink a family.
        p_values = [1.0 if e.p is None else e.p for e in family]
        adjusted |= zip((e.name for e in family), map(float, adjust(p_values)), strict=True)
    judged = []
    for e in estimates:
        if e.p is not None and e.p_equivalence is not None and e.low is not None:
            differs = adjusted[e.name] < alpha  # which implies an interval without 0
            side = Kind.MORE if e.value > 0 else Kind.LESS
            equal = e.p_equivalence < alpha
            kind = Kind.EQUAL if equal else side if differs else Kind.UNDECIDED
            e = replace(e, p_adjusted=adjusted[e.name], kind=kind, negligible=equal and differs)
        judged.append(e)
    return tuple(judged)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, which bounds the chance of any false claim in the family."""
    if len(p_values) < 2:  # nothing to adjust, and statsmodels collects garbage in every call
        return list(p_values)
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def detectable(standard_error: float, df: float, confidence: float = 0.95) -> float:
    """The effect that the two-sided t test at 1 − confidence finds with 80 % power.

    Root of the noncentral t distribution's power. Only if that cannot be solved, the approximation
    (t of 1 − alpha/2 + t of 0.8) · standard_error stands in; at df below 3 it is too small.
    """
    from scipy import optimize, stats

    critical = float(stats.t.ppf((1 + confidence) / 2, df))
    approximate = critical + float(stats.t.ppf(POWER, df))

    def lacking(shift: float) -> float:
        # SciPy gives NaN for some lower tails, all of which are below 1e-12.
        lower = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
        return float(stats.nct.sf(critical, df, shift) + lower) - POWER

    try:
        return standard_error * float(optimize.brentq(lacking, 0.0, 2 * approximate))
    except (ValueError, RuntimeError):
        return standard_error * approximate


def _pearson(one: pd.Series[float], other: pd.Series[float]) -> float | None:
    """Correlation over common replicates; None below three or without variance."""
    from scipy import stats

    a, b = (u.to_numpy() for u in one.align(other, join="inner"))
    if len(a) < 3 or min(np.ptp(a), np.ptp(b)) < EXACT:
        return None
    return float(stats.pearsonr(a, b).statistic)


def _task(name: str, rows: pd.DataFrame, clusters: int) -> dict[str, Any]:
    """A task's raw metric, mean over replicates, of every arm and baseline."""
    raw = {str(arm): float(value) for arm, value in rows.groupby("arm")["value"].mean().items()}
    roles = [arm.value for arm in Role if arm in raw]
    return {
        "task": name,
        "metric": str(rows["metric"].iloc[0]),
        "floor": float(rows["floor"].iloc[0]),
        "ceiling": float(rows["ceiling"].iloc[0]),
        "n_test": int(rows["n_test"].iloc[0]) if "n_test" in rows else None,
        "clusters": clusters or None,
        "means": {arm: _finite(raw[arm]) for arm in [*roles, *sorted(set(raw) - set(roles))]},
        "substitution": _finite(raw["mix"] - raw["solo"]),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _points(utility: float | None, sign: str = "+") -> str:
    """Utility in points, with a true minus; what rounds to zero has no sign."""
    if utility is None:
        return "n/a"
    text = f"{100 * utility:{sign}.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _side(e: Estimate) -> str:
    """The kind, with a difference that is real but too small to matter spelled out."""
    side = Kind.MORE if e.value > 0 else Kind.LESS
    return f"{e.kind} ({side}, but negligible)" if e.negligible else str(e.kind)


def _sentence(e: Estimate, design: Design, replicates: Sequence[int]) -> str:
    """The substitution in words."""
    plural = "" if replicates == [1] else "s"
    text = (
        f"{_side(e).capitalize()}: with {' to '.join(map(str, replicates))} replicate{plural}, "
        f"pretraining on {'+'.join(design.mix)} instead of {design.target} alone changed the score "
        f"on {design.target}'s tasks by {_points(e.value)} points"
    )
    if e.low is not None:
        interval = f"{_points(e.low)} to {_points(e.high)}"
        text += f" ({100 * design.confidence:g} % interval {interval})"
    if e.kind is Kind.UNDECIDED and e.mde is not None:
        text += f"; an effect below {_points(e.mde, '')} points is too small for this design to see"
    if e.kind is Kind.EQUAL:
        text += f"; differences within ±{_points(design.margin, '')} points count as equal"
        if e.mde is not None:
            text += f", and one of {_points(e.mde, '')} would have been detected with 80 % power"
    return f"{text}; {e.why}." if e.why else f"{text}."


def table(verdict: Verdict) -> str:
    """Arms, estimates and the identity as aligned plain text, in points, for a terminal."""
    lines = ["arm       utility ± SD   replicates"]
    for arm, u in verdict.arms.items():
        n = len(u["replicates"])
        spread = _points(float(np.std(u["replicates"], ddof=1)) if n > 1 else None, "")
        lines.append(f"{arm:6}{_points(u['utility'], ''):>8} ± {spread:<5}   {n}")
    interval = f"{100 * verdict.confidence:g} % interval"
    lines += [
        "",
        f"{'contrast':16}{'points':>8}  {interval:18}{'p':>7}{'adj. p':>8}{'MDE':>7}  kind",
    ]
    for e in verdict.estimates:
        name = f"{e.symbol} {e.name}{'*' if e.exploratory else ''}"
        reach = "n/a" if e.low is None else f"{_points(e.low)} to {_points(e.high)}"
        p, adjusted = (
            "n/a" if x is None else "<0.001" if x < 0.001 else f"{x:.3f}"
            for x in (e.p, e.p_adjusted)
        )  # fmt: skip
        lines.append(
            f"{name:16}{_points(e.value):>8}  {reach:18}{p:>7}{adjusted:>8}"
            f"{_points(e.mde, ''):>7}  {_side(e)}"
        )
    for why in dict.fromkeys(e.why for e in verdict.estimates if e.why):
        lines.append(f"{', '.join(e.symbol for e in verdict.estimates if e.why == why)}: {why}")
    if any(e.exploratory for e in verdict.estimates):
        lines += ["* exploratory: p adjusted after Benjamini and Hochberg, not Holm"]
    lines += [f"design {verdict.design}"]
    if verdict.changed:
        lines += [f"not the recorded {verdict.recorded}: {CHANGED}"]
    if verdict.identity_residual is not None:
        value = {e.name: f"{100 * e.value:+.2f}".replace("-", "−") for e in verdict.estimates}
        lines += [
            f"identity Δ = α − δ: {value['substitution']} = {value['addition']} − "
            f"({value['dilution']}), residual {abs(verdict.identity_residual):.0e}"
        ]
    return "\n".join(lines)


OPTIONS = ("target", "mix", "margin", "confidence", "contrasts", "recorded", "json")


def read_design(values: Mapping[str, str]) -> Design:
    """The design that command-line words ask for."""
    for key, example in (("target", "target=s1"), ("mix", "mix=s1+s2")):
        if key not in values:
            raise ValueError(f"{key} is missing; name it, like {example}")
    mix = tuple(values["mix"].split("+"))
    if not all(mix) or values["mix"].split("-")[0] == "all":
        raise ValueError(f"mix={values['mix']} must name its sensors, like mix=s1+s2")
    known = {contrast.name: contrast for contrast in CONTRASTS}
    names = values["contrasts"].split("+") if "contrasts" in values else list(known)
    for name in names:
        if name not in known:
            raise ValueError(unknown("contrast", name, known))
    numbers = {
        key: read_number(key, values[key], 1) for key in ("margin", "confidence") if key in values
    }
    return Design(values["target"], mix, contrasts=tuple(known[n] for n in names), **numbers)


def answer(files: Sequence[str], values: Mapping[str, str]) -> str:
    """The verdict that command-line words ask for, as text.

    Raises:
        ValueError: one line with value, rule and remedy.
    """
    if not 1 <= len(files) <= 2:
        raise ValueError(f"files {files} must be SCORES and perhaps PREDICTIONS; see --help")
    design, recorded = read_design(values), values.get("recorded")
    if recorded and not re.fullmatch("[0-9a-f]{16}", recorded):
        raise ValueError(f"recorded={recorded} must be a fingerprint: 16 hexadecimal digits")
    scores, predictions = read_tables(*map(Path, files))
    if design.target not in (sensors := set(scores["sensor"].dropna())):
        raise ValueError(unknown("target", design.target, sensors))
    verdict = judge(scores, predictions, design, recorded)
    if "json" in values:
        from gfmsum.store import to_json, write_text

        write_text(Path(values["json"]), to_json(verdict.as_dict()))
    return f"{table(verdict)}\n\n{verdict.sentence}"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return command(arguments, __doc__, OPTIONS, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
