"""Finished work on disk, named by what it is: a folder that exists is complete.

Everything is first written beside its place and then moved there in one step, so that a reader never
sees half of it and a killed writer leaves nothing that looks finished.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gfmsum.records import Run, Seen, plain


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on nothing
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Keep an array as ``.npy``, in one step."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def to_json(value: object) -> str:
    """Stable, readable JSON; refuses NaN and infinity."""
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder in one step: ``fill`` writes into a temporary one, which then takes its place.

    If somebody else finished the same folder meanwhile, theirs stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        fill(draft)
        os.chmod(draft, 0o755)
        try:
            draft.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class Store:
    """Runs with their weights, ledgers and curves, and the scores of their probes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: Run) -> Path:
        return self.root / run.fingerprint

    def checkpoints(self, run: Run) -> Path:
        """Where the states of a run that has not ended lie."""
        return self.root / "unfinished" / run.fingerprint

    def has(self, run: Run) -> bool:
        return self.folder(run).is_dir()

    def save(
        self,
        run: Run,
        weights: Mapping[str, NDArray[Any]],
        ledger: Mapping[str, Any],
        curve: pd.DataFrame,
        seen: Sequence[Seen],
        pictures: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Keep a finished run."""

        def fill(draft: Path) -> None:
            save_file(dict(weights), draft / "weights.safetensors")
            (draft / "run.json").write_text(to_json(run))
            (draft / "ledger.json").write_text(to_json(ledger))
            (draft / "seen.json").write_text(to_json({"seen": seen}))
            curve.to_parquet(draft / "curve.parquet", index=False)
            np.savez_compressed(draft / "pictures.npz", allow_pickle=False, **dict(pictures))

        write_folder(self.folder(run), fill)

    def weights(self, run: Run) -> dict[str, NDArray[Any]]:
        loaded: dict[str, NDArray[Any]] = load_file(self.folder(run) / "weights.safetensors")
        return loaded

    def ledger(self, run: Run) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder(run) / "ledger.json").read_text())
        return loaded

    def curve(self, run: Run) -> pd.DataFrame:
        return pd.read_parquet(self.folder(run) / "curve.parquet")

    def pictures(self, run: Run) -> dict[str, NDArray[np.float32]]:
        with np.load(self.folder(run) / "pictures.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def features(self, run: Run) -> Path:
        """Where features that a run's encoder gave are kept."""
        return self.folder(run) / "features"

    def has_line(self, key: str) -> bool:
        return self._line(key).is_file()

    def save_line(self, key: str, loss: float | None) -> None:
        """Keep the loss of linear interpolation on a sensor; None where too few images say nothing."""
        write_text(self._line(key), to_json({"loss": loss}))

    def line(self, key: str) -> float | None:
        loss: float | None = json.loads(self._line(key).read_text())["loss"]
        return loss

    def _line(self, key: str) -> Path:
        return self.root / "interpolation" / f"{key}.json"

    def probes(self, run: Run | None, key: str) -> Path:
        """The folder of the scores of a run, or of the baselines, on what ``key`` names."""
        return (self.folder(run) if run else self.root / "baselines") / f"probes-{key}"

    def has_probes(self, run: Run | None, key: str) -> bool:
        return self.probes(run, key).is_dir()

    def save_probes(
        self, run: Run | None, key: str, scores: pd.DataFrame, predictions: pd.DataFrame
    ) -> None:
        """Keep scores with the predictions behind them."""

        def fill(draft: Path) -> None:
            scores.to_parquet(draft / "scores.parquet", index=False)
            predictions.to_parquet(draft / "predictions.parquet", index=False)

        write_folder(self.probes(run, key), fill)

    def load_probes(self, run: Run | None, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        folder = self.probes(run, key)
        return (
            pd.read_parquet(folder / "scores.parquet"),
            pd.read_parquet(folder / "predictions.parquet"),
        )
