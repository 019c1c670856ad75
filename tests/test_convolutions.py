"""Convolutions of our own on a CPU against the same layers of torch, both held against float64."""

import copy
import io
import pickle
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pyvae import convolutions, doctor, native, processor
from pyvae.adversarial_nets import build_pair
from pyvae.convolution_run import Run
from pyvae.errors import BackendError
from pyvae.layers import Layers, Tickets, convolutions_of, set_own_convolutions, takes_products
from pyvae.metrics import encode
from pyvae.modules import fuse_convolutions
from pyvae.nets import build
from tiny import TinyData

CPU = torch.device("cpu")
LAST, DENSE = torch.channels_last, torch.contiguous_format
NETWORKS = ["burgess", "beta-vae-h", "kim", "locatello"]
ABSENT = native.missing("convolutions_fwd", "cpu")
LEVEL = 0 if ABSENT else torch.ops.pyvae_native.convolution_level()
own = pytest.mark.skipif(LEVEL == 0, reason=ABSENT or "a processor without AVX2")
bfloat16 = pytest.mark.skipif(LEVEL < 3, reason=ABSENT or "a processor without products of bfloat16")


@pytest.fixture(autouse=True)
def automatic(monkeypatch):
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    convolutions._arithmetic.cache_clear()
    yield
    convolutions._arithmetic.cache_clear()


@contextmanager
def counted():
    """Stages of the runs that are our own within."""
    runs = []
    call = Run.__call__

    def count(run, x):
        runs.append(len(run.stages))
        return call(run, x)

    with mock.patch.object(Run, "__call__", count):
        yield runs


class Whole(nn.Module):
    """An encoder of one output."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return torch.cat(self.encoder(images), -1)


def part(architecture, name, channels, batch, order=LAST):
    """An encoder or a decoder, and what it reads."""
    net = build(architecture, channels, 4).to(memory_format=order)
    g = torch.Generator().manual_seed(batch)
    if name == "decoder":
        return net.decoder, torch.randn(batch, 4, generator=g)
    images = torch.rand(batch, channels, 64, 64, generator=g)
    return Whole(net.encoder), images.contiguous(memory_format=order)


def every_kind(*, linear=True):
    """Each kind of layer that is taken, behind each activation and none: 32 x 32 to 1 x 1 and back, twice; or without
    linear layers."""
    torch.manual_seed(1)
    rows = [
        *(nn.Flatten(), nn.Linear(1024, 48, bias=False), nn.Linear(48, 20), nn.LeakyReLU(0.3)),
        *(
            nn.Linear(20, 1024),
            nn.Unflatten(1, (64, 4, 4)),
            nn.ReLU(),
            nn.Conv2d(64, 24, 4),
            nn.Flatten(1, 3),
        ),
        *(
            nn.Linear(24, 40),
            nn.ReLU(),
            nn.Unflatten(1, (40, 1, 1)),
            nn.ConvTranspose2d(40, 64, 4),
            nn.ReLU(),
        ),
    ]
    layers = [
        *(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1)),
        *(nn.Conv2d(64, 32, 2, 2, bias=False), nn.ReLU(), nn.Conv2d(32, 40, 4), nn.LeakyReLU(0.1)),
        *(nn.ConvTranspose2d(40, 64, 4), nn.ReLU(inplace=True), *(rows if linear else [])),
        *(nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.LeakyReLU(1.5)),
        nn.ConvTranspose2d(32, 1, 4, 2, 1),
    ]
    images = torch.randn(3, 3, 32, 32)
    return Layers(*layers), images


def torchs(module):
    """The same with torch's convolutions."""
    other = copy.deepcopy(module)
    set_own_convolutions(other, False)
    return other


def gradients(module, x):
    """Output, and gradients of the input and all parameters, of those that want one."""
    y = module(x)
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * towards).sum(), wanted)]


class Replayed(nn.Module):
    """Layers in float64 whose activations bend where they bent in float32: of a unit near zero, rounding decides."""

    def __init__(self, layers, bends):
        super().__init__()
        self.layers, self.bends = copy.deepcopy(layers).double(), bends

    def forward(self, x):
        bends = iter(self.bends)
        for layer in self.layers:
            slope = slope_of(layer)
            x = layer(x) if slope is None else torch.where(next(bends), x, slope * x)
        return x


def slope_of(layer):
    return 0.0 if isinstance(layer, nn.ReLU) else getattr(layer, "negative_slope", None)


def own_bends(layers, x):
    """Which units are above zero, by activation."""
    with torch.no_grad():
        ends = [i + 1 for i, layer in enumerate(layers) if slope_of(layer) is not None]
        return [layers[:end](x) > 0 for end in ends]


def torchs_bends(layers, x):
    bends = []
    for layer in layers:
        x = layer(x)
        if slope_of(layer) is not None:
            bends.append(x > 0)
    return bends


