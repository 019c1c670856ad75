"""Objectives whose gradients at the latents are plain torch, between the kernels before them and those behind.

The kernels add the gradients that are left in the buffer "extra" to that of the reconstruction. Any objective that has
terms for :class:`pyvae.objectives.Outputs` can stand here.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pyvae.engine.fused.layout import padded
from pyvae.engine.fused.members import Members
from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import Adversary
from pyvae.objectives import FactorVAE, Objective, Outputs


class Seam:
    """The objective of a single member, and its adversary if it has one."""

    def __init__(self, recipe: Recipe, size: int, device: torch.device) -> None:
        self._recipe = recipe
        self._size = size
        self._device = device
        self._adversary: Adversary | None = None
        if isinstance(recipe.objective, FactorVAE):
            self._adversary = Adversary(recipe, recipe.objective, device)
        self._nothing = torch.zeros((), device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Of the adversary."""
        return self._adversary.trained.tensors() if self._adversary else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave."""
        if self._adversary:
            self._adversary.trained.restore(tensors)

    def weigh(self, members: Members) -> None:
        """Leave gradients at mu, logvar and z, of the batch's sum, in the buffer "extra", and terms in "terms"."""
        mu, logvar, z = (x.detach().requires_grad_() for x in members.latents(0))
        objective: Objective = self._recipe.objective  # type: ignore[assignment]  # others are refused
        step = members.buffers["key"][0, 1]
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(0)
        correlation = None
        if self._adversary is not None:
            with self._autocast():
                correlation = self._adversary.total_correlation(z)
        outputs = Outputs(self._nothing, kl, z, mu, logvar, self._size, correlation)
        terms = objective.terms(outputs, step)
        gradients = torch.autograd.grad(terms["loss"], (mu, logvar, z), allow_unused=True)
        images, latents = mu.shape
        extra = members.buffers["extra"][0].view(3, images, padded(latents))
        for place, gradient in zip(extra, gradients, strict=True):
            if gradient is not None:
                torch.mul(gradient, images, out=place[:, :latents])
        names = ("loss", "beta", "capacity", *objective.extra_terms)
        values = torch.stack([terms[name].detach().double() for name in names])
        members.buffers["terms"][0, : len(names)].copy_(values)

    def oppose(self, members: Members) -> None:
        """The adversary's loss on this step's z and on those of the second batch, and its gradient."""
        assert self._adversary is not None
        z, second = members.latents(0)[2], members.latents(0, "second_stats")[2]
        with self._autocast():
            loss = self._adversary.loss(z.clone(), second.clone(), members.buffers["key"][0])
        norm = self._adversary.trained.backward(loss)
        members.buffers["terms"][0, -2:].copy_(torch.stack([loss.detach().double(), norm.double()]))

    def step(self, members: Members) -> None:
        """Move the adversary, unless the step was bad."""
        assert self._adversary is not None
        self._adversary.trained.step(members.buffers["found_inf"][0, 0])

    def _autocast(self) -> AbstractContextManager[object]:
        bf16 = self._recipe.precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=bf16)
