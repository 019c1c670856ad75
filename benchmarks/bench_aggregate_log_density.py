"""aggregate_log_density, value and gradient: the popular B x B x D form, torch.compile of it, pyvae."""

import math

import pytest
import torch

import pyvae

SIZES = [(64, 10), (1024, 10)]
DATASET = 737_280


def popular(z, mu, logvar):
    distance = z.unsqueeze(1) - mu.unsqueeze(0)
    density = -0.5 * (
        distance.square() * torch.exp(-logvar).unsqueeze(0) + logvar.unsqueeze(0) + math.log(2 * math.pi)
    )
    constant = math.log(DATASET * len(z))
    joint = torch.logsumexp(density.sum(2), 1) - constant
    return joint, (torch.logsumexp(density, 1) - constant).sum(1)


def fused(z, mu, logvar):
    return pyvae.aggregate_log_density(z, mu, logvar, dataset_size=DATASET)


PROVIDERS = {"eager": popular, "compile": torch.compile(popular), "pyvae": fused}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_aggregate_log_density(timed, device, provider, size):
    generator = torch.Generator(device).manual_seed(0)
    inputs = [torch.randn(size, device=device, generator=generator).requires_grad_() for _ in range(3)]

    def evaluate(function):
        joint, product = function(*inputs)
        return joint, product, *torch.autograd.grad((joint - 5 * product).mean(), inputs)

    def derive(joint, product, *gradients):
        return [joint.detach(), product.detach(), *gradients]

    # the inputs twice, the gradients once: the pairs themselves need not touch memory
    moved = 9 * 4 * inputs[0].numel()
    group = f"aggregate_log_density value+gradient {size[0]}x{size[1]}"
    timed(
        lambda: evaluate(PROVIDERS[provider]),
        derive,
        derive(*evaluate(popular)),
        group=group,
        moved_bytes=moved,
    )
