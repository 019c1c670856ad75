"""Which implementation runs, and what happens without triton."""

import os
import subprocess
import sys

import pytest
import torch

import pyvae
from pyvae import backend, reference
from pyvae.backend import choose
from pyvae.random import make_key

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    monkeypatch.setattr(backend, "has_triton", lambda: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_takes_triton_on_cuda_and_the_reference_elsewhere(dtype):
    assert choose(CUDA, dtype) == ("triton", "CUDA tensors")
    assert choose(CPU, dtype).backend == "reference"
    assert "cpu" in choose(CPU, dtype).reason


def test_float64_is_for_the_reference(monkeypatch):
    assert choose(CUDA, torch.float64) == ("reference", "float64 is computed by the reference")
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="do not take float64: use PYVAE_BACKEND=auto"):
        choose(CUDA, torch.float64)


def test_the_reference_on_request(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    for device in (CPU, CUDA):
        assert choose(device, torch.float32) == ("reference", "PYVAE_BACKEND=reference")


@pytest.mark.parametrize("name", ["", "cuda", "Triton", "auto "])
def test_an_unknown_name_is_refused(name, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", name)
    with pytest.raises(ValueError, match=f"PYVAE_BACKEND='{name}': expected one of auto, reference, triton"):
        pyvae.bernoulli_nll(torch.zeros(1, 1), torch.zeros(1, 1))


def test_triton_on_request(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for device in (CPU, CUDA):
        assert choose(device, torch.float32) == ("triton", "PYVAE_BACKEND=triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert choose(CUDA, torch.float32).backend == "triton"
    with pytest.raises(RuntimeError, match=r"on cpu: move them to a CUDA device, .* TRITON_INTERPRET=1"):
        choose(CPU, torch.float32)
    with pytest.raises(RuntimeError, match="on cpu"):
        pyvae.reparameterize_kl(torch.zeros(2, 2), torch.zeros(2, 2))


def test_triton_that_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    chosen = choose(CUDA, torch.float32)
    assert chosen == ("reference", "triton is not installed: pip install triton")
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="triton is not installed: pip install triton"):
        pyvae.bernoulli_nll(torch.zeros(1, 1), torch.zeros(1, 1))


def test_a_slow_path_on_cuda_is_said_once(monkeypatch):
    class OnCuda:
        device, dtype, is_cuda = CUDA, torch.float32, True

    monkeypatch.setattr(backend, "has_triton", lambda: False)
    backend._warn_slow.cache_clear()
    with pytest.warns(UserWarning, match="pip install triton") as said:
        taken = [backend.use_triton(OnCuda()) for _ in range(2)]
    assert taken == [False, False]
    assert len(said) == 1
    backend._warn_slow.cache_clear()


def test_the_choice_decides_what_runs(device, monkeypatch):
    """The backends round differently: the kernels have their own sine."""
    zeros, key = torch.zeros(64, 10, device=device), make_key(3, 0, device)
    expected, _ = reference.reparameterize_kl(zeros, zeros, key=key)
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    assert torch.equal(pyvae.reparameterize_kl(zeros, zeros, key=key)[0], expected)
    pytest.importorskip("triton")
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    z, _ = pyvae.reparameterize_kl(zeros, zeros, key=key)
    assert not torch.equal(z, expected)
    torch.testing.assert_close(z, expected, rtol=3e-6, atol=2e-6)


def run(program, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYVAE_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**kept, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TRITON = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch, pyvae, pyvae.functional
from pyvae import reference
from pyvae.backend import choose
from pyvae.random import make_key

assert choose(torch.device("cuda"), torch.float32).reason == "triton is not installed: pip install triton"
mu, logvar, key = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3), make_key(1)
z, kl = pyvae.reparameterize_kl(mu, logvar, key=key)
expected = reference.reparameterize_kl(mu, logvar, key=key)
assert torch.equal(z, expected[0]) and torch.equal(kl, expected[1])
loss = pyvae.functional.bernoulli_nll(z, torch.ones(5, 3))
assert torch.equal(loss, reference.bernoulli_nll(z, torch.ones(5, 3)))
loss.backward()
assert mu.grad.abs().sum() > 0
assert not any(name.split(".")[0] == "triton" for name in sys.modules)
print("ran")
"""

IMPORTED = """
import sys
import pyvae
print(*sorted({name.split(".")[0] for name in sys.modules}))
pyvae.reparameterize_kl, pyvae.bernoulli_nll
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_without_triton_the_reference_runs():
    assert run(WITHOUT_TRITON) == "ran\n"


def test_import_pyvae_is_light():
    first, second = (set(line.split()) for line in run(IMPORTED).splitlines())
    heavy = {"triton", "h5py", "matplotlib", "tyro", "tensorboard", "safetensors", "nvtx", "PIL"}
    assert not first & (heavy | {"torch"})
    assert not second & heavy
    assert "torch" in second
