"""bernoulli_nll, loss and gradient: PyTorch as the popular repositories write it, torch.compile of that, pyvae."""

import torch
import torch.nn.functional as F

import pyvae
from interleaved import Case, each
from pyvae.reference import pack_bits


def popular(logits, image, bits):
    return F.binary_cross_entropy_with_logits(logits, image, reduction="sum") / logits.shape[0]


def case(size: tuple[int, int]) -> Case:
    def make(device, generator):
        logits = torch.randn(size, device=device, generator=generator, requires_grad=True)
        image = (torch.rand(size, device=device, generator=generator) < 0.04).float()
        return logits, image, pack_bits(image)

    def evaluate(function, inputs):
        loss = function(*inputs)
        return loss, *torch.autograd.grad(loss, inputs[0])

    def expect(logits, image, bits):
        x = logits.detach().double()
        return [(F.softplus(x) - x * image).sum() / size[0], (torch.sigmoid(x) - image) / size[0]]

    pixels = size[0] * size[1]
    # forward and backward each read logits and target, and the backward writes the gradient; on a CPU pyvae writes
    # it in the forward, so that it reads them once
    eager, reads = 3 * 4 * pixels + 2 * 4 * pixels, 2 if torch.cuda.is_available() else 1
    floats, bits = 4 * pixels + reads * 8 * pixels, 4 * pixels + reads * (4 * pixels + pixels // 8)
    return Case(
        op="bernoulli_nll",
        what="loss + gradient",
        size=size,
        make=make,
        functions={
            "eager": popular,
            "pyvae": lambda logits, image, bits: pyvae.bernoulli_nll(logits, image),
            "pyvae, bits": lambda logits, image, bits: pyvae.bernoulli_nll(logits, bits),
        },
        compiled="eager",
        autotuned=size == (64, 4096),
        evaluate=evaluate,
        expect=expect,
        moved={"eager": eager, "pyvae": floats, "pyvae, bits": bits},
        devices=("cuda",) if size[0] > 1024 else ("cpu", "cuda"),
    )


CASES = [case((64, 4096)), case((1024, 4096)), case((8192, 4096))]


@each(CASES)
def test_bernoulli_nll(timed, case, function):
    timed(case, function)
