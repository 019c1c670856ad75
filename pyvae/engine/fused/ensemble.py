"""Runs side by side through kernels that have whole networks: one for each recipe, and a step of all at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.batches import BatchOrder
from pyvae.engine.fused.launch import Options, Tiles
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.members import Member, Members
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.seam import Seam
from pyvae.engine.fused.supports import network_for, options_on, store_of
from pyvae.engine.fused.weighting import weighting_of
from pyvae.engine.ledger import Ledger
from pyvae.engine.ranges import named
from pyvae.engine.recipe import Recipe
from pyvae.nets import build
from pyvae.objectives import TERMS, FactorVAE, Objective
from pyvae.random import Stream
from pyvae.schedules import staged

_SHARED = ("architecture", "latents", "batch_size", "precision")


class Ensemble:
    """Members, one for each recipe, and what their objectives have beside them.

    Args:
        recipes: one or more; seeds, initial weights, learning rates, orders of the data and numbers of the objective
            may differ. Each must be one that :func:`pyvae.engine.fused.supports.supports` gives no reason against, or
            in fp32, which is there for tests.
        tiles: what the kernels cut their work into; another choice sums in another order.

    Raises:
        ValueError: recipes differ in what members must share; the message names it.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        dataset: Dataset,
        device: torch.device,
        *,
        rows: int,
        log_every: int,
        tiles: Tiles | None = None,
    ) -> None:
        self.recipes = list(recipes)
        objectives = [_shared(recipe, self.recipes[0]) for recipe in self.recipes]
        first, objective = self.recipes[0], objectives[0]
        self.plan = plan_for(self.recipes, dataset, device, tiles)
        self._second = self.plan.second() if isinstance(objective, FactorVAE) else []
        self.fields = [*TERMS, *objective.extra_terms, "grad_norm", *_behind_norm(objective)]
        self.fields += [f"kl_{j}" for j in range(first.latents)]
        self._seam: Seam | None = None
        if self.plan.weighting.kind == "seam":
            self._seam = Seam(self.recipes, len(dataset), device)
        members = [
            Member(recipe.seed, each, recipe.lr, _order(recipe, dataset, device, Stream.DATA_ORDER))
            for recipe, each in zip(self.recipes, objectives, strict=True)
        ]
        store = store_of(dataset, device)
        self.members = Members(self.plan, members, store, fields=self.fields, rows=rows, log_every=log_every)
        if self._second:
            orders = [_order(recipe, dataset, device, Stream.SECOND_BATCH) for recipe in self.recipes]
            self.members.add_batches("second_ahead", orders)
        for n, recipe in enumerate(self.recipes):
            channels = dataset.image_shape[0]
            net = build(recipe.architecture, channels, recipe.latents, init=recipe.init, seed=recipe.seed)
            self.members.load(n, 0, dict(net.named_parameters()))
        self.prepare = self.members.prepare

    @property
    def ledgers(self) -> list[Ledger]:
        """That of each member."""
        return self.members.ledgers

    def tensors(self, member: int = 0) -> dict[str, Tensor]:
        """Everything that the next step of a member depends on, by the names that torch's trainer gives."""
        tensors = {f"net.{name}": value for name, value in self.members.tensors(member).items()}
        if self._seam:
            tensors |= self._seam.tensors(member)
        if control := self.ledgers[member].control:
            tensors |= {f"control.{name}": tensor for name, tensor in control._asdict().items()}
        return tensors

    def restore(self, step: int, tensors: Mapping[str, Tensor], member: int = 0) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        own = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        self.members.load(member, step, own)
        if self._seam:
            self._seam.restore(tensors, member)
        if control := self.ledgers[member].control:
            for name, tensor in control._asdict().items():
                tensor.copy_(tensors[f"control.{name}"])

    def step(self) -> None:
        """One step of every member; no code in it depends on a value of the device."""
        members, plan, seam = self.members, self.plan, self._seam
        for recipe, key, hyper in zip(
            self.recipes, members.buffers["key"], members.buffers["hyper"], strict=True
        ):
            if recipe.lr_stage_steps:
                hyper[0].copy_(staged(key[1], recipe.lr_stage_steps) * recipe.lr)
        with named("forward"):
            members.launch(plan.forward[: plan.to_latents])
            if seam is not None:
                seam.weigh(members)
            members.launch(plan.weigh)
            members.launch(plan.forward[plan.to_latents :])
        with named("backward, optimizer"):
            members.launch(plan.backward)
        if seam is None or not self._second:
            members.launch(plan.settle)
            return
        with named("adversary"):
            members.launch(self._second)
            seam.oppose(members)
            members.launch(plan.settle)
            seam.step(members)


def plan_for(
    recipes: Sequence[Recipe], dataset: Dataset, device: torch.device, tiles: Tiles | None = None
) -> Plan:
    """The plan that runs of these recipes share; see :class:`Ensemble`."""
    first, objective = recipes[0], recipes[0].objective
    network = network_for(first, dataset.image_shape[0])
    return Plan(
        network,
        Layout(network),
        first.batch_size,
        first.precision,
        dataset.bits is not None,
        tiles=tiles,
        weighting=weighting_of(objective),
        before_norm=len(objective.extra_terms),
        behind_norm=len(_behind_norm(objective)),
        **_options(recipes, device)._asdict(),
    )


def _options(recipes: Sequence[Recipe], device: torch.device) -> Options:
    """What pays on the device, but for what these recipes have no use for."""
    first = recipes[0]
    options = options_on(device, first.precision)
    if first.batch_size % 4:  # boxes are of whole fours
        options = options._replace(descriptors=False)
    # edges of a graph that let a launch begin early lead from kernel to kernel, not from torch's copies
    copies = any(recipe.lr_stage_steps for recipe in recipes)
    if copies or weighting_of(first.objective).kind == "seam":
        options = options._replace(pdl=False)
    return options


def _behind_norm(objective: Objective) -> tuple[str, ...]:
    """Values of a row behind the norm of the gradient, but for the KL of each latent."""
    adversarial = isinstance(objective, FactorVAE)
    return ("discriminator_loss", "discriminator_grad_norm") if adversarial else ()


def _shared(recipe: Recipe, first: Recipe) -> Objective:
    """The objective of a recipe whose members may stand beside each other."""
    for name in _SHARED:
        if getattr(recipe, name) != getattr(first, name):
            raise ValueError(
                f"{name}: members share it, got {getattr(first, name)} and {getattr(recipe, name)}"
            )
    kinds = [type(each.objective).__name__ for each in (first, recipe)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"objective: members share it, got {' and '.join(kinds)}")
    options = [weighting_of(each.objective).options for each in (first, recipe)]
    for name, mine, other in zip(options[0]._fields, *options, strict=True):
        if mine != other:
            raise ValueError(f"{name.lower()}: members share it, got {mine} and {other}")
    return recipe.objective


def _order(recipe: Recipe, dataset: Dataset, device: torch.device, stream: Stream) -> BatchOrder:
    return BatchOrder(
        recipe.seed,
        len(dataset),
        recipe.batch_size,
        device,
        stream,
        replacement=recipe.sampling == "replacement",
        window=1,
    )
