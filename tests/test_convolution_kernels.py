"""The compiled convolutions, operator by operator: against float64, over threads, instruction sets and odd shapes."""

import itertools
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.base import native

ROOT = Path(__file__).resolve().parents[1]
REASON = native.load()
OPS = torch.ops.pyvae_native
LEVEL = OPS.convolution_level() if REASON is None else 0
pytestmark = pytest.mark.skipif(LEVEL == 0, reason=REASON or "no convolutions for this processor or compiler")
LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(level > LEVEL, reason="not this processor's"))
    for level in (1, 2, 3)
]
EPS = torch.finfo(torch.float32).eps
# kernel, channels of the big map, of the small one, sides of the small one
PAIRS = [(4, big, small, sides) for big in (32, 64) for small in (32, 64) for sides in ((4, 4), (6, 10))]
ENDS = [(4, big, small, sides) for big in (1, 3) for small in (32, 64) for sides in ((8, 8), (5, 7), (1, 2))]
PATCHES = [(2, big, small, sides) for big in (32, 64) for small in (32, 64) for sides in ((4, 4), (3, 5))]
LAYERS = [*PAIRS, *ENDS, *PATCHES]


@pytest.fixture
def level():
    """Sets the best instruction set, which is given back."""
    yield OPS.convolution_level
    OPS.convolution_level(9)


def channels_last(x):
    return x.permute(0, 2, 3, 1).contiguous()


class Made(NamedTuple):
    """A layer, an activation behind it, and before it another with an activation, if its input is no picture."""

    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    transposed: list[bool]
    slope: float | None
    grad: Tensor

    @property
    def slopes(self):
        return [-1.0 if self.slope is None else self.slope] * len(self.weights)


def layer(kernel, big, small, sides, *, transposed, slope, batch, seed=0):
    """All of it ``[B, C, H, W]`` and random. The layer before is of patches."""
    g = torch.Generator().manual_seed(seed)
    height, width = sides
    inputs, outputs = (small, big) if transposed else (big, small)
    height_in, width_in = (height, width) if transposed else (2 * height, 2 * width)
    above = (batch, outputs, *((2 * height, 2 * width) if transposed else sides))
    weights = [torch.randn(small, big, kernel, kernel, generator=g) / (big * kernel**2) ** 0.5]
    biases = [torch.randn(outputs, generator=g)]
    kinds = [transposed]
    x = torch.randn(batch, inputs, height_in, width_in, generator=g)
    if inputs in (32, 64):
        weights.insert(0, torch.randn(inputs, 32, 2, 2, generator=g) / 128**0.5)
        biases.insert(0, torch.randn(inputs, generator=g))
        kinds.insert(0, False)
        x = torch.randn(batch, 32, 2 * height_in, 2 * width_in, generator=g)
    return Made(x, weights, biases, kinds, slope, torch.randn(above, generator=g))


