"""How fast a training step is, beside its peers and the machine's ceiling.

    uv run python experiments/speed/model.py [preset=small] [images=60] [threads=1] [rounds=5]
                                             [device=cpu|cuda] [precision=fp32|bf16] [compile=no|yes]

In one process, interleaved, medians: our step on one sensor of 12 bands (Sentinel-2 Level-2A); the same
on five sensors at once, beside the mean of five steps on one sensor each; torchgeo's MAE task at equal
width, depth, patch, image and mask ratio, with a decoder of the same width and depth, beside ours with
the preset's share of the hidden patches predicted and with all of them; torchgeo's DOFA encoder, forward
and backward, on all patches, as it knows no masks, beside our encoder on all patches; and a product of
two large matrices as the ceiling. A step is forward, backward and update, with the optimiser that each
library configures. FLOPs are counted on the real graphs.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gfmsum.budget import BUDGETS, Architecture
from gfmsum.catalog import CATALOG
from gfmsum.model.mae import MaskedAutoencoder, View
from gfmsum.pretrain import Pretraining
from gfmsum.sensors import SENSORS, Sensor
from gfmsum.words import read_words

ONE = CATALOG["s2l2a"]
EVERY = "all hidden predicted"


@dataclass
class Setting:
    """What is the same for all."""

    model: Architecture
    images: int
    device: str
    precision: str
    compiled: bool

    def pixels(self, bands: int, images: int, size: int | None = None) -> Tensor:
        side = size or self.model.image_px
        draws = torch.Generator().manual_seed(bands)
        return torch.randn(images, bands, side, side, generator=draws).to(self.device)

    def step(
        self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[[], None]:
        """Forward, backward and update."""

        def once() -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                value = loss()
            value.backward()
            optimizer.step()

        return once


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    _, words = read_words(
        sys.argv[1:], ("preset", "images", "threads", "rounds", "device", "precision", "compile")
    )
    torch.set_num_threads(int(words.get("threads", 1)))
    setting = Setting(
        BUDGETS[words.get("preset", "small")].model,
        int(words.get("images", 60)),
        words.get("device", "cpu"),
        words.get("precision", "fp32"),
        words.get("compile", "no") == "yes",
    )
    steps: dict[str, Callable[[], None]] = {
        f"ours, {ONE.name}": ours(setting, [ONE]),
        EVERY: ours(replace(setting, model=replace(setting.model, predict_ratio=1.0)), [ONE]),
    }
    steps |= {f"ours, {name}": ours(setting, [sensor]) for name, sensor in SENSORS.items()}
    steps["ours, five mixed"] = ours(setting, list(SENSORS.values()))
    steps["torchgeo MAE"] = torchgeo_mae(setting)
    steps["our encoder, all patches"] = our_encoder(setting)
    steps["torchgeo DOFA, all patches"] = dofa(setting)
    product, product_flops = matrices(setting)
    flops = {name: count(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in [*steps, "matrices"]}
    for _ in range(int(words.get("rounds", 5))):
        for name, once in [*steps.items(), ("matrices", product)]:
            times[name].append(timed(once, setting.device))
    median = {name: statistics.median(found) for name, found in times.items()}
    ceiling = product_flops / median["matrices"]

    print(f"{setting.model}\n{setting.images} images a step, {setting.device}, {setting.precision}")
    print(f"ceiling: {ceiling / 1e9:,.1f} GFLOP/s in one matrix product")
    print(f"{'':<28}{'ms':>9}{'samples/s':>11}{'GFLOP/sample':>14}{'of ceiling':>12}")
    for name in steps:
        rate, each = setting.images / median[name], flops[name] / setting.images
        share = flops[name] / median[name] / ceiling
        print(
            f"{name:<28}{median[name] * 1e3:>9.1f}{rate:>11,.1f}{each / 1e9:>14.3f}{share:>12.0%}"
        )

    def ratio(slow: Sequence[str], fast: Sequence[str]) -> str:
        """Of the mean times of two groups, round by round: a machine's moods last longer than a round."""
        rounds = [
            statistics.mean(times[name][i] for name in slow)
            / statistics.mean(times[name][i] for name in fast)
            for i in range(len(times["matrices"]))
        ]
        return f"{statistics.median(rounds):.3f} ({min(rounds):.3f} to {max(rounds):.3f})"

    one, alone = f"ours, {ONE.name}", [f"ours, {name}" for name in SENSORS]
    print("\nmedian of the rounds' ratios (least to most)")
    print("ours / torchgeo MAE, samples/s:", ratio(["torchgeo MAE"], [one]))
    print("the same, predicting every hidden patch as it does:", ratio(["torchgeo MAE"], [EVERY]))
    print(
        "our encoder / DOFA, samples/s:",
        ratio(["torchgeo DOFA, all patches"], ["our encoder, all patches"]),
    )
    print("five mixed / mean of five alone, time per sample:", ratio(["ours, five mixed"], alone))
    if setting.device == "cuda":
        print(f"peak memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds of a step: the least of three, for what disturbs a step only lengthens it."""
    found = [time.perf_counter()]
    for _ in range(3):
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter())
    return min(b - a for a, b in pairwise(found))


