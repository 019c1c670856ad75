"""Networks with fused layers against the same layers one by one."""

import copy
import os
import pickle
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.nets import ANY_SIDE, ARCHITECTURES, build, build_discriminator, product
from pyvae.nets.layers import Layers
from pyvae.objectives import BetaVAE, FactorVAE, InfoGAN, InfoWGANGP
from tiny import TinyData

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("triton_backend")
LAST, DENSE = torch.channels_last, torch.contiguous_format


@contextmanager
def one_by_one():
    with mock.patch.dict(os.environ, PYVAE_BACKEND="reference"):
        yield


@contextmanager
def counted():
    """Products that are fused within."""
    calls = []
    plain = product.product

    def count(*args):
        calls.append(args[3])
        return plain(*args)

    with mock.patch("pyvae.nets.layers.product", count):
        yield calls


def network(name, device, order=LAST, seed=0):
    """A module of one input, and an input."""
    torch.manual_seed(seed)
    if name == "discriminator":
        return build_discriminator(5, layers=3, width=40).to(device), torch.randn(7, 5, device=device)
    architecture, part = name.split(" ")
    channels, side = (1, 12) if architecture in ANY_SIDE else (3, 64)
    net = build(architecture, channels, 4, side=side).to(device, memory_format=order)
    if part == "decoder":
        return net.decoder, torch.randn(2, 4, device=device)
    images = torch.rand(2, channels, side, side, device=device)
    return _Whole(net.encoder), images.contiguous(memory_format=order)


class _Whole(nn.Module):
    """An encoder of one output."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return torch.cat(self.encoder(images), -1)


NETWORKS = ["discriminator", *(f"{name} {part}" for name in ARCHITECTURES for part in ("encoder", "decoder"))]


def gradients(module, x, autocast=False):
    """Output, and gradients of the input, if it wants one, and of all parameters that do."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = module(x)
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device)
    return [y.detach(), *torch.autograd.grad((y.float() * towards).sum(), wanted)]


def assert_near(found, expected, rtol=1e-5):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a - b).norm() <= rtol * b.norm() + 1e-9


