"""aggregate_log_density, value and gradient: the popular B x B x D form, torch.compile of it, pyvae."""

import math

import torch

import pyvae
from interleaved import Case, each

DATASET = 737_280


def popular(z, mu, logvar):
    distance = z.unsqueeze(1) - mu.unsqueeze(0)
    density = -0.5 * (
        distance.square() * torch.exp(-logvar).unsqueeze(0) + logvar.unsqueeze(0) + math.log(2 * math.pi)
    )
    constant = math.log(DATASET * len(z))
    joint = torch.logsumexp(density.sum(2), 1) - constant
    return joint, (torch.logsumexp(density, 1) - constant).sum(1)


def case(size: tuple[int, int]) -> Case:
    def make(device, generator):
        return tuple(torch.randn(size, device=device, generator=generator).requires_grad_() for _ in range(3))

    def evaluate(function, inputs):
        joint, product = function(*inputs)
        return joint, product, *torch.autograd.grad((joint - 5 * product).mean(), inputs)

    def expect(*inputs):
        exact = [x.detach().double().requires_grad_() for x in inputs]
        return [x.detach() for x in evaluate(popular, exact)]

    return Case(
        op="aggregate_log_density",
        what="value + gradient",
        size=size,
        make=make,
        functions={
            "eager": popular,
            "pyvae": lambda *inputs: pyvae.aggregate_log_density(*inputs, dataset_size=DATASET),
        },
        compiled="eager",
        autotuned=size == (1024, 10),
        evaluate=evaluate,
        expect=expect,
        # the inputs twice, the gradients once: the pairs themselves need not touch memory
        moved=9 * 4 * size[0] * size[1],
    )


CASES = [case((64, 10)), case((1024, 10))]


@each(CASES)
def test_aggregate_log_density(timed, case, function):
    timed(case, function)
