"""Convolutions of our own on a CPU against the same layers of torch, both held against float64."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from chains import (
    DENSE,
    LAST,
    NETWORKS,
    assert_close,
    bfloat16,
    counted,
    every_kind,
    gradients,
    own,
    part,
    slope_of,
    torchs,
)
from pyvae.metrics import encode
from pyvae.nets import build
from pyvae.nets.layers import Layers, set_own_convolutions
from tiny import TinyData

pytestmark = pytest.mark.usefixtures("automatic_backend")


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
