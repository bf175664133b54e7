"""The verdict: each statistic against another library, a hand calculation or a simulation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import ttest_power
from statsmodels.stats.weightstats import ttost_ind

from gfmsum.records import fingerprint
from gfmsum.verdict import (
    CONTRASTS,
    Contrast,
    Design,
    Estimate,
    Kind,
    Verdict,
    detectable,
    holm,
    judge,
    satterthwaite,
    table,
)
from gfmsum.verdict.judging import superiority

Items = Mapping[str, Mapping[str, NDArray[np.float64]]]  # arm, task: (r, n) contributions
DESIGN = Design("s1", ("s1", "s2"))
SUBSTITUTION = Design("s1", ("s1", "s2"), contrasts=CONTRASTS[:1])
FLOOR, CEILING = 0.1, 0.9  # of the raw metric
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=12, deadline=None, derandomize=True)


def tables(
    items: Items, clusters: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions of runs whose test items contribute ``items``."""
    scores, predictions = [], []
    for arm, by_task in items.items():
        for task, contributions in by_task.items():
            n = contributions.shape[1]
            for replicate, row in enumerate(contributions):
                run = {"arm": arm, "replicate": replicate, "task": task}
                scores.append(
                    {
                        **run,
                        "sensor": "s1",
                        "metric": "accuracy",
                        "value": FLOOR + (CEILING - FLOOR) * row.mean(),
                        "utility": row.mean(),
                        "floor": FLOOR,
                        "ceiling": CEILING,
                        "n_test": n,
                    }
                )
                names = [f"i{i}" for i in range(n)]
                cells = {"item": names, "cluster": list(clusters[task]), "contribution": row}
                predictions.append(pd.DataFrame({**run, **cells}))
    return pd.DataFrame(scores), pd.concat(predictions, ignore_index=True)


def places(g: int, each: int, prefix: str = "c") -> list[str]:
    return [f"{prefix}{i // each}" for i in range(g * each)]


def constant(runs: Mapping[str, ArrayLike], n: int = 4) -> Items:
    """Runs in which every test item contributes the same: no places, only runs."""
    return {
        arm: {"t": np.repeat(np.asarray(u, np.float64)[:, None], n, axis=1)}
        for arm, u in runs.items()
    }


def drawn(seed: int, *, r: int = 4, g: int = 6, each: int = 3, tasks: Sequence[str] = "t") -> Items:
    """Three arms with runs, places, interactions and item noise."""
    rng = np.random.default_rng(seed)
    return {
        arm: {
            task: rng.normal(0.5, 0.05, (r, 1))
            + np.repeat(rng.normal(0, 0.2, (1, g)) + rng.normal(0, 0.1, (r, g)), each, axis=1)
            + rng.normal(0, 0.1, (r, g * each))
            for task in tasks
        }
        for arm in ("solo", "share", "mix")
    }


