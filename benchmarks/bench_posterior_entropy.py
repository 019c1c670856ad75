"""posterior_entropy: the sampled estimator of Chen et al., quadrature in PyTorch, pyvae."""

import pytest
import torch

from pyvae import reference
from pyvae.ops.posterior_entropy import posterior_entropy, sampled_entropy

# a quarter of the orientations of dSprites by a quarter of its positions; then all of it, for pyvae alone
SIZES = {"11520": (3, 6, 10, 8, 8), "737280": (3, 6, 40, 32, 32)}


def sampled(mu, logvar, factor_sizes):
    """The marginal alone, from 1,000 samples: the conditionals cost five times that again."""
    generator = torch.Generator(mu.device).manual_seed(0)
    rows = torch.randint(len(mu), (1000,), device=mu.device, generator=generator)
    noise = torch.randn(1000, mu.shape[1], device=mu.device, generator=generator)
    z = mu[rows] + torch.exp(0.5 * logvar[rows]) * noise
    return sampled_entropy(z, mu, logvar)[0]


PROVIDERS = {
    "sampled-marginal": sampled,
    "reference": lambda *args: reference.posterior_entropy(*args).marginal,
    "pyvae": lambda *args: posterior_entropy(*args).marginal,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_posterior_entropy(benchmark, device, provider, size):
    sizes = SIZES[size]
    if provider != "pyvae" and size == "737280":
        pytest.skip("minutes")
    generator = torch.Generator().manual_seed(0)
    classes = reference.factor_classes(int(size), sizes, torch.device("cpu"))
    used = classes / (torch.tensor(sizes) - 1.0) * 2 - 1
    idle = 0.01 * torch.randn(int(size), 5, generator=generator)
    mu = torch.cat([used, idle], 1).to(device)
    logvar = torch.cat([torch.full_like(used, -6.0), torch.zeros_like(idle)], 1).to(device)

    def call():
        # on the host: a GPU has finished
        return PROVIDERS[provider](mu, logvar, sizes).double().cpu()

    tolerance = 0.2 if provider == "sampled-marginal" else 2e-5
    expected = posterior_entropy(mu, logvar, sizes).marginal.cpu()
    torch.testing.assert_close(call(), expected, rtol=0, atol=tolerance)
    benchmark.group = f"posterior_entropy {size}x10"
    benchmark.pedantic(call, rounds=3, warmup_rounds=0)
