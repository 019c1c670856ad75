"""Runs through kernels that have the whole network, side by side; often one."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.fused.ensemble import Ensemble
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import RING_ROWS, Part, Stepper
from pyvae.engine.trainer import check_data


class FusedTrainer(Stepper):
    """As :class:`pyvae.engine.trainer.Trainer`, with networks, loss and Adam in some 28 launches of kernels of our own,
    each for all of the runs.

    Its checkpoints have the same names, shapes and layouts.

    Args:
        recipes: one or more, of one shape; see :func:`pyvae.engine.together.shape_of`.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        dataset: Dataset,
        device: torch.device,
        *,
        log_every: int = 1,
        capture: bool = True,
    ) -> None:
        for recipe in recipes:
            check_data(recipe, dataset)
        self.ensemble = Ensemble(recipes, dataset, device, rows=RING_ROWS, log_every=log_every)
        super().__init__(
            recipes[0],
            self.ensemble.fields,
            device,
            log_every=log_every,
            capture=capture,
            ledger=self.ensemble.ledgers[0],
        )

    @property
    def parts(self) -> list[Part]:
        """What is its own of each run, in the order of the recipes."""
        freeze = self.ensemble.members.freeze
        return [
            Part(
                recipe, ledger, partial(self.tensors, n), partial(self.restore, member=n), partial(freeze, n)
            )
            for n, (recipe, ledger) in enumerate(
                zip(self.ensemble.recipes, self.ensemble.ledgers, strict=True)
            )
        ]

    def tensors(self, member: int = 0) -> dict[str, Tensor]:
        """Everything that the next step of a run depends on, by name."""
        return self.ensemble.tensors(member)

    def restore(self, step: int, tensors: dict[str, Tensor], member: int = 0) -> None:
        """Go back to what :meth:`tensors` gave at ``step``; before the next step, with every run."""
        self.ensemble.restore(step, tensors, member)
        self._restart(step)

    def _prepare(self, step: int) -> None:
        self.ensemble.prepare(step)

    def _step(self) -> None:
        self.ensemble.step()
