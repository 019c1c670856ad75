"""disent's beta-VAE before and after pyvae's reconstruction loss: same loss, same gradients, the time of a step."""

import sys
from collections.abc import Callable

import torch
from disent.frameworks.vae import BetaVae
from disent.model import AutoEncoder
from disent.model.ae import DecoderConv64, EncoderConv64

from pyvae.integrations.disent import FusedReconstruction
from side_by_side import compare, largest_difference


class FusedBetaVae(FusedReconstruction, BetaVae):
    pass


def framework(kind: type[BetaVae]) -> BetaVae:
    torch.manual_seed(0)
    shape = {"x_shape": (1, 64, 64), "z_size": 10}
    model = AutoEncoder(encoder=EncoderConv64(**shape, z_multiplier=2), decoder=DecoderConv64(**shape))
    made = kind(model=model, cfg=kind.cfg(recon_loss="bce", loss_reduction="mean_sum", beta=4.0))
    made.log_dict = lambda *_, **__: None  # Lightning's, which wants a trainer
    return made


def loss_and_gradients(made: BetaVae, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    loss = made.do_training_step({"x_targ": (x,)}, 0)
    return loss.detach(), list(torch.autograd.grad(loss, list(made.parameters())))


def stepper(made: BetaVae, x: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        made.do_training_step({"x_targ": (x,)}, 0).backward()
        optimizer.step()

    return step


def main(rounds: int = 20) -> tuple[float, float]:
    x = (torch.rand(64, 1, 64, 64) < 0.05).float()
    before, grads_before = loss_and_gradients(framework(BetaVae), x)
    after, grads_after = loss_and_gradients(framework(FusedBetaVae), x)
    difference = largest_difference(grads_before, grads_after)
    print(f"loss {before:.4f} before, {after:.4f} after; gradients differ by {difference:.1e} of the largest")
    print(compare(stepper(framework(BetaVae), x), stepper(framework(FusedBetaVae), x), rounds))
    return abs(float(before - after)) / float(before), difference


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
