"""What holds the house together: who may import whom, and what must start without torch."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "lightning", "timm", "torchgeo", "wandb", "matplotlib", "sklearn"}


def imported_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import gfmsum",
        "from gfmsum.ablate import main\nmain(['--help'])",
        "from gfmsum.ablate import main\nmain(['sensr=s1'])",
        "import gfmsum.store, gfmsum.records, gfmsum.report",
    ],
)
def test_help_mistakes_and_stored_results_load_nothing_heavy(code: str) -> None:
    assert imported_by(code) == set()


def test_planning_and_judging_do_without_torch() -> None:
    code = "from gfmsum.ablate import main\nmain(['--cfg'])\nimport gfmsum.verdict"
    assert not imported_by(code) & {"torch", "lightning", "timm", "torchgeo", "wandb"}


def test_layers() -> None:
    """Import-linter's contracts, which pyproject.toml states."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_public_name_exists() -> None:
    import gfmsum

    for name in gfmsum.__all__:
        assert getattr(gfmsum, name) is not None
        # A name of both would be the one or the other, depending on what was imported before.
        assert find_spec(f"gfmsum.{name}") is None, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gfmsum.nonsense  # noqa: B018


def test_the_project_names_no_machine() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout: cannot tell which files belong to the project")
    homes = re.compile(r"/(?:ho" r"me|ro" r"ot|wo" r"rk)/\w")
    for name in tracked.stdout.split():
        content = (ROOT / name).read_bytes()
        assert not homes.search(content.decode(errors="ignore")), name
