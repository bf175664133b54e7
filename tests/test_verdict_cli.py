"""Judging stored scores from the command line: what it reads, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gfmsum.verdict import CONTRASTS, Design, judge, table
from gfmsum.verdict.__main__ import OPTIONS, main
from gfmsum.verdict.tables import read_all, read_tables
from tests.test_verdict import drawn, places, tables

WORDS = ("target=s1", "mix=s1+s2")
DESIGN = Design("s1", ("s1", "s2"))


@pytest.fixture(scope="module")
def given() -> tuple[pd.DataFrame, pd.DataFrame]:
    return tables(drawn(1), {"t": places(6, 3)})


@pytest.fixture
def folder(given: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path) -> Path:
    for name, frame in zip(("scores", "predictions"), given, strict=True):
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_help_documents_every_column_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--help")
    columns = (
        "arm replicate sensor task metric value floor ceiling utility n_test labels item cluster"
    )
    for name in [*columns.split(), "contribution"]:
        assert f"  {name}" in text
    for option in OPTIONS:
        assert f"  {option}=" in text


@pytest.mark.parametrize("words", [["--help"], ["targt=s1"], ["nowhere.parquet", *WORDS]])
def test_help_and_mistakes_load_nothing_slow(words: list[str]) -> None:
    slow = {"pandas", "scipy", "statsmodels", "torch", "lightning"}
    code = (
        f"import sys\nfrom gfmsum.verdict.__main__ import main\nmain({words!r})\n"
        f"print(*sorted({slow!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_it_says_what_the_main_job_says_and_without_torch(
    given: tuple[pd.DataFrame, pd.DataFrame], folder: Path
) -> None:
    code = (
        "import sys\nfrom gfmsum.verdict.__main__ import main\n"
        f"code = main([{str(folder)!r}, *{WORDS!r}, 'json={folder}/out/verdict.json'])\n"
        "assert not {'torch', 'lightning', 'timm'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    want = judge(given[0], DESIGN, given[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{table(want)}\n\n{want.sentence}\n"
    assert json.loads((folder / "out" / "verdict.json").read_text()) == want.as_dict()


def test_words_are_the_designs(
    given: tuple[pd.DataFrame, pd.DataFrame], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["margin=0.2", "confidence=0.9", "contrasts=dilution+substitution"]
    contrasts = (CONTRASTS[2], CONTRASTS[0])
    want = judge(given[0], Design("s1", ("s1", "s2"), 0.2, 0.9, contrasts), given[1])
    assert said(capsys, folder, *WORDS, *words) == f"{table(want)}\n\n{want.sentence}\n"
    want = judge(given[0], Design("s1", ("s1", "s2"), tasks=("t",)), given[1])
    assert said(capsys, folder, *WORDS, "tasks=t") == f"{table(want)}\n\n{want.sentence}\n"


def test_tables_are_found_in_every_form(
    given: tuple[pd.DataFrame, pd.DataFrame], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    away = tmp_path_factory.mktemp("away")
    for name, frame in zip(("scores", "predictions"), given, strict=True):
        frame.to_csv(away / f"{name}.csv", index=False)
    scores, predictions = folder / "scores.parquet", folder / "predictions.parquet"
    want = judge(given[0], DESIGN, given[1]).as_dict()
    for paths in (
        (folder,), (scores,), (scores, predictions), (away / "scores.csv", predictions),
        (away / "scores.csv", folder), (scores, away / "predictions.csv"),
    ):  # fmt: skip
        scores, predictions = read_all(paths)
        got = judge(scores, DESIGN, predictions).as_dict()
        assert got["estimates"][0]["item_variance"] > 0
        assert got["estimates"][0] == pytest.approx(want["estimates"][0])
    assert read_tables(away / "scores.csv")[1] is None


def test_without_predictions_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "predictions.parquet").unlink()
    sentence = said(capsys, folder, *WORDS).splitlines()[-1]
    assert sentence.endswith(
        "without test items the interval carries runs only, not how places vary."
    )


def test_utility_follows_from_the_value(folder: Path) -> None:
    scores = pd.read_parquet(folder / "scores.parquet")
    lean = scores.drop(columns=["utility", "n_test"]).assign(note="anything")
    lean.to_parquet(folder / "scores.parquet")
    got, predictions = read_tables(folder)
    assert got["utility"].to_numpy() == pytest.approx((scores["value"] - 0.1) / 0.8)
    found = judge(got, DESIGN, predictions)
    assert found.tasks[0]["n_test"] is None
    assert found.estimates[0].value == pytest.approx(
        judge(scores, DESIGN, predictions).estimates[0].value
    )


def test_other_peoples_column_types_are_understood(folder: Path) -> None:
    """Categories that never occur, nullable numbers, integers and tasks with numbers for names."""
    scores = pd.read_parquet(folder / "scores.parquet")
    arms = pd.Categorical(scores["arm"], ["solo", "mix", "share", "band means"])
    typed = scores.assign(
        arm=arms, task=7, value=scores["value"].astype("Float64"), floor=0, ceiling=1,
        utility=scores["value"],
    )  # fmt: skip
    typed.to_parquet(folder / "scores.parquet")
    (folder / "predictions.parquet").unlink()
    got = judge(read_tables(folder)[0], DESIGN)
    assert [task["task"] for task in got.tasks] == ["7"]
    assert set(got.tasks[0]["means"]) == {"solo", "mix", "share"}
    mean = scores.groupby("arm")["value"].mean()
    assert got.estimates[0].value == pytest.approx(mean["mix"] - mean["solo"])


def test_two_arms_are_enough_for_the_substitution(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = pd.read_parquet(folder / "scores.parquet")
    scores[scores["arm"] != "share"].to_parquet(folder / "scores.parquet")
    assert main([str(folder), *WORDS]) == 2
    assert "no score of arm 'share' on s1; run and probe it" in capsys.readouterr().err
    assert "Δ substitution" in said(capsys, folder, *WORDS, "contrasts=substitution")


def test_a_recorded_design_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = f"recorded={DESIGN.fingerprint}"
    changed = "tasks, contrasts or margin were changed after the runs"
    assert changed not in said(capsys, folder, *WORDS, recorded)
    out = said(capsys, folder, *WORDS, recorded, "margin=0.02", f"json={folder}/v.json")
    assert out.endswith(f"; {changed}.\n")
    assert json.loads((folder / "v.json").read_text())["recorded"] == DESIGN.fingerprint


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "target is missing"),
        (["mix=s1+s2"], "target is missing; name it, like target=s1"),
        (["target=s1"], "mix is missing; name it, like mix=s1+s2"),
        (["targt=s1"], "unknown option 'targt'"),
        (["target=s1", *WORDS], "'target=s1': give target once"),
        (["target=", "mix=s1+s2"], "'target=': give target once, with a value"),
        (["target=s2", "mix=s1+s2"], "unknown target 's2': choose from s1"),
        (["target=s1", "mix=all"], "mix=all must name its sensors, like mix=s1+s2"),
        (["target=s1", "mix=all-s2"], "mix=all-s2 must name its sensors"),
        (["target=s1", "mix=s1++s2"], "mix=s1++s2 must name its sensors"),
        (["target=s1", "mix=s1"], "add a sensor"),
        ([*WORDS, "margin=1"], "margin=1 must be a number between 0 and 1; 0.01 is one point"),
        ([*WORDS, "margin=nan"], "margin=nan must be a number"),
        ([*WORDS, "margin=one"], "margin=one must be a number"),
        ([*WORDS, "confidence=95"], "confidence=95 must be a number between 0 and 1"),
        ([*WORDS, "confidence=0.3"], "confidence=0.3 in [0.5, 1)"),
        ([*WORDS, "contrasts=sum"], "unknown contrast 'sum'"),
        ([*WORDS, "contrasts=dilution"], "hold 'substitution'"),
        ([*WORDS, "tasks=v"], "unknown task 'v': choose from t"),
        ([*WORDS, "tasks=t+t"], "must name each task once"),
        ([*WORDS, "recorded=abc"], "recorded=abc must be a fingerprint: 16 hexadecimal digits"),
        ([*WORDS, "a.parquet", "b.parquet"], "must be SCORES and perhaps PREDICTIONS"),
        ([*WORDS, "nowhere.parquet"], "no file nowhere.parquet"),
        ([*WORDS, "json=scores.parquet/v.json"], "scores.parquet"),
    ],
)
def test_a_mistake_costs_one_line(
    words: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert main(["scores.parquet", *words]) == 2
    got = capsys.readouterr()
    assert (got.out, got.err.count("\n")) == ("", 1)
    assert got.err.startswith("gfmsum: ")
    assert says in got.err


def test_no_file_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS]) == 2
    assert "no SCORES given: name a file or a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("column", "scores.parquet has no column floor, ceiling; add what"),
        ("text", "column value must hold numbers, but"),
        ("empty", "scores.parquet holds no rows"),
        ("utility", "utility 0.7 of arm 'solo', replicate 0, task 't' is not"),
        ("scale", "task 't': floor 0.9 must be below ceiling 0.1"),
        ("missing", "'mix', replicate 2 has no finite utility of {'task': 't'}"),
        ("bytes", "cannot read"),
        ("items", "predictions.parquet has no column cluster; add what"),
    ],
)
def test_bad_tables_cost_one_line(
    how: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, predictions = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "predictions")
    )
    match how:
        case "column":
            scores = scores.drop(columns=["floor", "ceiling"])
        case "text":
            scores["value"] = "high"
        case "empty":
            scores = scores[:0]
        case "utility":
            scores.loc[0, "utility"] = 0.7
        case "scale":
            scores = scores.rename(columns={"floor": "ceiling", "ceiling": "floor"})
        case "missing":
            of_mix = (scores["arm"] == "mix") & (scores["replicate"] == 2)
            scores.loc[of_mix, ["value", "utility"]] = np.nan
        case "items":
            predictions = predictions.drop(columns="cluster")
    scores.to_parquet(folder / "scores.parquet")
    predictions.to_parquet(folder / "predictions.parquet")
    if how == "bytes":
        (folder / "scores.parquet").write_bytes(b"no table")
    assert main([str(folder), *WORDS]) == 2
    got = capsys.readouterr()
    assert (got.out, got.err.count("\n")) == ("", 1)
    assert says in got.err
