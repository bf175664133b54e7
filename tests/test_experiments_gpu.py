"""The experiment for GPUs, as far as a CPU can tell: same batches, same steps, nothing from the host."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gfmsum.budget import BUDGETS, Architecture
from gfmsum.data.modules import MixDataModule
from gfmsum.mix import Mix
from gfmsum.model import encoder, mae
from gfmsum.model.bands import BandKernels
from gfmsum.pretrain import initialised, pretrain
from gfmsum.records import Arm, Role, Run

HERE = Path(__file__).parent.parent / "experiments" / "gpu"
sys.path.insert(0, str(HERE))

from attention import BIASES, bias_as  # noqa: E402
from constants import keep_constants  # noqa: E402
from resident import ResidentDataModule, Store  # noqa: E402
from results import Sink, gather, write  # noqa: E402
from runs import Plan, conduct  # noqa: E402
from scenes import Kept, Scenes  # noqa: E402
from steps import Loop, Table, Way  # noqa: E402

CPU = torch.device("cpu")
MODEL = Architecture(
    width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2,
    image_px=16, patch_px=4, predict_ratio=0.5, code_width=16,
)  # fmt: skip
BUDGET = replace(BUDGETS["small"], unique=48, seen=96, batch=12, model=MODEL)


@pytest.fixture(scope="module")
def kept() -> Kept:
    scenes = Scenes(("s1", "s2"), 16, 64, chunk=16, items=(60, 60, 60))
    scenes.render(time.time() + 600)
    return scenes.kept(scenes.rendered)


@pytest.fixture
def model_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test puts in the place of the model's functions is gone after it."""
    for module in (encoder, mae):
        for name in ("grid_places", "ground_positions", "slopes"):
            monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(mae, "group_statistics", mae.group_statistics)


def resident(kept: Kept, sensors: tuple[str, ...]) -> ResidentDataModule:
    stores = {name: Store.load(block, CPU) for name, block in kept.blocks.items()}
    return ResidentDataModule(
        kept, stores, Mix.equal(sensors), unique=BUDGET.unique, seen=BUDGET.seen,
        batch=BUDGET.batch, image_px=16, seed=(0, 1),
    )  # fmt: skip


@pytest.mark.parametrize("sensors", [("s1",), ("s1", "s2")])
def test_batches_from_the_device_are_those_of_the_library(
    kept: Kept, sensors: tuple[str, ...]
) -> None:
    library = MixDataModule(
        kept, Mix.equal(sensors), unique=BUDGET.unique, seen=BUDGET.seen, batch=BUDGET.batch,
        image_px=16, seed=(0, 1),
    )  # fmt: skip
    ours = list(resident(kept, sensors).train_dataloader())
    theirs = list(library.train_dataloader())
    assert len(ours) == len(theirs) == 8
    for mine, want in zip(ours, theirs, strict=True):
        assert (mine.step, mine.counts) == (want.step, want.counts)
        for a, b in zip(mine.parts, want.parts, strict=True):
            assert (a.ids, a.rows, a.kind) == (b.ids, b.rows, b.kind)
            torch.testing.assert_close(a.pixels, b.pixels, rtol=1e-4, atol=1e-4)


def test_kept_pixels_are_the_sources_own_to_rounding(kept: Kept) -> None:
    rows = np.array([5, 0, 63])
    for name, block in kept.blocks.items():
        want = kept._synthetic.pretraining(name, 16).blocks[0].read(rows).pixels
        got = block.read(rows).pixels
        assert np.abs((got - want) / block.code.step).max() < 0.51
        assert not np.array_equal(got[0], got[1])


def test_the_loop_takes_the_steps_of_pretraining(kept: Kept) -> None:
    run = Run.of(Arm(Role.MIX, Mix.equal(["s1", "s2"]), ("s1", "s2")), BUDGET, kept.identity, 0, 1)
    want = pretrain(run, kept)
    loop = Loop(BUDGET, resident(kept, ("s1", "s2")).resident, Way("fp32"), length=5)
    losses = []
    for steps in (range(5), range(5, 8)):
        loop.load(Table.of(loop.mae, BUDGET, loop.batches, steps))
        loop.go(len(steps))
        losses.append(loop.losses())
    by_sensor = [
        [loss for _, _, name, loss in want.curve if name == sensor] for sensor in ("s1", "s2")
    ]
    torch.testing.assert_close(torch.cat(losses), torch.tensor(by_sensor).T, rtol=2e-3, atol=2e-3)
    start = torch.cat(
        [p.flatten() for p in Loop(BUDGET, loop.batches, Way("fp32"), 1).mae.parameters()]
    )
    mine, theirs = (torch.cat([p.flatten() for p in m.parameters()]) for m in (loop.mae, want.mae))
    assert (mine - theirs).norm() < 0.02 * (theirs - start).norm()


