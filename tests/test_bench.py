"""Probing encoders from the command line, with small data: the tables, the floors, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gfmsum.bench import main
from gfmsum.budget import BUDGETS
from gfmsum.data.sample import Labelled, Samples
from gfmsum.mix import Mix
from gfmsum.model.export import export_encoder
from gfmsum.pretrain import initialised
from gfmsum.probe.features import Encoded
from gfmsum.probe.fit import probe
from gfmsum.probe.views import Across, SideBySide, Together, matched
from gfmsum.records import Arm, Role, Run, Task
from gfmsum.sensors import NAIP, S1, S2
from gfmsum.store import Store

SMALL = ("data.train=60", "data.val=60", "data.test=60", "threads=1")
FLOORS = {"band means", "band statistics", "texture", "random convolutions"}
TASK = Task("t", "s1", "classification", "accuracy", 0.5, 1.0, ("a", "b"))
ENCODER = initialised(BUDGETS["micro"], 0, 0).encoder


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words, *SMALL])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_an_encoder_the_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bench(capsys, "sensor=naip")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert rows["extent_naip"][1:6] == ["naip", "synthetic", "segmentation", "mean_iou", "60/60/60"]
    assert [*rows] == [
        f"{n}_naip" for n in ("landuse", "diversity", "length", "coarseness", "extent")
    ]
    _, out, _ = bench(capsys)
    assert len(out.splitlines()) == 1 + 5 * 5


def test_every_task_is_scored_beside_its_floors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("random/micro", "sensor=s1", "labels=all", f"out={tmp_path / 'o'}")
    code, out, err = bench(capsys, *words)
    assert code == 0, err
    assert out.startswith("Synthetic scenes")
    scores = pd.read_parquet(tmp_path / "o" / "scores.parquet")
    predictions = pd.read_parquet(tmp_path / "o" / "predictions.parquet")
    assert set(scores["arm"]) == {"random/micro", *FLOORS}
    assert scores.groupby("arm")["task"].nunique().eq(5).all()
    # Every score can be computed again from what is kept of its test items.
    means = predictions.groupby(["arm", "task"])["contribution"].mean()
    for row in scores.itertuples():
        assert means[row.arm, row.task] == pytest.approx(row.utility)
    extent = predictions[predictions["task"] == "extent_s1"]
    assert all(sum(cells) == 32 * 32 and len(cells) == 9 for cells in extent["confusion"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as far as an encoder is concerned."""
    store = Store(tmp_path_factory.mktemp("store"))
    arm = Arm(Role.SOLO, Mix.equal(["s1"]), ("s1",))
    made = Run.of(arm, BUDGETS["micro"], {"source": "test"}, 0, 0)
    mae = initialised(BUDGETS["micro"], 5, 0)
    weights = {name: value.numpy() for name, value in mae.state_dict().items()}
    curve = pd.DataFrame({"step": [0], "seen": [0], "sensor": [""], "loss": [1.0]})
    store.save(made, weights, {}, curve, (), {})
    return store.folder(made)


