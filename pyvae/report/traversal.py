"""Latent traversals: what each latent draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.evaluation.averages import evaluate, posterior
from pyvae.nets import Autoencoder
from pyvae.report import generated
from pyvae.report.bitmap import bitmap
from pyvae.report.figures import save, show, tile, write
from pyvae.report.trained import load_trained, load_trained_pair

# a square, an ellipse and a heart: the images that 1Konny/Beta-VAE and ControlVAE start from
DSPRITES_SEEDS = (87040, 332800, 578560)
ACTIVE_NATS = 0.05
MOST_ROWS = 100
"""Of a picture, which is to be looked at: the latents of the highest KL."""
_FRAME_MILLISECONDS = 120
_GREYS = 64
_FARTHEST = 1e6


class Traversal(NamedTuple):
    """Decoded traversals of one image's code."""

    image: Tensor
    """The image, ``[C, H, W]``."""
    reconstruction: Tensor
    """``[C, H, W]``, of the mean code."""
    order: list[int]
    """Latents, the one of the highest KL first; at most ``MOST_ROWS``."""
    values: Tensor
    """What each latent was set to, ``[columns]``."""
    decoded: Tensor
    """``[rows, columns, C, H, W]`` in [0, 1], rows in that order."""


def traverse(
    run: RunDirectory,
    dataset: Dataset,
    *,
    span: float = 2.0,
    columns: int = 11,
    seeds: Sequence[int] | None = None,
) -> list[Path]:
    """Draw traversals of the run's newest weights as ``figures/traversal-<seed>.png`` and ``.gif``: of each latent, or
    of the hundred of the highest KL.

    Of a generator ``figures/codes-<seed>.png``: its codes, trained on [-1, 1] alone, go from -1 to 1, and seeds are
    those of the noise.

    Args:
        run: with a checkpoint.
        dataset: that of its recipe.
        span: latents go from ``-span`` to ``span``.
        columns: values of each latent.
        seeds: indices of the images to start from; None: a square, an ellipse and a heart of dSprites, or three
            images spread over other data.

    Raises:
        RunError: no checkpoint, images of another shape than it was trained on, a seed, span or number of columns
            that cannot be, or a file that cannot be written.
    """
    if run.adversarial:
        pair = load_trained_pair(run, dataset).net
        return generated.draw_codes(run, pair, columns=columns, seeds=seeds)
    dataset, net = run.shown(dataset), load_trained(run, dataset).net
    kl = evaluate(net, dataset).kl
    return [path for path, _ in draw(run, net, dataset, kl, span=span, columns=columns, seeds=seeds)]


def draw(
    run: RunDirectory,
    net: Autoencoder,
    dataset: Dataset,
    kl: Sequence[float],
    *,
    span: float,
    columns: int = 11,
    seeds: Sequence[int] | None = None,
) -> list[tuple[Path, int]]:
    """Files and the seeds that they start from, for a network whose latents' KL is known."""
    check(span, columns)
    seeds = default_seeds(dataset) if seeds is None else seeds
    for seed in seeds:
        if not 0 <= seed < len(dataset):
            raise RunError(f"seed {seed} is not an image: the data set has {len(dataset):,}, counted from 0")
    files = []
    for seed in seeds:
        mu, _ = posterior(net, dataset, torch.tensor([seed]))
        traversal = compute(net, dataset.images(seed), mu, kl, span, columns)
        stem = run.figures / f"traversal-{seed}"
        names = names_of(net, dataset)
        files.append((write_png(traversal, kl, stem.with_suffix(".png"), names), seed))
        files.append((_write_gif(traversal, stem.with_suffix(".gif")), seed))
    return files


def check(span: float, columns: int) -> None:
    """Raise RunError unless latents can go from ``-span`` to ``span`` in so many columns."""
    if not 0 < span <= _FARTHEST or not 2 <= columns <= generated.MOST_COLUMNS:
        raise RunError(
            f"a traversal needs a span above 0 and at most {_FARTHEST:g}, and 2 to {generated.MOST_COLUMNS} columns, "
            f"got {span} and {columns}"
        )


