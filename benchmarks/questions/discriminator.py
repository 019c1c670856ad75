"""What FactorVAE's discriminator says of a total correlation, and what it would say if it had time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyvae
from pyvae.engine.run import RunDirectory
from pyvae.functional import permute_dims
from pyvae.metrics import CodeTable
from pyvae.objectives import FactorVAE
from pyvae.random import Stream, bits, make_key, normal

SAMPLES = 8192
"""Of q(z), and of the product of its marginals."""
CAUGHT_UP = (0, 250, 500, 1000, 2000)
"""Further steps of the discriminator while the encoder stands still."""
_BATCH = 1024
_SEED = 17


def discriminator_of(run: pyvae.Run, step: int) -> nn.Module:
    """The discriminator of a snapshot."""
    objective = run.recipe.objective
    assert isinstance(objective, FactorVAE)
    net = objective.discriminator(run.recipe.latents)
    tensors = RunDirectory.open(run.path).saved(step).tensors
    net.load_state_dict({name: tensors[f"discriminator.{name}"] for name in net.state_dict()})
    return net


def drawing(codes: CodeTable, seed: int) -> Callable[[int], Tensor]:
    """A function that draws so many new z ``[n, D]`` of q(z) at every call."""
    calls = iter(range(2**31))

    def draw(count: int) -> Tensor:
        call = next(calls)
        rows = bits(make_key(seed, 2 * call), count, 1, Stream.METRIC)[:, 0] % len(codes)
        noise = normal(make_key(seed, 2 * call + 1), count, codes.latents, Stream.METRIC)
        return codes.mu[rows] + torch.exp(0.5 * codes.logvar[rows]) * noise

    return draw


def permuted(z: Tensor) -> Tensor:
    """As many samples of the product of the marginals."""
    return permute_dims(z, key=make_key(_SEED))


@torch.inference_mode()
def says(discriminator: nn.Module, codes: CodeTable) -> dict[str, float]:
    """Of samples that no training has seen, in nats but for the accuracy.

    ``log_odds``, the mean on q(z), is what training takes for the total correlation. ``bound`` is that of Donsker &
    Varadhan 1983, the mean on q(z) less the log of the mean odds on the product: no discriminator exceeds the total
    correlation with it, but for chance, and a constant that it says of everything counts nothing.
    """
    draw = drawing(codes, _SEED)
    z, product = draw(SAMPLES), permuted(draw(SAMPLES))
    of_codes, of_product = (
        torch.cat([logits[:, 0] - logits[:, 1] for logits in map(discriminator, x.split(_BATCH))]).double()
        for x in (z, product)
    )
    right = 0.5 * ((of_codes > 0).double().mean() + (of_product < 0).double().mean())
    found = {
        "log_odds": of_codes.mean(),
        "log_odds_error": of_codes.std() / math.sqrt(SAMPLES),
        "log_odds_of_product": of_product.mean(),
        "bound": of_codes.mean() - torch.logsumexp(of_product, 0) + math.log(SAMPLES),
        "accuracy": right,
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def catch_up(run: pyvae.Run, step: int, codes: CodeTable) -> list[dict[str, Any]]:
    """What the discriminator says after more steps of its own on codes that do not move any more.

    Batches, loss and rate are those of the run; Adam begins anew.
    """
    objective, batch = run.recipe.objective, run.recipe.batch_size
    assert isinstance(objective, FactorVAE)
    net = discriminator_of(run, step)
    optimizer = objective.discriminator_optimizer(net)
    draw = drawing(codes, _SEED + 1)
    found = []
    for made in range(CAUGHT_UP[-1] + 1):
        if made in CAUGHT_UP:
            found.append({"steps": made, **says(net, codes)})
        loss = objective.discriminator_loss(net, draw(batch), draw(batch), make_key(_SEED, made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found
