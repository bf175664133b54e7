"""One job: a run from nothing to its scores on one sensor's tasks, each part done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

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
    data: DataConfig
    catalog: str  # a file that describes sensors of the user's own, or nothing
    store: Path
    study: str  # name of the study, the group of tracked runs
    out: Path  # the study's folder
    execution: Execution

    @property
    def runs(self) -> list[Run]:
        """To be carried out one after another."""
        return [run for run in (self.run, self.part) if run is not None]


def probe_key(sensor: str, data: DataConfig, identity: object, probe: str) -> str:
    """Names a probe and what it is fitted on: the sensor's tasks and every setting that changes them."""
    # No part of a name, or the identity's.
    elsewhere = ("root", "control", "target", "scarce", "sensors", "shared", "leakage_km")
    here = {name: value for name, value in plain(data).items() if name not in elsewhere}
    protocol = {"data": here, "identity": identity, "protocol": 3, "probe": probe}
    return f"{sensor}-{fingerprint(protocol)}"


def missing(job: Job) -> tuple[list[Run], list[Run | None]]:
    """The runs, and those with scores, that still have to be made; None stands for the baselines."""
    store = Store(job.store)
    probed: list[Run | None] = list(job.runs) or [None]
    return (
        [run for run in job.runs if not store.has(run)],
        [run for run in probed if not store.has_probes(run, job.key)],
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
    from gfmsum.data.sources import open_source
    from gfmsum.probe.features import BASELINES
    from gfmsum.probe.fit import probe

    source, results = open_source(job.data), []
    for task in source.tasks(job.sensor):
        items = source.labelled(task, 32)
        for name, features in BASELINES.items():
            score, frame = probe(features, items)
            results.append((replace(score, arm=name), frame.assign(arm=name)))
    _keep(store, job, None, results)


def _train_and_probe(store: Store, job: Job, run: Run, tell: Tell) -> None:
    import torch

    from gfmsum.data.sources import open_source
    from gfmsum.pretrain import initialised, pretrain
    from gfmsum.probe.features import Cache, Encoded
    from gfmsum.probe.fit import probe
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
                task.name: probe(
                    features, source.labelled(task, run.budget.model.image_px), job.probe
                )
                for task in sorted(tasks, key=lambda task: not task.dense)
            }
            results = [found[task.name] for task in tasks]
            _keep(store, job, run, results)
            tracked.summarise({f"{score.task}/{score.metric}": score.value for score, _ in results})


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
