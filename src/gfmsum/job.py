"""One job: a run from nothing to its scores on one sensor's tasks, each part done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd

from gfmsum.budget import Architecture
from gfmsum.catalog import register_file
from gfmsum.config import DataConfig, Execution
from gfmsum.records import Role, Run, Score, fingerprint, plain
from gfmsum.store import Store

type Tell = Callable[[int], None]
"""Called with the samples shown so far."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know; ``run`` is None for the baselines, which train nothing."""

    run: Run | None
    part: Run | None  # a run with a part of the budget, which branches off from it
    label: str  # "mix 2": the arm and replicate it is done for
    sensor: str  # the target whose tasks are probed
    key: str  # names the probed tasks and the probe, see :func:`probe_key`
    probe: str  # one of gfmsum.probe.fit.PROBES
    labels: tuple[int, ...]  # how many each task is probed with, 0 for all
    seed: int  # of what probes draw
    data: DataConfig
    catalog: str  # a file that describes sensors of the user's own, or nothing
    store: Path
    study: str  # name of the study, the group of tracked runs
    out: Path  # the study's folder
    execution: Execution
    # Sensors, each with the name under which the loss of linear interpolation on it is kept.
    lines: Mapping[str, str] = field(default_factory=dict)
    model: Architecture | None = None  # whose patches and masks these are for

    @property
    def runs(self) -> list[Run]:
        """To be carried out one after another."""
        return [run for run in (self.run, self.part) if run is not None]


def probe_key(
    sensor: str,
    data: DataConfig,
    identity: object,
    probe: str,
    labels: Sequence[int] = (0,),
    seed: int = 0,
) -> str:
    """Names a probe and what it is fitted on: the sensor's tasks and every setting that changes them."""
    # No part of a name, or the identity's.
    elsewhere = ("root", "control", "target", "scarce", "sensors", "shared", "smooth", "leakage_km")
    here = {name: value for name, value in plain(data).items() if name not in elsewhere}
    protocol = {"data": here, "identity": identity, "protocol": 5, "probe": probe}
    protocol |= {"labels": list(labels), "seed": seed}
    return f"{sensor}-{fingerprint(protocol)}"


def line_key(sensor: str, identity: object, model: Architecture) -> str:
    """Names the loss of linear interpolation on a sensor, by all that decides it."""
    geometry = {name: getattr(model, name) for name in ("image_px", "patch_px", "mask_ratio")}
    return fingerprint({"sensor": sensor, "data": identity, "version": 1, **geometry})


def missing(job: Job) -> tuple[list[Run], list[Run | None]]:
    """The runs, and those with scores, that still have to be made; None stands for the baselines."""
    store = Store(job.store)
    probed: list[Run | None] = list(job.runs) or [None]
    drawn = all(map(store.has_line, job.lines.values()))
    return (
        [run for run in job.runs if not store.has(run)],
        [run for run in probed if not store.has_probes(run, job.key) or not (run or drawn)],
    )


def carry_out(job: Job, tell: Tell = lambda seen: None) -> None:
    """Do what is missing of a job; results are in the store when this returns."""
    import torch

    from gfmsum.checkpoint import Checkpoints

    torch.set_num_threads(job.execution.threads)
    register_file(job.catalog)
    store, (untrained, unprobed) = Store(job.store), missing(job)
    if not job.runs and unprobed:
        _baselines(store, job)
    before = 0
    for run in job.runs:
        if run in untrained or run in unprobed:
            _train_and_probe(store, job, run, _after(before, tell))
        before += run.seen if run in untrained else 0
    for run in job.runs:  # not before the part, which starts from what the trunk keeps
        Checkpoints(store.checkpoints(run)).clear()


def _after(before: int, tell: Tell) -> Tell:
    """Tell of samples on top of those that earlier runs have shown."""
    return lambda seen: tell(before + seen)


def _baselines(store: Store, job: Job) -> None:
    from gfmsum.data.interpolation import interpolation_loss
    from gfmsum.data.sources import open_source
    from gfmsum.probe.shots import score
    from gfmsum.zoo.floors import baselines

    source, floors, results = open_source(job.data), baselines(), []
    for sensor, key in job.lines.items():
        assert job.model is not None
        model = job.model
        if not store.has_line(key):
            store.save_line(
                key,
                interpolation_loss(
                    source, sensor, model.image_px, model.patch_px, model.mask_ratio
                ),
            )
    if store.has_probes(None, job.key):
        return
    for task in source.tasks(job.sensor):
        items = source.labelled(task, 32)
        for name, features in floors.items():
            for one, frame in score(features, items, job.labels, seed=job.seed):
                results.append((replace(one, arm=name), frame.assign(arm=name)))
    _keep(store, job, None, results)


def _train_and_probe(store: Store, job: Job, run: Run, tell: Tell) -> None:
    import torch

    from gfmsum.data.sources import open_source
    from gfmsum.pretrain import initialised, pretrain
    from gfmsum.probe.features import Cache, Encoded
    from gfmsum.probe.shots import score
    from gfmsum.track import track

    source = open_source(job.data)
    execution = replace(job.execution, device=_device(job.execution.device))
    replicate = job.label.partition(" ")[2]
    label = job.label if run is job.run else f"{Role.PART} {replicate}"
    kind = "probe" if store.has(run) else "pretrain"
    with track(
        f"{label} {job.sensor}" if kind == "probe" else label,
        group=job.study,
        kind=kind,
        config={**plain(run), "fingerprint": run.fingerprint, "probed": job.sensor},
        folder=job.out,
    ) as tracked:
        if not store.has(run):

            def step(done: int, metrics: dict[str, float]) -> None:
                tracked.log(metrics)
                tell(int(metrics["samples_seen"]))

            whole = job.run is not None and run is job.run
            done = pretrain(
                run,
                source,
                execution=execution,
                checkpoints=store.checkpoints(run),
                branch=job.part.fraction
                if whole and job.part and not store.has(job.part)
                else None,
                trunk=store.checkpoints(job.run) if job.run and not whole else None,
                tell=step,
            )
            curve = pd.DataFrame(done.curve, columns=["step", "seen", "sensor", "loss"])
            weights = {name: value.numpy() for name, value in done.mae.state_dict().items()}
            store.save(run, weights, asdict(done.ledger), curve, done.seen, done.pictures)
            tracked.summarise({f"ledger/{k}": v for k, v in asdict(done.ledger).items()})
        if not store.has_probes(run, job.key):
            mae = initialised(run.budget, run.seed, run.replicate)
            mae.load_state_dict({k: torch.from_numpy(v) for k, v in store.weights(run).items()})
            cache = Cache(run.fingerprint, store.features(run))
            features = Encoded(mae.encoder, execution.device, cache=cache)
            tasks = source.tasks(job.sensor)
            # Those that need all tokens first: others on the same images have the mean of these.
            found = {
                task.name: list(
                    score(
                        features,
                        source.labelled(task, run.budget.model.image_px),
                        job.labels,
                        job.probe,
                        job.seed,
                    )
                )
                for task in sorted(tasks, key=lambda task: not task.dense)
            }
            results = [one for task in tasks for one in found[task.name]]
            _keep(store, job, run, results)
            tracked.summarise({f"{one.task}/{one.metric}": one.value for one, _ in results})


def _keep(
    store: Store, job: Job, run: Run | None, results: list[tuple[Score, pd.DataFrame]]
) -> None:
    scores = pd.DataFrame([asdict(score) for score, _ in results])
    predictions = pd.concat([frame for _, frame in results], ignore_index=True)
    store.save_probes(run, job.key, scores, predictions)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    return wanted
