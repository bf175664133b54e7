"""The whole experiment on one machine with one GPU, under a clock of its own; started by ``run.sh``.

    bash experiments/gpu/run.sh [--deadline 470] [--out DIR] [--device cuda|cpu] [--smoke] [--host-gib 48]

This process knows nothing of torch and never touches the GPU. It forks others: some that render scenes into
shared memory, one that times training steps meanwhile, one that pretrains when both are done, and some that
probe what that one leaves. Each appends what it finds to a file of its own, which this process gathers twice a
second; it ends whoever outstays his time. So what is written is whole whenever it is cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

from crew import LAST_S, TICK_S, Crew  # noqa: E402
from results import Row, Sink  # noqa: E402
from scenes import Scenes  # noqa: E402

from gfmsum.budget import BUDGETS, Architecture, Budget  # noqa: E402
from gfmsum.records import Role  # noqa: E402
from gfmsum.sensors import SENSORS  # noqa: E402

SENSORS_SHOWN = ("s1", "s2")
DEVICE_SHARE = 0.45  # of the GPU's memory that images may take


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done, and until when, in shares of the deadline."""

    budget: Budget
    most: int  # places that are rendered
    chunk: int  # of them at a time
    items: tuple[int, int, int]
    steps: int  # of a table of training steps
    replicates: int
    lightning: int  # steps that are timed through Lightning
    render: float = 0.27
    speed: float = 0.35
    train: float = 0.86


FULL = Sizes(BUDGETS["small"], 120_000, 32, (600, 200, 400), 500, 8, 60)
SMOKE = Sizes(
    Budget(
        "smoke", unique=64, seen=192, batch=12,
        model=Architecture(
            width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2,
            image_px=16, patch_px=4, predict_ratio=0.5, code_width=16,
        ),
    ),
    64, 16, (60, 60, 60), 6, 1, 3, 0.9, 0.9, 0.95,
)  # fmt: skip


# What the processes do: torch is imported in them, and nowhere before.


def time_steps(
    work: Path, device: str, smoke: bool, stop_at: float, done: set[str], rendering: bool
) -> None:
    import speed

    speed.measure(Sink(work), device, smoke, stop_at, done, rendering)


def time_lightning(work: Path, device: str, scenes: Scenes, budget: Budget, steps: int) -> None:
    import speed

    places = min(2048, scenes.rendered)
    speed.measure_lightning(Sink(work), device, scenes.kept(places), budget, steps)


def keep_items(scenes: Scenes, sensor: str, path: Path) -> None:
    import probes

    probes.keep_items(scenes.source, sensor, scenes.size_px, path)


def train(
    work: Path, device: str, scenes: Scenes, sizes: Sizes, compiled: bool, stop_at: float
) -> None:
    import runs

    plan = runs.Plan(sizes.budget, sizes.steps, sizes.replicates, compiled, work, stop_at)
    runs.conduct(Sink(work), device, scenes.kept(scenes.rendered), plan)


def probe(work: Path, device: str, budget: Budget, threads: int, *one: Any) -> None:
    import probes

    probes.score(Sink(work), device, budget, probes.Probed(*one), threads)


# The order of things.


def conduct(crew: Crew, device: str, smoke: bool, sizes: Sizes, most: int) -> None:
    """Render and time; then train and probe; then time what is left."""
    span = crew.deadline - crew.started
    cores = len(os.sched_getaffinity(0))
    render_until, speed_until, train_until = (
        crew.started + share * span for share in (sizes.render, sizes.speed, sizes.train)
    )
    scenes = Scenes(SENSORS_SHOWN, sizes.budget.model.image_px, most, sizes.chunk, sizes.items)
    items = {name: crew.work / f"items-{name}.pickle" for name in SENSORS_SHOWN}
    crew.start(
        "speed", speed_until + 10, time_steps, crew.work, device, smoke, speed_until, set(), True
    )
    for name, path in items.items():
        crew.start(f"items {name}", crew.deadline, keep_items, scenes, name, path)
    for number in range(max(1, cores - len(items) - 2)):
        crew.start(f"render {number}", render_until + 15, scenes.render, render_until)
    crew.wait("render", "speed")
    crew.said["places"] = places = scenes.rendered
    if places < sizes.budget.batch:
        crew.said["no_runs"] = f"{places} places were rendered in time, fewer than a batch"
    else:
        compiled = device == "cuda" and _compiles(crew.tick())
        crew.start(
            "train",
            train_until + 15,
            train,
            crew.work,
            device,
            scenes,
            sizes,
            compiled,
            train_until,
        )
    _probe_as_they_come(crew, device, sizes, scenes, items, cores, smoke)


def _compiles(tables: dict[str, list[Row]]) -> bool:
    """Whether compiled blocks worked when they were timed."""
    return any(
        row.get("compiled") == "blocks" and row.get("graph") and "error" not in row
        for row in tables["speed"]
    )


