"""Train the network and the loss of examples/own on small squares: ``python train_own.py OUT STEPS [SECONDS]``."""

import sys
from pathlib import Path

import torch

from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from tiny import Corner

OWN = Path(__file__).resolve().parents[1] / "examples" / "own"


def recipe(steps: int, **changes) -> Recipe:
    """One with dropout, batch normalisation and noise in its loss."""
    given = {"objective": f"{OWN}/my_loss.py:FreeNats", "architecture": f"{OWN}/my_nets.py:build", **changes}
    return Recipe(data="tiny", batch_size=8, latents=3, lr=1e-3, seed=5, steps=steps, **given)


def main(out: Path, steps: int, checkpoint_seconds: float = 60.0) -> None:
    torch.set_num_threads(1)
    run = RunDirectory.create_or_resume(out, recipe(steps))
    train(run, Corner(), torch.device("cpu"), log_every=3, checkpoint_seconds=checkpoint_seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
