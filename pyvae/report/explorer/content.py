"""What an explorer shows: sliders, and codes to start from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.subset import subset
from pyvae.evaluation.averages import Evaluation, posterior
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import InfoGAN
from pyvae.random import make_key
from pyvae.report.bitmap import png
from pyvae.report.explorer.lowering import CannotRunError
from pyvae.report.traversal import ACTIVE_NATS, default_seeds, names_of

SPAN = 3.0
_STARTS = 12
_FIRST_NOISE = 2  # as the pictures of codes
_MEASURED = (-1.0, -0.3, 0.3, 1.0)
"""Of a slider's span."""
_MOST_MEASURED = 256


@dataclass(frozen=True)
class Slider:
    """One number of the code."""

    index: int
    """In the code."""
    name: str
    note: str = ""
    """Beside its name, such as its KL."""
    follows: str | None = None
    """The factor that it follows most."""
    share: float = 0.0
    """eta squared of that."""
    span: float = SPAN
    """It goes from -span to span."""
    active: bool = True


@dataclass(frozen=True)
class Start:
    """A code to start from, and the image that it is of."""

    name: str
    code: Tensor
    """``[D]``."""
    png: bytes


@dataclass(frozen=True)
class Choice:
    """Numbers of the code of which one is 1 and the others 0."""

    first: int
    count: int


@dataclass(frozen=True)
class Content:
    """What an explorer shows."""

    sliders: list[Slider]
    """In their order on the page."""
    starts: list[Start]
    choice: Choice | None
    shape: tuple[int, int, int]
    """Of images: channels, height, width."""
    prior: Literal["normal", "uniform"]
    """Of sliders: standard normal of latents, uniform on the sliders of a generator's codes."""

    def measured(self) -> Tensor:
        """Codes ``[n, D]`` over the range of every slider, and those of the starts."""
        starts = torch.stack([start.code for start in self.starts])
        most = max(_MOST_MEASURED // (len(_MEASURED) * max(len(self.sliders), 1)), 1)
        found = [starts]
        for k, slider in enumerate(self.sliders):
            # not of the same few for every slider
            some = starts.roll(k, 0)[:most]
            for value in _MEASURED:
                moved = some.clone()
                moved[:, slider.index] = value * slider.span
                found.append(moved)
        return torch.cat(found)


@torch.inference_mode()
def of_autoencoder(net: Autoencoder, dataset: Dataset, evaluation: Evaluation) -> Content:
    """A slider a latent, highest KL first, and images spread over the data, whose posterior means are the codes.

    Raises:
        CannotRunError: a mean is not finite.
    """
    seeds = default_seeds(dataset)
    others = [i for i in subset(dataset, _STARTS).tolist() if i not in seeds]
    index = torch.tensor([*seeds, *others][:_STARTS])
    images = dataset.images(index)
    codes = posterior(net, dataset, index)[0]
    if not bool(torch.isfinite(codes).all()):
        raise CannotRunError("its codes are not all finite")
    farthest = codes.abs().amax(0).tolist()
    names = names_of(net, dataset)
    sliders = []
    for j in sorted(range(net.latents), key=lambda j: -evaluation.kl[j]):
        active = evaluation.kl[j] >= ACTIVE_NATS
        follows, share = None, 0.0
        if active and evaluation.dependence and isinstance(dataset, FactorDataset) and not net.reads_factors:
            share, factor = max((share, -f) for f, share in enumerate(evaluation.dependence[j]))
            follows = dataset.factor_names[-factor]
        span = max(SPAN, math.ceil(2 * farthest[j]) / 2)  # every mean has its place
        note = f"{evaluation.kl[j]:.2f} nats"
        sliders.append(Slider(j, names[j], note, follows, share, span, active))
    starts = [
        Start(f"image {i:,}", code, png(image))
        for i, code, image in zip(index.tolist(), codes, images, strict=True)
    ]
    return Content(sliders, starts, None, dataset.image_shape, "normal")


@torch.inference_mode()
def of_pair(objective: InfoGAN, pair: AdversarialPair) -> Content:
    """A slider for each continuous code, a choice for the categorical, and seeds of the noise to start from."""
    starts = []
    for seed in range(_FIRST_NOISE, _FIRST_NOISE + _STARTS):
        code = objective.generator_input(objective.draw(make_key(seed), 1))
        image = pair.generator.images(code)[0]
        starts.append(Start(f"noise {seed}", code[0], png(image)))
    sliders = [Slider(objective.noise + j, f"c{j}", span=1.0) for j in range(objective.continuous)]
    choice = None
    if objective.categories:
        choice = Choice(objective.noise + objective.continuous, objective.categories)
    channels, height, width = image.shape
    return Content(sliders, starts, choice, (channels, height, width), "uniform")
