"""pythae's BetaVAE, BetaTCVAE and FactorVAE before and after ``use_pyvae``: same losses, same gradients, the time of a
step.

What pythae has otherwise than published is set aside: BetaTCVAE's minibatch-stratified weights by ``use_mss=False``,
FactorVAE's leaks by looking only at the gradients that the autoencoder's loss gives the autoencoder.
"""

import sys
from collections.abc import Callable

import torch
from pythae.models import VAE, BetaTCVAE, BetaTCVAEConfig, BetaVAE, BetaVAEConfig, FactorVAE, FactorVAEConfig

import pyvae
from pyvae import reference
from pyvae.integrations.pythae import use_pyvae
from pyvae.random import Stream, fresh_key
from side_by_side import compare, largest_difference, spread

SHAPE = {"input_dim": (1, 64, 64), "latent_dim": 10, "reconstruction_loss": "bce"}
MODELS: dict[str, Callable[[], VAE]] = {
    "BetaVAE": lambda: BetaVAE(BetaVAEConfig(**SHAPE, beta=4.0)),
    "BetaTCVAE": lambda: BetaTCVAE(BetaTCVAEConfig(**SHAPE, beta=6.0, use_mss=False)),
    "FactorVAE": lambda: FactorVAE(FactorVAEConfig(**SHAPE, gamma=6.4)),
}
IMAGES = 737_280  # in the training set, for BetaTCVAE


def model(name: str) -> VAE:
    torch.manual_seed(0)
    return MODELS[name]()


def losses(model: VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The autoencoder's loss, and the discriminator's where there is one."""
    out = model({"data": x}, dataset_size=IMAGES)
    return (
        (out.autoencoder_loss, out.discriminator_loss) if isinstance(model, FactorVAE) else (out.loss, None)
    )


def loss_and_gradients(model: VAE, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    spread(model.encoder)
    if isinstance(model, FactorVAE):
        spread(model.discriminator)
    torch.manual_seed(1)
    loss, _ = losses(model, x)
    weights = [*model.encoder.parameters(), *model.decoder.parameters()]
    return loss.detach(), list(torch.autograd.grad(loss, weights))


def with_our_noise(model: VAE) -> VAE:
    def sample(mu: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = reference.posterior_noise(mu.shape, fresh_key(mu.device), Stream.POSTERIOR, mu.dtype)
        return mu + noise * std, noise

    model._sample_gauss = sample
    model._permute_dims = pyvae.permute_dims
    return model


def stepper(model: VAE, x: torch.Tensor) -> Callable[[], None]:
    """A step as pythae's trainers take it."""
    autoencoder = torch.optim.Adam([*model.encoder.parameters(), *model.decoder.parameters()], lr=1e-4)
    optimizers = [autoencoder]
    if isinstance(model, FactorVAE):
        optimizers.append(torch.optim.Adam(model.discriminator.parameters(), lr=1e-4))

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, discriminator_loss = losses(model, x)
        loss.backward(retain_graph=discriminator_loss is not None)
        if discriminator_loss is not None:
            discriminator_loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def main(rounds: int = 30) -> dict[str, tuple[float, float]]:
    x = (torch.rand(64, 1, 64, 64) < 0.05).float()
    found = {}
    for name in MODELS:
        before, grads_before = loss_and_gradients(with_our_noise(model(name)), x)
        after, grads_after = loss_and_gradients(use_pyvae(model(name)), x)
        difference = largest_difference(grads_before, grads_after)
        print(f"{name}: loss {before:.4f} before, {after:.4f} after; gradients differ by {difference:.1e}")
        print(f"{name}: {compare(stepper(model(name), x), stepper(use_pyvae(model(name)), x), rounds)}")
        found[name] = abs(float(before - after)) / float(before), difference
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
