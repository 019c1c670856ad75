"""One training step and the state it moves."""

from contextlib import AbstractContextManager

import nvtx
import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.batches import BatchOrder, ImageSource
from pyvae.engine.recipe import Recipe
from pyvae.functional import bernoulli_nll, reparameterize_kl
from pyvae.nets import build
from pyvae.objectives import TERMS, Outputs


class Trainer:
    """A network, its optimiser and the step counter, all on one device.

    A step reads nothing back from the device: the loss, its terms and whether they are finite stay there.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        net = build(
            recipe.architecture, dataset.image_shape[0], recipe.latents, init=recipe.init, seed=recipe.seed
        )
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(recipe, list(self.net.parameters()))
        self.step = 0
        # (seed, step): the step counter lives on the device, where the noise and the schedules read it
        self.key = torch.tensor([recipe.seed, 0], dtype=torch.int64, device=device)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._names = (*TERMS, *recipe.objective.extra_terms)
        self._size = len(dataset)
        self._order = BatchOrder(recipe.seed, self._size, recipe.batch_size, device)
        self._source = ImageSource(dataset, device)

    @property
    def fields(self) -> list[str]:
        """Names of the values that :meth:`advance` returns."""
        return [*self._names, *(f"kl_{j}" for j in range(self.recipe.latents))]

    def advance(self) -> Tensor:
        """Make one step; returns its terms and the KL of each latent, float64 ``[fields]``."""
        with nvtx.annotate("data"):
            images, target = self._source.batch(self._order.index(self.step))
        with nvtx.annotate("forward"), self._autocast():
            mu, logvar = self.net.encoder(images.contiguous(memory_format=torch.channels_last))
        with nvtx.annotate("latent"):
            mu, logvar = mu.float(), logvar.float()
            z, kl = reparameterize_kl(mu, logvar, key=self.key)
        with nvtx.annotate("decoder"), self._autocast():
            logits = self.net.decoder(z)
        with nvtx.annotate("loss"):
            outputs = Outputs(bernoulli_nll(logits, target), kl, z, mu, logvar, self._size)
            terms = self.recipe.objective.terms(outputs, self.key[1])
        with nvtx.annotate("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
        with nvtx.annotate("optimizer"):
            self.optimizer.step()
        row = torch.cat(
            [torch.stack([terms[name].detach().double() for name in self._names]), kl.detach().double()]
        )
        self._note_divergence(row)
        self.step += 1
        self.key[1] += 1
        return row

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            for field, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{field}"] = value
        return tensors

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        self.net.load_state_dict(
            {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        )
        for name, parameter in self.net.named_parameters():
            prefix = f"optimizer.{name}."
            saved = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            self.optimizer.state[parameter] = {field: _like(parameter, t) for field, t in saved.items()}
        self.step = step
        self.key[1] = step

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _note_divergence(self, row: Tensor) -> None:
        fresh = (self.first_bad_step < 0) & ~torch.isfinite(row).all()
        self.first_bad_step = torch.where(fresh, self.key[1], self.first_bad_step)


def _optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=recipe.lr)
    return torch.optim.Adam(parameters, lr=recipe.lr, fused=True)


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    """The saved tensor in the memory layout that the optimiser gave it: that of its parameter."""
    if saved.shape != parameter.shape:
        return saved.clone() if saved.ndim == 0 else saved.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(saved)
