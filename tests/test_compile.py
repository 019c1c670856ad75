"""The ops as registered operators: opcheck, torch.compile, and gradients of gradients."""

import shutil

import pytest
import torch

import pyvae.functional  # registers the operators
from pyvae import reference
from pyvae.random import make_key
from pyvae.reference import pack_bits


@pytest.fixture(params=["reference", "triton"], autouse=True)
def backend(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("PYVAE_BACKEND", request.param)
    torch._dynamo.reset()
    return request.param


def latents(device, *shape, dtype=torch.float32):
    torch.manual_seed(1)
    return tuple(torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 5)])
def test_opcheck_reparameterize_kl(device, requires_grad, shape):
    mu, logvar = (x.detach().requires_grad_(requires_grad) for x in latents(device, *shape))
    key = make_key(1, 2, device).expand(*shape[:-2], 2)
    torch.library.opcheck(torch.ops.pyvae.reparameterize_kl.default, (mu, logvar, key, 0))
    halves = torch.cat([mu, logvar], -1).detach().requires_grad_(requires_grad).chunk(2, -1)
    torch.library.opcheck(torch.ops.pyvae.reparameterize_kl.default, (*halves, key, 3))


@pytest.mark.parametrize("used", ["both", "z", "kl"])
def test_opcheck_reparameterize_kl_backward(device, used):
    mu, logvar = (x.detach() for x in latents(device, 2, 3, 5))
    grad_z = None if used == "kl" else torch.randn(2, 3, 1, device=device).expand_as(mu)
    grad_kl = None if used == "z" else torch.randn((), device=device).expand(2, 5)
    args = (grad_z, grad_kl, mu, logvar, make_key(1, 2, device), 0)
    torch.library.opcheck(torch.ops.pyvae.reparameterize_kl_backward.default, args)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
@pytest.mark.parametrize("packed", [True, False])
def test_opcheck_bernoulli_nll(device, requires_grad, reduction, packed):
    logits = latents(device, 2, 3, 5)[0].detach().requires_grad_(requires_grad)
    pixels = torch.rand(2, 3, 5, device=device) < 0.5
    args = (logits, pack_bits(pixels) if packed else pixels, reduction, 1, None)
    torch.library.opcheck(torch.ops.pyvae.bernoulli_nll.default, args)
    grad_loss = (
        torch.randn((), device=device).expand(2, 3) if reduction == "none" else torch.ones(2, device=device)
    )
    args = (grad_loss, logits.detach(), *args[1:])
    torch.library.opcheck(torch.ops.pyvae.bernoulli_nll_backward.default, args)


def loss(mu, logvar, target, key):
    z, kl = pyvae.reparameterize_kl(mu, logvar, key=key)
    return pyvae.bernoulli_nll(z * 2, target) + (kl * kl).sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(device, dynamic):
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in [(6, 5), (9, 7)]:
        mu, logvar = latents(device, *shape)
        target = torch.rand(shape, device=device)
        key = make_key(3, 4, device)
        eager, got = loss(mu, logvar, target, key), compiled(mu, logvar, target, key)
        torch.testing.assert_close(got, eager, rtol=1e-6, atol=0)
        expected = torch.autograd.grad(eager, (mu, logvar))
        torch.testing.assert_close(torch.autograd.grad(got, (mu, logvar)), expected, rtol=1e-5, atol=1e-6)


def test_one_compilation_for_all_keys(device):
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    mu, logvar = latents(device, 6, 5)
    target = torch.rand(6, 5, device=device)
    losses = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(12):
            value = compiled(mu, logvar, target, make_key(step % 3, step, device))
            value.backward()
            losses.add(float(value.detach()))
    assert len(losses) == 12


def test_a_fresh_key_in_a_compiled_function_follows_manual_seed(device):
    compiled = torch.compile(
        lambda m, lv: pyvae.reparameterize_kl(m, lv)[0], backend="aot_eager", fullgraph=True
    )
    zeros = torch.zeros(6, 5, device=device)
    torch.manual_seed(9)
    first, second = compiled(zeros, zeros), compiled(zeros, zeros)
    torch.manual_seed(9)
    assert torch.equal(compiled(zeros, zeros), first)
    assert int((first == second).sum()) == 0
    torch.manual_seed(9)
    torch.testing.assert_close(pyvae.reparameterize_kl(zeros, zeros)[0], first)


