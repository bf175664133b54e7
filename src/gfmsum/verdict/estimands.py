"""Estimands: what a study of many arms says beyond the contrasts of one target.

Synergy, transfer, exchange rate, distance law, sum of the parts. Utilities come in as one number per
replicate, the replicate being the pretraining run; so the intervals made here speak of new runs on
the same test items. Only :func:`~gfmsum.verdict.judge`, which sees the items, covers new places too.
A number that does not exist is None, never NaN, and ``why`` says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from statsmodels.regression.linear_model import OLS

from gfmsum.verdict.design import EXACT, Estimate
from gfmsum.verdict.judging import satterthwaite
from gfmsum.verdict.text import points

Floats = NDArray[np.float64]
Weighted = Sequence[tuple[float, Floats]]  # coefficient and utilities (r,) of independent arms
PLAYERS = 6  # 64 mixes; nobody pretrains more
DRAWS = 2000  # of an exchange rate
LONE = "one replicate cannot show how much runs vary"
STILL = "runs do not vary, so nothing can be inferred"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its t interval, in the unit of ``value``: utility where nothing else is said."""

    value: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    df: float | None = None
    p: float | None = None  # two-sided, of 0
    p_adjusted: float | None = None  # among all exploratory numbers of a panel
    why: str = ""  # what the numbers lack, if anything


class Censored(StrEnum):
    """Where a number lies that is outside what was measured."""

    BELOW = "below"
    ABOVE = "above"


@dataclass(frozen=True, slots=True)
class Synergy:
    """The game of the mixes: who adds how much, and which pairs add more together than apart.

    Descriptive: at fixed N the game is not additive by construction, as a sensor that joins takes
    samples from those already there.
    """

    shapley: Mapping[str, Quantity]  # by sensor; they add up to v(all) − v(none)
    interactions: Mapping[tuple[str, str], Quantity]  # by pair, above 0: complements


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """Own samples that one foreign sample is worth: 0 nothing, 1 as much as an own one."""

    value: float | Censored | None
    low: float | Censored | None = None
    high: float | Censored | None = None
    own_equivalent: float | None = None  # n*, own samples that would do what the mix does
    why: str = ""


@dataclass(frozen=True, slots=True)
class DistanceLaw:
    """How an effect changes with distance: slopes in effect per unit of each distance."""

    slopes: Mapping[str, Quantity]  # each with the other distances held
    intercept: Quantity  # effect at no distance
    points: int
    covariance: str  # "HC3", or "classical" where one point alone fixes a slope


@dataclass(frozen=True, slots=True)
class Claim:
    """A rule fixed before the run, and whether it is met; not met is not the opposite."""

    holds: bool
    why: str = ""  # each condition that is not met


# Intervals


def _numbers(what: str, values: ArrayLike, each: str = "replicate") -> Floats:
    """Values (r,), checked."""
    x = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(
            f"{what}: {x.tolist()} must be finite numbers, one per {each}; fill in or leave out"
        )
    return x


def _quantile(confidence: float) -> float:
    """Where the upper end of a two-sided interval lies."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence={confidence} must be in [0.5, 1); give it as 0.95")
    return (1 + confidence) / 2


def _welch(arms: Weighted) -> tuple[float, float, float]:
    """Σ c mean(u) of independent arms, its variance Σ c² S²/R, and Satterthwaite's df."""
    squares = [(c * c * float(u.var(ddof=1)) / len(u), len(u) - 1) for c, u in arms]
    variance = math.fsum(square for square, _ in squares)
    value = math.fsum(c * float(u.mean()) for c, u in arms)
    return value, variance, satterthwaite(squares) if variance else 1.0


def _contrast(arms: Weighted, confidence: float) -> Quantity:
    if min(len(u) for _, u in arms) < 2:
        return Quantity(math.fsum(c * float(u.mean()) for c, u in arms), why=LONE)
    value, variance, df = _welch(arms)
    return _interval(value, math.sqrt(variance), df, confidence, STILL)


def _interval(value: float, error: float, df: float, confidence: float, still: str) -> Quantity:
    reach = float(stats.t.ppf(_quantile(confidence), df)) * error
    if error < EXACT:
        return Quantity(value, why=still)
    p = float(2 * stats.t.sf(abs(value) / error, df))
    return Quantity(value, value - reach, value + reach, error, df, p)


# Synergy


