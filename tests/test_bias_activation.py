"""The kernels behind a product against plain torch; test_layers.py has them in networks."""

import random

import pytest
import torch
from conftest import GPU

from closeness import assert_as_near
from pyvae.nets import bias_activation
from pyvae.nets.bias_activation import Activation, plain_backward, plain_forward

pytestmark = pytest.mark.usefixtures("triton_backend")
pytest.importorskip("triton")

ACTIVATIONS = [Activation(), Activation("relu"), Activation("leaky_relu", 0.2), Activation("tanh")]
LAST, DENSE = torch.channels_last, torch.contiguous_format
# shape of the product, its memory order, that of the output, whether each pixel has a bias of its own
LAYOUTS = {
    "linear": ((37, 21), DENSE, DENSE, False),
    "one image": ((1, 1), DENSE, DENSE, False),
    "wide": ((3, 100), DENSE, DENSE, False),
    "tall": ((300, 40), DENSE, DENSE, False),
    "channels last": ((5, 12, 7, 6), LAST, LAST, False),
    "dense maps": ((5, 12, 7, 6), DENSE, DENSE, False),
    "one channel": ((9, 1, 33, 40), LAST, LAST, False),
    "three channels": ((2, 3, 33, 40), LAST, DENSE, False),
    "flattened": ((9, 12, 4, 4), LAST, DENSE, False),
    "unflattened": ((9, 10, 4, 3), DENSE, LAST, True),
    "a pixel": ((9, 40, 1, 1), LAST, DENSE, False),
    "many programs": ((3, 33, 16, 15), LAST, LAST, False),
    "many dense programs": ((3, 33, 16, 15), DENSE, DENSE, False),
}


def inputs(layout, dtype, device, seed=0):
    shape, order, behind, per_pixel = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    biases = x[0].numel() if per_pixel else shape[1]
    bias = torch.randn(biases, generator=generator).to(device)
    if x.ndim == 4:
        x = x.contiguous(memory_format=order)
    return x, bias, grad if x.ndim == 2 else grad.contiguous(memory_format=behind), behind


def empty(x, order):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=order if x.ndim == 4 else DENSE)


def launched_backward(grad, y, activation, x, bias):
    """Gradients of x and of the bias."""
    tickets = torch.zeros(bias_activation.ticket_count(len(bias)), dtype=torch.int32, device=bias.device)
    grad_x, grad_bias = torch.empty_like(x), torch.empty_like(bias)
    bias_activation.backward(grad, y, activation, grad_x, grad_bias, tickets)
    assert not tickets.any()
    alone, sums = torch.empty_like(x), torch.empty_like(bias)
    bias_activation.backward(grad, y, activation, alone, None, None)
    assert torch.equal(alone.nan_to_num(), grad_x.nan_to_num())
    bias_activation.backward(grad, y, activation, None, sums, tickets)
    assert torch.equal(sums.nan_to_num(), grad_bias.nan_to_num())
    assert not tickets.any()
    return grad_x, grad_bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS[:3], ids=lambda a: a.kind)
