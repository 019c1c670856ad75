"""Runs that make their steps together on a CPU, in a second: torch's trainers, where the fused engine would stand.

``python abreast.py OUT STEPS CHECKPOINT_SECONDS`` trains eight of them in a process of its own.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from pyvae.engine import loop
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.stepper import Part, Stepper
from pyvae.engine.trainer import Trainer
from pyvae.objectives import BetaVAE, CapacityVAE, ControlVAE, FactorVAE
from tiny import Corner

CPU = torch.device("cpu")
RECIPE = Recipe(data="tiny", architecture="rainforth", batch_size=2, latents=2, lr=1e-3, steps=40)
OBJECTIVES = {
    "beta-vae": BetaVAE(),
    "capacity-vae": CapacityVAE(capacity_steps=30),
    "control-vae": ControlVAE(schedule="adaptive", capacity_steps=30),
    "factor-vae": FactorVAE(discriminator_width=8, discriminator_layers=2),
}
NUMBERS = {
    "beta-vae": [{"beta": 1.0}, {"beta": 8.0}],
    "capacity-vae": [{"gamma": 1.0}, {"capacity": 3.0, "capacity_steps": 11}],
    "control-vae": [{"kp": 0.5, "capacity": 2.0}, {"capacity_steps": 7, "beta_min": 0.5}],
    "factor-vae": [{"gamma": 1.0}, {"discriminator_lr": 1e-2}],
}
"""What members have otherwise than the others."""


class Abreast(Stepper):
    """Trainers side by side, which share their steps as the members of an ensemble do."""

    spoiled: dict[int, int] = {}  # noqa: RUF012  # of a test
    """Seeds, and the step before which a weight of theirs becomes NaN."""
    made: list[list[int]] = []  # noqa: RUF012
    """The seeds of each group that was made."""
    stood: list[int] = []  # noqa: RUF012
    """Seeds of those that were frozen."""

    def __init__(self, recipes, dataset, device, *, log_every=1, capture=True):
        self.trainers = [Trainer(recipe, dataset, device, log_every=log_every) for recipe in recipes]
        self.frozen = set()
        first = self.trainers[0]
        super().__init__(
            recipes[0], first.fields, device, log_every=log_every, capture=capture, ledger=first.ledger
        )
        Abreast.made.append([recipe.seed for recipe in recipes])

    @property
    def parts(self):
        return [
            Part(t.recipe, t.ledger, t.tensors, partial(self._restored, t), partial(self._freeze, n))
            for n, t in enumerate(self.trainers)
        ]

    def _freeze(self, member):
        self.frozen.add(member)
        Abreast.stood.append(self.trainers[member].recipe.seed)

    def _restored(self, trainer, step, tensors):
        trainer.restore(step, tensors)
        self._restart(step)

    def tensors(self):
        raise AssertionError("each has its own")

    def restore(self, step, tensors):
        raise AssertionError("each has its own")

    def _prepare(self, step):
        assert {t.step for n, t in enumerate(self.trainers) if n not in self.frozen} <= {step}

    def _step(self):
        for n, trainer in enumerate(self.trainers):
            if n not in self.frozen:
                self._spoil(trainer)
                trainer.advance()

    def _spoil(self, trainer):
        if Abreast.spoiled.get(trainer.recipe.seed) == trainer.step:
            with torch.no_grad():
                next(trainer.net.parameters()).view(-1)[0] = float("nan")


def put_abreast(patch: pytest.MonkeyPatch) -> None:
    """Recipes of the fused engine go side by side through torch's, alone or not."""
    settled = loop.settled

    def fused(recipe, dataset, device, **options):
        return recipe if recipe.engine == "fused" else settled(recipe, dataset, device, **options)

    def training(recipe, *args, compile, **options):
        return Abreast([recipe], *args, **options)

    for name, value in (("settled", fused), ("training", training), ("FusedTrainer", Abreast)):
        patch.setattr(loop, name, value)
    patch.setattr(Abreast, "spoiled", {})
    patch.setattr(Abreast, "made", [])
    patch.setattr(Abreast, "stood", [])


def eight(kind: str, **changes) -> list[Recipe]:
    """Recipes that may stand side by side, and differ in whatever they may."""
    objective = OBJECTIVES[kind]
    recipes = [
        replace(RECIPE, engine="fused", objective=objective, seed=seed, **changes) for seed in range(8)
    ]
    for n, numbers in enumerate(NUMBERS[kind]):
        recipes[n + 2] = replace(recipes[n + 2], objective=replace(objective, **numbers))
    recipes[4] = replace(recipes[4], lr=3e-4)
    recipes[5] = replace(recipes[5], keep_at=(7, 20))
    return recipes


def runs_of(out: Path, recipes) -> list[RunDirectory]:
    return [RunDirectory.create_or_resume(out / f"seed-{recipe.seed}", recipe) for recipe in recipes]


def main(out: Path, steps: int, checkpoint_seconds: float) -> int:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        put_abreast(patch)
        runs = runs_of(out, eight("control-vae", steps=steps))
        outcomes = loop.train_together(
            runs, Corner(), CPU, log_every=3, checkpoint_seconds=checkpoint_seconds
        )
    return 130 if any(outcome.interrupted for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
