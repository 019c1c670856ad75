"""Generator, critic and information head of InfoGAN, as plain modules."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pyvae.nets import INITIALISATIONS, kim, seeded
from pyvae.nets.layers import Layers

_WIDTH = 128
_SLOPE = 0.2


class CodePosterior(NamedTuple):
    """Q(c|x) of a batch of images."""

    mean: Tensor
    """float32 ``[B, C]`` of the continuous codes."""
    logvar: Tensor | None
    """float32 ``[B, C]``; None where the variance is fixed at 1."""
    logits: Tensor
    """float32 ``[B, K]`` of the categories."""

    def codes(self) -> tuple[Tensor, Tensor]:
        """What metrics read, mean and log-variance ``[B, codes]`` each: the most probable category is the last code,
        its class put evenly on [-1, 1], and has no variance to speak of, 0 here."""
        categories = self.logits.shape[-1]
        logvar = torch.zeros_like(self.mean) if self.logvar is None else self.logvar
        if not categories:
            return self.mean, logvar
        place = 2.0 * self.logits.argmax(-1, keepdim=True).float() / (categories - 1) - 1.0
        return torch.cat([self.mean, place], -1), torch.cat([logvar, torch.zeros_like(place)], -1)

    def first(self, count: int) -> "CodePosterior":
        """That of the first ``count`` images."""
        logvar = None if self.logvar is None else self.logvar[:count]
        return CodePosterior(self.mean[:count], logvar, self.logits[:count])


class Critic(nn.Module):
    """Convolutions, and on them a score and the information head Q. Their batch is not normalised, which would tie a
    point's gradient to the others; their weights may be (:func:`normalise_weights`)."""

    def __init__(self, channels: int, continuous: int, categories: int, learned: bool) -> None:
        super().__init__()
        layers = list(kim(channels, 1).encoder.trunk.children())  # type: ignore[union-attr]
        self.trunk = Layers(*(nn.LeakyReLU(_SLOPE) if isinstance(x, nn.ReLU) else x for x in layers))
        self.score = nn.Linear(_WIDTH, 1)
        self.information = Layers(
            nn.Linear(_WIDTH, _WIDTH),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(_WIDTH, continuous * (2 if learned else 1) + categories),
        )
        self._sizes = (continuous, continuous if learned else 0, categories)

    def forward(self, images: Tensor) -> tuple[Tensor, CodePosterior]:
        """Scores float32 ``[B]`` and Q of images ``[B, C, 64, 64]`` in [0, 1]."""
        features = self.trunk(images.contiguous(memory_format=torch.channels_last))
        mean, logvar, logits = self.information(features).float().split(self._sizes, -1)
        posterior = CodePosterior(mean, logvar if self._sizes[1] else None, logits)
        return self.score(features).float().squeeze(-1), posterior


def normalise_weights(module: nn.Module) -> None:
    """Divide the weight of every layer by its largest singular value (Miyato et al. 2018), which one iteration of the
    power method follows in each forward pass in training mode."""
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(layer)


class BatchNorm(nn.Module):
    """Batch normalisation of ``[B, C]`` or ``[B, C, H, W]``, as torch's but for the count of batches, which costs a
    launch a layer and only serves averages without momentum."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``; by the batch's own mean and variance in training mode, else by their averages."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=self.training
        )


class Generator(Layers):
    """The decoder of Kim & Mnih 2018, with leaky ReLU (0.2) between its convolutions; what it gives are logits
    ``[B, C, 64, 64]`` of the pixels.

    Args:
        channels: of the images.
        inputs: numbers that it reads of an image.
        normalised: whether each activation is followed by batch normalisation.
    """

    def __init__(self, channels: int, inputs: int, normalised: bool) -> None:
        layers: list[nn.Module] = []
        width, convolves = inputs, False
        for layer in kim(channels, inputs).decoder.children():
            convolves |= isinstance(layer, nn.ConvTranspose2d)
            width = getattr(layer, "out_channels", getattr(layer, "out_features", width))
            if not isinstance(layer, nn.ReLU):
                layers.append(layer)
                continue
            layers.append(nn.LeakyReLU(_SLOPE) if convolves else layer)
            if normalised:
                layers.append(BatchNorm(width))
        super().__init__(*layers)

    def images(self, inputs: Tensor) -> Tensor:
        """float32 ``[B, C, 64, 64]`` in [0, 1] of inputs ``[B, N + C + K]``."""
        return torch.sigmoid(self(inputs).float())


class AdversarialPair(nn.Module):
    """A generator and its critic."""

    def __init__(self, generator: Generator, critic: Critic, codes: int) -> None:
        super().__init__()
        self.generator = generator
        self.critic = critic
        self.latents = codes

    def encoder(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[B, codes]`` of Q's codes; see :meth:`CodePosterior.codes`."""
        posterior: CodePosterior = self.critic(images)[1]
        return posterior.codes()


def build_pair(
    channels: int,
    *,
    continuous: int,
    categories: int,
    noise: int,
    learned_variance: bool = False,
    batch_norm: bool = True,
    spectral_norm: bool = True,
    init: str = "torch",
    seed: int = 0,
) -> AdversarialPair:
    """Generator and critic with the layers of Kim & Mnih 2018, appendix: their encoder's for the critic, with leaky
    ReLU (0.2) and one layer of 128 more in the information head, and their decoder for the generator. Leaky ReLU, that
    layer and both kinds of normalisation are those of InfoGAN-CR's code (Lin et al. 2020) for dSprites.

    Args:
        channels: of the images, 64 x 64.
        continuous: C.
        categories: K.
        noise: N.
        learned_variance: whether Q says the variance of the continuous codes.
        batch_norm: after each activation of the generator.
        spectral_norm: of every layer of the critic.
        init: as :func:`pyvae.nets.build` takes it.
        seed: of the weights; torch's global generator is left as it was.
    """
    initialise: Callable[[nn.Module], None] | None = INITIALISATIONS[init]
    with seeded(seed):
        generator = Generator(channels, noise + continuous + categories, batch_norm)
        critic = Critic(channels, continuous, categories, learned_variance)
        if initialise:
            generator.apply(initialise)
            critic.apply(initialise)
        if spectral_norm:
            normalise_weights(critic)
    return AdversarialPair(generator, critic, continuous + (categories > 0))
