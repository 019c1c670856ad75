"""InfoGAN, and InfoWGAN-GP, which is the same with the critic of WGAN-GP."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.bounds import Count, Rate, Weight, Within, refusal
from pyvae.nets.adversarial import CodePosterior
from pyvae.objectives.objective import Objective
from pyvae.random import Stream, bits, normal, uniform


class Codes(NamedTuple):
    """What a generator reads."""

    noise: Tensor
    """float32 ``[B, N]``, standard normal."""
    continuous: Tensor
    """float32 ``[B, C]``, uniform in (-1, 1)."""
    category: Tensor
    """int64 ``[B]``, uniform in [0, K); all 0 where there are no categories."""


Dimensions = Annotated[int, Within(0, 10_000)]


@dataclass(frozen=True)
class InfoGAN(Objective):
    """Chen et al. 2016, "InfoGAN: interpretable representation learning by information maximizing generative
    adversarial nets": the non-saturating GAN loss, minus ``information_weight`` times the lower bound
    ``E[log Q(c | G(noise, c))] + H(c)`` of the mutual information of codes and images.

    The information head Q shares the critic's convolutions, as there, and is trained beside it. Codes and weight are
    those of the comparison in Kim & Mnih 2018 on 2D Shapes, whose second form is ``continuous 5, categories 0``. What
    they do not say is as in Lin et al. 2020 (the code of InfoGAN-CR for dSprites): dimensions of the noise, which is
    uniform there, normalisations, rates, and two steps of the generator for one of the critic, which there read the
    same codes. Without the normalisations the critic wins within some thirty
    steps, since its real images are black and white, and nothing is learnt.
    """

    continuous: Dimensions = 4
    """Continuous codes, uniform in [-1, 1]."""
    categories: Dimensions = 3
    """Classes of the one categorical code; 0: there is none."""
    noise: Dimensions = 5
    """Dimensions of the noise, which is standard normal."""
    information_weight: Weight = 0.2
    """Lambda, of the information bound."""
    variance: Literal["fixed", "learned"] = "fixed"
    """Of Q's Gaussian of a continuous code: 1, or what the head says."""
    batch_norm: bool = True
    """Batch normalisation after each activation of the generator."""
    spectral_norm: bool = True
    """Spectral normalisation of the critic's weights (Miyato et al. 2018)."""
    critic_lr: Rate = 2e-3
    """Learning rate of critic and information head; the generator's is the recipe's."""
    critic_steps: Count = 1
    """Steps of the critic in each of the training's, which come first."""
    generator_steps: Count = 2
    """Steps of the generator in each of the training's, each with codes of its own."""

    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.categories == 1:
            raise refusal("categories must not be 1: a code of one class says nothing; 0 for none")
        if self.codes == 0:
            raise refusal("continuous and categories are both 0: there is no code to learn")

    @property
    def compares(self) -> str | None:
        """See :class:`pyvae.objectives.objective.Objective`."""
        return "batch normalisation compares images; or give --no-batch-norm" if self.batch_norm else None

    @property
    def codes(self) -> int:
        """The continuous codes, and one for the categorical."""
        return self.continuous + (self.categories > 0)

    def draw(self, key: Tensor, rows: int) -> Codes:
        """Noise and codes of a key int64 ``[2]`` of (seed, step); a row draws the same among any number of rows."""
        words = bits(key, rows, 1, Stream.CATEGORY)[:, 0]
        # the high half of a 64-bit product, whose bias is K / 2^32
        return Codes(
            normal(key, rows, self.noise, Stream.NOISE) if self.noise else words.new_empty(rows, 0).float(),
            2.0 * uniform(key, rows, self.continuous, Stream.CODE) - 1.0
            if self.continuous
            else words.new_empty(rows, 0).float(),
            (words * self.categories) >> 32,
        )

    def generator_input(self, codes: Codes) -> Tensor:
        """float32 ``[B, N + C + K]``: noise, continuous codes, the category as one of K."""
        # torch's one_hot reads the largest class on the host
        classes = torch.arange(self.categories, device=codes.category.device)
        one_of = (codes.category.unsqueeze(-1) == classes).float()
        return torch.cat([codes.noise, codes.continuous, one_of], -1)

    def information(self, posterior: CodePosterior, codes: Codes) -> Tensor:
        """``E[log Q(c|x)] + H(c)`` of each code in nats, float32 ``[codes]``: at most what an image says of it.
        H is ln 2, differential, of a continuous code, and ln K of the categorical.

        Args:
            posterior: Q of the images made from the codes.
            codes: rows as many as the posterior's.
        """
        error = (codes.continuous - posterior.mean).square()
        if posterior.logvar is not None:
            error = posterior.logvar + error * torch.exp(-posterior.logvar)
        bounds = math.log(2.0) - (0.5 * (math.log(2 * math.pi) + error)).mean(0)
        if not self.categories:
            return bounds
        categorical = math.log(self.categories) - F.cross_entropy(posterior.logits, codes.category)
        return torch.cat([bounds, categorical.unsqueeze(0)])

    def generator_loss(self, fake: Tensor) -> Tensor:
        """``E[-log sigmoid(D(G))]`` of the critic's scores ``[B]``, in nats."""
        return F.softplus(-fake).mean()

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """``-E[log sigmoid(D(x))] - E[log(1 - sigmoid(D(G)))]`` of scores ``[B]``, in nats."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()


@dataclass(frozen=True)
class InfoWGANGP(InfoGAN):
    """InfoGAN with the critic of Gulrajani et al. 2017, "Improved training of Wasserstein GANs", algorithm 1, as Kim &
    Mnih 2018 compare it with: five steps of the critic, each on images of its own, for one of the generator; Adam
    1e-4 with betas (0.5, 0.9) for both."""

    spectral_norm: bool = False
    """Spectral normalisation of the critic's weights; the penalty stands in for it."""
    critic_lr: Rate = 1e-4
    """Learning rate of critic and information head; the generator's is the recipe's."""
    critic_steps: Count = 5
    """Steps of the critic in each of the training's, which come first."""
    generator_steps: Count = 1
    """Steps of the generator in each of the training's."""
    penalty: Weight = 10.0
    """Weight of the gradient penalty."""

    betas: ClassVar[tuple[float, float]] = (0.5, 0.9)
    extra_terms: ClassVar[tuple[str, ...]] = ("gradient_penalty",)

    def generator_loss(self, fake: Tensor) -> Tensor:
        """``-E D(G)`` of the critic's scores ``[B]``."""
        return -fake.mean()

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """``E D(G) - E D(x)`` of scores ``[B]``, without the gradient penalty."""
        return fake.mean() - real.mean()


def between(real: Tensor, fake: Tensor, at: Tensor) -> Tensor:
    """Points on the lines from generated images to real ones, each at a place of its own.

    Args:
        real: ``[B, C, H, W]``.
        fake: of that shape.
        at: ``[B]`` or ``[B, 1]``, 0 at the generated image and 1 at the real one.
    """
    return torch.lerp(fake, real, at.view(-1, *[1] * (real.ndim - 1)))


def gradient_penalty(score: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """``E[(|grad score(x)| - 1)^2]`` at points, which can be differentiated in the parameters of ``score``.

    Args:
        score: maps points to ``[B]``, each from its own point alone.
        points: ``[B, ...]``.

    Returns:
        ``[]`` in the dtype of the points.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return (torch.linalg.vector_norm(slope.flatten(1), dim=-1) - 1.0).square().mean()
