"""Planning: minimum detectable effects against SciPy and the verdict itself, costs by hand."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.power import TTestIndPower

from gfmsum.budget import BUDGETS
from gfmsum.plan import ASSUMED, OPTIONS, Cost, Spread, main, spent, spreads, table
from gfmsum.sensors import SENSORS
from gfmsum.verdict import CONTRASTS, Design, judge
from tests.test_verdict import constant, drawn, places, tables, verdict_of

DESIGN = Design("s1", ("s1", "s2"), contrasts=CONTRASTS[:1])
quick = settings(max_examples=12, deadline=None, derandomize=True)


def pilot_of(runs: Mapping[str, ArrayLike]) -> dict[str, Any]:
    return verdict_of(constant(runs), design=DESIGN).as_dict()


PILOT = {"mix": [0.50, 0.52, 0.54], "solo": [0.40, 0.41, 0.42]}  # SD 2 and 1 points


def ledger(*, seen: int = 12_000, replicates: int = 2) -> dict[str, Any]:
    """Solo costs 10 s and 1e12 FLOPs, share as much, mix 16 s and 2e12; the second run 2 s more."""
    spending = {"solo": (10.0, 1e12), "share": (10.0, 1e12), "mix": (16.0, 2e12), "floor": (0.1, 0)}
    return {
        "runs": {
            f"{arm} {k}": {
                "arm": arm,
                "replicate": k,
                "seen": seen if arm != "floor" else 0,
                "flops": flops,
                "seconds": seconds + 2 * k,
                "device": "cpu",
            }
            for arm, (seconds, flops) in spending.items()
            for k in range(replicates)
        }
    }


def study(folder: Path, *, seen: int = 12_000) -> Path:
    """A finished study's folder."""
    (folder / "verdict.json").write_text(json.dumps(pilot_of(PILOT)))
    (folder / "ledger.json").write_text(json.dumps(ledger(seen=seen)))
    return folder


# Effects


def test_known_effects() -> None:
    """With df known, a seed SD of 0.006 gives 1.8, 1.2 and 0.9 points at R = 3, 5 and 8."""
    assert [round(ASSUMED[0].mde(r), 3) for r in (3, 5, 8)] == [0.021, 0.013, 0.009]
    assert [round(ASSUMED[1].mde(r), 3) for r in (3, 5, 8)] == [0.035, 0.021, 0.015]


@pytest.mark.parametrize("r", [2, 3, 5, 12])
@pytest.mark.parametrize("deviations", [(0.006, 0.006), (0.003, 0.012)])
def test_simulated_studies_find_the_effect_four_times_in_five(
    r: int, deviations: tuple[float, float]
) -> None:
    """Welch's test on 20,000 studies: a standard error of 0.28 points."""
    spread = Spread("", (deviations[0] ** 2, deviations[1] ** 2))
    rng, effect = np.random.default_rng(r), spread.mde(r)
    means = zip((effect, 0.0), deviations, strict=True)
    mix, solo = (rng.normal(mean, deviation, (20_000, r)) for mean, deviation in means)
    p = stats.ttest_ind(mix, solo, axis=1, equal_var=False).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)
    assert spread.power(effect, r) == pytest.approx(0.8, abs=1e-6)
    found = np.mean(stats.ttest_ind(mix - effect / 2, solo, axis=1, equal_var=False).pvalue < 0.05)
    assert spread.power(effect / 2, r) == pytest.approx(found, abs=0.01)


def test_with_many_replicates_it_is_students_power() -> None:
    effect = Spread("", (0.01**2, 0.01**2)).mde(100) / 0.01
    assert TTestIndPower().power(effect, nobs1=100, alpha=0.05) == pytest.approx(0.8, abs=1e-3)


def test_without_an_effect_it_is_the_level() -> None:
    """Welch's test keeps to its level roughly: SciPy's, simulated, does 4.6 to 5 % at R = 8."""
    assert 0.045 <= ASSUMED[0].power(0.0, 8) <= 0.051
    assert 0.09 <= ASSUMED[0].power(0.0, 8, 0.9) <= 0.102


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_planning_asks_more_than_a_verdict_that_takes_its_df_as_known(seed: int, r: int) -> None:
    rng = np.random.default_rng(seed)
    runs = {"mix": rng.normal(0.5, 0.02, r), "solo": rng.normal(0.5, 0.01, r)}
    pilot = pilot_of(runs)
    assert spreads(pilot)[0].mde(r) > 0.99 * pilot["estimates"][0]["mde"]
    large = spreads(pilot)[0].mde(60)
    e = math.sqrt(sum(spreads(pilot)[0].runs) / 60)
    assert large == pytest.approx(e * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)), rel=0.05)


