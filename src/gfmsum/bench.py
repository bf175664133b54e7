"""Probe encoders, ours and other people's, on the tasks of a sensor, beside their floors.

    python -m gfmsum.bench [sensor=s1] [data=...]
    python -m gfmsum.bench ENCODER ... sensor=s1 [probe=linear+knn] [data=...]

Without an encoder: a table of the tasks with their splits, floors and ceilings. With some, every task of the
sensor is scored by every probe. An ENCODER is a name from python -m gfmsum.zoo, a finished run
(runs/store/RUN), or a folder that python -m gfmsum.model.export made. Beside them stand floors: statistics of
images and, for architectures that can be drawn at random, as many random starts as floors= says.

  probe=linear        linear, knn and attentive (whole images), linear and layers (a label per pixel),
                      finetune (all); several with +. Settings are chosen on validation items
  blocks=1            features of the last block; 4: of four evenly spaced ones
  labels=10+50+all    how many labels probes are fitted on: per class, or in all for values and pixels. Scores
                      with few are means over several draws, the same for every encoder
  across=s2           test items as another sensor sees the same places, the rest as sensor= does
  fuse=s2+landsat     other sensors' views of the same places: alone, side by side, and together in one trunk
  beside=ENCODER+...  with fuse=: the encoders of the other sensors' views, one each: specialists
  tasks=a+b           only these
  floors=3            random starts of each architecture
  weights=random      options of gfmsum.zoo.load: weights, image_px, pool, missing, in_chans
  out=FOLDER          writes scores.parquet and predictions.parquet; cache=FOLDER keeps features

All other words are those of python -m gfmsum.ablate that say which data (data=, data.root=, catalog=), seed=,
device= and threads=. Exit codes: 0, or 2 for words that cannot be used.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfmsum.budget import BUDGETS, Architecture
from gfmsum.config import AblationConfig, load
from gfmsum.words import read_words

if TYPE_CHECKING:
    import pandas as pd

    from gfmsum.data.sample import Labelled, Samples, Source
    from gfmsum.probe.features import Features
    from gfmsum.records import Task

OWN = (
    "probe", "blocks", "across", "fuse", "beside", "tasks", "floors", "weights",
    "image_px", "pool", "missing", "in_chans", "out", "cache",
)  # fmt: skip
RANDOM = "random start of"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the words ask for."""

    config: AblationConfig
    encoders: tuple[str, ...]
    own: Mapping[str, str]

    def many(self, key: str, default: str = "") -> list[str]:
        """The parts of ``a+b``."""
        return list(filter(None, self.own.get(key, default).split("+")))

    def number(self, key: str, default: int, least: int = 1) -> int:
        """A whole number."""
        return _whole(key, self.own.get(key, str(default)), least)


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise ValueError(f"{key}={text} must be a whole number, at least {least}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Contender:
    """An encoder with the name it is listed under; floors have several replicates."""

    name: str
    replicate: int
    make: Callable[[], Any] | None  # None for a floor that needs no model
    fingerprint: str = ""  # of features that may be kept


def answer(words: Sequence[str]) -> str:
    """The table of tasks, or of scores."""
    ours = [word for word in words if "=" not in word or word.split("=", 1)[0] in OWN]
    encoders, own = read_words(ours, OWN)
    config = load([word for word in words if word not in ours])
    asked = Asked(config, tuple(encoders), own)

    from gfmsum.catalog import register_file
    from gfmsum.data.sources import open_source

    register_file(config.catalog)
    source = open_source(config.data)
    if not encoders:
        asking = [
            word.split("=", 1)[0] for word in words if word.split("=", 1)[0] in (*OWN, "labels")
        ]
        if asking:
            raise ValueError(f"{asking[0]}= wants an ENCODER; name one, or leave it out")
        named = any(word.startswith("sensor=") for word in words)
        wanted = [config.sensor] if named else list(source.sensors)
        return tasks_table(source, wanted, config.data_name)
    return scores_table(asked, source)


def tasks_table(source: Source, sensors: Sequence[str], name: str) -> str:
    """Every task with its splits and the ends of its scale."""
    rows = [
        (
            "task",
            "sensor",
            "source",
            "kind",
            "metric",
            "train/val/test",
            "floor",
            "ceiling",
            "places",
        )
    ]
    for sensor in sensors:
        for task in source.tasks(sensor):
            folds = source.labelled(task, 32).folds
            split = "/".join(str(len(part)) for part in folds[0])
            split = split if len(folds) == 1 else f"{len(folds)} folds of {split}"
            places = "clustered" if task.clustered else "independent"
            rows.append(
                (task.name, sensor, name, task.kind, task.metric, split, f"{task.floor:.3f}",
                 f"{task.ceiling:g}", places)
            )  # fmt: skip
    if len(rows) == 1:
        raise ValueError(
            f"{', '.join(sensors)}: no task in data={name}; python -m gfmsum.data check says why"
        )
    left = [f"not scored: {task} of {sensor} ({kind})"
            for sensor in sensors for task, kind in source.unsupported(sensor)]  # fmt: skip
    return "\n".join([*_aligned(rows), *left])


def scores_table(asked: Asked, source: Source) -> str:
    """Score everything, and write the tables if asked."""
    import pandas as pd
    import torch

    torch.set_num_threads(asked.config.threads)
    results = list(_scored(asked, source))
    scores = pd.DataFrame([asdict(score) for score, _ in results])
    predictions = pd.concat([frame for _, frame in results], ignore_index=True)
    if "out" in asked.own:
        from gfmsum.store import write_bytes

        for name, table in (("scores", scores), ("predictions", predictions)):
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            write_bytes(Path(asked.own["out"]) / f"{name}.parquet", buffer.getvalue())
    return "\n\n".join([*source.caveats, *_tables(scores, predictions)])


def _scored(asked: Asked, source: Source) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Every contender on every task, by every probe, with every number of labels."""
    from tqdm import tqdm

    from gfmsum.probe.fit import PROBES
    from gfmsum.probe.shots import CLOSED, score
    from gfmsum.zoo.floors import baselines

    seed, counts = asked.config.seed, asked.config.label_counts
    tasks, probes = _chosen(asked, source)
    size = asked.number("image_px", 32)
    items = {task.name: source.labelled(task, size) for task in tasks}
    field = [*(Contender(name, 0, None) for name in baselines()), *_contenders(asked)]
    experts = [_features(asked, _named(asked, name)) for name in asked.many("beside")]
    with tqdm(total=len(field) * len(tasks), dynamic_ncols=True, leave=False, disable=None) as bar:
        for contender in field:
            features = _features(asked, contender)
            able = probes if contender.make else [how for how in probes if how in CLOSED]
            for task in tasks:
                bar.set_description(f"{contender.name}, {task.name}")
                for view, seen, same in _views(asked, source, features, experts, items[task.name]):
                    arm, replicate = f"{contender.name}{view}", contender.replicate
                    for how in (how for how in able if task.kind in PROBES[how].kinds):
                        for one, frame in score(seen, same, counts, how, seed):
                            named = replace(one, arm=arm, replicate=replicate)
                            yield named, frame.assign(arm=arm, replicate=replicate)
                bar.update()


def _chosen(asked: Asked, source: Source) -> tuple[list[Task], list[str]]:
    """Tasks and probes, those with a label per pixel first: others then have the mean of their tokens."""
    from gfmsum.probe.fit import PROBES
    from gfmsum.sensors import unknown

    known = {task.name: task for task in source.tasks(asked.config.sensor)}
    if not known:
        raise ValueError(
            f"sensor={asked.config.sensor} has no task in data={asked.config.data_name}; "
            "python -m gfmsum.bench lists those there are"
        )
    names, probes = asked.many("tasks", "+".join(known)), asked.many("probe", "linear")
    for key, given, there in (("task", names, known), ("probe", probes, PROBES)):
        for name in given:
            if name not in there:
                raise ValueError(unknown(key, name, there))
    tasks = sorted((known[name] for name in names), key=lambda task: not task.dense)
    if not any(task.kind in PROBES[how].kinds for task in tasks for how in probes):
        raise ValueError(f"probe={'+'.join(probes)} is for none of {', '.join(names)}; see --help")
    return tasks, probes


def _views(
    asked: Asked,
    source: Source,
    features: Features,
    experts: Sequence[Features],
    items: Labelled,
) -> Iterator[tuple[str, Features, Labelled]]:
    """What a task is scored on, with a label: features as they are, across sensors, or fused."""
    from gfmsum.probe.features import Encoded
    from gfmsum.probe.views import Across, SideBySide, Together, matched

    crossed, fused, own = asked.own.get("across"), asked.many("fuse"), asked.config.sensor
    if items.task.dense or not (crossed or fused):
        yield "", features, items
        return
    if crossed:
        both, shown = matched(items, _shown(asked, source, crossed, items.samples))
        yield f", {own} on {own}", features, both
        if isinstance(features, Encoded):  # statistics of other bands are other features
            yield f", {own} on {crossed}", Across(features, both, shown), both
    if fused:
        for name in fused:
            items, _ = matched(items, _shown(asked, source, name, items.samples))
        views = [matched(items, _shown(asked, source, name, items.samples))[1] for name in fused]
        if experts and len(experts) != len(fused):
            raise ValueError(
                f"beside= names {len(experts)} encoders for {len(fused)} sensors of fuse=; name one each"
            )
        others = experts if isinstance(features, Encoded) and experts else [features] * len(fused)
        yield f", {own} alone", features, items
        for name, expert, view in zip(fused, others, views, strict=True):
            yield f", {name} alone", expert, replace(items, samples=view)
        parts = ((features, None), *zip(others, views, strict=True))
        yield f", with {'+'.join(fused)} side by side", SideBySide(parts), items
        if isinstance(features, Encoded) and isinstance(features.encoder, _encoder()):
            yield f", with {'+'.join(fused)} together", Together(features, tuple(views)), items


def _encoder() -> type:
    from gfmsum.model.encoder import Encoder

    return Encoder


def _shown(asked: Asked, source: Source, sensor: str, places: Samples) -> Samples:
    """What another sensor shows, in the task of its own that shows most of these places."""
    from gfmsum.probe.views import common

    whole = [task for task in source.tasks(sensor) if not task.dense]
    if not whole:
        raise ValueError(f"sensor {sensor!r} has no task of whole images, so no places to match")
    shown = [source.labelled(task, asked.number("image_px", 32)).samples for task in whole]
    return max(shown, key=lambda samples: common(places, samples))


def _contenders(asked: Asked) -> Iterator[Contender]:
    """The encoders asked for, and random starts of their architectures."""
    floors = asked.number("floors", 3, least=0)
    drawn = set[str]()
    for name in asked.encoders:
        yield _named(asked, name)
        start = _random(asked, name)
        if start and start[0] not in drawn and asked.own.get("weights") != "random":
            drawn.add(start[0])
            for replicate in range(floors):
                yield Contender(
                    f"{RANDOM} {start[0]}", replicate,
                    partial(start[1], asked.config.seed + replicate),
                )  # fmt: skip


def _named(asked: Asked, name: str) -> Contender:
    """An encoder of ours by its folder, or of the zoo by its name."""
    from gfmsum.records import fingerprint

    folder = Path(name)
    if (folder / "run.json").is_file() or (folder / "config.json").is_file():
        return Contender(name, 0, lambda: _ours(folder)[0], folder.resolve().name)
    options = _options(asked) | {"seed": asked.config.seed}
    return Contender(name, 0, lambda: _borrowed(name, options), fingerprint([name, options]))


def _options(asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: asked.own[key] for key in ("weights", "pool", "missing") if key in asked.own
    }
    return found | {
        key: asked.number(key, 0) for key in ("image_px", "in_chans") if key in asked.own
    }


def _borrowed(name: str, options: Mapping[str, Any]) -> Any:
    from gfmsum.zoo import load as borrow

    return borrow(name, **options)


def _ours(folder: Path) -> tuple[Any, Architecture]:
    """An encoder of ours, exported or as a run keeps it."""
    from gfmsum.model.export import export_encoder, load_encoder, read_config

    if (folder / "config.json").is_file():
        return load_encoder(folder), read_config(folder)[1]
    with tempfile.TemporaryDirectory() as scratch:  # exporting checks that the run is whole
        return _ours(export_encoder(folder, Path(scratch) / "encoder"))


def _random(asked: Asked, name: str) -> tuple[str, Callable[[int], Any]] | None:
    """A name for the architecture, and what draws it with a seed; None where nothing can be drawn."""
    folder = Path(name)
    if (folder / "run.json").is_file() or (folder / "config.json").is_file():
        from gfmsum.pretrain import initialised

        _, model = _ours(folder)
        budget = replace(BUDGETS["tiny"], model=model)
        label = f"gfmsum {model.width} wide, {model.depth} deep"
        return label, lambda seed: initialised(budget, seed, 0).encoder
    from gfmsum.zoo import entry, recipe_of

    made = recipe_of(entry(name))
    if not made.draws or made.published is None:
        return None
    rest = {key: value for key, value in _options(asked).items() if key != "weights"}
    return name, lambda seed: _borrowed(name, {**rest, "weights": "random", "seed": seed})


def _features(asked: Asked, contender: Contender) -> Features:
    from gfmsum.probe.features import Cache, Encoded
    from gfmsum.zoo.floors import baselines

    if contender.make is None:
        return baselines()[contender.name]
    folder = asked.own.get("cache")
    cache = Cache(contender.fingerprint, Path(folder)) if folder else Cache()
    device = "cpu" if asked.config.device == "auto" else asked.config.device
    return Encoded(contender.make(), device, blocks=asked.number("blocks", 1), cache=cache)


def _tables(scores: pd.DataFrame, predictions: pd.DataFrame) -> Iterator[str]:
    """One table for each task and number of labels, the best first, and whether it can tell encoders apart."""
    from gfmsum.verdict import lead
    from gfmsum.zoo.floors import baselines

    for task, rows in scores.groupby("task", sort=False):
        first = rows.iloc[0]
        lines = [("encoder", "probe", first["metric"], "utility", "setting")]
        ranked = rows.groupby(["arm", "probe"], sort=False).agg(
            value=("value", "mean"), spread=("value", "std"), utility=("utility", "mean"),
            strength=("strength", "median"), edge=("edge", "any"), n=("value", "size"),
        )  # fmt: skip
        ranked = ranked.sort_values("value", ascending=False)
        for row in ranked.reset_index().to_dict("records"):
            arm, how = row["arm"], row["probe"]
            spread = f" ± {row['spread']:.3f}" if row["n"] > 1 else ""
            edge = " (edge of the grid)" if row["edge"] else ""
            lines.append(
                (
                    arm,
                    how,
                    f"{row['value']:.3f}{spread}",
                    f"{100 * row['utility']:.1f}",
                    f"{row['strength']:.2g}{edge}",
                )
            )
        title = (
            f"{task}: {first['n_test']} test items, floor {first['floor']:.3f}, "
            f"ceiling {first['ceiling']:g}"
        )
        said = [title, *_aligned(lines)]
        names = [(str(arm), str(how)) for arm, how in ranked.index.tolist()]
        floors = [name for name in names if name[0].startswith(tuple(baselines()))]
        strong = [name for name in names if not name[0].startswith((*baselines(), RANDOM))]
        if floors and strong:
            best, floor = (
                _contributions(predictions, str(task), name) for name in (strong[0], floors[0])
            )
            cluster = predictions[predictions["task"] == task].groupby("item")["cluster"].first()
            both = best.columns.intersection(floor.columns)
            ahead, least = lead(
                best[both].to_numpy(), floor[both].to_numpy().mean(axis=0), cluster[both].to_numpy()
            )
            if least <= 0:
                said.append(
                    f"cannot discriminate: {strong[0][0]} is {100 * ahead:+.1f} points from {floors[0][0]}, "
                    "which is within noise or below"
                )
        yield "\n".join(said)


def _contributions(predictions: pd.DataFrame, task: str, name: tuple[str, str]) -> pd.DataFrame:
    """What each test item adds, by replicate and item."""
    rows = predictions[predictions["task"] == task]
    rows = rows[(rows["arm"] == name[0]) & (rows["probe"] == name[1])]
    return rows.pivot_table(index="replicate", columns="item", values="contribution")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__, end="")
        return 0
    try:
        print(answer(arguments))
    except (OSError, ValueError) as error:
        print(f"gfmsum: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
