"""The estimands: each against a hand calculation, another library, a property or a simulation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from itertools import combinations, permutations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from gfmsum.records import plain
from gfmsum.verdict import Estimate
from gfmsum.verdict.estimands import (
    Censored,
    Claim,
    Quantity,
    distance_law,
    exchange_rate,
    headline,
    interaction_index,
    no_harm,
    synergy,
    transfer,
)

Game = dict[frozenset[str], NDArray[np.float64]]
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def coalitions(players: str) -> list[frozenset[str]]:
    return [frozenset(c) for n in range(len(players) + 1) for c in combinations(players, n)]


def game(seed: int, players: str = "abcd", r: int = 3) -> Game:
    rng = np.random.default_rng(seed)
    return {s: rng.normal(0, 1, r) for s in coalitions(players)}


def shapley(values: Game) -> dict[str, NDArray[np.float64]]:
    return {p: interaction_index(values, p) for p in sorted(frozenset().union(*values))}


def runs(*means: float) -> list[list[float]]:
    """Three runs each, standard deviation 0.01."""
    return [[mean - 0.01, mean, mean + 0.01] for mean in means]


# Synergy

GLOVES = {s: np.array(float("l" in s and len(s) > 1)) for s in coalitions("lrq")}


def test_shapley_by_hand() -> None:
    """One left glove, two right ones: of the 6 orders, l completes a pair in 4, r and q in 1."""
    got = shapley(GLOVES)
    assert [float(got[p]) for p in "lrq"] == pytest.approx([4 / 6, 1 / 6, 1 / 6])


def test_interactions_by_hand() -> None:
    """I(l,r) = ½[v(lr) − v(l) − v(r) + v(∅)] + ½[v(lrq) − v(lq) − v(rq) + v(q)] = ½(1) + ½(0)."""
    got = [float(interaction_index(GLOVES, pair)) for pair in ("lr", "lq", "rq")]
    assert got == pytest.approx([0.5, 0.5, -0.5])


@quick
@given(SEEDS)
def test_efficiency(seed: int) -> None:
    values = game(seed)
    want = values[frozenset("abcd")] - values[frozenset()]
    assert sum(shapley(values).values()) == pytest.approx(want)


@quick
@given(SEEDS)
def test_symmetric_players_get_the_same(seed: int) -> None:
    values = game(seed)
    swap = str.maketrans("ab", "ba")
    values = {s: values[s] + values[frozenset("".join(s).translate(swap))] for s in values}
    got = shapley(values)
    assert got["a"] == pytest.approx(got["b"])
    assert interaction_index(values, "ac") == pytest.approx(interaction_index(values, "bc"))


@quick
@given(SEEDS, st.sampled_from([0.0, 0.7]))
def test_a_dummy_gets_what_it_adds_alone_and_interacts_with_nobody(seed: int, adds: float) -> None:
    """With nothing to add it is a null player."""
    values = game(seed, "abc")
    values |= {s | {"d"}: u + adds for s, u in values.items()}
    assert interaction_index(values, "d") == pytest.approx(adds)
    for other in "abc":
        assert interaction_index(values, ["d", other]) == pytest.approx(0)


@quick
@given(SEEDS, st.floats(-3, 3))
def test_linear_in_the_game_and_blind_to_a_constant(seed: int, factor: float) -> None:
    one, two = game(seed), game(seed + 1)
    for members in ("a", "bc"):
        both = interaction_index({s: factor * one[s] + two[s] + 5 for s in one}, members)
        apart = factor * interaction_index(one, members) + interaction_index(two, members)
        assert both == pytest.approx(apart)


@pytest.mark.parametrize("k", range(1, 7))
def test_shapley_is_the_mean_over_orders(k: int) -> None:
    players = "abcdef"[:k]
    values = game(k, players, 2)
    orders = list(permutations(players))
    want = [
        sum(values[frozenset(o[: o.index(p) + 1])] - values[frozenset(o[: o.index(p)])]
            for o in orders) / len(orders)
        for p in players
    ]  # fmt: skip
    assert np.array([*shapley(values).values()]) == pytest.approx(np.array(want))


def test_the_pair_index_is_what_the_merged_pair_wins_over_the_two_apart() -> None:
    """Grabisch and Roubens 1999: I(ij) = φ([ij]) − φ(i; without j) − φ(j; without i)."""
    values = game(1)
    merged = {s - {"b"}: u for s, u in values.items() if ("a" in s) == ("b" in s)}
    without = {p: {s: u for s, u in values.items() if p not in s} for p in "ab"}
    want = interaction_index(merged, "a")
    want = want - interaction_index(without["b"], "a") - interaction_index(without["a"], "b")
    assert interaction_index(values, "ab") == pytest.approx(want)


def test_shapiq_agrees() -> None:
    shapiq = pytest.importorskip("shapiq")
    players = "abcde"
    values = game(2, players, 1)

    def play(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.array(
            [
                values[frozenset(p for p, x in zip(players, row, strict=True) if x)][0]
                for row in rows
            ]
        )

    exact = shapiq.ExactComputer(n_players=5, game=play)
    ours = shapley(values)
    assert [exact("SV", 1)[(i,)] for i in range(5)] == pytest.approx([ours[p][0] for p in players])
    pairs = exact("SII", 2)
    for i, j in combinations(range(5), 2):
        want = interaction_index(values, [players[i], players[j]])[0]
        assert pairs[(i, j)] == pytest.approx(want)


def test_synergy_carries_the_replicates() -> None:
    values = game(3)
    got = synergy(values)
    assert list(got.shapley) == list("abcd")
    assert list(got.interactions) == list(combinations("abcd", 2))
    for found, index in (
        (got.shapley["b"], interaction_index(values, "b")),
        (got.interactions["b", "d"], interaction_index(values, "bd")),
    ):
        want = stats.ttest_1samp(index, 0)
        assert found.value == pytest.approx(index.mean())
        assert found.standard_error == pytest.approx(stats.sem(index))
        assert [found.low, found.high] == pytest.approx(list(want.confidence_interval()))
        assert [found.p, found.df] == pytest.approx([want.pvalue, 2])


def test_synergy_of_single_numbers_has_no_interval() -> None:
    got = synergy(GLOVES).shapley["l"]
    assert got == Quantity(pytest.approx(2 / 3), why="one replicate cannot show how much runs vary")


# Transfer


def matrix(a: float, solo: float, floor: float) -> Quantity:
    other, own, none = runs(a, solo, floor)
    return transfer({("a", "s"): other, ("s", "s"): own}, {"s": none})["a", "s"]


def test_transfer_by_hand() -> None:
    """Equal spreads, R = 3: V(ρ) = 1e-4/3 · (1 + ρ² + (1 − ρ)²), and at ρ = ½ the weights (1, −½, −½).

    N = .1, D = .2: T = ½. The interval's ends solve (N − ρD)² = t²(df(ρ)) V(ρ).
    """
    got = matrix(0.6, 0.7, 0.5)
    assert got.value == pytest.approx(0.5)
    for rho in (got.low, got.high):
        assert rho is not None
        weights = np.array([1, rho**2, (1 - rho) ** 2])
        df = 2 * weights.sum() ** 2 / (weights**2).sum()
        assert (0.1 - 0.2 * rho) ** 2 == pytest.approx(
            stats.t.ppf(0.975, df) ** 2 * 1e-4 / 3 * weights.sum()
        )
    assert got.low is not None and got.high is not None and got.low < 0.5 < got.high


def test_transfer_is_fiellers_when_runs_are_many() -> None:
    """With 4000 runs t is z whatever the df, and Fieller's quadratic gives the ends."""
    rng = np.random.default_rng(0)
    a, b, o = (rng.normal(mean, 0.5, 4000) for mean in (0.6, 0.7, 0.5))
    got = transfer({("a", "s"): a, ("s", "s"): b}, {"s": o})["a", "s"]
    va, vb, vo = (u.var(ddof=1) / len(u) for u in (a, b, o))
    n, d, z = a.mean() - o.mean(), b.mean() - o.mean(), stats.norm.ppf(0.975)
    ends = np.roots(
        [d * d - z * z * (vb + vo), 2 * (z * z * vo - n * d), n * n - z * z * (va + vo)]
    )
    assert [got.low, got.high] == pytest.approx(sorted(ends), rel=1e-3)


