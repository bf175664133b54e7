"""What the parts of the experiment find, kept so that a cut at any moment leaves whole files.

Every process appends rows to files of its own in a working folder, one line each. The process that started
them all gathers the lines and writes ``results.json`` and one csv per table, each replaced in one step.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfmsum.store import write_text

type Row = dict[str, Any]

TABLES = ("checks", "speed", "attention", "runs", "curves", "scores")
ONLY_CSV = ("curves",)  # too long for a file that people read


class Sink:
    """A process's end of the results."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def add(self, table: str, row: Row) -> None:
        """Append a row; values that JSON does not know become null."""
        path = self.work / f"{table}-{os.getpid()}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: plain(value) for name, value in row.items()}) + "\n")


def plain(value: Any) -> Any:
    """A value that JSON knows."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def gather(work: Path) -> dict[str, list[Row]]:
    """All whole rows so far, by table; a line that is being written is left for the next time."""
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for name in TABLES:
        for path in sorted(work.glob(f"{name}-*.jsonl"), key=lambda path: path.stat().st_ctime_ns):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            tables[name] += [json.loads(line) for line in lines if line.endswith("\n")]
    return tables


def write(out: Path, said: Mapping[str, Any], tables: Mapping[str, list[Row]]) -> None:
    """Replace ``results.json`` and the csv files of a folder, each in one step."""
    told = {name: rows for name, rows in tables.items() if name not in ONLY_CSV}
    text = json.dumps({**said, **told}, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(out / "results.json", text + "\n")
    for name, rows in tables.items():
        if rows:
            write_text(out / f"{name}.csv", table_text(rows))


def table_text(rows: list[Row]) -> str:
    """Rows as csv, under all names that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
