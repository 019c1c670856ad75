"""Training of a generator against a critic, with an information head."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parametrize

from pyvae.data.dataset import Dataset
from pyvae.engine.adam import adam
from pyvae.engine.batches import ImageSource
from pyvae.engine.draw import Draws, draw
from pyvae.engine.pair import pair_of
from pyvae.engine.ranges import named
from pyvae.engine.recipe import Recipe
from pyvae.engine.state import Trained
from pyvae.engine.stepper import Stepper
from pyvae.engine.trainer import batches_of, check_data
from pyvae.errors import RecipeError
from pyvae.nets.adversarial import AdversarialPair, CodePosterior
from pyvae.objectives import InfoGAN, InfoWGANGP
from pyvae.objectives.infogan import between, gradient_penalty


def check_compile(recipe: Recipe, compile: bool) -> None:
    """Raises RecipeError when the recipe's networks cannot go through torch.compile, which has no double backward."""
    if compile and isinstance(recipe.objective, InfoGAN):
        raise RecipeError("--compile: networks with a critic run uncompiled; leave it out")


class AdversarialTrainer(Stepper):
    """A generator and a critic, their optimisers and the step counter, all on one device.

    A step is ``critic_steps`` of the critic, each on ``batch_size`` images and codes of its own, then
    ``generator_steps`` of the generator on further codes; the information head is trained with the critic.
    """

    net: AdversarialPair

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: torch.device,
        *,
        log_every: int = 1,
        capture: bool = True,
        compile: bool = False,
    ) -> None:
        check_data(recipe, dataset)
        objective = recipe.objective
        if not isinstance(objective, InfoGAN):
            raise RecipeError(f"{type(objective).__name__} has no critic")
        check_compile(recipe, compile)
        self._objective = objective
        self.net = pair_of(recipe, objective, dataset.image_shape[0]).to(
            device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        self._generator, self._critic = (
            Trained(name, module, adam(module.parameters(), rate, device, betas=objective.betas))
            for name, module, rate in (
                ("generator", self.net.generator, recipe.lr),
                ("critic", self.net.critic, objective.critic_lr),
            )
        )
        self._statistics = one_storage([*self.net.buffers()], device)
        per_step = recipe.batch_size * objective.critic_steps
        self._batches = batches_of(recipe, ImageSource(dataset, device), dataset, device, size=per_step)
        codes = [f"information_{j}" for j in range(objective.codes)]
        fields = ["loss", "information", "grad_norm", "discriminator_loss", "discriminator_grad_norm"]
        super().__init__(
            recipe, [*fields, *objective.extra_terms, *codes], device, log_every=log_every, capture=capture
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return self._generator.tensors() | self._critic.tensors() | self._own_tensors()

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        self._generator.restore(tensors)
        self._critic.restore(tensors)
        self._restore_own(tensors)
        self._restart(step)

    def _prepare(self, step: int) -> None:
        self._batches.prepare(step)

    def _step(self) -> None:
        """One step; no code here may depend on a value of the device."""
        objective, size = self._objective, self.recipe.batch_size
        before = self._statistics.clone()
        with named("data"):
            images = self._batches.batch(self.key[1]).images
            judged = size * objective.critic_steps
            drawn = draw(
                objective,
                self.key,
                judged + size * objective.generator_steps,
                judged if isinstance(objective, InfoWGANGP) else 0,
            )
        of_critic: list[Tensor] = []
        for n in range(objective.critic_steps):
            with named("critic"):
                own = drawn.rows(n * size, size)
                loss, penalty, bounds = self._critic_loss(images[n * size : (n + 1) * size], own)
                norm = self._critic.backward(loss)
                of_critic = _added(of_critic, [loss.detach(), norm, *penalty])
                self._critic.step(self.ledger.judge(of_critic, bounds.detach()))
        of_critic = _shared(of_critic, objective.critic_steps)
        made: list[Tensor] = []
        for n in range(objective.generator_steps):
            with named("generator"):
                loss, information, bounds = self._generator_loss(drawn.rows(judged + n * size, size))
                norm = self._generator.backward(loss)
                made = _added(made, [loss.detach(), information.detach(), norm, bounds.detach()])
            with named("optimizer"):
                if n + 1 < objective.generator_steps:
                    bad = self.ledger.judge([*made[:-1], *of_critic], made[-1])
                else:
                    *values, bounds = _shared(made, objective.generator_steps)
                    bad = self.ledger.settle([*values, *of_critic], bounds, None)
                self._generator.step(bad)
        torch.where(bad > 0, before, self._statistics, out=self._statistics)

    def _critic_loss(self, real: Tensor, drawn: Draws) -> tuple[Tensor, list[Tensor], Tensor]:
        """Loss of critic and information head, the gradient penalty where there is one, and the bounds ``[codes]``."""
        objective = self._objective
        with torch.no_grad():
            fake = self._generate(drawn)
        # within, normalised weights are made once
        with parametrize.cached():
            score, posterior = self._judged(torch.cat([fake, real]))
            of_fake, of_real = score.chunk(2)
            bounds = objective.information(posterior.first(len(fake)), drawn.codes)
            loss = objective.critic_loss(of_real, of_fake) - objective.information_weight * bounds.sum()
            if not isinstance(objective, InfoWGANGP):
                return loss, [], bounds
            points = between(real, fake, drawn.points)
            penalty = gradient_penalty(lambda at: self._judged(at)[0], points)
        return loss + objective.penalty * penalty, [penalty.detach()], bounds

    def _generator_loss(self, drawn: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, information, and the bounds ``[codes]`` that it is the sum of. The gradient reaches the generator and
        never the critic."""
        objective = self._objective
        frozen = {name: p.detach() for name, p in self.net.critic.named_parameters()}
        fake = self._generate(drawn)
        with self._autocast():
            score, posterior = functional_call(self.net.critic, frozen, (fake,))
        bounds = objective.information(posterior, drawn.codes)
        information = bounds.sum()
        return (
            objective.generator_loss(score) - objective.information_weight * information,
            information,
            bounds,
        )

    def _generate(self, drawn: Draws) -> Tensor:
        with self._autocast():
            return self.net.generator.images(drawn.inputs)

    def _judged(self, images: Tensor) -> tuple[Tensor, CodePosterior]:
        with self._autocast():
            judged: tuple[Tensor, CodePosterior] = self.net.critic(images)
            return judged

    def _autocast(self) -> AbstractContextManager[object]:
        # a cached cast of a weight would keep the graph of one product for the next
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16", cache_enabled=False
        )


def one_storage(buffers: Sequence[Tensor], device: torch.device) -> Tensor:
    """One tensor ``[N]`` that holds the float32 buffers from now on, so that all are taken back at once."""
    if not buffers:
        return torch.empty(0, device=device)
    whole = torch.cat([buffer.flatten() for buffer in buffers])
    for buffer, part in zip(buffers, whole.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.data = part.view_as(buffer)
    return whole


def _added(sums: Sequence[Tensor], values: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(sums, values, strict=True)] if sums else values


def _shared(sums: list[Tensor], count: int) -> list[Tensor]:
    return [total / count for total in sums] if count > 1 else sums