@pytest.mark.parametrize(
    ("name", "order"),
    [*((name, LAST) for name in NETWORKS), *((f"burgess {part}", DENSE) for part in ("encoder", "decoder"))],
)
def test_a_network_is_its_layers(name, order, device):
    module, x = network(name, device, order)
    x.requires_grad_()
    with counted() as fused:
        found = gradients(module, x)
    assert len(fused) == sum(
        isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) for m in module.modules()
    )
    with one_by_one(), counted() as fused:
        expected = gradients(module, x)
    assert not fused
    assert_near(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients(module, x), found, strict=True))
    with torch.no_grad():
        assert torch.equal(module(x), found[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast_a_network_errs_as_its_layers_do(name, device):
    module, x = network(name, device)
    x.requires_grad_()
    with counted() as fused:
        found = gradients(module, x, autocast=True)
    assert fused
    with one_by_one():
        expected, exact = gradients(module, x, autocast=True), gradients(module, x)
    for mine, theirs, truth in zip(found, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - truth).norm() <= 3 * (theirs - truth).norm() + 1e-6 * truth.norm()


@pytest.mark.parametrize("wants_input", [True, False])
@pytest.mark.parametrize("frozen", ["none", "all", "weight", "bias", "first"])
@pytest.mark.parametrize("name", ["burgess encoder", "burgess decoder", "discriminator"])
def test_what_needs_no_gradient_gets_none(name, frozen, wants_input, device):
    module, x = network(name, device)
    x.requires_grad_(wants_input)
    for number, (of, parameter) in enumerate(module.named_parameters()):
        parameter.requires_grad_(
            not (frozen == "all" or of.endswith(frozen) or (frozen == "first" and number < 2))
        )
    if frozen == "all" and not wants_input:
        assert not module(x).requires_grad
        return
    found = gradients(module, x)
    with one_by_one():
        assert_near(found, gradients(module, x))


SMALL = {
    "maps": lambda: [
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(5, 3, 2, stride=2),
        nn.LeakyReLU(0.1),
    ],
    "rows": lambda: [
        nn.Linear(6, 7),
        nn.Tanh(),
        nn.Linear(7, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.LeakyReLU(0.2),
    ],
    "flattened": lambda: [nn.Conv2d(2, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(45, 3)],
    "maps of rows": lambda: [
        nn.Linear(6, 20),
        nn.ReLU(),
        nn.Unflatten(1, (5, 2, 2)),
        nn.Conv2d(5, 3, 2),
        nn.Flatten(),
    ],
    "activated maps": lambda: [
        nn.Linear(6, 20),
        nn.Unflatten(1, (5, 2, 2)),
        nn.Tanh(),
        nn.ConvTranspose2d(5, 3, 2),
    ],
    "groups": lambda: [nn.Conv2d(2, 6, (2, 3), stride=(1, 2), dilation=2, groups=2), nn.ReLU(), nn.Tanh()],
    "larger": lambda: [nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), nn.Flatten()],
    "twice": lambda: [
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.ReLU(),
        nn.Unflatten(1, (2, 3)),
        nn.Flatten(),
        nn.Linear(6, 2),
    ],
}


def small(name, device, batch=3):
    torch.manual_seed(3)
    module = Layers(*SMALL[name]()).to(device, memory_format=LAST)
    rows = isinstance(module[0], nn.Linear)
    x = torch.randn((batch, 6) if rows else (batch, 2, 4, 8 if name == "groups" else 4), device=device)
    return module, x.requires_grad_()


@pytest.mark.parametrize("name", SMALL)
def test_layers_of_all_kinds(name, device):
    module, x = small(name, device)
    found = gradients(module, x)
    with one_by_one():
        assert_near(found, gradients(module, x))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_gradients(name, device):
    def penalty(module, x):
        y = module(x)
        wanted = (x, *module.parameters())
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)]

    module, x = small(name, device)
    with counted() as fused:
        found = penalty(module, x)
    assert fused
    with one_by_one():
        assert_near(found, penalty(module, x), rtol=1e-4)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(kind):
    layer = nn.Linear(6, 7)
    if kind == "forward hook":
        layer.register_forward_hook(lambda module, args, y: y + 1)
    elif kind == "forward pre-hook":
        layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    elif kind == "backward hook":
        layer.register_full_backward_hook(lambda module, x, y: (x[0] * 2,))
    elif kind == "backward pre-hook":
        layer.register_full_backward_pre_hook(lambda module, y: (y[0] * 2,))
    elif kind == "other forward":
        layer.forward = lambda x, forward=layer.forward: forward(x) * 3
    elif kind == "parametrised":
        nn.utils.parametrizations.orthogonal(layer)
    elif kind == "subclass":
        layer = Doubled(6, 7)
    elif kind == "no bias":
        layer = nn.Linear(6, 7, bias=False)
    elif kind == "float64":
        layer = nn.Sequential(layer.double(), nn.ReLU())
    return layer


@pytest.mark.parametrize(
    "kind",
    [
        *("forward hook", "forward pre-hook", "backward hook", "backward pre-hook", "other forward"),
        *("parametrised", "subclass", "no bias", "float64"),
    ],
)
def test_layers_that_do_more_are_called(kind, device):
    torch.manual_seed(5)
    layer = hooked(kind)
    dtype = torch.float64 if kind == "float64" else torch.float32
    module = Layers(layer, nn.ReLU(), nn.Linear(7, 2).to(dtype)).to(device)
    x = torch.randn(3, 6, device=device, dtype=dtype, requires_grad=True)
    with counted() as fused:
        found = gradients(module, x)
    assert len(fused) == (dtype == torch.float32)
    with one_by_one():
        assert_near(found, gradients(module, x))


def test_a_hook_on_an_activation_is_called(device):
    seen = []
    module = Layers(nn.Linear(6, 7), nn.ReLU()).to(device)
    module[1].register_forward_hook(lambda *of: seen.append(of[-1]))
    y = module(torch.randn(3, 6, device=device))
    assert len(seen) == 1
    assert torch.equal(seen[0], y)


def test_inputs_that_the_kernels_do_not_take(device):
    rows, maps = (
        Layers(nn.Linear(6, 7), nn.ReLU()).to(device),
        Layers(nn.Conv2d(2, 3, 2), nn.ReLU()).to(device),
    )
    for module, shape in (
        (rows, (6,)),
        (rows, (2, 3, 6)),
        (rows, (0, 6)),
        (maps, (2, 4, 4)),
        (maps, (0, 2, 4, 4)),
    ):
        x = torch.randn(shape, device=device)
        with one_by_one():
            expected = module(x)
        with counted() as fused:
            assert torch.equal(module(x), expected)
        assert not fused


def test_a_layer_may_stand_twice(device):
    relu, linear = nn.ReLU(), nn.Linear(6, 6)
    x = torch.randn(3, 6, device=device)
    module = nn.Sequential(linear, relu, linear, relu).to(device)
    expected = gradients(module, x)
    assert_near(gradients(Layers(*module), x), expected)
    with one_by_one():
        assert_near(gradients(Layers(*module), x), expected, rtol=0)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 1.5])