def convolve(x, weight, bias, transposed):
    operator = F.conv_transpose2d if transposed else F.conv2d
    return operator(x, weight, bias, stride=2, padding=weight.shape[-1] // 2 - 1)


def masked(grad, y, slope):
    return grad if slope is None else torch.where(y > 0, grad, slope * grad)


def ours(made, *, bf16=False, maps=None):
    """Maps of all layers and gradients of x, weights and biases, of these maps if they are given."""
    own = [channels_last(w) for w in made.weights]
    kinds = (made.transposed, made.slopes)
    if maps is None:
        maps = OPS.convolutions_fwd(channels_last(made.x), own, made.biases, *kinds, bf16, True)
    wanted = [True] * len(own)
    y = None if made.slope is None else maps[-1]
    grad_x, grad_weights, grad_biases = OPS.convolutions_bwd(
        channels_last(made.grad), [channels_last(made.x), *maps[:-1]], y, own, *kinds, True, wanted, wanted, bf16
    )  # fmt: skip
    channels_first = [t.permute(0, 3, 1, 2) for t in (*maps, grad_x, *grad_weights)]
    return channels_first[: len(maps)], [*channels_first[len(maps) :], *grad_biases]


def plain(made, maps, dtype):
    """The same by torch, each step from our maps: so no unit near zero has another sign here than there."""
    below = [made.x, *maps[:-1]]
    out, grads, biases = [], [], []
    grad = masked(made.grad.to(dtype), maps[-1], made.slope)
    for x, weight, bias, kind in zip(below, made.weights, made.biases, made.transposed, strict=True):
        y = convolve(x.to(dtype), weight.to(dtype), bias.to(dtype), kind)
        out.append(y if made.slope is None else F.leaky_relu(y, made.slope))
    for i in reversed(range(len(below))):
        x, weight = below[i].to(dtype).requires_grad_(), made.weights[i].to(dtype).requires_grad_()
        biases.insert(0, grad.sum((0, 2, 3)))
        y = convolve(x, weight, None, made.transposed[i])
        grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
        grads.insert(0, grad_weight)
        grad = masked(grad_x, maps[i - 1], made.slope) if i else grad_x
    return out, [grad, *grads, *biases]


def error(got, exact):
    return float((got.detach().double() - exact).norm() / exact.norm())


def check_errors(made, *, bf16=False, times=2.0, floor=4 * EPS):
    maps, grads = ours(made, bf16=bf16)
    exact, exact_grads = plain(made, maps, torch.float64)
    theirs, their_grads = plain(made, maps, torch.bfloat16 if bf16 else torch.float32)
    count = len(made.weights)
    for i, (mine, torchs, right) in enumerate(
        zip([*maps, *grads], [*theirs, *their_grads], [*exact, *exact_grads], strict=True)
    ):
        scale = 1.0
        if i >= 2 * count + 1:  # sums of gradients cancel: they are held to what they sum
            scale = float(exact_grads[0].abs().sum() / exact_grads[0].norm()) / 10
        assert error(mine, right) <= max(times * error(torchs, right), floor * max(scale, 1.0)), i


@pytest.mark.parametrize("which", LEVELS)
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_all_layers_against_float64(level, which, transposed):
    level(which)
    for shape, slope, batch in itertools.product(LAYERS, (None, 0.0, 0.2), (1, 9)):
        check_errors(layer(*shape, transposed=transposed, slope=slope, batch=batch))


@pytest.mark.skipif(LEVEL < 3, reason="no products of bfloat16 on this processor")
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_bfloat16_errs_little_more_than_torch_does(transposed):
    """Half as much in maps, in gradients 1.0 to 1.5 times as much, those of few images up to 3."""
    for shape, batch in itertools.product([*PAIRS, *PATCHES], (1, 9)):
        check_errors(layer(*shape, transposed=transposed, slope=0.0, batch=batch), bf16=True, times=3.0)


def everything(batch, *, bf16=False, layers=LAYERS):
    results = []
    for shape, transposed in itertools.product(layers, (False, True)):
        maps, grads = ours(layer(*shape, transposed=transposed, slope=0.0, batch=batch), bf16=bf16)
        results += [*maps, *grads]
    return results


@pytest.mark.parametrize("batch", [1, 20])
def test_instruction_sets_give_the_same_bits(level, batch):
    level(1)
    narrow = everything(batch)
    level(2)
    assert all(torch.equal(x, y) for x, y in zip(everything(batch), narrow, strict=True))


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=LEVELS[2].marks)])
def test_threads_change_no_bit(bf16):
    layers = [PAIRS[0], PAIRS[-1], ENDS[0], ENDS[-1], PATCHES[-1]]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything(41, bf16=bf16, layers=layers)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            together = everything(41, bf16=bf16, layers=layers)
            assert all(torch.equal(x, y) for x, y in zip(together, alone, strict=True)), count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [PAIRS[1], ENDS[1], PATCHES[1]], ids=["pair", "end", "patches"])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_an_image_knows_nothing_of_its_batch(shape, transposed):
    made = layer(*shape, transposed=transposed, slope=0.0, batch=21)
    maps, grads = ours(made)
    for part in (slice(0, 1), slice(3, 20), slice(20, 21)):
        own, own_grads = ours(made._replace(x=made.x[part], grad=made.grad[part]))
        assert all(torch.equal(x, y[part]) for x, y in zip(own, maps, strict=True))
        assert torch.equal(own_grads[0], grads[0][part])


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_layers_together_give_what_they_give_one_by_one(batch):
    """Maps that are not kept, and gradients that go from layer to layer in memory that is used again and again."""
    g = torch.Generator().manual_seed(batch)
    widths, transposed = [1, 32, 32, 64, 64, 32, 3], [False] * 3 + [True] * 3
    weights = []
    for i, kind in enumerate(transposed):
        size = (widths[i], widths[i + 1]) if kind else (widths[i + 1], widths[i])
        weights.append(channels_last(torch.randn(*size, 4, 4, generator=g) / (16 * min(size)) ** 0.5))
    biases = [torch.randn(width, generator=g) for width in widths[1:]]
    slopes = [0.0, 0.0, 0.2, 0.0, -1.0, 0.1]
    x = torch.randn(batch, 32, 48, 1, generator=g)
    maps = OPS.convolutions_fwd(x, weights, biases, transposed, slopes, False, True)
    (last,) = OPS.convolutions_fwd(x, weights, biases, transposed, slopes, False, False)
    assert torch.equal(last, maps[-1])
    below = [x, *maps[:-1]]
    for i, y in enumerate(maps):
        one = [[weights[i]], [biases[i]], [transposed[i]], [slopes[i]]]
        (alone,) = OPS.convolutions_fwd(below[i], *one, False, True)
        assert torch.equal(alone, y)
    grad = torch.randn(maps[-1].shape, generator=g)
    given = [below, maps[-1], weights, transposed, slopes]
    yes, no = [True] * 6, [False] * 6
    grad_x, grad_weights, grad_biases = OPS.convolutions_bwd(grad, *given, True, yes, yes, False)
    for i in reversed(range(6)):
        one = [[below[i]], None, [weights[i]], [transposed[i]], [-1.0], True, [True], [True], False]
        grad = grad if slopes[i] < 0 else torch.where(maps[i] <= 0, slopes[i] * grad, grad)
        grad, (grad_weight,), (grad_bias,) = OPS.convolutions_bwd(grad, *one)
        torch.testing.assert_close(
            grad_weights[i], grad_weight, rtol=1e-5, atol=1e-5 * float(grad_weight.norm())
        )
        torch.testing.assert_close(grad_biases[i], grad_bias, rtol=1e-5, atol=1e-5 * float(grad_bias.norm()))
    torch.testing.assert_close(grad_x, grad, rtol=1e-5, atol=1e-6)

    grad = torch.randn(maps[-1].shape, generator=torch.Generator().manual_seed(0))
    grad_x, grad_weights, grad_biases = OPS.convolutions_bwd(grad, *given, True, yes, yes, False)
    for wants_x, wants_weights, wants_biases in (
        (True, no, no),
        (False, no, no),
        (False, yes, no),
        (False, no, yes),
        (False, [False, False, True, False, True, False], no),
        (False, no, [False, False, False, True, False, False]),
    ):
        some = OPS.convolutions_bwd(grad, *given, wants_x, wants_weights, wants_biases, False)
        wanted = [wants_x, *wants_weights, *wants_biases]
        for wants, mine, whole in zip(
            wanted, [some[0], *some[1], *some[2]], [grad_x, *grad_weights, *grad_biases], strict=True
        ):
            assert torch.equal(mine, whole) if wants else mine.shape == (0,)