def default_seeds(dataset: Dataset) -> tuple[int, ...]:
    """Where traversals start from when nothing is said."""
    size = len(dataset)
    if (dataset.name, size) == ("dsprites", 737_280):
        return DSPRITES_SEEDS
    return tuple(sorted({size // 6, size // 2, size * 5 // 6}))


@torch.inference_mode()
def compute(
    net: Autoencoder, image: Tensor, mu: Tensor, kl: Sequence[float], span: float, columns: int
) -> Traversal:
    """Set one latent at a time of the image's mean code ``mu [1, D]`` to ``columns`` values, and decode; of many
    latents the ``MOST_ROWS`` of the highest KL."""
    order = sorted(range(net.latents), key=lambda j: -kl[j])[:MOST_ROWS]
    values = torch.linspace(-span, span, columns)
    codes = mu.expand(len(order), columns, -1).clone()
    for row, j in enumerate(order):
        codes[row, :, j] = values
    decoded = torch.sigmoid(net.decoder(codes.flatten(0, 1))).unflatten(0, (len(order), columns))
    return Traversal(image, torch.sigmoid(net.decoder(mu))[0], order, values, decoded)


def names_of(net: Autoencoder, dataset: Dataset) -> list[str]:
    """What the latents are called: z0, z1, ..., or the factors that they are made from."""
    if net.reads_factors and isinstance(dataset, FactorDataset):
        return list(dataset.factor_names)
    return [f"z{j}" for j in range(net.latents)]


def write_png(traversal: Traversal, kl: Sequence[float], path: Path, names: Sequence[str]) -> Path:
    """Draw the image, its reconstruction and a row for each latent, with its name and KL in nats."""
    from matplotlib.figure import Figure

    latents, columns = traversal.decoded.shape[:2]
    figure = Figure(figsize=(0.72 * (columns + 3.2), 0.72 * latents + 0.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, columns], gridspec_kw={"wspace": 0.0})
    show(left, torch.cat([traversal.image, traversal.reconstruction], 1))
    left.set_anchor("N")
    left.set_title("input,\nreconstruction", fontsize=8)
    show(right, tile(traversal.decoded))
    right.set_axis_on()
    right.spines[:].set_visible(False)
    height, width = (traversal.decoded.shape[d] + 2 for d in (-2, -1))
    ticks = [f"{v:.1f}".replace("-0.0", "0.0") for v in traversal.values.tolist()]
    right.set_xticks([width * (c + 0.5) for c in range(columns)], ticks, fontsize=8)
    labels = [f"{names[j]}  {kl[j]:.2f} nats" for j in traversal.order]
    right.set_yticks([height * (r + 0.5) for r in range(latents)], labels, fontsize=8)
    right.tick_params(length=0)
    for label, j in zip(right.get_yticklabels(), traversal.order, strict=True):
        label.set_color("black" if kl[j] >= ACTIVE_NATS else "0.45")
    return save(figure, path)


def _write_gif(traversal: Traversal, path: Path) -> Path:
    """All latents side by side, in rows of five, moving there and back for ever."""
    import io

    from PIL import Image

    columns = traversal.decoded.shape[1]
    there_and_back = [*range(columns), *range(columns - 2, 0, -1)]
    frames = []
    for column in there_and_back:
        images = traversal.decoded[:, column]
        missing = -len(images) % 5
        padded = torch.cat([images, images.new_full((missing, *images.shape[1:]), 0.5)])
        grid = tile(padded.unflatten(0, (-1, 5)))
        if len(grid) == 1:  # half the bytes of 256 greys, and no eye tells them apart
            grid = (grid * (_GREYS - 1)).round() / (_GREYS - 1)
        frame = bitmap(grid)
        frames.append(frame.resize((frame.width * 2, frame.height * 2), Image.Resampling.NEAREST))
    content = io.BytesIO()
    frames[0].save(
        content, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MILLISECONDS, loop=0
    )
    return write(path, content.getvalue())
