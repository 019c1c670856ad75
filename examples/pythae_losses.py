"""pythae's beta-VAE before and after ``use_pyvae``: the same loss and gradients, and the time of a step."""

import sys
from collections.abc import Callable

import torch
from pythae.models import BetaVAE, BetaVAEConfig

from pyvae import reference
from pyvae.integrations.pythae import use_pyvae
from pyvae.random import Stream, fresh_key
from side_by_side import compare, largest_difference


def model() -> BetaVAE:
    torch.manual_seed(0)
    return BetaVAE(BetaVAEConfig(input_dim=(1, 64, 64), latent_dim=10, reconstruction_loss="bce", beta=4.0))


def loss_and_gradients(model: BetaVAE, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    loss = model({"data": x}).loss
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def with_our_noise(model: BetaVAE) -> BetaVAE:
    def sample(mu: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = reference.posterior_noise(mu.shape, fresh_key(mu.device), Stream.POSTERIOR, mu.dtype)
        return mu + noise * std, noise

    model._sample_gauss = sample
    return model


def stepper(model: BetaVAE, x: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model({"data": x}).loss.backward()
        optimizer.step()

    return step


def main(rounds: int = 30) -> tuple[float, float]:
    x = (torch.rand(64, 1, 64, 64) < 0.05).float()
    before, grads_before = loss_and_gradients(with_our_noise(model()), x)
    after, grads_after = loss_and_gradients(use_pyvae(model()), x)
    difference = largest_difference(grads_before, grads_after)
    print(f"loss {before:.4f} before, {after:.4f} after; gradients differ by {difference:.1e} of the largest")
    print(compare(stepper(model(), x), stepper(use_pyvae(model()), x), rounds))
    return abs(float(before - after)) / float(before), difference


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