def verdict_of(
    items: Items, clusters: Mapping[str, Sequence[str]] | None = None, design: Design = DESIGN
) -> Verdict:
    some = next(iter(items.values()))
    clusters = clusters or {task: places(x.shape[1] // 2, 2) for task, x in some.items()}
    scores, predictions = tables(items, clusters)
    return judge(scores, design, predictions)


def substitution_of(
    items: Items, clusters: Mapping[str, Sequence[str]] | None = None, design: Design = SUBSTITUTION
) -> Estimate:
    return verdict_of(items, clusters, design).estimates[0]


def numbers(estimate: Estimate) -> list[float]:
    names = "value low high standard_error df p p_equivalence mde run_variance item_variance"
    return [getattr(estimate, name) for name in names.split()]


# Against other libraries


@quick
@given(SEEDS, st.integers(2, 8), st.integers(2, 8), st.sampled_from([0.8, 0.95, 0.99]))
def test_without_places_it_is_welchs_t_test(seed: int, a: int, b: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    mix, solo = rng.normal(0.5, 0.03, a), rng.normal(0.45, 0.01, b)
    design = Design("s1", ("s1", "s2"), 0.02, confidence, CONTRASTS[:1])
    got = substitution_of(constant({"mix": mix, "solo": solo}), design=design)
    want = stats.ttest_ind(mix, solo, equal_var=False)
    interval = want.confidence_interval(confidence)
    assert [got.low, got.high] == pytest.approx([interval.low, interval.high], rel=1e-9)
    assert [got.df, got.p] == pytest.approx([want.df, want.pvalue], rel=1e-9)
    equivalence = ttost_ind(mix, solo, -0.02, 0.02, usevar="unequal")[0]
    assert got.p_equivalence == pytest.approx(equivalence, rel=1e-9)
    assert got.standard_error is not None
    assert got.mde == pytest.approx(detectable(got.standard_error, want.df, confidence))


@pytest.mark.parametrize("df", [4.7, 14.0, 300.0, 1e6])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_minimum_detectable_effect_has_the_power_statsmodels_says(
    df: float, confidence: float
) -> None:
    effect = detectable(0.02, df, confidence) / 0.02
    assert ttest_power(effect, nobs=1, alpha=1 - confidence, df=df) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("df", [1.0, 1.01, 1.2, 2.0, 3.0, 4.7, 30.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_minimum_detectable_effect_has_its_power_at_any_df(df: float, confidence: float) -> None:
    effect, critical = detectable(1.0, df, confidence), stats.t.ppf((1 + confidence) / 2, df)

    def found(quantile: float) -> float:  # given the error's estimate, over the error
        estimated = math.sqrt(stats.chi2.ppf(quantile, df) / df)
        below = stats.norm.cdf(-effect - critical * estimated)
        return float(stats.norm.cdf(effect - critical * estimated) + below)

    assert integrate.quad(found, 0, 1, limit=200)[0] == pytest.approx(0.8, abs=1e-4)


def test_degrees_of_freedom_by_hand() -> None:
    assert satterthwaite([(1.0, 2), (3.0, 4)]) == pytest.approx(16 / (1 / 2 + 9 / 4))
    assert satterthwaite([(7.0, 5)]) == 5
    assert satterthwaite([(1.0, 1), (-0.9, 1)]) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert (holm([]), holm([0.2])) == ([], [0.2])


@quick
@given(st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.02, 0.3, 1.0]) | st.floats(0, 1), min_size=1))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_confirmatory_contrasts_are_adjusted_by_holm_and_the_rest_after_benjamini_hochberg() -> (
    None
):
    items = drawn(2)
    raw = [e.p for e in verdict_of(items).estimates]
    assert None not in raw
    estimates = verdict_of(items).estimates
    assert [e.exploratory for e in estimates] == [False, True, True]
    assert estimates[0].p_adjusted == estimates[0].p
    rest = stats.false_discovery_control(raw[1:])
    assert [e.p_adjusted for e in estimates[1:]] == pytest.approx(rest)

    family = [Contrast(c.name, c.symbol, c.weights, c.meaning, True) for c in CONTRASTS]
    together = verdict_of(items, design=Design("s1", ("s1", "s2"), contrasts=tuple(family)))
    assert [e.p_adjusted for e in together.estimates] == holm([p for p in raw if p is not None])


def test_a_contrast_without_p_stays_in_its_family() -> None:
    items = constant({"mix": [0.3], "solo": [0.5, 0.52, 0.51], "share": [0.4, 0.42, 0.44]})
    addition, dilution = verdict_of(items).estimates[1:]
    assert addition.p is None
    assert addition.p_adjusted is None
    assert dilution.p is not None
    assert dilution.p_adjusted == pytest.approx(2 * dilution.p)


def test_correlation_is_pearsons_over_common_replicates() -> None:
    mix, solo = [0.5, 0.52, 0.49, 0.55], [0.4, 0.45, 0.41, 0.44, 0.9]
    share = [0.3, 0.3, 0.3]
    rho = verdict_of(constant({"mix": mix, "solo": solo, "share": share})).correlation
    assert rho == {
        "solo~share": None,
        "solo~mix": pytest.approx(stats.pearsonr(mix, solo[:4]).statistic),
        "share~mix": None,
    }
    two = verdict_of(constant({"mix": mix[:2], "solo": solo, "share": share}))
    assert two.correlation["solo~mix"] is None


def test_superiority_by_hand() -> None:
    """2 > 1, 2 = 2, 3 > 1, 3 > 2: 3½ of 4 pairs."""
    assert superiority(np.array([2.0, 3]), np.array([1.0, 2])) == 3.5 / 4


@quick
@given(SEEDS)
def test_superiority_is_mann_whitneys_u(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mix, solo = rng.integers(0, 4, 5) / 10, rng.integers(0, 4, 7) / 10
    got = superiority(mix, solo)
    assert got == pytest.approx(stats.mannwhitneyu(mix, solo).statistic / 35)
    assert superiority(solo, mix) == superiority(-mix, -solo) == pytest.approx(1 - got)
    assert superiority(mix + 1, solo + 1) == got


# By hand

GOLDEN: Items = {  # two items in each of two places, two replicates
    "mix": {"t": np.array([[1.0, 1, 0, 0], [1, 1, 1, 1]])},
    "solo": {"t": np.array([[0.0, 0, 1, 1], [0, 0, 1, 0]])},
}


def test_variances_by_hand() -> None:
    """U: mix .5, 1, solo .5, .25. e of the first place: mix .25, 0, solo -.25, -.125, and the
    second place's is its negative. So d = ±(.125 + .1875), V_items = 2/1 · 2 · .3125², and
    W = 2/(1·1·2) · (4 · .125² + 4 · .0625²)."""
    got = substitution_of(GOLDEN)
    assert got.value == 0.375
    assert got.run_variance == 0.125 / 2 + 0.03125 / 2
    v_items, w_mix, w_solo = 0.390625, 0.0625, 0.015625
    assert got.item_variance == v_items - w_mix - w_solo
    variance = 0.078125 + 0.3125
    assert got.standard_error == pytest.approx(math.sqrt(variance))
    squares = [0.0625, 0.015625, v_items, w_mix, w_solo]  # each with one df
    assert variance**2 < sum(x**2 for x in squares)
    assert got.df == 1


def loop_variances(
    contrast: Contrast, items: Items, cluster: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """V_items, and W by arm, of one task, a term at a time."""
    names = sorted(set(cluster))
    g, v_items, w = len(names), 0.0, dict.fromkeys(contrast.weights, 0.0)
    for name in names:
        d = 0.0
        for arm, c in contrast.weights.items():
            u = items[arm]["t"]
            r, n = u.shape
            e = [
                float(sum(u[k, i] - u[k].mean() for i in range(n) if cluster[i] == name)) / n
                for k in range(r)
            ]
            d += c * sum(e) / r
            w[arm] += c**2 * g / ((g - 1) * (r - 1) * r) * sum((x - sum(e) / r) ** 2 for x in e)
        v_items += g / (g - 1) * d**2
    return v_items, w


@quick
@given(SEEDS, st.integers(2, 5), st.integers(2, 6))
def test_item_variance_is_the_plain_loops(seed: int, r: int, g: int) -> None:
    items = drawn(seed, r=r, g=g)
    cluster = places(g, 3)
    cluster[0] = cluster[-1]  # places of unequal size
    for contrast, e in zip(CONTRASTS, verdict_of(items, {"t": cluster}).estimates, strict=True):
        v_items, w = loop_variances(contrast, items, cluster)
        item_variance = max(0.0, v_items - sum(w.values()))
        assert e.item_variance == pytest.approx(item_variance, rel=1e-9, abs=1e-15)
        runs = [float(items[arm]["t"].mean(axis=1).var(ddof=1)) / r for arm in contrast.weights]
        assert e.run_variance == pytest.approx(sum(runs))
        assert e.standard_error == pytest.approx(math.sqrt(sum(runs) + item_variance))
        squares = [(x, r - 1) for x in runs]
        if item_variance:
            squares += [(x, (g - 1) * (r - 1)) for x in w.values()] + [(v_items, g - 1)]
        spread = sum(x**2 / df for x, df in squares)
        assert e.df == pytest.approx(max(1.0, (sum(runs) + item_variance) ** 2 / spread))


def test_places_that_two_tasks_share_add_up() -> None:
    """Where the second task mirrors the first, the mean over tasks does not vary with place."""
    one = drawn(3, tasks=("t",))
    mirrored = {arm: {"t": x["t"], "v": 1 - x["t"]} for arm, x in one.items()}
    shared = substitution_of(mirrored, {"t": places(6, 3), "v": places(6, 3)})
    assert shared.item_variance == pytest.approx(0, abs=1e-20)
    assert shared.run_variance == pytest.approx(0, abs=1e-20)


def test_tasks_without_common_places_are_judged_apart() -> None:
    items = drawn(5, tasks=("t", "v"))
    clusters = {"t": places(6, 3, "a"), "v": places(6, 3, "b")}
    alone = [
        substitution_of({arm: {task: x[task]} for arm, x in items.items()}, clusters)
        for task in ("t", "v")
    ]
    both = substitution_of(items, clusters)
    assert min(e.item_variance or 0 for e in alone) > 0
    assert both.item_variance == pytest.approx(sum(e.item_variance or 0 for e in alone) / 4)
    assert both.value == pytest.approx((alone[0].value + alone[1].value) / 2)


def test_one_place_in_common_joins_tasks() -> None:
    items = drawn(5, tasks=("t", "v"))
    clusters = {"t": places(6, 3, "a"), "v": [*places(5, 3, "b"), "a0", "a0", "a0"]}
    e = substitution_of(items, clusters)
    # Eleven places in one stratum: the slow loop, with contributions already centred by task.
    joined = {
        arm: {"t": np.hstack([y - y.mean(1, keepdims=True) for y in x.values()])}
        for arm, x in items.items()
    }
    v_items, w = loop_variances(CONTRASTS[0], joined, clusters["t"] + clusters["v"])
    assert e.item_variance == pytest.approx(v_items - sum(w.values()))


# Properties


@quick
@given(SEEDS)
def test_swapping_arms_flips_the_sign(seed: int) -> None:
    items = drawn(seed)
    one = substitution_of(items)
    other = substitution_of({**items, "mix": items["solo"], "solo": items["mix"]})
    assert other.value == pytest.approx(-one.value)
    assert [other.low, other.high] == pytest.approx(-np.array([one.high, one.low]))
    assert numbers(other)[3:] == pytest.approx(numbers(one)[3:])
    flipped = {Kind.MORE: Kind.LESS, Kind.LESS: Kind.MORE}
    assert other.kind is flipped.get(one.kind, one.kind)


@quick
@given(SEEDS, st.floats(-2, 2))
def test_a_constant_changes_nothing(seed: int, shift: float) -> None:
    items = drawn(seed, tasks=("t", "v"))
    moved = {arm: {"t": x["t"] + shift, "v": x["v"]} for arm, x in items.items()}
    want, got = numbers(substitution_of(items)), numbers(substitution_of(moved))
    assert got == pytest.approx(want, rel=1e-6, abs=1e-12)


@quick
@given(SEEDS, st.integers(2, 4))
def test_repeating_test_items_in_their_places_does_not_narrow_the_interval(
    seed: int, times: int
) -> None:
    items = drawn(seed)
    repeated = {arm: {"t": np.tile(x["t"], times)} for arm, x in items.items()}
    want = substitution_of(items, {"t": places(6, 3)})
    got = substitution_of(repeated, {"t": places(6, 3) * times})
    assert numbers(got) == pytest.approx(numbers(want), rel=1e-9)


@settings(quick, max_examples=5)
@given(SEEDS)
def test_order_of_replicates_and_rows_changes_nothing(seed: int) -> None:
    rng, items = np.random.default_rng(seed), drawn(seed)
    permuted = {arm: {"t": rng.permutation(x["t"])} for arm, x in items.items()}
    want = numbers(substitution_of(items))
    assert numbers(substitution_of(permuted)) == pytest.approx(want, rel=1e-9)
    clusters = {"t": places(9, 2), "v": places(9, 2)}
    scores, predictions = tables(drawn(seed, r=7, tasks=("t", "v")), clusters)
    shuffled = (scores.sample(frac=1, random_state=1), predictions.sample(frac=1, random_state=2))
    assert (
        judge(shuffled[0], DESIGN, shuffled[1]).as_dict()
        == judge(scores, DESIGN, predictions).as_dict()
    )


@quick
@given(SEEDS)
def test_substitution_is_addition_less_dilution(seed: int) -> None:
    verdict = verdict_of(drawn(seed, tasks=("t", "v")))
    delta, alpha, dilution = (e.value for e in verdict.estimates)
    assert delta == pytest.approx(alpha - dilution, abs=1e-12)
    assert verdict.identity_residual == delta - (alpha - dilution)


@quick
@given(SEEDS, st.floats(-0.1, 0.1), st.sampled_from([(0.005, 0.95), (0.05, 0.95), (0.05, 0.8)]))
def test_kinds_follow_from_the_numbers(seed: int, effect: float, rule: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    runs = {"mix": 0.5 + effect + rng.normal(0, 0.02, 6), "solo": 0.5 + rng.normal(0, 0.02, 6)}
    e = substitution_of(constant(runs), design=Design("s1", ("s2",), *rule, CONTRASTS[:1]))
    assert e.low is not None
    assert e.high is not None
    assert e.p_equivalence is not None
    differs, equal = e.low > 0 or e.high < 0, e.p_equivalence < 1 - rule[1]
    assert (e.kind is Kind.EQUAL) == equal
    assert e.negligible == (equal and differs)
    assert (e.kind is Kind.MORE) == (e.low > 0 and not equal)
    assert (e.kind is Kind.LESS) == (e.high < 0 and not equal)


def test_the_level_is_the_designs() -> None:
    """p_equivalence is 0.09, between the two levels."""
    runs = constant({"mix": [0.46, 0.51, 0.53], "solo": [0.50, 0.51, 0.52]})
    designs = [Design("s1", ("s2",), 0.05, level, CONTRASTS[:1]) for level in (0.9, 0.95)]
    kinds = [substitution_of(runs, design=design).kind for design in designs]
    assert kinds == [Kind.EQUAL, Kind.UNDECIDED]


# What cannot be known


def test_one_replicate_gives_a_point_and_no_more() -> None:
    verdict = verdict_of(constant({"mix": [0.6], "solo": [0.5, 0.52], "share": [0.4, 0.41]}))
    e = verdict.estimates[0]
    assert e.value == pytest.approx(0.09)
    assert e.kind is Kind.UNDECIDED
    assert numbers(e)[1:] == [None] * 9
    assert "one replicate of mix" in e.why
    assert e.why in verdict.sentence
    assert verdict.estimates[2].low is not None
    assert verdict.sentence.startswith("Undecided: with 1 to 2 replicates, ")


def scores_of(runs: Mapping[str, ArrayLike]) -> pd.DataFrame:
    return tables(constant(runs), {"t": ["here"] * 4})[0]


def test_without_test_items_it_is_welchs_t_test_and_says_what_it_lacks() -> None:
    items = drawn(3)
    scores, _ = tables(items, {"t": places(6, 3)})
    verdict = judge(scores, DESIGN)
    e = verdict.estimates[0]
    mix, solo = (items[arm]["t"].mean(axis=1) for arm in ("mix", "solo"))
    want = stats.ttest_ind(mix, solo, equal_var=False)
    assert [e.p, e.df] == pytest.approx([want.pvalue, want.df])
    assert (e.item_variance, verdict.tasks[0]["clusters"]) == (None, None)
    lacks = "without test items the interval carries runs only, not how places vary"
    assert {x.why for x in verdict.estimates} == {lacks}
    assert verdict.sentence.endswith(f"; {lacks}.")
    assert f"Δ, α, δ: {lacks}" in table(verdict).splitlines()


def test_equal_scores_without_test_items_are_not_called_equal() -> None:
    """Two runs may reach one score by different answers, and nobody can look."""
    scores = scores_of({"mix": [0.5, 0.5], "solo": [0.5, 0.5]})
    e = judge(scores, SUBSTITUTION).estimates[0]
    assert (e.kind, e.value, e.low, e.p) == (Kind.UNDECIDED, 0, None, None)
    assert e.why.startswith("runs do not vary")


def test_arms_with_the_same_runs_tie() -> None:
    """p is exactly 1, and whether they are equal is a matter of how much runs vary."""
    kinds = {}
    for spread in (0.001, 0.1):
        runs = {arm: [0.5, 0.5 + spread, 0.5 - spread] for arm in ("mix", "solo")}
        e = substitution_of(constant(runs))
        assert (e.value, e.p, e.p_adjusted) == (0, 1, 1)
        assert e.low == -(e.high or 0)
        kinds[spread] = e.kind
    assert kinds == {0.001: Kind.EQUAL, 0.1: Kind.UNDECIDED}


@quick
@given(SEEDS)
def test_one_task_is_the_mean_over_itself(seed: int) -> None:
    one = drawn(seed)
    twice = {arm: {"t": x["t"], "again": x["t"]} for arm, x in one.items()}
    got = substitution_of(twice, {"t": places(6, 3), "again": places(6, 3)})
    assert numbers(got) == pytest.approx(numbers(substitution_of(one, {"t": places(6, 3)})))


@settings(quick, max_examples=40)
@given(
    SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["t", "tv"]),
    st.integers(0, 2), st.booleans(),
)  # fmt: skip
def test_every_table_has_an_answer_without_nan(
    seed: int, r_mix: int, r_solo: int, g: int, tasks: str, decimals: int, known: bool
) -> None:
    """Few runs, few places, and rounding so coarse that ties and sameness are common."""
    items = drawn(seed, r=3, g=g, each=2, tasks=tasks)
    r = {"mix": r_mix, "solo": r_solo, "share": 2}
    items = {
        arm: {task: np.round(x, decimals)[: r[arm]] for task, x in by_task.items()}
        for arm, by_task in items.items()
    }
    scores, predictions = tables(items, {task: places(g, 2) for task in tasks})
    verdict = judge(scores, DESIGN, predictions if known else None)
    json.dumps(verdict.as_dict(), allow_nan=False)
    assert "nan" not in table(verdict) + verdict.sentence
    for e in verdict.estimates:
        assert (e.low is None) == (e.high is None)
        assert e.low is not None or (e.kind is Kind.UNDECIDED and e.why)
        assert e.p is None or 0 <= e.p <= (e.p_adjusted or 0) <= 1


def test_answers_that_are_all_the_same_are_equal() -> None:
    e = substitution_of({arm: {"t": np.tile([0.0, 1, 1, 0], (3, 1))} for arm in ("mix", "solo")})
    assert (e.kind, e.value, e.low, e.high) == (Kind.EQUAL, 0, 0, 0)
    assert e.p is e.df is e.mde is None
    assert "same answer on every test item" in e.why


def test_a_difference_without_variance_is_undecided() -> None:
    e = substitution_of(constant({"mix": [0.6, 0.6], "solo": [0.5, 0.5]}))
    assert (e.kind, e.low, e.p) == (Kind.UNDECIDED, None, None)
    assert "do not vary" in e.why


def test_equal_scores_by_different_answers_are_not_called_equal() -> None:
    """Places cancel within each run, and runs score the same: no variance, yet no sameness."""
    flips = np.array([[0.0, 1, 0, 1], [1, 0, 1, 0]])
    e = substitution_of({"mix": {"t": flips}, "solo": {"t": flips}})
    assert (e.value, e.standard_error, e.kind) == (0, 0, Kind.UNDECIDED)


def test_one_place_leaves_the_runs() -> None:
    items = drawn(0)
    e = substitution_of(items, {"t": ["here"] * 18})
    want = stats.ttest_ind(items["mix"]["t"].mean(1), items["solo"]["t"].mean(1), equal_var=False)
    assert e.item_variance is None
    assert "t form one cluster" in e.why
    assert [e.p, e.df] == pytest.approx([want.pvalue, want.df])


def test_a_task_of_one_place_is_named() -> None:
    items = drawn(4, tasks=("t", "v"))
    e = substitution_of(items, {"t": places(6, 3), "v": ["here"] * 18})
    assert e.item_variance is not None
    assert "test items of v form one cluster" in e.why
    each_its_own = {"t": ["here"] * 18, "v": ["there"] * 18}
    assert substitution_of(items, each_its_own).item_variance is None


def test_degrees_of_freedom_never_fall_below_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(15):
        items = {arm: {"t": rng.normal(0, 1, (2, 4))} for arm in ("mix", "solo")}
        e = substitution_of(items)
        assert e.df is not None
        assert e.df >= 1
        assert all(x is not None and math.isfinite(x) for x in numbers(e))


# What is refused


def broken(how: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    scores, predictions = tables(drawn(0), {"t": places(6, 3)})
    of_mix = (scores["arm"] == "mix") & (scores["replicate"] == 2)
    at = predictions.index[(predictions["arm"] == "mix") & (predictions["replicate"] == 2)]
    match how:
        case "arm":
            scores = scores[scores["arm"] != "mix"]
        case "score":
            second = scores.assign(task="v")
            scores = pd.concat([scores, second[~of_mix]])
        case "nan":
            scores.loc[of_mix, "utility"] = np.nan
        case "probe":
            scores = pd.concat([scores, scores[of_mix]])
        case "item":
            predictions = predictions.drop(at[4])
        case "other item":
            predictions.loc[at[4], "item"] = "new"
        case "twice":
            predictions = pd.concat([predictions, predictions.loc[at[4:5]]])
        case "cluster":
            predictions.loc[at[4], "cluster"] = "elsewhere"
        case "no cluster":
            predictions.loc[at[4], "cluster"] = None
        case "infinite":
            predictions.loc[at[4], "contribution"] = np.inf
        case "predictions":
            predictions = predictions.drop(at)
        case "mean":
            predictions.loc[at, "contribution"] += 2e-6
        case "no replicate":
            scores.loc[of_mix, "replicate"] = np.nan
        case "task":
            predictions["task"] = "v"
            scores["utility"] = 0.0
    return scores, predictions


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("arm", "no score of arm 'mix' on s1; run and probe it first"),
        ("score", "'mix', replicate 2 has no finite utility of {'task': 'v'}; probe every run"),
        ("nan", "'mix', replicate 2 has no finite utility of {'task': 't'}"),
        ("no replicate", "'replicate': nan, 'task': 't'} is there twice or has no name"),
        ("probe", "utility of {'arm': 'mix', 'replicate': 2, 'task': 't'} is there twice"),
        ("item", "'mix', replicate 2 has no finite contribution of {'task': 't', 'item': 'i4'"),
        ("other item", "test items and their clusters must be the same in every arm"),
        ("twice", "'item': 'i4', 'cluster': 'c1'} is there twice"),
        ("cluster", "'cluster': 'elsewhere'}; test items and their clusters must be the same"),
        ("no cluster", "'i4', 'cluster': nan} is there twice or has no name"),
        ("infinite", "no finite contribution of {'task': 't', 'item': 'i4'"),
        ("predictions", "'mix', replicate 2 has no finite contribution"),
        ("mean", "'mix', replicate 2, task 't': contributions of 18 items average to 0.275684"),
        ("task", "task 't': contributions of 0 items average to 0 but the utility is 0;"),
    ],
)
def test_incomplete_tables_are_refused(how: str, says: str) -> None:
    scores, predictions = broken(how)
    with pytest.raises(ValueError, match=re.escape(says)):
        judge(scores, DESIGN, predictions)


@pytest.mark.parametrize(
    ("floor", "ceiling", "says"),
    [
        (0.9, 0.1, "task 't': floor 0.9 must be below ceiling 0.1; swap them"),
        (0.5, 0.5, "floor 0.5 must be below ceiling 0.5"),
        (np.nan, 0.5, "floor nan must be below ceiling 0.5"),
        (0.0, np.inf, "floor 0 must be below ceiling inf"),
        ([0.1, 0.2] * 6, 0.9, "task 't' has 2 scales: floors [0.1, 0.2] and ceilings [0.9, 0.9]"),
    ],
)
def test_scales_without_a_floor_below_a_ceiling_are_refused(
    floor: object, ceiling: object, says: str
) -> None:
    scores, predictions = tables(drawn(0), {"t": places(6, 3)})
    with pytest.raises(ValueError, match=re.escape(says)):
        judge(scores.assign(floor=floor, ceiling=ceiling), DESIGN, predictions)
    others = scores.assign(floor=floor, ceiling=ceiling, sensor="s2")
    judge(pd.concat([scores, others]), DESIGN, predictions)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Design("s1", ("s1",)), "add a sensor"),
        (lambda: Design("s1", ()), "add a sensor"),
        (lambda: Design("s1", ("s1", "s2", "s2")), "name each sensor once"),
        (lambda: Design("s1", ("s2",), margin=0), "margin=0 must be above 0"),
        (lambda: Design("s1", ("s2",), confidence=95), "confidence=95 in [0.5, 1)"),
        (lambda: Design("s1", ("s2",), contrasts=CONTRASTS[1:]), "hold 'substitution'"),
        (lambda: Design("s1", ("s2",), contrasts=CONTRASTS[:1] * 2), "must be unique"),
        (lambda: Design("s1", ("s2",), tasks=("t", "t")), "must name each task once"),
        (lambda: Contrast("c", "c", {"mxi": 1, "solo": -1}, ""), "did you mean 'mix'?"),
        (lambda: Contrast("c", "c", {"mix": 1, "solo": -2}, ""), "must add up to 0"),
    ],
)
def test_impossible_designs_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


