"""disent's frameworks with pyvae's reconstruction loss: the same values and gradients."""

import pytest
import torch

from disent_stub import import_disent
from pyvae.errors import PyvaeError

import_disent()

from disent.frameworks.vae import BetaVae  # noqa: E402
from disent.model import AutoEncoder  # noqa: E402
from disent.model.ae import DecoderConv64, EncoderConv64  # noqa: E402

from pyvae.integrations.disent import FusedReconstruction  # noqa: E402
from pyvae.modules import fuse_convolutions  # noqa: E402
from pyvae.nets.layers import Layers  # noqa: E402


class Fused(FusedReconstruction, BetaVae):
    pass


def framework(kind, **settings):
    torch.manual_seed(0)
    shape = {"x_shape": (1, 64, 64), "z_size": 3}
    model = AutoEncoder(encoder=EncoderConv64(**shape, z_multiplier=2), decoder=DecoderConv64(**shape))
    made = kind(model=model, cfg=kind.cfg(**{"recon_loss": "bce", **settings}))
    made.log_dict = lambda *_, **__: None  # Lightning's, which wants a trainer
    return made


def step(made):
    torch.manual_seed(5)
    x = (torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    loss = made.do_training_step({"x_targ": (x,)}, 0)
    return loss, torch.autograd.grad(loss, list(made.parameters()))


@pytest.mark.parametrize("reduction", ["mean", "mean_sum"])
@pytest.mark.parametrize("recon", ["bce", "bernoulli"])
def test_same_values_and_gradients(reduction, recon):
    settings = {"loss_reduction": reduction, "recon_loss": recon, "beta": 2.0}
    before, grads_before = step(framework(BetaVae, **settings))
    after, grads_after = step(framework(Fused, **settings))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    for a, b in zip(grads_after, grads_before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max() + 1e-12))


def test_other_losses_are_refused():
    with pytest.raises(PyvaeError, match="recon_loss is 'mse': set it to 'bce'"):
        step(framework(Fused, recon_loss="mse"))


def test_convolutions_of_its_networks():
    before, mine = framework(BetaVae), framework(BetaVae)
    assert fuse_convolutions(mine) is mine
    assert any(type(module) is Layers for module in mine._model._decoder.modules())
    assert list(mine.state_dict()) == list(before.state_dict())
    (loss, grads), (expected, expected_grads) = step(mine), step(before)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for a, b in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max() + 1e-12))
