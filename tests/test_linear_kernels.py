"""The compiled linear layers, operator by operator: against float64, over threads, instruction sets and odd shapes."""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.base import native

REASON = native.load()
OPS = torch.ops.pyvae_native
LEVEL = OPS.convolution_level() if REASON is None else 0
pytestmark = pytest.mark.skipif(LEVEL == 0, reason=REASON or "no products for this processor or compiler")
EPS = torch.finfo(torch.float32).eps
# batch and widths
SHAPES = [(64, [40, 70, 13]), (1, [3, 300, 5]), (67, [520, 20]), (5, [1, 1]), (130, [33, 64, 65])]


@pytest.fixture
def level():
    """Sets the best instruction set, which is given back."""
    yield OPS.convolution_level
    OPS.convolution_level(9)


class Made(NamedTuple):
    """Layers one after another; the first may read maps and the last make maps, of so many pixels."""

    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    transposed: list[bool]
    slopes: list[float]
    below: list[int]
    above: list[int]
    grad: Tensor

    @property
    def kinds(self):
        return self.transposed, self.slopes, self.below, self.above


def layers(batch, widths, *, transposed=False, slope=0.0, pixels=(1, 1)):
    g = torch.Generator().manual_seed(batch)
    count = len(widths) - 1
    shapes = [(b, a) if transposed else (a, b) for b, a in pairwise(widths)]
    return Made(
        torch.randn(batch, widths[0], generator=g),
        [torch.randn(shape, generator=g) / b**0.5 for shape, b in zip(shapes, widths[:-1], strict=True)],
        [torch.randn(a, generator=g) for a in widths[1:]],
        [transposed] * count,
        [slope] * count,
        [pixels[0], *[1] * (count - 1)],
        [*[1] * (count - 1), pixels[1]],
        torch.randn(batch, widths[-1], generator=g),
    )


def ours(made, wanted=(True, True, True)):
    """What all layers make, and gradients of x, weights and biases."""
    count = len(made.weights)
    maps = OPS.linears_fwd(made.x, made.weights, made.biases, *made.kinds)
    x, *each = wanted
    y = None if made.slopes[-1] < 0 else maps[-1]
    grads = OPS.linears_bwd(
        made.grad, [made.x, *maps[:-1]], y, made.weights, *made.kinds, x, *([want] * count for want in each)
    )
    return maps, [grads[0], *grads[1], *grads[2]]


def turned(rows, pixels):
    """Channels first, of maps that have them last."""
    return rows.reshape(len(rows), pixels, -1).mT.reshape(rows.shape)


def plain(made, maps, dtype):
    """The same by torch, each layer from our maps: so no unit near zero has another sign here than there."""
    made_here, weights, biases = [], [], []
    below = [made.x, *maps[:-1]]
    grad = made.grad.to(dtype)
    for i in reversed(range(len(below))):
        x, w = below[i].to(dtype).requires_grad_(), made.weights[i].to(dtype).requires_grad_()
        bias, slope = made.biases[i].to(dtype).requires_grad_(), made.slopes[i]
        y = F.linear(turned(x, made.below[i]), w.t() if made.transposed[i] else w, bias)
        y = turned(y, len(y[0]) // made.above[i])
        z = y if slope < 0 else F.leaky_relu(y, slope)
        if slope >= 0:
            grad = torch.where(maps[i] > 0, grad, slope * grad)
        grad, grad_weight, grad_bias = torch.autograd.grad(y, (x, w, bias), grad)
        made_here.insert(0, z.detach())
        weights.insert(0, grad_weight)
        biases.insert(0, grad_bias)
    return [*made_here, grad, *weights, *biases]


def check_errors(made):
    maps, grads = ours(made)
    found = [*maps, *grads]
    exact, theirs = plain(made, maps, torch.float64), plain(made, maps, torch.float32)
    for i, (mine, torchs, right) in enumerate(zip(found, theirs, exact, strict=True)):
        # a sum of gradients may cancel
        unit = (
            4 * EPS * (1 if i <= 2 * len(maps) else max(1.0, float(made.grad.abs().sum() / made.grad.norm())))
        )
        limit = 2 * (torchs.double() - right).norm() + unit * right.norm()
        assert (mine.double() - right).norm() <= limit, i  # which NaN does not pass


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.3])
@pytest.mark.parametrize("which", [1, pytest.param(2, marks=pytest.mark.skipif(LEVEL < 2, reason="AVX-512"))])
def test_all_shapes_against_float64(level, which, slope):
    level(which)
    for batch, widths in SHAPES:
        check_errors(layers(batch, widths, slope=slope))
        check_errors(layers(batch, widths, slope=slope, transposed=True))
    for batch in (3, 70):
        check_errors(layers(batch, [96, 50, 80], slope=slope, pixels=(6, 16)))
        check_errors(layers(batch, [36, 20], slope=slope, pixels=(12, 4)))


def everything():
    found = []
    for transposed in (False, True):
        maps, grads = ours(layers(150, [300, 270, 10], transposed=transposed, slope=0.1))
        found += [*maps, *grads]
    maps, grads = ours(layers(70, [320, 20, 512], pixels=(16, 16)))
    return [*found, *maps, *grads]


@pytest.mark.skipif(LEVEL < 2, reason="AVX-512")
def test_instruction_sets_give_the_same_bits(level):
    level(1)
    narrow = everything()
    level(2)
    assert all(torch.equal(x, y) for x, y in zip(everything(), narrow, strict=True))


