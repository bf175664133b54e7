"""gfmsum: can a multi-sensor foundation model be more than the sum of its parts?

The names below are the public interface; each is imported when first used, so that
``import gfmsum`` is quick and does not load torch. Functions that share their module's name are
imported from it: ``from gfmsum.ablate import ablate``.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("gfmsum")

_HOMES = {
    "SENSORS": "sensors",
    "Sensor": "sensors",
    "Band": "sensors",
    "Unit": "sensors",
    "CATALOG": "catalog",
    "register": "catalog",
    "read_sensors": "catalog",
    "spectral_distance": "distance",
    "gsd_log_ratio": "distance",
    "distances": "distance",
    "Mix": "mix",
    "BUDGETS": "budget",
    "Budget": "budget",
    "AblationConfig": "config",
    "load": "config",
    "open_source": "data.sources",
    "MixDataModule": "data.modules",
    "SensorDataModule": "data.modules",
    "Encoder": "model.encoder",
    "export_encoder": "model.export",
    "load_encoder": "model.export",
    "MaskedAutoencoder": "model.mae",
    "Pretraining": "pretrain",
    "judge": "verdict",
    "Design": "verdict",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gfmsum' has no attribute {name!r}")
    return getattr(import_module(f"gfmsum.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
