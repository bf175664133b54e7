"""The main job: ``python -m gfmsum.ablate sensor=s1 mix=all``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gfmsum.config import ConfigError, load

if TYPE_CHECKING:
    from gfmsum.job import Job
    from gfmsum.study import Outcome, Study, Watcher

HELP = """\
Does pretraining on several sensors beat pretraining on the one you care about?

usage: python -m gfmsum.ablate [key=value ...]

Pretrains, under one budget, a model on the target sensor alone (solo), on the target's share of the
mix alone (share), on the whole mix (mix), and leaves one untrained (floor); probes the frozen encoders on the
target's tasks; and says more, less, equal or undecided.

  sensor=s1           the target: s1, s2, landsat, naip, modis, or another that the data hold
  mix=all             what the mixed arm sees: all, s1+s2, all-s1, s1:3+s2:1 (shares), or the
                      shares of published corpora, clay and dofa: clay-linz without what is missing
  data=synthetic      procedural scenes, which check the instrument; data.control=alias, harm or help
                      makes a world in which the sign of an effect is known; or
  data=local          a folder of real pixels with an index.json:  data.root=FOLDER
  data=torchgeo       a folder of data sets that torchgeo reads:   data.root=FOLDER
  data=shards         a store that python -m gfmsum.data pack made: data.root=FOLDER
  design=footprint    each place is given to one sensor; colocated: the same places to all of a mix
  catalog=FILE        YAML that describes sensors of your own; data.sensors=s1+s2+NAME puts them into
                      the synthetic world, and folders and stores bring their own
  budget=tiny         what each arm may spend: micro (seconds per run), tiny, small, base or large;
                      python -m gfmsum.budget prints them. budget.match=flops ends runs at equal FLOPs
  probe=linear        on frozen features; finetune trains the encoders too
  labels=10+50+all    how many labels each task is probed with, per class, or in all for values and pixels. An
                      arm's utility is the mean over tasks and these numbers
  replicates=3        independent pretrainings of each arm
  seed=0              of everything random
  margin=0.01         utility within which arms count as equal
  out=FOLDER          results; default runs/<name of the study>
  store=runs/store    finished runs, reused by every study that needs them
  device=auto         auto, cpu or cuda
  jobs=0              runs at a time; 0: one per CPU core, or one on a GPU
  threads=1           CPU threads of each run
  parts=false         whether to pretrain the part arm too (a share of samples and compute), for Ψ
  devices=1           of each run; strategy=auto accumulate=1 recompute=false are Lightning's strategy,
                      slices of a batch, and activations computed anew to save memory
  checkpoint_s=60     seconds between checkpoints, from which a run that was stopped goes on

Fields of the groups are set with dots: budget.seen=30000 budget.model.depth=6 data.world=1
Words follow Hydra's grammar. --cfg prints the resolved configuration and stops; --help this text.

The folder holds report.html, verdict.json, scores.parquet, predictions.parquet, curves.parquet,
ledger.json, config.yaml, reconstructions.npz and the tracked runs under wandb/ (offline
unless you are logged in to Weights & Biases).
"""


class Progress:
    """A line for each job that ends, and on a terminal a bar over the samples of all of them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        from tqdm import tqdm

        from gfmsum.job import missing

        self.jobs = jobs
        trained = [sum(run.seen for run in missing(job)[0]) for job in jobs]
        # Probing has to be paid for too: a tenth of a run, so that the time left is fair.
        probing = max(200, max(trained) // 10)
        self.costs = [cost + probing for cost in trained]
        self.paid = [0] * len(jobs)
        self.ended = 0
        self.bar = tqdm(
            total=sum(self.costs),
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else math.inf,
            bar_format="{percentage:3.0f}% |{bar}| {elapsed} so far, {remaining} left",
        )

    def progress(self, job: int, seen: int) -> None:
        self.bar.update(seen - self.paid[job])
        self.paid[job] = seen

    def done(self, job: int) -> None:
        self.progress(job, self.costs[job])
        self.ended += 1
        run, elapsed = self.jobs[job].run, self.bar.format_dict["elapsed"]
        left = elapsed * (self.bar.total / self.bar.n - 1)
        what = f"pretrained on {'+'.join(run.sees)}, probed" if run and run.sees else "probed"
        self.bar.write(
            f"[{self.ended}/{len(self.jobs)}] {self.jobs[job].label:<11} {what}; "
            f"{elapsed:.0f} s so far, about {left:.0f} s left",
            file=sys.stderr,
        )

    def close(self) -> None:
        self.bar.close()


@contextmanager
def show(jobs: list[Job]) -> Iterator[Watcher]:
    """Progress of the jobs on standard error."""
    progress = Progress(jobs)
    try:
        yield progress
    finally:
        progress.close()


def ablate(*words: str) -> Outcome:
    """The main job from Python: the same words as on the command line.

    Returns:
        The verdict, what must be said first, and the study's folder.

    Raises:
        ConfigError: if the words ask for what cannot be done.
        EngineError: if a run fails.
    """
    from gfmsum.study import conduct, plan

    return conduct(plan(load(words)), show)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    words = [word for word in arguments if word != "--cfg"]
    try:
        config = load(words)
        from gfmsum.study import conduct, config_yaml, plan

        study = plan(config)
        if len(words) < len(arguments):
            print(config_yaml(study), end="")
            return 0
    except ConfigError as error:
        print(f"gfmsum: {error}", file=sys.stderr)
        return 2

    from gfmsum.engine import EngineError
    from gfmsum.study import UnmatchedError
    from gfmsum.verdict import table

    say(study)
    try:
        outcome = conduct(study, show)
    except (EngineError, UnmatchedError) as error:
        print(f"gfmsum: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gfmsum: stopped; finished runs are kept and will be reused", file=sys.stderr)
        return 130
    print("\n".join(outcome.caveats), table(outcome.verdict), outcome.verdict.sentence, sep="\n\n")
    print(f"\nreport: {outcome.folder / 'report.html'}")
    return 0


def say(study: Study) -> None:
    """What is about to be done."""
    budget = study.config.budget
    print(
        f"{study.name}: target {study.config.sensor}, mix {study.mix}, "
        f"{len(study.source.tasks(study.config.sensor))} tasks at labels={study.config.labels}, "
        f"{study.config.replicates} replicates; "
        f"each arm {budget.unique} locations, {budget.seen} samples seen",
        file=sys.stderr,
    )


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
