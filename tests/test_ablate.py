"""The main job from words to a folder: mistakes, one small study read from all sides, real pixels."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gfmsum.ablate import ablate, main
from gfmsum.study import Outcome

REAL = Path(__file__).parent.parent.parent / "shared" / "realdata"
SMALL = (
    "budget=micro", "budget.unique=60", "budget.seen=180", "budget.batch=30", "replicates=2",
    "data.train=60", "data.val=60", "data.test=60", "labels=all",
)  # fmt: skip


FEW = ("data.tasks=landuse+diversity", "labels=5+all")  # of those that are fitted quickly


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels=5+5"], "labels=5+5 must name each number once; write labels=10+50+all"),
        (["sensor=s3"], "unknown sensor 's3': choose from enmap, gaofen, landsat, "),
        (["sensor=enmap"], "unknown sensor 'enmap': choose from landsat, modis, naip, s1, s2"),
        (["design=both"], "unknown design 'both': choose from colocated, footprint"),
        (["catalog=nowhere.yaml"], "nowhere.yaml"),
        (["mix=all+s1"], "unknown sensor 'all'"),
        (["mix=s1"], "holds only the target"),
        (["mix=s1+s9"], "unknown sensor 's9'"),
        (["data=local"], "data.root"),
        (["data=local", "data.root=nowhere"], "nowhere"),
        (["budget.unique=abc"], "must be a whole number"),
    ],
)
def test_a_mistake_costs_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_help_and_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "usage: python -m gfmsum.ablate" in capsys.readouterr().out
    assert main(["--cfg", "sensor=s2", "replicates=1"]) == 0
    shown = capsys.readouterr().out
    assert "sensor: s2" in shown and "landuse_s2" in shown and "solo 0" in shown
    assert "labels: 10+50+all" in shown and "name: landuse_s2@10" in shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    return ablate("sensor=s1", "mix=s1+s2", *SMALL, f"out={folder}/a", f"store={folder}/store")


def test_a_margin_changed_after_the_runs_is_told(outcome: Outcome, folder: Path) -> None:
    assert not outcome.verdict.changed
    words = ("sensor=s1", "mix=s1+s2", *SMALL, f"store={folder}/store")
    again = ablate(*words, f"out={folder}/changed", "margin=0.3")
    assert again.verdict.changed
    assert "tasks, contrasts or margin were changed after the runs" in again.verdict.sentence
    assert "margin were changed" in (folder / "changed" / "verdict.json").read_text()
    back = ablate(*words, f"out={folder}/back")
    assert not back.verdict.changed


def test_the_folder_holds_everything(outcome: Outcome) -> None:
    names = {path.name for path in outcome.folder.iterdir()}
    assert names == {
        "verdict.json", "scores.parquet", "predictions.parquet", "curves.parquet", "ledger.json",
        "config.yaml", "reconstructions.npz", "report.html", "wandb", "interpolation.json",
    }  # fmt: skip
    # Both sensors of the mix have a line, below the loss of predicting the mean.
    lines = json.loads((outcome.folder / "interpolation.json").read_text())
    assert set(lines) == {"s1", "s2"} and all(0.3 < line < 1 for line in lines.values())
    assert "linear interpolation" in (outcome.folder / "report.html").read_text(encoding="utf-8")


def test_the_verdict_is_of_the_scores(outcome: Outcome) -> None:
    verdict = json.loads((outcome.folder / "verdict.json").read_text())
    scores = pd.read_parquet(outcome.folder / "scores.parquet")
    utility = scores.groupby(["arm", "replicate"])["utility"].mean().groupby("arm").mean()
    values = {estimate["symbol"]: estimate["value"] for estimate in verdict["estimates"]}
    assert values["Δ"] == pytest.approx(utility["mix"] - utility["solo"])
    assert values["Δ"] == pytest.approx(values["α"] - values["δ"])
    assert verdict["caveats"][0].startswith("Synthetic scenes: this checks the instrument")


def test_scores_have_their_predictions(outcome: Outcome) -> None:
    scores = pd.read_parquet(outcome.folder / "scores.parquet")
    predictions = pd.read_parquet(outcome.folder / "predictions.parquet")
    keys = ["arm", "replicate", "task"]
    means = predictions.groupby(keys)["contribution"].mean()
    joined = scores.set_index(keys)["utility"]
    pd.testing.assert_series_equal(
        means.sort_index(), joined.sort_index(), check_names=False, atol=1e-9, rtol=0
    )
    assert {"band means", "band statistics", "floor"} <= set(scores["arm"])


def test_tasks_are_probed_with_few_labels_that_are_the_same_for_all(
    outcome: Outcome, folder: Path
) -> None:
    """On the finished runs of another study, so the design counts as changed."""
    words = ("sensor=s1", "mix=s1+s2", *SMALL[:-1], *FEW)
    done = ablate(*words, f"out={folder}/few", f"store={folder}/store", "jobs=1")
    runs = json.loads((done.folder / "ledger.json").read_text())["runs"].values()
    assert all(run["reused"] for run in runs) and done.verdict.changed
    scores = pd.read_parquet(done.folder / "scores.parquet")
    tasks = ["landuse_s1@5", "landuse_s1", "diversity_s1"]  # five values in all would say nothing
    assert {
        arm: rows["task"].tolist() for arm, rows in scores.groupby("arm") if len(rows) == 3
    } == (dict.fromkeys(["band means", "band statistics", "texture", "random convolutions"], tasks))
    assert scores.groupby("task")["labels"].unique().map(list).to_dict() == {
        "landuse_s1@5": [5], "landuse_s1": [0], "diversity_s1": [0],
    }  # fmt: skip
    # The utility of an arm is the mean over tasks and numbers of labels alike.
    means = scores.groupby(["arm", "task"])["utility"].mean().groupby("arm").mean()
    for arm, found in done.verdict.arms.items():
        assert found["utility"] == pytest.approx(means[arm])
    # All that is known of the labels is unchanged by the study around it.
    before = pd.read_parquet(outcome.folder / "scores.parquet")
    keys = ["arm", "replicate", "task"]
    both = scores.merge(before, on=keys, suffixes=("", "_before"))
    assert len(both) == len(scores) * 2 // 3
    np.testing.assert_array_equal(both["value"], both["value_before"])
    predictions = pd.read_parquet(done.folder / "predictions.parquet")
    items = predictions.groupby(["task", "arm", "replicate"])["item"].apply(frozenset)
    assert items.groupby("task").nunique().eq(1).all()
    told = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "mean over these 3 rows" in told and "5 labels" in told


def test_every_arm_spent_the_same_and_saw_what_it_should(outcome: Outcome) -> None:
    runs = json.loads((outcome.folder / "ledger.json").read_text())["runs"]
    trained = [run for run in runs.values() if run["arm"] != "floor"]
    assert {(run["steps"], run["seen"]) for run in trained} == {(6, 180)}
    assert runs["solo 0"]["unique_by_sensor"] == {"s1": 60}
    assert runs["share 0"]["unique_by_sensor"] == {"s1": 30}
    assert runs["mix 0"]["unique_by_sensor"] == {"s1": 30, "s2": 30}
    assert runs["floor 0"]["steps"] == 0


def test_reconstructions_are_there_for_every_sensor(outcome: Outcome) -> None:
    with np.load(outcome.folder / "reconstructions.npz", allow_pickle=False) as file:
        assert set(file.files) == {"s1", "s2"}


def test_every_run_is_tracked(outcome: Outcome) -> None:
    assert len(list((outcome.folder / "wandb").glob("offline-run-*/*.wandb"))) == 8


def test_the_report_warns_first(outcome: Outcome) -> None:
    body = (outcome.folder / "report.html").read_text(encoding="utf-8").split("<body", 1)[1]
    warning = body.index("Synthetic scenes: this checks the instrument")
    assert warning < body.index(outcome.verdict.sentence[:40])


def test_a_study_that_was_killed_goes_on_to_the_same_verdict(
    outcome: Outcome, folder: Path
) -> None:
    store = folder / "killed"
    words = ["sensor=s1", "mix=s1+s2", *SMALL, f"store={store}", "checkpoint_s=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gfmsum.ablate", *words, f"out={folder}/k"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600  # over as soon as there is a state
    while not (states := list(store.glob("unfinished/*/step-*.ckpt"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert states and not (folder / "k" / "verdict.json").exists()
    again = ablate(*words, f"out={folder}/k")
    first, second = ((o.folder / "verdict.json").read_bytes() for o in (outcome, again))
    assert first == second
    assert list(store.glob("unfinished/*")) == []


def test_part_runs_branch_off_to_the_weights_they_have_alone(folder: Path) -> None:
    """In the first store the share runs are done before; in the second the parts branch off."""
    words = ("sensor=s1", "mix=s1+s2", *SMALL, "budget.seen=360", "replicates=1")
    ablate(*words, f"out={folder}/c", f"store={folder}/one")
    weights = []
    for name in ("one", "two"):
        outcome = ablate(*words, "parts=true", f"out={folder}/d{name}", f"store={folder}/{name}")
        runs = json.loads((outcome.folder / "ledger.json").read_text())["runs"]
        assert (runs["part 0"]["seen"], runs["share 0"]["seen"]) == (180, 360)
        assert runs["part 0"]["unique_by_sensor"] == {"s1": 30}
        assert "part" in set(pd.read_parquet(outcome.folder / "scores.parquet")["arm"])
        assert outcome.verdict.arms["part"]["utility"] is not None
        weights.append((folder / name / runs["part 0"]["run"] / "weights.safetensors").read_bytes())
        assert list((folder / name / "unfinished").glob("*")) == []
    assert weights[0] == weights[1]


def test_arms_that_did_not_spend_the_same_are_not_compared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps are too few to end within 2 % of one another in FLOPs."""
    words = ["sensor=s1", "mix=s1+s2", *SMALL, "budget.match=flops", f"store={folder}/flops"]
    words += ["replicates=1", f"out={folder}/e"]
    assert main(words) == 1
    says = (
        r"gfmsum: arms differ by \d+\.\d% in flops, more than budget.tolerance=0.02: they are not"
    )
    assert re.search(says, capsys.readouterr().err)
    assert not (folder / "e" / "verdict.json").exists()
    assert main([*words, "budget.tolerance=0.5"]) == 0
    assert "FLOPs are matched; samples shown differ by" in capsys.readouterr().out


