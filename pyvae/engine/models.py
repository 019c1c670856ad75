"""What was trained, as modules to use: encode, decode, reconstruct, sample."""

from numbers import Integral

import torch
from torch import Tensor, nn

from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.run import RunDirectory
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import InfoGAN
from pyvae.objectives.infogan import Codes
from pyvae.random import Stream, make_key, normal


class Model(nn.Module):
    """An encoder and a decoder, in eval mode and without gradients of their weights (``requires_grad_()`` for those).

    Images are float32 ``[B, C, H, W]`` in [0, 1], or uint8 ``[B, C, H, W]`` of 0 to 255; codes ``[B, D]``. After
    ``half()`` or the like, images and codes may be of that type too, and what comes back is of it.

    Args:
        net: encoder and decoder.
        image_shape: C, H, W.
    """

    def __init__(self, net: Autoencoder, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net = net
        self.image_shape = image_shape
        self.latents = net.latents
        self.eval().requires_grad_(False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances ``[B, D]`` of q(z given x).

        Raises:
            ValueError: the images are of another shape.
            TypeError: they are neither float32 nor uint8, or no tensor.
        """
        found: tuple[Tensor, Tensor] = self.net.encoder(_as_images(images, self.image_shape, _dtype(self)))
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]`` of codes ``[B, D]``; their sigmoid is the mean of each pixel.

        Raises:
            ValueError: the codes are of another shape.
            TypeError: they are not of floating point, or no tensor.
        """
        logits: Tensor = self.net.decoder(_as_codes(z, self.latents, _dtype(self)))
        return logits

    def reconstruct(self, images: Tensor) -> Tensor:
        """Means ``[B, C, H, W]`` in [0, 1] of the pixels, decoded from the mean codes of images.

        Raises:
            ValueError, TypeError: as :meth:`encode`.
        """
        return torch.sigmoid(self.decode(self.encode(images)[0]))

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Means ``[n, C, H, W]`` in [0, 1] of the pixels, decoded from codes of the prior N(0, I).

        Args:
            n: how many.
            seed: of the codes; by default torch's generator gives them.

        Raises:
            ValueError: n is no whole number from 0 on.
        """
        _check_count(n)
        return torch.sigmoid(self.decode(_normal(n, self.latents, seed).to(_device(self))))

    def forward(self, images: Tensor) -> Tensor:
        """:meth:`reconstruct`."""
        return self.reconstruct(images)


class FactorModel(Model):
    """A decoder of the true factors, each through a noisy channel: what is encoded is no image but its index, int64
    ``[B]``, in the grid of the factors."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances ``[B, D]`` of the codes of images, given by their indices int64 ``[B]``.

        Raises:
            ValueError: the indices are of another shape, or out of range.
            TypeError: they are no integers.
        """
        _check_tensor("index", images)
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise TypeError(f"this run encodes factors: expected int64 indices of images, got {images.dtype}")
        if images.ndim != 1:
            raise ValueError(f"index: expected shape [B], got {list(images.shape)}")
        count = int(torch.as_tensor(self.net.encoder.sizes).prod())
        if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < count:
            raise ValueError(f"index: expected images from 0 to {count - 1}")
        found: tuple[Tensor, Tensor] = self.net.encoder(images.long())
        return found


class GeneratorModel(nn.Module):
    """A generator and the information head of its critic, in eval mode and without gradients of their weights.

    Images are float32 ``[B, C, 64, 64]`` in [0, 1], or uint8; codes ``[B, D]``: the continuous ones, uniform in
    [-1, 1], and last the class of the categorical, put evenly on [-1, 1].

    Args:
        net: generator and critic.
        image_shape: C, H, W.
        objective: which says what the generator reads.
    """

    def __init__(self, net: AdversarialPair, image_shape: tuple[int, int, int], objective: InfoGAN) -> None:
        super().__init__()
        self.net = net
        self.image_shape = image_shape
        self.latents = net.latents
        self.objective = objective
        self.eval().requires_grad_(False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances ``[B, D]`` of the codes that the information head reads in images.

        Raises:
            ValueError: the images are of another shape.
            TypeError: they are neither float32 nor uint8, or no tensor.
        """
        return self.net.encoder(_as_images(images, self.image_shape, _dtype(self)))

    def decode(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits ``[B, C, 64, 64]`` of codes ``[B, D]``, a class being the nearest one.

        Args:
            z: codes.
            noise: float32 ``[B, N]``; by default torch's generator gives it, standard normal.

        Raises:
            ValueError: codes or noise of another shape.
            TypeError: codes that are not of floating point, or no tensor.
        """
        objective = self.objective
        z = _as_codes(z, objective.codes, torch.float32)
        if noise is None:
            noise = torch.randn(len(z), objective.noise, dtype=torch.float32, device=z.device)
        if noise.shape != (len(z), objective.noise):
            raise ValueError(f"noise: expected shape {[len(z), objective.noise]}, got {list(noise.shape)}")
        last = objective.categories - 1
        category = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        if objective.categories:
            category = ((z[:, -1] + 1) / 2 * last).round().clamp(0, last).long()
        codes = Codes(noise, z[:, : objective.continuous], category)
        logits: Tensor = self.net.generator(objective.generator_input(codes).to(_dtype(self)))
        return logits

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images ``[B, C, 64, 64]`` in [0, 1], generated from the codes that the head reads in images and new noise.

        Raises:
            ValueError, TypeError: as :meth:`encode`.
        """
        return torch.sigmoid(self.decode(self.encode(images)[0]).float())

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Images ``[n, C, 64, 64]`` in [0, 1] of noise and codes drawn anew.

        Args:
            n: how many.
            seed: of noise and codes; by default torch's generator gives one.

        Raises:
            ValueError: n is no whole number from 0 on.
        """
        _check_count(n)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        codes = self.objective.draw(make_key(seed), n)
        inputs = self.objective.generator_input(codes).to(_device(self), _dtype(self))
        return self.net.generator.images(inputs)

    def forward(self, images: Tensor) -> Tensor:
        """:meth:`reconstruct`."""
        return self.reconstruct(images)


def model_of(run: RunDirectory, saved: Checkpoint) -> Model | GeneratorModel:
    """The module of a checkpoint, on the CPU.

    Raises:
        RunError: the checkpoint is not of the run's recipe.
    """
    channels, height, width = saved.metadata["image_shape"]
    shape = (channels, height, width)
    objective = run.recipe.objective
    if isinstance(objective, InfoGAN):
        return GeneratorModel(run.pair_of(saved), shape, objective)
    net = run.net_of(saved)
    return FactorModel(net, shape) if net.reads_factors else Model(net, shape)


def _as_images(images: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    _check_tensor("images", images)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        hint = ": images[None] is a batch of one" if tuple(images.shape) == shape else ""
        raise ValueError(f"images: expected shape [B, {wanted}], got {list(images.shape)}{hint}")
    if images.dtype == torch.uint8:
        images = images.float() / 255
    if images.dtype not in (torch.float32, dtype):
        raise TypeError(f"images: expected float32 in [0, 1] or uint8, got {images.dtype}")
    # as evaluation has them, whose codes these are to the last bit
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def _as_codes(z: Tensor, latents: int, dtype: torch.dtype) -> Tensor:
    _check_tensor("z", z)
    if z.ndim != 2 or z.shape[1] != latents:
        raise ValueError(f"z: expected shape [B, {latents}], got {list(z.shape)}")
    if not z.is_floating_point():
        raise TypeError(f"z: expected float32, got {z.dtype}")
    return z.to(dtype)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise TypeError(f"{name}: expected a tensor, got {kind}: write torch.as_tensor({name})")


def _check_count(n: int) -> None:
    if not isinstance(n, Integral) or n < 0:
        raise ValueError(f"n: expected a whole number from 0 on, got {n!r}")


def _normal(rows: int, columns: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.randn(rows, columns, dtype=torch.float32)
    return normal(make_key(seed), rows, columns, Stream.NOISE)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