@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("g++", "clang++")), reason="inductor needs a C++ compiler"
)
def test_inductor_equals_eager(device, backend):
    if backend == "triton" and device.type == "cpu":
        pytest.skip("inductor calls the operator as aot_eager does")
    compiled = torch.compile(loss, fullgraph=True)
    mu, logvar = latents(device, 6, 5)
    target = torch.rand(6, 5, device=device)
    key = make_key(3, 4, device)
    eager, got = loss(mu, logvar, target, key), compiled(mu, logvar, target, key)
    torch.testing.assert_close(got, eager, rtol=1e-5, atol=0)
    expected = torch.autograd.grad(eager, (mu, logvar))
    torch.testing.assert_close(torch.autograd.grad(got, (mu, logvar)), expected, rtol=1e-5, atol=1e-6)


def objective(op, device):
    """A function of latents through the eager route of an op, or through its operator."""
    key, target = make_key(1, 2, device), torch.rand(5, 6, device=device)
    return {
        "reparameterize_kl": lambda m, lv: sum(x.sum() for x in pyvae.reparameterize_kl(m, lv, key=key)),
        "torch.ops.pyvae.reparameterize_kl": lambda m, lv: sum(
            x.square().sum() for x in torch.ops.pyvae.reparameterize_kl(m, lv, key, 0)
        ),
        "bernoulli_nll": lambda m, lv: pyvae.bernoulli_nll(m, target) + lv.sum(),
        "torch.ops.pyvae.bernoulli_nll": lambda m, lv: (
            torch.ops.pyvae.bernoulli_nll(m, target, "sum", 1, None).square() + lv.sum()
        ),
    }[op]


OPS = ["reparameterize_kl", "bernoulli_nll"]


def gradient_of_penalty(f, mu, logvar):
    """The gradient with respect to mu of the squared gradients of f and of another term."""
    grads = torch.autograd.grad(f(mu, logvar), (mu, logvar), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in grads) + mu.square().sum(), mu)[0]


@pytest.mark.parametrize("op", [*OPS, *(f"torch.ops.pyvae.{op}" for op in OPS)])
def test_gradients_of_gradients_are_right_or_refused(device, op, backend):
    """Refused even where other terms have gradients: theirs alone would be a wrong answer without a word."""
    f, inputs = objective(op, device), latents(device, 5, 6)
    if backend == "reference" and op in OPS:
        exact = gradient_of_penalty(f, *(x.detach().double().requires_grad_() for x in inputs))
        torch.testing.assert_close(gradient_of_penalty(f, *inputs).double(), exact, rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(RuntimeError, match="differentiate once"):
            gradient_of_penalty(f, *inputs)


def test_gradients_of_gradients_are_refused_under_compile(device):
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    mu, logvar = latents(device, 5, 6)
    value = compiled(mu, logvar, torch.rand(5, 6, device=device), make_key(1, 1, device))
    (grad,) = torch.autograd.grad(value, mu, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(grad.square().sum(), logvar)


def test_a_key_written_to_before_the_backward_is_noticed(device, backend):
    """Noise drawn again from another key would be another noise."""
    if backend == "reference":
        pytest.skip("the reference keeps its noise")
    mu, logvar = latents(device, 5, 6)
    key = make_key(1, 1, device)
    z, _ = pyvae.reparameterize_kl(mu, logvar, key=key)
    key[1] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_the_reference_is_what_runs_in_float64(device, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    mu, logvar = latents(device, 5, 6, dtype=torch.float64)
    key = make_key(1, 1, device)
    z, kl = torch.compile(pyvae.reparameterize_kl, backend="aot_eager", fullgraph=True)(mu, logvar, key=key)
    expected = reference.reparameterize_kl(mu, logvar, key=key)
    assert torch.equal(z, expected[0])
    assert torch.equal(kl, expected[1])
    assert z.dtype == kl.dtype == torch.float64


def test_new_memory_is_poisoned():
    for new in (torch.empty(3), torch.empty((2, 2), dtype=torch.float16), torch.empty_like(torch.zeros(3))):
        assert bool(new.isnan().all())
    assert torch.empty(3, dtype=torch.int64).shape == (3,)
