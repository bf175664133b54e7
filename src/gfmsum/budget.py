"""Budget: what an arm may spend. Ledger: what it did spend. And the table of presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from gfmsum.sensors import unknown

EMBEDDINGS: Mapping[str, str] = MappingProxyType(
    {
        "dynamic": "a patch kernel generated for each band from what it measures",
        "per_sensor": "a patch kernel of its own for each band of each sensor",
    }
)
"""How pixels become tokens, and tokens pixels."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The one masked autoencoder every arm trains."""

    width: int  # of the encoder's tokens
    depth: int  # encoder blocks
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    image_px: int  # side of a pretraining image
    patch_px: int  # side of a patch
    mask_ratio: float = 0.75
    # Share of the hidden patches that a step decodes and predicts, others in each step. Half of them save a
    # tenth of a step (as in VideoMAE V2, Wang et al. 2023), and keep runs of few steps on the plateau.
    predict_ratio: float = 1.0
    code_width: int = 64  # of the band codes that generate the patch kernels
    embed: str = "dynamic"  # or per_sensor, see EMBEDDINGS

    def __post_init__(self) -> None:
        if self.image_px % self.patch_px:
            raise ValueError(
                f"image_px={self.image_px} must be a multiple of patch_px={self.patch_px}"
            )
        if self.width % (4 * self.heads) or self.decoder_width % (4 * self.decoder_heads):
            raise ValueError(
                f"width={self.width} and decoder_width={self.decoder_width} must be multiples of "
                f"4 x heads={self.heads} and 4 x decoder_heads={self.decoder_heads}"
            )
        if self.embed not in EMBEDDINGS:
            raise ValueError(unknown("embed", self.embed, EMBEDDINGS))
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} must lie between 0 and 1")
        if not 0 < self.predict_ratio <= 1:
            raise ValueError(f"predict_ratio={self.predict_ratio} must lie above 0 and not above 1")

    @property
    def patches(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    @property
    def visible(self) -> int:
        """Patches the encoder sees: the same number for every sensor."""
        return max(1, round(self.patches * (1 - self.mask_ratio)))

    @property
    def predicted(self) -> int:
        """Hidden patches that a step predicts."""
        return max(1, round((self.patches - self.visible) * self.predict_ratio))

    def flops(self, bands: int) -> float:
        """Of one image with so many bands in a training step, forward and backward, matrix products only.

        A product costs 2 FLOPs per multiplication and twice its forward in the backward pass, less where
        its input needs no gradient (pixels), more where it is computed anew (attention: 2.5 times). A
        transformer block has 12 products of width² per token, and 2 of tokens x width in attention. The
        kernels generated from the band codes are not counted: a step makes them once for all images.
        """
        pixels = bands * self.patch_px**2

        def block(tokens: int, width: int) -> float:
            return 3 * 24 * tokens * width**2 + 3.5 * 4 * tokens**2 * width

        return (
            2 * 2 * self.visible * pixels * self.width
            + self.depth * block(self.visible, self.width)
            + 3 * 2 * self.visible * self.width * self.decoder_width
            + self.decoder_depth * block(self.visible + self.predicted, self.decoder_width)
            + 3 * 2 * self.predicted * self.decoder_width * pixels
        )


class Currency(StrEnum):
    """In what arms are matched: each may spend the same amount of it."""

    SAMPLES = "samples"  # images shown, repeats included
    FLOPS = "flops"  # of forward and backward
    TOKENS = "tokens"  # that enter the encoder's trunk


REFERENCE_BANDS = 6
"""Of the images in whose FLOPs a budget is reckoned, where it does not name its FLOPs."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What an arm may spend, the same for every arm of a study."""

    name: str
    unique: int  # N: distinct locations, each given to one sensor
    seen: int  # samples shown in pretraining, repeats included
    batch: int  # samples in an optimiser step, over all sensors
    model: Architecture
    learning_rate: float = 2e-3  # peak, of AdamW
    warmup: float = 0.1  # share of what may be spent until the peak is reached
    # Last share of what a run spends, in which the rate falls to zero. Short runs lose by a plateau; at 0.2
    # a part run saves four fifths of its steps instead of a tenth.
    decay: float = 0.9
    match: str = "samples"  # the currency that ends a run: samples, flops or tokens
    flops: float = 0.0  # for match=flops; 0: what `seen` images of six bands cost
    tolerance: float = 0.02  # by which arms may differ in the matched currency
    precision: str = "fp32"  # or bf16, with weights in fp32

    def __post_init__(self) -> None:
        if self.unique < 0 or self.seen < 0 or self.batch < 1:
            raise ValueError(
                f"budget {self.name}: unique={self.unique}, seen={self.seen} must be at least 0 "
                f"and batch={self.batch} at least 1"
            )
        if 0 < self.seen < self.batch:
            raise ValueError(
                f"budget {self.name}: seen={self.seen} does not pay for one step of "
                f"batch={self.batch}; raise seen or lower batch"
            )
        if not 0 <= self.warmup < 1 or not 0 <= self.decay <= 1 or not self.learning_rate > 0:
            raise ValueError(
                f"budget {self.name}: warmup={self.warmup} must lie in [0, 1), decay={self.decay} "
                f"in [0, 1] and learning_rate={self.learning_rate} above 0"
            )
        if self.match not in list(Currency):
            raise ValueError(unknown("match", self.match, map(str, Currency)))
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(unknown("precision", self.precision, ("fp32", "bf16")))
        if not self.flops >= 0 or not 0 < self.tolerance < 1:
            raise ValueError(
                f"budget {self.name}: flops={self.flops} must be at least 0 and "
                f"tolerance={self.tolerance} between 0 and 1"
            )

    @property
    def allowed(self) -> float:
        """How much of the matched currency an arm may spend."""
        match Currency(self.match):
            case Currency.SAMPLES:
                return self.seen
            case Currency.TOKENS:
                return self.seen * self.model.visible
            case Currency.FLOPS:
                return self.flops or self.seen * self.model.flops(REFERENCE_BANDS)

    @property
    def steps(self) -> int:
        """Optimiser steps of an arm that is matched in samples."""
        # Rounded down: an arm that overspends by one step is no longer a fair comparison.
        return self.seen // self.batch

    def rate(self, spent: float, end: float = 1.0) -> float:
        """Share of the peak learning rate: a linear rise, a plateau, and a linear fall to zero.

        Args:
            spent: share of what may be spent, at a step's middle.
            end: the share at which the run ends, below 1 for an arm with a part of the budget. Until
                its fall begins, it takes the very steps of a run with the whole.
        """
        rise = spent / self.warmup if self.warmup else 1.0
        fall = (end - spent) / (end * self.decay) if self.decay else 1.0
        return max(0.0, min(1.0, rise, fall))

    def nothing(self) -> Budget:
        """The floor's budget: the same model, untrained."""
        return replace(self, unique=0, seen=0, flops=0.0)


@dataclass(slots=True)
class Ledger:
    """What a run did spend. Times, memory and energy are of its machine; everything else is exact."""

    steps: int = 0
    seen: int = 0  # samples shown, repeats included
    seen_by_sensor: dict[str, int] = field(default_factory=dict)
    unique_by_sensor: dict[str, int] = field(default_factory=dict)  # locations too: one sensor each
    encoder_tokens: int = 0
    decoder_tokens: int = 0
    flops: float = 0.0  # forward and backward, counted from the real graph
    seconds: float = 0.0
    device_seconds: float = 0.0  # of the CPU's cores or of the GPU, all devices together
    peak_bytes: int = 0  # of the process, or of the GPU's memory
    joules: float | None = None  # where the machine lets it be read
    device: str = ""

    @property
    def unique(self) -> int:
        return sum(self.unique_by_sensor.values())

    def spent(self, currency: str) -> float:
        """How much of a currency."""
        amounts = {
            Currency.SAMPLES: self.seen,
            Currency.FLOPS: self.flops,
            Currency.TOKENS: self.encoder_tokens,
        }
        return amounts[Currency(currency)]


TINY = Architecture(
    width=64, depth=4, heads=4, decoder_width=48, decoder_depth=1, decoder_heads=4,
    image_px=32, patch_px=4,
)  # fmt: skip
_MINI = replace(TINY, width=96, decoder_width=64)

_SMALL = Architecture(
    width=384, depth=12, heads=6, decoder_width=192, decoder_depth=4, decoder_heads=6,
    image_px=96, patch_px=16, predict_ratio=0.5,
)  # fmt: skip
_BASE = Architecture(
    width=768, depth=12, heads=12, decoder_width=512, decoder_depth=8, decoder_heads=16,
    image_px=224, patch_px=16, predict_ratio=0.5, code_width=128,
)  # fmt: skip

BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        # Narrow models: at a given number of FLOPs, half the width and three times the samples are worth 2 to
        # 5 points. 20 and 40 hold equal mixes of one, two, four and five sensors exactly in every step.
        "micro": Budget("micro", unique=240, seen=1_200, batch=20, model=TINY),
        "tiny": Budget(
            "tiny", unique=4_080, seen=12_000, batch=40, model=TINY, learning_rate=3e-3
        ),
        "mini": Budget("mini", unique=40_800, seen=360_000, batch=40, model=_MINI),
        "small": Budget(
            "small", unique=120_000, seen=2_400_000, batch=240, model=_SMALL, learning_rate=1e-3
        ),
        "base": Budget(
            "base", unique=1_200_000, seen=60_000_000, batch=960, model=_BASE,
            learning_rate=6e-4, warmup=0.05, precision="bf16",
        ),
        "large": Budget(
            "large", unique=12_000_000, seen=240_000_000, batch=1_920,
            model=replace(_BASE, width=1024, depth=24, heads=16),
            learning_rate=6e-4, warmup=0.05, precision="bf16",
        ),
    }
)  # fmt: skip
"""Presets, every field of which can be overridden; ``python -m gfmsum.budget`` prints them as a table.

``micro`` proves that the path works, in seconds per run; ``tiny`` fits a coffee break and ``mini`` a laptop's
hours; the others are ViT-S, ViT-B and ViT-L of 16-pixel patches for one GPU and for many.
"""

MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "micro": "6 s on a core of an AMD EPYC",
        "tiny": "35 s on a core of an AMD EPYC",
        "mini": "23 min on a core of an AMD EPYC",
    }
)
GPU_FLOPS = 0.4 * 989e12
"""Of an H100 in bf16: the published peak without sparsity, of which well-kept training reaches 40 %."""


def table() -> str:
    """The presets: model, image, samples, steps, FLOPs of a run and the time it is expected to take."""
    rows: list[tuple[str, ...]] = [
        (
            "budget",
            "model",
            "image",
            "unique",
            "seen",
            "steps",
            "batch",
            "FLOPs",
            "a run takes about",
        )
    ]
    for name, budget in BUDGETS.items():
        model = budget.model
        flops = budget.seen * model.flops(REFERENCE_BANDS)
        seconds = flops / GPU_FLOPS
        time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 3600:.2g} h"
        reckoned = f"{time} on an H100 (reckoned at 40 % of its peak)"
        rows.append(
            (
                name,
                f"{model.width} x {model.depth}, patch {model.patch_px}",
                f"{model.image_px} px",
                *(
                    f"{number:,}"
                    for number in (budget.unique, budget.seen, budget.steps, budget.batch)
                ),
                f"{flops:.1e}",
                MEASURED.get(name, reckoned),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    note = f"FLOPs: forward and backward, images of {REFERENCE_BANDS} bands, matrix products only."
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    print(table())