@pytest.mark.parametrize("which", LEVELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [PAIRS[0], ENDS[0], PATCHES[0]], ids=["pair", "end", "patches"])
def test_what_is_not_finite_goes_through(level, which, bad, shape):
    level(which)
    bf16 = which == 3 and shape not in ENDS
    for transposed, slope in itertools.product((False, True), (None, 0.0, 0.2)):
        made = layer(*shape, transposed=transposed, slope=slope, batch=3)
        # what a ReLU makes of -inf is finite in torch, too
        if slope is None or bad != -float("inf"):
            for where in (made.x, made.weights[-1], made.biases[-1]):
                kept = where.clone()
                where.view(-1)[where.numel() // 2] = bad
                assert not ours(made, bf16=bf16)[0][-1].isfinite().all(), (transposed, slope)
                where.copy_(kept)
        maps, _ = ours(made, bf16=bf16)
        maps = [channels_last(y) for y in maps]
        made.grad.fill_(1.0)
        made.grad.view(-1)[made.grad.numel() // 3] = bad
        grads = ours(made._replace(slope=None), bf16=bf16, maps=maps)[1]
        assert not any(grad.isfinite().all() for grad in grads)
        made.grad.fill_(1.0)
        # an activation that is NaN lets its gradient through
        maps[-1].fill_(float("nan"))
        grads = ours(made, bf16=bf16, maps=maps)[1]
        assert bool((grads[-1] == made.grad.sum((0, 2, 3))).all())


def test_sums_of_a_gradient_are_exact_to_rounding():
    for shape in (ENDS[0], ENDS[1], ENDS[3], ENDS[4], PAIRS[1]):
        made = layer(*shape, transposed=True, slope=None, batch=33)
        made.grad.copy_(torch.rand(made.grad.shape, generator=torch.Generator().manual_seed(1)))
        assert error(ours(made)[1][-1], made.grad.double().sum((0, 2, 3))) < 2 * EPS, shape


def test_no_images():
    made = layer(*PAIRS[0], transposed=False, slope=0.0, batch=0)
    maps, grads = ours(made)
    assert [y.shape for y in maps] == [(0, 32, 8, 8), (0, 32, 4, 4)]
    assert grads[0].shape == made.x.shape
    assert not any(grad.any() for grad in grads[1:])


def one(x, weight, **changes):
    """A layer by itself: its arguments."""
    named = {"biases": [None], "transposed": [False], "slopes": [-1.0], "bf16": False, **changes}
    return torch.zeros(x), [torch.zeros(weight)], *named.values()


@pytest.mark.parametrize(
    ("x", "weight", "line"),
    [
        ((1, 8, 8, 32), (16, 4, 4, 32), "between 32 and 16 channels"),
        ((1, 8, 8, 48), (32, 4, 4, 48), "between 48 and 32 channels"),
        ((1, 8, 8, 32), (32, 3, 3, 32), "kernels are 4 x 4 or 2 x 2"),
        ((1, 10, 8, 32), (32, 4, 4, 32), "the small map has odd sides"),
        ((1, 7, 8, 32), (32, 2, 2, 32), "odd sides 7 x 8"),
        ((1, 8, 8, 64), (32, 4, 4, 32), "x: has 64 channels"),
    ],
)
def test_what_there_is_none_for_is_refused(x, weight, line):
    with pytest.raises(RuntimeError, match=line):
        OPS.convolutions_fwd(*one(x, weight), False)


def test_what_does_not_belong_together_is_refused():
    x, weight = torch.zeros(2, 8, 8, 32), torch.zeros(32, 4, 4, 32)
    with pytest.raises(RuntimeError, match="biases: one for each weight"):
        OPS.convolutions_fwd(x, [weight], [], [False], [0.0], False, True)
    with pytest.raises(RuntimeError, match="bias: expected 32 numbers"):
        OPS.convolutions_fwd(x, [weight], [torch.zeros(3)], [False], [0.0], False, True)
    with pytest.raises(RuntimeError, match="weights: as many as there are kinds and slopes"):
        OPS.convolutions_fwd(x, [weight], [None], [False, True], [0.0], False, True)
    kinds = [[weight], [False], [-1.0], True, [True], [True], False]
    with pytest.raises(RuntimeError, match="grad: wrong size 1 of dimension 0"):
        OPS.convolutions_bwd(torch.zeros(1, 4, 4, 32), [x], None, *kinds)
    kinds[2] = [0.0]
    with pytest.raises(RuntimeError, match="y: it is needed behind an activation"):
        OPS.convolutions_bwd(torch.zeros(2, 4, 4, 32), [x], None, *kinds)


def test_processors_are_asked_for_what_they_have(level):
    assert level(1) == 1
    with pytest.raises(RuntimeError, match="bf16: this processor has no instructions"):
        OPS.convolutions_fwd(*one((1, 8, 8, 32), (32, 4, 4, 32), bf16=True), False)
    assert level(0) == 0
    with pytest.raises(RuntimeError, match="none for this processor or compiler"):
        OPS.convolutions_fwd(*one((1, 8, 8, 32), (32, 4, 4, 32)), False)


@pytest.mark.slow
def test_other_compilers_build_without(tmp_path):
    """What is not GCC on x86-64 gets operators that refuse, not a build that fails."""
    csrc = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    level = csrc / "cpu/level.h"
    level.write_text(level.read_text().replace("defined(__x86_64__) && ", "0 && "))
    from torch.utils.cpp_extension import include_paths

    flags = [f"-I{path}" for path in include_paths()]
    sources = [str(csrc / "cpu" / name) for name in ("convolution.cpp", "linear.cpp")]
    done = subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-fsyntax-only", *flags, *sources], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "unused" not in done.stderr, done.stderr
