"""The compiled convolutions, operator by operator: against float64, over threads, instruction sets and odd shapes."""

import itertools
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pyvae import native

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


def layer(kernel, big, small, sides, *, transposed, slope, batch, seed=0):
    """x, weight, bias and the gradient behind the activation, all ``[B, C, H, W]``; x is an activation's output."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(small, big, kernel, kernel, generator=g) / (big * kernel**2) ** 0.5
    bias = torch.randn(big if transposed else small, generator=g)
    height, width = sides
    below = (batch, small, height, width) if transposed else (batch, big, 2 * height, 2 * width)
    above = (batch, big, 2 * height, 2 * width) if transposed else (batch, small, height, width)
    x = torch.randn(below, generator=g)
    return x if slope is None else F.leaky_relu(x, slope), weight, bias, torch.randn(above, generator=g)


def plain(x, weight, bias, grad, *, transposed, slope, dtype):
    """Output, its gradient before the activation, and gradients of weight, x (before its activation) and biases."""
    x, weight, bias, grad = (t.to(dtype) for t in (x, weight, bias, grad))
    weight.requires_grad_()
    below = x.clone().requires_grad_()
    convolve = F.conv_transpose2d if transposed else F.conv2d
    before = convolve(below, weight, bias, stride=2, padding=weight.shape[-1] // 2 - 1)
    y = before if slope is None else F.leaky_relu(before, slope)
    masked = grad if slope is None else torch.where(before > 0, grad, slope * grad)
    grad_x, grad_weight = torch.autograd.grad(before, (below, weight), masked)
    if slope is not None:
        grad_x = torch.where(x > 0, grad_x, slope * grad_x)
    grad_x, grad_weight = grad_x.detach(), grad_weight.detach()
    return y.detach(), masked.detach(), grad_weight, grad_x, grad_x.sum((0, 2, 3))


def ours(x, weight, bias, grad, masked, *, transposed, slope, bf16=False):
    """The same by the operators; they are given the masked gradient, so that no sign of a number near 0 differs."""
    own = channels_last(x), channels_last(weight)
    y = OPS.convolution_fwd(*own, bias, transposed, slope, bf16)
    first, sums = OPS.activation_bwd(channels_last(grad), None if slope is None else y, slope)
    if slope is not None:
        kept = torch.where(y <= 0, slope * channels_last(grad), channels_last(grad))
        assert torch.equal(first, kept)
    grad_x, grad_weight, sums_x = OPS.convolution_bwd(
        channels_last(masked), *own, transposed, slope, True, True, bf16
    )
    shaped = (t.permute(0, 3, 1, 2) for t in (y, grad_weight, grad_x))
    return *shaped, sums_x, sums


def error(got, exact):
    return float((got.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("which", LEVELS)
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_all_layers_against_float64(level, which, transposed):
    level(which)
    for shape, slope, batch in itertools.product(LAYERS, (None, 0.0, 0.2), (1, 9)):
        made = layer(*shape, transposed=transposed, slope=slope, batch=batch)
        kind = {"transposed": transposed, "slope": slope}
        exact = plain(*made, **kind, dtype=torch.float64)
        torchs = plain(*made, **kind, dtype=torch.float32)
        got = ours(*made, exact[1].float(), **kind)
        names = ("y", "grad_weight", "grad_x", "sums_x")
        for name, mine, theirs, right in zip(
            names, got, (torchs[0], *torchs[2:]), (exact[0], *exact[2:]), strict=False
        ):
            # sums cancel: theirs are held to what they sum
            scale = 1.0 if name != "sums_x" else float(exact[3].abs().sum() / exact[4].norm())
            allowed = max(2 * error(theirs, right), 4 * EPS * scale)
            assert error(mine, right) <= allowed, (name, shape, slope, batch)


@pytest.mark.skipif(LEVEL < 3, reason="no products of bfloat16 on this processor")
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_bfloat16_errs_less_than_twice_what_torch_does(transposed):
    for shape, batch in itertools.product([*PAIRS, *PATCHES], (1, 9)):
        made = layer(*shape, transposed=transposed, slope=0.0, batch=batch)
        kind = {"transposed": transposed, "slope": 0.0}
        exact = plain(*made, **kind, dtype=torch.float64)
        theirs = plain(*made, **kind, dtype=torch.bfloat16)
        got = ours(*made, exact[1].float(), **kind, bf16=True)
        for i, j in ((0, 0), (1, 2), (2, 3)):
            assert error(got[i], exact[j]) <= 2 * error(theirs[j], exact[j]), (i, shape, batch)


def everything(batch, *, bf16=False, layers=LAYERS):
    results = []
    for shape, transposed in itertools.product(layers, (False, True)):
        made = layer(*shape, transposed=transposed, slope=0.0, batch=batch)
        masked = made[-1] * (made[-1] > 0)
        results += ours(*made, masked, transposed=transposed, slope=0.0, bf16=bf16)
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
    x, weight, bias, grad = layer(*shape, transposed=transposed, slope=0.0, batch=21)
    w = channels_last(weight)
    whole = OPS.convolution_fwd(channels_last(x), w, bias, transposed, 0.0, False)
    grads, _, _ = OPS.convolution_bwd(
        channels_last(grad), channels_last(x), w, transposed, 0.0, True, False, False
    )
    for part in (slice(0, 1), slice(3, 20), slice(20, 21)):
        own = channels_last(x[part]), w
        assert torch.equal(OPS.convolution_fwd(*own, bias, transposed, 0.0, False), whole[part])
        grad_x, _, _ = OPS.convolution_bwd(
            channels_last(grad[part]), *own, transposed, 0.0, True, False, False
        )
        assert torch.equal(grad_x, grads[part])


@pytest.mark.parametrize("which", LEVELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [PAIRS[0], ENDS[0], PATCHES[0]], ids=["pair", "end", "patches"])
def test_what_is_not_finite_goes_through(level, which, bad, shape):
    level(which)
    bf16 = which == 3 and shape not in ENDS
    for transposed, slope in itertools.product((False, True), (0.0, 0.2)):
        x, weight, bias, grad = layer(*shape, transposed=transposed, slope=slope, batch=3)
        for where in ("x", "weight", "bias"):
            made = {"x": x.clone(), "weight": weight.clone(), "bias": bias.clone()}
            made[where].view(-1)[len(made[where].view(-1)) // 2] = bad
            own = channels_last(made["x"]), channels_last(made["weight"])
            y = OPS.convolution_fwd(*own, made["bias"], transposed, None, bf16)
            assert not y.isfinite().all(), (where, transposed)
            if bad != -float("inf"):
                y = OPS.convolution_fwd(*own, made["bias"], transposed, slope, bf16)
                assert not y.isfinite().all(), (where, transposed, slope)
        grad.view(-1)[len(grad.view(-1)) // 3] = bad
        grad_x, grad_weight, _ = OPS.convolution_bwd(
            channels_last(grad), channels_last(x), channels_last(weight), transposed, None, True, True, bf16
        )
        assert not grad_x.isfinite().all()
        assert not grad_weight.isfinite().all()
        # a NaN of the activation's own, too, lets the gradient through
        masked, sums = OPS.activation_bwd(
            torch.ones(1, 2, 2, 32), torch.full((1, 2, 2, 32), float("nan")), 0.0
        )
        assert bool((masked == 1).all())
        assert bool((sums == 4).all())


@pytest.mark.parametrize("channels", [1, 3, 32, 5])
def test_sums_of_a_gradient_are_exact_to_rounding(channels):
    grad = torch.rand(33, 7, 9, channels, generator=torch.Generator().manual_seed(1))
    none, sums = OPS.activation_bwd(grad, None, None)
    assert none.shape == (0,)
    exact = grad.double().sum((0, 1, 2))
    assert error(sums, exact) < 2 * EPS


def test_only_what_is_wanted():
    x, weight, _, grad = (
        channels_last(t) if t.ndim == 4 else t for t in layer(*PAIRS[0], transposed=False, slope=0.0, batch=4)
    )
    both = OPS.convolution_bwd(grad, x, weight, False, 0.0, True, True, False)
    nothing, grad_weight, no_sums = OPS.convolution_bwd(grad, x, weight, False, 0.0, False, True, False)
    assert nothing.shape == no_sums.shape == (0,)
    assert torch.equal(grad_weight, both[1])
    grad_x, nothing, sums = OPS.convolution_bwd(grad, x, weight, False, 0.0, True, False, False)
    assert nothing.shape == (0,)
    assert torch.equal(grad_x, both[0])
    assert torch.equal(sums, both[2])


def test_no_images():
    x, weight, bias, grad = layer(*PAIRS[0], transposed=False, slope=0.0, batch=0)
    own = channels_last(x), channels_last(weight)
    assert OPS.convolution_fwd(*own, bias, False, 0.0, False).shape == (0, 4, 4, 32)
    grad_x, grad_weight, sums = OPS.convolution_bwd(channels_last(grad), *own, False, 0.0, True, True, False)
    assert grad_x.shape == own[0].shape
    assert not grad_weight.any()
    assert not sums.any()


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
        OPS.convolution_fwd(torch.zeros(x), torch.zeros(weight), None, False, None, False)


def test_a_gradient_of_another_shape_is_refused():
    x, weight = torch.zeros(2, 8, 8, 32), torch.zeros(32, 4, 4, 32)
    with pytest.raises(RuntimeError, match="grad: wrong size 1 of dimension 0"):
        OPS.convolution_bwd(torch.zeros(1, 4, 4, 32), x, weight, False, None, True, True, False)


def test_processors_are_asked_for_what_they_have(level):
    assert level(1) == 1
    with pytest.raises(RuntimeError, match="bf16: this processor has no instructions"):
        OPS.convolution_fwd(torch.zeros(1, 8, 8, 32), torch.zeros(32, 4, 4, 32), None, False, None, True)
    assert level(0) == 0
    with pytest.raises(RuntimeError, match="none for this processor or compiler"):
        OPS.convolution_fwd(torch.zeros(1, 8, 8, 32), torch.zeros(32, 4, 4, 32), None, False, None, False)


@pytest.mark.slow
def test_other_compilers_build_without(tmp_path):
    """What is not GCC on x86-64 gets operators that refuse, not a build that fails."""
    source = (ROOT / "csrc/cpu/convolution.cpp").read_text().replace("defined(__x86_64__) && ", "0 && ")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/convolution.cpp").write_text(source)
    for name in ("check.h", "common", "cpu/convolution"):
        (tmp_path / name).symlink_to(ROOT / "csrc" / name)
    from torch.utils.cpp_extension import include_paths

    flags = [f"-I{path}" for path in include_paths()]
    done = subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-fsyntax-only", *flags, str(tmp_path / "cpu/convolution.cpp")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "unused" not in done.stderr, done.stderr