def assert_near_float64(layers, x):
    """An error of at most twice torch's, and a unit in the last place; some more of biases, sums of what cancels."""
    other, exact_x = torchs(layers), x.detach().double().requires_grad_(x.requires_grad)
    found, theirs = gradients(layers, x), gradients(other, x)
    exact = gradients(Replayed(layers, own_bends(layers, x)), exact_x)
    theirs_exact = gradients(Replayed(other, torchs_bends(other, x)), exact_x)
    for a, b, truth, theirs_truth in zip(found, theirs, exact, theirs_exact, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape == truth.shape
        unit = 2.0**-22 if truth.ndim == 1 else 2.0**-24
        limit = 2 * (b.double() - theirs_truth).norm() + unit * truth.norm()
        assert (a.double() - truth).norm() <= limit  # which NaN does not pass


def assert_close(found, expected):
    """The same, but for what a unit near zero makes, which may be on either side of it."""
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= 0.02 * other.norm()


def layers_of(architecture, name, channels, batch):
    """The layers of a network, and what they read."""
    module, x = part(architecture, name, channels, batch)
    return (Layers(*module.encoder.trunk, module.encoder.head) if name == "encoder" else module), x


@own
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("architecture", NETWORKS)
def test_published_networks(architecture, name):
    for channels in (1, 3):
        module, x = part(architecture, name, channels, batch=5)
        with counted() as runs:
            assert_close(gradients(module, x.requires_grad_()), gradients(torchs(module), x))
        assert runs == [sum(hasattr(layer, "weight") for layer in module.modules())]
        assert_near_float64(*layers_of(architecture, name, channels, batch=5))


@own
@pytest.mark.parametrize(
    "batch", [1, 2, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in (31, 64, 130))]
)
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_batches_of_any_size(name, batch):
    for architecture in NETWORKS if batch > 9 else ["burgess"]:
        layers, x = layers_of(architecture, name, 1, batch)
        assert_near_float64(layers, x.requires_grad_())


