"""Pretrained encoders to take away: one folder with weights and what is needed to use them.

    from gfmsum.model.export import export_encoder, load_encoder

    export_encoder(store.folder(run), Path("encoder"))
    encoder = load_encoder("encoder")

or ``python -m gfmsum.model.export RUN_FOLDER out=encoder``. The folder holds ``encoder.safetensors`` and
``config.json``. In TerraTorch's registry: :func:`register_terratorch`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfmsum.budget import Architecture
from gfmsum.records import fingerprint
from gfmsum.sensors import Band, Unit, unknown
from gfmsum.store import to_json, write_folder
from gfmsum.words import command

if TYPE_CHECKING:
    from gfmsum.model.encoder import Encoder

HELP = """\
Take the encoder of a finished run away, in a folder of its own.

    python -m gfmsum.model.export RUN_FOLDER out=FOLDER

  RUN_FOLDER    a run in a store: STORE/<16 hexadecimal digits>
  out=FOLDER    made in one step, with encoder.safetensors and config.json; must not exist

In Python: gfmsum.load_encoder(FOLDER). config.json says which bands the encoder saw, and the mean and standard
deviation of each by which they were normalised. Exit codes: 0, or 2 for words or files that cannot be used.
"""
FORMAT = "gfmsum encoder 1"
WEIGHTS, CONFIG = "encoder.safetensors", "config.json"
_PREFIX = "encoder."  # of the encoder's weights among a masked autoencoder's
_INPUT = "each band with zero mean and unit variance over the images at hand"


def export_encoder(run: Path, out: Path) -> Path:
    """Write the encoder of a finished run into a folder of its own, in one step.

    Args:
        run: the run's folder in a store.
        out: the folder to make.

    Returns:
        ``out``.

    Raises:
        ValueError: one line, if ``run`` holds no finished run or ``out`` exists.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    from gfmsum import __version__

    if out.exists():
        raise ValueError(f"{out}: exists already; name another folder or delete it")
    about = _read_json(run / "run.json")
    if fingerprint(about) != run.resolve().name:
        raise ValueError(f"{run / 'run.json'}: is not of the run that the folder is named by")
    try:
        recipe, model, sees = about["recipe"], about["budget"]["model"], about["sees"]
    except (KeyError, TypeError):
        raise ValueError(f"{run / 'run.json'}: is not of a run of this version") from None
    seen = _read_json(run / "seen.json").get("seen")
    try:
        loaded = load_file(run / "weights.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{run / 'weights.safetensors'}: cannot be read: {error}") from None
    weights = {n.removeprefix(_PREFIX): v for n, v in loaded.items() if n.startswith(_PREFIX)}

    def write(draft: Path) -> None:
        save_file(weights, draft / WEIGHTS, {"format": "pt", "run": fingerprint(about)})
        config = {
            "format": FORMAT,
            "gfmsum": __version__,
            "fingerprint": fingerprint(about),
            "recipe": recipe,
            "architecture": model,
            "sensors": sees,
            "input": _INPUT,
            "seen": seen,
            "run": about,
            "sha256": _digest(draft / WEIGHTS),
        }
        (draft / CONFIG).write_text(to_json(config), encoding="utf-8")

    write_folder(out, write)
    return out


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of an exported folder, in evaluation mode on the CPU: its tokens are the run's own.

    Raises:
        ValueError: one line, if the folder is not whole, or is not what it says.
    """
    import torch
    from safetensors.torch import load_file

    from gfmsum.model.encoder import Encoder

    folder = Path(path)
    config, architecture = read_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{file}: is missing; export the run again")
    if _digest(file) != config.get("sha256"):
        raise ValueError(
            f"{file}: is not the file that {CONFIG} was written for; export the run again"
        )
    try:
        with torch.device("meta"):
            encoder = Encoder(architecture)
        encoder.load_state_dict(load_file(file), assign=True)
    except Exception as error:  # of safetensors, or of weights that are none of this architecture's
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: is not of the architecture in {CONFIG}: {line}") from None
    return encoder.eval()


def read_config(folder: Path) -> tuple[dict[str, Any], Architecture]:
    """What an exported folder says of its encoder, and the architecture.

    Raises:
        ValueError: one line, if it says nothing, or what cannot be.
    """
    file = folder / CONFIG
    config = _read_json(file)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{file}: format {config.get('format')!r} is not {FORMAT!r}; use the gfmsum that wrote it, "
            f"{config.get('gfmsum', 'unknown')}"
        )
    about, model = config.get("run"), config.get("architecture")
    if fingerprint(about) != config.get("fingerprint") or not isinstance(about, dict):
        raise ValueError(
            f"{file}: run and fingerprint do not belong together; export the run again"
        )
    budget = about.get("budget")
    if not isinstance(model, dict) or not isinstance(budget, dict) or budget.get("model") != model:
        raise ValueError(f"{file}: architecture is not that of the run; export the run again")
    known = [field.name for field in fields(Architecture)]
    for name in model:
        if name not in known:
            raise ValueError(f"{file}: {unknown('field of architecture', name, known)}")
    try:
        return config, Architecture(**model)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: architecture: {error}") from None


def bands_of(folder: Path, sensor: str | None = None) -> tuple[Band, ...]:
    """The bands that an exported encoder saw of a sensor, of its only one if None.

    Raises:
        ValueError: one line, if they are not written down, or there are several kinds.
    """
    file = folder / CONFIG
    config, _ = read_config(folder)
    try:
        kinds = {
            tuple(Band(**band | {"unit": Unit(band["unit"])}) for band in kind["bands"])
            for kind in config["seen"] or []
            if sensor is None or kind["sensor"] == sensor
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: seen: not kinds of images: {error}") from None
    if len(kinds) != 1:
        raise ValueError(
            f"{file}: seen: holds {len(kinds)} such kinds of images; name a sensor of the catalog"
        )
    return kinds.pop()


def register_terratorch() -> None:
    """Make exported encoders known to TerraTorch as the backbone ``gfmsum_encoder``.

    In a file that TerraTorch imports (``custom_modules/__init__.py``)::

        from gfmsum.model.export import register_terratorch
        register_terratorch()

    and in its configuration ``backbone: gfmsum_encoder``, ``backbone_path: encoder``, and, if need be,
    ``backbone_sensor: s2``, ``backbone_bands: [B02, B03, B04]``, ``backbone_gsd_m: 10`` and
    ``backbone_out_indices: [2, 5, 8, 11]``. Its data must come normalised per band. Features are maps of
    patches, so no neck has to shape them.

    Raises:
        ValueError: if TerraTorch cannot be imported.
    """
    try:
        registry = import_module("terratorch.registry").TERRATORCH_BACKBONE_REGISTRY
    except ImportError as error:
        raise ValueError(
            f"TerraTorch cannot be imported: {error}; pip install terratorch"
        ) from None
    from gfmsum.model.backbone import gfmsum_encoder

    registry.register(gfmsum_encoder)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}; name a finished folder") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{file}: is not JSON; it is damaged or something else") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must hold one object; it is damaged or something else")
    return content


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def answer(folders: Sequence[str], values: Mapping[str, str]) -> str:
    """Export the run that command-line words name."""
    if len(folders) != 1 or "out" not in values:
        raise ValueError("name one RUN_FOLDER and out=FOLDER; see --help")
    out = export_encoder(Path(folders[0]), Path(values["out"]))
    return f"{out}: {WEIGHTS} and {CONFIG}"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return command(arguments, HELP, ("out",), answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
