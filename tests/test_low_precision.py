"""Weights in bfloat16 that Adam keeps beside those in float32."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from pyvae.engine.adam import Adam
from pyvae.engine.low_precision import keep_low_precision_weights
from pyvae.engine.state import Trained
from pyvae.engine.trainer import Trainer
from test_trainer import RECIPE
from tiny import TinyData

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def triton(triton_backend, wide_blocks):
    pass


def weight_of(layer: nn.Module) -> torch.Tensor:
    kept = getattr(layer, "low_precision_weight", None)
    return layer.weight.to(HALF) if kept is None else kept


class Linear(nn.Linear):
    def forward(self, x):
        return F.linear(x.to(HALF), weight_of(self), self.bias.to(HALF))


class Conv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x.to(HALF), weight_of(self), self.bias.to(HALF))


class Transposed(nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x.to(HALF), weight_of(self), self.bias.to(HALF))


def net_on(device, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(Conv(1, 4, 3), nn.ReLU(), Transposed(4, 3, 3), nn.Flatten(), Linear(75, 2))
    return net.to(device, memory_format=torch.channels_last)


def trained(device, seed: int = 0, *, low_precision: bool = True) -> Trained:
    net = net_on(device, seed)
    optimizer = Adam(net.parameters(), 1e-2)
    if low_precision:
        keep_low_precision_weights(net, optimizer)
    return Trained("net", net, optimizer)


def advance(of: Trained, steps: range, found_inf: float = 0.0) -> list[torch.Tensor]:
    norms = []
    for step in steps:
        x = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(step))
        device = next(of.module.parameters()).device
        norms.append(of.backward(of.module(x.to(device)).float().square().sum()))
        of.step(torch.tensor(found_inf, device=device))
    return norms


def assert_rounded(module: nn.Module) -> None:
    layers = [layer for layer in module.modules() if hasattr(layer, "weight")]
    assert layers
    for layer in layers:
        leaf = layer.low_precision_weight
        assert leaf.is_leaf
        assert leaf.requires_grad
        assert leaf.dtype == HALF
        assert leaf.stride() == layer.weight.stride()
        assert torch.equal(leaf, layer.weight.to(HALF))


def test_steps_are_those_with_a_cast(device):
    kept, cast = trained(device), trained(device, low_precision=False)
    assert_rounded(kept.module)
    for step in range(4):
        norms = [advance(of, range(step, step + 1)) for of in (kept, cast)]
        assert torch.equal(norms[0][0], norms[1][0])
        assert_rounded(kept.module)
        for layer in (kept.module[0], kept.module[2], kept.module[4]):
            assert layer.weight.grad is None
            assert layer.low_precision_weight.grad.dtype == HALF
            assert layer.bias.grad.dtype == torch.float32
    assert kept.tensors().keys() == cast.tensors().keys()
    for name, tensor in kept.tensors().items():
        assert torch.equal(tensor, cast.tensors()[name]), name


def test_a_bad_step_leaves_both(device):
    of = trained(device)
    advance(of, range(2))
    before = {name: t.clone() for name, t in of.tensors().items()}
    advance(of, range(2, 4), found_inf=1.0)
    assert all(torch.equal(t, before[name]) for name, t in of.tensors().items())
    assert_rounded(of.module)


def test_gradients_of_both_are_added(device):
    both, one = trained(device), trained(device)
    for of in (both, one):
        advance(of, range(1))
        of.optimizer.zero_grad()
    layer, other = both.module[0], one.module[0]
    shape = layer.weight.shape
    layer.weight.grad = torch.full(shape, 2.0, device=device).contiguous(memory_format=torch.channels_last)
    layer.low_precision_weight.grad = torch.full_like(layer.low_precision_weight, 0.5)
    other.weight.grad = torch.full_like(other.weight, 2.5)
    assert float(both.optimizer.norm()) == pytest.approx(2.5 * shape.numel() ** 0.5)
    for of in (both, one):
        of.optimizer.step()
    assert torch.equal(layer.weight, other.weight)
    assert_rounded(both.module)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_forgotten(set_to_none, device):
    of = trained(device)
    advance(of, range(1))
    of.optimizer.zero_grad(set_to_none)
    for layer in (of.module[0], of.module[4]):
        for leaf in (layer.low_precision_weight, layer.bias):
            assert leaf.grad is None if set_to_none else not leaf.grad.any()


def test_loading_rounds_again(device):
    of, other = trained(device), trained(device, seed=1)
    addresses = [of.module[n].low_precision_weight.data_ptr() for n in (0, 2, 4)]
    advance(other, range(2))
    of.restore({name: t.clone() for name, t in other.tensors().items()})
    assert_rounded(of.module)
    of.module.load_state_dict(net_on(device, seed=2).state_dict())
    assert_rounded(of.module)
    of.module[4].load_state_dict(net_on(device, seed=3)[4].state_dict())
    assert_rounded(of.module)
    assert addresses == [of.module[n].low_precision_weight.data_ptr() for n in (0, 2, 4)]


def test_half_and_half_is_the_whole(device):
    whole, first, second = trained(device), trained(device), trained(device, seed=1)
    advance(whole, range(6))
    advance(first, range(3))
    second.restore({name: t.cpu().clone() for name, t in first.tensors().items()})
    advance(second, range(3, 6))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_a_copy_has_none(device):
    of = trained(device)
    for copied in (copy.deepcopy(of.module), copy.deepcopy(of.module[0])):
        layer = copied[0] if isinstance(copied, nn.Sequential) else copied
        assert layer.low_precision_weight is None
        copied.load_state_dict({name: t + 1 for name, t in copied.state_dict().items()})
    assert_rounded(of.module)
    assert not any("low_precision" in name for name in of.module.state_dict())
    assert pickle.loads(pickle.dumps(of.module))


def test_a_weight_of_two_layers(device):
    net = nn.Sequential(Linear(4, 4), Linear(4, 4)).to(device)
    net[1].weight = net[0].weight
    optimizer = Adam(net.parameters(), 1e-2)
    keep_low_precision_weights(net, optimizer)
    assert net[0].low_precision_weight is net[1].low_precision_weight


def test_a_weight_that_is_made_from_others_is_left_alone(device):
    net = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).to(device)
    keep_low_precision_weights(net, Adam(net.parameters(), 1e-2))
    assert not hasattr(net[0], "low_precision_weight")
    assert net[1].low_precision_weight is not None


@pytest.mark.parametrize(
    ("backend", "precision", "optimizer", "kept"),
    [
        ("triton", "bf16", "adam", True),
        ("triton", "fp32", "adam", False),
        ("triton", "bf16", "adagrad", False),
        ("reference", "bf16", "adam", False),
    ],
)
def test_who_keeps_them(backend, precision, optimizer, kept, device, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    if backend == "reference" and device.type == "cuda":
        pytest.skip("of a CPU")
    recipe = replace(RECIPE, precision=precision, optimizer=optimizer)
    net = Trainer(recipe, TinyData(), device).net
    layers = [layer for layer in net.modules() if hasattr(layer, "weight")]
    assert len(layers) == 14
    assert [getattr(layer, "low_precision_weight", None) is not None for layer in layers] == [kept] * 14