def interaction_index(
    values: Mapping[frozenset[str], ArrayLike], members: Iterable[str]
) -> NDArray[np.float64]:
    """Shapley interaction index of ``members``: one is the Shapley value, two the pair's index.

    With n players, T the t members and Δ_T v(S) = Σ_{L⊆T} (−1)^(t−|L|) v(S∪L):
        I(T) = Σ_{S⊆N∖T} |S|! (n − |S| − t)! / (n − t + 1)! · Δ_T v(S).

    Args:
        values: of every coalition of the players, the empty one too: float (..., r), one shape.
        members: of the players.

    Returns:
        float (..., r), in the unit of ``values``.

    Raises:
        ValueError: if a coalition is missing, or shapes differ, or there are over 6 players.

    Source: Grabisch and Roubens 1999, definition 1 (Shapley 1953 for one member).
    """
    players = frozenset(chain.from_iterable(values))
    together = frozenset(members)
    if not together or not together <= players:
        raise ValueError(f"members {sorted(together)} must be among players {sorted(players)}")
    if len(players) > PLAYERS:
        raise ValueError(f"{len(players)} players {sorted(players)}: {PLAYERS} at most, drop some")
    if missing := [s for s in _subsets(players) if s not in values]:
        raise ValueError(f"no value of {_names(missing)}: a game needs all 2^K mixes; run them")
    v = {s: np.asarray(values[s], dtype=np.float64) for s in _subsets(players)}
    shape = v[players].shape
    if odd := [s for s, x in v.items() if x.shape != shape or not np.isfinite(x).all()]:
        raise ValueError(
            f"values of {_names(odd)} must be finite and of shape {shape}, as the full mix's: "
            "give every mix the same replicates"
        )
    n, t = len(players), len(together)
    total = np.zeros_like(v[players])
    for s in _subsets(players - together):
        weight = 1 / ((n - t + 1) * math.comb(n - t, len(s)))
        for part in _subsets(together):
            total += weight * (-1) ** (t - len(part)) * v[s | part]
    return total


def _subsets(of: frozenset[str]) -> list[frozenset[str]]:
    return [frozenset(c) for size in range(len(of) + 1) for c in combinations(sorted(of), size)]


def _names(coalitions: Iterable[frozenset[str]]) -> str:
    return ", ".join("+".join(sorted(s)) or "the empty mix (floor)" for s in coalitions)


def synergy(values: Mapping[frozenset[str], ArrayLike], confidence: float = 0.95) -> Synergy:
    """Shapley values and pair interactions of the 2^K mixes, mean and interval over replicates.

    Args:
        values: utility of every mix of the sensors, float () or (r,); the empty mix is the floor.
            A replicate is the same place in every array, whether or not its runs share anything.

    Raises:
        ValueError: as :func:`interaction_index`.
    """
    players = sorted(frozenset(chain.from_iterable(values)))

    def index(*members: str) -> Quantity:
        return _contrast([(1, _numbers("mixes", interaction_index(values, members)))], confidence)

    return Synergy(
        {player: index(player) for player in players},
        {pair: index(*pair) for pair in combinations(players, 2)},
    )


# Transfer


def transfer(
    utilities: Mapping[tuple[str, str], ArrayLike],
    floors: Mapping[str, ArrayLike],
    confidence: float = 0.95,
) -> dict[tuple[str, str], Quantity]:
    """T(a→s) = [U_s(A_a) − U_s(O)] / [U_s(A_s) − U_s(O)], no unit; None where that is blank.

    Blank: the denominator's interval includes 0 or is not known. The interval of T holds the ρ around
    T for which the t test with Satterthwaite's df does not reject U_s(A_a) − ρ U_s(A_s) −
    (1 − ρ) U_s(O) = 0: the floor, being in both differences, counts once. As ρ grows this becomes
    the denominator's own test, so where T is not blank, its interval is bounded. ``p`` is of T = 0.

    Args:
        utilities: (sensor a pretrained on, target s) to float (r,); (s, s) for every target.
        floors: target to float (r,) of random initialisations.

    Raises:
        ValueError: for a target without its solo arm or floor.

    Source: Fieller 1954; unequal variances as Tamhane and Logan 2004.
    """
    found = {}
    for a, s in utilities:
        if (s, s) not in utilities or s not in floors:
            lacking = "floor" if s not in floors else "solo arm"
            raise ValueError(f"target {s!r} has no {lacking}: T({a}→{s}) needs it; probe it first")
        other, solo = (_numbers(f"{arm} on {s}", utilities[arm, s]) for arm in (a, s))
        found[a, s] = _ratio(other, solo, _numbers(f"floor on {s}", floors[s]), confidence)
        if a == s and found[s, s].value is not None:
            found[s, s] = Quantity(1.0, 1.0, 1.0, why="1 by definition")
    return found