# What was fixed before the runs


def test_fingerprint_by_hand() -> None:
    contrasts = {
        "substitution": [{"mix": 1.0, "solo": -1.0}, True],
        "addition": [{"mix": 1.0, "share": -1.0}, False],
        "dilution": [{"solo": 1.0, "share": -1.0}, False],
    }
    assert DESIGN.fingerprint == fingerprint(["s1", ["s1", "s2"], 0.01, 0.95, contrasts])
    assert re.fullmatch("[0-9a-f]{16}", DESIGN.fingerprint)


def test_fingerprint_names_what_decides_and_nothing_else() -> None:
    first, *rest = CONTRASTS
    weights, worded = {"mix": 2.0, "solo": -2.0}, {"solo": -1.0, "mix": 1.0}
    same = [
        Design("s1", ("s2", "s1")),
        Design("s1", ("s1", "s2"), contrasts=CONTRASTS[::-1]),
        Design(
            "s1", ("s1", "s2"), 0.01, 0.95, (Contrast(first.name, "D", worded, "", True), *rest)
        ),
    ]
    other = [
        Design("s2", ("s1", "s2")),
        Design("s1", ("s1", "s2", "naip")),
        Design("s1", ("s1", "s2"), margin=0.02),
        Design("s1", ("s1", "s2"), confidence=0.9),
        Design("s1", ("s1", "s2"), contrasts=CONTRASTS[:2]),
        Design("s1", ("s1", "s2"), tasks=("t",)),
        Design("s1", ("s1", "s2"), tasks=("t", "t@10")),
        Design("s1", ("s1", "s2"), contrasts=(Contrast(first.name, "Δ", weights, "", True), *rest)),
        Design("s1", ("s1", "s2"), contrasts=(Contrast(first.name, "Δ", worded, ""), *rest)),
    ]
    assert {design.fingerprint for design in same} == {DESIGN.fingerprint}
    assert len({design.fingerprint for design in [DESIGN, *other]}) == 1 + len(other)


