"""Runs and their scores without a verdict: does pretraining beat a random start, run by run?

    uv run python experiments/learning/grid.py OUT sensors=s1+s2 arms=solo+mix+floor replicates=5 [...]

Pretrains every arm of every sensor in every replicate, once where arms or sensors share a run, and probes
each run on the tasks of its sensor, a mix or random start on those of all sensors. Beside them stand the
floors that need no model. Writes two tables, which grow as runs end, so that what is cut short is not lost:

  OUT/scores.csv   a row per arm, replicate, sensor, task, number of labels and probe: value and utility
  OUT/runs.csv     a row per run and sensor it saw: masked loss at its end, FLOPs, seconds, samples

  sensors=all      joined by +
  arms=solo+floor  solo, mix (of all sensors named) and floor
  replicates=5     first=0 is the first one's number
  probes=linear    linear (tokens beside band statistics) and mean (the mean token alone)

All other words are those of python -m gfmsum.ablate: budget, data, labels, seed, store, jobs. Runs that the
store holds are not made again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gfmsum.config import AblationConfig, load
from gfmsum.words import read_words

if TYPE_CHECKING:
    import pandas as pd

    from gfmsum.data.sample import Source
    from gfmsum.job import Job
    from gfmsum.records import Run

OWN = ("sensors", "arms", "replicates", "first", "probes")
LAST = 0.1  # of a run's steps, whose mean loss is its loss at the end


@dataclass(frozen=True, slots=True)
class Cell:
    """A run with what it is probed for."""

    arm: str  # solo, mix, floor, or baselines
    replicate: int
    sensor: str
    probe: str
    run: Run | None
    job: Job


def cells(config: AblationConfig, source: Source, own: dict[str, str]) -> Iterator[Cell]:
    """Everything to be done, the runs that take longest first."""
    from gfmsum.job import Job, probe_key
    from gfmsum.mix import Mix
    from gfmsum.records import Arm, Role, Run
    from gfmsum.study import identity

    known = identity(source)
    named = own.get("sensors", "all")
    sensors = list(source.sensors) if named == "all" else named.split("+")
    first, count = int(own.get("first", "0")), int(own.get("replicates", "5"))
    every = Mix.equal(sensors)

    def arm(name: str, sensor: str) -> Arm:
        if name == Role.SOLO:
            return Arm(Role.SOLO, Mix.equal([sensor]), (sensor,))
        if name == Role.MIX:
            return Arm(Role.MIX, every, every.sensors)
        return Arm(Role.FLOOR, Mix(()), ())

    def cell(name: str, replicate: int, sensor: str, probe: str, run: Run | None) -> Cell:
        key = probe_key(sensor, config.data, known, probe, config.label_counts, config.seed)
        job = Job(
            run=run, part=None, label=f"{name} {replicate}", sensor=sensor, key=key, probe=probe,
            labels=config.label_counts, seed=config.seed, data=config.data, catalog=config.catalog,
            store=Path(config.store), study="learning", out=Path(config.out or config.store),
            execution=config.execution,
        )  # fmt: skip
        return Cell(name, replicate, sensor, probe, run, job)

    for probe in own.get("probes", "linear").split("+"):
        for name in own.get("arms", "solo+floor").split("+"):
            for replicate in range(first, first + count):
                for sensor in sensors:
                    run = Run.of(arm(name, sensor), config.budget, known, config.seed, replicate)
                    yield cell(name, replicate, sensor, probe, run)
    for sensor in sensors:
        yield cell("baselines", 0, sensor, "linear", None)


def stages(wanted: Sequence[Cell]) -> list[list[Cell]]:
    """What may run side by side: a run is pretrained by one job, and probed by the others afterwards."""
    out: list[list[Cell]] = []
    left = list(wanted)
    while left:
        taken, now, later = set[str](), list[Cell](), list[Cell]()
        for cell in left:
            name = cell.run.fingerprint if cell.run else f"baselines {cell.sensor}"
            (later if name in taken else now).append(cell)
            taken.add(name)
        out.append(now)
        left = later
    return out


def tables(done: Sequence[Cell], store: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and runs of what the store holds."""
    import pandas as pd

    from gfmsum.store import Store

    kept, scores, runs = Store(store), [], dict[str, pd.DataFrame]()
    for cell in done:
        if not kept.has_probes(cell.run, cell.job.key):
            continue
        found, _ = kept.load_probes(cell.run, cell.job.key)
        arm = found["arm"] if cell.run is None else cell.arm
        found = found.assign(arm=arm, replicate=cell.replicate, probe=cell.probe)
        scores.append(
            found[["arm", "replicate", "sensor", "task", "labels", "probe", "value", "utility"]]
        )
        if cell.run is None or not cell.run.sees or cell.run.fingerprint in runs:
            continue
        curve, ledger = kept.curve(cell.run), kept.ledger(cell.run)
        late = curve[curve["step"] >= (1 - LAST) * curve["step"].max()]
        seen = late[late["sensor"] != ""].groupby("sensor")["loss"].mean().rename("loss")
        runs[cell.run.fingerprint] = seen.reset_index().assign(
            arm=cell.arm, replicate=cell.replicate, run=cell.run.fingerprint,
            **{name: ledger[name] for name in ("steps", "seen", "flops", "seconds")},
        )  # fmt: skip
    return (
        pd.concat(scores, ignore_index=True).round(5) if scores else pd.DataFrame(),
        pd.concat(runs.values(), ignore_index=True).round(5) if runs else pd.DataFrame(),
    )


def main(words: Sequence[str]) -> None:
    from tqdm import tqdm

    from gfmsum import engine
    from gfmsum.data.sources import open_source
    from gfmsum.job import missing

    ours = [word for word in words if "=" not in word or word.split("=", 1)[0] in OWN]
    (folder,), own = read_words(ours, OWN)
    config = load([word for word in words if word not in ours])
    device = "cpu" if config.device == "auto" else config.device
    config = replace(config, device=device, out=config.out or f"{config.store}/tracked")
    out, source = Path(folder), open_source(config.data)
    wanted = list(cells(config, source, own))
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(wanted), unit="job", smoothing=0.1) as bar:
        for stage in stages(wanted):
            todo = [cell.job for cell in stage if any(missing(cell.job))]
            bar.update(len(stage) - len(todo))
            if not todo:
                continue
            at_once = engine.workers(config.jobs, device, len(todo))
            for _ in engine.run_here(todo, at_once, lambda job, seen: None):
                bar.update()
                for name, table in zip(
                    ("scores", "runs"), tables(wanted, Path(config.store)), strict=True
                ):
                    table.to_csv(out / f"{name}.csv", index=False)
    for name, table in zip(("scores", "runs"), tables(wanted, Path(config.store)), strict=True):
        table.to_csv(out / f"{name}.csv", index=False)


if __name__ == "__main__":
    main(sys.argv[1:])