def test_a_run_and_its_export_score_alike_beside_random_starts(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    exported = export_encoder(run, tmp_path / "encoder")
    out = tmp_path / "o"
    code, _, err = bench(
        capsys,
        str(run),
        str(exported),
        "sensor=s2",
        "tasks=landuse_s2",
        "labels=all",
        "floors=2",
        f"out={out}",
    )
    assert code == 0, err
    scores = pd.read_parquet(out / "scores.parquet").set_index("arm")
    assert scores.loc[str(run), "value"] == scores.loc[str(exported), "value"]
    (random,) = {name for name in scores.index if name.startswith("random start of gfmsum")}
    assert scores.loc[random, "replicate"].tolist() == [0, 1]


def test_few_labels_make_rows_of_their_own_beside_their_floors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("random/micro", "sensor=s1", "tasks=landuse_s1", "probe=linear+knn", "labels=2+5+all")
    code, out, err = bench(capsys, *words, f"out={tmp_path}")
    assert code == 0, err
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert set(scores["arm"]) == {"random/micro", *FLOORS}
    names = ["landuse_s1@2", "landuse_s1@5", "landuse_s1"]
    for _, rows in scores.groupby(["arm", "probe"]):
        assert rows["task"].tolist() == names and rows["labels"].tolist() == [2, 5, 0]
    near = scores[scores["probe"] == "knn"].groupby("task")["strength"].unique()
    assert near["landuse_s1@2"] == pytest.approx([12])  # as many neighbours as labels
    assert near["landuse_s1"] == pytest.approx([20])
    titles = [line.partition(":")[0] for line in out.splitlines() if "test items, floor" in line]
    assert titles == names


def test_other_sensors_are_crossed_to_and_fused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("random/micro", "sensor=s1", "tasks=landuse_s1", "labels=5", f"out={tmp_path}")
    code, _, err = bench(
        capsys, *words, "across=s2", "fuse=s2+naip", "beside=random/micro+random/tiny"
    )
    assert code == 0, err
    arms = set(pd.read_parquet(tmp_path / "scores.parquet")["arm"])
    assert {name.partition(", ")[2] for name in arms if name.startswith("random")} == {
        "s1 on s1", "s1 on s2", "s1 alone", "s2 alone", "naip alone", "with s2+naip side by side",
        "with s2+naip together",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "unknown model 'nothing'"),
        (("random/micro", "sensor=s9"), "unknown sensor 's9'"),
        (("random/micro", "probe=knm"), "unknown probe 'knm'"),
        (("random/micro", "tasks=landuse_s2"), "unknown task 'landuse_s2'"),
        (("random/micro", "probe=knn", "tasks=extent_s1"), "is for none of extent_s1"),
        (("random/micro", "labels=x", "tasks=landuse_s1"), "'x' must be all, or a whole number"),
        (("random/micro", "shots=5", "tasks=landuse_s1"), "unknown option 'shots'"),
        (("random/micro", "blocks=9", "tasks=landuse_s1"), "blocks=9 must be 1 to"),
        (("random/micro", "fuse=s2", "beside=random/micro+random/micro", "tasks=landuse_s1"),
         "names 2 encoders for 1 sensors"),
        (("dofa_base", "tasks=landuse_s1"), "not on this machine; get them with: curl"),
        (("labels=5",), "labels= wants an ENCODER"),
        (("random/micro", "wierd=1"), "unknown option 'wierd'"),
    ],
)  # fmt: skip
def test_mistakes_cost_one_line_and_two(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, out, err = bench(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_help_loads_no_torch() -> None:
    script = (
        "import sys\nfrom gfmsum.bench import main\nmain(['--help'])\n"
        "print({'torch', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


# Views of several sensors.


def shown(sensor: str, ids: list[str], lonlat: np.ndarray | None = None, seed: int = 0) -> Samples:
    one = {"s1": S1, "s2": S2, "naip": NAIP}[sensor]
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(len(ids), len(one.bands), 32, 32)).astype(np.float32)
    return Samples(sensor, one.bands, one.gsd_m, pixels, np.array(ids), lonlat)


def asked(samples: Samples) -> Labelled:
    n = len(samples)
    parts = (np.arange(0, n, 3), np.arange(1, n, 3), np.arange(2, n, 3))
    return Labelled(TASK, samples, np.arange(n) // 3 % 2, samples.ids, (parts,))


def test_places_are_matched_by_name_or_by_where_they_lie() -> None:
    names = [f"p{i}" for i in range(12)]
    items, others = asked(shown("s1", names)), shown("s2", names[::-1][:10], seed=1)
    few, views = matched(items, others)
    assert few.samples.ids.tolist() == views.ids.tolist() == names[2:]
    assert few.target.tolist() == items.target[2:].tolist()
    for fold, whole in zip(few.folds[0], items.folds[0], strict=True):
        assert few.samples.ids[fold].tolist() == [names[i] for i in whole if i >= 2]
    lonlat = np.stack([np.arange(12.0), np.arange(12.0) / 2], axis=1)
    placed = asked(shown("s1", names, lonlat))
    elsewhere = shown("s2", [f"q{i}" for i in range(12)], lonlat[::-1] + 1e-7, seed=1)
    few, views = matched(placed, elsewhere)
    assert views.ids.tolist() == [f"q{i}" for i in range(12)][::-1]
    with pytest.raises(ValueError, match="s2 shows 0 of its 12 places"):
        matched(placed, shown("s2", [f"q{i}" for i in range(12)], lonlat + 5, seed=1))


def test_only_test_items_are_seen_by_the_other_sensor() -> None:
    names = [f"p{i}" for i in range(12)]
    items, others = asked(shown("s1", names)), shown("s2", names, seed=1)
    encoded = Encoded(ENCODER)
    train, val, test = items.folds[0]
    rows = Across(encoded, items, others).pooled(items.samples, train)
    own, foreign = encoded.pooled(items.samples, train), encoded.pooled(others, train)
    np.testing.assert_array_equal(rows[[*train, *val]], own[[*train, *val]])
    np.testing.assert_array_equal(rows[test], foreign[test])
    assert np.abs(own[test] - foreign[test]).max() > 1e-3


def test_views_lie_side_by_side_or_go_through_one_trunk() -> None:
    names = [f"p{i}" for i in range(12)]
    items, others = asked(shown("s1", names)), shown("naip", names, seed=1)
    encoded, train = Encoded(ENCODER), items.folds[0][0]
    own = encoded.pooled(items.samples, train)
    beside = SideBySide(((encoded, None), (encoded, others))).pooled(items.samples, train)
    np.testing.assert_array_equal(beside, np.hstack([own, encoded.pooled(others, train)]))
    alone = Together(encoded, ()).pooled(items.samples, train)
    np.testing.assert_allclose(alone, own, atol=1e-5)
    joint = Together(encoded, (others,)).pooled(items.samples, train)
    # Views see each other: that is not the mean of each alone.
    apart = (own + encoded.pooled(others, train)) / 2
    assert joint.shape == own.shape and np.abs(joint - apart).max() > 1e-3
    score, _ = probe(Together(encoded, (others,)), items)
    assert 0 <= score.value <= 1


def test_an_encoder_of_one_sensor_at_a_time_cannot_fuse() -> None:
    names = [f"p{i}" for i in range(12)]
    items = asked(shown("s1", names))

    class Other(torch.nn.Module):
        patch_px = 8

    with pytest.raises(ValueError, match="Other takes one sensor at a time"):
        Together(Encoded(Other()), ()).pooled(items.samples, items.folds[0][0])
