"""A whole training step that never waits for the host, as a CUDA graph where there is CUDA.

Images are gathered and normalised, hidden, embedded, predicted and judged, gradients clipped and weights
updated, all from tables on the device that say for each of the next steps which images, poses, masks and
learning rate it has. So nothing is left for the host but to fill the next table while the device works. It is
the step of :class:`gfmsum.pretrain.Pretraining`, from the same draws.

Shapes: t steps of a table, b images of a step, v visible and m hidden patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from resident import ResidentBatches, take
from torch import Tensor

from gfmsum.budget import Budget
from gfmsum.data.plan import stream
from gfmsum.model.mae import MaskedAutoencoder, View
from gfmsum.pretrain import Pretraining, initialised

WARM = 3  # steps before a graph is recorded: they compile, choose kernels and make the optimiser's state
COMPILED = ("no", "blocks", "whole")


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is carried out."""

    precision: str = "bf16"  # or fp32, or tf32: fp32 with products in TensorFloat-32
    compiled: str = "no"  # or blocks, the transformer's; or whole, the model
    graph: bool = True  # recorded and replayed, where there is CUDA

    def __post_init__(self) -> None:
        if self.compiled not in COMPILED:
            raise ValueError(f"compiled={self.compiled} must be one of {', '.join(COMPILED)}")

    def __str__(self) -> str:
        compiled = "" if self.compiled == "no" else f", {self.compiled} compiled"
        return f"{self.precision}{compiled}{', graph' if self.graph else ''}"


