"""A run through kernels that have the whole network: an ensemble of one."""

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.fused.ensemble import Ensemble
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import RING_ROWS, Stepper
from pyvae.engine.trainer import check_data


class FusedTrainer(Stepper):
    """As :class:`pyvae.engine.trainer.Trainer`, with networks, loss and Adam in some 28 launches of kernels of our own.

    Its checkpoints have the same names, shapes and layouts.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: torch.device,
        *,
        log_every: int = 1,
        capture: bool = True,
    ) -> None:
        check_data(recipe, dataset)
        self.ensemble = Ensemble([recipe], dataset, device, rows=RING_ROWS, log_every=log_every)
        super().__init__(
            recipe,
            self.ensemble.fields,
            device,
            log_every=log_every,
            capture=capture,
            ledger=self.ensemble.ledgers[0],
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return self.ensemble.tensors()

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        self.ensemble.restore(step, tensors)
        self._restart(step)

    def _prepare(self, step: int) -> None:
        self.ensemble.prepare(step)

    def _step(self) -> None:
        self.ensemble.step()
