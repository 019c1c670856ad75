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
    ("beta-vae", "fp32"): 80,
    ("beta-vae", "bf16"): 92,
    ("capacity-vae", "fp32"): 92,
    ("control-vae", "fp32"): 83,
    ("annealed-vae", "fp32"): 90,
    ("factor-vae", "fp32"): 176,
    ("factor-vae", "bf16"): 203,
    ("tc-vae", "fp32"): 139,
    ("dip-vae", "fp32"): 122,
    ("iwae", "fp32"): 117,
    ("piwae", "fp32"): 126,
    ("infogan", "fp32"): 738,
    ("infowgan-gp", "fp32"): 562,
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
