"""Budget: what an arm may spend. Ledger: what it did spend. And the table of presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType


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
    code_width: int = 64  # of the band codes that generate the patch kernels

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
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} must lie between 0 and 1")

    @property
    def patches(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    @property
    def visible(self) -> int:
        """Patches the encoder sees: the same number for every sensor."""
        return max(1, round(self.patches * (1 - self.mask_ratio)))

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
            + self.decoder_depth * block(self.patches, self.decoder_width)
            + 3 * 2 * self.patches * self.decoder_width * pixels
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What an arm may spend, the same for every arm of a study."""

    name: str
    unique: int  # N: distinct locations, each given to one sensor
    seen: int  # samples shown in pretraining, repeats included
    batch: int  # samples in an optimiser step, over all sensors
    model: Architecture
    learning_rate: float = 2e-3  # peak, of AdamW
    warmup: float = 0.1  # share of the samples seen

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
        if not 0 <= self.warmup < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"budget {self.name}: warmup={self.warmup} must lie in [0, 1) and "
                f"learning_rate={self.learning_rate} above 0"
            )

    @property
    def steps(self) -> int:
        # Rounded down: an arm that overspends by one step is no longer a fair comparison.
        return self.seen // self.batch

    def nothing(self) -> Budget:
        """The floor's budget: the same model, untrained."""
        return replace(self, unique=0, seen=0)


@dataclass(slots=True)
class Ledger:
    """What a run did spend. Times are of this machine; everything else is exact."""

    steps: int = 0
    seen: int = 0  # samples shown, repeats included
    seen_by_sensor: dict[str, int] = field(default_factory=dict)
    unique_by_sensor: dict[str, int] = field(default_factory=dict)
    encoder_tokens: int = 0
    decoder_tokens: int = 0
    flops: float = 0.0  # forward and backward, counted from the real graph
    seconds: float = 0.0
    device: str = ""

    @property
    def unique(self) -> int:
        return sum(self.unique_by_sensor.values())


TINY = Architecture(
    width=128, depth=4, heads=4, decoder_width=64, decoder_depth=1, decoder_heads=2,
    image_px=32, patch_px=4,
)  # fmt: skip

BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        # Small batches: at a given number of samples, more steps leave the plateau sooner and in every
        # replicate. 20 holds equal mixes of one, two, four and five sensors exactly in every step.
        "micro": Budget("micro", unique=240, seen=1_200, batch=20, model=TINY),
        "tiny": Budget("tiny", unique=4_080, seen=12_000, batch=20, model=TINY),
    }
)
"""Presets, every field of which can be overridden.

``micro`` proves that the path works, in seconds per run; ``tiny`` fits a laptop's lunch break.
"""