def test_a_design_changed_after_the_runs_is_said() -> None:
    scores, predictions = tables(drawn(0), {"t": places(6, 3)})
    before, after = DESIGN.fingerprint, Design("s1", ("s1", "s2"), margin=0.05)
    kept = judge(scores, DESIGN, predictions, recorded=before)
    unknown = judge(scores, DESIGN, predictions)
    changed = judge(scores, after, predictions, recorded=before)
    says = "tasks, contrasts or margin were changed after the runs"
    assert [v.changed for v in (kept, unknown, changed)] == [False, False, True]
    assert changed.sentence.endswith(f"; {says}.")
    assert f"not the recorded {before}: {says}" in table(changed).splitlines()
    assert kept.sentence == unknown.sentence
    for verdict in (kept, unknown):
        assert says not in verdict.sentence + table(verdict)
        assert f"design {before}" in table(verdict).splitlines()
    got = changed.as_dict()
    assert (got["design"], got["recorded"]) == (after.fingerprint, before)


def test_the_tasks_of_a_design_are_those_that_count() -> None:
    """The same as if nothing else had been scored; a task that was named and is not there is missed."""
    clusters = {"t": places(6, 3), "t@10": places(6, 3), "u": places(6, 3, "d")}
    scores, predictions = tables(drawn(3, tasks=list(clusters)), clusters)
    named = Design("s1", ("s1", "s2"), tasks=("t@10", "t"))
    swapped = Design("s1", ("s1", "s2"), tasks=("t", "t@10"))
    assert named.fingerprint == swapped.fingerprint
    alone = [frame[frame["task"] != "u"] for frame in (scores, predictions)]
    got, want = judge(scores, named, predictions), judge(alone[0], DESIGN, alone[1])
    assert got.estimates == want.estimates and got.tasks == want.tasks
    assert got.estimates != judge(scores, DESIGN, predictions).estimates
    with pytest.raises(ValueError, match="no score of task 't@10', which the design names"):
        judge(scores[scores["task"] == "t"], named, predictions)


