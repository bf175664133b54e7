"""Checkpoints of a run that has not ended: whole or not there, and never trusted without a check."""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gfmsum.store import write_bytes

KEPT = 2  # of which the older one serves if the newer is torn
_DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """States of one run, by step, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], step: int, name: str = "step") -> None:
        """Write a state of tensors and plain values, in one step, and drop those that are too old.

        Args:
            state: what :meth:`newest` will give.
            step: optimiser steps that are done.
            name: states of one name replace each other.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).digest()
        write_bytes(self.folder / f"{name}-{step:012}.ckpt", content + digest)
        for path in self._paths(name)[KEPT:]:
            path.unlink(missing_ok=True)

    def newest(self, name: str = "step") -> dict[str, Any] | None:
        """The newest state that is whole; None if there is none."""
        return next(self._whole(name), None)

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}-*.ckpt"), reverse=True)

    def _whole(self, name: str) -> Iterator[dict[str, Any]]:
        for path in self._paths(name):
            content = path.read_bytes()
            if hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]:
                # Tensors and plain values only: a file that somebody put there runs no code.
                yield torch.load(io.BytesIO(content[:-_DIGEST]), weights_only=True)
            else:
                warnings.warn(f"{path} is torn; the checkpoint before it is used", stacklevel=3)
