"""Pack pixels into a store that is quick to read, or say everything that is wrong with a folder.

    python -m gfmsum.data pack out=STORE data=synthetic|local|torchgeo [key=value ...]
    python -m gfmsum.data check ROOT [size_px=32]

pack converts a data source into a store, which data=shards data.root=STORE then reads:

  out=STORE             folder of the store. The same command goes on after an interruption
  data=local            the source, with its own words: data.root=FOLDER, data.world=1, ...; a store
                        can be packed again, with data=shards
  sensors=s1+s2         those to pack; default all that the source has
  size_px=32            side of a pretraining image
  samples=10000         of each list of places, drawn at random; default all, or 10000 of a source
                        without end. Sensors that share a list keep sharing it
  leakage_km=0          pretraining samples whose centre lies within this distance of that of any
                        validation or test item of the store are left out, on top of what the
                        source itself leaves out; 0: no more than that
  format=npy            arrays that are mapped into memory, for local disks; or litdata: chunks for
                        object storage (s3://, gs://, azure://, r2://), see pip install gfmsum[litdata]
  catalog=FILE          a YAML file that describes sensors of your own, see gfmsum.catalog

check reads everything below ROOT, a folder with an index.json (data=local, cut into tiles of size_px)
or a packed store, and prints one line for each problem. One that says "warning" is read all the same.
What an index.json may hold: python -m gfmsum.data check --help

A store (schema 2; stores of schema 1, which had no dense tasks, are read too) is a folder of plain
arrays:

  manifest.json               what there is, written last, sealed with its own SHA-256
  pretraining/SENSOR/K/       block K of a sensor: samples of one kind
    pixels.npy                (n, c, h, w): value = number * scale + offset in float32, exactly; or
                              pixels/index.json and pixels/chunk-0-*.bin, as litdata reads them
    ids.npy, ids-text.npy     int64 (n,) where each id ends in the text, and the text, UTF-8 bytes
    lonlat.npy                float64 (n, 2) degrees, NaN where unknown; missing if none is known
    dates.npy                 10 bytes each (n,): 2020-07-15, empty where unknown; likewise
  items/K/                    labelled images, in the same files; several tasks may share them
  tasks/K/                    target.npy: int64 class or float64 value (n,), or for every pixel
                              uint8 class (n, h, w), 255 where unknown; cluster.npy and
                              cluster-text.npy (n,) as ids; folds.npy: rows that train, validate
                              and test, fold after fold

  Fields of manifest.json: schema, format, size_px, leakage_km, settings (of pack), source (identity)
  and caveats (of what was packed), sensors, items, tasks, files (bytes and sha256 of each), seal.
  A sensor has name, title, gsd_m, bands (name, gsd_m, unit, wavelength_um and fwhm_um or
  polarisation and frequency_ghz), places (sensors whose rows show the same places have the same),
  limit (samples that a run is given at most), chosen, left_out and unplaced (rows that were looked
  at, left out for leakage_km, and of unknown place), unsupported (tasks without a probe) and
  blocks: block (K), bands, gsd_m, rows, height, width, dtype, scale, offset, text_bytes, lonlat,
  dates, chunks (rows of each), statistics (mean, deviation, min and max of each band). Items are
  like blocks. A task has task (name, sensor, kind, metric, floor, ceiling, classes, caveat,
  clustered), items (K), before (K of the same places earlier, for a task of change, else null),
  target (dtype), text_bytes, folds (train, val and test items of each).

Exit codes: 0 if all is well, 1 if check found problems, 2 for words that cannot be used or data that
cannot be packed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gfmsum.sensors import unknown
from gfmsum.words import read_number, read_words

OPTIONS = ("out", "sensors", "size_px", "samples", "leakage_km", "format", "catalog")


class Progress:
    """A bar for each thing that is done, with the time that is left; a line where there is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.close()
            from tqdm import tqdm

            self._what = what
            self._bar = tqdm(
                total=total,
                initial=done,  # of an earlier call: not to be counted as quick work of this one
                dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else 60,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} so far, {remaining} left",
                desc=what,
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def answer_pack(words: Sequence[str]) -> tuple[str, int]:
    """Pack what command-line words ask for; what was done, in words, and the exit code.

    Raises:
        ValueError: one line with value, rule and remedy.
    """
    data = [word for word in words if word.startswith(("data=", "data."))]
    files, values = read_words([word for word in words if word not in data], OPTIONS)
    if files:
        raise ValueError(f"cannot use {files[0]!r}: write key=value; see --help")
    if "out" not in values:
        raise ValueError("out is missing; name the store's folder, like out=store")
    from gfmsum.catalog import register_file
    from gfmsum.config import load
    from gfmsum.data.pack import Order, pack
    from gfmsum.data.sources import open_source
    from gfmsum.records import plain

    register_file(values.get("catalog", ""))
    config = load(data).data
    order = Order(
        sensors=tuple(values["sensors"].split("+")) if "sensors" in values else (),
        **{key: _whole(key, values) for key in ("size_px", "samples") if key in values},
        leakage_km=_distance(values),
        format=values.get("format", "npy"),
        data={name: value for name, value in plain(config).items() if name != "root"},
    )
    source = open_source(config)
    progress, out = Progress(), Path(values["out"])
    try:
        manifest = pack(source, out, order, progress)
    finally:
        progress.close()
    rows = ", ".join(f"{packed.rows} of {packed.sensor.name}" for packed in manifest.sensors)
    size = sum(size for size, _ in manifest.files.values())
    return (
        f"{out}: {rows}; {len(manifest.tasks)} tasks; {size / 1e6:.1f} MB in {len(manifest.files)} "
        f"files. Read it with data=shards data.root={out}",
        0,
    )


