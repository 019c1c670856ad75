"""How many kernels a step launches, by objective and precision.

A change that adds one must say so here; one that saves some, too.
"""

import pytest
import torch

from launches import launches
from pyvae import reference
from pyvae.engine.training import training
from test_trainer import OBJECTIVES, recipe_of
from tiny import TinyData

STEPS = {
    ("beta-vae", "fp32"): 86,
    ("beta-vae", "bf16"): 126,
    ("capacity-vae", "fp32"): 98,
    ("control-vae", "fp32"): 89,
    ("annealed-vae", "fp32"): 96,
    ("factor-vae", "fp32"): 188,
    ("factor-vae", "bf16"): 271,
    ("tc-vae", "fp32"): 145,
    ("dip-vae", "fp32"): 126,
    ("iwae", "fp32"): 123,
    ("piwae", "fp32"): 132,
    ("infogan", "fp32"): 756,
    ("infowgan-gp", "fp32"): 580,
}


@pytest.fixture(autouse=True)
def poison_empty():
    """Not here: what fills new memory would be counted."""


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize(("kind", "precision"), STEPS)
def test_kernels_of_a_step(kind, precision):
    data = TinyData()
    data.bits = reference.pack_bits(data.images(torch.arange(len(data))).flatten(1))
    recipe = recipe_of(OBJECTIVES[kind], precision=precision)
    found = launches(training(recipe, data, torch.device("cpu"), log_every=100))
    assert found.total() == STEPS[kind, precision], "\n".join(
        f"{n:4} {name}" for name, n in found.most_common()
    )
