"""A study: plan arms and replicates, reuse what exists, run the rest, and judge."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from gfmsum import engine
from gfmsum.budget import BUDGETS, Currency, Ledger
from gfmsum.catalog import CATALOG, register, register_file
from gfmsum.config import AblationConfig, ConfigError
from gfmsum.data.plan import share_out
from gfmsum.data.sample import Source
from gfmsum.data.sources import open_source
from gfmsum.job import Job, line_key, missing, probe_key
from gfmsum.mix import Mix
from gfmsum.probe.shots import expand
from gfmsum.records import Arm, Role, Run, Task, fingerprint, plain
from gfmsum.sensors import SENSORS, unknown
from gfmsum.store import Store, to_json, write_bytes, write_text
from gfmsum.verdict import Design, Verdict, judge


class Watcher(Protocol):
    """Who is told how the jobs get on."""

    def progress(self, job: int, seen: int) -> None:
        """Job number ``job`` has shown ``seen`` samples."""

    def done(self, job: int) -> None:
        """Job number ``job`` has ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study found, and where all of it lies."""

    verdict: Verdict
    caveats: tuple[str, ...]  # to be read before the verdict, the gravest first
    folder: Path


class UnmatchedError(RuntimeError):
    """Arms did not spend the same; the message says by how much."""


type Watch = Callable[[list[Job]], AbstractContextManager[Watcher]]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that is fixed before the first run."""

    config: AblationConfig
    source: Source
    mix: Mix
    tasks: tuple[Task, ...]  # with each number of labels; an arm's utility is the mean over these
    runs: dict[tuple[Role, int], Run]
    name: str
    out: Path

    @property
    def store(self) -> Store:
        return Store(Path(self.config.store))

    @property
    def colocated(self) -> bool:
        return self.config.design == "colocated"

    @property
    def design(self) -> Design:
        """What is compared, and how it will be judged."""
        config = self.config
        tasks = tuple(task.name for task in self.tasks)
        return Design(config.sensor, self.mix.sensors, margin=config.margin, tasks=tasks)

    @property
    def key(self) -> str:
        config = self.config
        return probe_key(
            config.sensor,
            config.data,
            identity(self.source),
            config.probe,
            config.label_counts,
            config.seed,
        )

    @property
    def lines(self) -> dict[str, str]:
        """Of the sensors that any arm sees, under which name the loss of linear interpolation is kept."""
        known, model = identity(self.source), self.config.budget.model
        seen = dict.fromkeys([*self.mix.sensors, self.config.sensor])
        return {sensor: line_key(sensor, known, model) for sensor in seen}

    def jobs(self) -> list[Job]:
        """One job per distinct run and one for the baselines, the longest first."""
        labels: dict[str, tuple[str, Run]] = {}
        parts: dict[str, Run] = {}
        for (role, replicate), run in self.runs.items():
            if role is Role.PART:  # branches off from the share run
                parts[self.runs[Role.SHARE, replicate].fingerprint] = run
            else:
                labels.setdefault(run.fingerprint, (f"{role} {replicate}", run))
        ordered = sorted(
            labels.values(), key=lambda item: (-item[1].budget.seen, -len(item[1].sees))
        )
        runs: list[tuple[str, Run | None]] = [*ordered, ("baselines", None)]
        return [
            Job(
                run=run,
                part=parts.get(run.fingerprint) if run and run.sees else None,
                label=label,
                sensor=self.config.sensor,
                key=self.key,
                probe=self.config.probe,
                labels=self.config.label_counts,
                seed=self.config.seed,
                data=self.config.data,
                catalog=self.config.catalog,
                store=Path(self.config.store),
                study=self.name,
                out=self.out,
                execution=self.config.execution,
                lines={} if run else self.lines,
                model=self.config.budget.model,
            )
            for label, run in runs
        ]


