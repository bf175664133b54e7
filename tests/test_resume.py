"""What stops and goes on, is cut in slices or branches off ends with the same weights and Ledger."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from gfmsum.budget import Budget
from gfmsum.checkpoint import Checkpoints
from gfmsum.config import Execution
from gfmsum.pretrain import EXPLODED, Pretrained, pretrain
from gfmsum.records import Run
from tests.data.test_modules import Noise
from tests.interrupted import LARGER, TIMES, apart
from tests.test_pretrain import SMALL, run

ROOT = Path(__file__).parent.parent
EVERY_STEP = Execution(checkpoint_s=0)


class Stop(Exception):
    """Somebody pulled the plug."""


def stopped_at(step: int, one: Run, folder: Path, branch: Fraction | None = None) -> None:
    def tell(done: int, metrics: dict[str, float]) -> None:
        if done == step:
            raise Stop

    with pytest.raises(Stop):
        pretrain(one, Noise(), execution=EVERY_STEP, checkpoints=folder, branch=branch, tell=tell)


def exact(done: Pretrained) -> tuple[dict[str, Any], list[Any]]:
    ledger = {name: value for name, value in asdict(done.ledger).items() if name not in TIMES}
    return ledger, done.curve


def same(a: Pretrained, b: Pretrained) -> bool:
    one, other = a.mae.state_dict(), b.mae.state_dict()
    return exact(a) == exact(b) and all(torch.equal(one[name], other[name]) for name in one)


def near(apart: Sequence[float]) -> bool:
    """Weights of order one, after five steps that add up in another order, in fp32."""
    relative, most = apart
    return relative < 1e-6 and most < 1e-5


@pytest.fixture(scope="module")
def alone() -> Pretrained:
    return pretrain(run(), Noise())


@pytest.fixture(scope="module")
def larger() -> Pretrained:
    return pretrain(run(LARGER), Noise())


# Stopped


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stopped_run_ends_as_if_nothing_had_been(
    step: int, alone: Pretrained, tmp_path: Path
) -> None:
    stopped_at(step, run(), tmp_path)
    seen: list[int] = []
    done = pretrain(run(), Noise(), checkpoints=tmp_path, tell=lambda at, metrics: seen.append(at))
    # The step at which it was stopped had not been written down yet.
    assert seen == list(range(step, 6))
    assert same(done, alone)


def test_a_stopped_run_with_kernels_of_its_own_goes_on_too(tmp_path: Path) -> None:
    own = run(replace(SMALL, model=replace(SMALL.model, embed="per_sensor")))
    stopped_at(3, own, tmp_path)
    assert same(pretrain(own, Noise(), checkpoints=tmp_path), pretrain(own, Noise()))


def test_a_torn_checkpoint_is_found_out_and_the_one_before_used(
    alone: Pretrained, tmp_path: Path
) -> None:
    stopped_at(4, run(), tmp_path)
    newest = sorted(tmp_path.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"000003\.ckpt is torn; the checkpoint before it is used"):
        done = pretrain(run(), Noise(), checkpoints=tmp_path)
    assert same(done, alone)


def test_checkpoints_are_few_whole_and_run_no_code(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.newest() is None
    for step in (9, 10, 100):
        kept.save({"step": step, "w": torch.ones(2)}, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-000000000010.ckpt", "step-000000000100.ckpt",
    ]  # fmt: skip
    newest = kept.newest()
    assert newest is not None and newest["step"] == 100

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, ("exit 1",)

    buffer = io.BytesIO()
    torch.save({"w": Evil()}, buffer)
    content = buffer.getvalue()
    (tmp_path / "step-000000000200.ckpt").write_bytes(content + sha256(content).digest())
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        kept.newest()
    kept.clear()
    assert not tmp_path.exists()


def script(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interrupted", *map(str, words)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=3_000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_twenty_times_at_random_moments_it_ends_the_same(tmp_path: Path) -> None:
    found = script("killed", tmp_path, 20, 3)
    assert found["same"]
    assert found["killed"] >= 5  # once it has ended, there is nothing left to kill
    assert any(0 < step < found["total"] for step in found["steps"])


# In slices


def test_two_devices_give_the_weights_and_ledger_of_one(tmp_path: Path) -> None:
    found = script("devices", tmp_path)
    assert near(found["apart"])
    assert found["ledgers"][0] == found["ledgers"][1]
    assert found["rows"][0] == found["rows"][1]
    assert found["losses"][0] == pytest.approx(found["losses"][1], abs=1e-5)


def test_slices_one_after_another_give_the_weights_of_the_whole(larger: Pretrained) -> None:
    done = pretrain(run(LARGER), Noise(), execution=Execution(accumulate=7))  # does not divide 30
    assert near(apart(done, larger))
    assert exact(done)[0] == exact(larger)[0]
    assert [row[:3] for row in done.curve] == [row[:3] for row in larger.curve]
    with pytest.raises(ValueError, match="batch=30 cannot be cut into 31 slices"):
        pretrain(run(LARGER), Noise(), execution=Execution(accumulate=31))


def test_computing_anew_changes_neither_weights_nor_ledger(larger: Pretrained) -> None:
    done = pretrain(run(LARGER), Noise(), execution=Execution(recompute=True))
    assert near(apart(done, larger))
    assert exact(done)[0] == exact(larger)[0]


def test_bf16_keeps_weights_in_fp32_and_the_loss_near(larger: Pretrained) -> None:
    done = pretrain(run(replace(LARGER, precision="bf16")), Noise())
    assert {value.dtype for value in done.mae.state_dict().values()} == {torch.float32}
    assert apart(done, larger)[1] > 0
    assert exact(done)[0] == exact(larger)[0]
    losses = [[loss for *_, loss in one.curve] for one in (done, larger)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # bf16 has 8 bits: 0.4 % a number


# What ends a run


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (replace(SMALL, seen=179), 5),
        (replace(SMALL, match="tokens", seen=179), 5),
        (replace(SMALL, match="flops"), None),
        (replace(SMALL, match="flops", flops=1e8), None),
    ],
)
def test_it_ends_when_the_next_step_cannot_be_paid(budget: Budget, steps: int | None) -> None:
    ledger = pretrain(run(budget), Noise()).ledger
    spent, step = ledger.spent(budget.match), ledger.spent(budget.match) / ledger.steps
    assert spent <= budget.allowed < spent + 1.1 * step
    assert steps is None or ledger.steps == steps
    assert ledger.steps > 1


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_state(tmp_path: Path) -> None:
    wild = replace(SMALL, learning_rate=1e4, warmup=0.0)
    says = (
        r"loss is \S+ at step \d+ on s1, s2 \(samples s1/.* and 22 more\); look at these, or lower"
    )
    with pytest.raises(ValueError, match=says):
        pretrain(run(wild), Noise(), execution=EVERY_STEP, checkpoints=tmp_path)
    kept = Checkpoints(tmp_path).newest()
    assert kept is not None
    assert all(loss < EXPLODED for *_, loss in kept["curve"])


# Branches

SHARE = Fraction(1, 2)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_a_part_that_branches_off_is_the_part_trained_alone(decay: float, tmp_path: Path) -> None:
    budget = replace(SMALL, seen=600, decay=decay)
    whole = run(budget, sees=("s1",))
    part = replace(whole, fraction=SHARE)
    pretrain(whole, Noise(), checkpoints=tmp_path, branch=SHARE)
    first: list[int] = []
    branched = pretrain(part, Noise(), trunk=tmp_path, tell=lambda at, _: first.append(at))
    by_itself = pretrain(part, Noise())
    assert same(branched, by_itself)
    assert by_itself.ledger.seen == 300
    # Of ten steps, those before the fall are the trunk's: 5 if half of them fall, none if all do.
    assert first[0] == (6 if decay == 0.5 else 1)


@pytest.mark.parametrize("step", [3, 5, 6, 8])
def test_a_trunk_that_was_stopped_and_went_on_branches_off_where_it_should(
    step: int, tmp_path: Path
) -> None:
    budget = replace(SMALL, seen=600, decay=0.5)
    whole = run(budget, sees=("s1",))
    part = replace(whole, fraction=SHARE)
    stopped_at(step, whole, tmp_path, branch=SHARE)
    pretrain(whole, Noise(), checkpoints=tmp_path, branch=SHARE)
    assert same(pretrain(part, Noise(), trunk=tmp_path), pretrain(part, Noise()))


def test_without_the_trunks_state_a_part_trains_alone(tmp_path: Path) -> None:
    part = replace(run(replace(SMALL, seen=300), sees=("s1",)), fraction=SHARE)
    assert same(pretrain(part, Noise(), trunk=tmp_path / "nothing"), pretrain(part, Noise()))
