"""Weights & Biases: one tracked run per piece of work. The only import of wandb.

Nothing leaves the machine unless the user is logged in: without a key, runs are written offline into
the study's folder and can be sent later with ``wandb sync``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

type Mode = Literal["online", "offline", "disabled"]


class Tracked:
    """A run being tracked."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float]) -> None:
        """One point of every curve; ``samples_seen`` is the x axis."""
        self._run.log(dict(metrics))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Final numbers, shown in the runs table."""
        self._run.summary.update(dict(values))


def mode() -> Mode:
    """Online if the user is logged in, else offline; ``WANDB_MODE`` overrides."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen in ("online", "offline", "disabled"):
        return cast(Mode, chosen)
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether ``wandb login`` has left a key; asking wandb itself would log this process in."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    path = os.environ.get("NETRC") or Path.home() / ".netrc"
    try:
        return netrc(path).authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, NetrcParseError):
        return False


@contextmanager
def track(
    name: str, *, group: str, kind: str, config: Mapping[str, Any], folder: Path
) -> Iterator[Tracked]:
    """Track what happens inside.

    Args:
        name: of the run.
        group: the study it belongs to.
        kind: its job type: "pretrain" or "probe".
        config: JSON types.
        folder: where ``wandb/`` is written.
    """
    # Crash reports of the client would leave the machine whether or not anybody is logged in.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "gfmsum"),
        name=name,
        group=group,
        job_type=kind,
        config=dict(config),
        dir=str(folder),
        mode=mode(),
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
    )
    try:
        run.define_metric("samples_seen")
        run.define_metric("loss*", step_metric="samples_seen")
        yield Tracked(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