def _ratio(other: Floats, solo: Floats, floor: Floats, confidence: float) -> Quantity:
    below = _contrast([(1, solo), (-1, floor)], confidence)
    blank = "blank: what pretraining on the target itself gains "
    if below.low is None or below.high is None or below.value is None:
        return Quantity(None, why=f"{blank}has no interval: {below.why}")
    if below.low <= 0 <= below.high:
        reach = f"{below.low:.3g} to {below.high:.3g}"
        return Quantity(None, why=f"{blank}may be 0: {below.value:.3g}, interval {reach}")
    if len(other) < 2:
        return Quantity((float(other.mean()) - float(floor.mean())) / below.value, why=LONE)
    above = _contrast([(1, other), (-1, floor)], confidence)
    assert above.value is not None
    upper = _quantile(confidence)

    def rejected(angle: float) -> float:  # above 0 where ρ = tan(angle) is rejected
        x, y = math.cos(angle), math.sin(angle)
        value, variance, df = _welch([(x, other), (-y, solo), (y - x, floor)])
        return value**2 - float(stats.t.ppf(upper, df)) ** 2 * variance

    ratio = above.value / below.value
    if rejected(math.atan(ratio)) >= 0:  # no variance at all, as of two constant arms
        return Quantity(ratio, why=STILL)
    low, high = (
        math.tan(optimize.brentq(rejected, math.atan(ratio), end))
        for end in (-math.pi / 2, math.pi / 2)
    )
    harm = "pretraining on the target harms it, so T above 0 is harm" if below.value < 0 else ""
    return Quantity(ratio, low, high, p=above.p, why=harm)


# Exchange rate


def exchange_rate(
    own: Mapping[int, ArrayLike], mix: ArrayLike, *, seed: int, confidence: float = 0.95
) -> ExchangeRate:
    """x = (n* − N/K) / (N − N/K), with n* the own samples whose utility is the mix's.

    The own-only curve is the isotonic fit of the means, linear in log n between them; where it is
    level, n* is the largest n. x = 1 iff the mix equals the curve at N. Outside the curve x is
    censored. The interval holds the middle of 2000 draws in which each arm's mean is drawn anew, as
    mean + S/√R · t(R − 1): replicates drawn with replacement would be far too sure at R = 3 to 8.

    Args:
        own: own samples n to utilities (r,); the smallest n is N/K (share × N), the largest is N.
        mix: utilities (r,) of the mix with N samples in all.
        seed: of the draws.

    Raises:
        ValueError: with fewer than two n.

    Source: Hernandez et al. 2021, effective data transferred.
    """
    sizes = sorted(own)
    if len(sizes) < 2 or sizes[0] < 1:
        raise ValueError(f"own-only curve at n={sizes}: needs N/K and N, both above 0; run both")
    arms = [_numbers(f"{n} own samples", own[n]) for n in sizes] + [_numbers("mix", mix)]
    mean = np.array([u.mean() for u in arms])
    many = np.array([len(u) for u in arms])
    log_n = np.log(sizes)

    def fit(utility: Floats) -> Floats:
        return np.asarray(optimize.isotonic_regression(utility[:-1], weights=many[:-1]).x)

    def equivalent(utility: Floats) -> float:  # log n*, infinite where censored
        curve = fit(utility)
        knot = curve[np.abs(curve - utility[-1]).argmin()]
        target = knot if abs(knot - utility[-1]) < EXACT else utility[-1]
        i = int(np.searchsorted(curve, target, side="right"))
        if i == 0:
            return -math.inf
        if i == len(curve):
            return float(log_n[-1]) if target == curve[-1] else math.inf
        part = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
        return float(log_n[i - 1] + part * (log_n[i] - log_n[i - 1]))

    def rate(log_star: float) -> float | Censored:
        if math.isinf(log_star):
            return Censored.ABOVE if log_star > 0 else Censored.BELOW
        return (math.exp(log_star) - sizes[0]) / (sizes[-1] - sizes[0])

    if np.ptp(fit(mean)) < EXACT:
        return ExchangeRate(None, why="the own-only curve is level: own samples are worth nothing")
    star = equivalent(mean)
    found = ExchangeRate(rate(star), own_equivalent=None if math.isinf(star) else math.exp(star))
    if many.min() < 2:
        return replace(found, why=LONE)
    error = np.array([u.std(ddof=1) for u in arms]) / np.sqrt(many)
    if error.max() < EXACT:
        return replace(found, why=STILL)
    t = np.random.default_rng(seed).standard_t(many - 1, (DRAWS, len(arms)))
    stars = np.sort([equivalent(utility) for utility in mean + t * error])
    tail = int((1 - _quantile(confidence)) * DRAWS)
    return replace(found, low=rate(stars[tail]), high=rate(stars[-1 - tail]))


