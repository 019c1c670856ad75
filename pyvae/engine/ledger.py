"""What a step leaves behind beside its weights, all of it on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyvae.backend import device_of, takes_native, takes_triton
from pyvae.control import Control
from pyvae.engine.trace import Ring
from pyvae.ops.library import next_power_of_two
from pyvae.random import make_key


class Ledger:
    """The step counter, the rows of the trace, the first step that was not finite, and the controller's state.

    Args:
        fields: names of the values of a row, those of each latent's KL last.
        seed: of the run.
        rows: that the ring holds.
        log_every: steps between them.
        control: the controller's state before the first step, if there is one.
    """

    def __init__(
        self,
        fields: list[str],
        seed: int,
        *,
        rows: int,
        log_every: int,
        device: torch.device,
        control: Control | None = None,
    ) -> None:
        # (seed, step): the step counter lives on the device, where the noise and the schedules read it
        self.key = make_key(seed, device=device)
        self.control = control
        self.ring = Ring(fields, rows, log_every, device)
        self.row = torch.zeros(len(fields), dtype=torch.float64, device=device)
        """float64 ``[fields]``: the values of the last step."""
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        """The first step with a value that is not finite, -1 for none: nothing is learnt from it on."""
        self.bad_row = torch.zeros_like(self.row)
        """The row of that step."""
        self._one_step = torch.tensor([0, 1], dtype=torch.int64, device=device)
        self._triton = takes_triton(device)
        self._native = not self._triton and takes_native("ledger", device)

    def judge(self, values: Sequence[Tensor], kl: Tensor) -> Tensor:
        """Whether nothing may be learnt from a step: float32 ``[]``, 1 where one of its values is not finite or an
        earlier step was bad, else 0.

        Args:
            values: ``[]`` each, float32 or float64.
            kl: float32 ``[D]``.
        """
        if self._triton:
            return self._launch(values, kl, None, settle=False)
        if self._native:
            return self._call(values, kl, None, settle=False)
        return self._is_bad(values, kl).float()

    def settle(self, values: Sequence[Tensor], kl: Tensor, control: Control | None) -> Tensor:
        """Judge the step by all of its values, note them, move the controller unless it is bad, and count the step.

        Args:
            values: those of a row, without the KL of each latent.
            kl: float32 ``[D]``, that KL.
            control: the controller's state after the step.

        Returns:
            as :meth:`judge`.
        """
        if self._triton:
            return self._launch(values, kl, control, settle=True)
        if self._native:
            return self._call(values, kl, control, settle=True)
        step, bad = self.key[1], self._is_bad(values, kl)
        row = torch.cat([torch.stack([v.double() for v in values]), kl.double()])
        for old, new in zip(self.control or (), control or (), strict=True):
            old.copy_(torch.where(bad, old, new))
        first = (self.bad_step < 0) & bad
        self.bad_step.copy_(torch.where(first, step, self.bad_step))
        self.bad_row.copy_(torch.where(first, row, self.bad_row))
        self.row.copy_(row)
        self.ring.write(step, row)
        self.key.add_(self._one_step)
        return bad.float()

    def _is_bad(self, values: Sequence[Tensor], kl: Tensor) -> Tensor:
        finite = torch.isfinite(torch.stack([v.double() for v in values])).all() & torch.isfinite(kl).all()
        return (self.bad_step >= 0) | ~finite

    def _call(self, values: Sequence[Tensor], kl: Tensor, control: Control | None, *, settle: bool) -> Tensor:
        found_inf: Tensor = torch.ops.pyvae_native.ledger.default(
            values,
            kl,
            self.bad_step,
            self.key,
            self.row,
            self.bad_row,
            self.ring.rows,
            self.control or (),
            control or (),
            self.ring.every,
            settle,
        )
        return found_inf

    def _launch(
        self, values: Sequence[Tensor], kl: Tensor, control: Control | None, *, settle: bool
    ) -> Tensor:
        from pyvae.kernels.ledger import ledger_kernel

        found_inf = torch.empty((), device=kl.device)
        old, new = tuple(self.control or ()), tuple(control or ())
        with device_of(kl):
            ledger_kernel[(1,)](
                tuple(values),
                kl.contiguous(),
                found_inf,
                self.bad_step,
                self.key,
                self.row,
                self.bad_row,
                self.ring.rows,
                old,
                new,
                kl.numel(),
                self.ring.every,
                self.ring.capacity,
                VALUES=len(values),
                CONTROLS=len(new) if settle else 0,
                SETTLE=settle,
                BLOCK=next_power_of_two(kl.numel()),
                num_warps=1,
            )
        return found_inf
