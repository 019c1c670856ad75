"""pythae's models with pyvae's losses: the same values and gradients for the same noise."""

import copy
import pickle

import pytest
import torch
from torch import nn

import pyvae
from pyvae import reference
from pyvae.errors import PyvaeError
from pyvae.random import Stream, fresh_key

pytest.importorskip("pythae", reason="pip install pyvae-engine[examples]")

from pythae.models import (
    AE,
    VAE,
    AEConfig,
    AutoModel,
    BetaTCVAE,
    BetaTCVAEConfig,
    BetaVAE,
    BetaVAEConfig,
    FactorVAE,
    FactorVAEConfig,
    VAEConfig,
)
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import AdversarialTrainerConfig, BaseTrainerConfig

from pyvae.integrations.pythae import use_pyvae
from pyvae.modules import fuse_convolutions
from pyvae.nets.layers import Layers

SHAPE = {"input_dim": (1, 8, 8), "latent_dim": 3, "reconstruction_loss": "bce"}
MODELS = {
    "vae": lambda: VAE(VAEConfig(**SHAPE)),
    "beta-vae": lambda: BetaVAE(BetaVAEConfig(**SHAPE, beta=4.0)),
    "tc-vae": lambda: BetaTCVAE(BetaTCVAEConfig(**SHAPE, alpha=0.5, beta=6.0, gamma=2.0, use_mss=False)),
    "factor-vae": lambda: FactorVAE(FactorVAEConfig(**SHAPE, gamma=3.0)),
}


def same_noise(model):
    """The model as pythae wrote it, but for where its noise comes from."""

    def sample(mu, std):
        noise = reference.posterior_noise(mu.shape, fresh_key(mu.device), Stream.POSTERIOR, mu.dtype)
        return mu + noise * std, noise

    model._sample_gauss = sample
    model._permute_dims = pyvae.permute_dims
    return model


def made(kind):
    torch.manual_seed(0)
    return MODELS[kind]()