def test_numbers_of_labels_are_kept_beside_their_tasks() -> None:
    scores, predictions = tables(
        drawn(3, tasks=["t", "t@10"]), dict.fromkeys(["t", "t@10"], places(6, 3))
    )
    assert [task["labels"] for task in judge(scores, DESIGN, predictions).tasks] == [None, None]
    scores["labels"] = np.where(scores["task"] == "t", 0, 10)
    assert [task["labels"] for task in judge(scores, DESIGN, predictions).tasks] == [0, 10]


# What people read

RUNS = {"share": [0.40, 0.42, 0.41], "solo": [0.50, 0.51, 0.52]}
STORIES = {
    "more": ([0.60, 0.61, 0.62], 0.01),
    "less": ([0.40, 0.41, 0.42], 0.01),
    "equal": ([0.502, 0.51, 0.518], 0.04),
    "more, but negligible": ([0.54, 0.55, 0.56], 0.2),
    "less, but negligible": ([0.46, 0.47, 0.48], 0.2),
    "undecided": ([0.46, 0.51, 0.53], 0.01),
}


def story(name: str) -> Verdict:
    mix, margin = STORIES[name]
    design = Design("s1", ("s1", "s2", "naip"), margin)
    return verdict_of(constant({**RUNS, "mix": mix}), design=design)