def test_any_slope_of_a_leaky_relu(slope, device):
    """Of a negative one the output has not the sign of the input."""
    module = Layers(nn.Linear(6, 7), nn.LeakyReLU(slope)).to(device)
    x = torch.randn(3, 6, device=device)
    found = gradients(module, x)
    with one_by_one():
        assert_near(found, gradients(module, x))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_gradient_comes_to_a_convolution_in_its_memory_order(kind, device):
    """That of a loss is dense, and cuDNN would copy it."""
    module = Layers(kind(4, 3, 2)).to(device, memory_format=LAST)
    x = torch.randn(2, 4, 5, 5, device=device).contiguous(memory_format=LAST).requires_grad_()
    y = module(x)
    assert y.is_contiguous(memory_format=LAST)
    seen = []
    backward = torch.ops.aten.convolution_backward.default
    with mock.patch.object(
        torch.ops.aten.convolution_backward,
        "default",
        lambda grad, *of: seen.append(grad) or backward(grad, *of),
    ):
        y.backward(torch.randn_like(y).contiguous())
    assert [grad.is_contiguous(memory_format=LAST) for grad in seen] == [True]


def test_dtypes_that_do_not_go_together_are_refused(device):
    module = Layers(nn.Linear(6, 7), nn.ReLU()).to(device)
    with pytest.raises(RuntimeError, match="dtype"):
        module(torch.randn(3, 6, device=device, dtype=torch.bfloat16))


def test_what_follows_other_rules_goes_layer_by_layer(device):
    module, x = small("rows", device)
    with counted() as fused:
        expected = module(x.detach())
        assert fused
        fused.clear()
        torch.testing.assert_close(vmap(module)(x.detach().unsqueeze(1)).squeeze(1), expected)
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(torch.jit.trace(module, x.detach(), check_trace=False)(x), expected)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
            along = torch.autograd.forward_ad.unpack_dual(module(dual)).tangent
        _, exact = torch.func.jvp(module, (x.detach(),), (torch.ones_like(x),))
        torch.testing.assert_close(along, exact)
    assert not fused


def test_weights_put_in_place_of_a_modules(device):
    """As FactorVAE does: the gradient reaches the input and no parameter."""
    module, x = network("discriminator", device)
    x.requires_grad_()
    frozen = {name: p.detach() for name, p in module.named_parameters()}
    functional_call(module, frozen, (x,)).square().sum().backward()
    assert all(p.grad is None for p in module.parameters())
    with one_by_one():
        torch.testing.assert_close(x.grad, torch.autograd.grad(module(x).square().sum(), x)[0])
    other = {name: p.detach() * 2 for name, p in module.named_parameters()}
    with one_by_one():
        expected = functional_call(module, other, (x,))
    torch.testing.assert_close(functional_call(module, other, (x,)), expected)


