"""What the tests of whole networks as kernels share: plans, members and data, and the step in float64."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import GPU
from torch import Tensor, nn

from pyvae.engine.batches import BatchOrder
from pyvae.engine.fused.launch import Operands, Tiles
from pyvae.engine.fused.layout import Layout, padded, z_width
from pyvae.engine.fused.members import Member, Members
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.weighting import weighting_of
from pyvae.nets import Autoencoder, build
from pyvae.objectives import BetaVAE, Objective
from pyvae.random import make_key, normal

ARCHITECTURES = ("burgess", "beta-vae-h", "kim", "kim-256", "locatello")
DEVICE = torch.device("cuda" if GPU else "cpu")
IMAGES = 40
"""Of the data set."""
INTERPRETED = Tiles(
    batch=1024,
    first_conv=1024,
    down=(64, 256, 256),
    up=(64, 256, 1024),
    up_first_conv=256,
    loss=256,
    loss_backward=1024,
    dense=16,
    dense_columns=256,
    wide=16384,
    columns=512,
)
"""Few programs: each takes milliseconds."""
TILES = None if GPU else INTERPRETED
TERMS = ["loss", "recon", "kl", "beta", "capacity", "grad_norm"]
WRITTEN = ("activations", "gradients", "stats", "kl_parts", "nll_parts", "squares")
"""Buffers that a step writes before it reads them."""


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """The interpreter with triton.language patched once, not at each call of a device function, and without the check
    of integers for overflow, which computes each sum three times: together more than half of its time."""
    if GPU:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    scopes = [
        interpreter._patch_lang(SimpleNamespace(__globals__={"tl": module})) for module in (tl, tl.core)
    ]
    options = interpreter.interpreter_builder.options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda fn: SimpleNamespace(restore=lambda: None))
        object.__setattr__(options, "sanitize_overflow", False)
        try:
            yield
        finally:
            object.__setattr__(options, "sanitize_overflow", True)
            for scope in reversed(scopes):
                scope.restore()


@functools.cache
def network(architecture: str, channels: int = 1, latents: int = 10, seed: int = 0) -> Autoencoder:
    return build(architecture, channels, latents, seed=seed)


@functools.cache
def plan_of(
    architecture: str,
    channels: int = 1,
    images: int = 2,
    operands: Operands = "fp32",
    *,
    latents: int = 10,
    tiles: Tiles | None = TILES,
    objective: Objective | None = None,
    **options,
) -> Plan:
    found = network_of(network(architecture, channels, latents))
    return Plan(
        found,
        Layout(found),
        images,
        operands,
        channels == 1,
        tiles=tiles,
        weighting=weighting_of(objective or BetaVAE()),
        **options,
    )


@functools.cache
def data(channels: int) -> tuple[Tensor, Tensor]:
    """A data set as kernels read it, and its images float64 ``[IMAGES, channels, 64, 64]``."""
    generator = torch.Generator().manual_seed(channels)
    if channels > 1:
        pixels = torch.randint(0, 256, (IMAGES, channels, 64, 64), dtype=torch.uint8, generator=generator)
        return pixels.view(IMAGES, -1).to(DEVICE), (pixels.double() / 255).to(DEVICE)
    coarse = (torch.rand(IMAGES, 8, 8, generator=generator) < 0.4).to(torch.uint8)
    pixels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2).view(IMAGES, 1, 64, 64)
    # ragged edges, too
    pixels ^= (torch.rand(pixels.shape, generator=generator) < 0.05).to(torch.uint8)
    return packed(pixels).to(DEVICE), pixels.double().to(DEVICE)


def packed(pixels: Tensor) -> Tensor:
    """int64 ``[N, 64]`` of pixels uint8 ``[N, 1, 64, 64]`` of 0 and 1: a row is an integer, its first pixel bit 0."""
    eights = pixels.reshape(len(pixels), 512, 8) << torch.arange(8, dtype=torch.uint8)
    return eights.sum(-1).to(torch.uint8).view(torch.int64)


class One(SimpleNamespace):
    """A member: seed, objective, lr."""

    def __init__(self, seed: int, objective: Objective | None = None, lr: float = 1e-3) -> None:
        super().__init__(seed=seed, objective=objective or BetaVAE(beta=4.0), lr=lr)


def members_of(
    plan: Plan, ones: Sequence[One], architecture: str, *, rows: int = 16, log_every: int = 1
) -> Members:
    """Members with weights drawn by their seeds, and with what a step must not read poisoned."""
    channels, latents = plan.network.channels, plan.network.latents
    store, _ = data(channels)
    members = Members(
        plan,
        [Member(m.seed, m.objective, m.lr, BatchOrder(m.seed, IMAGES, plan.images, DEVICE)) for m in ones],
        store,
        fields=TERMS + [f"kl_{i}" for i in range(latents)],
        rows=rows,
        log_every=log_every,
    )
    for name in (*WRITTEN, "moved_control"):
        members.buffers[name].fill_(float("nan"))
    members.buffers["batch"].fill_(85)
    for n, m in enumerate(ones):
        members.load(n, 0, dict(network(architecture, channels, latents, m.seed).named_parameters()))
    return members


def step(members: Members, at: int) -> None:
    """One step; what an earlier one has written is gone."""
    plan = members.plan
    for name in WRITTEN:
        members.buffers[name].fill_(float("nan"))
    members.prepare(at)
    members.launch([*plan.forward, *plan.weigh, *plan.backward, *plan.settle])


def gradient(members: Members, member: int, name: str) -> Tensor:
    """float64, of the batch's mean, as torch has it: the sum of its parts."""
    plan = members.plan
    lie, parameter = plan.gradients[name], plan.layout.parameters[name]
    row = members.buffers["gradients"][member].cpu()
    parts = row[lie.offset : lie.offset + lie.parts * lie.stride].view(lie.parts, lie.stride)
    return parts.double().sum(0)[parameter.index - parameter.offset] / plan.images


