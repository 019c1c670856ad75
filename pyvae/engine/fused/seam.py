"""Objectives whose gradients at the latents are plain torch, between the kernels before them and those behind.

The kernels add the gradients that are left in the buffer "extra" to that of the reconstruction. Any objective that has
terms for :class:`pyvae.objectives.Outputs` can stand here.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pyvae.engine.fused.layout import padded
from pyvae.engine.fused.members import Members
from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import Adversary
from pyvae.objectives import FactorVAE, Outputs


class Seam:
    """The objective of each member, one after another, and its adversary if it has one."""

    def __init__(self, recipes: Sequence[Recipe], size: int, device: torch.device) -> None:
        self._recipes = recipes
        self._size = size
        self._device = device
        self._adversaries = [
            Adversary(recipe, recipe.objective, device)
            for recipe in recipes
            if isinstance(recipe.objective, FactorVAE)
        ]
        self._nothing = torch.zeros((), device=device)

    def tensors(self, member: int) -> dict[str, Tensor]:
        """Of its adversary."""
        return self._adversaries[member].trained.tensors() if self._adversaries else {}

    def restore(self, tensors: Mapping[str, Tensor], member: int) -> None:
        """Go back to what :meth:`tensors` gave."""
        if self._adversaries:
            self._adversaries[member].trained.restore(dict(tensors))

    def weigh(self, members: Members) -> None:
        """Leave gradients at mu, logvar and z, of the batch's sum, in the buffer "extra", and terms in "terms"."""
        for n in range(len(self._recipes)):
            self._weigh(members, n)

    def _weigh(self, members: Members, member: int) -> None:
        mu, logvar, z = (x.detach().requires_grad_() for x in members.latents(member))
        objective = self._recipes[member].objective
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(0)
        correlation = None
        if self._adversaries:
            with self._autocast():
                correlation = self._adversaries[member].total_correlation(z)
        outputs = Outputs(self._nothing, kl, z, mu, logvar, self._size, correlation)
        terms = objective.terms(outputs, members.buffers["key"][member, 1])
        gradients = torch.autograd.grad(terms["loss"], (mu, logvar, z), allow_unused=True)
        images, latents = mu.shape
        extra = members.buffers["extra"][member].view(3, images, padded(latents))
        for place, gradient in zip(extra, gradients, strict=True):
            if gradient is not None:
                torch.mul(gradient, images, out=place[:, :latents])
        names = ("loss", "beta", "capacity", *objective.extra_terms)
        values = torch.stack([terms[name].detach().double() for name in names])
        members.buffers["terms"][member, : len(names)].copy_(values)

    def oppose(self, members: Members) -> None:
        """The adversaries' loss on this step's z and on those of the second batch, and its gradient."""
        for n, adversary in enumerate(self._adversaries):
            z, second = members.latents(n)[2], members.latents(n, "second_stats")[2]
            with self._autocast():
                loss = adversary.loss(z.contiguous(), second.contiguous(), members.buffers["key"][n])
            norm = adversary.trained.backward(loss)
            values = torch.stack([loss.detach().double(), norm.double()])
            members.buffers["terms"][n, -2:].copy_(values)

    def step(self, members: Members) -> None:
        """Move the adversaries, but where the step was bad."""
        for n, adversary in enumerate(self._adversaries):
            adversary.trained.step(members.buffers["found_inf"][n, 0])

    def _autocast(self) -> AbstractContextManager[object]:
        bf16 = self._recipes[0].precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=bf16)
