"""The compiled operators on a GPU against those of the CPU, which have tests of their own."""

import pytest
import torch

from pyvae import reference
from pyvae.base import native
from pyvae.ops.code_histogram import code_histogram
from pyvae.ops.permute_dims import tc_batch
from pyvae.ops.posterior_entropy import posterior_entropy
from pyvae.random import make_key

GPU = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled")]


@pytest.fixture
def compiled(monkeypatch):
    """A build without the CUDA operators is an error here, not the reference."""
    assert native.missing("permute_dims", "cuda") is None
    monkeypatch.setenv("PYVAE_BACKEND", "native")


def draws(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(1, 1), (64, 10), (129, 7), (2, 3, 300, 5), (4096, 10), (5000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_permutations_and_their_gradients(shape, dtype):
    key = make_key(4, 2)
    results = []
    for device in (torch.device("cpu"), GPU):
        z, z2 = (draws(*shape).to(dtype).to(device).mul(s).requires_grad_() for s in (1, 2))
        out = tc_batch(z, z2, key=key.to(device))
        grads = torch.autograd.grad(out, (z, z2), draws(*out.shape).to(dtype).to(device))
        results.append([x.detach().cpu() for x in (out, *grads)])
    for cpu, gpu in zip(*results, strict=True):
        assert torch.equal(cpu, gpu)


@pytest.mark.parametrize("sizes", [(3,), (3, 5, 4, 7), (3, 6, 40, 32)])
@pytest.mark.parametrize("given", [False, True])
def test_histograms(sizes, given):
    rows = torch.Size(sizes).numel()
    codes = draws(rows, 10)
    factors = reference.factor_classes(rows, sizes, torch.device("cpu")).flip(0) if given else None
    cpu = code_histogram(codes, factors, sizes)
    gpu = code_histogram(codes.to(GPU), None if factors is None else factors.to(GPU), sizes)
    for one, two in zip(cpu, gpu, strict=True):
        assert torch.equal(one, two.cpu())


@pytest.mark.parametrize("sizes", [(3, 2, 4), (3, 6, 10, 8)])
def test_entropies(sizes):
    rows = torch.Size(sizes).numel()
    mu, logvar = draws(rows, 10), draws(10, rows).T.contiguous() - 2
    cpu, gpu = posterior_entropy(mu, logvar, sizes), posterior_entropy(mu.to(GPU), logvar.to(GPU), sizes)
    torch.testing.assert_close(gpu.marginal.cpu(), cpu.marginal, rtol=0, atol=1e-5)
    for one, two in zip(cpu.conditional, gpu.conditional, strict=True):
        torch.testing.assert_close(two.cpu(), one, rtol=0, atol=1e-5)
