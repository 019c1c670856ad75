"""bernoulli_nll: the reference against closed forms, the kernels against the reference."""

import math

import pytest
import torch

import pyvae
from closeness import assert_as_near
from pyvae import reference
from pyvae.ops.bernoulli_nll import block
from pyvae.reference import pack_bits, unpack_bits

REDUCTIONS = ("batchmean", "sum", "none")
TARGETS = ("float", "bfloat16", "bool", "uint8 1", "uint8 255", "bits")


def images(*shape, dtype=torch.float32, device="cpu"):
    """Logits of a wide range, and pixels that are 0 and 1."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    pixels = torch.rand(shape, generator=generator) < 0.3
    return logits.to(dtype).to(device).requires_grad_(), pixels.to(device)


def as_target(kind, pixels):
    """The target of a kind, its target_max, and what it means in float64."""
    gray = torch.linspace(0, 1, pixels.numel(), dtype=torch.float64).view(pixels.shape).to(pixels.device)
    if kind == "float":
        x = gray.float()
        return x, None, x.double()
    if kind == "bfloat16":
        x = gray.bfloat16()
        return x, None, x.double()
    if kind == "uint8 255":
        x = (gray * 255).round().to(torch.uint8)
        return x, 255, x.double() / 255
    if kind == "uint8 1":
        return pixels.to(torch.uint8), 1, pixels.double()
    if kind == "bits":
        return pack_bits(pixels.flatten(1)), None, pixels.double()
    return pixels, None, pixels.double()


def closed_form(logits, x, reduction):
    """-log p by hand in float64, and its gradient: neither calls what the library calls."""
    log_one = -torch.logaddexp(torch.zeros_like(logits), -logits)
    log_zero = -torch.logaddexp(torch.zeros_like(logits), logits)
    per_image = -(x * log_one + (1 - x) * log_zero).flatten(1).sum(1)
    reduced = {"none": per_image, "sum": per_image.sum(0), "batchmean": per_image.sum(0) / len(logits)}[
        reduction
    ]
    gradient = 1 / (1 + torch.exp(-logits)) - x
    return reduced, gradient / len(logits) if reduction == "batchmean" else gradient


def upstream(loss):
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(loss.shape, generator=generator, dtype=loss.dtype) + 2).to(loss.device)


def loss_and_gradient(op, logits, target, **options):
    loss = op(logits, target, **options)
    return loss, *torch.autograd.grad(loss, logits, upstream(loss))


def assert_near_closed_form(op, kind, logits, pixels, reduction, rtol):
    target, target_max, x = as_target(kind, pixels)
    loss, grad = loss_and_gradient(op, logits, target, reduction=reduction, target_max=target_max)
    exact, exact_grad = closed_form(logits.detach().double(), x, reduction)
    weight = upstream(loss).double()
    exact_grad = exact_grad * (weight.view(-1, *[1] * (logits.ndim - 1)) if reduction == "none" else weight)
    torch.testing.assert_close(loss.double(), exact, rtol=max(rtol / 10, 1e-12), atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol / 10)


def assert_kernel_near_reference(kind, logits, pixels, reduction="batchmean"):
    target, target_max, x = as_target(kind, pixels)
    options = {"reduction": reduction, "target_max": target_max}
    kernel = loss_and_gradient(pyvae.bernoulli_nll, logits, target, **options)
    same = loss_and_gradient(reference.bernoulli_nll, logits, target, **options)
    exact_logits = logits.detach().double().requires_grad_()
    loss = reference.bernoulli_nll(exact_logits, x, reduction=reduction)
    exact = (loss, *torch.autograd.grad(loss, exact_logits, upstream(kernel[0]).double()))
    for name, k, s, e in zip(("loss", "gradient"), kernel, same, exact, strict=True):
        assert_as_near(k, s, e, name, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_reference_is_minus_log_p(kind, reduction):
    logits, pixels = images(5, 3, 7, dtype=torch.float64)
    # uint8 / 255 and the float targets are exact in float64
    assert_near_closed_form(reference.bernoulli_nll, kind, logits, pixels, reduction, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_even_odds_on_64_by_64_pixels_cost_4096_ln_2(backend, monkeypatch, device):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    logits = torch.zeros(3, 1, 64, 64, device=device)
    target = torch.rand(3, 1, 64, 64).to(device)
    assert float(pyvae.bernoulli_nll(logits, target)) == pytest.approx(2839.1308, abs=2e-3)
    assert 4096 * math.log(2) == pytest.approx(2839.1308, abs=1e-4)


def test_gradcheck():
    logits, pixels = images(3, 5, dtype=torch.float64)
    target = as_target("float", pixels)[2]
    for reduction in REDUCTIONS:
        op = lambda x, r=reduction: reference.bernoulli_nll(x, target, reduction=r)  # noqa: E731
        assert torch.autograd.gradcheck(op, (logits,))
        assert torch.autograd.gradgradcheck(op, (logits,))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_closed_form_backward_is_the_gradient(kind, reduction):
    logits, pixels = images(5, 13, dtype=torch.float64)
    target, target_max, _ = as_target(kind, pixels)
    loss, expected = loss_and_gradient(
        reference.bernoulli_nll, logits, target, reduction=reduction, target_max=target_max
    )
    closed = reference.bernoulli_nll_backward(upstream(loss), logits, target, reduction, 1, target_max)
    torch.testing.assert_close(closed, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65])
def test_bits_are_eight_pixels_to_a_byte_the_first_in_the_lowest(n):
    pixels = torch.rand(3, 2, n) < 0.5
    packed = pack_bits(pixels)
    assert packed.shape == (3, 2, -(-n // 8))
    for byte in range(packed.shape[-1]):
        value = sum(int(pixels[1, 1, 8 * byte + i]) << i for i in range(min(8, n - 8 * byte)))
        assert int(packed[1, 1, byte]) == value
    assert torch.equal(unpack_bits(packed, n), pixels.to(torch.uint8))


def test_blocks_are_bytes_of_bits():
    for pixels in (1, 7, 63, 784, 4096, 12288, 2**20):
        size = block(pixels)
        assert size % 8 == 0
        assert size & (size - 1) == 0
        assert size <= 1024


@pytest.mark.usefixtures("fast_backend")
class TestKernels:
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("kind", TARGETS)
    def test_targets_by_reductions(self, device, kind, reduction):
        logits, pixels = images(3, 5, 13, device=device)
        assert_near_closed_form(pyvae.bernoulli_nll, kind, logits, pixels, reduction, 3e-6)

    @pytest.mark.parametrize("pixels", [1, 63, 65, 784, 4096, 3 * 64 * 64])
    @pytest.mark.parametrize("kind", ["float", "bits"])
    def test_sizes_of_the_image(self, device, kind, pixels):
        assert_kernel_near_reference(kind, *images(2, pixels, device=device))

    @pytest.mark.parametrize("batch", [1, 63, 65])
    @pytest.mark.parametrize("kind", ["float", "bits"])
    def test_sizes_of_the_batch(self, device, kind, batch):
        for reduction in REDUCTIONS:
            assert_kernel_near_reference(kind, *images(batch, 10, device=device), reduction)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", ["float", "bfloat16", "bits", "uint8 255"])
    def test_half_precision(self, device, dtype, kind):
        for shape in [(3, 65), (2, 784)]:
            assert_kernel_near_reference(kind, *images(*shape, dtype=dtype, device=device))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", TARGETS)
    @pytest.mark.parametrize("shape", [(b, e) for b in (1, 5, 65) for e in (1, 9, 784, 4097)])
    def test_everything_by_everything(self, device, dtype, kind, shape):
        for reduction in REDUCTIONS:
            assert_kernel_near_reference(kind, *images(*shape, dtype=dtype, device=device), reduction)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_an_empty_batch(self, device, reduction):
        logits, pixels = images(0, 5, device=device)
        loss, grad = loss_and_gradient(pyvae.bernoulli_nll, logits, pixels, reduction=reduction)
        assert grad.shape == (0, 5)
        if reduction == "none":
            assert loss.shape == (0,)
        else:
            assert torch.equal(loss.isnan(), torch.tensor(reduction == "batchmean", device=device))
        members, pixels = images(3, 0, 5, device=device)
        assert pyvae.bernoulli_nll(members, pixels, event_dims=1).shape == (3,)

    def test_layouts(self, device):
        logits, pixels = images(2, 3, 4, 6, device=device)
        x = pixels.float()
        expected = loss_and_gradient(pyvae.bernoulli_nll, logits, x, reduction="none")
        halves = torch.cat([logits, logits], -1).chunk(2, -1)[1]
        every_other = x.repeat_interleave(2, -1)[..., ::2]
        views = [
            (logits.contiguous(memory_format=torch.channels_last), x),
            (logits, x.contiguous(memory_format=torch.channels_last)),
            (logits.contiguous(memory_format=torch.channels_last), pixels),
            (logits.mT.contiguous().mT, every_other),
            (halves, x),
            (logits.repeat_interleave(2, 0)[::2], x.repeat_interleave(3, 0)[::3]),
        ]
        for i, (view, target) in enumerate(views):
            got = loss_and_gradient(
                pyvae.bernoulli_nll, view.detach().requires_grad_(), target, reduction="none"
            )
            assert torch.equal(got[0], expected[0]), i
            assert torch.equal(got[1], expected[1]), i

    def test_expanded_inputs(self, device):
        logits, pixels = images(4, 9, device=device)
        for lg, target in [
            (logits[:1].expand(4, 9), pixels),
            (logits, pixels[:1].expand(4, 9)),
            (logits, pack_bits(pixels)[:1].expand(4, 2)),
            (logits[:1, :1].expand(4, 9), pixels[:1, :1].float().expand(4, 9)),
        ]:
            got = loss_and_gradient(pyvae.bernoulli_nll, lg.detach().requires_grad_(), target)
            want = loss_and_gradient(
                pyvae.bernoulli_nll, lg.detach().clone().requires_grad_(), target.clone()
            )
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])

    def test_offsets_beyond_31_bits(self, device):
        logits, pixels = images(3, 3, 9, device=device, dtype=torch.bfloat16)
        # gigabytes of which only a few pages are ever touched
        base = torch.empty(0, dtype=torch.bfloat16, device=device).resize_(2**31 + 256)
        bytes_ = torch.empty(0, dtype=torch.uint8, device=device).resize_(2**31 + 256)
        expected = loss_and_gradient(pyvae.bernoulli_nll, logits, pixels, event_dims=1)
        for strides in [(2**30, 16, 1), (48, 2**30, 1)]:
            far = base.as_strided(logits.shape, strides).copy_(logits.detach())
            far_pixels = bytes_.as_strided(logits.shape, strides).copy_(pixels)
            got = loss_and_gradient(
                pyvae.bernoulli_nll, far.detach().requires_grad_(), far_pixels, event_dims=1, target_max=1
            )
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])

    @pytest.mark.gpu
    @pytest.mark.slow
    def test_more_than_two_to_the_31_elements(self, device):
        batch, pixels = 2**19 + 5, 4096
        one = torch.randn(1, pixels, device=device, dtype=torch.float16)
        logits = one.expand(batch, pixels).contiguous().requires_grad_()
        target = pack_bits(torch.rand(batch, pixels, device=device) < 0.5)
        loss, grad = loss_and_gradient(pyvae.bernoulli_nll, logits, target, reduction="none")
        for rows in (slice(0, 3), slice(2**19 - 2, batch)):
            part = logits.detach()[rows].clone().requires_grad_()
            expected = reference.bernoulli_nll(part, target[rows], reduction="none")
            (expected_grad,) = torch.autograd.grad(expected, part, upstream(loss)[rows])
            torch.testing.assert_close(loss[rows], expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(grad[rows], expected_grad, rtol=2e-3, atol=1e-6)

    def test_members(self, device):
        logits, pixels = images(2, 3, 4, 1, 3, 3, device=device)
        packed = pack_bits(pixels.flatten(3))
        gray = torch.rand(4, 1, 3, 3, device=device)
        targets = {
            "own": (pixels, lambda i, j: pixels[i, j]),
            "own bits": (packed, lambda i, j: pixels[i, j]),
            "those of the inner members": (pixels[0], lambda i, j: pixels[0, j]),
            "bits of the inner members": (packed[0], lambda i, j: pixels[0, j]),
            "of all": (gray, lambda i, j: gray),
            "bits of all": (packed[0, 0], lambda i, j: pixels[0, 0]),
            "unflattened bits": (packed[0, 0].view(4, 1, 2), lambda i, j: pixels[0, 0]),
        }
        for name, (target, alone) in targets.items():
            for reduction in REDUCTIONS:
                options = {"reduction": reduction, "event_dims": 3}
                loss, grad = loss_and_gradient(pyvae.bernoulli_nll, logits, target, **options)
                assert loss.shape == ((2, 3, 4) if reduction == "none" else (2, 3))
                for i in range(2):
                    for j in range(3):
                        member = logits[i, j].detach().double().requires_grad_()
                        exact = reference.bernoulli_nll(member, alone(i, j), reduction=reduction)
                        (exact_grad,) = torch.autograd.grad(exact, member, upstream(loss)[i, j].double())
                        torch.testing.assert_close(loss[i, j].double(), exact, rtol=1e-6, atol=0, msg=name)
                        torch.testing.assert_close(grad[i, j].double(), exact_grad, rtol=1e-5, atol=1e-6)

    def test_expanded_upstream_gradients(self, device):
        logits, pixels = images(2, 5, 9, device=device)
        for reduction, shape in [("none", (2, 1)), ("none", (1, 5)), ("sum", (1,)), ("batchmean", (1,))]:
            weight = torch.randn(shape, device=device)
            options = {"reduction": reduction, "event_dims": 1}
            loss = pyvae.bernoulli_nll(logits, pixels, **options)
            (grad,) = torch.autograd.grad(loss, logits, weight.expand_as(loss))
            exact = logits.detach().double().requires_grad_()
            loss = reference.bernoulli_nll(exact, pixels, **options)
            (expected,) = torch.autograd.grad((loss * weight).sum(), exact)
            torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-7)

    def test_confident_logits(self, device):
        for size in (100.0, 1e4):
            logits = torch.tensor([[size, size, -size, -size, size, -size]], device=device).requires_grad_()
            target = torch.tensor([[1.0, 0, 0, 1, 0.25, 0.25]], device=device)
            per_pixel = [pyvae.bernoulli_nll(logits[:, i : i + 1], target[:, i : i + 1]) for i in range(6)]
            small = math.exp(-size)
            expected = [small, size, small, size, 0.75 * size, 0.25 * size]
            assert [float(loss.detach()) for loss in per_pixel] == pytest.approx(
                expected, rel=1e-6, abs=1e-38
            )
            (grad,) = torch.autograd.grad(pyvae.bernoulli_nll(logits, target), logits)
            expected = [-small, 1, small, -1, 0.75, -0.25]
            assert grad[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-38)

    def test_a_confident_right_answer_keeps_its_digits(self, device):
        logits = torch.tensor([[20.0, -20.0, 12.0, -12.0]], device=device).requires_grad_()
        target = torch.tensor([[1.0, 0.0, 1.0, 0.0]], device=device)
        loss, grad = loss_and_gradient(pyvae.bernoulli_nll, logits, target, reduction="sum")
        tails = [1 / (1 + math.exp(20)), 1 / (1 + math.exp(12))]
        weight = float(upstream(loss))
        expected = [-tails[0] * weight, tails[0] * weight, -tails[1] * weight, tails[1] * weight]
        assert grad[0].tolist() == pytest.approx(expected, rel=1e-5)
        exact = 2 * (math.log1p(math.exp(-20)) + math.log1p(math.exp(-12)))
        assert float(loss.detach()) == pytest.approx(exact, rel=1e-5)

    def test_bit_for_bit_from_run_to_run(self, device):
        logits, pixels = images(3, 4097, device=device)
        first, second = (loss_and_gradient(pyvae.bernoulli_nll, logits, pixels) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])

    @pytest.mark.parametrize("kind", TARGETS)
    def test_inputs_are_not_written_to(self, device, kind):
        logits, pixels = images(3, 13, device=device)
        target, target_max, _ = as_target(kind, pixels)
        before = logits.detach().clone(), target.clone()
        versions = logits._version, target._version
        loss_and_gradient(pyvae.bernoulli_nll, logits, target, target_max=target_max)
        assert torch.equal(logits, before[0])
        assert torch.equal(target, before[1])
        assert (logits._version, target._version) == versions


INFINITE = [  # logit, pixel, loss, gradient
    (math.inf, 1.0, 0.0, 0.0),
    (-math.inf, 0.0, 0.0, 0.0),
    (math.inf, 0.0, math.inf, 1.0),
    (-math.inf, 1.0, math.inf, -1.0),
    (math.inf, 0.25, math.inf, 0.75),
    (-math.inf, 0.25, math.inf, -0.25),
    (math.nan, 1.0, math.nan, math.nan),
    (math.nan, 0.0, math.nan, math.nan),
    (0.0, 1.0, math.log(2), -0.5),
]


def check_infinite(device, dtypes):
    """A certain answer is free where it is right, and infinitely dear elsewhere."""
    for dtype in dtypes:
        for kind in ("float", "bool", "uint8 1", "uint8 255", "bits"):
            rows = [row for row in INFINITE if kind == "float" or row[1] != 0.25]
            numbers = torch.tensor(rows, dtype=torch.float64, device=device)
            logits = numbers[:, :1].to(dtype).requires_grad_()
            pixels = numbers[:, 1:2]
            target, target_max = pixels.float(), None
            if kind != "float":
                target, target_max, _ = as_target("bits" if kind == "bits" else kind, pixels > 0)
            if kind == "uint8 255":
                target = (pixels * 255).to(torch.uint8)
            loss = pyvae.bernoulli_nll(logits, target, reduction="none", target_max=target_max)
            torch.testing.assert_close(loss.double(), numbers[:, 2], equal_nan=True, rtol=1e-6, atol=0)
            (grad,) = torch.autograd.grad(loss.sum(), logits)
            torch.testing.assert_close(grad[:, 0].double(), numbers[:, 3], equal_nan=True)
            # beside pixels that are not certain
            beside = torch.tensor([[math.inf, 2.0, -math.inf]], dtype=dtype, device=device)
            value = pyvae.bernoulli_nll(beside, torch.tensor([[1.0, 0.0, 0.0]], device=device))
            assert float(value) == pytest.approx(2 + math.log1p(math.exp(-2)), rel=1e-6)


def test_infinite_logits_of_the_reference(device, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    check_infinite(device, (torch.float32, torch.float64, torch.bfloat16))
    logits = torch.tensor([[math.inf, -math.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    _, push = torch.func.jvp(
        lambda t: pyvae.bernoulli_nll(t, x, reduction="sum"), (logits,), (torch.ones(1, 3),)
    )
    assert float(push.detach()) == pytest.approx(0 - 0.5 + 1 / (1 + math.exp(-1)))
    # curvature is that of the sigmoid: none at either end
    grad = torch.autograd.grad(pyvae.bernoulli_nll(logits, x), logits, create_graph=True)[0]
    (curvature,) = torch.autograd.grad(grad.sum(), logits)
    p = 1 / (1 + math.exp(-1))
    assert curvature[0].tolist() == pytest.approx([0.0, 0.0, p * (1 - p)])


def test_infinite_logits_of_the_kernels(device, fast_backend):
    check_infinite(device, (torch.float32, torch.float16))