@quick
@given(st.integers(0, 2**32 - 1))
def test_places_are_the_verdicts(seed: int) -> None:
    verdict = verdict_of(drawn(seed, r=5, g=20), {"t": places(20, 3)}, DESIGN)
    e, spread = verdict.estimates[0], spreads(verdict.as_dict())[0]
    assert spread.places == pytest.approx(e.item_variance)
    assert e.standard_error is not None
    assert sum(spread.runs) / 5 + spread.places == pytest.approx(e.standard_error**2)


def test_places_by_simulation() -> None:
    """Mean squares of runs and places drawn apart: 40,000 studies, standard error 0.2 points."""
    spread, r, rng = Spread("", (4e-4, 1e-4), 1e-4, 10), 4, np.random.default_rng(0)
    true, df = np.array([1e-4, 0.25e-4, 1e-4]), np.array([3, 3, 9])
    squares = true * rng.chisquare(df, (40_000, 3)) / df
    total = squares.sum(axis=1)
    found = np.maximum(1, total**2 / (squares**2 / df).sum(axis=1))
    estimate = spread.mde(r) + rng.normal(0, math.sqrt(true.sum()), 40_000)
    significant = 2 * stats.t.sf(np.abs(estimate) / np.sqrt(total), found) < 0.05
    assert np.mean(significant) == pytest.approx(0.8, abs=0.01)


@quick
@given(st.floats(0.001, 0.05), st.floats(0.001, 0.05), st.integers(2, 30))
def test_more_replicates_detect_less_and_needed_is_the_fewest(a: float, b: float, r: int) -> None:
    spread = Spread("", (a**2, b**2))
    assert spread.mde(r + 1) < spread.mde(r)
    assert spread.needed(spread.mde(r) * 1.0001) == r
    assert spread.mde(r, 0.9) < spread.mde(r)


def test_places_cannot_be_bought_off() -> None:
    spread = Spread("", (1e-4, 1e-4), 1e-4, 50)
    limit = spread.limit()
    assert limit < spread.mde(100_000) < 1.001 * limit
    assert spread.needed(0.9 * limit) is None
    assert ASSUMED[0].limit() == 0


def test_needed_by_hand() -> None:
    assert [spread.needed(0.01) for spread in ASSUMED] == [7, 17]
    assert ASSUMED[0].needed(1e-5) is None


# A pilot


def test_a_pilots_variance_by_hand() -> None:
    pilot, upper = spreads(pilot_of(PILOT))
    assert pilot.runs == pytest.approx((4e-4, 1e-4))
    assert (pilot.places, pilot.label) == (0, "pilot")
    df = (4e-4 + 1e-4) ** 2 / ((4e-4) ** 2 / 2 + (1e-4) ** 2 / 2)
    scale = df / stats.chi2.ppf(0.2, df)
    assert upper.runs == pytest.approx((scale * 4e-4, scale * 1e-4))
    assert upper.label == "upper 80%"


def test_the_upper_limit_covers_the_true_variance_four_times_in_five() -> None:
    rng, base = np.random.default_rng(0), pilot_of(PILOT)
    covered = 0
    for _ in range(2000):
        for arm in ("mix", "solo"):
            base["arms"][arm]["replicates"] = rng.normal(0, 0.01, 4).tolist()
        covered += sum(spreads(base)[1].runs) >= 2e-4
    # Satterthwaite's df lie below the true ones, so that the limit errs on the safe side.
    assert 0.78 <= covered / 2000 <= 0.88


def test_the_fewest_places_of_several_tasks_count() -> None:
    items = drawn(3, tasks=("t", "v"))
    clusters = {"t": places(6, 3, "a"), "v": [*places(5, 3, "b"), "b4", "b4", "b4"]}
    spread = spreads(verdict_of(items, clusters, DESIGN).as_dict())[0]
    assert (spread.clusters, spread.places > 0) == (5, True)


# What it costs