@own
@pytest.mark.parametrize("weights", [LAST, DENSE], ids=["last", "dense"])
@pytest.mark.parametrize("inputs", [LAST, DENSE], ids=["last", "dense"])
def test_memory_orders_are_torchs(inputs, weights):
    module, x = every_kind()
    leaky = Layers(*module[:15], nn.LeakyReLU(0.5))
    for layers, channels in (
        (leaky, 3),
        (module[:3], 3),
        (module[-3:], 32),
        (module[-1:], 32),
        (module[:7], 3),
        (module[:13], 3),
        (module[:15], 3),
        (module[:16], 3),
    ):
        layers.to(memory_format=weights)
        images = x[:, :1].expand(-1, channels, -1, -1).contiguous(memory_format=inputs)
        with counted() as runs:
            y = layers(images)
        assert len(runs) == 1
        theirs = torchs(layers)(images)
        if y.shape[2:] != (1, 1):  # which are of both
            assert y.stride() == theirs.stride()
        torch.testing.assert_close(y.flatten(1), theirs.flatten(1), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            assert layers(images).stride() == y.stride()


@own
@pytest.mark.parametrize("wants_x", [True, False])
@pytest.mark.parametrize("frozen", ["none", "weights", "biases", "first", "last", "all"])
def test_every_kind_of_layer_and_what_needs_no_gradient(frozen, wants_x):
    module, x = every_kind()
    x.requires_grad_(wants_x)
    parameters = list(module.named_parameters())
    for number, (name, parameter) in enumerate(parameters):
        parameter.requires_grad_(
            not (
                frozen == "all"
                or (frozen == "weights" and name.endswith("weight"))
                or (frozen == "biases" and name.endswith("bias"))
                or (frozen == "first" and number < 5)
                or (frozen == "last" and number >= 5)
            )
        )
    if frozen == "all" and not wants_x:
        assert not module(x).requires_grad
        return
    with counted() as runs:
        module(x)
    assert runs == [14]
    assert_near_float64(module, x)


class _Asked(TorchDispatchMode):
    """What operators are asked for backward: of x, of the weights and of the biases."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket.__name__ == "convolutions_bwd":
            self.calls.append(args[6:9])
        return op(*args, **(kwargs or {}))


@own
def test_nothing_needless_is_asked_for():
    module = Layers(*(nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU()) * 2, nn.Conv2d(32, 32, 4, 2, 1))
    x = torch.randn(2, 32, 16, 16)
    module = Layers(*(copy.deepcopy(layer) for layer in module))

    def asked():
        with _Asked() as asked:
            module(x).sum().backward()
        return asked.calls

    assert asked() == [(False, [True] * 3, [True] * 3)]
    module[0].requires_grad_(False)
    assert asked() == [(False, [True, True], [True, True])]
    module[2].bias.requires_grad_(False)
    module[4].requires_grad_(False)
    assert asked() == [(False, [True, False], [False] * 2)]
    module[2].weight.requires_grad_(False)
    module[4].bias.requires_grad_()
    assert asked() == [(False, [False], [True])]
    # around a matrix product there are two calls, of which the first is not made where nothing below is wanted
    module = Layers(
        nn.Conv2d(32, 32, 2, 2), nn.Conv2d(32, 64, 8), nn.ConvTranspose2d(64, 32, 8), nn.Conv2d(32, 32, 2, 2)
    )
    x = torch.randn(2, 32, 16, 16)
    assert asked() == [(True, [True], [True]), (False, [True], [True])]
    module[0].requires_grad_(False)
    assert asked() == [(True, [True], [True])]


@own
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_what_is_not_finite_reaches_the_end(name, value):
    module, x = part("burgess", name, 1, batch=3)
    clean = module(x)
    x[1, ..., 3] = value
    found = gradients(module, x)
    assert not found[0][1].isfinite().all()
    torch.testing.assert_close(found[0][::2], clean[::2])
    weights = [g for g, p in zip(found[1:], module.parameters(), strict=True) if p.ndim == 4]
    assert weights
    assert not any(g.isfinite().all() for g in weights)


@own
@pytest.mark.parametrize("number", [0, 1, 3, 4, 5, 6, 8, 9, 10, 12])
def test_a_weight_that_is_not_a_number_reaches_the_end(number):
    module, x = every_kind()
    with torch.no_grad():
        [layer for layer in module if hasattr(layer, "weight")][number].weight.fill_(float("nan"))
    y, *grads = gradients(module, x.requires_grad_())
    assert y.isnan().any()
    assert grads[0].isnan().any()


@own
def test_inputs_of_any_strides():
    module, x = every_kind()
    wide = torch.randn(6, 32, 64, 3).permute(0, 3, 1, 2)
    for images in (
        x[:1].expand(4, -1, -1, -1),
        wide[::2, :, :, ::2],
        x.transpose(2, 3),
        x.flip(1)[:, :, :, :],
    ):
        module.requires_grad_()
        with counted() as runs:
            found = gradients(module, images.detach().requires_grad_())
        assert runs == [14]
        exact = gradients(torchs(module), images.detach().clone().requires_grad_())
        assert_close(found, exact)


@own
def test_without_gradients_it_is_the_same():
    """Bits of an image depend neither on the images beside it nor on how many are computed together."""
    module, _ = every_kind()
    x = torch.randn(19, 3, 32, 32)
    expected = module(x)
    front = module[:4]
    maps = front(x)
    with torch.no_grad():
        assert torch.equal(module(x), expected)
    with torch.inference_mode():
        assert torch.equal(module(x), expected)
        for part in (slice(3, 4), slice(5, 19)):
            assert torch.equal(front(x[part]), maps[part])
    with torch.no_grad(), counted() as runs:
        module.bfloat16().float()
        assert not module(x).requires_grad
    assert runs == [14]


@own
def test_the_output_may_be_written_to():
    module, x = every_kind()
    for layers in (module, module[:7]):
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                y = layers(x)
            if not y.requires_grad:
                y += torch.ones(1, requires_grad=True)
                continue
            module.zero_grad()
            y = nn.functional.elu(y, inplace=True) if layers is module else y
            y.sum().backward()
    y = module[:5](x)
    y.add_(1)
    with pytest.raises(
        RuntimeError, match=r"modified by an inplace operation.*PyvaeConvolutions"
    ):  # as torch's ReLU
        y.sum().backward()


@own
def test_what_torch_does_not_keep_may_change():
    """A leaky ReLU's output, which has its input kept; inputs of frozen layers, and those; biases."""
    layers = Layers(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2))
    x = torch.randn(4, 3, 16, 16)

    def changing(module, images):
        module.zero_grad()
        y = module(images)
        y.add_(1)
        with torch.no_grad():
            module[0].bias.clamp_(-1e-3, 1e-3)
            module[2].bias += 1
            if not module[0].weight.requires_grad:
                module[0].weight.mul_(0.5)
                images.zero_()
        y.square().sum().backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    for frozen in (False, True):
        layers[0].requires_grad_(not frozen)
        assert_close(changing(copy.deepcopy(layers), x.clone()), changing(torchs(layers), x.clone()))
    with torch.inference_mode():
        images = x.clone()
    layers(images).sum().backward()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layers(x)
    assert not any(t is x or t is layers[0].weight for t in kept)
    y = layers[2:](torch.randn(1, 32, 8, 8, requires_grad=True))
    layers[2].bias.data += 1
    with torch.no_grad():
        layers[2].bias += 1
    with pytest.raises(RuntimeError, match="a bias was changed in place"):
        torch.autograd.grad(y.sum(), layers[2].weight, create_graph=True)