def plan(config: AblationConfig) -> Study:
    """Settle a study from its configuration; writes nothing.

    Raises:
        ConfigError: one line, if the data cannot be read or do not allow the study.
    """
    target = config.sensor
    try:
        register_file(config.catalog)
        source = open_source(config.data)
        # Folders and stores may bring sensors of their own; the report wants to know them.
        register(*(sensor for name, sensor in source.sensors.items() if name not in CATALOG))
        if target not in CATALOG:
            raise ConfigError(unknown("sensor", target, CATALOG))
        tasks = tuple(source.tasks(target))
        if not tasks:
            able = [name for name in source.sensors if source.tasks(name)]
            raise ConfigError(
                f"sensor {target!r} has no labels in data={config.data_name}, so it cannot be "
                f"probed; choose from {', '.join(able)}"
            )
        if target not in source.sensors:
            raise ConfigError(
                f"sensor {target!r} has no pretraining samples in data={config.data_name}; "
                f"choose from {', '.join(source.sensors)}"
            )
        mix = Mix.parse(config.mix, list(source.sensors))
        lists = {name: source.places(name) for name in mix.sensors}
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if mix.sensors == (target,):
        raise ConfigError(
            f"mix={config.mix} holds only the target {target!r}: there is nothing to compare; "
            "add a sensor, or use mix=all"
        )
    if config.design == "colocated" and len(set(lists.values())) > 1:
        raise ConfigError(
            f"design=colocated needs the same places for {', '.join(mix.sensors)}, and this data has "
            "lists of their own for some; use design=footprint, or a mix of sensors that share places"
        )
    arms = [
        Arm(Role.SOLO, Mix.equal([target]), (target,)),
        Arm(Role.SHARE, mix, (target,) if mix.share(target) else ()),
        Arm(Role.MIX, mix, mix.sensors),
        Arm(Role.FLOOR, Mix(()), ()),
    ]
    if config.parts:
        share = mix.share(target)
        arms.append(Arm(Role.PART, mix, (target,) if share else (), share or Fraction(1)))
    known = identity(source)
    runs = {
        (arm.role, replicate): Run.of(
            arm,
            config.budget,
            known,
            config.seed,
            replicate,
            colocated=config.design == "colocated",
        )
        for arm in arms
        for replicate in range(config.replicates)
    }
    # The same question on the same data has the same name, wherever the data lie.
    question = config.question() | {"data": known}
    asked = config.mix.replace(":", "=")  # a colon is not safe in every path and address
    # A control is no comparison of sensors, and its name must not look like one.
    data = "-".join([config.data_name, *filter(None, [known.get("control")])])
    name = f"{target}-{asked}-{data}-{config.budget.name}-{fingerprint(question)[:6]}"
    expanded = expand(tasks, config.label_counts)
    return Study(config, source, mix, expanded, runs, name, Path(config.out or f"runs/{name}"))


def identity(source: Source) -> dict[str, Any]:
    """What tells the source's pixels from others': its own word, and what its sensors measure.

    The founding five's definitions are the code's, and change with the recipe.
    """
    others = {name: s for name, s in source.sensors.items() if SENSORS.get(name) != s}
    return dict(source.identity) | ({"sensors": plain(others)} if others else {})


def conduct(study: Study, watch: Watch) -> Outcome:
    """Run what is missing, judge, and write the study's folder.

    Args:
        study: what :func:`plan` gave.
        watch: called with the jobs to do, gives who is told of their progress.

    Raises:
        EngineError: when a run fails; finished runs are kept for the next call.
        UnmatchedError: when arms did not spend the same.
    """
    from gfmsum.report import render

    jobs = study.jobs()
    todo = [job for job in jobs if any(missing(job))]
    new = {run.fingerprint for job in todo for run in missing(job)[0]}
    reused = {run.fingerprint for job in jobs for run in job.runs} - new
    # The question, the margin and the ends of the tasks' scales are on disk before the first run.
    write_text(study.out / "config.yaml", config_yaml(study))
    recorded = record(study)
    if todo:
        at_once = engine.workers(study.config.jobs, study.config.device, len(todo))
        with watch(todo) as watcher:
            for index in engine.run_here(todo, at_once, watcher.progress):
                watcher.done(index)
    check_matched(study)
    scores, predictions = collect(study)
    verdict = judge(scores, study.design, predictions, recorded)
    notes = caveats(study)
    for name, frame in (
        ("scores", scores), ("predictions", predictions), ("curves", curves(study)),
    ):  # fmt: skip
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_bytes(study.out / f"{name}.parquet", buffer.getvalue())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **study.store.pictures(study.runs[Role.MIX, 0]))  # type: ignore[arg-type]
    write_bytes(study.out / "reconstructions.npz", buffer.getvalue())
    lines = {sensor: study.store.line(key) for sensor, key in study.lines.items()}
    write_text(study.out / "interpolation.json", to_json(lines))
    write_text(study.out / "ledger.json", to_json(ledgers(study, reused)))
    write_text(study.out / "verdict.json", to_json(describe(study, verdict, notes)))
    render(study.out)
    return Outcome(verdict, tuple(notes), study.out)


