"""Runs in processes of their own, for tests: killed again and again, or on two devices.

    python -m tests.interrupted killed FOLDER KILLS SEED
    python -m tests.interrupted devices FOLDER

Prints one line of JSON. Forks, and so must not share a process with anything that has threads.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gfmsum.config import Execution
from gfmsum.pretrain import Pretrained, pretrain
from tests.data.test_modules import Noise
from tests.test_pretrain import SMALL, run

TIMES = ("seconds", "device_seconds", "peak_bytes", "joules")
LONG = replace(SMALL, seen=3_600)
# With one visible patch nothing attends to anything: gradients of queries and keys are rounding noise.
LARGER = replace(SMALL, model=replace(SMALL.model, image_px=16))


def summary(done: Pretrained) -> dict[str, Any]:
    """What must be the same however often a run was stopped."""
    weights = {name: value.numpy().tobytes() for name, value in done.mae.state_dict().items()}
    digest = hashlib.sha256(b"".join(weights[name] for name in sorted(weights)))
    ledger = {name: value for name, value in asdict(done.ledger).items() if name not in TIMES}
    return {"weights": digest.hexdigest(), "ledger": ledger, "curve": done.curve}


def apart(a: Pretrained, b: Pretrained) -> tuple[float, float]:
    """How far the weights of two runs are apart: relative to their length, and at most."""
    one, other = (
        torch.cat([value.flatten() for value in done.mae.state_dict().values()]) for done in (a, b)
    )
    gap = one - other
    return float(gap.norm() / one.norm()), float(gap.abs().max())


def live(folder: Path, tell: Callable[[int, dict[str, float]], None] = lambda *_: None) -> None:
    execution = Execution(checkpoint_s=0)
    done = pretrain(
        run(LONG), Noise(), execution=execution, checkpoints=folder / "states", tell=tell
    )
    (folder / "result.json").write_text(json.dumps(summary(done)))


def killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """End a run by SIGKILL at random moments, then let it finish.

    Each part of it lasts up to ten steps, however fast they are, and ends anywhere within the next.
    """
    began = time.monotonic()
    alone = summary(pretrain(run(LONG), Noise()))
    step_s, rng = (time.monotonic() - began) / alone["ledger"]["steps"], random.Random(seed)
    context, ended, steps = multiprocessing.get_context("fork"), 0, []
    taken = context.RawValue("l", 0)  # steps since the last kill; no lock that a kill leaves locked

    def count(step: int, metrics: dict[str, float]) -> None:
        taken.value += 1

    for _ in range(kills):
        taken.value, wanted = 0, rng.randint(0, 10)
        process = context.Process(target=live, args=(folder, count))
        process.start()
        while process.is_alive() and taken.value < wanted:
            time.sleep(0.001)
        process.join(rng.random() * step_s)
        if process.is_alive():
            process.kill()
            ended += 1
        process.join()
        states = sorted((folder / "states").glob("step-*.ckpt"))
        steps.append(int(states[-1].stem.split("-")[1]) if states else 0)
        (folder / "result.json").unlink(missing_ok=True)
    live(folder)
    result = json.loads((folder / "result.json").read_text())
    same = json.loads(json.dumps(alone)) == result
    return {"same": same, "killed": ended, "steps": steps, "total": alone["ledger"]["steps"]}


def devices(folder: Path) -> dict[str, Any]:
    """One run on one device and on two."""
    one = pretrain(run(LARGER), Noise())
    two = pretrain(
        run(LARGER), Noise(), execution=Execution(devices=2), checkpoints=folder / "states"
    )
    return {
        "apart": apart(one, two),
        "ledgers": [summary(done)["ledger"] for done in (one, two)],
        "losses": [[loss for *_, loss in done.curve] for done in (one, two)],
        "rows": [[row[:3] for row in done.curve] for done in (one, two)],
    }


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    what, folder, *rest = sys.argv[1:]
    if what == "killed":
        kills, seed = map(int, rest)
        found = killed(Path(folder), kills, seed)
    else:
        found = devices(Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
