"""pythae (Chadebec et al. 2022): its models, with pyvae's losses.

>>> from pythae.models import BetaVAE, BetaVAEConfig  # doctest: +SKIP
>>> model = use_pyvae(BetaVAE(BetaVAEConfig(input_dim=(1, 64, 64), reconstruction_loss="bce")))  # doctest: +SKIP
"""

from typing import Any, TypeVar

import torch
from pythae.models import VAE, BetaTCVAE, BetaVAE, FactorVAE
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from pyvae.errors import PyvaeError
from pyvae.functional import bernoulli_nll, permute_dims, reparameterize_kl
from pyvae.objectives.factor_vae import FactorVAE as Factor
from pyvae.objectives.tc_vae import decompose_kl

Model = TypeVar("Model", bound=VAE)


def use_pyvae(model: Model) -> Model:
    """Give a pythae VAE, BetaVAE, BetaTCVAE or FactorVAE pyvae's sampling and losses; everything else stays pythae's.

    Its ``forward`` returns the same fields of the same values, but for the noise (Philox keys drawn from torch's
    generator) and two things of pythae 0.1.2 that are not as published: BetaTCVAE with ``use_mss`` gets the weights of
    Chen et al. 2018, equation S6, where pythae fills a column instead of the diagonal; and FactorVAE's two losses no
    longer leak, that of the VAE into the discriminator and that of the discriminator into the encoder. The loss is
    computed from logits, read in front of the sigmoid that ends the decoder; probabilities would saturate.

    Args:
        model: changed in place; what copies, trains or saves it works as before, and what it saves, pythae loads.

    Returns:
        the model.

    Raises:
        PyvaeError: another model, a reconstruction loss that is not "bce", or a decoder that does not have exactly one
            sigmoid; in the first step, a decoder that goes on after it, or an embedding that is not ``[B, D]``.
    """
    if isinstance(model, _Fused):
        return model
    fused = _FUSED.get(type(model))
    if fused is None:
        known = ", ".join(kind.__name__ for kind in _FUSED)
        raise PyvaeError(f"use_pyvae: knows pythae's {known}, not {type(model).__name__}")
    if model.model_config.reconstruction_loss != "bce":
        raise PyvaeError(
            f"use_pyvae: the reconstruction loss is {model.model_config.reconstruction_loss!r}: set it to 'bce'"
        )
    _sigmoid(model)
    # the class and not the instance's forward: pythae's trainers copy the model, and a copy has to call itself
    model.__class__ = fused
    return model


def _sigmoid(model: Any) -> nn.Module:
    sigmoids = [module for module in model.decoder.modules() if isinstance(module, nn.Sigmoid)]
    if len(sigmoids) != 1:
        raise PyvaeError(
            f"use_pyvae: a decoder that ends with one sigmoid is needed, this one has {len(sigmoids)}"
        )
    return sigmoids[0]


def _encode(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    output = model.encoder(x)
    mu, logvar = output.embedding, output.log_covariance
    if mu.ndim != 2:
        # pyvae's ops would take what stands in front of the last two dimensions for an ensemble
        raise PyvaeError(f"use_pyvae: the encoder's embedding is [B, D], got {list(mu.shape)}: flatten it")
    return mu, logvar


def _reconstruct(model: Any, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and the loss in nats."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = _sigmoid(model).register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    try:
        probabilities = model.decoder(z)["reconstruction"]
    finally:
        hook.remove()
    if (
        len(seen) != 1
        or probabilities.untyped_storage().data_ptr() != seen[0][1].untyped_storage().data_ptr()
    ):
        raise PyvaeError("use_pyvae: the decoder does not end with its sigmoid: there are no logits to read")
    logits, _ = seen[0]
    return probabilities, bernoulli_nll(logits.reshape(len(x), -1), x.reshape(len(x), -1))


def _forward_vae(model: Any, inputs: Any, **_: Any) -> ModelOutput:
    x = inputs["data"]
    z, kl = reparameterize_kl(*_encode(model, x))
    recon_x, recon = _reconstruct(model, x, z)
    kl = kl.sum()
    loss = recon + getattr(model, "beta", 1.0) * kl
    return ModelOutput(recon_loss=recon, reg_loss=kl, loss=loss, recon_x=recon_x, z=z)


def _forward_tc_vae(model: Any, inputs: Any, **options: Any) -> ModelOutput:
    x = inputs["data"]
    mu, logvar = _encode(model, x)
    z, _ = reparameterize_kl(mu, logvar)
    recon_x, recon = _reconstruct(model, x, z)
    mi, tc, dwkl = decompose_kl(
        z,
        mu,
        logvar,
        dataset_size=options.get("dataset_size", len(x)),
        weighting="mss" if model.use_mss else "mws",
    )
    weighted = model.alpha * mi + model.beta * tc + model.gamma * dwkl
    return ModelOutput(recon_loss=recon, reg_loss=weighted, loss=recon + weighted, recon_x=recon_x, z=z)


def _forward_factor_vae(model: Any, inputs: Any, **_: Any) -> ModelOutput:
    data = inputs["data"]
    if len(data) < 2:
        raise ArithmeticError("At least 2 samples in a batch are required for the `FactorVAE` model")
    second, first = torch.randperm(len(data)).tensor_split([len(data) // 2])
    x = data[first]
    z, kl = reparameterize_kl(*_encode(model, x))
    recon_x, recon = _reconstruct(model, x, z)
    with torch.no_grad():
        z_bis = reparameterize_kl(*_encode(model, data[second]))[0]
    permuted = permute_dims(z_bis)
    logits = model.discriminator(torch.cat([z.detach(), permuted]))
    nats = -torch.log_softmax(logits.float(), -1)
    discriminator_loss = 0.5 * (nats[: len(z), 0].mean() + nats[len(z) :, 1].mean())
    autoencoder_loss = recon + kl.sum() + model.gamma * Factor.total_correlation(model.discriminator, z)
    return ModelOutput(
        loss=autoencoder_loss + discriminator_loss,
        recon_loss=recon,
        autoencoder_loss=autoencoder_loss,
        discriminator_loss=discriminator_loss,
        recon_x=recon_x,
        recon_x_indices=first,
        z=z,
        z_bis_permuted=permuted,
    )


class _Fused:
    """A model that :func:`use_pyvae` has changed."""


class _VAE(_Fused, VAE):
    forward = _forward_vae


class _BetaVAE(_Fused, BetaVAE):
    forward = _forward_vae


class _BetaTCVAE(_Fused, BetaTCVAE):
    forward = _forward_tc_vae


class _FactorVAE(_Fused, FactorVAE):
    forward = _forward_factor_vae


_FUSED: dict[type, type] = {VAE: _VAE, BetaVAE: _BetaVAE, BetaTCVAE: _BetaTCVAE, FactorVAE: _FactorVAE}