def record(study: Study) -> str:
    """Write the design down beside the runs, the first time that these runs are compared.

    Returns:
        The fingerprint that stands there: the present design's, unless it was changed since.
    """
    runs = sorted(run.fingerprint for run in study.runs.values())
    name = fingerprint([study.config.sensor, runs])
    path = study.store.root / "designs" / f"{name}.json"
    if not path.is_file():
        written = {"fingerprint": study.design.fingerprint, "design": study.design, "runs": runs}
        write_text(path, to_json(written))
    return str(json.loads(path.read_text())["fingerprint"])


def config_yaml(study: Study) -> str:
    """The resolved configuration, the tasks with their scales, and the names of the runs."""
    from omegaconf import OmegaConf

    content = {
        "study": study.name,
        "design": study.design.fingerprint,
        "config": study.config.question(),
        "mix": {name: str(share) for name, share in study.mix.shares},
        "tasks": plain(study.tasks),
        "runs": {
            f"{role} {replicate}": run.fingerprint for (role, replicate), run in study.runs.items()
        },
    }
    return OmegaConf.to_yaml(OmegaConf.create(content))


def collect(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All scores and predictions of a study, baselines included, from the store."""
    parts = []
    for (role, replicate), run in study.runs.items():
        names: dict[str, Any] = {"arm": str(role), "replicate": replicate, "run": run.fingerprint}
        names["sees"] = "+".join(run.sees)
        scores, predictions = study.store.load_probes(run, study.key)
        unique = sum(study.store.ledger(run)["unique_by_sensor"].values())
        parts.append((scores.assign(**names, samples=unique), predictions.assign(**names)))
    baselines, items = study.store.load_probes(None, study.key)
    nothing: dict[str, Any] = {"replicate": 0, "run": "", "sees": ""}
    parts.append((baselines.assign(**nothing, samples=0), items.assign(**nothing)))
    scores, predictions = (
        pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True)
    )
    lead = ["arm", "replicate", "run", "sees"]
    return scores, predictions[lead + [c for c in predictions.columns if c not in lead]]


def curves(study: Study) -> pd.DataFrame:
    """The learning curves of all runs."""
    return pd.concat(
        [
            study.store.curve(run).assign(arm=str(role), replicate=replicate, run=run.fingerprint)
            for (role, replicate), run in study.runs.items()
        ],
        ignore_index=True,
    )


def ledgers(study: Study, reused: set[str]) -> dict[str, Any]:
    """What each run spent, and whether it was there before this call."""
    entries = {}
    for (role, replicate), run in study.runs.items():
        entries[f"{role} {replicate}"] = {
            "arm": str(role),
            "replicate": replicate,
            "run": run.fingerprint,
            "sees": list(run.sees),
            **study.store.ledger(run),
            "reused": run.fingerprint in reused,
        }
    return {"runs": entries}


def describe(study: Study, verdict: Verdict, notes: list[str]) -> dict[str, Any]:
    """The verdict with what was compared, under which budget, and what must be said first."""
    config, budget = study.config, study.config.budget
    return {
        "schema": 1,
        "study": study.name,
        "command": f"python -m gfmsum.ablate {shlex.join(differences(config))}",
        "data": config.data_name,
        "budget": budget.name,
        "replicates": config.replicates,
        "seed": config.seed,
        "unique": budget.unique,
        "seen": budget.seen,
        **verdict.as_dict(),
        "caveats": notes,
        "compute": {str(role): ledger["flops"] for role, ledger in spent(study).items()},
    }


def differences(config: AblationConfig) -> list[str]:
    """The words that lead from the defaults to what decides a study's numbers."""
    words = [f"sensor={config.sensor}", f"mix={config.mix}"]
    groups: tuple[tuple[str, str, Any, Any], ...] = (
        ("data", config.data_name, config.data, type(config.data)()),
        ("budget", config.budget.name, config.budget, BUDGETS[config.budget.name]),
    )
    defaults = AblationConfig()
    for group, choice, chosen, default in groups:
        if plain(defaults)[group] != plain(default):
            words.append(f"{group}={choice}")
        words += _changed(f"{group}.", plain(chosen), plain(default))
    skipped = {"sensor", "mix", "data", "budget"}
    top = {k: v for k, v in config.question().items() if k not in skipped}
    return words + _changed("", top, plain(defaults))


def _changed(prefix: str, chosen: dict[str, Any], default: dict[str, Any]) -> list[str]:
    words = []
    for name, value in chosen.items():
        if isinstance(value, dict):
            words += _changed(f"{prefix}{name}.", value, default[name])
        elif value != default[name] and name != "root":  # where data lie is nobody else's matter
            words.append(f"{prefix}{name}={value}")
    return words


def spent(study: Study) -> dict[Role, dict[str, Any]]:
    """The ledger of each arm's first replicate; all replicates spend the same."""
    return {
        role: study.store.ledger(run)
        for (role, replicate), run in study.runs.items()
        if not replicate
    }


def differ(ledgers: Mapping[Role, Mapping[str, Any]], currency: Currency) -> float:
    """How much more the compared arm that spent most spent than the one that spent least."""
    spent = [Ledger(**ledgers[role]).spent(currency) for role in (Role.SOLO, Role.SHARE, Role.MIX)]
    spent = [
        amount for amount in spent if amount
    ]  # a share arm whose mix lacks the target: nothing
    return max(spent) / min(spent) - 1


def check_matched(study: Study) -> None:
    """Refuse to compare arms that did not spend the same.

    Raises:
        UnmatchedError: if they differ by more than the budget tolerates.
    """
    budget = study.config.budget
    if (apart := differ(spent(study), Currency(budget.match))) > budget.tolerance:
        raise UnmatchedError(
            f"arms differ by {apart:.1%} in {budget.match}, more than budget.tolerance="
            f"{budget.tolerance}: they are not comparable; spend more steps, or tolerate it"
        )


def caveats(study: Study) -> list[str]:
    """What a reader must know before the verdict, the gravest first."""
    ledger = spent(study)
    budget, notes = study.config.budget, list(study.source.caveats)
    notes += _places(study)
    for role, mix in ((Role.SOLO, Mix.equal([study.config.sensor])), (Role.MIX, study.mix)):
        places = {name: study.source.places(name) for name in mix.sensors}
        wanted = mix.split(budget.unique)
        for sensor in mix.sensors:
            held = study.source.pretraining(sensor, budget.model.image_px).held
            given = len(
                share_out(mix, budget.unique, sensor, places, held, colocated=study.colocated)
            )
            if given < len(wanted[sensor]):
                seen = ledger[role]["seen_by_sensor"][sensor]
                notes.append(
                    f"Not a matched comparison: the {role} arm wants {len(wanted[sensor])} samples of "
                    f"{sensor}, but only {given} exist for it; each was shown {seen / given:.0f} times "
                    "on average."
                )
    matched = Currency(budget.match)
    for currency, name in ((Currency.SAMPLES, "samples"), (Currency.FLOPS, "compute")):
        apart = differ(ledger, currency)
        if currency is not matched and apart > 0.01:
            notes.append(
                f"{str(matched).capitalize()} are matched; {name} differs by {apart:.0%} between "
                "arms, because sensors have different numbers of bands."
                if currency is Currency.FLOPS
                else f"FLOPs are matched; samples shown differ by {apart:.0%} between arms, because "
                "sensors have different numbers of bands."
            )
    for name, kind in study.source.unsupported(study.config.sensor):
        notes.append(f"Not probed: {name}, for there is no probe of kind {kind} yet.")
    return notes


def _places(study: Study) -> list[str]:
    """What must be said of which places the sensors see."""
    notes = []
    if len({study.source.places(name) for name in study.mix.sensors}) > 1:
        notes.append(
            "The sensors' pixels come from different places, so sensor and place are confounded: "
            "what looks like the gain from a sensor may come from its places."
        )
    if study.colocated:
        notes.append(
            "Co-located design: all sensors of the mix see the same places, so that the mix arm's "
            f"{study.config.budget.unique} samples cover fewer places than the solo arm's."
        )
    return notes