def stored(members: Members, member: int, name: str) -> Tensor:
    """float64 of what operands of a step hold, by the name that a plan gives them; maps have channels in front."""
    plan = members.plan
    net, images, d = plan.network, plan.images, plan.network.latents
    row = members.buffers["activations"][member, plan.activations[name] :].cpu().double()
    layer = name.removesuffix("'")

    def take(*shape: int) -> Tensor:
        return row[: images * torch.Size(shape).numel()].view(images, *shape)

    if name == "z":
        return take(z_width(d))[:, :d]
    if layer == net.head:
        return take(2, padded(d))[..., :d].flatten(1)
    if layer == net.last:
        return take(net.channels, 64, 64)
    sides = {net.first: (32, 32)}
    sides |= {pair.name: (pair.side, pair.small) for pair in net.down}
    sides |= {pair.name: (2 * pair.side, pair.big) for pair in net.up}
    sides |= {dense.name: (4, dense.outputs // 16) for dense in net.decode if dense.maps == "outputs"}
    if layer in sides:
        side, channels = sides[layer]
        return take(side, side, channels).permute(0, 3, 1, 2)
    widths = {dense.name: dense.outputs for dense in (*net.encode, *net.decode)}
    return take(widths.get(layer, net.width_out))


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, of the whole tensor: NaN where anything is not a number."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but that a NaN is a NaN."""
    return torch.equal(a.nan_to_num(7), b.nan_to_num(7)) and torch.equal(a != a, b != b)


def rounder(operands: Operands):
    """Rounds float64 to what an operand can hold."""
    if operands == "fp32":
        return lambda x: x
    if operands == "tf32":

        def tf32(x: Tensor) -> Tensor:
            bits = x.float().contiguous().view(torch.int32)
            return ((bits + 0x1000) & -0x2000).view(torch.float32).double()

        return tf32
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[operands]
    return lambda x: x.float().to(kind).double()


@dataclass
class Reference:
    """What a step in float64 found."""

    nll: Tensor
    kl: Tensor
    """``[latents]``, averaged over the batch."""
    gradients: dict[str, Tensor]
    norm: Tensor


class Step64:
    """The step in float64 by torch's autograd and Adam, with operands rounded where the kernels round them: values
    where a layer leaves them, gradients where they leave a layer's product. Biases are added, and their gradients
    summed, before. With "fp32" nothing is rounded.

    Args:
        follows: members whose first one has just made the same step: wherever an operand is stored, it goes on with
            what is there, so that each layer is compared by itself. Otherwise a value between two that operands can
            hold, which a sum in another order sends to the other one, is seen in all that comes behind it.
    """

    def __init__(
        self,
        architecture: str,
        channels: int,
        latents: int,
        one: One,
        operands: Operands = "fp32",
        dtype: torch.dtype = torch.float64,
        follows: Members | None = None,
    ) -> None:
        self._dtype = dtype
        self.net = build(architecture, channels, latents, seed=one.seed).to(DEVICE, dtype)
        self.one = one
        self.adam = torch.optim.Adam(self.net.parameters(), lr=one.lr)
        self.differ: dict[str, tuple[int, int]] = {}
        """Of operands by the name of the layer whose output they are, or, with a "'", at whose product they are the
        gradient: how many differ from those that are followed, and how many there are beside zeros."""
        rounds = rounder(operands)

        def store(x: Tensor, name: str) -> Tensor:
            x = rounds(x)
            if follows is None or name not in follows.plan.activations:
                return x
            found = stored(follows, 0, name).reshape(x.shape).to(x)
            self.differ[name] = int((found != x).sum()), int((found != 0).sum())
            return found

        class Value(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, name):
                return store(x, name)

            @staticmethod
            def backward(ctx, g):
                return g, None

        class Gradient(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, name):
                ctx.name = name
                return x.clone()

            @staticmethod
            def backward(ctx, g):
                return store(g, ctx.name), None

        self._value, self._gradient = Value.apply, Gradient.apply

    def __call__(self, at: int, images: int, weight: float | None = None) -> Reference:
        """Step ``at`` on ``images`` of the data set; moves the weights.

        Args:
            weight: of the KL; None is the objective's beta.
        """
        one, net = self.one, self.net
        weight = one.objective.beta if weight is None else weight
        which = BatchOrder(one.seed, IMAGES, images, DEVICE).draw(at, 1)[0]
        x = data(net_channels(net))[1][which].to(self._dtype)
        h = self._through(net.encoder.trunk, x, "encoder.trunk")
        mu, logvar = self._product(net.encoder.head, h, "encoder.head").chunk(2, -1)
        eps = normal(make_key(one.seed, at, DEVICE), images, net.latents, 0, self._dtype)
        z = mu + torch.exp(0.5 * logvar) * eps
        logits = self._through(net.decoder, self._value(z, "z"), "decoder")
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3)).mean()
        kl = (0.5 * (mu.square() + logvar.exp() - 1 - logvar)).mean(0)
        loss = nll + weight * kl.sum()
        self.adam.zero_grad()
        # of the batch's sum, as the kernels carry them
        (loss * images).backward()
        for p in net.parameters():
            p.grad /= images
        found = {name: p.grad.clone() for name, p in net.named_parameters()}
        self.adam.step()
        norm = torch.stack([g.norm() for g in found.values()]).norm()
        return Reference(nll.detach(), kl.detach(), found, norm)

    def _through(self, layers: nn.Module, x: Tensor, prefix: str) -> Tensor:
        product = prefix
        for name, layer in layers.named_children():
            if isinstance(layer, nn.ReLU):
                x = self._value(F.relu(x), product)
            elif isinstance(layer, nn.Flatten | nn.Unflatten):
                x = layer(x)
            else:
                product = f"{prefix}.{name}"
                x = self._product(layer, x, product)
        return x

    def _product(self, layer: nn.Module, x: Tensor, name: str) -> Tensor:
        w = self._value(layer.weight, f"{name}.weight")
        if isinstance(layer, nn.Linear):
            y, bias = F.linear(x, w), layer.bias
        else:
            product = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv_transpose2d
            y, bias = product(x, w, stride=layer.stride, padding=layer.padding), layer.bias.view(-1, 1, 1)
        return self._gradient(y, f"{name}'") + bias