def run(model, batch=7):
    torch.manual_seed(5)
    data = (torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    return model({"data": data}, dataset_size=500)


def gradients(loss, module):
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("kind", MODELS)
def test_same_values_and_gradients(kind):
    theirs, mine = same_noise(made(kind)), use_pyvae(made(kind))
    before, after = run(theirs), run(mine)
    assert list(before.keys()) == list(after.keys())
    for name in before.keys():  # noqa: SIM118
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5, msg=name)
    for loss in ("loss",) if kind != "factor-vae" else ("autoencoder_loss",):
        for part in ("encoder", "decoder"):
            pairs = zip(
                gradients(after[loss], getattr(mine, part)),
                gradients(before[loss], getattr(theirs, part)),
                strict=True,
            )
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_factor_vaes_losses_no_longer_leak():
    theirs, mine = same_noise(made("factor-vae")), use_pyvae(made("factor-vae"))
    before, after = run(theirs), run(mine)
    pairs = zip(
        gradients(after.discriminator_loss, mine.discriminator),
        gradients(before.discriminator_loss, theirs.discriminator),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert gradients(before.discriminator_loss, theirs.encoder)
    assert not gradients(after.discriminator_loss, mine.encoder)
    assert gradients(before.autoencoder_loss, theirs.discriminator)
    assert not gradients(after.autoencoder_loss, mine.discriminator)


def test_stratified_weights_are_the_published_ones():
    mine = use_pyvae(BetaTCVAE(BetaTCVAEConfig(**SHAPE, beta=1.0)))
    out = run(mine)
    torch.manual_seed(5)
    data = (torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    encoded = mine.encoder(data)
    mu, logvar = encoded.embedding, encoded.log_covariance
    # with all weights 1 the KL at the sampled z, whatever the estimator
    log_q = -0.5 * ((out.z - mu) ** 2 / logvar.exp() + logvar).sum(1)
    torch.testing.assert_close(out.reg_loss, (log_q + 0.5 * (out.z**2).sum(1)).mean(), rtol=1e-4, atol=1e-4)


class Convolutional(BaseEncoder):
    """An encoder of a user's own."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mean, self.logvar = nn.Linear(128, 3), nn.Linear(128, 3)

    def forward(self, x):
        features = self.trunk(x)
        return ModelOutput(embedding=self.mean(features), log_covariance=self.logvar(features))


def test_convolutions_of_a_users_own_encoder():
    torch.manual_seed(0)
    model = use_pyvae(VAE(VAEConfig(**SHAPE), encoder=Convolutional()))
    before = run(copy.deepcopy(model)).loss
    assert fuse_convolutions(model) is model
    assert type(model.encoder.trunk) is Layers
    after = run(model).loss
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    after.backward()
    assert all(p.grad.norm() > 0 for p in model.encoder.parameters())


def test_the_rest_of_pythae_still_works():
    model = use_pyvae(made("beta-vae"))
    images = torch.rand(2, 1, 8, 8)
    assert model.reconstruct(images).shape == images.shape
    with torch.no_grad():
        assert 0 <= float(model.reconstruct(images).min()) <= float(model.reconstruct(images).max()) <= 1
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        out = model({"data": images.round()})
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", MODELS)
def test_pythaes_own_trainer_trains_copies_and_saves(kind, tmp_path):
    model = use_pyvae(made(kind))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = (AdversarialTrainerConfig if kind == "factor-vae" else BaseTrainerConfig)(
        output_dir=str(tmp_path),
        num_epochs=2,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        steps_predict=1,
        seed=1,
    )
    images = (torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    # it copies the best model, and with steps_predict calls the copy
    TrainingPipeline(model=model, training_config=config)(train_data=images, eval_data=images)
    for part in ("encoder", "decoder", *(["discriminator"] if kind == "factor-vae" else [])):
        moved = [not p.equal(start[n]) for n, p in model.named_parameters() if n.startswith(f"{part}.")]
        assert moved, part
        assert all(moved), part
    (folder,) = tmp_path.glob("*/final_model")
    assert type(AutoModel.load_from_folder(str(folder))) is type(made(kind))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_calls_itself(kind, copied):
    model = use_pyvae(made(kind))
    model.reconstruct(torch.rand(2, 1, 8, 8))  # and keeps nothing of a graph
    other = copied(model)
    before = run(model).recon_loss
    torch.testing.assert_close(run(other).recon_loss, before)
    with torch.no_grad():
        for p in other.decoder.parameters():
            p.zero_()
    # even odds
    assert float(run(other).recon_loss) == pytest.approx(64 * 0.6931472, rel=1e-5)
    torch.testing.assert_close(run(model).recon_loss, before)


def test_twice_is_once():
    model = use_pyvae(made("vae"))
    assert use_pyvae(model) is model
    run(model)


def test_a_decoder_that_goes_on_after_its_sigmoid_is_refused():
    class Decoder(type(made("vae").decoder)):
        def forward(self, z, **options):
            out = super().forward(z, **options)
            out["reconstruction"] = 0.9 * out["reconstruction"] + 0.05
            return out

    model = made("vae")
    model.decoder.__class__ = Decoder
    use_pyvae(model)
    with pytest.raises(PyvaeError, match="does not end with its sigmoid"):
        run(model)


def test_maps_of_an_encoder_are_refused():
    """Their last two dimensions would be taken for batch and latents."""

    class Encoder(type(made("vae").encoder)):
        def forward(self, x):
            out = super().forward(x)
            for name in ("embedding", "log_covariance"):
                out[name] = out[name][..., None, None]
            return out

    model = made("vae")
    model.encoder.__class__ = Encoder
    use_pyvae(model)
    with pytest.raises(PyvaeError, match=r"the encoder's embedding is \[B, D\], got \[\d+, \d+, 1, 1\]"):
        run(model)


def test_what_it_does_not_know_is_refused():
    with pytest.raises(PyvaeError, match="knows pythae's VAE, BetaVAE, BetaTCVAE, FactorVAE, not AE"):
        use_pyvae(AE(AEConfig(input_dim=(1, 8, 8), latent_dim=3)))
    with pytest.raises(PyvaeError, match="the reconstruction loss is 'mse': set it to 'bce'"):
        use_pyvae(VAE(VAEConfig(**{**SHAPE, "reconstruction_loss": "mse"})))
    model = made("vae")
    model.decoder = nn.Linear(3, 64)
    with pytest.raises(PyvaeError, match="a decoder that ends with one sigmoid is needed, this one has 0"):
        use_pyvae(model)
