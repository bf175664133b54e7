"""How a model of the zoo is built, and how its weights get from this machine's disk into it."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gfmsum.model.encoder import Encoder
from gfmsum.zoo.borrowed import Borrowed
from gfmsum.zoo.cards import Options

type State = dict[str, Tensor]
_HUB = re.compile(r"https://(?:hf\.co|huggingface\.co)/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True, slots=True)
class Published:
    """Where trained weights are published, and where they lie once somebody has fetched them.

    Either may be empty: an address, which torch hub keeps by its last part, or a repository of the Hugging
    Face hub with the names a file of weights may have there.
    """

    url: str = ""
    repository: str = ""
    files: tuple[str, ...] = ()
    revision: str | None = None

    @classmethod
    def at(cls, url: str) -> Published:
        """At an address, which may be one of the Hugging Face hub's."""
        if found := _HUB.fullmatch(url):
            return cls(url, found[1], (found[3],), found[2])
        return cls(url)

    def on_this_machine(self) -> Path | None:
        """Where the weights lie, looked up on disk only."""
        from huggingface_hub import try_to_load_from_cache

        if self.url and self._fetched.is_file():
            return self._fetched
        for revision in dict.fromkeys((self.revision, None)):
            for file in self.files:
                path = try_to_load_from_cache(self.repository, file, revision=revision)
                if isinstance(path, str):
                    return Path(path)
        return None

    @property
    def how(self) -> str:
        """The command that fetches them."""
        if self.url:
            return f"get them with: curl -fL --create-dirs -o {self._fetched} {self.url}"
        return f"get them with: hf download {self.repository} {self.files[0]}"

    @property
    def _fetched(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model."""

    build: Callable[[Options, Path | None], Encoder | Borrowed]
    """With the weights of a file, or with weights drawn from torch's global generator."""
    published: Published | None = None
    reads: bool = True  # whether it takes weights from a file
    draws: bool = True  # whether it can be had with random weights

    def make(self, options: Options, path: Path | None) -> Encoder | Borrowed:
        """The model, ready to use; random numbers elsewhere stay what they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            return self.build(options, path).eval()

    def sketch(self, options: Options) -> Encoder | Borrowed | None:
        """The model without memory for its weights; None if it cannot be had without a file."""
        if not self.draws:
            return None
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    return self.build(options, None).eval()
            except RuntimeError:  # it asks for a tensor's value while it is built
                with _parameters_on_meta():
                    return self.build(options, None).eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Each parameter gives its memory back as soon as a module has it."""

    def lighten(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(lighten)
    try:
        yield
    finally:
        handle.remove()


def read_state(path: Path) -> State:
    """Tensors by name from a file, of which nothing but tensors is unpickled.

    Raises:
        ValueError: one line, if it is damaged, holds something else, or its name promises another content.
    """
    promised = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if promised:  # as torch hub names files
        with path.open("rb") as file:
            if not hashlib.file_digest(file, "sha256").hexdigest().startswith(promised[1]):
                raise ValueError(
                    f"{path}: its content is not what its name promises; delete it and get it anew"
                )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, which is not read; save a state_dict"
        ) from None
    except Exception as error:  # of many kinds: zip, safetensors, end of file
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights: {line}; get it anew") from None
    for key in ("state_dict", "model", "teacher"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise ValueError(f"{path}: holds no tensors by name; save a model's state_dict")
    return {str(name): value for name, value in loaded.items()}


def fill(model: nn.Module, state: State, path: Path, *, beyond: tuple[str, ...] = ()) -> None:
    """Put weights into a model, all of them or none.

    Position codes of another grid are interpolated.

    Args:
        beyond: starts of names that the weights may hold and the model has no use for.

    Raises:
        ValueError: one line, if weights are missing, left over or of another shape.
    """
    own = model.state_dict()
    if "pos_embed" in own and "pos_embed" in state:
        wanted, there = own["pos_embed"].shape[1], state["pos_embed"].shape[1]
        if wanted != there and state["pos_embed"].ndim == 3:
            side = round((wanted - 1) ** 0.5)
            codes = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=1)
            state = state | {"pos_embed": codes}
    problems = {
        "lacks": [name for name in own if name not in state],
        "has another shape in": [
            name for name in own if name in state and own[name].shape != state[name].shape
        ],
        "has no use for": [n for n in state if n not in own and not n.startswith(beyond)],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"{path}: {problem} {names[0]}{more}; are these weights of this model?"
            )
    model.load_state_dict({name: state[name] for name in own})


@contextmanager
def output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer gives while the context lasts."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
