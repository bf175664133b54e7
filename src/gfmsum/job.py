"""One job: a run from nothing to its scores on one sensor's tasks, each part done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from gfmsum.config import LocalConfig, SyntheticConfig
from gfmsum.records import Run, Score, fingerprint, plain
from gfmsum.store import Store

type Tell = Callable[[int], None]
"""Called with the samples shown so far."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know; ``run`` is None for the baselines, which train nothing."""

    run: Run | None
    label: str  # "mix 2": the arm and replicate it is done for
    sensor: str  # the target whose tasks are probed
    key: str  # names the probed tasks, see :func:`probe_key`
    data: SyntheticConfig | LocalConfig
    store: Path
    study: str  # name of the study, the group of tracked runs
    out: Path  # the study's folder
    device: str
    threads: int


def probe_key(sensor: str, data: SyntheticConfig | LocalConfig, identity: object) -> str:
    """Names what a probe is fitted on: the sensor's tasks and every setting that changes them."""
    elsewhere = ("root", "control", "target", "scarce")  # no part of a name, or the identity's
    here = {name: value for name, value in plain(data).items() if name not in elsewhere}
    return f"{sensor}-{fingerprint({'data': here, 'identity': identity, 'protocol': 1})}"


def missing(job: Job) -> tuple[bool, bool]:
    """Whether the run, and whether its scores, still have to be made."""
    store = Store(job.store)
    return (
        job.run is not None and not store.has(job.run),
        not store.has_probes(job.run, job.key),
    )


def carry_out(job: Job, tell: Tell = lambda seen: None) -> None:
    """Do what is missing of a job; results are in the store when this returns."""
    import torch

    from gfmsum.data.sources import open_source
    from gfmsum.probe.features import BASELINES, encoded
    from gfmsum.probe.fit import probe

    torch.set_num_threads(job.threads)
    store, source = Store(job.store), open_source(job.data)
    pretrain_it, probe_it = missing(job)
    if job.run is None:
        if probe_it:
            results = []
            for task in source.tasks(job.sensor):
                items = source.labelled(task, 32)
                for name, features in BASELINES.items():
                    score, frame = probe(features, items)
                    results.append((replace(score, arm=name), frame.assign(arm=name)))
            _keep(store, job, results)
        return
    if not pretrain_it and not probe_it:
        return

    from gfmsum.pretrain import initialised, pretrain
    from gfmsum.track import track

    run, device = job.run, _device(job.device)
    kind = "pretrain" if pretrain_it else "probe"
    with track(
        f"{job.label} {job.sensor}" if kind == "probe" else job.label,
        group=job.study,
        kind=kind,
        config={**plain(run), "fingerprint": run.fingerprint, "probed": job.sensor},
        folder=job.out,
    ) as tracked:
        if pretrain_it:

            def step(done: int, metrics: dict[str, float]) -> None:
                tracked.log(metrics)
                tell(int(metrics["samples_seen"]))

            done = pretrain(run, source, device=device, tell=step)
            curve = pd.DataFrame(done.curve, columns=["step", "seen", "sensor", "loss"])
            weights = {name: value.numpy() for name, value in done.mae.state_dict().items()}
            store.save(run, weights, asdict(done.ledger), curve, done.pictures)
            tracked.summarise({f"ledger/{k}": v for k, v in asdict(done.ledger).items()})
        if probe_it:
            mae = initialised(run.budget, run.seed, run.replicate)
            mae.load_state_dict({k: torch.from_numpy(v) for k, v in store.weights(run).items()})
            features = encoded(mae.encoder, device)
            results = [
                probe(features, source.labelled(task, run.budget.model.image_px))
                for task in source.tasks(job.sensor)
            ]
            _keep(store, job, results)
            tracked.summarise({f"{score.task}/{score.metric}": score.value for score, _ in results})


def _keep(store: Store, job: Job, results: list[tuple[Score, pd.DataFrame]]) -> None:
    scores = pd.DataFrame([asdict(score) for score, _ in results])
    predictions = pd.concat([frame for _, frame in results], ignore_index=True)
    store.save_probes(job.run, job.key, scores, predictions)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    return wanted