@quick
@given(SEEDS)
def test_transfer_does_not_depend_on_scale_and_its_p_agrees_with_its_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, o = (rng.normal(m, 0.03, 4) for m in (rng.uniform(0.45, 0.6), 0.7, 0.5))
    got, moved, flipped = (
        transfer({("a", "s"): f * a + c, ("s", "s"): f * b + c}, {"s": f * o + c})["a", "s"]
        for f, c in ((1, 0), (7, 2), (-1, 0))
    )
    assert got.low is not None and got.high is not None and got.p is not None
    assert [moved.value, moved.low, moved.high] == pytest.approx([got.value, got.low, got.high])
    assert [flipped.value, flipped.low, flipped.high] == pytest.approx(
        [got.value, got.low, got.high]
    )
    assert (got.low > 0 or got.high < 0) == (got.p < 0.05)
    assert got.p == pytest.approx(stats.ttest_ind(a, o, equal_var=False).pvalue)


def test_transfer_covers() -> None:
    """400 studies: 95 % ± three standard errors of 1.1 points, or more: few runs make it careful."""
    rng, truth, covered = np.random.default_rng(5), 0.6, 0
    for _ in range(400):
        o, b = rng.normal(0.5, 0.02, 4), rng.normal(0.6, 0.01, 4)
        a = rng.normal(0.56, 0.015, 4)
        got = transfer({("a", "s"): a, ("s", "s"): b}, {"s": o})["a", "s"]
        covered += got.low is None or (got.high is not None and got.low <= truth <= got.high)
    assert 0.917 <= covered / 400 <= 0.99