def count(step: Callable[[], None]) -> float:
    """FLOPs of a step, matrix products only."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def ours(setting: Setting, sensors: list[Sensor]) -> Callable[[], None]:
    """A step on equally many images of each sensor."""
    budget = BUDGETS["small"]
    mae = MaskedAutoencoder(setting.model).to(setting.device)
    optimizer = Pretraining(mae, budget).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    views: list[View] = [
        (setting.pixels(len(s.bands), setting.images // len(sensors)), s.bands, s.gsd_m)
        for s in sensors
    ]
    forward = torch.compile(mae) if setting.compiled else mae
    return setting.step(
        lambda: torch.cat(forward(views, torch.Generator().manual_seed(0))).mean(), optimizer
    )


def our_encoder(setting: Setting) -> Callable[[], None]:
    encoder = MaskedAutoencoder(setting.model).encoder.to(setting.device)
    x = setting.pixels(len(ONE.bands), setting.images)
    return setting.step(
        lambda: encoder.embed(x, ONE.bands, ONE.gsd_m).mean(),
        torch.optim.AdamW(encoder.parameters(), fused=True),
    )


def torchgeo_mae(setting: Setting) -> Callable[[], None]:
    """torchgeo's task on the same architecture; its own step, optimiser and loss, without augmentation."""
    import timm
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer
    from torchgeo.tasks import MAE

    model = setting.model

    def peer(in_chans: int, num_classes: int, **_: object) -> VisionTransformer:
        return VisionTransformer(
            img_size=model.image_px, patch_size=model.patch_px, embed_dim=model.width,
            depth=model.depth, num_heads=model.heads, in_chans=in_chans, num_classes=num_classes,
        )  # fmt: skip

    peer.__name__, peer.__module__ = f"peer_{model.width}_{model.image_px}", __name__
    register_model(peer)
    assert peer.__name__ in timm.list_models(peer.__name__)
    task = MAE(
        model=peer.__name__, in_channels=len(ONE.bands), transform=nn.Identity(),
        decoder_dim=model.decoder_width, decoder_num_heads=model.decoder_heads,
        decoder_depth=model.decoder_depth, mask_ratio=model.mask_ratio, size=model.image_px,
    ).to(setting.device)  # fmt: skip
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(
        task.parameters(), lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95)
    )
    batch = {"image": setting.pixels(len(ONE.bands), setting.images)}
    return setting.step(lambda: task.training_step(batch, 0), optimizer)


def dofa(setting: Setting) -> Callable[[], None]:
    """torchgeo's DOFA encoder of the same width and depth, without its classification head."""
    from torchgeo.models import DOFA

    model = setting.model
    encoder = DOFA(
        img_size=model.image_px, patch_size=model.patch_px, embed_dim=model.width, depth=model.depth,
        num_heads=model.heads, num_classes=0,
    ).to(setting.device)  # fmt: skip
    x = setting.pixels(len(ONE.bands), setting.images)
    waves = [band.wavelength_um for band in ONE.bands if band.wavelength_um is not None]
    return setting.step(
        lambda: encoder.forward_features(x, waves).mean(),
        torch.optim.AdamW(encoder.parameters(), fused=True),
    )


def matrices(setting: Setting, side: int = 2048) -> tuple[Callable[[], None], float]:
    """A product that keeps the machine as busy as any, and its FLOPs."""
    kind = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=setting.device, dtype=kind) for _ in range(2))

    def product() -> None:
        a @ b

    return product, 2.0 * side**3


if __name__ == "__main__":
    main()
