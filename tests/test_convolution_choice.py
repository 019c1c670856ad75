"""Which layers on a CPU are our own, and which are torch's."""

import copy
import io
import pickle
from unittest import mock

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

from chains import CPU, assert_close, bfloat16, counted, every_kind, gradients, own, torchs
from pyvae.base import processor
from pyvae.cli import doctor
from pyvae.errors import BackendError
from pyvae.modules import fuse_convolutions
from pyvae.nets import build, convolutions
from pyvae.nets.adversarial import build_pair
from pyvae.nets.layers import Layers, Tickets, convolutions_of, set_own_convolutions, takes_products

pytestmark = pytest.mark.usefixtures("automatic_backend")


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
def test_a_generator_has_its_own_and_a_normalised_critic_torchs():
    pair = build_pair(1, continuous=2, categories=0, noise=3, batch_norm=False)
    with counted() as runs:
        pair.critic(pair.generator.images(torch.randn(2, 5)))
    assert runs == [6]
    assert convolutions_of(pair.critic, CPU, "fp32") == "none"
    assert takes_products(pair.generator)
    normalised = build_pair(1, continuous=2, categories=0, noise=3, batch_norm=True)
    assert not takes_products(normalised.generator)