@own
@pytest.mark.parametrize("order", [LAST, DENSE], ids=["last", "dense"])
def test_gradients_have_the_memory_order_of_torchs(order):
    module = Layers(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU())
    module.to(memory_format=order)
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=order).requires_grad_()
    found, theirs = gradients(module, x), gradients(torchs(module), x)
    assert [g.stride() for g in found] == [g.stride() for g in theirs]


@own
@pytest.mark.parametrize("order", [LAST, DENSE], ids=["last", "dense"])
@pytest.mark.parametrize("maps", [(64, 4, 4), (1024, 1, 1)], ids=["maps", "a pixel"])
def test_memory_orders_around_rows_are_torchs(order, maps):
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=order).requires_grad_()
    behind = nn.ConvTranspose2d(64, 3, 4, 2, 1) if maps[0] == 64 else nn.ConvTranspose2d(1024, 8, 4)
    for rest in ([], [behind]):
        below = (nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 1024))
        module = Layers(*copy.deepcopy(below), nn.Unflatten(1, maps), *rest)
        for weights in (LAST, DENSE):
            module.to(memory_format=weights)
            with counted() as runs:
                found = gradients(module, x)
            assert runs == [2 + len(rest)]
            theirs = gradients(torchs(module), x)
            assert [g.stride() for g in found] == [g.stride() for g in theirs]


@own
def test_a_slice_goes_on_as_the_whole_does():
    module, _ = every_kind()
    assert module[:3].own_convolutions
    set_own_convolutions(module, False)
    assert not module[:3].own_convolutions
    assert isinstance(module[2], nn.Conv2d)


@own
def test_a_long_side_is_torchs():
    module = Layers(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU())
    with torch.no_grad(), counted() as runs:
        assert module(torch.zeros(1, 1, 32768, 2)).shape == (1, 32, 16384, 1)
        assert runs == []
        module(torch.zeros(1, 1, 8192, 2))
    assert runs == [1]


@own
def test_a_layer_that_convolves_by_itself_is_torchs():
    module = Layers(nn.Conv2d(3, 32, 4, 2, 1))
    module[0]._conv_forward = lambda x, weight, bias: x
    x = torch.randn(1, 3, 8, 8)
    assert module(x) is x


def penalty(module, x):
    """Gradients of the squares of gradients, of the input and of parameters."""
    wanted = [x, *module.parameters()]
    slopes = torch.autograd.grad(module(x).square().sum(), wanted, create_graph=True)
    return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), wanted)


@own
@pytest.mark.parametrize("kind", ["every kind", "twice"])
def test_gradients_of_gradients(kind):
    module, x = every_kind()
    if kind == "twice":
        same, relu = nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU()
        module = Layers(module[0], relu, same, relu, same, relu)
    x.requires_grad_()
    exact = penalty(copy.deepcopy(module).double(), x.detach().double().requires_grad_())
    assert_close(penalty(module, x), exact)


@own
def test_a_layer_may_stand_twice():
    same, relu = nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU()
    module = Layers(same, relu, same, relu)
    x = torch.randn(2, 32, 16, 16, requires_grad=True)
    with counted() as runs:
        module(x)
    assert runs == [2]
    assert_near_float64(module, x)


@own
def test_batches_and_tangents_of_gradients():
    module, x = every_kind()
    x.requires_grad_()
    y, theirs = module(x), torchs(module)(x)
    assert "PyvaeConvolutions" in type(y.grad_fn).__name__
    wanted, others = [x, *module.parameters()], None
    towards = torch.randn(2, *y.shape)
    other = torchs(module)
    theirs, others = other(x), [x, *other.parameters()]
    expected = [torch.autograd.grad(theirs, others, t, retain_graph=True) for t in towards]
    stacked = [torch.stack(pair) for pair in zip(*expected, strict=True)]

    assert_close(torch.autograd.grad(y, wanted, towards, is_grads_batched=True, retain_graph=True), stacked)
    found = vmap(lambda t: torch.autograd.grad(y, wanted, t, retain_graph=True))(towards)
    assert_close(found, stacked)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(towards[0], towards[1])
        pairs = [forward_ad.unpack_dual(g) for g in torch.autograd.grad(y, wanted, dual, retain_graph=True)]
    assert_close([pair.tangent for pair in pairs], expected[1])


@own
def test_checkpoints_and_backwards_that_follow():
    module, x = every_kind()
    x.requires_grad_()
    expected = gradients(module, x)
    for reentrant in (True, False):
        y = checkpoint(module, x, use_reentrant=reentrant)
        towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        module.zero_grad()
        y.backward(towards)
        for found, known in zip([p.grad for p in module.parameters()], expected[2:], strict=True):
            assert torch.equal(found, known)
    y = module(x)
    first = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True)
    again = torch.autograd.grad(y.sum(), list(module.parameters()))
    assert all(map(torch.equal, first, again))