def net_channels(net: Autoencoder) -> int:
    return next(m for m in net.encoder.trunk.children() if isinstance(m, nn.Conv2d)).in_channels


# kernels one by one, of two members

S = 2
NAN = float("nan")


class Row:
    """What all members have of a buffer, with a gap behind each that a kernel neither reads nor writes."""

    def __init__(self, *shape: int, dtype=torch.float32, fill: float = NAN) -> None:
        self.shape = shape
        size = torch.Size(shape).numel()
        self.stride = size + 256
        if not dtype.is_floating_point and fill != fill:
            fill = 85
        self._all = torch.full((S, self.stride), fill, dtype=dtype, device=DEVICE)
        self._gap = self._all[:, size:].clone()
        self.row = self._all[:, :size]

    @property
    def values(self) -> torch.Tensor:
        """On the host, ``[S, ...]``; float64 where they are floats."""
        size = self.row.shape[1]
        gap = self._all[:, size:]
        assert torch.equal(gap.nan_to_num(7), self._gap.nan_to_num(7)), "written behind its end"
        found = self.row.reshape(S, *self.shape).cpu()
        return found.double() if found.is_floating_point() else found


def held(values: torch.Tensor) -> Row:
    """A row of given values ``[S, ...]``."""
    kind = torch.float32 if values.is_floating_point() else values.dtype
    row = Row(*values.shape[1:], dtype=kind)
    row.row.copy_(values.reshape(S, -1))
    return row


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """float64 of which float32 holds every digit."""
    x = torch.randn(S, *shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x.float().double()


def flags() -> torch.Tensor:
    return torch.zeros(S, dtype=torch.int32, device=DEVICE)


def launch(module: str, kernel: str, programs: int, *arguments, **constants) -> None:
    """With rows as pointers, and their strides where a name stands for one."""
    function = getattr(import_module(f"pyvae.kernels.{module}"), kernel)
    given = [x.row if isinstance(x, Row) else x for x in arguments]
    if "TF32" in function.arg_names:
        constants.setdefault("TF32", False)
    function[(programs, S)](*given, **constants, PDL=False, num_stages=1)


def images_of(channels: int, images: int = 2, seed: int = 5) -> torch.Tensor:
    """uint8 ``[S, images, C, 64, 64]``: bits of one channel, else bytes; nothing repeats itself, edges neither."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 2 if channels == 1 else 256, (S, images, channels, 64, 64), generator=generator
    ).to(torch.uint8)


def batch_of(pixels: torch.Tensor) -> torch.Tensor:
    """As kernels hold a batch: a word of the 4 x 4 pixels under each output, or bytes as they are."""
    if pixels.shape[2] > 1:
        return pixels
    windows = F.pad(pixels[:, :, 0].int(), (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    words = (windows.reshape(*windows.shape[:4], 16) << torch.arange(16)).sum(-1)
    return words.to(torch.int16)