def test_the_diagonal_is_one_and_blank_where_pretraining_does_nothing() -> None:
    own, none, close = runs(0.7, 0.5, 0.51)
    got = transfer({("s", "s"): own, ("q", "q"): close, ("s", "q"): own}, {"s": none, "q": none})
    assert got["s", "s"] == Quantity(1, 1, 1, why="1 by definition")
    for target in (got["q", "q"], got["s", "q"]):
        assert target.value is target.low is target.high is None
        assert "blank: what pretraining on the target itself gains may be 0: 0.01" in target.why


def test_blank_is_decided_by_the_denominators_own_interval() -> None:
    """Welch with equal spreads and R = 3 has 4 df: reach t.975,4 · 0.01 · √(2/3)."""
    reach = stats.t.ppf(0.975, 4) * 0.01 * math.sqrt(2 / 3)
    assert matrix(0.6, 0.5 + 0.99 * reach, 0.5).value is None
    just = matrix(0.6, 0.5 + 1.01 * reach, 0.5)
    assert just.value == pytest.approx(0.1 / (1.01 * reach))
    assert just.low is not None and just.high is not None and math.isfinite(just.high)


def test_a_target_that_its_own_pretraining_harms_is_said() -> None:
    got = matrix(0.6, 0.3, 0.5)
    assert got.value == pytest.approx(-0.5)
    assert "harms it" in got.why


@pytest.mark.parametrize(
    ("a", "solo", "floor", "value", "says"),
    [
        ([0.6], [0.69, 0.71], [0.5, 0.51], 0.095 / 0.195, "one replicate"),
        ([0.5, 0.5], [0.7, 0.71], [0.5, 0.5], 0, "runs do not vary"),
        ([0.6, 0.7], [0.7], [0.5, 0.51], None, "has no interval: one replicate"),
        ([0.6, 0.7], [0.7, 0.7], [0.5, 0.5], None, "has no interval: runs do not vary"),
    ],
)
def test_transfer_of_too_little(
    a: list[float], solo: list[float], floor: list[float], value: float | None, says: str
) -> None:
    got = transfer({("a", "s"): a, ("s", "s"): solo}, {"s": floor})["a", "s"]
    assert got.value == (value if value is None else pytest.approx(value))
    assert got.low is got.high is None
    assert says in got.why