def test_sentences() -> None:
    """Intervals from scipy.stats.ttest_ind; mde from statsmodels at the Welch df."""
    start = "with 3 replicates, pretraining on s1+s2+naip instead of s1 alone changed the score on"
    assert story("more").sentence == (
        f"More: {start} s1's tasks by +10.0 points (95 % interval +7.7 to +12.3)."
    )
    assert story("less").sentence == (
        f"Less: {start} s1's tasks by −10.0 points (95 % interval −12.3 to −7.7)."
    )
    assert story("equal").sentence == (
        f"Equal: {start} s1's tasks by 0.0 points (95 % interval −2.1 to +2.1); differences "
        "within ±4.0 points count as equal, and one of 2.8 would have been detected with "
        "80 % power."
    )
    assert story("more, but negligible").sentence == (
        f"Equal (more, but negligible): {start} s1's tasks by +4.0 points (95 % interval +1.7 to "
        "+6.3); differences within ±20.0 points count as equal, and one of 3.1 would have been "
        "detected with 80 % power."
    )
    assert story("less, but negligible").sentence.startswith("Equal (less, but negligible): with 3")
    assert story("undecided").sentence == (
        f"Undecided: {start} s1's tasks by −1.0 points (95 % interval −9.2 to +7.2); an effect "
        "below 10.8 points is too small for this design to see."
    )


