"""importance_log_weight, value and gradient: the popular chain of torch functions, torch.compile of it, pyvae."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

import pyvae
from pyvae.reference import pack_bits, unpack_bits

# batch, M, K, latents, pixels: MNIST as published, and dSprites
SIZES = [(20, 8, 8, 50, 784), (64, 4, 16, 10, 4096)]


def popular(logits, target, z, mu, logvar):
    scale = torch.exp(0.5 * logvar)[:, None, None]
    image = target[:, None, None].expand_as(logits)
    log_p_x = -F.binary_cross_entropy_with_logits(logits, image, reduction="none").sum(-1)
    log_p_z = Normal(torch.zeros_like(z), 1.0, validate_args=False).log_prob(z).sum(-1)
    posterior = Normal(mu[:, None, None].expand_as(z), scale.expand_as(z), validate_args=False)
    return log_p_x + log_p_z - posterior.log_prob(z).sum(-1)


PROVIDERS = {
    "eager": popular,
    "compile": torch.compile(popular),
    "pyvae": pyvae.importance_log_weight,
    "pyvae bits": pyvae.importance_log_weight,
}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_importance_log_weight(timed, device, provider, size):
    batch, outer, samples, latents, pixels = size
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, device=device, generator=generator).requires_grad_()

    inputs = [normal(batch, outer, samples, pixels), normal(batch, outer, samples, latents)]
    inputs += [normal(batch, latents), normal(batch, latents)]
    bits = pack_bits(torch.rand((batch, pixels), device=device, generator=generator) < 0.5)
    image = unpack_bits(bits, pixels).float()
    target = bits if provider == "pyvae bits" else image

    def evaluate(function, x):
        log_w = function(inputs[0], x, *inputs[1:])
        return log_w, *torch.autograd.grad(log_w.mean(), inputs)

    def derive(log_w, *gradients):
        return [log_w.detach(), *gradients]

    # logits twice and their gradient once, z likewise; the image twice
    rows = batch * outer * samples
    moved = 12 * rows * (pixels + latents) + 2 * target.numel() * target.element_size()
    timed(
        lambda: evaluate(PROVIDERS[provider], target),
        derive,
        derive(*evaluate(popular, image)),
        group=f"importance_log_weight value+gradient {'x'.join(map(str, size))}",
        moved_bytes=moved,
    )
