"""What a generator makes: samples, and each code moved while the noise stays."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import InfoGAN
from pyvae.objectives.infogan import Codes
from pyvae.random import make_key
from pyvae.report.figures import save, show, tile

MOST_COLUMNS = 100
"""Of a picture of traversals, which is to be looked at."""
_COLUMNS = 11
_ROWS = 8
_SAMPLE_COLUMNS = 16
_BOUND_IMAGES = 4096
_BATCH = 256
_SAMPLE_SEED, _BOUND_SEED = 0, 1
_FIRST_NOISE = (2, 3, 4)

SAMPLES_CAPTION = "Images of the generator, noise and codes drawn anew for each: not chosen."
SAMPLES_ALT = "A grid of images that the generator made"
CODES_ALT = "Generated images in a row for each code that is moved"
CODES_CAPTION = (
    "Each row moves one code, a continuous one from -1 to 1, the categorical through its classes; noise and the other "
    "codes stay as they were drawn."
)
BOUND_CAPTION = (
    f"Lower bound E[log Q(c|x)] + H(c) of the information that an image holds about each code, over {_BOUND_IMAGES:,} "
    "generated images. For a continuous code of fixed variance 1 it goes from -0.392 nats, where nothing is known of "
    "the code, to -0.226, where all is; of the categorical one from 0 to the logarithm of its classes. The codes that "
    "are scored are the means of Q and its most probable class."
)


def draw_samples(run: RunDirectory, pair: AdversarialPair) -> Path:
    """Write ``figures/samples.png``."""
    from matplotlib.figure import Figure

    objective = objective_of(run)
    count = _ROWS * _SAMPLE_COLUMNS
    images = _images(objective, pair, objective.draw(make_key(_SAMPLE_SEED), count))
    figure = Figure(figsize=(0.6 * _SAMPLE_COLUMNS, 0.6 * _ROWS), layout="constrained")
    show(figure.subplots(), tile(images.unflatten(0, (_ROWS, _SAMPLE_COLUMNS))))
    return save(figure, run.figures / "samples.png")


def draw_codes(
    run: RunDirectory, pair: AdversarialPair, *, columns: int = _COLUMNS, seeds: Sequence[int] | None = None
) -> list[Path]:
    """Write ``figures/codes-<seed>.png`` for each seed of the noise.

    Raises:
        RunError: a number of columns or a seed that cannot be.
    """
    seeds = _FIRST_NOISE if seeds is None else seeds
    if not 2 <= columns <= MOST_COLUMNS:
        raise RunError(f"a traversal needs 2 to {MOST_COLUMNS} columns, got {columns}")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise RunError(f"seeds of the noise must be from 0 to 2^64 - 1, got {seed}")
    objective = objective_of(run)
    return [_draw_moved(objective, pair, seed, columns, run.figures / f"codes-{seed}.png") for seed in seeds]


def draw_codes_on_the_way(run: RunDirectory, pair: AdversarialPair, step: int) -> Path:
    """Write ``figures/snapshot-<step>.png``: the codes of a generator that was kept after so many steps."""
    path = run.figures / f"snapshot-{step}.png"
    return _draw_moved(objective_of(run), pair, _FIRST_NOISE[-1], _COLUMNS, path)


def _draw_moved(objective: InfoGAN, pair: AdversarialPair, seed: int, columns: int, path: Path) -> Path:
    from matplotlib.figure import Figure

    images = moved(objective, pair, objective.draw(make_key(seed), 1), columns)
    figure = Figure(figsize=(0.72 * (columns + 1.5), 0.72 * len(images) + 0.4), layout="constrained")
    axes = figure.subplots()
    show(axes, tile(images))
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    height, width = (images.shape[d] + 2 for d in (-2, -1))
    values = torch.linspace(-1, 1, columns).tolist()
    axes.set_xticks(
        [width * (c + 0.5) for c in range(columns)],
        [f"{v:.1f}".replace("-0.0", "0.0") for v in values],
        fontsize=8,
    )
    names = names_of(objective)
    axes.set_yticks([height * (r + 0.5) for r in range(len(names))], names, fontsize=8)
    axes.tick_params(length=0)
    return save(figure, path)


def names_of(objective: InfoGAN) -> list[str]:
    """What the codes are called: c0, c1, ..., and the categorical one, which is the last."""
    return [f"c{j}" for j in range(objective.continuous)] + ["class"] * bool(objective.categories)


@torch.inference_mode()
def moved(objective: InfoGAN, pair: AdversarialPair, codes: Codes, columns: int) -> Tensor:
    """Images ``[codes, columns, C, H, W]`` in [0, 1]: row j moves code j of ``codes`` (one row), classes in turn."""
    values = torch.linspace(-1, 1, columns)
    rows = []
    for j in range(objective.codes):
        noise, continuous, category = (each.expand(columns, *each.shape[1:]).clone() for each in codes)
        if j < objective.continuous:
            continuous[:, j] = values
        else:
            category = torch.arange(columns) * objective.categories // columns
        rows.append(_images(objective, pair, Codes(noise, continuous, category)))
    return torch.stack(rows)


@torch.inference_mode()
def information(run: RunDirectory, pair: AdversarialPair) -> list[float]:
    """The bound of each code in nats, over a fixed set of generated images."""
    objective = objective_of(run)
    codes = objective.draw(make_key(_BOUND_SEED), _BOUND_IMAGES)
    total = torch.zeros(objective.codes, dtype=torch.float64)
    for first in range(0, _BOUND_IMAGES, _BATCH):
        part = Codes(*(each[first : first + _BATCH] for each in codes))
        _, posterior = pair.critic(_images(objective, pair, part))
        total += objective.information(posterior, part).double()
    return (total * _BATCH / _BOUND_IMAGES).tolist()


@torch.inference_mode()
def _images(objective: InfoGAN, pair: AdversarialPair, codes: Codes) -> Tensor:
    return pair.generator.images(objective.generator_input(codes))


def objective_of(run: RunDirectory) -> InfoGAN:
    """The objective of a run with a generator.

    Raises:
        RunError: it has none.
    """
    objective = run.recipe.objective
    if not isinstance(objective, InfoGAN):
        raise RunError(f"{run.path} has an encoder and a decoder, no generator")
    return objective
