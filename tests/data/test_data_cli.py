"""``python -m gfmsum.data``: packing and checking from the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfmsum.config import LocalConfig, ShardsConfig
from gfmsum.data.__main__ import OPTIONS, main
from gfmsum.data.local import Local
from gfmsum.data.manifest import JOURNAL, MANIFEST
from gfmsum.data.shards import Shards
from tests.test_architecture import imported_by

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "realdata"
PATIENCE_S = 600  # for a process to start on a busy machine; over as soon as it has
SMALL = ("data=synthetic", "data.train=60", "data.val=60", "data.test=60", "size_px=8")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that words which cannot be used are answered with."""
    code, out, err = run(capsys, *words)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", 1), (out, err)
    assert lines[0].startswith("gfmsum: ")
    return lines[0]


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """A folder of real pixels: thirty images of four bands."""
    root = tmp_path / "pixels"
    root.mkdir()
    images = np.random.default_rng(0).integers(1, 255, (30, 4, 8, 8), dtype=np.uint8)
    np.savez(root / "a.npz", images=images)
    entry = {
        "id": "a", "sensor": "naip", "path": "a.npz", "layout": "stack", "unit": "brightness8",
        "bands": ["R", "G", "B", "NIR"], "scale": 1, "offset": 0, "nodata": None, "gsd_m": 1,
    }  # fmt: skip
    (root / "index.json").write_text(json.dumps({"schema": 1, "pretrain": [entry], "tasks": []}))
    return root


def test_help_explains_every_word_and_field_and_loads_nothing_heavy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for option in OPTIONS:
        assert f"  {option}=" in out
    for words in (
        ["--help"],
        ["pack", "--help"],
        ["pock"],
        ["pack"],
        ["pack", "out=x", "smaples=3"],
    ):
        heavy = imported_by(f"from gfmsum.data.__main__ import main\nmain({words!r})")
        assert heavy == set(), words
    assert imported_by("import gfmsum.data.shards, gfmsum.data.pack") == set()


def test_help_needs_no_pandas_and_no_sources() -> None:
    code = "from gfmsum.data.__main__ import main\nmain(['--help'])\nimport sys\n"
    code += "print([m for m in sys.modules if m.split('.')[0] in ('pandas', 'scipy', 'rasterio')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_field_of_a_manifest(
    tmp_path: Path, pixels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("out=" + str(tmp_path / "s"), *SMALL, "samples=3", "sensors=s1", "format=litdata")
    assert run(capsys, "pack", *words)[0] == 0
    _, text, _ = run(capsys, "--help")

    def names(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(names, value)) if value else set()
        if not isinstance(value, dict):
            return set()
        return set(value).union(*(names(v) for key, v in value.items() if key not in free))

    free = {"files", "settings", "source"}
    known = set(re.findall(r"\w+", text))
    assert names(json.loads((tmp_path / "s" / MANIFEST).read_text())) - known - {"band"} == set()


