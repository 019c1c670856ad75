"""bernoulli_nll, loss and gradient: PyTorch as the popular repositories write it, torch.compile of that, pyvae."""

import pytest
import torch
import torch.nn.functional as F

import pyvae
from pyvae.reference import pack_bits

SIZES = [(64, 4096), (1024, 4096)]


def popular(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / logits.shape[0]


PROVIDERS = {
    "eager": popular,
    "compile": torch.compile(popular),
    "pyvae": pyvae.bernoulli_nll,
    "pyvae-bits": pyvae.bernoulli_nll,
}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_bernoulli_nll(timed, device, provider, size):
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(size, device=device, generator=generator, requires_grad=True)
    image = (torch.rand(size, device=device, generator=generator) < 0.04).float()
    expected_loss = popular(logits, image)
    expected = [expected_loss.detach(), *torch.autograd.grad(expected_loss, logits)]
    target = pack_bits(image) if provider == "pyvae-bits" else image

    def call():
        loss = PROVIDERS[provider](logits, target)
        return loss, *torch.autograd.grad(loss, logits)

    def derive(loss, gradient):
        return [loss.detach(), gradient]

    # forward and backward each read logits and target; the backward writes the gradient
    moved = 3 * 4 * logits.numel() + 2 * target.numel() * target.element_size()
    group = f"bernoulli_nll loss+gradient {size[0]}x{size[1]}"
    timed(call, derive, expected, group=group, moved_bytes=moved)
