"""Train on TinyData in a process of its own: ``python train_tiny.py OUT STEPS [CHECKPOINT_SECONDS]``."""

import sys
from pathlib import Path

import torch

from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.objectives import CapacityVAE
from tiny import TinyData

RECIPE = Recipe(
    objective=CapacityVAE(gamma=10.0, capacity_steps=300), data="tiny", batch_size=8, lr=1e-3, seed=3
)


def main(out: Path, steps: int, checkpoint_seconds: float = 60.0) -> int:
    from dataclasses import replace

    torch.set_num_threads(1)
    run = RunDirectory.create_or_resume(out, replace(RECIPE, steps=steps))
    outcome = train(run, TinyData(), torch.device("cpu"), log_every=3, checkpoint_seconds=checkpoint_seconds)
    return 130 if outcome.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:])))