@bfloat16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_in_bfloat16_errs_as_torchs_does(dtype):
    module, x = every_kind(linear=False)
    for number in (
        1,
        4,
        6,
        8,
        11,
    ):  # a steeper bend, and what rounding moves across it would be all of the error
        module[number] = nn.LeakyReLU(0.9)
    x = x.to(dtype)
    exact = gradients(torchs(module), x.float().requires_grad_())
    found = []
    for each in (module, torchs(module)):
        with torch.autocast("cpu", torch.bfloat16), counted() as runs:
            y = each(x.requires_grad_())
        assert runs == ([8] if each is module else [])
        assert y.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(each(x), y)
        towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        wanted = [x, *each.parameters()]
        found.append([y.detach(), *torch.autograd.grad((y.float() * towards).sum(), wanted)])
    for mine, theirs, truth in zip(*found, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.float() - truth).norm() <= 2 * (theirs.float() - truth).norm() + 1e-3 * truth.norm()


@own
def test_a_backward_within_autocast_is_what_it_was():
    module, x = every_kind(linear=False)
    expected = gradients(module, x.requires_grad_())
    y = module(x)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, [x, *module.parameters()], towards)
    assert all(map(torch.equal, found, expected[1:]))


@own
def test_dtypes_that_are_torchs():
    module, x = every_kind()
    half = copy.deepcopy(module).bfloat16()
    with counted() as runs:
        half(x.bfloat16()), copy.deepcopy(module).double()(x.double())
        with torch.autocast("cpu", torch.float16):
            module(x)
        with torch.autocast("cpu", torch.bfloat16):
            half(x)
        with pytest.raises(RuntimeError, match="type"):
            module(x.bfloat16())
    assert runs == []


@own
def test_without_products_of_bfloat16_autocast_is_torchs(monkeypatch):
    module, x = every_kind()
    level = mock.Mock(default=lambda: 2)
    monkeypatch.setattr(torch.ops.pyvae_native, "convolution_level", level)
    convolutions._arithmetic.cache_clear()
    with counted() as runs:
        with torch.autocast("cpu", torch.bfloat16):
            module(x)
        assert runs == []
        module(x)
    assert runs == [14]
    assert convolutions_of(module, CPU, "bf16") == "torch"
    assert convolutions_of(module, CPU, "fp32") == "native"
    assert "bf16: oneDNN of torch (this processor or build has AVX-512, without products" in doctor.describe()
    level.default = lambda: 3
    monkeypatch.setattr(processor, "tiles", lambda: True)
    convolutions._arithmetic.cache_clear()
    assert convolutions_of(module, CPU, "bf16") == "torch"
    assert "bf16: oneDNN of torch (this processor has AMX" in doctor.describe()
    level.default = lambda: 0
    convolutions._arithmetic.cache_clear()
    with counted() as runs:
        module(x)
    assert runs == []
    assert "fp32: oneDNN of torch (the compiled convolutions need AVX2" in doctor.describe()


@own
def test_backends(monkeypatch):
    module, x = every_kind()
    assert convolutions_of(module, CPU, "fp32") == "native"
    assert convolutions_of(module, torch.device("cuda"), "fp32") == "torch"
    assert convolutions_of(module, CPU, "fp16") == "torch"
    assert convolutions_of(build("mlp", 1, 4), CPU, "fp32") == "none"
    assert convolutions_of(nn.Sequential(*module), CPU, "fp32") == "none"
    assert f"  fp32: native ({convolutions.arithmetic(CPU).reason})" in doctor.describe().splitlines()
    for backend, expected in (("reference", []), ("native", [14]), ("auto", [14])):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        with counted() as runs:
            module(x)
        assert runs == expected
        assert convolutions_of(module, CPU, "tf32") == ("native" if expected else "torch")
    set_own_convolutions(module, False)
    with counted() as runs:
        module(x)
    assert runs == []
    assert convolutions_of(module, CPU, "fp32") == "torch"


@pytest.mark.parametrize("absent", ["convolutions_fwd", "linears_fwd"])
def test_where_it_is_not_compiled(absent, monkeypatch):
    """Not at all, or by an older version."""
    module, x = every_kind()
    line = "the operators are not built: make them"
    monkeypatch.setattr(convolutions, "missing", lambda op, device_type: line if op == absent else None)
    with counted() as runs:
        module(x)
    assert runs == []
    assert (
        "  fp32: oneDNN of torch (the operators are not built: make them)" in doctor.describe().splitlines()
    )
    monkeypatch.setenv("PYVAE_BACKEND", "native")
    with pytest.raises(
        BackendError, match=r"^PYVAE_BACKEND=native but the operators are not built: make them$"
    ):
        module(x)
    Layers(nn.Conv2d(3, 5, 3), nn.ReLU())(x)  # which would be torch's in any case
    assert "  fp32: none (PYVAE_BACKEND=native but the operators" in doctor.describe()


