"""reparameterize_kl, value and gradient: PyTorch as the popular repositories write it, torch.compile of that, pyvae."""

import pytest
import torch

import pyvae
from pyvae.random import make_key

SIZES = [(64, 10), (64, 4096)]


def popular(mu, logvar, eps=None):
    eps = torch.randn_like(mu) if eps is None else eps
    z = mu + torch.exp(logvar / 2) * eps
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return z, kl.mean(0)


def fused(mu, logvar):
    return pyvae.reparameterize_kl(mu, logvar, key=make_key(0, device=mu.device))


PROVIDERS = {"eager": popular, "compile": torch.compile(popular), "pyvae": fused}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_reparameterize_kl(timed, device, provider, size):
    generator = torch.Generator(device).manual_seed(0)
    mu, logvar = (torch.randn(size, device=device, generator=generator).requires_grad_() for _ in range(2))
    upstream = [torch.randn(size, device=device, generator=generator), torch.ones(size[1], device=device)]

    def call():
        z, kl = PROVIDERS[provider](mu, logvar)
        return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), upstream)

    def derive(z, kl, grad_mu, grad_logvar):
        """The providers draw different noise: what is left when the part that it explains is taken out."""
        eps = (z - mu) * torch.exp(-logvar / 2)
        return [
            kl.detach(),
            grad_mu,
            (grad_logvar - 0.5 * upstream[0] * torch.exp(logvar / 2) * eps).detach(),
        ]

    _, kl = popular(mu, logvar)
    expected = [kl, upstream[0] + mu / size[0], 0.5 * (logvar.exp() - 1) / size[0]]
    # forward: mu and logvar in, z out; backward: those and the gradient of z in, two gradients out
    moved = (3 + 5) * 4 * mu.numel()
    group = f"reparameterize_kl value+gradient {size[0]}x{size[1]}"
    timed(call, derive, [x.detach() for x in expected], group=group, moved_bytes=moved)