# Exchange rate


def curve(*means: float) -> dict[int, list[float]]:
    return dict(zip((250, 500, 1000), runs(*means), strict=True))


@pytest.mark.parametrize(
    ("mix", "x", "n"),
    [
        (0.50, 0, 250),
        (0.55, (250 * math.sqrt(2) - 250) / 750, 250 * math.sqrt(2)),  # half way in log n
        (0.60, 1 / 3, 500),
        (0.62, 1, 1000),
        (0.49, Censored.BELOW, None),
        (0.63, Censored.ABOVE, None),
    ],
)
def test_exchange_rate_by_hand(mix: float, x: float | Censored, n: float | None) -> None:
    """Own curve .50, .60, .62 at 250, 500, 1000; N/K = 250."""
    got = exchange_rate(curve(0.50, 0.60, 0.62), runs(mix)[0], seed=0)
    assert got.value == (x if isinstance(x, Censored) else pytest.approx(x, abs=1e-9))
    assert got.own_equivalent == (n if n is None else pytest.approx(n))


def test_a_fall_is_levelled_and_level_means_the_largest_n() -> None:
    """.50, .62, .60 is fitted by .50, .61, .61: a mix at .61 is worth all 1000."""
    assert exchange_rate(curve(0.50, 0.62, 0.60), runs(0.61)[0], seed=0).value == pytest.approx(1)
    start = exchange_rate(curve(0.52, 0.50, 0.60), runs(0.51)[0], seed=0)
    assert start.own_equivalent == pytest.approx(500)
    uneven = {250: [0.50] * 2, 500: [0.62, 0.62, 0.62], 1000: [0.58]}
    assert exchange_rate(uneven, [0.61], seed=0).value == pytest.approx(1)  # (3 · .62 + .58) / 4


def test_rounding_does_not_censor() -> None:
    mix = [0.1 + 0.2] * 2
    assert mix[0] > 0.3
    assert exchange_rate({250: [0.1, 0.2], 1000: [0.3, 0.3]}, mix, seed=0).value == pytest.approx(1)


def test_a_curve_that_does_not_rise_has_no_rate() -> None:
    got = exchange_rate(curve(0.60, 0.55, 0.50), runs(0.55)[0], seed=0)
    assert got.value is got.low is got.high is got.own_equivalent is None
    assert "level" in got.why