@own
def test_names_and_copies():
    module, x = every_kind()
    plain = nn.Sequential(*module)
    assert list(module.state_dict()) == list(plain.state_dict())
    expected = gradients(module, x)
    set_own_convolutions(module, False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.own_convolutions is False
        set_own_convolutions(other, True)
        assert all(map(torch.equal, gradients(other, x), expected))
    saved = module.__getstate__()
    del saved["own_convolutions"]  # as it was pickled before there were any
    older = Layers.__new__(Layers)
    older.__setstate__(saved)
    assert older.own_convolutions is True
    assert isinstance(module[:2], Layers)


@own
def test_weights_put_in_place_of_a_modules():
    module, x = every_kind()
    x.requires_grad_()
    frozen = {name: p.detach() * 1.1 for name, p in module.named_parameters()}
    with counted() as runs:
        found = functional_call(module, frozen, (x,))
    assert runs == [14]
    torch.testing.assert_close(found, functional_call(torchs(module), frozen, (x,)), rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert all(p.grad is None for p in module.parameters())
    assert x.grad is not None


@own
def test_weights_of_a_class_of_their_own():
    module, x = Layers(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU()), torch.randn(2, 1, 8, 8)
    both = {name: TwoTensor(p.detach(), 2 * p.detach()) for name, p in module.named_parameters()}
    with counted() as runs:
        y = functional_call(module, both, (TwoTensor(x, x),))
        module(x.as_subclass(nn.Buffer))
        assert runs == []
        torch.testing.assert_close(y.a, module(x), rtol=1e-4, atol=1e-6)
        y = functional_call(module, both, (x,))
    assert runs == [1]
    torch.testing.assert_close(y.a, module(x), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(y.b, y.a)


class Doubled(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda module, x, y: y * 2),
    "forward pre": lambda layer: layer.register_forward_pre_hook(lambda module, x: (x[0] * 2,)),
    "backward": lambda layer: layer.register_full_backward_hook(lambda module, x, y: (x[0] * 2,)),
    "backward pre": lambda layer: layer.register_full_backward_pre_hook(lambda module, y: (y[0] * 2,)),
    "replaced": lambda layer: setattr(layer, "forward", lambda x, forward=layer.forward: forward(x) * 3),
    "parametrised": parametrizations.spectral_norm,
    "subclass": lambda layer: setattr(layer, "__class__", Doubled),
}


@own
@pytest.mark.parametrize("kind", HOOKS)
def test_layers_that_do_more_are_called(kind):
    module, x = every_kind()
    HOOKS[kind](module[2])
    module.eval()  # in which a spectral norm stays what it is
    with counted() as runs:
        found = gradients(module, x.requires_grad_())
    assert runs == [1, 12]
    with mock.patch.object(Layers, "own_convolutions", False):
        expected = gradients(module, x)
    assert_close(found, expected)


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


@own
@pytest.mark.parametrize("number", [9, 10, 12, 13, 14], ids=lambda n: type(every_kind()[0][n]).__name__)
def test_linear_layers_and_what_stands_beside_them(number):
    """Those that do more than their class says are called."""
    module, x = every_kind()
    layer, seen = module[number], []
    layer.register_forward_hook(lambda *of: seen.append(of[-1].shape))
    with counted() as runs:
        found = gradients(module, x.requires_grad_())
    assert len(seen) == 1
    assert sum(runs) == 14 - isinstance(layer, nn.Linear)
    assert_close(found, gradients(torchs(module), x))


@own
def test_linear_layers_that_are_torchs():
    first, x = nn.Conv2d(1, 32, 4, 2, 1), torch.randn(2, 1, 8, 8)
    scaled = nn.Linear(512, 8)
    scaled.__class__ = Scaled
    for behind in (
        [nn.Linear(4, 8)],
        [nn.Flatten(2), nn.Linear(16, 8)],
        [nn.Flatten(), scaled],
        [nn.Flatten(), parametrizations.weight_norm(nn.Linear(512, 8)).eval()],
        [nn.Flatten(), nn.Unflatten(1, (8, 8, 8)), nn.Linear(8, 3)],
        [nn.Flatten(), nn.ReLU(), nn.Linear(512, 8)],
    ):
        layers = Layers(first, *behind)
        with counted() as runs:
            found = gradients(layers, x)
        assert runs == [1]
        assert_close(found, gradients(torchs(layers), x))
    for unflattened in ((4, 32), (-1, 4, 4), (8, 4, 2, 2)):
        layers = Layers(first, nn.Flatten(), nn.Linear(512, 128), nn.Unflatten(1, unflattened))
        with counted() as runs:
            found = gradients(layers, x)
        assert runs == [2]
        assert found[0].shape == (2, *torch.empty(128).unflatten(0, unflattened).shape)
        assert_close(found, gradients(torchs(layers), x))
    # of one channel, where as many numbers are as after another Flatten
    layers = Layers(nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Flatten(2), nn.Linear(64, 8))
    assert layers(torch.randn(2, 32, 4, 4)).shape == (2, 1, 8)
    with pytest.raises(RuntimeError, match="unflatten"):
        Layers(first, nn.Flatten(), nn.Linear(512, 128), nn.Unflatten(1, (2, 8, 9)))(x)
    # of other shapes than the layer's own
    layers = Layers(first, nn.Flatten(), nn.Linear(512, 8))
    for changed in ({"2.bias": torch.randn(1)}, {"2.bias": torch.randn(2, 8)}):
        found, expected = (functional_call(net, changed, (x,)) for net in (layers, torchs(layers)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    unbiased = Layers(first, nn.Flatten(), nn.Linear(512, 8, bias=False))
    assert functional_call(unbiased, {"2.weight": torch.randn(512)}, (x,)).shape == (2,)
    assert Layers(*layers, nn.Linear(8, 0))(x).shape == (2, 0)
    with counted() as runs:
        Layers(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))(torch.randn(3, 8))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            Layers(first, nn.Flatten(), nn.Linear(511, 8))(x)
    assert runs == [1]


@own
def test_a_container_that_is_compiled_is_called():
    encoder = build("burgess", 1, 4).encoder
    seen = []
    encoder.trunk.compile(backend=lambda graph, inputs: seen.append(graph) or graph)
    with torch.no_grad():
        encoder(torch.rand(2, 1, 64, 64))
    torch._dynamo.reset()
    assert len(seen) == 1


@bfloat16
def test_linear_layers_in_bfloat16_are_torchs():
    module, x = every_kind()
    with torch.autocast("cpu", torch.bfloat16), counted() as runs:
        found = gradients(module, x)
    assert runs == [5, 4]
    for mine, theirs in zip(found, gradients(module, x), strict=True):
        assert (mine - theirs).norm() <= 0.3 * theirs.norm()


@own
def test_hooks_of_activations_and_of_all_modules():
    module, x = every_kind()
    seen = []
    handle = module[4].register_forward_hook(lambda *of: seen.append(of[-1].shape))
    with counted() as runs:
        module(x)
    assert runs == [3, 11]
    assert seen == [(3, 32, 4, 4)]
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *of: seen.append(module))
    with counted() as runs:
        module(x)
    handle.remove()
    assert runs == []
    assert set(module) < set(seen[1:])


@own
@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(32, 64, 4, 2, 1, groups=2),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.Conv2d(32, 32, 4, 2, 1, padding_mode="reflect"),
        nn.Conv2d(32, 32, 4, 2, 2),
        nn.Conv2d(32, 32, 4, (2, 1), 1),
        nn.Conv2d(32, 32, 2, 2, dilation=3),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.Conv2d(32, 48, 4, 2, 1),
        nn.Conv2d(32, 3, 4, 2, 1),
        nn.ConvTranspose2d(32, 32, 4, 2, 1, output_padding=1),
        nn.ConvTranspose2d(32, 3, 2, 2),
        nn.Conv2d(32, 7, 8),
    ],
    ids=str,
)
def test_layers_that_are_torchs(layer):
    module, x = Layers(layer, nn.ReLU()), torch.randn(2, 32, 8, 8)
    with counted() as runs:
        assert torch.equal(module(x), torchs(module)(x))
    assert runs == []


