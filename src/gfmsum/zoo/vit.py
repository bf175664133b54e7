"""Any vision transformer of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from gfmsum.sensors import Band
from gfmsum.zoo.borrowed import Borrowed, pick
from gfmsum.zoo.cards import Entry, Options
from gfmsum.zoo.channels import COLOURS, Order, by_wavelength, complete
from gfmsum.zoo.recipe import Published, Recipe, read_state


class Vit(Borrowed):
    """Red, green and blue by wavelength, or all bands in their order."""

    def __init__(self, model: Any, options: Options, native_px: int) -> None:
        patch_px, width = int(model.patch_embed.patch_size[0]), int(model.num_features)
        super().__init__(model, options, native_px=native_px, patch_px=patch_px, width=width)
        self.in_chans = options.in_chans

    def _check(self, bands: Sequence[Band]) -> None:
        self._order(bands)

    def _order(self, bands: Sequence[Band]) -> Order:
        if self.in_chans is None:
            return complete(by_wavelength(bands, COLOURS), list(COLOURS), self.missing)
        if len(bands) != self.in_chans:
            raise ValueError(f"was loaded for in_chans={self.in_chans}; the image has {len(bands)}")
        return tuple(range(len(bands)))

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        tokens: Tensor = model.forward_features(pick(x, self._order(bands)))
        whole = None if model.cls_token is None else tokens[:, 0]
        return tokens[:, model.num_prefix_tokens :], whole

    def _finish(self, pooled: Tensor) -> Tensor:
        normed: Tensor = self.model.get_submodule("fc_norm")(
            pooled
        )  # of those that norm after pooling
        return normed


def recipe(entry: Entry) -> Recipe:
    """How to build a model by its name in timm."""
    name, _, tag = entry.builds.partition(".")
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:12]}*")[:3]
        hint = f"; like {', '.join(near)}" if near else ""
        raise ValueError(f"{entry.name}: timm has no model {name!r}{hint}")
    known = timm.list_pretrained(f"{name}.*")
    if tag and entry.builds not in known:
        tags = ", ".join(each.partition(".")[2] for each in known) or "none"
        raise ValueError(f"{entry.name}: timm has no weights {tag!r} for {name}; it has {tags}")
    config: Any = timm.get_pretrained_cfg(entry.builds)

    def build(options: Options, path: Path | None) -> Borrowed:
        native_px = int(config.input_size[-1])
        chosen: dict[str, Any] = {"num_classes": 0, "img_size": options.image_px or native_px}
        chosen["in_chans"] = 3 if options.in_chans is None else options.in_chans
        if path:
            chosen |= {
                "pretrained": True,
                "pretrained_cfg_overlay": {"state_dict": read_state(path)},
            }
        try:
            model = timm.create_model(entry.builds, **chosen)
        except TypeError:
            model = None
        except RuntimeError as error:
            if path is None:
                raise
            line = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: does not fit: {line}") from None
        if not _is_vit(model):
            raise ValueError("is no vision transformer; choose one, like timm/vit_base_patch16_224")
        return Vit(model, options, native_px)

    published = None
    if config.has_weights:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else (
            "model.safetensors", "pytorch_model.bin",
        )  # fmt: skip
        repository = config.hf_hub_id or ""
        # The hub's copy first: that is where timm itself looks.
        published = Published("" if repository else config.url, repository, files)
    return Recipe(build, published)


def _is_vit(model: nn.Module | None) -> bool:
    wanted = ("patch_embed", "num_prefix_tokens", "cls_token", "fc_norm")
    return model is not None and all(hasattr(model, name) for name in wanted)
