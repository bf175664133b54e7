"""Attention with a bias of logits: which kernels take it, how fast they are, and two variants of the model.

A bias of distance (:func:`gfmsum.model.blocks.nearness`) rules FlashAttention out. What must not happen is that
``scaled_dot_product_attention`` falls back on its unfused form, which writes every logit to memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from results import Sink
from timing import seconds_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gfmsum.budget import Architecture
from gfmsum.model import encoder, mae
from gfmsum.model.blocks import run_blocks

ROWS = 16  # elements that rows of a bias are padded to, so that no kernel call has to copy it
BIASES = ("as it is", "none", "aligned")
BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "unfused": SDPBackend.MATH,
}


def without_bias(stack: nn.Sequential, tokens: Tensor, bias: Tensor, recompute: bool) -> Tensor:
    """The blocks with plain attention: what the bias costs is the difference."""
    for block in stack:
        tokens = block(tokens)
    return tokens


def with_aligned_bias(
    stack: nn.Sequential, tokens: Tensor, bias: Tensor, recompute: bool
) -> Tensor:
    """The blocks with a bias that is cast and laid out once, and not in every block anew."""
    device = tokens.device.type
    mixed = torch.is_autocast_enabled(device)
    bias = aligned(bias.to(torch.get_autocast_dtype(device) if mixed else tokens.dtype))
    for block in stack:
        tokens = block(tokens, bias)
    return tokens


def aligned(bias: Tensor) -> Tensor:
    """The same values in rows of a multiple of 16 elements."""
    keys = bias.shape[-1]
    return F.pad(bias, (0, -keys % ROWS))[..., :keys]


@contextmanager
def bias_as(which: str) -> Iterator[None]:
    """Give the model's blocks no bias, or an aligned one, for a while."""
    if which not in BIASES:
        raise ValueError(f"bias={which} must be one of {', '.join(BIASES)}")
    chosen = {"as it is": run_blocks, "none": without_bias, "aligned": with_aligned_bias}[which]
    try:
        for module in (encoder, mae):
            module.run_blocks = chosen  # type: ignore[attr-defined]
        yield
    finally:
        for module in (encoder, mae):
            module.run_blocks = run_blocks  # type: ignore[attr-defined]


def only_fused(device: torch.device) -> bool:
    """Forbid the unfused form for the rest of the process, if the model's attention can do without it.

    Returns:
        Whether it can: if so, every attention that runs from here on is a fused kernel, or an error.
    """
    if device.type != "cuda":
        return False
    torch.backends.cuda.enable_math_sdp(False)
    try:
        for dtype in (torch.bfloat16, torch.float32):
            q, k, v, bias = _inputs(8, 6, 23, 32, dtype, device)
            attend(q, k, v, bias).sum().backward()  # type: ignore[no-untyped-call]
            q, k, v, _ = _inputs(1, 4, 3, 16, dtype, device)  # of band codes, which have no bias
            attend(q, k, v, None).sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        torch.backends.cuda.enable_math_sdp(True)
        return False
    return True


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention as timm's blocks call it."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _inputs(
    batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(batch, heads, tokens, width, generator=draws, device=device, dtype=dtype)
        for _ in range(3)
    )
    bias = -torch.rand(batch, heads, tokens, tokens, generator=draws, device=device).to(dtype)
    bias[..., -(-tokens // 2) :] = -torch.inf  # as the decoder's hidden patches
    for part in (q, k, v):
        part.requires_grad_()
    return q, k, v, bias


def shapes(name: str, model: Architecture, batch: int) -> dict[str, tuple[int, int, int, int]]:
    """Images, heads, tokens and width of a head, of a model's encoder and decoder."""
    seen, width = model.visible, model.width // model.heads
    tokens, narrow = seen + model.predicted, model.decoder_width // model.decoder_heads
    return {
        f"{name} encoder": (batch, model.heads, seen, width),
        f"{name} decoder": (batch, model.decoder_heads, tokens, narrow),
    }


def measure_attention(
    name: str, model: Architecture, batch: int, device: torch.device, sink: Sink
) -> None:
    """Time attention forward and backward at a model's shapes in bf16, by kernel and bias; one row each."""
    for part, shape in shapes(name, model, batch).items():
        q, k, v, bias = _inputs(*shape, torch.bfloat16, device)
        for said, given in (("none", None), ("plain", bias), ("aligned", aligned(bias))):
            for backend, chosen in BACKENDS.items():
                row: dict[str, Any] = dict(
                    zip(("images", "heads", "tokens", "width"), shape, strict=True)
                )
                row = {"part": part, **row, "bias": said, "kernel": backend}
                try:
                    row |= _timed(q, k, v, given, chosen)
                except RuntimeError as error:  # this kernel does not take such inputs
                    row["error"] = str(error).splitlines()[0][:160]
                sink.add("attention", row)


def _timed(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, chosen: SDPBackend | None
) -> dict[str, Any]:
    before = torch.backends.cuda.math_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_math_sdp(True)

    def once() -> None:
        out = attend(q, k, v, bias)
        torch.autograd.grad(out, (q, k, v), out.detach())

    try:
        if chosen is None:
            return {"us": 1e6 * seconds_of(once, q.device), "kernels": _kernels(once, q.device)}
        with sdpa_kernel(chosen):
            return {"us": 1e6 * seconds_of(once, q.device)}
    finally:
        torch.backends.cuda.enable_math_sdp(before)


def _kernels(once: Any, device: torch.device) -> str:
    """Names of the kernels that attention starts on a GPU, the longest-running first."""
    if device.type != "cuda":
        return ""
    try:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            once()
            torch.cuda.synchronize()
        events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
        return " | ".join(event.key[:60] for event in events[:4])
    except Exception as error:  # a machine that lets no profiler run
        return f"not known: {type(error).__name__}"