@own
def test_sides_and_shapes_that_are_torchs():
    conv, up, images = (
        nn.Conv2d(32, 32, 4, 2, 1),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.Conv2d(3, 32, 4, 2, 1),
    )
    taken = [(conv, (2, 32, 8, 12)), (up, (2, 64, 2, 6)), (images, (2, 3, 6, 10))]
    left = [
        *((conv, shape) for shape in ((2, 32, 10, 8), (2, 32, 9, 8), (0, 32, 8, 8), (32, 8, 8))),
        *((up, shape) for shape in ((2, 64, 3, 2), (64, 4, 4))),
        (images, (2, 3, 7, 6)),
    ]
    for layer, shape in taken + left:
        x = torch.randn(shape)
        with counted() as runs:
            y = Layers(layer)(x)
        assert runs == ([1] if (layer, shape) in taken else [])
        torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="to have 32 channels"):  # torch's words
        Layers(conv)(torch.randn(2, 64, 8, 8))


class Nobody(nn.Module):
    def forward(self, x):
        return x[:0]


@own
def test_batches_that_become_empty_and_slopes_that_are_torchs():
    module, x = every_kind()
    with counted() as runs:
        assert module[:1](x).shape == (3, 32, 16, 16)
        assert Layers(Nobody(), *module)(x).shape == (0, 1, 32, 32)
    assert runs == [1]
    for slope in (-0.5, 0.0, float("inf"), float("nan")):
        leaky = Layers(module[0], nn.LeakyReLU(slope), module[2])
        with counted() as runs:
            torch.testing.assert_close(leaky(x), torchs(leaky)(x), rtol=1e-4, atol=1e-5, equal_nan=True)
        assert runs == [1, 1]