def test_the_interval_follows_the_seed_and_is_open_where_the_curve_ends() -> None:
    own, mix = curve(0.5, 0.6, 0.7), runs(0.69)[0]
    one, again, other = (exchange_rate(own, mix, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert isinstance(one.value, float) and isinstance(one.low, float)
    assert one.low < one.value
    assert one.high is Censored.ABOVE
    assert exchange_rate(own, runs(0.3)[0], seed=0).high is Censored.BELOW
    narrow = exchange_rate(own, mix, seed=1, confidence=0.5)
    assert isinstance(narrow.low, float) and narrow.low > one.low


@quick
@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_exchange_rate_does_not_depend_on_the_scale_of_utility(
    seed: int, factor: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    own = {n: rng.normal(n / 1000, 0.1, 3) for n in (250, 500, 1000)}
    mix = rng.normal(0.6, 0.1, 3)
    got = exchange_rate(own, mix, seed=0)
    moved = exchange_rate(
        {n: factor * u + shift for n, u in own.items()}, factor * mix + shift, seed=0
    )
    for name in ("value", "low", "high"):
        one, two = getattr(got, name), getattr(moved, name)
        assert two == (pytest.approx(one) if isinstance(one, float) else one)


def test_exchange_rate_covers_with_three_runs() -> None:
    """100 studies whose x is .6. Drawing runs with replacement would cover 80 % here."""
    rng, sizes, covered = np.random.default_rng(3), (250, 500, 1000), 0
    truth = np.interp(math.log(700), np.log(sizes), (0.50, 0.54, 0.57))
    for _ in range(100):
        own = {n: rng.normal(u, 0.004, 3) for n, u in zip(sizes, (0.5, 0.54, 0.57), strict=True)}
        got = exchange_rate(own, rng.normal(truth, 0.004, 3), seed=0)
        low = got.low if isinstance(got.low, float) else -math.inf
        high = got.high if isinstance(got.high, float) else math.inf
        covered += low <= 0.6 <= high
    assert covered / 100 > 0.93


def test_exchange_rate_of_too_little() -> None:
    got = exchange_rate({250: [0.5], 1000: [0.6, 0.7]}, [0.55, 0.56], seed=0)
    assert isinstance(got.value, float)
    assert (got.low, got.why) == (None, "one replicate cannot show how much runs vary")
    still = exchange_rate({250: [0.5] * 2, 1000: [0.6] * 2}, [0.55] * 2, seed=0)
    assert (still.low, still.why) == (None, "runs do not vary, so nothing can be inferred")


# Distance law


def test_slope_by_hand() -> None:
    """At 0, 0, 2, 2 the slope is half the difference of means; leverages are ½.

    Residuals ∓1 and ∓2; HC3: SE² = Σ (x − 1)² (e / ½)² / 4² = (4 + 4 + 16 + 16) / 16.
    """
    law = distance_law([4, 6, 0, 4], {"gsd": [0, 0, 2, 2]})
    slope = law.slopes["gsd"]
    assert (slope.value, law.intercept.value) == pytest.approx((-1.5, 5))
    assert slope.standard_error == pytest.approx(math.sqrt(2.5))
    assert (slope.df, law.points, law.covariance) == (2, 4, "HC3")


@quick
@given(SEEDS)
def test_slopes_are_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (8, 2))
    y = x @ [1, -2] + rng.normal(0, 1, 8) * (1 + x[:, 0] ** 2)
    law = distance_law(y, {"gsd": x[:, 0], "spectral": x[:, 1]}, confidence=0.9)
    want = sm.OLS(y, sm.add_constant(x)).fit(cov_type="HC3", use_t=True)
    for i, got in enumerate((law.intercept, *law.slopes.values())):
        assert got.value == pytest.approx(want.params[i])
        assert [got.low, got.high] == pytest.approx(list(want.conf_int(0.1)[i]))
        assert got.p == pytest.approx(want.pvalues[i])


def test_a_point_that_alone_fixes_the_slope_leaves_the_classical_interval() -> None:
    x, y = [0.0, 0, 0, 1], [1.0, 2, 4, 9]
    law = distance_law(y, {"gsd": x})
    want = stats.linregress(x, y)
    assert law.covariance == "classical"
    assert law.slopes["gsd"].standard_error == pytest.approx(want.stderr)
    assert law.slopes["gsd"].p == pytest.approx(want.pvalue)


def test_points_on_a_line_have_no_interval() -> None:
    slope = distance_law([1, 3, 5], {"gsd": [0, 1, 2]}).slopes["gsd"]
    assert slope.value == pytest.approx(2)
    assert slope.low is slope.p is None
    assert "on a line exactly" in slope.why


# More than the sum of its parts


def substitution(low: float | None, why: str = "") -> Estimate:
    return Estimate("substitution", "Δ", "", 0.0, low=low, why=why)


DELTAS = {"s1": substitution(-0.009), "s2": substitution(0.02)}


def test_no_sensor_harmed() -> None:
    assert no_harm(DELTAS, 0.01) == Claim(True)
    at_the_margin = no_harm(DELTAS, 0.009)
    assert at_the_margin == Claim(False, "Δ of s1 may be as low as −0.9 points, not above −0.9")
    unknown = no_harm({**DELTAS, "naip": substitution(None, "one replicate of mix")}, 0.01)
    assert not unknown.holds
    assert (
        unknown.why == "Δ of naip may be as low as anything, not above −1.0: one replicate of mix"
    )


@pytest.mark.parametrize(
    ("low", "margin", "says"),
    [
        (0.001, 0.01, []),
        (0.0, 0.01, ["Ψ's lower bound is 0.0 points, not above 0"]),
        (None, 0.01, ["Ψ's lower bound is unknown, not above 0: too few"]),
        (0.001, 0.005, ["Δ of s1"]),
        (-0.2, 0.005, ["Ψ's lower bound is −20.0 points", "Δ of s1"]),
    ],
)
def test_headline_needs_both(low: float | None, margin: float, says: list[str]) -> None:
    got = headline(Quantity(0.05, low, why="too few" if low is None else ""), DELTAS, margin)
    assert got.holds is (not says)
    assert len(list(filter(None, got.why.split("; ")))) == len(says)
    assert all(text in got.why for text in says)


# What is refused


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: interaction_index({frozenset("ab"): [1.0], frozenset("b"): [1.0]}, "a"),
            "no value of the empty mix (floor), a: a game needs all 2^K mixes",
        ),
        (lambda: interaction_index(GLOVES, "x"), "members ['x'] must be among players ['l', 'q'"),
        (lambda: interaction_index(game(0, "abcdefg", 1), "a"), "6 at most"),
        (
            lambda: synergy({**game(0, "ab"), frozenset("a"): np.ones(2)}),
            "values of a must be finite and of shape (3,)",
        ),
        (
            lambda: synergy({**game(0, "ab"), frozenset(): np.array([1, 2, np.nan])}),
            "values of the empty mix (floor) must be finite",
        ),
        (lambda: transfer({("a", "s"): [1]}, {"s": [0]}), "target 's' has no solo arm: T(a→s)"),
        (lambda: transfer({("s", "s"): [1]}, {}), "target 's' has no floor: T(s→s)"),
        (lambda: transfer({("s", "s"): [math.nan]}, {"s": [0]}), "s on s: [nan] must be finite"),
        (lambda: exchange_rate({9: [1]}, [1], seed=0), "own-only curve at n=[9]: needs N/K and N"),
        (lambda: exchange_rate({0: [1], 9: [1]}, [1], seed=0), "both above 0"),
        (
            lambda: exchange_rate(curve(0.5, 0.6, 0.7), [0.6, 0.7], seed=0, confidence=95),
            "confidence=95 must be in [0.5, 1)",
        ),
        (lambda: distance_law([1, 2], {"gsd": [0, 1]}), "2 effects at distances {'gsd': 2}"),
        (lambda: distance_law([1, 2, 4], {}), "one distance at least"),
        (lambda: distance_law([1, 2, 4], {"gsd": [0, 1]}), "each as long as effects"),
        (lambda: distance_law([1, 2, 4], {"gsd": [3, 3, 3]}), "slopes cannot be told apart"),
        (lambda: distance_law([1, None, 4], {"gsd": [0, 1, 2]}), "one per pair of sensors"),
        (lambda: no_harm({}, 0.01), "one at least"),
        (lambda: no_harm(DELTAS, 0), "a margin above 0"),
        (
            lambda: no_harm({"s1": Estimate("addition", "α", "", 0.0, low=0.1)}, 0.01),
            "deltas ['s1: addition'] with margin=0.01: give the substitution",
        ),
    ],
)
def test_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_results_are_plain_json_without_nan() -> None:
    found: Mapping[str, object] = {
        "transfer": matrix(0.6, 0.5, 0.5),
        "rate": exchange_rate(curve(0.5, 0.6, 0.7), runs(0.9)[0], seed=0),
        "law": distance_law([1, 3, 5], {"gsd": [0, 1, 2]}),
        "claim": no_harm(DELTAS, 0.01),
    }
    got = plain(found)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert got["rate"]["value"] == "above"
