"""Step after step of some training, each or several at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyvae.base.checks import value_checks
from pyvae.base.source import place_of, told
from pyvae.control import Control
from pyvae.engine.capture import Capture
from pyvae.engine.ledger import Ledger
from pyvae.engine.own_random import OwnRandom
from pyvae.engine.recipe import Recipe
from pyvae.errors import SourceError, reason

BURST = 16
"""Steps in a captured graph; it divides the windows of pyvae.engine.batches."""
_WARM_UP = 3
RING_ROWS = 4096


class Part(NamedTuple):
    """What is its own of each run that shares the steps of a stepper."""

    recipe: Recipe
    ledger: Ledger
    tensors: Callable[[], dict[str, Tensor]]
    """See :meth:`Stepper.tensors`."""
    restore: Callable[[int, dict[str, Tensor]], None]
    """See :meth:`Stepper.restore`."""
    freeze: Callable[[], None] | None = None
    """Leave the run as it is while others go on; None where there are no others."""


class Stepper(ABC):
    """What every kind of training has in common: the ledger, and steps that run eagerly or as a graph.

    Args:
        fields: names of the values of a row, of which there is one for each latent at the end.
        log_every: steps between rows of the trace.
        capture: on a GPU, ``BURST`` steps are one graph.
        control: the controller's state before the first step, if there is one.
        ledger: where it is not of the stepper's own making.
    """

    net: nn.Module | None = None
    """The networks, where they are torch's modules."""
    compiled = False
    """Whether they go through torch.compile."""

    def __init__(
        self,
        recipe: Recipe,
        fields: list[str],
        device: torch.device,
        *,
        log_every: int,
        capture: bool,
        control: Control | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.fields = fields
        self.step = 0
        self.ledger = ledger or Ledger(
            fields, recipe.seed, rows=RING_ROWS, log_every=log_every, device=device, control=control
        )
        self.key = self.ledger.key
        # torch's Adagrad counts its steps on the host
        self._capturable = (
            capture
            and device.type == "cuda"
            and recipe.optimizer == "adam"
            and not value_checks()  # which read the device
        )
        self._capture: Capture | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._uncaptured_steps = 0
        self._own = OwnRandom(recipe.seed, device) if recipe.sources else None

    @property
    def parts(self) -> list[Part]:
        """What is its own of each run that shares its steps: of one, all of it."""
        return [Part(self.recipe, self.ledger, self.tensors, self.restore)]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""

    @abstractmethod
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""

    @abstractmethod
    def _prepare(self, step: int) -> None:
        """See to it that the device can find the batches of ``step`` and of those captured with it."""

    @abstractmethod
    def _step(self) -> None:
        """One step; no code in it may depend on a value of the device."""

    def advance(self, count: int = 1) -> None:
        """Make ``count`` steps: on a GPU, hand them over to it, without waiting for any."""
        stop = self.step + count
        with self._own_code(), self._own_stream():
            while self.step < stop:
                self._prepare(self.step)
                if self._capturable and self.step % BURST == 0 and stop - self.step >= BURST and self._warm():
                    if self._capture is None:
                        self._capture = self._captured()
                    self._capture.replay()
                    self.step += BURST
                else:
                    self._step()
                    self._uncaptured_steps += 1
                    self.step += 1

    def _captured(self) -> Capture:
        try:
            return Capture(self._step, BURST)
        except RuntimeError as error:
            if not self.recipe.sources:
                raise
            raise SourceError(
                f"{self._place_of(error)}: steps cannot be one CUDA graph ({reason(error)}): nothing in them may read "
                "a value of the device, as .item(), .tolist(), print and if do; or give --no-capture"
            ) from error

    def _place_of(self, error: BaseException) -> str:
        sources = self.recipe.sources
        return place_of(sources, error) or " and ".join(map(str, sources))

    @contextmanager
    def _own_code(self) -> Iterator[None]:
        """Code of a user's own draws from generators of the run's own, and what goes wrong in it is one line."""
        if self._own is None:
            yield
            return
        try:
            with told(*self.recipe.sources, doing="in training", anywhere=False), self._own.running():
                yield
        except torch._dynamo.exc.TorchDynamoException as error:
            raise SourceError(
                f"{self._place_of(error)}: torch.compile cannot take the network whole ({reason(error)}): leave "
                "--compile out"
            ) from error

    def _own_tensors(self) -> dict[str, Tensor]:
        return {} if self._own is None else self._own.tensors()

    def _restore_own(self, tensors: dict[str, Tensor]) -> None:
        if self._own is not None:
            self._own.restore(tensors)

    def _restart(self, step: int) -> None:
        """Count from ``step`` on, now that everything is as it was then."""
        self._capture = None
        self.step = step
        self.key[1] = step

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """All steps on one stream, which is not the default one: capture needs that of the steps before it."""
        if self._stream is None:
            yield
            return
        around = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            yield
        around.wait_stream(self._stream)

    def _warm(self) -> bool:
        """Whether enough steps have run for kernels to be compiled and libraries to have settled."""
        return self._uncaptured_steps >= _WARM_UP
