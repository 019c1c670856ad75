"""Triton's interpreter in half the time gives what it gives as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("kernels are not interpreted", allow_module_level=True)
pytest.importorskip("triton")

from triton.language import core
from triton.runtime import interpreter as whole

KERNELS = """
import hashlib, sys
import pytest, torch
import interpreter, pyvae
from pyvae.engine import adam
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.random import make_key
from tiny import Corner

if sys.argv[1] == "quick":
    interpreter.quicken(pytest.MonkeyPatch())
torch.set_num_threads(1)
torch.manual_seed(0)
adam._block = lambda weights: 2**16
found = []
for dtype in (torch.float32, torch.bfloat16):
    mu, logvar = (torch.randn(5, 37).to(dtype).requires_grad_() for _ in range(2))
    z, kl = pyvae.reparameterize_kl(mu, logvar, key=make_key(1, 2, torch.device("cpu")))
    nll = pyvae.bernoulli_nll(z, (torch.rand(5, 37) < 0.4).float())
    densities = pyvae.aggregate_log_density(z[:, :3], mu[:, :3], logvar[:, :3], dataset_size=40)
    loss = sum(x.float().sum() for x in (kl, nll, *densities))
    found += [z, kl, nll, *densities, *torch.autograd.grad(loss, [mu, logvar])]
trainer = training(Recipe(data="tiny", architecture="rainforth", latents=2, batch_size=2), Corner(), mu.device)
trainer.advance()
found += [trainer.ledger.row, *trainer.tensors().values()]
print(hashlib.sha256(b"".join(x.detach().double().numpy().tobytes() for x in found)).hexdigest())
"""


def test_kernels_give_the_same_bits():
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYVAE_BACKEND": "triton", "PYTHONPATH": paths}
    found = [
        subprocess.run([sys.executable, "-c", KERNELS, how], env=env, capture_output=True, text=True)
        for how in ("plain", "quick")
    ]
    assert [done.returncode for done in found] == [0, 0], found[0].stderr + found[1].stderr
    assert found[0].stdout == found[1].stdout


def as_it_is(function):
    """What it took the place of."""
    return next(cell.cell_contents for cell in function.__closure__ if callable(cell.cell_contents))


def test_types_are_the_same():
    scalars = [value for value in vars(core).values() if type(value) is core.dtype and value.name != "void"]
    assert len(scalars) > 15
    quick, plain = whole._get_np_dtype, as_it_is(whole._get_np_dtype)
    assert quick is not plain
    for scalar in scalars:
        for type_ in (scalar, core.pointer_type(scalar), core.block_type(scalar, [4, 2])):
            assert quick(type_) == plain(type_)
    for _ in range(2):
        block = core.block_type(core.float32, [4, core.constexpr(2)])
        again, other = core.block_type(core.float32, [4, 2]), core.block_type(core.int32, [4, 2])
        assert block == again != other
        assert block.name == again.name != other.name
        assert (block.name, block.numel, len(block.shape)) == ("<['4', '2'], fp32>", 8, 2)
        with pytest.raises(ValueError, match="power of 2"):
            core.block_type(core.float32, [3])
        with pytest.raises(TypeError, match="0d"):
            core.block_type(core.float32, [])