def test_threads_change_no_bit():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert all(torch.equal(x, y) for x, y in zip(everything(), alone, strict=True)), count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_knows_nothing_of_its_batch(transposed):
    made = layers(80, [70, 150, 9], transposed=transposed)
    maps, grads = ours(made)
    for part in (slice(0, 1), slice(3, 67), slice(79, 80)):
        own, own_grads = ours(made._replace(x=made.x[part], grad=made.grad[part]))
        assert all(torch.equal(x, y[part]) for x, y in zip(own, maps, strict=True))
        assert torch.equal(own_grads[0], grads[0][part])


def test_maps_are_rows_in_another_order():
    made = layers(9, [96, 50, 80], pixels=(6, 16))
    rows = made._replace(below=[1, 1], above=[1, 1], x=turned(made.x, 6), grad=turned(made.grad, 16))
    maps, grads = ours(made)
    expected, expected_grads = ours(rows)
    assert torch.equal(maps[0], expected[0])
    assert torch.equal(turned(maps[1], 16), expected[1])
    assert torch.equal(turned(grads[0], 6), expected_grads[0])
    assert all(torch.equal(x, y) for x, y in zip(grads[1:], expected_grads[1:], strict=True))


def test_a_bias_of_a_transposed_layer_is_of_its_channels():
    made = layers(9, [20, 48], transposed=True)
    maps = made._replace(weights=[made.weights[0].view(20, 2, 2, 12)], biases=[made.biases[0][:12]])
    (found,), (_, _, grad_bias) = ours(maps)
    (expected,), (_, _, sums) = ours(made._replace(biases=[made.biases[0][:12].repeat(4)]))
    assert torch.equal(found, expected)
    torch.testing.assert_close(grad_bias, sums.view(4, 12).sum(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_through(bad):
    made = layers(20, [30, 40, 20], slope=0.0)
    made.x[7, 3] = bad
    maps, grads = ours(made)
    assert not maps[0][7].isfinite().all()
    assert maps[0][:7].isfinite().all()
    assert maps[0][8:].isfinite().all()
    assert not grads[1].isfinite().all()
    if bad != bad:
        assert maps[1][7].isnan().all()
        assert maps[1][8:].isfinite().all()
    made = layers(20, [30, 40, 20], slope=0.0)
    made.grad[5, 2] = bad
    _, grads = ours(made._replace(slopes=[0.0, -1.0]))
    assert not grads[0][5].isfinite().all()
    assert grads[0][6:].isfinite().all()
    assert not grads[2][2].isfinite().all()
    assert not grads[-1][2].isfinite()
    # a unit that is off passes nothing on, however large
    made = made._replace(
        x=-made.x.abs(), weights=[w.abs() for w in made.weights], biases=[b * 0 for b in made.biases]
    )
    assert not any(grad.isnan().any() or grad.count_nonzero() for grad in ours(made)[1])


@pytest.mark.parametrize("slope", [-1.0, 0.0])
def test_what_is_not_wanted_is_not_made(slope):
    made = layers(11, [30, 40, 20], slope=slope, pixels=(6, 10))
    _, whole = ours(made)
    for x in (True, False):
        for weights, biases in ((True, False), (False, True), (False, False)):
            _, grads = ours(made, (x, weights, biases))
            for grad, right, wanted in zip(grads, whole, [x, *[weights] * 2, *[biases] * 2], strict=True):
                assert torch.equal(grad, right) if wanted else grad.shape == (0,)
    assert all(a.shape == (0,) for a in ours(made, (False, False, False))[1])


def test_no_rows():
    made = layers(4, [30, 40, 20])
    maps, grads = ours(made._replace(x=made.x[:0], grad=made.grad[:0]))
    assert [m.shape for m in maps] == [(0, 40), (0, 20)]
    assert not any(grad.count_nonzero() for grad in grads)


def test_what_does_not_belong_together_is_refused(level):
    made = layers(4, [30, 40, 20])
    x, w, b, kinds = made.x, made.weights, made.biases, made.kinds
    with pytest.raises(RuntimeError, match="x: has rows of 29 numbers, not of 30"):
        OPS.linears_fwd(x[:, :29], w, b, *kinds)
    with pytest.raises(RuntimeError, match="x: has rows of 20 numbers, not of 40"):
        OPS.linears_fwd(x, [w[0][:20], w[1]], b, *kinds)
    with pytest.raises(RuntimeError, match="bias: expected 40 numbers"):
        OPS.linears_fwd(x, w, [b[1], b[1]], *kinds)
    with pytest.raises(RuntimeError, match="biases: one for each weight"):
        OPS.linears_fwd(x, w, b[:1], *kinds)
    with pytest.raises(RuntimeError, match="weights: as many as there are kinds, slopes and pixels"):
        OPS.linears_fwd(x, w, b, *kinds[:3], [1])
    with pytest.raises(RuntimeError, match="x: 30 numbers are no map of 4 pixels"):
        OPS.linears_fwd(x, w, b, *kinds[:2], [4, 1], [1, 1])
    with pytest.raises(RuntimeError, match="x: wrong dtype"):
        OPS.linears_fwd(x.double(), w, b, *kinds)
    ask = [True, [True] * 2, [True] * 2]
    with pytest.raises(RuntimeError, match="grad: expected 4 rows of 20 numbers"):
        OPS.linears_bwd(made.grad[:, 1:], [x, torch.zeros(4, 40)], made.grad, w, *kinds, *ask)
    with pytest.raises(RuntimeError, match="maps: expected 4 rows of 40 numbers"):
        OPS.linears_bwd(made.grad, [x, torch.zeros(3, 40)], made.grad, w, *kinds, *ask)
    with pytest.raises(RuntimeError, match="y: it is needed behind an activation"):
        OPS.linears_bwd(made.grad, [x, torch.zeros(4, 40)], None, w, *kinds, *ask)
    level(0)
    with pytest.raises(RuntimeError, match="none for this processor or compiler"):
        OPS.linears_fwd(x, w, b, *kinds)
