"""Tracked runs are written offline and hold what the dashboards need.

An offline run is a file in LevelDB's log format, read back here with wandb's own message types.
"""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gfmsum.track import mode, track

BLOCK, HEADER = 32768, 7


def messages(path: Path) -> Iterator[bytes]:
    """The messages of a log: each in one or several checked fragments."""
    content = path.read_bytes()
    at, whole = HEADER, b""  # the file's own header is as long as a fragment's
    while at < len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        fragment = content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if not kind:
            return
        assert zlib.crc32(fragment, zlib.crc32(bytes([kind]))) == checksum
        whole = fragment if kind in (1, 2) else whole + fragment
        if kind in (1, 4):  # full, or the last of several
            yield whole


def read(path: Path, within_s: float = 60.0) -> dict[str, Any]:
    """What an offline run holds, once its service has written the end, which may be after the run's."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            found = records(path)
        except (AssertionError, struct.error):  # half of a record
            found = {}
        if "exit" in found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def records(path: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"history": [], "summary": {}, "config": {}}

    def name(item: Any) -> str:
        return item.key or "/".join(item.nested_key)

    for message in messages(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            updates = record.run.config.update
            found["config"] |= {name(u): json.loads(u.value_json) for u in updates}
        elif kind == "history":
            found["history"].append(
                {name(i): json.loads(i.value_json) for i in record.history.item}
            )
        elif kind == "summary":
            updates = record.summary.update
            found["summary"] |= {name(u): json.loads(u.value_json) for u in updates}
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("logged_out")
def test_without_a_key_nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"


@pytest.mark.usefixtures("logged_out")
def test_a_key_that_login_left_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    (tmp_path / "netrc").write_text("machine other.example login user password x\n")
    assert mode() == "offline"
    (tmp_path / "netrc").write_text("machine wandb.example login user password x\n")
    assert mode() == "online"


@pytest.mark.usefixtures("logged_out")
def test_an_offline_run_holds_group_config_curves_and_summary(tmp_path: Path) -> None:
    with track(
        "mix 0", group="study", kind="pretrain", config={"seed": 3}, folder=tmp_path
    ) as tracked:
        for step in range(3):
            tracked.log({"loss": 1.0 / (step + 1), "loss/s1": 0.5, "samples_seen": 60 * (step + 1)})
        tracked.summarise({"landuse_s1/accuracy": 0.75})
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = read(file)
    assert found["run"].run_group == "study"
    assert found["run"].job_type == "pretrain"
    assert found["run"].display_name == "mix 0"
    assert found["config"]["seed"] == 3
    assert [row["samples_seen"] for row in found["history"]] == [60, 120, 180]
    assert found["history"][1]["loss"] == 0.5
    assert found["summary"]["landuse_s1/accuracy"] == 0.75
    assert found["exit"] == 0


@pytest.mark.usefixtures("logged_out")
def test_a_failure_is_recorded_as_one(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        track("x", group="g", kind="probe", config={}, folder=tmp_path),
    ):
        raise ZeroDivisionError
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert read(file)["exit"] == 1