# Distance law


def distance_law(
    effects: ArrayLike, distances: Mapping[str, ArrayLike], confidence: float = 0.95
) -> DistanceLaw:
    """Least squares of Δ (pair mixes) or T on distances, all at once; HC3 and t intervals.

    Exploratory: pairs that share a sensor are not independent, and the few sensors there are make
    any such interval too sure.

    Args:
        effects: float (m,), one per pair of sensors; leave blanks out.
        distances: by name, float (m,) each.

    Raises:
        ValueError: with m below the number of distances + 2, or a distance that follows from the
            others or never changes.

    Source: MacKinnon and White 1985 (HC3).
    """
    y = _numbers("effects", effects, "pair of sensors")
    columns = [_numbers(name, d, "pair of sensors") for name, d in distances.items()]
    lengths = dict(zip(distances, map(len, columns), strict=True))
    if not columns or {len(y)} != set(lengths.values()) or len(y) < len(columns) + 2:
        raise ValueError(
            f"{len(y)} effects at distances {lengths}: one distance at least, each as long as "
            "effects, and two pairs of sensors more than distances; add pairs"
        )
    x = np.column_stack([np.ones(len(y)), *columns])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError(
            f"distances {list(distances)} of {len(y)} points: one never changes or follows from "
            "the others, so slopes cannot be told apart; drop it or add pairs of sensors"
        )
    fit = OLS(y, x).fit()
    # A point that alone fixes a slope has no residual, and HC3 divides by 1 − leverage.
    robust = float((np.linalg.qr(x)[0] ** 2).sum(axis=1).max()) < 1 - 1e-9
    errors = fit.HC3_se if robust else fit.bse
    still = "the points lie on a line exactly, so nothing can be inferred"
    found = [
        _interval(float(b), float(error), float(fit.df_resid), confidence, still)
        for b, error in zip(fit.params, errors, strict=True)
    ]
    slopes = dict(zip(distances, found[1:], strict=True))
    return DistanceLaw(slopes, found[0], len(y), "HC3" if robust else "classical")


# More than the sum of the parts


def no_harm(deltas: Mapping[str, Estimate], margin: float) -> Claim:
    """No sensor harmed: every Δ's lower bound is above −margin (utility).

    Every one must pass, so none needs an adjusted level (Berger 1982, intersection-union).

    Args:
        deltas: target sensor to the substitution of its verdict.

    Raises:
        ValueError: for no sensor, another contrast, or a margin that is not above 0.
    """
    wrong = [f"{s}: {e.name}" for s, e in deltas.items() if e.name != "substitution"]
    if not deltas or wrong or not 0 < margin < math.inf:
        raise ValueError(
            f"deltas {wrong or list(deltas)} with margin={margin}: give the substitution of each "
            "target's verdict, one at least, and a margin above 0, as 0.01"
        )
    why = "; ".join(
        f"Δ of {s} may be as low as {'anything' if e.low is None else f'{points(e.low)} points'}, "
        f"not above {points(-margin)}{': ' * bool(e.why)}{e.why}"
        for s, e in deltas.items()
        if e.low is None or e.low <= -margin
    )
    return Claim(not why, why)


def headline(psi: Quantity | Estimate, deltas: Mapping[str, Estimate], margin: float) -> Claim:
    """More than the sum of its parts: Ψ's lower bound is above 0 **and** no sensor is harmed.

    Args:
        psi: of :func:`~gfmsum.verdict.panel.judge_all`, over the same sensors.
        deltas, margin: of :func:`no_harm`, which says what they raise.
    """
    unmet = [no_harm(deltas, margin).why]
    if psi.low is None or psi.low <= 0:
        low = "unknown" if psi.low is None else f"{points(psi.low)} points"
        unmet.insert(0, f"Ψ's lower bound is {low}, not above 0{': ' * bool(psi.why)}{psi.why}")
    why = "; ".join(filter(None, unmet))
    return Claim(not why, why)
