"""Generator, critic and information head of InfoGAN, as plain modules."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyvae.nets import INITIALISATIONS, kim, seeded

_WIDTH = 128
_SLOPE = 0.2


class CodePosterior(NamedTuple):
    """Q(c|x) of a batch of images."""

    mean: Tensor
    """float32 ``[B, C]`` of the continuous codes."""
    logvar: Tensor
    """float32 ``[B, C]``; 0 where the variance is fixed at 1."""
    logits: Tensor
    """float32 ``[B, K]`` of the categories."""

    def codes(self) -> tuple[Tensor, Tensor]:
        """What metrics read, mean and log-variance ``[B, codes]`` each: the most probable category is the last code,
        its class put evenly on [-1, 1], and has no variance to speak of, 0 here."""
        categories = self.logits.shape[-1]
        if not categories:
            return self.mean, self.logvar
        place = 2.0 * self.logits.argmax(-1, keepdim=True).float() / (categories - 1) - 1.0
        return torch.cat([self.mean, place], -1), torch.cat([self.logvar, torch.zeros_like(place)], -1)


class Critic(nn.Module):
    """Convolutions without any normalisation, which would tie a point's gradient to others of its batch; on them a
    score and the information head Q."""

    def __init__(self, channels: int, continuous: int, categories: int, learned: bool) -> None:
        super().__init__()
        layers = list(kim(channels, 1).encoder.trunk.children())  # type: ignore[union-attr]
        self.trunk = nn.Sequential(*(nn.LeakyReLU(_SLOPE) if isinstance(x, nn.ReLU) else x for x in layers))
        self.score = nn.Linear(_WIDTH, 1)
        self.information = nn.Linear(_WIDTH, continuous * (2 if learned else 1) + categories)
        self._sizes = (continuous, continuous if learned else 0, categories)

    def forward(self, images: Tensor) -> tuple[Tensor, CodePosterior]:
        """Scores float32 ``[B]`` and Q of images ``[B, C, 64, 64]`` in [0, 1]."""
        features = self.trunk(images.contiguous(memory_format=torch.channels_last))
        mean, logvar, logits = self.information(features).float().split(self._sizes, -1)
        posterior = CodePosterior(mean, logvar if self._sizes[1] else torch.zeros_like(mean), logits)
        return self.score(features).float().squeeze(-1), posterior


class Generator(nn.Sequential):
    """The decoder of Kim & Mnih 2018; what it gives are logits ``[B, C, 64, 64]`` of the pixels."""

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
    init: str = "torch",
    seed: int = 0,
) -> AdversarialPair:
    """Generator and critic with the layers of Kim & Mnih 2018, appendix: their encoder's for the critic, with leaky
    ReLU (0.2), and their decoder for the generator. There is no batch normalisation in either.

    Args:
        channels: of the images, 64 x 64.
        continuous: C.
        categories: K.
        noise: N.
        learned_variance: whether Q says the variance of the continuous codes.
        init: as :func:`pyvae.nets.build` takes it.
        seed: of the weights; torch's global generator is left as it was.
    """
    initialise: Callable[[nn.Module], None] | None = INITIALISATIONS[init]
    with seeded(seed):
        decoder = kim(channels, noise + continuous + categories).decoder
        generator = Generator(*decoder.children())
        critic = Critic(channels, continuous, categories, learned_variance)
        if initialise:
            generator.apply(initialise)
            critic.apply(initialise)
    return AdversarialPair(generator, critic, continuous + (categories > 0))