@pytest.mark.parametrize("name", STORIES)
def test_kind_is_the_substitutions(name: str) -> None:
    verdict = story(name)
    kind = Kind.EQUAL if "negligible" in name else Kind(name)
    assert verdict.kind is verdict.estimates[0].kind is kind
    assert verdict.estimates[0].negligible == ("negligible" in name)


def test_table() -> None:
    lines = table(story("undecided")).splitlines()
    assert lines[:9] == [
        "arm       utility ± SD   replicates",
        "solo      51.0 ± 1.0     3",
        "share     41.0 ± 1.0     3",
        "mix       50.0 ± 3.6     3",
        "",
        "contrast          points  95 % interval           p  adj. p    MDE  kind",
        "Δ substitution      −1.0  −9.2 to +7.2        0.684   0.684   10.8  undecided",
        "α addition*         +9.0  +0.8 to +17.2       0.041   0.041   10.8  more",
        "δ dilution*        +10.0  +7.7 to +12.3      <0.001  <0.001    3.1  more",
    ]
    assert "identity Δ = α − δ: −1.00 = +9.00 − (+10.00), residual" in lines[-1]


def test_table_says_each_reason_once() -> None:
    verdict = verdict_of(constant({"mix": [0.6], "solo": [0.5, 0.52], "share": [0.4, 0.41]}))
    lines = table(verdict).splitlines()
    assert "Δ, α: one replicate of mix cannot show how much runs vary" in lines
    assert "Δ substitution      +9.0  n/a                   n/a     n/a    n/a  undecided" in lines


