"""Members of the fused engine on the data of a stage, and their steps, one by one or in a graph."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

import bench_train
from pyvae.data import load
from pyvae.data.dataset import Dataset
from pyvae.engine.batches import BatchOrder
from pyvae.engine.capture import Capture
from pyvae.engine.fused.launch import Launch, Operands, Tiles
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.members import Member, Members
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.weighting import weighting_of
from pyvae.engine.stepper import BURST
from pyvae.nets import Autoencoder, build
from pyvae.objectives import TERMS, Objective
from step_rate import rate_of
from tiny import packed_data

RECIPE = replace(bench_train.RECIPE, batch_size=64)
_WARM_UP = 3
_ROWS = 4096
_DRY_IMAGES = 2
DRY_TILES = Tiles(
    batch=1024,
    first_conv=1024,
    down=(64, 256, 512),
    up=(64, 256, 512),
    up_first_conv=256,
    loss=512,
    loss_backward=1024,
    dense_columns=256,
    positions_k=256,
    wide=32768,
    columns=1024,
)
"""In the interpreter it is programs that cost, not what they hold."""
STATE = ("master", "exp_avg", "exp_avg_sq", "weights", "stats", "row", "ring", "key", "flags")
"""What a member has made of its steps."""


class Way(NamedTuple):
    """Of making a step."""

    operands: Operands = "fp16"
    pdl: bool = False
    side_branch: bool = False
    descriptors: bool = False

    def __str__(self) -> str:
        how = ["PDL"] * self.pdl + ["side branch"] * self.side_branch + ["descriptors"] * self.descriptors
        return f"{self.operands}, {' + '.join(how) or 'plain graph'}"


ALL = Way("fp16", pdl=True, side_branch=True, descriptors=True)
"""Whatever may pay."""


class Varied(NamedTuple):
    """Launches whose loads may be more or less far ahead of what they multiply, to the same result."""

    name: str
    kernel: str
    side: int | None = None
    """Of the small maps, where that tells launches of a kernel apart."""
    stages: int | None = None

    def takes(self, launch: Launch) -> bool:
        return launch.kernel[1] == self.kernel and dict(launch.constants).get("H") == self.side

    def of(self, launch: Launch) -> Launch:
        return launch._replace(stages=self.stages) if self.stages and self.takes(launch) else launch


VARIED = (
    Varied("conv_down at side 16", "conv_down_kernel", 16),
    Varied("loss", "loss_kernel"),
    Varied("weight gradients", "weight_gradients_kernel"),
)
STAGES = (1, 2, 3)
OPERANDS: tuple[Operands, ...] = ("fp16", "bf16", "tf32")


def has_pdl(device: torch.device) -> bool:
    """Whether kernels can be launched early, and read boxes by tensor descriptors."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=2)
def images_of(dry: bool) -> Dataset:
    """All of dSprites; in a dry run the tests' data."""
    return packed_data() if dry else load("dsprites", progress=False)


@lru_cache(maxsize=2)
def store_of(device: torch.device, dry: bool) -> Tensor:
    """Their bits int64 ``[N, 64]`` on the device."""
    data = images_of(dry)
    return data.bits.to(device).view(torch.int64)  # type: ignore[attr-defined]


def net_of(seed: int) -> Autoencoder:
    """The network of a seed, before its first step, as trainers build it."""
    net = build(RECIPE.architecture, 1, RECIPE.latents, init=RECIPE.init, seed=seed)
    assert isinstance(net, Autoencoder)
    return net


def plan_of(
    way: Way,
    *,
    dry: bool,
    images: int = RECIPE.batch_size,
    objective: Objective = RECIPE.objective,
    varied: Varied | None = None,
    tiles: Tiles | None = None,
) -> Plan:
    """The plan of a step of the benchmarks' network."""
    network = network_of(net_of(0))
    plan = Plan(
        network,
        Layout(network),
        _DRY_IMAGES if dry else images,
        way.operands,
        bits=True,
        tiles=tiles or (DRY_TILES if dry else None),
        weighting=weighting_of(objective),
        pdl=way.pdl,
        side_branch=way.side_branch,
        descriptors=way.descriptors,
    )
    if varied:
        plan.forward = [*map(varied.of, plan.forward)]
        plan.backward = [*map(varied.of, plan.backward)]
    return plan