def test_a_budget_fixes_runs_and_samples() -> None:
    bands = [len(sensor.bands) for sensor in SENSORS.values()]
    each = BUDGETS["tiny"].model.flops(1) + (np.mean(bands) - 1) * (
        BUDGETS["tiny"].model.flops(2) - BUDGETS["tiny"].model.flops(1)
    )
    assert Cost.of(BUDGETS["tiny"]) == Cost(3, 36_000, pytest.approx(36_000 * each))
    assert Cost.of(BUDGETS["micro"]).flops == pytest.approx(3_600 * each)


def test_a_ledgers_cost_by_hand() -> None:
    cost = spent(ledger())
    assert (cost.runs, cost.samples, cost.flops, cost.seconds) == (3, 36_000, 4e12, 36 + 3)
    assert cost.device == "cpu"
    assert (cost.replicates(39 / 3600), cost.replicates(38.9 / 3600)) == (1, 0)
    assert cost.replicates(10) == 923


def test_an_arm_that_saw_nothing_costs_nothing() -> None:
    """A mix without the target: the share arm is not pretrained."""
    spending = ledger()
    for run in spending["runs"].values():
        run["seen"] = 0 if run["arm"] == "share" else run["seen"]
    assert spent(spending) == Cost(2, 24_000, 3e12, 28, "cpu")


# What people read


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_without_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == [
        "spread: none measured, so an SD of 0.6 to 1.0 points among an arm's runs is assumed",
        "cost: budget tiny, FLOPs reckoned; without a ledger, hours are unknown",
        "MDE: points of utility detected with 80 % power",
        "",
        " R  MDE, SD 0.6  MDE, SD 1.0  runs  samples    FLOPs",
        " 2          6.2         10.4     6   72,000  2.5e+12",
        " 3          2.1          3.5     9  108,000  3.8e+12",
        " 5          1.3          2.1    15  180,000  6.4e+12",
        " 8          0.9          1.5    24  288,000    1e+13",
        "12          0.7          1.2    36  432,000  1.5e+13",
        "20          0.5          0.9    60  720,000  2.5e+13",
        "",
        "places: not in these numbers, although they add to every MDE; pilot them",
    ]


def test_an_effect_gets_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "effect=0.01", "budget=micro")
    assert "effect of 1.0 points: needs R = 7 (SD 0.6), 17 (SD 1.0)" in lines
    assert " 7          1.0          1.7    21   25,200  8.9e+11" in lines
    assert "17          0.6          1.0    51   61,200  2.2e+12" in lines
    small = said(capsys, "effect=0.0001")
    assert "effect of 0.0 points: needs R = more than 200 (SD 0.6), more than 200 (SD 1.0)" in small


def test_a_pilots_folder_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(tmp_path)
    lines = said(capsys, f"pilot={folder}", "hours=0.1")
    assert lines[0].startswith("spread: SD of 2.0 and 1.0 points among the runs of mix and solo in")
    assert lines[1] == f"cost: budget, FLOPs and hours of {folder / 'ledger.json'} (cpu)"
    assert lines[4].split("  ")[-2:] == ["FLOPs", "hours"]
    # 0.1 h are 360 s, a replicate is 39 s.
    nine = next(line for line in lines if line.startswith(" 9"))
    assert nine.split()[3:] == ["27", "324,000", "3.6e+13", "0.10"]
    pilot, upper = (f"{100 * s.mde(9):.1f}" for s in spreads(pilot_of(PILOT)))
    paid = f"0.1 hours: pay for R = 9, which detects {pilot} (pilot), {upper} (upper 80%)"
    assert paid in lines
    for path in (folder / "verdict.json", folder):
        ledger = ("budget=tiny", f"ledger={folder / 'ledger.json'}")
        assert said(capsys, f"pilot={path}", *ledger, "hours=0.1")[2:] == lines[2:]


def test_too_few_hours_tell_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, f"ledger={study(tmp_path) / 'ledger.json'}", "hours=0.02")
    assert "0.02 hours: pay for R = 1, but no interval exists below R = 2" in lines
    assert not any(re.match(r" *1 ", line) for line in lines)