@pytest.mark.parametrize("name", STORIES)
def test_table_fits_a_terminal(name: str) -> None:
    assert max(map(len, table(story(name)).splitlines())) <= 100


def test_dict_is_plain_json_without_holes() -> None:
    scores, predictions = tables(drawn(1, tasks=("t", "v")), {"t": places(6, 3), "v": ["x"] * 18})
    floor = scores[(scores["arm"] == "solo") & (scores["replicate"] == 0)].assign(arm="floor")
    means = floor.assign(arm="band means", value=0.25, utility=99.0)
    other = scores.assign(sensor="s2", utility=np.nan)
    of_floor = predictions[(predictions["arm"] == "solo") & (predictions["replicate"] == 0)]
    predictions = pd.concat([predictions, of_floor.assign(arm="floor")])
    verdict = judge(pd.concat([scores, floor, means, other]), DESIGN, predictions)
    got = verdict.as_dict()
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert set(got["estimates"][0]) == {
        "name", "symbol", "meaning", "value", "low", "high", "standard_error", "df", "p",
        "p_adjusted", "p_equivalence", "mde", "kind", "negligible", "exploratory", "run_variance",
        "item_variance", "why",
    }  # fmt: skip
    assert list(got["arms"]) == ["solo", "share", "mix", "floor"]
    solo = scores[scores["arm"] == "solo"].groupby("replicate")["utility"].mean().tolist()
    assert got["arms"]["solo"]["replicates"] == pytest.approx(solo)
    assert got["arms"]["solo"]["utility"] == pytest.approx(np.mean(solo))
    assert list(got["correlation"]) == ["solo~share", "solo~mix", "share~mix"]
    first = got["tasks"][0]
    raw = scores[scores["task"] == "t"].groupby("arm")["value"].mean()
    assert (first["task"], first["metric"], first["n_test"]) == ("t", "accuracy", 18)
    assert (first["floor"], first["ceiling"], first["clusters"]) == (FLOOR, CEILING, 6)
    assert list(first["means"]) == ["solo", "share", "mix", "floor", "band means"]
    assert first["means"]["band means"] == 0.25
    assert first["means"]["mix"] == pytest.approx(raw["mix"])
    assert first["substitution"] == pytest.approx(raw["mix"] - raw["solo"])
    mix, solo = (got["arms"][arm]["replicates"] for arm in ("mix", "solo"))
    assert got["superiority"] == np.mean([m > s for m in mix for s in solo])
    assert got["tasks"][1]["clusters"] == 1


# Coverage


def test_interval_covers_when_runs_and_places_vary() -> None:
    """300 studies without any effect: runs, places, places by arm, places by run, item noise.

    At 95 % and 300 studies the Monte-Carlo standard error is 1.26 points: 91.2 to 98.8 % is three
    to either side. On the same studies, items alone and runs alone must fall short of it.
    """
    rng, r, g, each, studies = np.random.default_rng(7), 4, 20, 3, 300
    arms = {"mix": 0.042, "solo": 0.025}  # spread of runs
    blank = {arm: {"t": np.zeros((r, g * each))} for arm in arms}
    scores, predictions = tables(blank, {"t": places(g, each)})
    covered = {"both": 0, "items": 0, "runs": 0}
    for _ in range(studies):
        runs = np.stack([rng.normal(0, spread, (r, 1, 1)) for spread in arms.values()])
        by_place = rng.normal(0.5, 0.1, (1, 1, g, 1)) + rng.normal(0, 0.07, (2, 1, g, 1))
        noise = rng.normal(0, 0.03, (2, r, g, 1)) + rng.normal(0, 0.06, (2, r, g, each))
        u = (runs + by_place + noise).reshape(2, r, g * each)
        study = (
            scores.assign(utility=u.mean(axis=2).ravel()),
            predictions.assign(contribution=u.ravel()),
        )
        e = judge(study[0], SUBSTITUTION, study[1]).estimates[0]
        assert e.low is not None
        assert e.high is not None
        covered["both"] += e.low <= 0 <= e.high
        mix, solo = u
        gap = (mix - solo).mean(axis=0).reshape(g, each).mean(axis=1)
        covered["items"] += bool(stats.ttest_1samp(gap, 0).pvalue >= 0.05)
        alone = stats.ttest_ind(mix.mean(axis=1), solo.mean(axis=1), equal_var=False)
        covered["runs"] += bool(alone.pvalue >= 0.05)
    assert 0.912 <= covered["both"] / studies <= 0.988, covered
    assert covered["items"] / studies < 0.88, covered
    assert covered["runs"] / studies < 0.912, covered