@own
def test_what_follows_other_rules_goes_to_torch():
    module = Layers(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1))
    x = torch.randn(2, 1, 8, 8)
    parameters = dict(module.named_parameters())
    with counted() as runs:
        expected = module(x)
        assert runs == [2]
        torch.testing.assert_close(vmap(module)(x.unsqueeze(1)).squeeze(1), expected)
        found = grad(lambda p: functional_call(module, p, (x,)).sum())(parameters)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.jit.trace(module, x, check_trace=False)(x), expected)
        torch.testing.assert_close(jvp(module, (x,), (x,))[0], expected)
        assert module.to("meta")(x.to("meta")).shape == expected.shape
    assert runs == [2]
    for name, g in zip(
        parameters, torch.autograd.grad(expected.sum(), list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-5)


@own
def test_containers_among_layers():
    module, x = every_kind()
    expected = module(x)
    nested = Layers(nn.Sequential(*module[:3]), Layers(nn.Sequential(*module[3:7]), *module[7:]))
    with counted() as runs:
        assert torch.equal(nested(x), expected)
    assert runs == [14]
    nested[0].register_forward_hook(lambda *of: None)
    nested[1].own_convolutions = False
    with counted() as runs:
        nested(x)
    assert runs == []


SEEN = []


def see(module, inputs, output):
    SEEN.append(output.shape)


class Model(nn.Module):
    """As other people write theirs."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU()),
            nn.Flatten(),
            nn.Linear(1024, 10),
        )
        self.norm = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10))

    def forward(self, x):
        return self.norm(self.encoder(x))


@own
def test_fuse_convolutions():
    model, x = Model().eval(), torch.randn(2, 1, 16, 16)
    SEEN.clear()
    model.encoder.register_forward_hook(see)
    names, expected = list(model.state_dict()), gradients(model, x)
    for _ in range(2):
        assert fuse_convolutions(model) is model
        assert type(model.encoder) is type(model.encoder[0]) is Layers
        assert type(model.norm) is nn.Sequential
        assert not model.encoder.training
    assert list(model.state_dict()) == names
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with counted() as runs:
            assert_close(gradients(other, x), expected)
        assert runs == [3]
    assert len(SEEN) == 4
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    assert isinstance(torch.load(kept, weights_only=False).encoder._tickets, Tickets)
    plain = nn.Sequential(nn.ConvTranspose2d(32, 1, 4, 2, 1))
    assert fuse_convolutions(plain) is plain
    assert type(plain) is Layers
    assert convolutions_of(plain, CPU, "fp32") == "native"


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(2, 3),
        nn.Conv2d(1, 32, 4, 2, 1),
        nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU()),
        nn.ModuleList([nn.Conv2d(1, 32, 4, 2, 1)]),
        nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(1, 32, 4, 2, 1))),
    ],
    ids=lambda net: type(net).__name__,
)
def test_nothing_to_fuse(net):
    before = type(net)
    with pytest.raises(
        ValueError, match=rf"^net: no plain nn.Sequential in this {before.__name__} holds a convolution"
    ):
        fuse_convolutions(net)
    assert type(net) is before


@own
@pytest.mark.parametrize("order", [LAST, DENSE], ids=["last", "dense"])
def test_encoding_a_data_set(order):
    data, net = TinyData(channels=3), build("burgess", 3, 3).to(memory_format=order)
    orders = []
    net.encoder.register_forward_pre_hook(lambda module, x: orders.append(x[0].stride()))
    with torch.no_grad():
        mu, logvar = copy.deepcopy(net).double().encoder(data.images(torch.arange(len(data))).double())
    with counted() as runs:
        table = encode(net, data, device="cpu", batch_size=50, progress=False)
    assert runs == [7, 7, 7]
    assert {strides[1] for strides in orders[1:]} == {1}
    assert net.encoder.trunk[0].weight.stride()[1] == 1
    torch.testing.assert_close(table.mu, mu.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.logvar, logvar.float(), rtol=1e-5, atol=1e-6)
    set_own_convolutions(net, False)
    theirs = encode(net, data, device="cpu", batch_size=50, progress=False)
    torch.testing.assert_close(theirs.mu, table.mu, rtol=1e-5, atol=1e-6)


@own
def test_a_generator_has_its_own_and_a_normalised_critic_torchs():
    pair = build_pair(1, continuous=2, categories=0, noise=3, batch_norm=False)
    with counted() as runs:
        pair.critic(pair.generator.images(torch.randn(2, 5)))
    assert runs == [6]
    assert convolutions_of(pair.critic, CPU, "fp32") == "none"
    assert takes_products(pair.generator)
    normalised = build_pair(1, continuous=2, categories=0, noise=3, batch_norm=True)
    assert not takes_products(normalised.generator)
