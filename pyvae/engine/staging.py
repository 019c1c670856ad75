"""Windows of steps on their way from the host to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Staging:
    """Two windows of rows on the device: steps read one while the next is copied into the other.

    A GPU copies on a stream of its own, each window once the steps that read the last but one are done. The row of a
    step is at ``step % (2 * window)`` of a tensor that stays where it is: captured steps know it by its address.
    """

    def __init__(self, device: torch.device, window: int) -> None:
        self._device = device
        self._window = window
        self._rows: list[Tensor] = []
        self._copies = _Copies(device) if device.type == "cuda" else None

    def pin(self, base: int, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows ``[window, ...]`` of the steps from ``base`` on, where :meth:`put` can leave them to the device.

        Waits for the copy of the last window but one, whose place they take. Another thread may call it, one window
        ahead of :meth:`put`.
        """
        return list(rows) if self._copies is None else self._copies.pin(self._turn(base), rows)

    def put(self, base: int, pinned: Sequence[Tensor]) -> None:
        """Copy what :meth:`pin` gave. Steps called from now on find it; those called before still find theirs."""
        if not self._rows:
            self._rows = [
                torch.empty((2 * self._window, *x.shape[1:]), dtype=x.dtype, device=self._device)
                for x in pinned
            ]
        turn = self._turn(base)
        halves = [rows.view(2, self._window, *rows.shape[1:])[turn] for rows in self._rows]
        if self._copies is None:
            for half, rows in zip(halves, pinned, strict=True):
                half.copy_(rows)
        else:
            self._copies.start(turn, halves, pinned)

    def at(self, step: Tensor) -> list[Tensor]:
        """The row of each tensor that belongs to a step int64 ``[]`` on the device."""
        place = (step % (2 * self._window)).view(1)
        return [rows.index_select(0, place).squeeze(0) for rows in self._rows]

    def _turn(self, base: int) -> int:
        return base // self._window % 2


class _Copies:
    """Copies into two halves by turns, beside the current stream and in order with it.

    Every copy is waited for by the current stream, so that it may free the halves as if it had written them itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned: list[list[Tensor]] = [[], []]
        # of each half: its last copy, and the last step that may read it
        self._copied = [torch.cuda.Event(), torch.cuda.Event()]
        self._read: list[torch.cuda.Event] = []
        self._turn = 0

    def pin(self, turn: int, rows: Sequence[Tensor]) -> list[Tensor]:
        self._copied[turn].synchronize()
        if not self._pinned[turn]:
            self._pinned[turn] = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in rows]
        return [pinned.copy_(x) for pinned, x in zip(self._pinned[turn], rows, strict=True)]

    def start(self, turn: int, halves: Sequence[Tensor], pinned: Sequence[Tensor]) -> None:
        steps = torch.cuda.current_stream(self._device)
        if not self._read:
            # the halves are new to this stream: what had their memory before may still run
            self._read = [steps.record_event()] * 2
        self._read[self._turn] = steps.record_event()
        self._stream.wait_event(self._read[turn])
        with torch.cuda.stream(self._stream):
            for half, rows in zip(halves, pinned, strict=True):
                half.copy_(rows, non_blocking=True)
        self._copied[turn].record(self._stream)
        steps.wait_event(self._copied[turn])
        self._turn = turn