def test_stored_scores_are_a_pilot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, predictions = tables(drawn(1, r=5, g=20), {"t": places(20, 3)})
    scores.to_parquet(tmp_path / "scores.parquet")
    predictions.to_parquet(tmp_path / "predictions.parquet")
    verdict = judge(scores, DESIGN, predictions).as_dict()
    (tmp_path / "v.json").write_text(json.dumps(verdict))
    lines = said(capsys, f"pilot={tmp_path}")
    assert lines[1:] == said(capsys, f"pilot={tmp_path / 'v.json'}")[1:]
    limit = f"{100 * spreads(verdict)[0].limit():.1f}"
    assert (
        lines[-1] == f"places: as R grows the MDE tends to {limit}; only more test places lower it"
    )
    both = [scores, scores.assign(sensor="s2", value=0.5, utility=0.5)]
    import pandas as pd

    pd.concat(both).to_parquet(tmp_path / "scores.parquet")
    assert main([f"pilot={tmp_path}"]) == 2
    assert "holds scores of s1, s2; give one as target=" in capsys.readouterr().err
    assert said(capsys, f"pilot={tmp_path}", "target=s1") == lines


def test_what_is_known_of_places_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, f"pilot={study(tmp_path)}")
    assert lines[-1] == "places: the pilot's show no variance of their own, so none is added"
    unplaced = pilot_of(PILOT)
    unplaced["tasks"][0]["clusters"] = unplaced["estimates"][0]["item_variance"] = None
    (tmp_path / "verdict.json").write_text(json.dumps(unplaced))
    assert said(capsys, f"pilot={tmp_path}")[-1].startswith("places: not in these numbers")


def test_columns_are_aligned() -> None:
    lines = table(ASSUMED, spent(ledger()), [2, 20, 2000], 0.95).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 4


def test_help_is_quick_and_complete() -> None:
    code = (
        "import sys\nfrom gfmsum.plan import main\nmain(['--help'])\n"
        "print(*sorted({'pandas', 'scipy', 'statsmodels', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    for option in OPTIONS:
        assert f"  {option}=" in done.stdout


def test_planning_does_without_torch(tmp_path: Path) -> None:
    words = [f"pilot={study(tmp_path)}", "effect=0.02", "hours=1"]
    code = (
        f"import sys\nfrom gfmsum.plan import main\nassert main({words!r}) == 0\n"
        "print(*sorted({'torch', 'lightning', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["3"], "cannot read '3': write key=value, like effect=0.01"),
        (["efect=0.01"], "did you mean 'effect'?"),
        (["effect=1"], "effect=1 must be a number between 0 and 1; 0.01 is one point"),
        (["effect=-0.1"], "effect=-0.1 must be a number"),
        (["hours=0"], "hours=0 must be a number above 0"),
        (["hours=inf"], "hours=inf must be a number above 0"),
        (["hours=10"], "hours=10 cannot be spent without knowing what a run takes; give ledger="),
        (["confidence=0.4"], "confidence=0.4 must be in [0.5, 1)"),
        (["budget=tinny"], "did you mean 'tiny'?"),
        (["target=s1"], "target=s1 says whose scores of a pilot; give pilot=PATH"),
        (["pilot=nowhere"], "no file nowhere"),
        (["pilot=nowhere.json"], "cannot read nowhere.json: No such file"),
        (["pilot=broken.json"], "cannot read broken.json: Expecting"),
        (["pilot=list.json"], "cannot read list.json: "),
        (["pilot=ledger.json"], "the pilot is no verdict of ours"),
        (["pilot=verdict.json", "target=s2"], "target=s2, but verdict.json is of s1"),
        (["pilot=one.json"], "the pilot has 1 replicate of solo"),
        (["pilot=still.json"], "the pilot's runs do not vary"),
        (["ledger=verdict.json"], "the ledger is no study's ledger.json"),
        (["ledger=idle.json"], "the ledger holds no pretraining run"),
        (["pilot=verdict.json", "budget=micro"], "saw 12000 samples, but budget=micro shows 1200"),
    ],
)
def test_a_mistake_costs_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(study(tmp_path))
    Path("broken.json").write_text("{no")
    Path("list.json").write_text("[1]")
    Path("one.json").write_text(json.dumps(pilot_of({**PILOT, "solo": [0.4]})))
    Path("still.json").write_text(json.dumps(pilot_of({"mix": [0.5, 0.5], "solo": [0.4, 0.4]})))
    Path("idle.json").write_text(json.dumps(ledger(seen=0)))
    assert main(words) == 2
    got = capsys.readouterr()
    assert (got.out, got.err.count("\n")) == ("", 1)
    assert got.err.startswith("gfmsum: ")
    assert says in got.err
