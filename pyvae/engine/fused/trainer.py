"""A run through kernels that have the whole network: one member, or the objective's own part of several."""

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.batches import BatchOrder
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.members import Member, Members
from pyvae.engine.fused.plan import Operands, Plan, Tiles
from pyvae.engine.fused.seam import Seam
from pyvae.engine.fused.supports import network_for, store_of
from pyvae.engine.fused.weighting import weighting_of
from pyvae.engine.ranges import named
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import RING_ROWS, Stepper
from pyvae.engine.trainer import check_data
from pyvae.nets import build
from pyvae.objectives import TERMS, FactorVAE, Objective
from pyvae.random import Stream
from pyvae.schedules import staged


class FusedTrainer(Stepper):
    """As :class:`pyvae.engine.trainer.Trainer`, with networks, loss and Adam in some 28 launches of kernels of our own.

    Its checkpoints have the same names, shapes and layouts. The recipe must be one that
    :func:`pyvae.engine.fused.supports.supports` gives no reason against, or in fp32, which is there for tests.

    Args:
        tiles: what the kernels cut their work into; another choice sums in another order.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: torch.device,
        *,
        log_every: int = 1,
        capture: bool = True,
        tiles: Tiles | None = None,
    ) -> None:
        check_data(recipe, dataset)
        objective: Objective = recipe.objective  # type: ignore[assignment]  # others are refused
        behind: tuple[str, ...] = ()
        if isinstance(objective, FactorVAE):
            behind = ("discriminator_loss", "discriminator_grad_norm")
        network = network_for(recipe, dataset.image_shape[0])
        self.plan = Plan(
            network,
            Layout(network),
            recipe.batch_size,
            _operands(recipe),
            dataset.bits is not None,
            tiles=tiles or Tiles(),
            weighting=weighting_of(objective),
            before_norm=len(objective.extra_terms),
            behind_norm=len(behind),
            pdl=device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0),
        )
        fields = [*TERMS, *objective.extra_terms, "grad_norm", *behind]
        fields += [f"kl_{j}" for j in range(recipe.latents)]
        self._seam: Seam | None = None
        if self.plan.weighting.kind == "seam":
            self._seam = Seam(recipe, len(dataset), device)
        second = self.plan.second() if isinstance(objective, FactorVAE) else None
        member = Member(recipe.seed, objective, recipe.lr, _order(recipe, dataset, device, Stream.DATA_ORDER))
        self.members = Members(
            self.plan,
            [member],
            store_of(dataset, device),
            fields=fields,
            rows=RING_ROWS,
            log_every=log_every,
        )
        if second is not None:
            self.members.add_batches("second_ahead", [_order(recipe, dataset, device, Stream.SECOND_BATCH)])
        self._second = second or []
        net = build(
            recipe.architecture, dataset.image_shape[0], recipe.latents, init=recipe.init, seed=recipe.seed
        )
        self.members.load(0, 0, dict(net.named_parameters()))
        self._stages = recipe.lr_stage_steps
        super().__init__(
            recipe, fields, device, log_every=log_every, capture=capture, ledger=self.members.ledgers[0]
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        tensors = {f"net.{name}": value for name, value in self.members.tensors(0).items()}
        if self._seam:
            tensors |= self._seam.tensors()
        if self.ledger.control:
            tensors |= {f"control.{name}": tensor for name, tensor in self.ledger.control._asdict().items()}
        return tensors

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave at ``step``."""
        own = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        self.members.load(0, step, own)
        if self._seam:
            self._seam.restore(tensors)
        if self.ledger.control:
            for name, tensor in self.ledger.control._asdict().items():
                tensor.copy_(tensors[f"control.{name}"])
        self._restart(step)

    def _prepare(self, step: int) -> None:
        self.members.prepare(step)

    def _step(self) -> None:
        members, plan, seam = self.members, self.plan, self._seam
        if self._stages:
            rate = staged(self.key[1], self._stages) * self.recipe.lr
            members.buffers["hyper"][0, 0].copy_(rate)
        with named("forward"):
            members.launch(plan.forward[: plan.to_latents])
            if seam is not None:
                seam.weigh(members)
            members.launch(plan.weigh)
            members.launch(plan.forward[plan.to_latents :])
        with named("backward, optimizer"):
            members.launch(plan.backward)
        if seam is not None and self._second:
            with named("adversary"):
                members.launch(self._second)
                seam.oppose(members)
        members.launch(plan.settle)
        if seam is not None and self._second:
            seam.step(members)


def _operands(recipe: Recipe) -> Operands:
    return recipe.precision


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
