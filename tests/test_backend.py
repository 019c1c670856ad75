"""Which implementation runs, and what happens without triton."""

import os
import subprocess
import sys

import pytest
import torch

import pyvae
from pyvae import backend, reference
from pyvae.backend import OPS, choose
from pyvae.cli import doctor
from pyvae.errors import PyvaeError
from pyvae.random import make_key

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BOTH = [op for op, has in OPS.items() if has.triton and has.native]
NATIVE_ALONE = [op for op, has in OPS.items() if not has.triton]
ABSENT = "the compiled operators are not built: make them"


@pytest.fixture(autouse=True)
def lacking(monkeypatch):
    """Operators that are not built, by device; a test may empty it."""
    operators = {"cpu": None, "cuda": None}
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.setattr(backend, "missing", lambda op, device_type: operators[device_type])
    for cached in (backend._choose, backend._say):
        cached.cache_clear()
    yield operators
    for cached in (backend._choose, backend._say):
        cached.cache_clear()


class OnCuda:
    device, dtype, is_cuda = CUDA, torch.float32, True


def test_there_are_ops_of_every_kind():
    assert {"bernoulli_nll", "reparameterize_kl"} <= set(BOTH)
    assert set(BOTH) | set(NATIVE_ALONE) == set(OPS)
    assert {"permute_dims", "code_histogram", "posterior_entropy"} <= set(NATIVE_ALONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto(dtype):
    for op in BOTH:
        assert choose(op, CUDA, dtype) == ("triton", "CUDA tensors", False)
        assert choose(op, CPU, dtype) == ("native", "compiled", False)
    assert backend.takes_triton(CUDA)
    assert not backend.takes_triton(CPU)
    for op in NATIVE_ALONE:
        assert choose(op, CPU, dtype).backend == choose(op, CUDA, dtype).backend == "native"


def test_float64_is_for_the_reference(monkeypatch):
    for op in set(OPS) - {"permute_dims"}:
        for device in (CPU, CUDA):
            assert choose(op, device, torch.float64)[:2] == (
                "reference",
                "float64 is computed by the reference",
            )
    assert choose("permute_dims", CPU, torch.float64).backend == "native"
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="do not take float64: use PYVAE_BACKEND=auto"):
        choose("bernoulli_nll", CUDA, torch.float64)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_on_request(op, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    for device in (CPU, CUDA):
        assert choose(op, device, torch.float32) == ("reference", "PYVAE_BACKEND=reference", False)


@pytest.mark.parametrize("name", ["", "cuda", "Triton", "auto "])
def test_an_unknown_name_is_refused(name, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", name)
    expected = f"^PYVAE_BACKEND='{name}': expected one of auto, reference, triton, native$"
    with pytest.raises(ValueError, match=expected):
        pyvae.bernoulli_nll(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(PyvaeError, match=expected):  # which the command line prints in one line
        backend.takes_triton(CPU)
    (line,) = [line for line in doctor.describe().splitlines() if "expected one of" in line]
    assert line == f"  none: {expected[1:-1]}"


def test_doctor_names_the_largest_files_of_the_cache_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path))
    for size in range(1, 12):
        (tmp_path / f"{size}.h5").write_bytes(bytes(size * 2**20))
    said = doctor.describe().splitlines()
    start = said.index("data cache") + 2
    assert said[start:] == [
        *(f"  {size}.h5: {size} MiB" for size in range(11, 3, -1)),
        "  3 smaller files: 6 MiB",
    ]


def test_triton_on_request(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for op in BOTH:
        for device in (CPU, CUDA):
            assert choose(op, device, torch.float32) == ("triton", "PYVAE_BACKEND=triton", False)
    for op in NATIVE_ALONE:
        assert choose(op, CPU, torch.float32).backend == "native"
    backend._choose.cache_clear()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert choose("bernoulli_nll", CUDA, torch.float32).backend == "triton"
    with pytest.raises(RuntimeError, match=r"on cpu: move them to a CUDA device, .* TRITON_INTERPRET=1"):
        choose("bernoulli_nll", CPU, torch.float32)
    with pytest.raises(RuntimeError, match="on cpu"):
        pyvae.reparameterize_kl(torch.zeros(2, 2), torch.zeros(2, 2))


def test_triton_that_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    chosen = choose("bernoulli_nll", CUDA, torch.float32)
    assert chosen == ("reference", "triton is not installed: pip install triton", True)
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="triton is not installed: pip install triton"):
        pyvae.bernoulli_nll(torch.zeros(1, 1), torch.zeros(1, 1))


def test_native_on_request(monkeypatch, lacking):
    monkeypatch.setenv("PYVAE_BACKEND", "native")
    for op in BOTH + NATIVE_ALONE:
        assert choose(op, CPU, torch.float32).backend == "native"
    # what has no compiled operator for its device takes what it would have taken
    assert {choose(op, CUDA, torch.float32).backend for op in BOTH} == {"triton"}
    backend._choose.cache_clear()
    lacking["cpu"] = ABSENT
    for op in BOTH + NATIVE_ALONE:
        with pytest.raises(RuntimeError, match=f"PYVAE_BACKEND=native but {ABSENT}"):
            choose(op, CPU, torch.float32)


def test_operators_that_are_not_built_are_said_once(lacking):
    lacking["cpu"] = ABSENT
    for op in BOTH + NATIVE_ALONE:
        assert choose(op, CPU, torch.float32) == ("reference", ABSENT, True)
    with pytest.warns(UserWarning, match=f"slower reference: {ABSENT}") as said:
        taken = [backend.take(op, torch.zeros(2, 2)) for op in BOTH + NATIVE_ALONE]
    assert set(taken) == {"reference"}
    assert len(said) == 1


def test_a_slow_path_on_cuda_is_said_once(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    monkeypatch.setattr(backend, "transform", lambda *tensors: None)
    with pytest.warns(UserWarning, match="pip install triton") as said:
        taken = [backend.take("bernoulli_nll", OnCuda()) for _ in range(2)]
    assert taken == ["reference", "reference"]
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:pyvae runs its slower reference")
def test_transforms_of_torch_func_go_through_the_reference():
    target = torch.rand(4, 6)
    loss = lambda x: pyvae.bernoulli_nll(x, target)  # noqa: E731
    logits = torch.randn(4, 6)
    exact = (logits.sigmoid() - target) / 4
    torch.testing.assert_close(torch.func.grad(loss)(logits), exact)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(logits[None]), exact[None])
    curvature = torch.func.hessian(loss)(logits).reshape(24, 24)
    slope = (logits.sigmoid() * (1 - logits.sigmoid()) / 4).flatten()
    torch.testing.assert_close(curvature, slope.diag())


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

choice = choose("bernoulli_nll", torch.device("cuda"), torch.float32)
assert choice.reason == "triton is not installed: pip install triton"
mu, logvar, key = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3), make_key(1)
z, kl = pyvae.reparameterize_kl(mu, logvar, key=key)
expected = reference.reparameterize_kl(mu, logvar, key=key)
torch.testing.assert_close((z, kl), expected)
loss = pyvae.functional.bernoulli_nll(z, torch.ones(5, 3))
torch.testing.assert_close(loss, reference.bernoulli_nll(z, torch.ones(5, 3)))
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


def test_ops_run_without_triton():
    assert run(WITHOUT_TRITON) == "ran\n"


def test_import_pyvae_is_light():
    first, second = (set(line.split()) for line in run(IMPORTED).splitlines())
    heavy = {"triton", "h5py", "matplotlib", "tyro", "tensorboard", "safetensors", "nvtx", "PIL"}
    assert not first & (heavy | {"torch"})
    assert not second & heavy
    assert "torch" in second