class GivenMasks(MaskedAutoencoder):
    """The model with masks that were drawn before: drawing needs the host."""

    given: tuple[Tensor, Tensor]

    def choose(self, images: int, patches: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.given


@dataclass(frozen=True, slots=True)
class Table:
    """What the next steps need to know."""

    rows: dict[str, Tensor]  # int64 (t, b) for each sensor
    poses: dict[str, Tensor]  # int64 (t, b) for each sensor
    visible: Tensor  # int64 (t, b, v)
    hidden: Tensor  # int64 (t, b, m)
    rates: Tensor  # float32 (t,)

    def __len__(self) -> int:
        return len(self.rates)

    @classmethod
    def of(
        cls, mae: MaskedAutoencoder, budget: Budget, batches: ResidentBatches, steps: range
    ) -> Table:
        """Of some steps, drawn as Pretraining and the data module draw."""
        picked = [batches.picks(step) for step in steps]
        masks = [
            MaskedAutoencoder.choose(
                mae, budget.batch, mae.model.patches, _mask_draws(batches.seed, step)
            )
            for step in steps
        ]
        spent = [(step * budget.batch + budget.batch / 2) / budget.allowed for step in steps]
        rates = [budget.rate(share) * budget.learning_rate for share in spent]

        def column(name: str, which: int) -> Tensor:
            return torch.stack([torch.from_numpy(picks[name][which]) for picks in picked])

        return cls(
            {name: column(name, 0) for name in picked[0]},
            {name: column(name, 1) for name in picked[0]},
            torch.stack([visible for visible, _ in masks]),
            torch.stack([hidden for _, hidden in masks]),
            torch.tensor(rates, dtype=torch.float32),
        )

    def tensors(self) -> list[Tensor]:
        return [*self.rows.values(), *self.poses.values(), self.visible, self.hidden, self.rates]

    def to(self, device: torch.device) -> Table:
        """A copy on a device."""
        rows, poses = (
            {name: part.to(device, copy=True) for name, part in parts.items()}
            for parts in (self.rows, self.poses)
        )
        rest = (part.to(device, copy=True) for part in (self.visible, self.hidden, self.rates))
        return Table(rows, poses, *rest)

    def fill(self, other: Table) -> None:
        """Take over another table's first rows, without waiting for the device."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            held = theirs.pin_memory() if mine.is_cuda else theirs
            mine[: len(held)].copy_(held, non_blocking=True)


def _mask_draws(seed: Sequence[int], step: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(stream(*seed, "mask", step).integers(2**62)))


class Loop:
    """A model with what trains it: steps one after another from a table.

    Args:
        budget: model, batch, rates.
        batches: which images, from where.
        way: how.
        length: steps of a table.
    """

    def __init__(self, budget: Budget, batches: ResidentBatches, way: Way, length: int) -> None:
        self.budget, self.batches, self.way, self.length = budget, batches, way, length
        self.device = batches.poses.device
        torch.set_float32_matmul_precision("high" if way.precision == "tf32" else "highest")
        seed, replicate = batches.seed
        mae = GivenMasks(budget.model)
        mae.load_state_dict(initialised(budget, seed, replicate).state_dict())
        self.mae = mae.to(self.device)
        self.module = Pretraining(self.mae, budget, seed=(seed, replicate))
        self.rate = torch.zeros((), device=self.device)
        optimizer = self.module.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:  # the rate on the device too, so that a graph reads it
            group |= {
                "lr": self.rate,
                "fused": True,
                "foreach": False,
                "capturable": self.device.type == "cuda",
            }
        self.optimizer = optimizer
        self.done = 0  # steps of the run
        self._forward, self._take = self._compiled()
        self._table: Table | None = None
        self._held = 0  # steps in the table
        self._at = torch.zeros(1, dtype=torch.int64, device=self.device)  # next step in the table
        self._used = 0  # the same, known to the host
        self._losses = torch.zeros(length, len(batches.on_device), device=self.device)
        self._warmed = 0  # steps before the graph
        self._graph: torch.cuda.CUDAGraph | None = None
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream() if cuda else None  # type: ignore[no-untyped-call]

    def _compiled(self) -> tuple[Callable[..., list[Tensor]], Callable[..., Tensor]]:
        """The model and the gathering of its images, compiled as the way asks."""
        if self.way.compiled == "no":
            return self.mae, take
        if self.way.compiled == "blocks":
            # One block's code serves all of a width.
            for block in (*self.mae.encoder.blocks, *self.mae.decoder):
                block.compile(dynamic=False)
            return self.mae, torch.compile(take, dynamic=False)
        return torch.compile(self.mae, dynamic=False), torch.compile(take, dynamic=False)

    def load(self, table: Table) -> None:
        """Put the next steps in place; the device need not have ended those before."""
        if len(table) > self.length:
            raise ValueError(f"a table of {len(table)} steps does not fit into {self.length}")
        if self._table is None:
            self._table = _room(table, self.length).to(self.device)
        self._table.fill(table)
        self._held = len(table)
        self.rewind()

    def rewind(self) -> None:
        """Start at the table's first step again."""
        self._at.zero_()
        self._used = 0

    def go(self, steps: int) -> None:
        """Take some steps of the table, without waiting for them."""
        if self._used + steps > self._held:
            raise ValueError(f"{steps} steps asked for, {self._held - self._used} left; load more")
        for _ in range(steps):
            self._one()
        self._used += steps
        self.done += steps

    def _one(self) -> None:
        if self._stream is None or not self.way.graph:
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._warmed < WARM:
            self._on_stream()
        else:
            self._record()
            assert self._graph is not None
            self._graph.replay()

    def _on_stream(self) -> None:
        """A step on the stream that the graph will be recorded on."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._step()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._warmed += 1

    def _record(self) -> None:
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._step()
        self._graph = graph

    def _step(self) -> None:
        """What happens in a step; nothing of it waits for the device, or brings anything from the host."""
        table, at = self._table, self._at
        assert table is not None
        views: list[View] = []
        for name, one in self.batches.on_device.items():
            rows, pose = (part[name].index_select(0, at)[0] for part in (table.rows, table.poses))
            store = one.store
            pixels = self._take(store.numbers, rows, pose, one.scale, one.shift, self.batches.poses)
            kind = store.kind
            square = torch.unflatten(pixels, -1, (store.side, store.side))
            views.append((square, kind.bands, kind.gsd_m))
        self.mae.given = (table.visible.index_select(0, at)[0], table.hidden.index_select(0, at)[0])
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = self.way.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            errors = self._forward(views, _UNUSED)
            loss = torch.cat(errors).sum() / self.budget.batch
        loss.backward()  # type: ignore[no-untyped-call]
        self.module.on_before_optimizer_step(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.mae.parameters(), 1.0)
        self.rate.copy_(table.rates.index_select(0, at)[0])
        self.optimizer.step()
        means = torch.stack([error.detach().float().mean() for error in errors])
        self._losses.index_copy_(0, at, means[None])
        at.add_(1)

    def losses(self) -> Tensor:
        """Loss of each step of the table so far, by sensor: float32 (t, sensors), on the host; waits."""
        return self._losses[: self._used].to("cpu", copy=True)


_UNUSED = torch.Generator()  # masks are given


def _room(table: Table, length: int) -> Table:
    """A table of ``length`` steps like this one, of zeros."""

    def zeros(part: Tensor) -> Tensor:
        return part.new_zeros(length, *part.shape[1:])

    return Table(
        {name: zeros(part) for name, part in table.rows.items()},
        {name: zeros(part) for name, part in table.poses.items()},
        zeros(table.visible),
        zeros(table.hidden),
        zeros(table.rates),
    )
