"""The configuration of a study: every default, and the only place where strings become values.

``key=value`` words follow Hydra's grammar and are composed by Hydra (groups ``data`` and ``budget``,
dotted keys inside them); what comes out are frozen, checked dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, get_type_hints

from gfmsum.budget import BUDGETS, Budget
from gfmsum.records import plain
from gfmsum.sensors import unknown


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message says what to change."""


CONTROLS: Mapping[str, str] = MappingProxyType(
    {
        "alias": "the other sensors are the target under another name, so Δ = 0",
        "harm": "the other sensors are noise, so Δ < 0",
        "help": "the target is scarce and the others are it under another name, so α > 0",
    }
)
"""Worlds to test the instrument with: the sign of an effect on the target is known beforehand.

Harm and help show at a budget at which a solo run is better than a random start: before that, there
is nothing to lose or to gain.
"""


@dataclass(frozen=True, slots=True)
class SyntheticConfig:
    """Procedural scenes, for each sensor its own; or a control, see :data:`CONTROLS`.

    Change is asked about the first of the labelled items, see :data:`gfmsum.data.synthetic.PAIRS`.
    """

    world: int = 0  # which planet
    train: int = 600  # labelled items per sensor
    val: int = 200
    test: int = 400
    tasks: str = "landuse+diversity+length+coarseness+extent"  # see gfmsum.data.truths
    sensors: str = ""  # that look at it, as s1+s2+enmap; the founding five if empty
    shared: float = 1.0  # of what sensors see of the land, 0 to 1: the rest is each one's own
    smooth: bool = False  # whether neighbouring pixels are as much alike as in real chips
    control: str = ""  # alias, harm or help
    target: str = ""  # of the control; the study fills in its sensor
    scarce: int = 0  # pretraining samples of the target in control=help

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            if getattr(self, part) < 60:
                raise ConfigError(
                    f"data.{part}={getattr(self, part)} must be at least 60, ten for each class"
                )
        if not 0 <= self.shared <= 1:
            raise ConfigError(f"data.shared={self.shared} must lie between 0 and 1")
        if self.control and self.control not in CONTROLS:
            raise ConfigError(unknown("control", self.control, CONTROLS))
        if self.target and not self.control:
            raise ConfigError(
                f"data.target={self.target} needs a control; add data.control=alias, or leave it out"
            )
        if self.control == "help" and self.scarce < 1:
            raise ConfigError(
                f"data.scarce={self.scarce} must be at least 1 in data.control=help; "
                "add data.scarce=24"
            )
        if self.control != "help" and self.scarce:
            raise ConfigError(
                f"data.scarce={self.scarce} needs data.control=help; add it, or leave scarce out"
            )


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """A folder of pixels, read in place."""

    root: str = ""
    leakage_km: float = (
        0.0  # pretraining keeps this far from validation and test items; 0: no overlap
    )

    def __post_init__(self) -> None:
        if not 0 <= self.leakage_km < 1000:
            raise ConfigError(
                f"data.leakage_km={self.leakage_km} must be at least 0 and below 1000"
            )


@dataclass(frozen=True, slots=True)
class LocalConfig(FolderConfig):
    """A folder of real pixels with an index.json."""


@dataclass(frozen=True, slots=True)
class ShardsConfig(FolderConfig):
    """A store that ``python -m gfmsum.data pack`` made."""


@dataclass(frozen=True, slots=True)
class TorchgeoConfig(FolderConfig):
    """A folder of data sets as torchgeo lays them out, one folder each."""


type DataConfig = SyntheticConfig | LocalConfig | ShardsConfig | TorchgeoConfig

DATA: Mapping[str, type[DataConfig]] = MappingProxyType(
    {
        "synthetic": SyntheticConfig,
        "local": LocalConfig,
        "torchgeo": TorchgeoConfig,
        "shards": ShardsConfig,
    }
)