def _whole(key: str, values: Mapping[str, str]) -> Any:
    number = read_number(key, values[key])
    if number != math.floor(number):
        raise ValueError(f"{key}={values[key]} must be a whole number")
    return int(number)


def _distance(values: Mapping[str, str]) -> float:
    text = values.get("leakage_km", "0")
    return 0.0 if text.strip() in ("0", "0.0") else read_number("leakage_km", text)


def answer_check(words: Sequence[str]) -> tuple[str, int]:
    """Everything that is wrong with a folder, and the exit code.

    Raises:
        ValueError: if it is neither a folder of real pixels nor a store.
    """
    files, values = read_words(words, ("size_px",))
    if len(files) != 1:
        raise ValueError("check takes one folder: python -m gfmsum.data check ROOT")
    root = Path(files[0])
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; name one with an index.json or a manifest.json")
    from gfmsum.data.manifest import JOURNAL, MANIFEST

    if (root / MANIFEST).is_file() or (root / JOURNAL).is_file():
        from gfmsum.data.shards import problems

        progress = Progress()
        try:
            found = problems(str(root), lambda done, total: progress("checksums", done, total))
        finally:
            progress.close()
    elif (root / "index.json").is_file():
        from gfmsum.data import local

        found = local.problems(str(root), _whole("size_px", {"size_px": "32"} | values))
    else:
        raise ValueError(
            f"{root} has neither an index.json (data=local) nor a {MANIFEST} (a packed store); name a "
            "folder that has one"
        )
    wrong = sum(": warning: " not in line for line in found)
    said = f"{wrong} problem{'s' * (wrong != 1)}" if wrong else "nothing is wrong"
    return "\n".join([*found, f"{root}: {said}"]), int(wrong > 0)


COMMANDS = {"pack": answer_pack, "check": answer_check}


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        if "check" in arguments:
            from gfmsum.data.index import SCHEMA_HELP

            print(SCHEMA_HELP, end="")
        else:
            print(__doc__, end="")
        return 0
    try:
        if not arguments:
            raise ValueError("say what to do: pack or check; see --help")
        if arguments[0] not in COMMANDS:
            raise ValueError(unknown("command", arguments[0], COMMANDS))
        text, code = COMMANDS[arguments[0]](arguments[1:])
    except (OSError, ValueError) as error:
        print(f"gfmsum: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gfmsum: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
