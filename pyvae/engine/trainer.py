"""One training step and the state it moves."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pyvae.base.source import Source
from pyvae.control import Control
from pyvae.data.binarised import check_binarisable
from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine.adam import Adam, adam
from pyvae.engine.batches import Batch, Batches, ImageSource
from pyvae.engine.binarise import BinarisedBatches
from pyvae.engine.controller import controller
from pyvae.engine.low_precision import keep_low_precision_weights
from pyvae.engine.ranges import named
from pyvae.engine.recipe import Recipe
from pyvae.engine.state import Trained
from pyvae.engine.stepper import Stepper
from pyvae.errors import RecipeError
from pyvae.functional import reparameterize_kl
from pyvae.nets import SIDE, Autoencoder, build, takes_any_side
from pyvae.nets.trial import check_own
from pyvae.objectives import TCVAE, ControlVAE, FactorVAE, ImportanceWeighted, InfoGAN, Outputs
from pyvae.objectives.likelihood import image_nll
from pyvae.objectives.own import check_names, term_names
from pyvae.random import Stream
from pyvae.schedules import staged


class Trainer(Stepper):
    """A network, its optimiser and the step counter, all on one device; with them the objective's adversary, if any.

    A step reads nothing back from the device: the step counter, the loss and its terms, whether they are finite, and
    the rows of the trace stay there. On a GPU, ``BURST`` steps are one graph.
    """

    net: Autoencoder

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
        if isinstance(recipe.objective, InfoGAN):
            raise RecipeError(f"{type(recipe.objective).__name__} has no decoder: see pyvae.engine.training")
        self._objective = recipe.objective
        net = build(
            recipe.architecture,
            dataset.image_shape[0],
            recipe.latents,
            side=dataset.image_shape[-1],
            init=recipe.init,
            seed=recipe.seed,
            factor_sizes=_factor_sizes(recipe, dataset),
        )
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compiled = compile
        self._encoder, self._decoder = (
            _compiled(module) if compile else module for module in (self.net.encoder, self.net.decoder)
        )
        optimizer = _optimizer(recipe, list(self.net.parameters()), device)
        if recipe.precision == "bf16" and isinstance(optimizer, Adam):
            keep_low_precision_weights(self.net, optimizer)
        self._trained = Trained("net", self.net, optimizer)
        self._size = len(dataset)
        source = ImageSource(dataset, device)
        self._batches = batches_of(recipe, source, dataset, device)
        self._names = term_names(recipe.objective, recipe.latents, device, dataset.image_shape)
        self._adversary: Adversary | None = None
        if isinstance(recipe.objective, FactorVAE):
            self._second = batches_of(recipe, source, dataset, device, second=True)
            self._adversary = Adversary(recipe, recipe.objective, device, compile=compile)
        control = None
        if isinstance(recipe.objective, ControlVAE):
            control = recipe.objective.initial_control(device)
            self._controller = controller(recipe.objective, device)
        self._stages = recipe.lr_stage_steps
        super().__init__(
            recipe, self._fields(), device, log_every=log_every, capture=capture, control=control
        )

    def _fields(self) -> list[str]:
        adversary = ["discriminator_loss", "discriminator_grad_norm"] if self._adversary else []
        return [*self._names, "grad_norm", *adversary, *(f"kl_{j}" for j in range(self.net.latents))]

    def _prepare(self, step: int) -> None:
        self._batches.prepare(step)
        if self._adversary:
            self._second.prepare(step)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        tensors = self._trained.tensors() | self._own_tensors()
        if self._adversary:
            tensors |= self._adversary.trained.tensors()
        if self.ledger.control:
            tensors |= {f"control.{name}": tensor for name, tensor in self.ledger.control._asdict().items()}
        return tensors

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        self._trained.restore(tensors)
        self._restore_own(tensors)
        if self._adversary:
            self._adversary.trained.restore(tensors)
        if self.ledger.control:
            for name, tensor in self.ledger.control._asdict().items():
                tensor.copy_(tensors[f"control.{name}"])
        self._restart(step)

    def _step(self) -> None:
        """One step; no code here may depend on a value of the device."""
        step = self.key[1]
        with named("data"):
            batch = self._batches.batch(step)
        if self._stages:
            self._trained.set_rate(staged(step, self._stages) * self.recipe.lr)
        with named("encoder"):
            mu, logvar = self._encode(batch)
        control = None
        if isinstance(self._objective, ImportanceWeighted):
            with named("importance samples"):
                terms, kl = self._objective.sampled_terms(
                    mu, logvar, batch.target, self._decode, key=self.key, target_max=batch.target_max
                )
        else:
            with named("decoder"):
                z, kl = reparameterize_kl(mu, logvar, key=self.key)
                logits = self._decode(z)
            with named("loss"):
                tc = self._total_correlation(z)
                recon = image_nll(
                    self.recipe.likelihood,
                    logits,
                    batch.images,
                    target=batch.target,
                    target_max=batch.target_max,
                )
                control = self._controlled(kl, step)
                outputs = Outputs(recon, kl, z, mu, logvar, self._size, tc, control, batch.images, logits)
                terms = self._objective.terms(outputs, step)
        check_names(self._objective, terms, self._names)
        with named("backward"):
            norm = self._trained.backward(terms["loss"])
        values = [*(terms[name].detach() for name in self._names), norm]
        kl = kl.detach()
        if not self._adversary:
            with named("optimizer"):
                self._trained.step(self.ledger.settle(values, kl, control))
            return
        with named("optimizer"):
            self._trained.step(self.ledger.judge(values, kl))
        with named("adversary"):
            loss = self._discriminator_loss(self._adversary, step, z.detach())
            norm = self._adversary.trained.backward(loss)
            self._adversary.trained.step(self.ledger.settle([*values, loss.detach(), norm], kl, control))

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self._autocast():
            if self.net.reads_factors:
                mu, logvar = self._encoder(batch.which)
            else:
                mu, logvar = self._encoder(batch.images.contiguous(memory_format=torch.channels_last))
        return mu.float(), logvar.float()

    def _decode(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self._decoder(z)

    def _controlled(self, kl: Tensor, step: Tensor) -> Control | None:
        if self.ledger.control is None:
            return None
        return self._controller(self.ledger.control, kl.detach().sum(-1), step)

    def _total_correlation(self, z: Tensor) -> Tensor | None:
        if self._adversary is None:
            return None
        with self._autocast():
            return self._adversary.total_correlation(z)

    def _discriminator_loss(self, adversary: "Adversary", step: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            posteriors = self._encode(self._second.batch(step))
            second, _ = reparameterize_kl(*posteriors, key=self.key, stream=Stream.SECOND_POSTERIOR)
        with self._autocast():
            return adversary.loss(z, second, self.key)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")


class Adversary:
    """FactorVAE's discriminator and its optimiser."""

    def __init__(
        self, recipe: Recipe, objective: FactorVAE, device: torch.device, *, compile: bool = False
    ) -> None:
        self._objective = objective
        net = objective.discriminator(recipe.latents, seed=recipe.seed).to(device)
        optimizer = adam(
            net.parameters(), objective.discriminator_lr, device, betas=objective.discriminator_betas
        )
        if recipe.precision == "bf16" and isinstance(optimizer, Adam):
            keep_low_precision_weights(net, optimizer)
        self.trained = Trained("discriminator", net, optimizer)
        self._net = _compiled(net) if compile else net

    def total_correlation(self, z: Tensor) -> Tensor:
        return self._objective.total_correlation(self._net, z)

    def loss(self, z: Tensor, second: Tensor, key: Tensor) -> Tensor:
        return self._objective.discriminator_loss(self._net, z, second, key)


