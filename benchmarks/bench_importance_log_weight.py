"""importance_log_weight, value and gradient: the popular chain of torch functions, torch.compile of it, pyvae."""

import torch
import torch.nn.functional as F
from torch.distributions import Normal

import pyvae
from interleaved import Case, each
from pyvae.reference import pack_bits, unpack_bits


def popular(logits, z, mu, logvar, target, bits):
    scale = torch.exp(0.5 * logvar)[:, None, None]
    image = target[:, None, None].expand_as(logits)
    log_p_x = -F.binary_cross_entropy_with_logits(logits, image, reduction="none").sum(-1)
    log_p_z = Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False).log_prob(z).sum(-1)
    posterior = Normal(mu[:, None, None].expand_as(z), scale.expand_as(z), validate_args=False)
    return log_p_x + log_p_z - posterior.log_prob(z).sum(-1)


def case(size: tuple[int, int, int, int, int]) -> Case:
    batch, outer, samples, latents, pixels = size

    def make(device, generator):
        def normal(*shape):
            return torch.randn(shape, device=device, generator=generator).requires_grad_()

        logits, z = normal(batch, outer, samples, pixels), normal(batch, outer, samples, latents)
        bits = pack_bits(torch.rand((batch, pixels), device=device, generator=generator) < 0.5)
        image = unpack_bits(bits, pixels).float()
        return logits, z, normal(batch, latents), normal(batch, latents), image, bits

    def evaluate(function, inputs):
        log_w = function(*inputs)
        return log_w, *torch.autograd.grad(log_w.mean(), inputs[:4])

    def expect(*inputs):
        exact = [x.detach().double().requires_grad_() for x in inputs[:4]]
        return [x.detach() for x in evaluate(popular, (*exact, inputs[4].double(), inputs[5]))]

    # logits twice and their gradient once, z likewise; the image twice
    rows = batch * outer * samples
    latent = 12 * rows * (pixels + latents)
    return Case(
        op="importance_log_weight",
        what="value + gradient",
        size=size,
        make=make,
        functions={
            "eager": popular,
            "pyvae": lambda logits, z, mu, logvar, image, bits: pyvae.importance_log_weight(
                logits, image, z, mu, logvar
            ),
            "pyvae, bits": lambda logits, z, mu, logvar, image, bits: pyvae.importance_log_weight(
                logits, bits, z, mu, logvar
            ),
        },
        compiled="eager",
        autotuned=pixels == 4096,
        evaluate=evaluate,
        expect=expect,
        moved={
            "eager": latent + 8 * batch * pixels,
            "pyvae": latent + 8 * batch * pixels,
            "pyvae, bits": latent + batch * pixels // 4,
        },
    )


# batch, M, K, latents, pixels: MNIST as published, and dSprites
CASES = [case((20, 8, 8, 50, 784)), case((64, 4, 16, 10, 4096))]


@each(CASES)
def test_importance_log_weight(timed, case, function):
    timed(case, function)