def test_a_second_call_reuses_every_run_and_says_the_same(outcome: Outcome, folder: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*")}
    words = ("sensor=s1", "mix=s1+s2", *SMALL)
    again = ablate(*words, f"out={folder}/b", f"store={folder}/store")
    assert {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*")} == kept
    first, second = ((o.folder / "verdict.json").read_bytes() for o in (outcome, again))
    assert first == second
    runs = json.loads((again.folder / "ledger.json").read_text())["runs"].values()
    assert all(run["reused"] for run in runs)


def test_the_same_seed_gives_the_same_verdict_from_scratch(outcome: Outcome, folder: Path) -> None:
    words = ("sensor=s1", "mix=s1+s2", *SMALL, "jobs=1")
    fresh = ablate(*words, f"out={folder}/c", f"store={folder}/other")
    assert (fresh.folder / "verdict.json").read_bytes() == (
        outcome.folder / "verdict.json"
    ).read_bytes()


def test_another_target_of_the_same_mix_reuses_its_runs(outcome: Outcome, folder: Path) -> None:
    other = ablate("sensor=s2", "mix=s1+s2", *SMALL, f"out={folder}/d", f"store={folder}/store")
    runs = json.loads((other.folder / "ledger.json").read_text())["runs"]
    reused = {name.split()[0] for name, run in runs.items() if run["reused"]}
    assert reused == {"mix", "floor"}


SUPERDOVE = """
superdove:
  title: PlanetScope <SuperDove>
  gsd_m: 3
  unit: reflectance
  bands:
    blue: {wavelength_um: 0.490, fwhm_um: 0.050}
    red: {wavelength_um: 0.665, fwhm_um: 0.031}
    nir: {wavelength_um: 0.865, fwhm_um: 0.040}
"""


def test_a_sensor_of_the_users_own_is_mixed_probed_and_reported(folder: Path) -> None:
    """In processes of its own, which must learn of the sensor; co-located with another."""
    (folder / "mine.yaml").write_text(SUPERDOVE)
    words = [
        "sensor=superdove", "mix=superdove+s2", "data.sensors=superdove+s2", "design=colocated",
        f"catalog={folder / 'mine.yaml'}", f"out={folder / 'own'}", f"store={folder / 'own_store'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "gfmsum.ablate", *words, *SMALL],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Co-located design" in done.stdout
    verdict = json.loads((folder / "own" / "verdict.json").read_text())
    assert verdict["target"] == "superdove" and verdict["mix"] == ["s2", "superdove"]
    ledger = json.loads((folder / "own" / "ledger.json").read_text())["runs"]
    assert ledger["mix 0"]["seen_by_sensor"] == {"superdove": 90, "s2": 90}
    report = (folder / "own" / "report.html").read_text()
    assert "PlanetScope &lt;SuperDove&gt;" in report and "<SuperDove>" not in report


def test_a_mix_without_the_target(outcome: Outcome, folder: Path) -> None:
    other = ablate("sensor=s1", "mix=s2+naip", *SMALL, f"out={folder}/e", f"store={folder}/store")
    arms = other.verdict.arms
    assert arms["share"]["replicates"] == arms["floor"]["replicates"]


def test_a_failing_run_is_named_and_what_had_finished_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sensor=s1", "mix=s1+s2", *SMALL, "budget.learning_rate=1e30", "replicates=1"]
    assert main([*words, f"out={tmp_path}/out", f"store={tmp_path}/store", "jobs=1"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("gfmsum: run 'mix 0' failed: loss is")
    assert "lower budget.learning_rate" in said
    assert not (tmp_path / "out" / "verdict.json").exists()
    assert not list(tmp_path.glob("store/.*"))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real pixels at ../shared/realdata")
@pytest.mark.parametrize("sensor", ["s1", "s2", "landsat", "naip", "modis"])
def test_real_pixels_give_a_verdict(sensor: str, folder: Path) -> None:
    words = [word for word in SMALL if not word.startswith("data.")]
    # A small encoder: the labelled images are many.
    words += ["budget.model.width=32", "budget.model.depth=1", "budget.model.heads=2"]
    words += ["budget.model.patch_px=16"]
    done = ablate(
        f"sensor={sensor}", "mix=all", "data=local", f"data.root={REAL}", *words, "replicates=1",
        f"out={folder}/real-{sensor}", f"store={folder}/real",
    )  # fmt: skip
    assert done.verdict.kind == "undecided"  # one replicate decides nothing
    assert any("come from different places" in caveat for caveat in done.caveats)
    scores = pd.read_parquet(done.folder / "scores.parquet")
    assert scores["value"].notna().all()
