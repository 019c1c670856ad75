"""Members of an ensemble on one device: weights and state, a row for each, and the launches of their steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyvae.backend import device_of
from pyvae.control import Control
from pyvae.engine.batches import BatchOrder
from pyvae.engine.fused.boxes import Descriptor
from pyvae.engine.fused.kernels import kernel_of
from pyvae.engine.fused.launch import DTYPES, WINDOW, Argument, Launch, Operands, Pointer, Size, Stride
from pyvae.engine.fused.layout import padded
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.weighting import initial_control, initial_weight, settings_of
from pyvae.engine.ledger import Ledger
from pyvae.objectives import Objective

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_HALF = WINDOW // 2
DIVERGED = 1
"""Of a member's flags: a value was not finite. Nothing is learnt where any flag is set."""
FROZEN = 2
"""It has ended, while others go on."""


class Member(NamedTuple):
    """What is its own of each member."""

    seed: int
    objective: Objective
    lr: float
    order: BatchOrder
    """Of its images, on the device."""


class Members:
    """Independent models side by side, which share a plan, the data and the length of a step.

    A member computes what it would compute alone, bit for bit, whoever is beside it.

    Args:
        plan: of their network.
        members: one or more, of one kind of objective with one set of options.
        store: bits int64 ``[N, 64]`` or bytes uint8 ``[N, C * 4096]`` of the data, on the device.
        fields: names of the values of a row.
        rows: of the ring.
        log_every: steps between them.
    """

    def __init__(
        self,
        plan: Plan,
        members: Sequence[Member],
        store: Tensor,
        *,
        fields: list[str],
        rows: int,
        log_every: int,
    ) -> None:
        self.plan = plan
        self.members = members
        self.device = device = store.device
        count, buffers = len(members), plan.buffers
        self.buffers: dict[str, Tensor] = {
            name: torch.zeros((count, size), dtype=dtype, device=device)
            for name, (size, dtype) in buffers.items()
        }
        self.buffers["store"] = store.view(1, -1)
        for name, table in (("tiles", plan.weight_tiles), ("blocks", plan.blocks)):
            self.buffers[name] = torch.tensor(table, dtype=torch.int32, device=device).view(1, -1)
        self.buffers["settings"].copy_(settings_of([m.objective for m in members]))
        self.buffers["control"].copy_(initial_control([m.objective for m in members]))
        weights = torch.tensor([[initial_weight(m.objective)] for m in members], dtype=torch.float64)
        self.buffers["kl_weight"].copy_(weights)
        # what no kernel writes where it is constant
        self.buffers["terms"][:, 1:2].copy_(weights)
        rates = [[m.lr, *(1 - b for b in _BETAS), _EPSILON, *(log(b) for b in _BETAS), 0, 0] for m in members]
        self.buffers["hyper"].copy_(torch.tensor(rates, dtype=torch.float64))
        self.ledgers = [self._ledger(m, fields, rows, log_every) for m in members]
        self._stack()
        self._sizes = {"every": log_every, "capacity": rows}
        self._ahead_of = {"ahead": [-1, -1]}
        self._orders = {"ahead": [m.order for m in members]}
        self._launches: dict[int, tuple[Any, ...]] = {}
        self._side = torch.cuda.Stream(device) if plan.side_branch and device.type == "cuda" else None
        self._batch_is_ready = False
        self._steps = [0] * count

    def _ledger(self, member: Member, fields: list[str], rows: int, log_every: int) -> Ledger:
        control = None
        if self.plan.weighting.kind == "control":
            control = Control(*torch.zeros(len(Control._fields), dtype=torch.float64, device=self.device))
        return Ledger(
            fields, member.seed, rows=rows, log_every=log_every, device=self.device, control=control
        )

    def _stack(self) -> None:
        """Ledgers look at what kernels see as one buffer."""
        for name in ("key", "row", "bad_row", "bad_step"):
            self.buffers[name] = torch.stack([getattr(ledger, name) for ledger in self.ledgers])
        self.buffers["bad_step"] = self.buffers["bad_step"].view(-1, 1)
        self.buffers["ring"] = torch.stack([ledger.ring.rows.flatten() for ledger in self.ledgers])
        for n, ledger in enumerate(self.ledgers):
            for name in ("key", "row", "bad_row"):
                setattr(ledger, name, self.buffers[name][n])
            ledger.bad_step = self.buffers["bad_step"][n, 0]
            ledger.ring.rows = self.buffers["ring"][n].view_as(ledger.ring.rows)
            if ledger.control is not None:
                ledger.control = Control(*self.buffers["control"][n].unbind())

    # weights and moments by their names in torch

    def tensors(self, member: int) -> dict[str, Tensor]:
        """``<parameter>`` and ``optimizer.<parameter>.<moment>`` of a member, as torch's modules and Adam have them."""
        layout = self.plan.layout
        found = layout.tensors(self.buffers["master"][member])
        step = self.buffers["key"][member, 1].float()
        for moment in ("exp_avg", "exp_avg_sq"):
            for name, value in layout.tensors(self.buffers[moment][member]).items():
                found[f"optimizer.{name}.{moment}"] = value
        for name in layout.parameters:
            found[f"optimizer.{name}.step"] = step.clone()
        return found

    def load(self, member: int, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``; without moments, to the beginning."""
        layout = self.plan.layout
        row = layout.row(tensors)
        self.buffers["master"][member].copy_(row)
        self.buffers["weights"][member].copy_(rounded(row, self.plan.operands))
        for moment in ("exp_avg", "exp_avg_sq"):
            prefix = [f"optimizer.{name}.{moment}" for name in layout.parameters]
            held = {name: tensors.get(key) for name, key in zip(layout.parameters, prefix, strict=True)}
            known = {name: value for name, value in held.items() if value is not None}
            self.buffers[moment][member].copy_(layout.row(known) if known else torch.zeros(layout.width))
        self.buffers["key"][member, 1] = step
        self.buffers["flags"][member] = 0
        self.buffers["found_inf"][member] = 0
        self.ledgers[member].bad_step.fill_(-1)
        self._steps[member] = step
        self._batch_is_ready = False

    def freeze(self, member: int) -> None:
        """Leave this member as it is: its weights, row, trace, controller and step counter stay while others go on."""
        self.buffers["flags"][member] |= FROZEN

    # steps

    def add_batches(self, ahead: str, orders: Sequence[BatchOrder]) -> None:
        """Other batches of each member, whose order lies in the buffer ``ahead``."""
        self._ahead_of[ahead] = [-1, -1]
        self._orders[ahead] = list(orders)

    def prepare(self, step: int) -> None:
        """See to it that the device knows the images of ``step`` and of a window of steps behind it, and, before the
        first step, that its batch is there.

        Raises:
            ValueError: members have been loaded at different steps.
        """
        base = step - step % _HALF
        for ahead, held in self._ahead_of.items():
            ring = self.buffers[ahead].view(len(self.members), WINDOW, -1)
            for first in (base, base + _HALF):
                half = first // _HALF % 2
                if held[half] != first:
                    for row, order in zip(ring, self._orders[ahead], strict=True):
                        row[half * _HALF : (half + 1) * _HALF].copy_(order.draw(first, _HALF))
                    held[half] = first
        if not self._batch_is_ready:
            if len(set(self._steps)) > 1:
                raise ValueError(f"members stand at steps {self._steps}: load all of them at one")
            self.launch(self.plan.first)
            self._batch_is_ready = True

    def launch(self, launches: Sequence[Launch]) -> None:
        """Run launches of the plan, one after another but for those of a branch."""
        with device_of(self.buffers["key"]):
            branched = False
            for launch in launches:
                if launch.branch:
                    branched = True
                    with self._beside():
                        self._run(launch)
                    continue
                if branched and launch.joins:
                    self._join()
                self._run(launch)

    def call_of(self, launch: Launch) -> tuple[Any, list[Any], dict[str, Any]]:
        """The kernel of a launch, its arguments, and its constants and options by name."""
        options: dict[str, Any] = {"num_warps": launch.warps, "num_stages": launch.stages}
        if not launch.fused_multiply_add:
            options["enable_fp_fusion"] = False
        if dict(launch.constants)["PDL"]:
            options["launch_pdl"] = True
        arguments = [self._argument(x) for x in launch.arguments]
        return kernel_of(*launch.kernel), arguments, dict(launch.constants) | options

    def _run(self, launch: Launch) -> None:
        known = self._launches.get(id(launch))
        if known is None:
            kernel, arguments, named = self.call_of(launch)
            known = kernel[(launch.programs, len(self.members))], arguments, named, launch
            self._launches[id(launch)] = known
        run, arguments, named, _ = known
        run(*arguments, **named)

    def _argument(self, x: Argument) -> Any:
        if isinstance(x, Pointer):
            return self.buffers[x.buffer][0, x.offset :]
        if isinstance(x, Descriptor):
            from triton.tools.tensor_descriptor import TensorDescriptor

            row = self.buffers[x.buffer]
            shape, strides = [len(row), *x.shape], [row.shape[1], *x.strides]
            return TensorDescriptor(row[0, x.offset :], shape, strides, [1, *x.block])
        if isinstance(x, Stride):
            return self.buffers[x.buffer].shape[1]
        if isinstance(x, Size):
            return self._sizes[x.of]
        return x

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield

    def _join(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)

    # what others than kernels read and write between latents and their backward

    def latents(self, member: int, buffer: str = "stats") -> tuple[Tensor, Tensor, Tensor]:
        """mu, logvar and z float32 ``[B, D]`` of the step, where they lie."""
        p = padded(self.plan.network.latents)
        lie = self.buffers[buffer][member].view(3, self.plan.images, p)[..., : self.plan.network.latents]
        return lie[0], lie[1], lie[2]


def rounded(x: Tensor, operands: Operands) -> Tensor:
    """float32 ``x`` as the kernels round it to an operand."""
    if operands == "tf32":
        bits = x.contiguous().view(torch.int32)
        # the NaN that GPUs make, 0x7FFFFFFF, would become -0
        return torch.where(x == x, ((bits + 0x1000) & -0x2000).view(torch.float32), x)
    return x.to(DTYPES[operands])
