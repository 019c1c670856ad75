"""tc_batch, without and with its gradient: one randperm a dimension as in the popular code, argsort of noise, pyvae."""

import torch

from interleaved import Case, each
from pyvae.ops.permute_dims import tc_batch
from pyvae.random import make_key


def popular(z, z2, *_):
    columns = [column[torch.randperm(len(z2), device=z2.device)] for column in z2.unbind(1)]
    return torch.cat([z, torch.stack(columns, 1)])


def argsort(z, z2, *_):
    return torch.cat([z, z2.gather(0, torch.rand_like(z2).argsort(0))])


def apart(z2, bottom):
    """Whether the first two dimensions were permuted each by itself."""
    order = torch.empty_like(z2, dtype=torch.int64).scatter_(0, bottom.argsort(0), z2.argsort(0))
    return ((order[:, 0] != order[:, 1]).double().mean() > 0.5).double()


FUNCTIONS = {
    "eager": popular,
    "eager, argsort": argsort,
    "pyvae": lambda z, z2, *_: tc_batch(z, z2),
    "pyvae, named noise": lambda z, z2, upper, key: tc_batch(z, z2, key=key),
}


def unlearnt(size: tuple[int, int]) -> Case:
    """As FactorVAE uses it: the discriminator's batch carries no gradient."""

    def make(device, generator):
        z, z2 = (torch.randn(size, device=device, generator=generator) for _ in range(2))
        return z, z2, None, make_key(0, device=device)

    def derive(inputs, outputs):
        top, bottom = outputs[0].chunk(2)
        moved = (bottom != inputs[1]).double().mean() > 0.5
        return [top, bottom.sort(0).values, moved, apart(inputs[1], bottom)]

    return Case(
        op="permute_dims",
        what="tc_batch, no gradient",
        size=size,
        make=make,
        functions=FUNCTIONS,
        compiled="eager, argsort",
        evaluate=lambda function, inputs: (function(*inputs),),
        derive=derive,
        expect=lambda z, z2, *_: [z, z2.sort(0).values, torch.tensor(True), torch.ones(())],
        # two in, both halves out
        moved=4 * 4 * size[0] * size[1],
    )


def case(size: tuple[int, int]) -> Case:
    def make(device, generator):
        z, z2 = (torch.randn(size, device=device, generator=generator).requires_grad_() for _ in range(2))
        upstream = torch.randn(2 * size[0], size[1], device=device, generator=generator)
        return z, z2, upstream, make_key(0, device=device)

    def evaluate(function, inputs):
        out = function(*inputs)
        return out, *torch.autograd.grad(out, inputs[:2], inputs[2])

    def derive(inputs, outputs):
        """The permutation is random: what it keeps is compared, and that elements were moved."""
        z2, upstream = inputs[1].detach(), inputs[2][size[0] :]
        out, grad_z, grad_z2 = (x.detach() for x in outputs)
        top, bottom = out.chunk(2)
        # elements and their gradients, both in the order of the elements
        strayed = grad_z2.gather(0, z2.argsort(0)) - upstream.gather(0, bottom.argsort(0))
        moved = (bottom != z2).double().mean() > 0.5
        return [top, bottom.sort(0).values, grad_z, strayed, moved.double(), apart(z2.detach(), bottom)]

    def expect(z, z2, upstream, _):
        kept = z2.detach().sort(0).values
        return [z.detach(), kept, upstream[: size[0]], torch.zeros_like(kept), torch.ones(()), torch.ones(())]

    return Case(
        op="permute_dims",
        what="tc_batch, forward + backward",
        size=size,
        make=make,
        functions=FUNCTIONS,
        compiled="eager, argsort",
        autotuned=size == (64, 10),
        evaluate=evaluate,
        derive=derive,
        expect=expect,
        # forward: two in, both halves out; backward: both halves in, two out
        moved=8 * 4 * size[0] * size[1],
    )


CASES = [unlearnt((64, 10)), unlearnt((1024, 10)), case((64, 10)), case((1024, 10)), case((64, 128))]


@each(CASES)
def test_permute_dims(timed, case, function):
    timed(case, function)
