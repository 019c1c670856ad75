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
    ("beta-vae", "fp32"): 108,
    ("beta-vae", "bf16"): 171,
    ("capacity-vae", "fp32"): 118,
    ("control-vae", "fp32"): 109,
    ("annealed-vae", "fp32"): 117,
    ("factor-vae", "fp32"): 218,
    ("factor-vae", "bf16"): 298,
    ("tc-vae", "fp32"): 167,
    ("dip-vae", "fp32"): 150,
    ("iwae", "fp32"): 145,
    ("piwae", "fp32"): 154,
    ("infogan", "fp32"): 766,
    ("infowgan-gp", "fp32"): 578,
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