class Spy(TorchDispatchMode):
    """Notes every operation that has to do with the host: meta tensors stand for those of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, do, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = do(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if any(isinstance(leaf, torch.Tensor) and not leaf.is_meta for leaf in leaves):
            self.seen.append(str(do))
        return out


def elsewhere(loop: Loop) -> None:
    """Move a loop to the meta device, where nothing is computed and every value is unknown."""

    def meta(part: torch.Tensor) -> torch.Tensor:
        return part.to("meta")

    loop.mae.to("meta")
    for module in loop.mae.modules():
        if isinstance(module, BandKernels):
            module._features = {key: (meta(a), meta(b)) for key, (a, b) in module._features.items()}
    assert loop._table is not None
    loop._table = loop._table.to(torch.device("meta"))
    loop._at, loop.rate, loop._losses = map(meta, (loop._at, loop.rate, loop._losses))
    for one in loop.batches.on_device.values():
        one.store = replace(one.store, numbers=meta(one.store.numbers))
        one.scale, one.shift = meta(one.scale), meta(one.shift)
    loop.batches.poses = meta(loop.batches.poses)
    # Any will do: of a fused update on tensors of one device nothing comes from elsewhere.
    loop.optimizer = torch.optim.SGD(loop.mae.parameters(), lr=0.1, foreach=False)


@pytest.mark.usefixtures("model_put_back")
def test_nothing_in_a_step_comes_from_the_host_or_waits_for_the_device(kept: Kept) -> None:
    loop = Loop(BUDGET, resident(kept, ("s1", "s2")).resident, Way("fp32"), length=2)
    loop.load(Table.of(loop.mae, BUDGET, loop.batches, range(2)))
    loop.go(1)
    elsewhere(loop)
    with Spy() as before:
        loop._step()
    assert before.seen, "the spy sees what the library makes on the host"
    keep_constants(torch.device("meta"))
    loop._step()  # the first makes what is kept
    with Spy() as after:
        loop._step()  # an item asked of a meta tensor would raise
    assert after.seen == []


@pytest.mark.usefixtures("model_put_back")
def test_kept_constants_change_nothing(kept: Kept) -> None:
    batch = resident(kept, ("s1", "s2")).resident.batch(0)
    model = initialised(BUDGET, 0, 0)
    views = [(part.pixels, part.bands, part.gsd_m) for part in batch.parts]
    want = model(views, torch.Generator().manual_seed(1))
    keep_constants(CPU)
    for _ in range(2):
        got = model(views, torch.Generator().manual_seed(1))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_an_aligned_bias_changes_nothing_and_none_does(kept: Kept) -> None:
    batch = resident(kept, ("s1", "s2")).resident.batch(0)
    model = initialised(BUDGET, 0, 0)
    views = [(part.pixels, part.bands, part.gsd_m) for part in batch.parts]
    found = {}
    for which in BIASES:
        with bias_as(which):
            found[which] = torch.cat(model(views, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(found["aligned"], found["as it is"], rtol=1e-4, atol=1e-4)
    assert (found["none"] - found["as it is"]).abs().max() > 1e-3


@pytest.mark.usefixtures("model_put_back")
def test_runs_leave_weights_and_rows(kept: Kept, tmp_path: Path) -> None:
    plan = Plan(BUDGET, 5, 1, False, tmp_path, time.time() + 600)
    conduct(Sink(tmp_path), "cpu", kept, plan)
    tables = gather(tmp_path)
    assert [(row["arm"], row["sees"]) for row in tables["runs"]] == [
        ("solo", "s1"), ("mix", "s1+s2"), ("solo", "s2"),
    ]  # fmt: skip
    for row in tables["runs"]:
        assert row["whole"] and row["steps"] == 8 and row["seen"] == 96
        weights = torch.load(tmp_path / row["weights"], weights_only=True)
        want = initialised(BUDGET, 0, 0)
        want.load_state_dict(weights)
    checks = {row["what"]: row for row in tables["checks"]}
    for name in ("s1", "s2"):
        assert checks[f"largest error of normalised pixels, {name}"]["value"] < 1e-4
    assert checks["first steps, bf16, beside the plain way's"]["moved"] == 1


def test_rows_half_written_are_left_for_the_next_time(tmp_path: Path) -> None:
    sink = Sink(tmp_path)
    sink.add("speed", {"case": "a", "rate": float("nan")})
    sink.add("speed", {"case": "b", "error": "no"})
    (path,) = tmp_path.glob("speed-*.jsonl")
    path.write_text(path.read_text() + '{"case": "c"')
    tables = gather(tmp_path)
    assert tables["speed"] == [{"case": "a", "rate": None}, {"case": "b", "error": "no"}]
    write(tmp_path / "out", {"state": "running"}, tables)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["speed"] == tables["speed"]
    assert (tmp_path / "out" / "speed.csv").read_text() == "case,rate,error\na,,\nb,,no\n"


def test_a_deadline_that_is_over_leaves_valid_results(tmp_path: Path) -> None:
    words = ["--smoke", "--device", "cpu", "--deadline", "5", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, HERE / "run.py", *words], capture_output=True, text=True, check=True
    )
    said = json.loads((tmp_path / "results.json").read_text())
    assert said["state"] == "cut" and "cut" in done.stdout
    assert said["machine"]["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "run.py", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    assert line.startswith("gfmsum: torch") and "--device cpu" in line
