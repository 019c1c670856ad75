"""One training step and the state it moves."""

from contextlib import AbstractContextManager

import nvtx
import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.batches import BatchOrder, ImageSource
from pyvae.engine.recipe import Recipe
from pyvae.engine.state import Trained
from pyvae.functional import bernoulli_nll, reparameterize_kl
from pyvae.nets import build
from pyvae.objectives import TERMS, FactorVAE, Outputs
from pyvae.random import Stream


class Trainer:
    """A network, its optimiser and the step counter, all on one device; with them the objective's adversary, if any.

    A step reads nothing back from the device: the loss, its terms and whether they are finite stay there.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        net = build(
            recipe.architecture, dataset.image_shape[0], recipe.latents, init=recipe.init, seed=recipe.seed
        )
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = Trained("net", self.net, _optimizer(recipe, list(self.net.parameters())))
        self.step = 0
        # (seed, step): the step counter lives on the device, where the noise and the schedules read it
        self.key = torch.tensor([recipe.seed, 0], dtype=torch.int64, device=device)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._size = len(dataset)
        self._order = BatchOrder(recipe.seed, self._size, recipe.batch_size, device)
        self._source = ImageSource(dataset, device)
        self._names = (*TERMS, *recipe.objective.extra_terms)
        self._adversary: _Adversary | None = None
        if isinstance(recipe.objective, FactorVAE):
            self._adversary = _Adversary(recipe, recipe.objective, self._size, device)

    @property
    def fields(self) -> list[str]:
        """Names of the values that :meth:`advance` returns."""
        adversary = ["discriminator_loss"] if self._adversary else []
        return [*self._names, *adversary, *(f"kl_{j}" for j in range(self.recipe.latents))]

    def advance(self) -> Tensor:
        """Make one step; returns its terms and the KL of each latent, float64 ``[fields]``."""
        with nvtx.annotate("data"):
            images, target = self._source.batch(self._order.index(self.step))
        with nvtx.annotate("encoder"):
            mu, logvar = self._encode(images)
            z, kl = reparameterize_kl(mu, logvar, key=self.key)
        with nvtx.annotate("decoder"), self._autocast():
            logits = self.net.decoder(z)
        with nvtx.annotate("loss"):
            tc = self._adversary.total_correlation(z) if self._adversary else None
            outputs = Outputs(bernoulli_nll(logits, target), kl, z, mu, logvar, self._size, tc)
            terms = self.recipe.objective.terms(outputs, self.key[1])
        with nvtx.annotate("backward and optimizer"):
            self._trained.step(terms["loss"])
        values = [terms[name].detach() for name in self._names]
        if self._adversary:
            with nvtx.annotate("adversary"):
                values.append(self._train_adversary(self._adversary, z.detach()))
        row = torch.cat([torch.stack([value.double() for value in values]), kl.detach().double()])
        self._note_divergence(row)
        self.step += 1
        self.key[1] += 1
        return row

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        adversary = self._adversary.trained.tensors() if self._adversary else {}
        return self._trained.tensors() | adversary

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        self._trained.restore(tensors)
        if self._adversary:
            self._adversary.trained.restore(tensors)
        self.step = step
        self.key[1] = step

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self._autocast():
            mu, logvar = self.net.encoder(images.contiguous(memory_format=torch.channels_last))
        return mu.float(), logvar.float()

    def _train_adversary(self, adversary: "_Adversary", z: Tensor) -> Tensor:
        with torch.no_grad():
            images, _ = self._source.batch(adversary.order.index(self.step))
            second, _ = reparameterize_kl(*self._encode(images), key=self.key, stream=Stream.SECOND_POSTERIOR)
        loss = adversary.loss(z, second, self.key)
        adversary.trained.step(loss)
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _note_divergence(self, row: Tensor) -> None:
        fresh = (self.first_bad_step < 0) & ~torch.isfinite(row).all()
        self.first_bad_step = torch.where(fresh, self.key[1], self.first_bad_step)


class _Adversary:
    """FactorVAE's discriminator, its optimiser, and the order of its independent second batches."""

    def __init__(self, recipe: Recipe, objective: FactorVAE, size: int, device: torch.device) -> None:
        self._objective = objective
        net = objective.discriminator(recipe.latents, seed=recipe.seed).to(device)
        self.trained = Trained("discriminator", net, objective.discriminator_optimizer(net))
        self.order = BatchOrder(recipe.seed, size, recipe.batch_size, device, Stream.SECOND_BATCH)

    def total_correlation(self, z: Tensor) -> Tensor:
        return self._objective.total_correlation(self.trained.module, z)

    def loss(self, z: Tensor, second: Tensor, key: Tensor) -> Tensor:
        return self._objective.discriminator_loss(self.trained.module, z, second, key)


def _optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=recipe.lr)
    return torch.optim.Adam(parameters, lr=recipe.lr, fused=True)
