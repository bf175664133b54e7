"""Writing a packed store, see :mod:`gfmsum.data.shards`: in steps that can be interrupted anywhere.

Rows are read in chunks, of all sensors that share a list of places at once, so that they stay aligned
when rows are left out. After each chunk the files are flushed and a journal says how far they are
good; whoever goes on writes from there, over whatever lies beyond. Heads, checksums and, last of all,
the manifest are written when every row is there. So a store made in two goes is, byte for byte, the one
made in one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.data import chunks
from gfmsum.data.growing import Fields, Misfit, Moments, append, checked, finish, fresh, put, texts
from gfmsum.data.manifest import (
    JOURNAL,
    MANIFEST,
    SCHEMA,
    Manifest,
    candidates,
    parse,
    read_manifest,
    seal,
)
from gfmsum.data.plan import permute
from gfmsum.data.sample import Block, Labelled, Pool, Rows, Samples, Source
from gfmsum.data.shards import Held, sha256
from gfmsum.data.units import contradiction
from gfmsum.records import fingerprint, plain
from gfmsum.sensors import Band, unknown
from gfmsum.store import to_json, write_text

FORMATS = ("npy", "litdata")
SAMPLES = 10_000  # of a source without end, if not told
ENDLESS = 2**40  # rows that no store holds
CHUNK_BYTES = 64 * 2**20  # of float32 pixels that are read before they are kept

type Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be packed, and how."""

    sensors: tuple[str, ...] = ()  # all of the source if empty
    size_px: int = 32
    samples: int | None = None  # of each list of places; None: all, or SAMPLES if it has no end
    leakage_km: float = 0.0  # rows this near to validation or test items are left out
    format: str = "npy"
    data: Mapping[str, Any] = field(default_factory=dict)  # what the source's identity leaves open

    def __post_init__(self) -> None:
        for name in ("size_px", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= self.leakage_km < 1000:
            raise ValueError(f"leakage_km={self.leakage_km} must be at least 0 and below 1000")
        if self.format not in FORMATS:
            raise ValueError(unknown("format", self.format, FORMATS))


def pack(
    source: Source, out: Path, order: Order, tell: Tell = lambda what, done, total: None
) -> Manifest:
    """Convert a source into a store; go on if the same was begun before.

    Args:
        source: of the pixels.
        out: folder of the store.
        order: what to take.
        tell: is told, again and again, what is being done, how much is done, and of how much.

    Raises:
        ValueError: one line, if the folder holds something else, or the source cannot be packed.
    """
    if order.format == "litdata":
        chunks.need_litdata()
    names = order.sensors or tuple(source.sensors)
    for name in names:
        if name not in source.sensors:
            raise ValueError(unknown("sensor", name, source.sensors))
    if len(set(names)) != len(names):
        raise ValueError(f"sensors={'+'.join(names)} names one twice; name each once")
    asked = {
        "schema": SCHEMA, "source": source.identity, "data": order.data, "sensors": names,
        "size_px": order.size_px, "samples": order.samples, "leakage_km": order.leakage_km,
        "format": order.format, "chunk_bytes": CHUNK_BYTES,
    }  # fmt: skip
    settings: Fields = json.loads(json.dumps(plain(asked)))
    with _claimed(out):
        if (out / MANIFEST).is_file():
            where = str(out / MANIFEST)
            manifest = read_manifest((out / MANIFEST).read_bytes(), where)
            _compare(out, dict(manifest.settings), settings)
            _tidy(out)
            return manifest
        return _Packing(source, out, order, names, _begun(out, settings), tell).run()


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """The folder, which nobody else packs into; a claim ends with its process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    except OSError as wrong:
        raise ValueError(
            f"out={out} cannot be a folder ({wrong.strerror}); choose another"
        ) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"{out} is being packed by another process; wait for it") from None
    finally:
        os.close(folder)


def _begun(out: Path, settings: Fields) -> Fields:
    """The journal of what was begun in a folder, or a new one."""
    path = out / JOURNAL
    if not path.is_file():
        _tidy(out)
        if found := next(out.iterdir(), None):
            raise ValueError(f"{out} holds {found.name}, which is no store; choose an empty folder")
        journal: Fields = {"settings": settings, "items": [], "tasks": [], "lists": {}}
        _keep(out, journal)
        return journal
    try:
        journal = json.loads(path.read_bytes())
        if journal["seal"] != seal(journal):
            raise ValueError(journal["seal"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} was altered or cut off; remove {out} and pack anew") from None
    _compare(out, journal["settings"], settings)
    return journal


def _keep(out: Path, journal: Fields) -> None:
    write_text(out / JOURNAL, to_json(journal | {"seal": seal(journal)}))


def _compare(out: Path, begun: Fields, settings: Fields) -> None:
    for name in settings:
        if begun.get(name) != settings[name]:
            pair = begun.get(name), settings[name]
            was, now = ("another", "this one") if name == "source" else map(_short, pair)
            raise ValueError(
                f"{out} was packed with {name}={was}, not {now}; give what it was begun with to go "
                "on, choose another out=, or remove the folder"
            )


def _short(value: Any) -> str:
    return reprlib.Repr(maxstring=60, maxdict=20).repr(value)


def _tidy(out: Path) -> None:
    """Remove what writers that were stopped in the act left beside their files, and a spent journal."""
    for name in (JOURNAL, MANIFEST):
        for draft in out.glob(f".{name}.*"):
            draft.unlink(missing_ok=True)
    if (out / MANIFEST).is_file():
        (out / JOURNAL).unlink(missing_ok=True)


# A whole store.


class _Packing:
    """A store in the making. ``journal`` says how far it is, and is kept on disk."""

    def __init__(
        self,
        source: Source,
        out: Path,
        order: Order,
        names: tuple[str, ...],
        journal: Fields,
        tell: Tell,
    ) -> None:
        self.source, self.out, self.order, self.names = source, out, order, names
        self.journal, self.tell = journal, tell
        self.chunked = order.format == "litdata"

    def run(self) -> Manifest:
        pools = {name: self.source.pretraining(name, self.order.size_px) for name in self.names}
        lists: dict[str, dict[str, Pool]] = {}
        for name, pool in pools.items():
            lists.setdefault(pool.places, {})[name] = pool
        for sharing in lists.values():
            lengths = {name: len(pool) for name, pool in sharing.items()}
            if len(set(lengths.values())) > 1 or not all(lengths.values()):
                said = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise ValueError(
                    f"a list of places must have rows, equally many for all its sensors, not {said}; "
                    "choose others with sensors="
                )
        held = self._tasks()
        self._pretraining(lists, held)
        fields = self._describe(lists)
        text = to_json(fields | {"seal": seal(fields)})
        manifest = read_manifest(text.encode(), str(self.out / MANIFEST))
        write_text(self.out / MANIFEST, text)
        _tidy(self.out)
        return manifest

    # Tasks.

    def _tasks(self) -> Held:
        """Write every task, and say where items lie that pretraining must keep away from."""
        tasks = [task for name in self.names for task in self.source.tasks(name)]
        places = [np.empty((0, 2))]
        for k, task in enumerate(tasks):
            self.tell("tasks", k, len(tasks))
            if k < len(self.journal["tasks"]):
                done = np.array(self.journal["tasks"][k]["held"], np.float64)
            else:
                labelled = self.source.labelled(task, self.order.size_px)
                entry = self._task(k, labelled)
                done = _held(labelled)
                self.journal["tasks"].append(entry | {"held": done.tolist()})
                _keep(self.out, self.journal)
            places.append(done.reshape(-1, 2))
        if tasks:
            self.tell("tasks", len(tasks), len(tasks))
        return Held(np.concatenate(places))

    def _task(self, k: int, labelled: Labelled) -> Fields:
        task, folder, n = labelled.task, self.out / "tasks" / str(k), len(labelled.samples)
        target, before = np.asarray(labelled.target), labelled.before
        if not task.dense:
            target = target.astype("<i8" if target.dtype.kind in "iub" else "<f8")
        elif target.dtype != np.uint8:
            raise ValueError(f"task {task.name} gives targets of {target.dtype}, not uint8")
        if before is not None and (
            before.kind != labelled.samples.kind
            or not np.array_equal(before.ids, labelled.samples.ids)
        ):
            raise ValueError(
                f"task {task.name}: pixels before have other bands, grid or ids than those after; "
                "correct the source"
            )
        folds = [[np.asarray(part, np.int64) for part in fold] for fold in labelled.folds]
        rows = np.concatenate([part for fold in folds for part in fold])
        if not ((rows >= 0) & (rows < n)).all():
            raise ValueError(
                f"task {task.name}: folds name items beyond the {n} that there are; correct the source"
            )
        # How many items to train on is what the folds say; how many labels is the matter of who probes.
        said = {key: value for key, value in plain(task).items() if key not in ("train", "labels")}
        entry = {
            "task": said,
            "items": self._items(checked(labelled.samples, f"task {task.name}")),
            "before": None
            if before is None
            else self._items(checked(before, f"task {task.name}, before")),
            "target": target.dtype.str,
            "text_bytes": texts(folder / "cluster", 0, 0, labelled.cluster),
            "folds": [[len(part) for part in fold] for fold in folds],
        }
        put(folder / "target.npy", 0, target)
        put(folder / "folds.npy", 0, rows)
        return entry

    def _items(self, samples: Samples) -> int:
        """Write labelled images, unless another task has the same; returns their number."""
        digest = _digest(samples)
        known = [entry["digest"] for entry in self.journal["items"]]
        if digest in known:
            return known.index(digest)
        state = append(self.out / "items" / str(len(known)), fresh(), samples, chunked=False)
        self.journal["items"].append(_stack(samples, state) | {"digest": digest})
        return len(known)

    # Pretraining.

    def _pretraining(self, lists: Mapping[str, dict[str, Pool]], held: Held) -> None:
        chosen = {places: self._chosen(sharing) for places, sharing in lists.items()}
        total, before = sum(len(rows) * len(lists[places]) for places, rows in chosen.items()), 0
        for places, sharing in lists.items():
            rows, what = chosen[places], f"pixels of {'+'.join(sharing)}"
            state = self.journal["lists"].setdefault(places, _unread(sharing))
            step = self._step(sharing)
            self.tell(what, before + state["done"] * len(sharing), total)
            while state["done"] < len(rows):
                some = np.asarray(rows[state["done"] : state["done"] + step], np.int64)
                state = self.journal["lists"][places] = self._read(sharing, some, state, held)
                _keep(self.out, self.journal)
                self.tell(what, before + state["done"] * len(sharing), total)
            if not state["kept"]:
                raise ValueError(
                    f"leakage_km={self.order.leakage_km:g} leaves no place of {'+'.join(sharing)}; choose "
                    f"a smaller distance and another out=, or remove {self.out}"
                )
            before += len(rows) * len(sharing)

    def _chosen(self, sharing: Mapping[str, Pool]) -> Sequence[int] | Rows:
        """Rows of a list that are packed, in rising order, so that blocks stay one after another."""
        pool = next(iter(sharing.values()))
        size, samples = len(pool), self.order.samples
        if samples is None:
            samples = SAMPLES if size > ENDLESS else size
        if samples >= size:
            return range(size)
        return np.sort(permute(np.arange(samples), size, "pack", pool.places))

    def _step(self, sharing: Mapping[str, Pool]) -> int:
        """Rows of a list that are read at a time."""
        bands = sum(max(len(b.kind.bands) for b in pool.blocks) for pool in sharing.values())
        return max(1, CHUNK_BYTES // (4 * bands * self.order.size_px**2))

    def _read(self, sharing: Mapping[str, Pool], rows: Rows, state: Fields, held: Held) -> Fields:
        """Keep some rows of a list; returns what the journal must say after it."""
        parts = {name: list(self._parts(name, pool, rows)) for name, pool in sharing.items()}
        lost, km = np.zeros(len(rows), bool), self.order.leakage_km
        if km:
            for mine in parts.values():
                for _, where, samples in mine:
                    lost[where] |= held.near(samples.lonlat, len(samples), km)
        after = state | {
            "done": state["done"] + len(rows),
            "kept": state["kept"] + int((~lost).sum()),
            "unplaced": dict(state["unplaced"]),
            "blocks": {name: list(blocks) for name, blocks in state["blocks"].items()},
        }
        for name, mine in parts.items():
            for k, where, samples in mine:
                kept = samples.read(np.flatnonzero(~lost[where]))
                if not len(kept):
                    continue
                folder, blocks = self.out / "pretraining" / name / str(k), after["blocks"][name]
                try:
                    blocks[k] = append(folder, blocks[k], kept, self.chunked)
                except Misfit:  # once or twice in a block's life, and mostly at its beginning
                    ways = {n: [b["way"] for b in old] for n, old in after["blocks"].items()}
                    ways[name][k] += 1
                    return _unread(sharing, ways)
                after["unplaced"][name] += _unplaced(kept)
        return after

    def _parts(self, name: str, pool: Pool, rows: Rows) -> Iterator[tuple[int, slice, Samples]]:
        """Each block in which some of the rows lie, which of them do, and their samples."""
        for k, (start, end) in enumerate(zip(pool.starts, pool.starts[1:], strict=False)):
            first, last = np.searchsorted(rows, [start, end]).tolist()
            if first == last:
                continue
            block: Block = pool.blocks[k]
            what, size = f"block {k} of {name}", self.order.size_px
            samples = checked(block.read(rows[first:last] - start), what)
            if samples.kind != block.kind or samples.pixels.shape[2:] != (size, size):
                raise ValueError(
                    f"{what} gives {samples.pixels.shape} of other bands, grid or size than it promised; "
                    "correct the source"
                )
            if len(samples) != last - first:
                raise ValueError(f"{what} gives {len(samples)} samples for {last - first} rows")
            yield k, slice(first, last), samples

    # The manifest.

    def _describe(self, lists: Mapping[str, dict[str, Pool]]) -> Fields:
        """Finish every file, and say what the store holds."""
        journal, sensors = self.journal, []
        owner = {name: places for places, sharing in lists.items() for name in sharing}
        for name in self.names:
            places, sensor = owner[name], self.source.sensors[name]
            state, pool = journal["lists"][places], lists[places][name]
            blocks = [
                self._block(name, k, pool.blocks[k], one)
                for k, one in enumerate(state["blocks"][name])
                if one["rows"]
            ]
            sensors.append(
                plain(sensor)
                | {
                    "places": self._places(places, len(pool), state),
                    "limit": pool.limit,
                    "chosen": state["done"],
                    "left_out": state["done"] - state["kept"],
                    "unplaced": state["unplaced"][name],
                    "unsupported": [list(pair) for pair in self.source.unsupported(name)],
                    "blocks": blocks,
                }
            )
        fields = {
            "schema": SCHEMA,
            "format": self.order.format,
            "size_px": self.order.size_px,
            "leakage_km": self.order.leakage_km,
            "source": plain(self.source.identity),
            "caveats": list(self.source.caveats),
            "sensors": sensors,
            "items": [_without(entry, "digest") for entry in journal["items"]],
            "tasks": [_without(entry, "held") for entry in journal["tasks"]],
            "settings": journal["settings"],
        }
        said: Fields = json.loads(json.dumps(fields))
        return said | {"files": self._files(said)}

    def _block(self, name: str, k: int, block: Block, state: Fields) -> Fields:
        kind, size = block.kind, self.order.size_px
        statistics = Moments.from_fields(state["moments"]).statistics(kind.bands)
        if wrong := contradiction(kind.bands, [one["mean"] for one in statistics]):
            raise ValueError(
                f"block {k} of {name}: {wrong}; correct the unit or the scale where these data are "
                f"described, and remove {self.out}"
            )
        fields: Fields = {
            "block": k,
            "bands": plain(kind.bands),
            "gsd_m": kind.gsd_m,
            **_extent(kind.bands, (size, size), state),
            "statistics": statistics,
        }
        if self.chunked:
            folder = self.out / "pretraining" / name / str(k)
            fields["chunks"] = chunks.write_index(folder, state["chunks"])
        return fields

    def _places(self, places: str, size: int, state: Fields) -> str:
        """The name of what was packed of a list; one that was packed whole keeps its name."""
        if state["kept"] == size:
            return places
        return fingerprint(
            {
                "list": places, "of": size, "chosen": state["done"], "kept": state["kept"],
                "leakage_km": self.order.leakage_km,
            }
        )  # fmt: skip

    def _files(self, fields: Fields) -> Fields:
        """Bytes and checksum of every file, the heads of which are set right before."""
        draft = parse(fields | {"files": {}, "seal": ""})
        arrays, names, found = draft.arrays, sorted(draft.names), dict[str, Any]()
        try:
            for name in names:
                if name in arrays:
                    finish(self.out / name, *arrays[name])
            sizes = {name: (self.out / name).stat().st_size for name in names}
            done, total = 0, sum(sizes.values())

            def told(read: int) -> None:
                self.tell("checksums", done + read, total)

            for name, size in sizes.items():
                found[name] = {"bytes": size, "sha256": sha256(self.out / name, told)}
                done += size
        except FileNotFoundError as gone:
            raise ValueError(f"{gone.filename} is gone; remove {self.out} and pack anew") from None
        return found


def _unread(sharing: Mapping[str, Pool], ways: Mapping[str, list[int]] | None = None) -> Fields:
    """What the journal says of a list of places before its first row."""
    first = ways or {name: [0] * len(pool.blocks) for name, pool in sharing.items()}
    return {
        "done": 0,
        "kept": 0,
        "unplaced": dict.fromkeys(sharing, 0),
        "blocks": {name: [fresh(way) for way in first[name]] for name in sharing},
    }


def _stack(samples: Samples, state: Fields) -> Fields:
    """What the manifest says of labelled images."""
    height, width = samples.pixels.shape[2:]
    return {
        "sensor": samples.sensor,
        "bands": plain(samples.bands),
        "gsd_m": samples.gsd_m,
        **_extent(samples.bands, (height, width), state),
    }


def _extent(bands: Sequence[Band], side: tuple[int, int], state: Fields) -> Fields:
    """What the manifest says of any images in a folder."""
    return {
        "rows": state["rows"],
        "height": side[0],
        "width": side[1],
        **plain(candidates(bands)[state["way"]]),
        **{name: state[name] for name in ("text_bytes", "lonlat", "dates")},
    }


def _held(labelled: Labelled) -> NDArray[np.float64]:
    """Known places (m, 2) of validation and test items."""
    lonlat = labelled.samples.lonlat
    if lonlat is None:
        return np.empty((0, 2))
    rows = np.unique(np.concatenate([part for _, *held in labelled.folds for part in held]))
    return Held(np.asarray(lonlat, np.float64)[rows]).lonlat


def _unplaced(samples: Samples) -> int:
    """How many have no known place."""
    if samples.lonlat is None:
        return len(samples)
    return int((~np.isfinite(samples.lonlat).all(axis=1)).sum())


def _digest(samples: Samples) -> str:
    """Tells samples from all others."""
    digest = hashlib.sha256(fingerprint(samples.kind).encode())
    for array in (samples.pixels, samples.ids, samples.lonlat, samples.dates):
        digest.update(b"-" if array is None else f"{array.dtype.str}{array.shape}".encode())
        digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()


def _without(fields: Fields, name: str) -> Fields:
    return {key: value for key, value in fields.items() if key != name}
