"""Tables of scores and predictions from files, with the columns that the command line documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gfmsum.records import Role
from gfmsum.verdict.variance import AGREE

if TYPE_CHECKING:  # when used, so that mistakes in words do not wait for it
    import pandas as pd


def read_tables(
    scores: Path, predictions: Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the two tables that :func:`~gfmsum.verdict.judge` takes.

    Args:
        scores: a Parquet or CSV file, or a folder with ``scores.parquet``.
        predictions: likewise; default is ``predictions.parquet`` beside the scores, if it exists.

    Raises:
        ValueError: if a file is not there, holds no table or lacks a column, or if a utility is
            not that of its value.
    """
    if scores.is_dir():
        scores /= "scores.parquet"
    if predictions is None and (beside := scores.with_name("predictions.parquet")).is_file():
        predictions = beside
    elif predictions is not None and predictions.is_dir():
        predictions /= "predictions.parquet"
    numbers = ("value", "floor", "ceiling")
    rows = _read(
        scores, ("arm", "replicate", "sensor", "task", "metric"), numbers, ("utility", "labels")
    )
    utility = (rows["value"] - rows["floor"]) / (rows["ceiling"] - rows["floor"])
    if "utility" not in rows:
        rows["utility"] = utility
    apart = ((rows["utility"] - utility).abs() > AGREE) & rows["arm"].isin(list(Role))
    if (apart & (rows["floor"] < rows["ceiling"])).any():
        row = rows[apart].iloc[0]
        raise ValueError(
            f"{scores}: utility {row['utility']:.6g} of arm {row['arm']!r}, replicate "
            f"{row['replicate']}, task {row['task']!r} is not (value - floor) / (ceiling - floor) "
            f"= {utility[apart].iloc[0]:.6g}; mend it, or leave the column out"
        )
    if predictions is None:
        return rows, None
    return rows, _read(
        predictions, ("arm", "replicate", "task", "item", "cluster"), ("contribution",)
    )


def read_all(paths: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The tables of one or several studies as one.

    Args:
        paths: scores and perhaps predictions, as :func:`read_tables` takes them; or several folders,
            each with its scores.

    Raises:
        ValueError: as :func:`read_tables`; or if only some studies have predictions.
    """
    if len(paths) < 2 or not all((path / "scores.parquet").is_file() for path in paths):
        if len(paths) > 2:
            raise ValueError(
                f"{', '.join(map(str, paths))} must be SCORES and perhaps PREDICTIONS, or folders "
                "with scores.parquet; see --help"
            )
        return read_tables(*paths)
    import pandas as pd

    studies = [read_tables(path) for path in paths]
    lacking = [str(path) for path, (_, items) in zip(paths, studies, strict=True) if items is None]
    scores = pd.concat([scores for scores, _ in studies], ignore_index=True)
    if len(lacking) == len(paths):
        return scores, None
    if lacking:
        raise ValueError(
            f"{', '.join(lacking)}: no predictions.parquet, which the other studies have; add it, or "
            "take it away everywhere"
        )
    return scores, pd.concat(
        [items for _, items in studies if items is not None], ignore_index=True
    )


def _read(
    path: Path, names: Sequence[str], numbers: Sequence[str], optional: Sequence[str] = ()
) -> pd.DataFrame:
    """A table with its numbers as floats and its words as text."""
    if not path.is_file():
        raise ValueError(f"no file {path}; give a Parquet or CSV file that exists")
    import pandas as pd

    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"cannot read {path}: {reason}; give a Parquet or CSV file") from None
    if lacking := [column for column in (*names, *numbers) if column not in frame]:
        raise ValueError(
            f"{path} has no column {', '.join(lacking)}; add what "
            "python -m gfmsum.verdict --help lists"
        )
    if frame.empty:
        raise ValueError(f"{path} holds no rows; give a table with one per run and task")
    for column in (column for column in (*numbers, *optional) if column in frame):
        try:
            frame[column] = frame[column].astype(float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: column {column} must hold numbers, but {error}") from None
    for column in {"arm", "sensor", "task", "metric"} & set(names):
        frame[column] = frame[column].astype(object).map(str, na_action="ignore")
    return frame