DESIGNS: Mapping[str, str] = MappingProxyType(
    {
        "footprint": "each place is given to one sensor, so N samples cover N places",
        "colocated": "all sensors of the mix see the same places, so N samples cover fewer",
    }
)
"""Which places the sensors of a mix see."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out: where, how fast and how safely; its weights do not depend on it.

    They are the same bit for bit on one kind of device; other kinds and numbers of devices, or another
    accumulation, add up in another order.
    """

    device: str = "cpu"  # auto, cpu or cuda
    devices: int = 1
    strategy: str = "auto"  # as Lightning's: ddp, fsdp, ...; auto is ddp for several devices
    threads: int = 1  # of the CPU, in each process
    accumulate: int = 1  # slices that a device takes a step's images in
    recompute: bool = False  # activations in the backward pass: slower, in less memory
    checkpoint_s: float = 60.0  # seconds between checkpoints


@dataclass(frozen=True, slots=True)
class AblationConfig:
    """One study: whose tasks are probed, what the mixed arm sees, and what each arm may spend."""

    sensor: str = "s1"  # the target: whose tasks are probed
    mix: str = "all"  # what the mixed arm sees: all, s1+s2, all-s1, ...
    replicates: int = 3  # independent pretrainings of each arm
    seed: int = 0
    margin: float = 0.01  # utility within which arms count as equal; 0.01 is one point
    design: str = "footprint"  # or colocated, see DESIGNS
    catalog: str = ""  # a YAML file that describes sensors of your own, see gfmsum.catalog
    probe: str = "linear"  # what the arms are judged by: linear or finetune
    labels: str = "10+50+all"  # how many each task is probed with; all of these count alike
    parts: bool = False  # whether to pretrain the part arm too, which Ψ needs
    out: str = ""  # folder of the results; under runs/ if empty
    store: str = "runs/store"  # folder of finished runs, shared by studies
    device: str = "auto"  # auto, cpu or cuda
    jobs: int = 0  # runs at a time; 0: one per CPU core, or one on a GPU
    threads: int = 1  # CPU threads of each run
    devices: int = 1  # of each run
    strategy: str = "auto"  # of several devices, as Lightning's: ddp, fsdp, ...
    accumulate: int = 1  # slices that a device takes a step's images in
    recompute: bool = False  # activations in the backward pass: slower, in less memory
    checkpoint_s: float = 60.0  # seconds between checkpoints of a run
    data: DataConfig = field(default_factory=SyntheticConfig)
    budget: Budget = field(default_factory=lambda: BUDGETS["tiny"])

    def __post_init__(self) -> None:
        for name, least in (
            ("replicates", 1), ("seed", 0), ("jobs", 0), ("threads", 1), ("devices", 1),
            ("accumulate", 1), ("checkpoint_s", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.margin < 1:
            raise ConfigError(
                f"margin={self.margin} must lie between 0 and 1; 0.01 is one point of utility"
            )
        if self.probe not in ("linear", "finetune"):
            raise ConfigError(unknown("probe", self.probe, ("linear", "finetune")))
        counts = read_labels(self.labels)  # in one order, so that one question has one name
        object.__setattr__(self, "labels", "+".join(str(n or "all") for n in counts))
        if self.design not in DESIGNS:
            raise ConfigError(unknown("design", self.design, DESIGNS))
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(unknown("device", self.device, ("auto", "cpu", "cuda")))
        if isinstance(self.data, SyntheticConfig) and self.data.control:
            if self.data.target not in ("", self.sensor):
                raise ConfigError(
                    f"data.target={self.data.target} must be sensor={self.sensor}, whose tasks are "
                    "probed; leave it out"
                )
            object.__setattr__(self, "data", replace(self.data, target=self.sensor))

    @property
    def label_counts(self) -> tuple[int, ...]:
        """Labels to probe with, per class, or in all for values and pixels; 0 is all there are."""
        return read_labels(self.labels)

    @property
    def data_name(self) -> str:
        return next(name for name, kind in DATA.items() if isinstance(self.data, kind))

    def question(self) -> dict[str, Any]:
        """What decides the numbers: everything but where and how fast."""
        here = {"out", "store", "jobs", "catalog", *(item.name for item in fields(Execution))}
        return {name: value for name, value in plain(self).items() if name not in here}

    @property
    def execution(self) -> Execution:
        """How each run is carried out."""
        return Execution(**{item.name: getattr(self, item.name) for item in fields(Execution)})


LEAST_LABELS = 2  # of each class


def read_labels(text: str) -> tuple[int, ...]:
    """What ``10+50+all`` asks for, the fewest first; 0 stands for all.

    Raises:
        ConfigError: one line, for what is no number, too small or there twice.
    """
    words = text.split("+")
    for word in words:
        if word != "all" and not (word.isdecimal() and int(word) >= LEAST_LABELS):
            raise ConfigError(
                f"labels={text}: {word!r} must be all, or a whole number that is at least {LEAST_LABELS}; "
                "write labels=10+50+all"
            )
    counts = sorted(int(word) for word in words if word != "all")
    if len(set(counts)) < len(counts) or words.count("all") > 1:
        raise ConfigError(f"labels={text} must name each number once; write labels=10+50+all")
    return (*counts, *[0] * words.count("all"))


def load(words: Sequence[str]) -> AblationConfig:
    """Read ``key=value`` words.

    Raises:
        ConfigError: one line with value, rule and remedy.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    tree, choice = _tree(), {"data": "synthetic", "budget": "tiny"}
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            raise ConfigError(f"cannot read {word!r}: write key=value, like sensor=s2") from None
        key, value = override.key_or_group, override.value()
        if (
            override.is_sweep_override()
            or override.is_delete()
            or override.is_add()
            or isinstance(value, dict | list)
        ):
            raise ConfigError(f"cannot use {word!r}: one study takes one plain value per key")
        if key in choice:
            if value not in tree[key]:
                raise ConfigError(unknown(key, str(value), tree[key]))
            choice[key] = str(value)
    known = {name: default for name, default in tree.items() if name not in choice}
    known |= {group: tree[group][name] for group, name in choice.items()}
    for word in words:
        key = word.split("=", 1)[0]
        if key not in choice and key not in (leaves := _leaves(known)):
            raise ConfigError(unknown("option", key, leaves))
    composed = _compose(tree, words)
    budget = _build(Budget, composed["budget"], "budget.")
    data = _build(DATA[choice["data"]], composed["data"], "data.")
    rest = {name: value for name, value in composed.items() if name not in choice}
    config: AblationConfig = _build(AblationConfig, rest | {"data": data, "budget": budget}, "")
    return config


def _tree() -> dict[str, Any]:
    """Every default as plain values; under a group's name, one tree per choice."""
    tree: dict[str, Any] = plain(AblationConfig())
    tree["data"] = {name: plain(kind()) for name, kind in DATA.items()}
    tree["budget"] = {name: plain(budget) for name, budget in BUDGETS.items()}
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all values in a tree."""
    names = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        names += _leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return names


def _compose(tree: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    store = ConfigStore.instance()
    for group in ("data", "budget"):
        for name, node in tree[group].items():
            store.store(group=group, name=name, node=node)
    top = {name: value for name, value in tree.items() if name not in ("data", "budget")}
    defaults = [{"data": "synthetic"}, {"budget": "tiny"}, "_self_"]
    store.store(name="ablation", node={"defaults": defaults, **top})
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base=None, config_path=None):
            composed = compose(config_name="ablation", overrides=list(words))
        container = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _build(kind: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass from plain values, each checked against its field's type."""
    hints = get_type_hints(kind)
    built: dict[str, Any] = {}
    for item in fields(kind):
        value, wanted = values[item.name], hints[item.name]
        if is_dataclass(value):
            built[item.name] = value
        elif is_dataclass(wanted):
            built[item.name] = _build(wanted, value, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            built[item.name] = _scalar(value, wanted, f"{prefix}{item.name}")
    try:
        return kind(**built)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _scalar(value: object, wanted: type, name: str) -> object:
    if wanted is str and not isinstance(value, bool | dict | list | None):
        return str(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool):
        return value
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise ConfigError(f"{name}={value!r} must be {words[wanted]}")