def test_forward(layout, activation, dtype, device):
    x, bias, _, order = inputs(layout, dtype, device)
    exact = plain_forward(x.double(), bias.double(), activation)
    same = plain_forward(x, bias.to(dtype), activation)
    found = bias_activation.forward(x, bias, activation, empty(x, order))
    assert_as_near(found, same, exact)
    if x.stride() == found.stride():
        assert bias_activation.forward(x, bias, activation, x) is x
        assert torch.equal(x, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_backward(layout, activation, dtype, device):
    x, bias, grad, order = inputs(layout, dtype, device)
    y = empty(x, order).copy_(plain_forward(x.double(), bias.double(), activation))
    exact, exact_sums = plain_backward(grad.double(), y.double(), activation, len(bias))
    same, sums = plain_backward(grad, y, activation, len(bias))
    grad_x, grad_bias = launched_backward(grad, y, activation, x, bias)
    assert_as_near(grad_x, same, exact)
    # a sum errs by its length, in torch as here
    scale = exact.abs().sum([d for d in range(x.ndim) if d != 1]).max().item()
    torch.testing.assert_close(grad_bias.double(), exact_sums, rtol=0, atol=1e-6 * scale)
    assert grad_bias.dtype == sums.dtype == torch.float32


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_plain_gradients_are_those_of_autograd(activation, device):
    for layout in ("linear", "channels last", "unflattened"):
        x, bias, grad, _ = (
            t.double() if torch.is_tensor(t) else t for t in inputs(layout, torch.float32, device)
        )
        x.requires_grad_(), bias.requires_grad_()
        y = plain_forward(x, bias, activation)
        expected = torch.autograd.grad(y, (x, bias), grad)
        torch.testing.assert_close(plain_backward(grad, y, activation, len(bias)), expected)


@pytest.mark.parametrize("layout", ["many programs", "many dense programs"])
def test_a_program_goes_through_several_tiles(layout, device, monkeypatch):
    x, bias, grad, _ = inputs(layout, torch.float32, device)
    relu = ACTIVATIONS[1]
    expected = launched_backward(grad, x, relu, x, bias)
    # three programs for each of two blocks of columns
    monkeypatch.setattr(bias_activation, "_PROGRAMS", 7)
    found = launched_backward(grad, x, relu, x, bias)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.skipif(GPU, reason="programs come in the order that the GPU gives them")
@pytest.mark.parametrize("layout", ["many programs", "tall", "many dense programs", "one channel"])
def test_the_last_to_come_adds_up_whoever_it_is(layout, device, monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    x, bias, grad, _ = inputs(layout, torch.float32, device)
    relu = ACTIVATIONS[1]
    expected = launched_backward(grad, x, relu, x, bias)
    arrive, orders = interpreter_builder.set_grid_idx, []

    def shuffled(place, y, z):
        count = interpreter_builder.grid_dim[0]
        if place == 0:
            orders.append(random.Random(len(orders)).sample(range(count), count))
        arrive(orders[-1][place], y, z)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", shuffled)
    for _ in range(3):
        found = launched_backward(grad, x, relu, x, bias)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(orders) == 9
    assert len(orders[0]) > 4
    assert orders[0][-1] != len(orders[0]) - 1


def test_gradients_in_a_strange_memory_order(device):
    x, bias, grad, _ = inputs("channels last", torch.float32, device)
    relu = ACTIVATIONS[1]
    expected = launched_backward(grad, x, relu, x, bias)
    for other in (grad.contiguous(), grad.mT.contiguous().mT, torch.stack([grad, grad], -1)[..., 0]):
        assert not other.is_contiguous(memory_format=LAST)
        found = launched_backward(other, x, relu, x, bias)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
    one = torch.ones((), device=device)
    found = launched_backward(one.expand_as(x), x, relu, x, bias)
    expected = launched_backward(torch.ones_like(x), x, relu, x, bias)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_values_that_are_not_finite_stay_so(activation, device):
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]], device=device)
    bias = torch.tensor([0.0, 0.0, 0.0, float("nan")], device=device)
    y = plain_forward(x, bias, activation)
    if activation.kind != "tanh":
        found = bias_activation.forward(x, bias, activation, torch.empty_like(x))
        torch.testing.assert_close(found, y, equal_nan=True)
    grad_x, grad_bias = launched_backward(torch.full_like(x, float("inf")), y, activation, x, bias)
    exact, sums = plain_backward(torch.full_like(x, float("inf")), y, activation, len(bias))
    torch.testing.assert_close(grad_x, exact, equal_nan=True)
    torch.testing.assert_close(grad_bias, sums, equal_nan=True)


def test_a_bias_in_half_precision(device):
    x, bias, grad, _ = inputs("linear", torch.bfloat16, device)
    bias = bias.bfloat16()
    relu = ACTIVATIONS[1]
    found = bias_activation.forward(x, bias, relu, torch.empty_like(x))
    assert torch.equal(found, plain_forward(x.float(), bias.float(), relu).bfloat16())
    _, grad_bias = launched_backward(grad, found, relu, x, bias)
    assert grad_bias.dtype == torch.bfloat16
