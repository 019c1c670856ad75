"""Training of a generator against a critic, with an information head."""

from contextlib import AbstractContextManager

import nvtx
import torch
from torch import Tensor
from torch.func import functional_call

from pyvae.adversarial_nets import CodePosterior
from pyvae.data.dataset import Dataset
from pyvae.engine.batches import ImageSource
from pyvae.engine.pair import pair_of
from pyvae.engine.recipe import Recipe
from pyvae.engine.state import Trained
from pyvae.engine.stepper import Stepper
from pyvae.engine.trainer import batches_of, check_data
from pyvae.errors import RecipeError
from pyvae.objectives import InfoGAN, InfoWGANGP
from pyvae.objectives.infogan import Codes, between, gradient_penalty


def check_compile(recipe: Recipe, compile: bool) -> None:
    """Raises RecipeError when the recipe's networks cannot go through torch.compile, which has no double backward."""
    if compile and isinstance(recipe.objective, InfoGAN):
        raise RecipeError("--compile: networks with a critic run uncompiled; leave it out")


class AdversarialTrainer(Stepper):
    """A generator and a critic, their optimisers and the step counter, all on one device.

    A step is one of the generator after ``critic_steps`` of the critic, each of those on ``batch_size`` images and
    codes of its own; the information head is trained with the critic.
    """

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
            Trained(name, module, _adam(module, rate, objective.betas, device))
            for name, module, rate in (
                ("generator", self.net.generator, recipe.lr),
                ("critic", self.net.critic, objective.critic_lr),
            )
        )
        per_step = recipe.batch_size * objective.critic_steps
        self._batches = batches_of(recipe, ImageSource(dataset, device), dataset, device, size=per_step)
        codes = [f"information_{j}" for j in range(objective.codes)]
        fields = ["loss", "information", "grad_norm", "discriminator_loss", "discriminator_grad_norm"]
        super().__init__(
            recipe, [*fields, *objective.extra_terms, *codes], device, log_every=log_every, capture=capture
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return self._generator.tensors() | self._critic.tensors()

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        self._generator.restore(tensors)
        self._critic.restore(tensors)
        self._restart(step)

    def _prepare(self, step: int) -> None:
        self._batches.prepare(step)

    def _step(self) -> None:
        """One step; no code here may depend on a value of the device."""
        size, rounds = self.recipe.batch_size, self._objective.critic_steps
        with nvtx.annotate("data"):
            images = self._batches.batch(self.key[1]).images
            codes = self._objective.draw(self.key, size * (rounds + 1))
        sums: list[Tensor] = []
        for n in range(rounds):
            rows = slice(n * size, (n + 1) * size)
            with nvtx.annotate("critic"):
                loss, penalty, bounds = self._critic_loss(images[rows], _rows(codes, rows), rows.start)
                norm = self._critic.backward(loss)
                found = [loss.detach(), norm, *penalty]
                sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
                self._critic.step(self.ledger.judge(sums, bounds.detach()))
        with nvtx.annotate("generator"):
            loss, bounds = self._generator_loss(_rows(codes, slice(rounds * size, None)))
            norm = self._generator.backward(loss)
        bounds = bounds.detach()
        values = [loss.detach(), bounds.sum(), norm, *(each / rounds for each in sums)]
        with nvtx.annotate("optimizer"):
            self._generator.step(self.ledger.settle(values, bounds, None))

    def _critic_loss(self, real: Tensor, codes: Codes, first_row: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Loss of critic and information head, the gradient penalty where there is one, and the bounds ``[codes]``."""
        objective = self._objective
        with torch.no_grad():
            fake = self._generate(codes)
        of_real, _ = self._judged(real)
        of_fake, posterior = self._judged(fake)
        bounds = objective.information(posterior, codes)
        loss = objective.critic_loss(of_real, of_fake) - objective.information_weight * bounds.sum()
        if not isinstance(objective, InfoWGANGP):
            return loss, [], bounds
        points = between(real, fake, self.key, first_row=first_row)
        penalty = gradient_penalty(lambda at: self._judged(at)[0], points)
        return loss + objective.penalty * penalty, [penalty.detach()], bounds

    def _generator_loss(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """Its gradient reaches the generator and never the critic."""
        frozen = {name: p.detach() for name, p in self.net.critic.named_parameters()}
        fake = self._generate(codes)
        with self._autocast():
            score, posterior = functional_call(self.net.critic, frozen, (fake,))
        bounds = self._objective.information(posterior, codes)
        return self._objective.generator_loss(
            score
        ) - self._objective.information_weight * bounds.sum(), bounds

    def _generate(self, codes: Codes) -> Tensor:
        with self._autocast():
            return self.net.generator.images(self._objective.generator_input(codes))

    def _judged(self, images: Tensor) -> tuple[Tensor, CodePosterior]:
        with self._autocast():
            judged: tuple[Tensor, CodePosterior] = self.net.critic(images)
            return judged

    def _autocast(self) -> AbstractContextManager[object]:
        # a cached cast of a weight would keep the graph of one product for the next
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16", cache_enabled=False
        )


def _rows(codes: Codes, rows: slice) -> Codes:
    return Codes(*(each[rows] for each in codes))


def _adam(
    module: torch.nn.Module, rate: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Optimizer:
    cuda = device.type == "cuda"
    # a float would be frozen into a captured graph
    lr = torch.tensor(rate, device=device) if cuda else rate
    return torch.optim.Adam(module.parameters(), lr=lr, betas=betas, fused=True, capturable=cuda)