class Run:
    """Members of one plan, and their steps.

    Args:
        store: bits int64 ``[N, 64]`` on the device.
        seeds: of the members, each its own.
        whole: False: forward and the row alone, as dry runs that have seen a whole step elsewhere.
    """

    def __init__(
        self,
        plan: Plan,
        store: Tensor,
        seeds: Sequence[int] = (RECIPE.seed,),
        *,
        objective: Objective = RECIPE.objective,
        log_every: int = 100,
        whole: bool = True,
    ) -> None:
        self.plan = plan
        device = store.device
        fields = [*TERMS, "grad_norm", *(f"kl_{j}" for j in range(plan.network.latents))]
        self.orders = [BatchOrder(seed, len(store), plan.images, device) for seed in seeds]
        members = [
            Member(seed, objective, RECIPE.lr, order) for seed, order in zip(seeds, self.orders, strict=True)
        ]
        self.members = Members(plan, members, store, fields=fields, rows=_ROWS, log_every=log_every)
        for n, seed in enumerate(seeds):
            self.members.load(n, 0, dict(net_of(seed).named_parameters()))
        self.launches = (
            [*plan.forward, *plan.weigh, *plan.backward, *plan.settle]
            if whole
            else [*plan.first, *plan.forward, *plan.settle]
        )
        self.step = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._capture: Capture | None = None

    def advance(self, count: int, *, capture: bool = True) -> None:
        """Make ``count`` steps; on a GPU those of whole bursts as graphs, if so asked."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())
        with self.own_stream():
            stop = self.step + count
            while self.step < stop:
                self.members.prepare(self.step)
                whole = self.step % BURST == 0 and stop - self.step >= BURST and self.step >= _WARM_UP
                if capture and self._stream and whole:
                    self._capture = self._capture or Capture(self.one, BURST)
                    self._capture.replay()
                    self.step += BURST
                else:
                    self.one()
                    self.step += 1
        if self._stream:
            torch.cuda.current_stream().wait_stream(self._stream)

    def one(self) -> None:
        """The launches of a step."""
        self.members.launch(self.launches)

    def own_stream(self) -> AbstractContextManager[object]:
        """The stream of all steps, which is not the default one: that cannot be captured."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def state(self, member: int = 0) -> dict[str, Tensor]:
        """:data:`STATE` of a member, as it is now."""
        return {name: self.members.buffers[name][member].clone() for name in STATE}

    def gradient(self, name: str) -> Tensor:
        """float64 gradient of the batch's average at a parameter of the first member, as torch has it."""
        at, parameter = self.plan.gradients[name], self.plan.layout.parameters[name]
        parts = self.members.buffers["gradients"][0, at.offset : at.offset + at.parts * at.stride]
        whole = parts.view(at.parts, at.stride)[:, : parameter.size].double().sum(0) / self.plan.images
        return whole[(parameter.index - parameter.offset).to(whole.device)]

    def largest(self, activation: str) -> Tensor:
        """The largest magnitude among an activation, or a gradient, of all members: ``[]``."""
        start = self.plan.activations[activation]
        # up to where the next one lies
        stop = min((at for at in self.plan.activations.values() if at > start), default=None)
        return self.members.buffers["activations"][:, start:stop].abs().max().float()


def unequal(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    """Names of what is not equal bit for bit, or not finite."""
    return [name for name, tensor in one.items() if not torch.equal(tensor, two[name])]


def timed(call: Callable[[], object], steps: int, seconds: float) -> list[float]:
    """Low quartile, median and high quartile of the steps per second of a call that makes so many."""
    return rate_of(call, steps, seconds, bench_train.DEVICE).steps_per_second.rounded()
