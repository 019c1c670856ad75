"""reparameterize_kl, value and gradient: PyTorch as the popular repositories write it, torch.compile of that, pyvae."""

import torch

import pyvae
from interleaved import Case, each
from pyvae.random import make_key


def popular(mu, logvar, *_):
    z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return z, kl.mean(0)


def case(size: tuple[int, int]) -> Case:
    def make(device, generator):
        def normal(*shape):
            return torch.randn(shape, device=device, generator=generator)

        mu, logvar = normal(*size).requires_grad_(), normal(*size).requires_grad_()
        return (
            mu,
            logvar,
            normal(*size),
            torch.full(size[1:], size[0], device=device).float(),
            make_key(0, device=device),
        )

    def evaluate(function, inputs):
        mu, logvar, grad_z, grad_kl, _ = inputs
        z, kl = function(*inputs)
        return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl))

    def derive(inputs, outputs):
        """The functions draw different noise: what is left when the part that it explains is taken out."""
        mu, logvar, upstream = (x.detach() for x in inputs[:3])
        z, kl, grad_mu, grad_logvar = (x.detach() for x in outputs)
        noise = z - mu
        eps = noise * torch.exp(-logvar / 2)
        # of noise only its first two moments are known
        moments = torch.stack([eps.mean(), eps.square().mean() - 1]) * (size[0] * size[1]) ** 0.5
        return [kl, grad_mu, grad_logvar - 0.5 * upstream * noise, (moments.abs() > 6).double() + 1]

    def expect(mu, logvar, upstream, *_):
        x, y = mu.detach().double(), logvar.detach().double()
        kl = 0.5 * (x.square() + y.exp() - 1 - y).mean(0)
        # the gradient of kl is the batch size: a smaller one would drown in what is rounded beside it
        return [kl, upstream + x, 0.5 * (y.exp() - 1), torch.ones(2)]

    functions = {
        "eager": popular,
        "pyvae": lambda mu, logvar, *_: pyvae.reparameterize_kl(mu, logvar),
        "pyvae, named noise": lambda mu, logvar, *rest: pyvae.reparameterize_kl(mu, logvar, key=rest[-1]),
    }
    ours = 8 if torch.cuda.is_available() else 10
    return Case(
        op="reparameterize_kl",
        what="value + gradient",
        size=size,
        make=make,
        functions=functions,
        compiled="eager",
        evaluate=evaluate,
        derive=derive,
        expect=expect,
        # forward: mu and logvar in, z out; backward: those and the gradient of z in, two gradients out. On a CPU pyvae
        # writes and reads z - mu as well.
        moved={name: (8 if name == "eager" else ours) * 4 * size[0] * size[1] for name in functions},
        autotuned=size == (64, 4096),
        devices=("cuda",) if size[0] > 64 else ("cpu", "cuda"),
    )


CASES = [case((64, 10)), case((64, 4096)), case((8192, 4096))]


@each(CASES)
def test_reparameterize_kl(timed, case, function):
    timed(case, function)
