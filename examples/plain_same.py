"""That plain_after.py is plain_before.py: for the same noise the same losses and gradients, and the time of each."""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyvae import bernoulli_nll, reference, reparameterize_kl
from pyvae.random import Stream, make_key
from side_by_side import compare, largest_difference, spread

KEY = make_key(seed=0, step=0)


def networks() -> nn.ModuleList:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 20))
    decoder = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 4096), nn.Unflatten(1, (1, 64, 64)))
    return nn.ModuleList([encoder, decoder])


def before(nets: nn.ModuleList, x: Tensor, noise: Tensor | None = None) -> Tensor:
    mu, logvar = nets[0](x).chunk(2, dim=1)
    z = mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if noise is None else noise)
    recon = F.binary_cross_entropy_with_logits(nets[1](z), x, reduction="sum") / len(x)
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
    return recon + 4 * kl


def after(nets: nn.ModuleList, x: Tensor, key: Tensor | None = None) -> Tensor:
    mu, logvar = nets[0](x).chunk(2, dim=1)
    z, kl = reparameterize_kl(mu, logvar, key=key)
    return bernoulli_nll(nets[1](z), x) + 4 * kl.sum()


def stepper(loss: Callable[[nn.ModuleList, Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    nets = networks()
    optimizer = torch.optim.Adam(nets.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss(nets, x).backward()
        optimizer.step()

    return step


def main(rounds: int = 50) -> tuple[float, float]:
    x, nets = (torch.rand(64, 1, 64, 64) < 0.05).float(), networks()
    spread(nets[0])
    noise = reference.posterior_noise((64, 10), KEY, Stream.POSTERIOR, torch.float32)
    old, new = before(nets, x, noise), after(nets, x, KEY)
    grads = [list(torch.autograd.grad(loss, list(nets.parameters()))) for loss in (old, new)]
    difference = largest_difference(*grads)
    print(f"loss {old:.4f} before, {new:.4f} after; gradients differ by {difference:.1e} of the largest")
    print(compare(stepper(before, x), stepper(after, x), rounds))
    return abs(float(old - new)) / float(old), difference


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