def _factor_sizes(recipe: Recipe, dataset: Dataset) -> tuple[int, ...] | None:
    return dataset.factor_sizes if recipe.code == "factors" and isinstance(dataset, FactorDataset) else None


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Raises RecipeError when the recipe cannot be trained on this data."""
    channels, height, width = dataset.image_shape
    if (height, width) != (SIDE, SIDE) and not takes_any_side(recipe.architecture):
        raise RecipeError(
            f"images are {height} x {width}, but the networks take {SIDE} x {SIDE}: --image-size {SIDE}"
        )
    if height != width:
        raise RecipeError(
            f"images are {height} x {width}, but the networks take square ones: --image-size {SIDE}"
        )
    if recipe.binarise != "none":
        check_binarisable(dataset)
    if isinstance(recipe.objective, TCVAE):
        recipe.objective.check_batch(recipe.batch_size, len(dataset))
    if isinstance(recipe.architecture, Source):
        check_own(recipe.architecture, channels, recipe.latents, height)
    term_names(recipe.objective, recipe.latents, torch.device("cpu"), dataset.image_shape)
    if recipe.code == "encoder":
        return
    if not isinstance(dataset, FactorDataset):
        raise RecipeError(f"code factors: the factors of {recipe.data} are not known")
    if recipe.latents != len(dataset.factor_sizes):
        raise RecipeError(
            f"code factors: {recipe.data} has {len(dataset.factor_sizes)} factors: "
            f"--latents {len(dataset.factor_sizes)}"
        )


def _compiled(module: torch.nn.Module) -> torch.nn.Module:
    # no kernel is chosen by timing it, so that runs stay equal bit for bit
    return torch.compile(module, fullgraph=True, dynamic=False, options={"deterministic": True})  # type: ignore[return-value]


def batches_of(
    recipe: Recipe,
    source: ImageSource,
    dataset: Dataset,
    device: torch.device,
    *,
    second: bool = False,
    size: int | None = None,
) -> Batches:
    """Batches of a run, the second of two independent ones if so asked, of ``size`` images or the recipe's."""
    order = Stream.SECOND_BATCH if second else Stream.DATA_ORDER
    batches = source.batches(
        recipe.seed, size or recipe.batch_size, order, replacement=recipe.sampling == "replacement"
    )
    if recipe.binarise == "none":
        return batches
    draws = Stream.SECOND_BINARISATION if second else Stream.BINARISATION
    return BinarisedBatches(batches, recipe.seed, device, draws)


def _optimizer(
    recipe: Recipe, parameters: list[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    if recipe.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=recipe.lr)
    return adam(parameters, recipe.lr, device, staged=recipe.lr_stage_steps is not None)