def test_names_and_copies(device):
    module, x = small("flattened", device)
    expected = gradients(module, x)
    plain = nn.Sequential(*module)
    assert (
        list(module.state_dict()) == list(plain.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    )
    assert list(module.buffers()) == []
    assert isinstance(module[:2], Layers)
    assert {*module._tickets._known} == {("0", x.device, 1), ("3", x.device, 1)}
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other._tickets is not module._tickets
        assert other._tickets._known == {}
        assert_near(gradients(other, x), expected, rtol=0)
    other = Layers(*SMALL["flattened"]())
    other.load_state_dict(module.state_dict())
    assert_near(gradients(other.to(device, memory_format=LAST), x), expected, rtol=0)
    half = copy.deepcopy(module).to(torch.bfloat16)
    with counted() as fused:
        y = half(x.bfloat16())
    assert len(fused) == 2
    assert y.dtype == torch.bfloat16
    assert_near([y.float()], [expected[0]], rtol=0.05)


def test_tickets_belong_to_a_layer(device):
    module, x = small("maps", device, batch=2)
    other, _ = small("maps", device)
    gradients(module, x), gradients(other, x)
    known = [t for m in (module, other) for t in m._tickets._known.values()]
    assert len({t.data_ptr() for t in known}) == len(known) == 4
    assert not any(t.any() for t in known)
    assert all(t.dtype == torch.int32 for t in known)


class _Casts(TorchDispatchMode):
    """Copies of a tensor in another dtype."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        y = op(*args, **(kwargs or {}))
        if op.overloadpacket.__name__ == "_to_copy" and y.dtype != args[0].dtype:
            self.made.append(tuple(y.shape))
        return y


@pytest.mark.parametrize("name", ["maps", "rows", "flattened"])
def test_weights_that_an_optimiser_keeps_in_bfloat16(name, device):
    """They take the gradient, as it is, and no weight is cast in either direction."""
    module, x = small(name, device)
    with torch.autocast(device.type, torch.bfloat16):
        expected = module(x)
    layers = [m for m in module if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        layer.low_precision_weight = layer.weight.detach().bfloat16().requires_grad_()
        layer.low_precision_weight.rounded_from = layer.weight.data_ptr()
    with _Casts() as casts, torch.autocast(device.type, torch.bfloat16):
        y = module(x)
        y.backward(torch.ones_like(y))
    assert torch.equal(y, expected)
    assert not {tuple(layer.weight.shape) for layer in layers} & set(casts.made)
    for layer in layers:
        assert layer.weight.grad is None
        assert layer.low_precision_weight.grad.dtype == torch.bfloat16
        assert layer.bias.grad.dtype == torch.float32
        assert layer.low_precision_weight.grad.norm() > 0
        layer.low_precision_weight.grad = None
    frozen = {name: p.detach() for name, p in module.named_parameters()}
    with torch.autocast(device.type, torch.bfloat16):
        functional_call(module, frozen, (x,)).sum().backward()
        doubled = {name: p * 2 if name.endswith("weight") else p for name, p in frozen.items()}
        assert not torch.allclose(functional_call(module, doubled, (x,)), y)
    assert all(layer.low_precision_weight.grad is None for layer in layers)
    assert torch.equal(module(x), copy.deepcopy(module)(x))  # without autocast, the weights themselves
    module.requires_grad_(False)
    with torch.autocast(device.type, torch.bfloat16):
        module(x).sum().backward()
    assert all(layer.low_precision_weight.grad is None for layer in layers)


@pytest.mark.gpu
def test_a_value_that_is_not_a_number_reaches_the_end(device):
    """cuBLAS has the ReLU of a linear layer in its product, and says nothing of NaN."""
    module = Layers(nn.Linear(64, 64), nn.ReLU()).to(device)
    x = torch.randn(64, 64, device=device)
    x[3, 5] = float("nan")
    assert module(x)[3].isnan().all()
    assert not module(x)[:3].isnan().any()


@pytest.mark.parametrize(
    "objective",
    [
        BetaVAE(),
        FactorVAE(discriminator_width=20),
        InfoGAN(batch_norm=False),  # over four images, it makes much of little in the second step
        InfoWGANGP(critic_steps=1, spectral_norm=False, batch_norm=False),
    ],
    ids=lambda o: type(o).__name__,
)
def test_two_steps_of_training(objective, device, wide_blocks):
    settle_arithmetic("fp32")
    adversarial = {"architecture": "kim", "latents": 5} if isinstance(objective, InfoGAN) else {}
    recipe = Recipe(objective=objective, data="tiny", batch_size=4, lr=1e-4, seed=7, **adversarial)
    fused, plain = (training(recipe, TinyData(), device, log_every=1) for _ in range(2))
    with counted() as calls:
        fused.advance(2)
    assert len(calls) >= 2 * 14
    with one_by_one(), counted() as calls:
        plain.advance(2)
    assert not calls
    torch.testing.assert_close(fused.ledger.row, plain.ledger.row, rtol=1e-4, atol=1e-6)
    assert fused.tensors().keys() == plain.tensors().keys()
    for name, tensor in plain.tensors().items():
        # Adam moves what has hardly any gradient by the sign of it
        torch.testing.assert_close(fused.tensors()[name], tensor, rtol=1e-3, atol=4e-4, msg=name)


@pytest.mark.parametrize(
    "objective", [BetaVAE(), FactorVAE(discriminator_width=20)], ids=lambda o: type(o).__name__
)
def test_training_in_bfloat16_casts_no_weight(objective, device, wide_blocks):
    recipe = Recipe(objective=objective, data="tiny", batch_size=4, lr=1e-4, seed=7, precision="bf16")
    fused, plain = (training(recipe, TinyData(), device, log_every=1) for _ in range(2))
    weights = {tuple(p.shape) for p in fused.net.parameters() if p.ndim > 1}
    fused.advance()
    with _Casts() as casts:
        fused.advance()
    assert not weights & set(casts.made)
    with one_by_one():
        plain.advance(2)
    rows = [dict(zip(t.fields, t.ledger.row.tolist(), strict=True)) for t in (fused, plain)]
    for field in ("loss", "recon", "kl"):
        assert rows[0][field] == pytest.approx(rows[1][field], rel=2e-2)
    for layer in fused.net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            assert torch.equal(layer.low_precision_weight, layer.weight.bfloat16())