def _probe_as_they_come(
    crew: Crew,
    device: str,
    sizes: Sizes,
    scenes: Scenes,
    items: dict[str, Path],
    cores: int,
    smoke: bool,
) -> None:
    """Start a probe for each encoder and sensor when both are there; time on when the GPU is free."""
    begun: set[tuple[Any, ...]] = set()
    at_once, more, last = max(1, cores // 3), False, False
    while not crew.over:
        tables = crew.tick()
        waiting = [
            (arm, sees, replicate, weights, name, path)
            for arm, sees, replicate, weights in [
                (Role.FLOOR, "", 0, None),
                *_trained(crew, tables),
            ]
            for name, path in items.items()
            if (arm, sees, replicate, name) not in begun and path.is_file()
        ]
        for one in waiting:
            if sum(stage.name.startswith("probe") for stage in crew.going) >= at_once:
                break
            begun.add((*one[:3], one[4]))
            crew.start(
                f"probe {one[0]} {one[1]} {one[2]} on {one[4]}", crew.deadline, probe, crew.work,
                device, sizes.budget, 2 if cores > 4 else 1, *one,
            )  # fmt: skip
        if not crew.has("train") and not more:
            more = True
            done = {str(row["case"]) for row in tables["speed"]}
            stop_at = crew.deadline - LAST_S - 2
            if scenes.rendered >= sizes.budget.batch:
                crew.start(
                    "Lightning", stop_at, time_lightning, crew.work, device, scenes, sizes.budget,
                    sizes.lightning,
                )  # fmt: skip
        if more and not last and not crew.has("Lightning"):
            last = True
            crew.start(
                "speed again", stop_at, time_steps, crew.work, device, smoke, stop_at, done, False
            )
        if last and not crew.going and not waiting:
            return
        time.sleep(TICK_S)


def _trained(crew: Crew, tables: dict[str, list[Row]]) -> list[tuple[str, str, int, Path]]:
    return [
        (row["arm"], row["sees"], row["replicate"], crew.work / row["weights"])
        for row in tables["runs"]
        if row["weights"]
    ]


# The machine, and the command line.

_LOOK = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.is_available()}
if found["gpu"]:
    about = torch.cuda.get_device_properties(0)
    found |= {"device": about.name, "device_bytes": about.total_memory,
              "capability": f"{about.major}.{about.minor}", "cudnn": torch.backends.cudnn.version()}
print(json.dumps(found))
"""


def machine(device: str) -> dict[str, Any]:
    """What this experiment runs on.

    Raises:
        ValueError: one line, if it has no GPU and is to have one.
    """
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "driver": _driver()}
    looked = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True)
    if looked.returncode:
        reason = (looked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"torch cannot be imported: {reason}; run uv sync")
    found |= json.loads(looked.stdout.splitlines()[-1])
    if device == "cuda" and not found["gpu"]:
        driver = f"driver {found['driver']}" if found["driver"] else "no NVIDIA driver answers"
        raise ValueError(
            f"torch {found['torch']} sees no GPU here ({driver}); run on a machine with one, with a torch "
            "built for its driver, or give --device cpu"
        )
    if device == "cpu":
        found["device"] = "cpu"
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (
        done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
    )


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="A training step's speed, and arms at `small`, on one GPU."
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=float(os.environ.get("DEADLINE_S", 470)),
        help="seconds from the start, installation included (default 470)",
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", HERE / "results")))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few samples")
    parser.add_argument("--host-gib", type=float, default=48.0,
                        help="memory that images may take on the host (default 48)")  # fmt: skip
    options = parser.parse_args(arguments)
    started = float(os.environ.get("STARTED", time.time()))
    sizes = SMOKE if options.smoke else FULL
    try:
        about = machine(options.device)
    except ValueError as error:
        print(f"gfmsum: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for old in (
        *options.out.glob("*.csv"),
        *options.out.glob("results.json"),
        *options.out.glob("log.txt"),
    ):
        old.unlink()
    each = Scenes.bytes_per_place(
        {name: SENSORS[name] for name in SENSORS_SHOWN}, sizes.budget.model.image_px
    )
    room = min(options.host_gib * 2**30, DEVICE_SHARE * about.get("device_bytes", 2**62))
    most = min(sizes.most, int(room // each))
    said = {
        "state": "running",
        "machine": about,
        "deadline_s": options.deadline,
        "smoke": options.smoke,
        "preset": {
            "name": sizes.budget.name,
            "unique": sizes.budget.unique,
            "seen": sizes.budget.seen,
        },
        "places_asked": most,
        "stages": [],
    }
    crew = Crew(
        options.out,
        Path(tempfile.mkdtemp(prefix="gfmsum-gpu-")),
        started,
        started + options.deadline,
        said,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    state = "cut"
    try:
        crew.write()
        conduct(crew, options.device, options.smoke, sizes, most)
        state = "cut" if crew.over else "done"
    finally:
        crew.end(state)
    print(f"{options.out / 'results.json'}: {state} after {time.time() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