def test_a_folder_is_packed_checked_and_read(
    tmp_path: Path, pixels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    words = ("pack", f"out={out}", "data=local", f"data.root={pixels}", "size_px=8")
    code, said, err = run(capsys, *words)
    assert code == 0
    assert "30 of naip" in said
    assert "checksums 100%" in err
    assert "so far, 00:00 left" in err
    assert run(capsys, *words)[0] == 0  # once more: it is there
    assert run(capsys, "check", str(out))[:2] == (0, f"{out}: nothing is wrong\n")
    store, source = Shards(ShardsConfig(str(out))), Local(LocalConfig(str(pixels)))
    rows = np.arange(30)
    one, other = (s.pretraining("naip", 8).blocks[0].read(rows) for s in (store, source))
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.ids.tolist() == other.ids.tolist()
    assert np.load(out / "pretraining/naip/0/pixels.npy").dtype == np.uint8

    # A store can be packed again, for another place to keep it.
    words = ("pack", f"out={tmp_path / 't'}", "data=shards", f"data.root={out}", "size_px=8")
    assert run(capsys, *words, "format=litdata")[0] == 0
    (block,) = Shards(ShardsConfig(str(tmp_path / "t"))).pretraining("naip", 8).blocks
    np.testing.assert_array_equal(block.read(rows).pixels, other.pixels)


def test_check_says_everything_that_is_wrong(
    tmp_path: Path, pixels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    run(capsys, "pack", f"out={out}", "data=local", f"data.root={pixels}", "size_px=8")
    for name in ("ids", "pixels"):
        path = out / f"pretraining/naip/0/{name}.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, said, _ = run(capsys, "check", str(out))
    assert code == 1
    assert len(said.splitlines()) == 3
    assert said.splitlines()[-1] == f"{out}: 2 problems"
    (out / MANIFEST).rename(out / JOURNAL)
    code, said, _ = run(capsys, "check", str(out))
    assert code == 1
    assert "is not finished" in said

    assert run(capsys, "check", str(pixels), "size_px=8")[0] == 0
    (pixels / "a.npz").write_bytes(b"no images")
    code, said, _ = run(capsys, "check", str(pixels))
    assert code == 1
    assert "a.npz" in said


def test_words_that_cannot_be_used_cost_one_line(
    tmp_path: Path, pixels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 's'}"
    local = ("data=local", f"data.root={pixels}")
    for words, match in (
        ((), "pack or check"),
        (("pock",), "did you mean 'pack'"),
        (("pack",), "out is missing"),
        (("pack", out, "smaples=3"), "did you mean 'samples'"),
        (("pack", out, "3"), "write key=value"),
        (("pack", out, "data=locl"), "did you mean 'local'"),
        (("pack", out, "data.wurld=3"), "did you mean 'data.world'"),
        (("pack", out, "data=local", "data.root=nowhere"), "nowhere"),
        (("pack", out, *SMALL, "samples=x"), "samples=x must be a number"),
        (("pack", out, *SMALL, "samples=1.5"), "must be a whole number"),
        (("pack", out, *SMALL, "size_px=0"), "give size_px once"),
        (("pack", out, *SMALL, "leakage_km=-1"), "leakage_km=-1"),
        (("pack", out, *SMALL, "leakage_km=1e5"), "below 1000"),
        (("pack", out, *SMALL, "format=zarr"), "unknown format 'zarr'"),
        (("pack", out, *SMALL, "sensors=s1+s3"), "unknown sensor 's3'"),
        (("pack", out, *SMALL, "catalog=nowhere.yaml"), "nowhere.yaml"),
        (("pack", f"out={pixels}", *local, "size_px=8"), "choose an empty folder"),
        (("pack", f"out={pixels}/a.npz", *local), "cannot be a folder"),
        (("check",), "takes one folder"),
        (("check", "a", "b"), "takes one folder"),
        (("check", str(tmp_path / "nowhere")), "is not a folder"),
        (("check", str(tmp_path)), "has neither an index.json"),
        (("check", str(pixels), "size=3"), "unknown option 'size'"),
    ):
        assert match in refused(capsys, *words), words


def test_a_call_with_other_words_into_the_same_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pack", f"out={tmp_path / 's'}", *SMALL, "samples=5", "sensors=s1")
    assert run(capsys, *words)[0] == 0
    assert "samples=5, not 6" in refused(capsys, *words[:-2], "samples=6", "sensors=s1")
    # What the source's identity leaves open counts too: how many labelled items.
    other = [word.replace("train=60", "train=66") for word in words]
    assert "'train': 60" in refused(capsys, *other)


def test_a_sensor_of_ones_own_is_packed_and_needs_no_registration_then(
    tmp_path: Path, pixels: Path
) -> None:
    (tmp_path / "own.yaml").write_text(
        "dove:\n  title: A dove\n  gsd_m: 3\n  unit: reflectance\n  bands:\n"
        "    blue: {wavelength_um: 0.49, fwhm_um: 0.05}\n    nir: {wavelength_um: 0.865, fwhm_um: 0.04}\n"
    )
    words = ["pack", f"out={tmp_path / 's'}", "data=synthetic", *SMALL[1:], "samples=5"]
    words += ["data.sensors=dove", f"catalog={tmp_path / 'own.yaml'}"]
    # In a process of its own, since what is registered stays registered.
    done = subprocess.run(
        [sys.executable, "-m", "gfmsum.data", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = Shards(ShardsConfig(str(tmp_path / "s")))
    assert [band.name for band in store.sensors["dove"].bands] == ["blue", "nir"]
    assert len(store.pretraining("dove", 8)) == 5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_call_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "s"
    words = ["pack", f"out={out}", *SMALL, "sensors=s1", "samples=600"]
    # Small chunks, so that there is something to go on from.
    code = "from gfmsum.data import pack, __main__ as m; import sys; pack.CHUNK_BYTES = 20_000\n"
    command = [sys.executable, "-c", code + "sys.exit(m.main(sys.argv[1:]))", *words]
    alone = subprocess.run(
        [*command[:3], "pack", f"out={tmp_path / 'alone'}", *words[2:]],
        capture_output=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert alone.returncode == 0
    # It waits once its journal tells of rows, until it is stopped. What a shell runs in the background is deaf
    # to SIGINT, and so would be what a test run there starts.
    waits = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "keep = pack._keep\n"
        "def waiting(out, journal):\n    keep(out, journal)\n"
        "    any(one['done'] for one in journal['lists'].values()) and time.sleep(60)\n"
        "pack._keep = waiting\n"
    )
    stopped = [*command[:2], code + waits + "sys.exit(m.main(sys.argv[1:]))", *words]
    with subprocess.Popen(stopped, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not _rows(out) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        _, err = process.communicate()
    rows = _rows(out)
    assert rows
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "gfmsum: stopped; the same command goes on from here"
        assert "Traceback" not in err
    assert not (out / MANIFEST).exists()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for name, content in files.items():
        assert (tmp_path / "alone" / name).read_bytes() == content, name
    assert not (out / JOURNAL).exists()


def _rows(out: Path) -> int:
    """How many rows the journal says are there."""
    try:
        lists = json.loads((out / JOURNAL).read_bytes())["lists"]
    except OSError:
        return 0
    return sum(one["done"] for one in lists.values())


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real pixels is not here")
def test_real_pixels_are_packed_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, root = tmp_path / "s", os.path.relpath(REAL)
    words = (
        "pack",
        f"out={out}",
        "data=local",
        f"data.root={root}",
        "sensors=landsat",
        "samples=300",
    )
    assert run(capsys, *words)[0] == 0
    assert run(capsys, "check", str(out))[0] == 0
    store = Shards(ShardsConfig(str(out)))
    assert len(store.pretraining("landsat", 32)) == 300
    (task,) = store.tasks("landsat")
    assert len(store.labelled(task, 32).samples) == 1534


def test_help_has_both_schemas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--help"]) == 0
    assert "A store (schema 2;" in capsys.readouterr().out
    assert main(["check", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("index.json: what a folder of your own pixels holds")
    assert "A store" not in said
