"""Must run before anything imports triton, which torch.compile does too: kernels are interpreted without a GPU."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

import interpreter
from pyvae.base import native
from pyvae.nets import convolutions

# shells start so what runs behind them, and programs of tests would inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    interpreter.quicken(pytest.MonkeyPatch())

# whatever the processor: those of what is refused take it away
os.environ["PYVAE_INSIST"] = "1"

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("markexpr")
    for item in items:
        if "gpu" in item.keywords and not GPU:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
        if "slow" in item.keywords and "slow" not in chosen:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def automatic_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As without PYVAE_BACKEND; what was found out of convolutions is forgotten, before and after."""
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    convolutions._arithmetic.cache_clear()
    yield
    convolutions._arithmetic.cache_clear()


@pytest.fixture
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops run their Triton kernels: on the GPU, or interpreted on the CPU."""
    pytest.importorskip("triton")
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    if not GPU:
        _round_as_a_gpu(monkeypatch)


def _round_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts the end of a float32 off to make a bfloat16 of it."""
    from triton.language import bfloat16
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cut = InterpreterBuilder.create_fp_trunc

    def rounded(self, x, dtype):
        if dtype.scalar != bfloat16 or x.data.dtype != "float32":
            return cut(self, x, dtype)
        nearest = torch.from_numpy(x.data).to(torch.bfloat16).view(torch.uint16).numpy()
        return TensorHandle(nearest, dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounded)


@pytest.fixture
def wide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam of few programs: interpreted, each takes milliseconds, and a network has five hundred."""
    if not GPU:
        monkeypatch.setattr("pyvae.engine.adam._block", lambda weights: 2**16)


@pytest.fixture(params=["triton", "native"])
def fast_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ops run their Triton kernels, then, on a CPU, their compiled operators."""
    if request.param == "triton":
        request.getfixturevalue("triton_backend")
    elif GPU:
        pytest.skip("the compiled operators of these ops are for CPUs")
    elif reason := native.load():
        pytest.skip(reason)
    monkeypatch.setenv("PYVAE_BACKEND", request.param)
    return request.param


@pytest.fixture(autouse=True)
def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory of the ops holds NaN, so that an output element that a kernel does not write is seen."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))


def _poisoned(new: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args, **kwargs):
        x = new(*args, **kwargs)
        # neither what torch.compile traces nor its fake tensors
        if not torch.compiler.is_compiling() and type(x) is torch.Tensor and x.is_floating_point():
            x.fill_(float("nan"))
        return x

    return poisoned
