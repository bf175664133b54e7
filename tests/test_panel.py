"""Several targets judged as one family, and what is said of them together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from gfmsum.records import fingerprint
from gfmsum.verdict import CONTRASTS, Design, Estimate, detectable, holm, judge
from gfmsum.verdict.__main__ import main
from gfmsum.verdict.estimands import exchange_rate, synergy, transfer
from gfmsum.verdict.panel import Panel, judge_all
from gfmsum.verdict.text import panel_table

SENSORS = ("s1", "s2", "naip")
ALONE = CONTRASTS[:1]


def score(arm: str, target: str, utilities: ArrayLike, **more: object) -> list[dict[str, object]]:
    return [
        {
            "arm": arm, "replicate": r, "sensor": target, "task": f"t of {target}",
            "metric": "accuracy", "value": u, "utility": u, "floor": 0.0, "ceiling": 1.0, **more,
        }
        for r, u in enumerate(np.atleast_1d(np.asarray(utilities, dtype=float)))
    ]  # fmt: skip


def designs(targets: Sequence[str], mix: Sequence[str] = SENSORS, **more: object) -> list[Design]:
    return [replace(Design(t, tuple(mix), contrasts=ALONE), **more) for t in targets]  # type: ignore[arg-type]


def draw(*key: int, r: int = 3, at: float = 0.5) -> NDArray[np.float64]:
    return np.random.default_rng(key).normal(at, 0.02, r)


def whole(targets: Sequence[str] = SENSORS, r: int = 3) -> pd.DataFrame:
    """Every arm of the whole design: all mixes of the sensors, own-only curve and parts."""
    rows = []
    for i, target in enumerate(targets):
        rows += score("floor", target, draw(i, 0, r=r, at=0.3), sees="", samples=0)
        rows += score("share", target, draw(i, 1, r=r, at=0.45), sees=target, samples=80)
        rows += score("own", target, draw(i, 2, r=r, at=0.5), sees=target, samples=160)
        rows += score("part", target, draw(i, 3, r=r, at=0.42), sees=target, samples=80)
        mixes = (c for k in (1, 2, 3) for c in combinations(SENSORS, k))
        for j, mix in enumerate(mixes):
            arm = "solo" if len(mix) == 1 else "mix"
            gain = 0.2 if target in mix else 0.1
            u = draw(i, 4, j, r=r, at=0.35 + gain + 0.01 * len(mix))
            rows += score(arm, target, u, sees="+".join(mix), samples=240)
    return pd.DataFrame(rows)


def runs(scores: pd.DataFrame, arm: str, target: str, sees: str) -> NDArray[np.float64]:
    wanted = (scores["arm"] == arm) & (scores["sensor"] == target) & (scores["sees"] == sees)
    return scores[wanted].sort_values("replicate")["utility"].to_numpy()


def items_of(
    scores: pd.DataFrame, seed: int = 0, *, g: int = 6, shared: bool = True
) -> pd.DataFrame:
    """Two test items in each of g places behind every score; places of all targets, or of each."""
    rng, frames = np.random.default_rng(seed), []
    for i, row in enumerate(scores.itertuples()):
        x = np.repeat(rng.normal(0, 0.1, g), 2) + rng.normal(0, 0.05, 2 * g)
        x += row.utility - x.mean()
        names = [f"{'' if shared else row.sensor}p{k // 2}" for k in range(2 * g)]
        keys = {"arm": row.arm, "replicate": row.replicate, "task": row.task}
        keys |= {"sees": row.sees} if "sees" in scores else {}
        cells = {"item": [f"i{k}" for k in range(2 * g)], "cluster": names, "contribution": x}
        frames.append(pd.DataFrame({**keys, **cells}, index=pd.RangeIndex(2 * g) + 2 * g * i))
    return pd.concat(frames)


def delta(panel: Panel, target: str) -> Estimate:
    return panel.verdicts[target].estimates[0]


# One family


def test_holm_goes_over_the_targets_and_each_is_otherwise_judged_as_alone() -> None:
    scores = whole()
    items = items_of(scores)
    panel = judge_all(scores, designs(SENSORS), items)
    alone = [judge(scores, design, items).estimates[0] for design in designs(SENSORS)]
    raw = [e.p for e in alone if e.p is not None]
    assert [delta(panel, t).p_adjusted for t in SENSORS] == pytest.approx(holm(raw))
    for target, e in zip(SENSORS, alone, strict=True):
        got = delta(panel, target)
        assert replace(got, p_adjusted=e.p_adjusted, kind=e.kind, negligible=e.negligible) == e


def test_a_target_that_cannot_be_judged_is_said_and_stays_in_the_family() -> None:
    scores = whole()
    lacking = scores[~((scores["arm"] == "solo") & (scores["sensor"] == "naip"))]
    panel = judge_all(lacking, designs(SENSORS))
    alone = [judge(scores, design).estimates[0].p for design in designs(["s1", "s2"])]
    want = holm([*(p for p in alone if p is not None), 1.0])[:2]
    assert [delta(panel, t).p_adjusted for t in ("s1", "s2")] == pytest.approx(want)
    assert panel.absent["verdict of naip"].startswith("no score of arm 'solo' on naip")
    assert panel.strict is None
    assert not panel.claim.holds
    assert "naip could not be judged" in panel.claim.why


def test_runs_of_other_sensors_and_mixes_change_no_verdict() -> None:
    scores = whole()
    items = items_of(scores)
    own = scores[scores["sees"].isin(["", "s1", "+".join(SENSORS)]) & (scores["arm"] != "own")]
    bare = own.drop(columns=["sees", "samples"])
    design = Design("s1", SENSORS)
    few = items[items["sees"].isin(["", "s1", "+".join(SENSORS)])].drop(columns="sees")
    assert judge(scores, design, items) == judge(bare, design, few)
    turned = scores.assign(sees=scores["sees"].str.split("+").map(lambda s: "+".join(reversed(s))))
    assert judge(turned, design) == judge(bare, design)


def test_exploratory_numbers_are_one_family() -> None:
    panel = judge_all(whole(), designs(SENSORS, contrasts=CONTRASTS), distances=APART)
    families = (panel.transfer, panel.synergy, panel.law)
    estimates = [e for v in panel.verdicts.values() for e in v.estimates if e.exploratory]
    found = [(e.p, e.p_adjusted) for e in estimates]
    found += [(q.p, q.p_adjusted) for f in families for q in f.values() if q.p is not None]
    p, adjusted = zip(*found, strict=True)
    assert len(p) == 6 + 6 + 9 + 9 + 4  # α and δ, T, Shapley values, interactions, slopes
    assert adjusted == pytest.approx(tuple(stats.false_discovery_control(p)))


# Sum of the parts

MIX = {"s1": [0.60, 0.64, 0.62], "s2": [0.80, 0.76, 0.84]}
PARTS = {"s1": [0.55, 0.57, 0.59], "s2": [0.70, 0.74]}


def psi(
    mix: Mapping[str, ArrayLike], parts: Mapping[str, ArrayLike], confidence: float = 0.95
) -> Estimate:
    rows = []
    for target in mix:
        rows += score("mix", target, mix[target]) + score("part", target, parts[target])
        rows += score("solo", target, parts[target])
    panel = judge_all(pd.DataFrame(rows), designs(list(mix), confidence=confidence))
    assert panel.psi is not None
    return panel.psi


def test_sum_of_parts_by_hand() -> None:
    """Mix runs average .70, .70, .73: S²/3 = .0001; parts .57 and .72: (.0004/3 + .0008/2)/4.

    Ψ = .71 − .645; V = 1e-4 + 1e-4/3 + 1e-4; df = V² / (1e-8/2 + 1e-8/9/2 + 1e-8/1).
    """
    got = psi(MIX, PARTS)
    v = 1e-4 * 7 / 3
    df = v**2 / (1e-8 * (1 / 2 + 1 / 18 + 1))
    assert got.value == pytest.approx(0.065)
    assert [got.standard_error, got.df] == pytest.approx([math.sqrt(v), df])
    reach = stats.t.ppf(0.975, df) * math.sqrt(v)
    assert [got.low, got.high] == pytest.approx([0.065 - reach, 0.065 + reach])
    assert got.mde == pytest.approx(detectable(math.sqrt(v), df))
    assert got.p == got.p_adjusted
    assert not got.exploratory


def test_of_one_target_it_is_welchs_test() -> None:
    mix, part = MIX["s1"], [0.5, 0.55, 0.52, 0.59]
    want = stats.ttest_ind(mix, part, equal_var=False)
    got = psi({"s1": mix}, {"s1": part}, 0.9)
    interval = want.confidence_interval(0.9)
    assert [got.p, got.df] == pytest.approx([want.pvalue, want.df])
    assert [got.low, got.high] == pytest.approx([interval.low, interval.high])


def test_sum_of_parts_swaps_sign_and_does_not_see_a_constant() -> None:
    got, negated = psi(MIX, PARTS), psi(PARTS | {"s2": [0.70, 0.74, 0.78]}, MIX)
    again = psi(MIX, PARTS | {"s2": [0.70, 0.74, 0.78]})
    assert again.low is not None
    assert again.high is not None
    shifted = psi(*({s: np.array(u) + 0.1 for s, u in arm.items()} for arm in (MIX, PARTS)))
    assert [shifted.value, shifted.low] == pytest.approx([got.value, got.low])
    assert negated.value == pytest.approx(-again.value)


def test_the_shared_mix_run_counts_as_one() -> None:
    """A run that is good on both sensors is one lucky run; good on one, bad on the other, none."""
    lucky = {"s1": [0.6, 0.7], "s2": [0.6, 0.7]}
    traded = {"s1": [0.6, 0.7], "s2": [0.7, 0.6]}
    parts = {"s1": [0.5, 0.51], "s2": [0.5, 0.51]}
    wide, tight = (psi(mix, parts).standard_error for mix in (lucky, traded))
    assert wide == pytest.approx(math.sqrt(0.005 / 2 + 2 * 0.00005 / 2 / 4))
    assert tight == pytest.approx(math.sqrt(2 * 0.00005 / 2 / 4))


def test_sum_of_parts_of_too_little() -> None:
    lone = psi({"s1": [0.6]}, {"s1": [0.5, 0.52]})
    assert (lone.value, lone.low) == (pytest.approx(0.09), None)
    assert "one replicate" in lone.why
    assert "do not vary" in psi({"s1": [0.6] * 2}, {"s1": [0.5] * 2}).why


def test_strict_sum_is_the_mean_of_the_substitutions_and_places_apart_add_up() -> None:
    scores = whole()
    panel = judge_all(scores, designs(SENSORS), items_of(scores, shared=False))
    deltas = [delta(panel, target) for target in SENSORS]
    assert panel.strict is not None
    assert panel.strict.value == pytest.approx(np.mean([e.value for e in deltas]))
    assert None not in [e.item_variance for e in deltas]
    total = sum(e.item_variance for e in deltas if e.item_variance is not None)
    assert total > 0
    assert panel.strict.item_variance == pytest.approx(total / 9)


def test_places_that_targets_share_are_one_place() -> None:
    """By terms: d[g] = mean over targets of (mix − solo) of the place, V_items from it, less W."""
    scores, g = whole(["s1", "s2"]), 6
    items = items_of(scores)
    panel = judge_all(scores, designs(["s1", "s2"]), items)

    def by_place(arm: str, target: str, sees: str) -> NDArray[np.float64]:  # (r, g), centred
        rows = items[
            (items["arm"] == arm) & (items["task"] == f"t of {target}") & (items["sees"] == sees)
        ]
        x = rows.pivot_table(index="replicate", columns="cluster", values="contribution").to_numpy()
        return (x - x.mean(axis=1, keepdims=True)) / g

    def within(e: NDArray[np.float64]) -> float:
        r = len(e)
        return float(((e - e.mean(axis=0)) ** 2).sum() * g / ((g - 1) * (r - 1) * r))

    every = "+".join(SENSORS)
    mix = (by_place("mix", "s1", every) + by_place("mix", "s2", every)) / 2
    d, w = mix.mean(axis=0), within(mix)
    for target in ("s1", "s2"):
        e = by_place("solo", target, target)
        d, w = d - e.mean(axis=0) / 2, w + within(e) / 4
    assert panel.strict is not None
    v_items = float((d**2).sum() * g / (g - 1))
    assert panel.strict.item_variance == pytest.approx(max(0.0, v_items - w))


def test_headline_needs_psi_and_no_harm() -> None:
    rows = []
    for target in ("s1", "s2"):
        rows += score("mix", target, [0.60, 0.601, 0.602]) + score("part", target, [0.50, 0.501])
        rows += score("solo", target, [0.597, 0.598, 0.599])
    held = judge_all(pd.DataFrame(rows), designs(["s1", "s2"]))
    assert held.claim.holds
    assert held.sentence == (
        "More than the sum of its parts: pretraining on s1+s2+naip, over 2 targets; Ψ = +10.1 "
        "points (+9.8 to +10.3) against as many specialists, equal in total; Ψ* = +0.3 points "
        "(+0.1 to +0.5) against each target's solo runs."
    )
    better = [
        row | {"utility": 0.7 + row["replicate"] / 1e3} for row in score("solo", "s2", [0] * 3)
    ]  # type: ignore[operator]
    kept = [row for row in rows if (row["arm"], row["sensor"]) != ("solo", "s2")]
    harmed = judge_all(pd.DataFrame([*kept, *better]), designs(["s1", "s2"]))
    assert not harmed.claim.holds
    assert harmed.sentence.startswith("Not shown to be more than the sum of its parts: ")
    assert "Δ of s2 may be as low as" in harmed.claim.why


# What the whole design adds

APART = {
    frozenset(("s1", "s2")): {"spectral": 10.8, "GSD": 0.1},
    frozenset(("s1", "naip")): {"spectral": 11.4, "GSD": 2.3},
    frozenset(("s2", "naip")): {"spectral": 0.5, "GSD": 2.4},
}


def test_transfer_synergy_and_exchange_rate_are_those_of_the_runs() -> None:
    scores = whole()
    panel = judge_all(scores, designs(SENSORS), distances=APART, seed=5)
    assert not panel.absent
    solo = {(a, s): runs(scores, "solo", s, a) for a in SENSORS for s in SENSORS}
    floors = {s: runs(scores, "floor", s, "") for s in SENSORS}
    for (a, s), want in transfer(solo, floors).items():
        assert replace(panel.transfer[f"{a}→{s}"], p_adjusted=None) == want
    for target in SENSORS:
        values = {frozenset[str](): floors[target]}
        for k in (1, 2, 3):
            for c in combinations(SENSORS, k):
                arm = "solo" if k == 1 else "mix"
                values[frozenset(c)] = runs(scores, arm, target, "+".join(c))
        game = synergy(values)
        for a, want in game.shapley.items():
            assert replace(panel.synergy[f"{target}: {a}"], p_adjusted=None) == want
        for (a, b), want in game.interactions.items():
            assert replace(panel.synergy[f"{target}: {a}×{b}"], p_adjusted=None) == want
        curve = {
            80: runs(scores, "share", target, target),
            160: runs(scores, "own", target, target),
            240: runs(scores, "solo", target, target),
        }
        mix = runs(scores, "mix", target, "+".join(SENSORS))
        assert panel.exchange[target] == exchange_rate(curve, mix, seed=5)


def test_distance_law_is_that_of_pairs() -> None:
    scores = whole()
    panel = judge_all(scores, designs(SENSORS), distances=APART)
    y, x = [], []
    for target in SENSORS:
        for other in SENSORS:
            pair = frozenset((target, other))
            if len(pair) == 2:
                sees = "+".join(s for s in SENSORS if s in pair)
                mix = runs(scores, "mix", target, sees).mean()
                y.append(mix - runs(scores, "solo", target, target).mean())
                x.append([1.0, *APART[pair].values()])
    want = np.linalg.lstsq(np.array(x), np.array(y), rcond=None)[0]
    got = [panel.law[f"Δ: {kind}"].value for kind in ("spectral", "GSD")]
    assert got == pytest.approx(want[1:].tolist())
    assert set(panel.law) == {"Δ: spectral", "Δ: GSD", "T: spectral", "T: GSD"}


def test_what_the_runs_do_not_allow_is_absent_and_says_what_it_needs() -> None:
    scores = whole().drop(columns=["sees", "samples"])
    plain = scores[scores["arm"] != "own"].drop_duplicates(["arm", "sensor", "replicate"])
    panel = judge_all(plain[plain["arm"] != "part"], designs(SENSORS))
    says = {
        "Ψ": "no scores of arm 'part' that can be judged on s1, s2, naip",
        "exchange rate of s1": "needs share and solo runs with different 'samples'",
        "transfer to s1": "needs its floor, and solo runs of another sensor probed on it",
        "synergy on s1": "needs all 8 mixes of s1, s2, naip probed on it; 5 are missing, such as s2",
        "distance law of T": "needs pairs of sensors with known distances",
    }
    for name, why in says.items():
        assert panel.absent[name].startswith(why)
    assert panel.claim.why.startswith("Ψ is not known: no scores of arm 'part'")
    assert json.loads(json.dumps(panel.as_dict(), allow_nan=False)) == panel.as_dict()


def test_a_foreign_run_without_all_tasks_is_left_out_and_said() -> None:
    scores = whole()
    of = (scores["arm"] == "solo") & (scores["sensor"] == "s1") & (scores["sees"] == "s2")
    scores.loc[of & (scores["replicate"] == 1), "utility"] = math.nan
    panel = judge_all(scores, designs(SENSORS))
    one, own = runs(scores, "solo", "s1", "s2")[[0, 2]], runs(scores, "solo", "s1", "s1")
    floor = {"s1": runs(scores, "floor", "s1", "")}
    want = transfer({("s1", "s1"): own, ("s2", "s1"): one}, floor)["s2", "s1"]
    assert replace(panel.transfer["s2→s1"], p_adjusted=None) == want
    assert "solo of s2 on s1, replicate 1: not probed" in " ".join(panel.absent.values())


def test_each_target_has_tasks_of_its_own_that_count() -> None:
    """Two runs of three were probed on a task that no design names: nothing depends on it."""
    scores = whole()
    other = scores[scores["replicate"] < 2].assign(task="other", value=0.9, utility=0.9)
    family = [replace(d, tasks=(f"t of {d.target}",)) for d in designs(SENSORS)]
    got, want = judge_all(pd.concat([scores, other]), family), judge_all(scores, family)
    assert got.absent == want.absent
    for name in ("psi", "strict", "exchange", "transfer", "synergy"):
        assert getattr(got, name) == getattr(want, name), name
    assert got.design != judge_all(scores, designs(SENSORS)).design


def test_the_family_of_designs_has_a_fingerprint() -> None:
    family = designs(SENSORS)
    panel = judge_all(whole(), family)
    assert panel.design == fingerprint(sorted(design.fingerprint for design in family))
    assert judge_all(whole(), family[::-1]).design == panel.design
    changed = judge_all(whole(), designs(SENSORS, margin=0.05), recorded=panel.design)
    assert changed.changed
    assert changed.sentence.endswith("; tasks, contrasts or margin were changed after the runs.")
    assert f"not the recorded {panel.design}" in panel_table(changed)
    assert not judge_all(whole(), family, recorded=panel.design).changed


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ([], "targets [] must be unique and one at least"),
        (designs(["s1", "s1"]), "targets ['s1', 's1'] must be unique"),
        (
            [*designs(["s1"]), *designs(["s2"], margin=0.02)],
            "the designs of s1 and s2 differ in more than the target",
        ),
        ([*designs(["s1"]), *designs(["s2"], ["s2", "naip"])], "differ in more than the target"),
        (designs(["s9"]), "no score of arm 'mix' on s9"),
    ],
)
def test_refused(family: list[Design], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        judge_all(whole(), family)


def test_mix_runs_must_be_probed_on_every_target_for_their_sum() -> None:
    scores = whole()
    fewer = (scores["arm"] == "mix") & (scores["sensor"] == "s2") & (scores["replicate"] == 2)
    panel = judge_all(scores[~fewer], designs(SENSORS))
    why = "mix has replicates [0, 1, 2] on s1 but [0, 1] on s2; probe every mix run on every sensor"
    assert panel.absent["Ψ"] == panel.absent["Ψ*"] == why
    assert set(panel.verdicts) == set(SENSORS)


# From the command line


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    scores = whole()
    items = items_of(scores)
    folders = []
    for target in SENSORS:
        folder = tmp_path / target
        folder.mkdir()
        scores[scores["sensor"] == target].to_parquet(folder / "scores.parquet")
        items[items["task"] == f"t of {target}"].to_parquet(folder / "predictions.parquet")
        folders.append(folder)
    return folders


def test_studies_are_judged_as_one(studies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = studies[0] / "panel.json"
    words = ["target=all", "mix=s1+s2+naip", f"json={path}"]
    assert main([*map(str, studies), *words]) == 0
    out = capsys.readouterr().out
    scores = whole()
    family = designs(SENSORS, contrasts=CONTRASTS)
    want = judge_all(scores, family, items_of(scores), distances=APART)
    got = json.loads(path.read_text())
    for target in SENSORS:
        one = delta(want, target)
        assert got["verdicts"][target]["estimates"][0]["p"] == pytest.approx(one.p)
    assert got["sentence"] == want.sentence
    assert out.splitlines()[-1].startswith("Not shown to be more than the sum of its parts")
    for text in ("Δ of target", "Ψ  mix − parts", "Ψ* mix − solos*", "  s2→s1: ", "s1: naip×s2"):
        assert text in out
    assert "distance law" in out
    assert max(map(len, out.splitlines()[:8])) <= 100


def test_some_targets_of_one_table(studies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(studies[0]), "target=s1", "mix=s1+s2+naip"]) == 0
    assert "s1's tasks by" in capsys.readouterr().out
    assert main([*map(str, studies[:2]), "target=s1+s2", "mix=s1+s2+naip"]) == 0
    assert "over 2 targets" in capsys.readouterr().out


def test_mistakes_cost_one_line(studies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (studies[1] / "predictions.parquet").unlink()
    for words, says in (
        ([*studies, "target=all"], "s2: no predictions.parquet, which the other studies have"),
        ([studies[0], "a.csv", "b.csv", "target=all"], "must be SCORES and perhaps PREDICTIONS"),
        ([studies[0], "target=s1+s9"], "unknown target 's9'"),
        ([studies[0], "target=s1+s1"], "targets ['s1', 's1'] must be unique"),
    ):
        assert main([*map(str, words), "mix=s1+s2+naip"]) == 2
        got = capsys.readouterr()
        assert (got.out, got.err.count("\n")) == ("", 1)
        assert says in got.err
