"""importance_log_weight: the reference against torch.distributions, the kernels against the reference."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import pyvae
from closeness import assert_as_near
from pyvae import reference
from pyvae.ops.importance_log_weight import block, columns, importance_log_parts
from pyvae.reference import pack_bits

NAMES = ("logits", "z", "mu", "logvar")
TARGETS = ("float", "bfloat16", "bool", "uint8 1", "uint8 255", "bits")


def model(*lead, sizes=(2, 3), latents=4, image=(9,), dtype=torch.float32, device="cpu"):
    """Logits, z, mu and logvar with gradients, and images: leading dimensions end with the batch, then come M and K."""
    generator = torch.Generator().manual_seed(sum(lead) + sum(sizes) + latents + sum(image))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mu, logvar = normal(*lead, latents), normal(*lead, latents) - 1
    spread = (logvar / 2).exp()[..., None, None, :]
    z = mu[..., None, None, :] + spread * normal(*lead, *sizes, latents)
    logits = 4 * normal(*lead, *sizes, *image)
    pixels = torch.rand((*lead, *image), generator=generator) < 0.3
    inputs = tuple(x.to(dtype).to(device).requires_grad_() for x in (logits, z, mu, logvar))
    return inputs, pixels.to(device)


def as_target(kind, pixels, event_dims=1):
    """The target of a kind, its target_max, and what it means in float64."""
    gray = torch.linspace(0, 1, pixels.numel(), dtype=torch.float64).view(pixels.shape).to(pixels.device)
    if kind in ("float", "bfloat16"):
        x = gray.float() if kind == "float" else gray.bfloat16()
        return x, None, x.double()
    if kind == "uint8 255":
        x = (gray * 255).round().to(torch.uint8)
        return x, 255, x.double() / 255
    if kind == "uint8 1":
        return pixels.to(torch.uint8), 1, pixels.double()
    if kind == "bits":
        return pack_bits(pixels.flatten(-event_dims)), None, pixels.double()
    return pixels, None, pixels.double()


def weight_and_gradients(op, inputs, target, **options):
    logits, z, mu, logvar = inputs
    log_w = op(logits, target, z, mu, logvar, **options)
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(log_w.shape, generator=generator, dtype=torch.float64).to(log_w)
    return log_w, *torch.autograd.grad(log_w, inputs, upstream)


def exactly(inputs):
    return tuple(x.detach().double().requires_grad_() for x in inputs)


def assert_kernel_near_reference(inputs, target, target_max=None, exact_target=None):
    options = {"target_max": target_max}
    kernel = weight_and_gradients(pyvae.importance_log_weight, inputs, target, **options)
    same = weight_and_gradients(reference.importance_log_weight, inputs, target, **options)
    if exact_target is not None:
        target, options = exact_target, {}
    exact = weight_and_gradients(reference.importance_log_weight, exactly(inputs), target, **options)
    for name, k, s, e in zip(("log w", *NAMES), kernel, same, exact, strict=True):
        assert_as_near(k, s, e, name, atol=1e-6)


@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_the_reference_is_the_definition(lead):
    inputs, pixels = model(*lead, image=(2, 3), dtype=torch.float64)
    logits, z, mu, logvar = inputs
    got = weight_and_gradients(reference.importance_log_weight, inputs, pixels)

    def definition(logits, x, z, mu, logvar):
        log_p_x = Bernoulli(logits=logits).log_prob(x.double()[..., None, None, :, :]).sum((-2, -1))
        log_p_z = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        scale = (logvar / 2).exp()[..., None, None, :]
        return log_p_x + log_p_z - Normal(mu[..., None, None, :], scale).log_prob(z).sum(-1)

    expected = weight_and_gradients(definition, inputs, pixels)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    parts = reference.importance_log_parts(logits, pixels, z, mu, logvar)
    log_p_x = Bernoulli(logits=logits).log_prob(pixels.double()[..., None, None, :, :]).sum((-2, -1))
    torch.testing.assert_close(parts[0], log_p_x, rtol=1e-11, atol=1e-12)
    assert got[0].shape == (*lead, 2, 3)


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_the_reference(kind):
    inputs, pixels = model(3, image=(3, 7), dtype=torch.float64)
    target, target_max, x = as_target(kind, pixels, 2)
    got = weight_and_gradients(reference.importance_log_weight, inputs, target, target_max=target_max)
    expected = weight_and_gradients(reference.importance_log_weight, inputs, x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gradcheck_and_the_written_backward():
    inputs, pixels = model(2, sizes=(2, 3), latents=2, image=(3,), dtype=torch.float64)
    x = as_target("float", pixels)[2]

    def op(logits, z, mu, logvar):
        return reference.importance_log_parts(logits, x, z, mu, logvar)

    assert torch.autograd.gradcheck(op, inputs)
    assert torch.autograd.gradgradcheck(op, inputs)
    parts = op(*inputs)
    grads = [torch.randn(p.shape, dtype=torch.float64) for p in parts]
    expected = torch.autograd.grad(parts, inputs, grads)
    logits, *latents = (t.detach() for t in inputs)
    got = reference.importance_log_weight_backward(*grads, logits, x, *latents, None)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_tiles():
    for pixels in (1, 7, 784, 4096, 2**20):
        size = block(pixels)
        assert size % 8 == 0
        assert size & (size - 1) == 0
        assert size <= 1024
    assert [columns(latents) for latents in (1, 10, 50, 128, 200)] == [1, 16, 64, 128, 128]


@pytest.mark.usefixtures("fast_backend")
class TestKernels:
    @pytest.mark.parametrize("kind", TARGETS)
    def test_targets(self, device, kind):
        inputs, pixels = model(3, latents=5, image=(5, 13), device=device)
        target, target_max, x = as_target(kind, pixels, 2)
        assert_kernel_near_reference(inputs, target, target_max, x)

    # B, (M, K), D, pixels: one of each, several blocks of samples, of latents and of pixels
    @pytest.mark.parametrize(
        ("batch", "sizes", "latents", "pixels"),
        [
            (1, (1, 1), 1, 1),
            (2, (1, 5), 10, 63),
            (3, (5, 1), 3, 65),
            (2, (3, 7), 130, 17),
            (2, (2, 1), 50, 2100),
            (1, (2, 3), 128, 1024),
        ],
    )
    @pytest.mark.parametrize("kind", ["float", "bits"])
    def test_sizes(self, device, kind, batch, sizes, latents, pixels):
        inputs, x = model(batch, sizes=sizes, latents=latents, image=(pixels,), device=device)
        target, _, exact = as_target(kind, x)
        assert_kernel_near_reference(inputs, target, exact_target=exact)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", ["float", "bfloat16", "bits", "uint8 255"])
    def test_half_precision(self, device, dtype, kind):
        inputs, pixels = model(2, sizes=(3, 2), latents=7, image=(65,), dtype=dtype, device=device)
        target, target_max, x = as_target(kind, pixels)
        assert_kernel_near_reference(inputs, target, target_max, x)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_logits_alone(self, device, dtype):
        """As a decoder under autocast gives them."""
        (logits, *latents), pixels = model(2, device=device)
        inputs = (logits.detach().to(dtype).requires_grad_(), *latents)
        assert_kernel_near_reference(inputs, pixels)
        log_w, *gradients = weight_and_gradients(pyvae.importance_log_weight, inputs, pixels)
        assert [g.dtype for g in (log_w, *gradients)] == [torch.float32, dtype, *[torch.float32] * 3]

    def test_members(self, device):
        inputs, pixels = model(2, 3, 2, sizes=(2, 1), image=(1, 3, 3), device=device)
        packed = pack_bits(pixels.flatten(3))
        targets = {
            "own": (pixels, lambda i, j: pixels[i, j]),
            "own bits": (packed, lambda i, j: pixels[i, j]),
            "those of the inner members": (pixels[0], lambda i, j: pixels[0, j]),
            "bits of all": (packed[0, 0], lambda i, j: pixels[0, 0]),
        }
        weight = torch.linspace(-1, 2, 24, device=device).view(2, 3, 2, 2, 1)
        for name, (target, alone) in targets.items():
            log_w = pyvae.importance_log_weight(inputs[0], target, *inputs[1:])
            assert log_w.shape == weight.shape
            got = torch.autograd.grad(log_w, inputs, weight)
            for i, j in [(0, 0), (1, 0), (0, 2), (1, 2)]:
                member = exactly(x[i, j] for x in inputs)
                exact = reference.importance_log_weight(member[0], alone(i, j), *member[1:])
                torch.testing.assert_close(log_w[i, j].double(), exact, rtol=1e-6, atol=1e-5, msg=name)
                expected = torch.autograd.grad(exact, member, weight[i, j].double())
                for a, b in zip(got, expected, strict=True):
                    torch.testing.assert_close(a[i, j].double(), b, rtol=1e-4, atol=1e-5, msg=name)

    def test_layouts(self, device):
        (logits, z, mu, logvar), pixels = model(2, image=(3, 4), device=device)
        plain = (logits, z, mu, logvar)
        x = pixels.float()
        expected = weight_and_gradients(pyvae.importance_log_weight, plain, x)
        heads = torch.cat([mu, logvar], -1).detach()
        views = [
            ((logits.mT.contiguous().mT, z, mu, logvar), x),
            ((logits.transpose(1, 2).contiguous().transpose(1, 2), z, mu, logvar), pixels),
            ((logits.repeat_interleave(2, 1)[:, ::2], z, mu, logvar), x.mT.contiguous().mT),
            ((logits, z.transpose(0, 2).contiguous().transpose(0, 2), mu, logvar), x),
            ((logits, z, *heads.chunk(2, -1)), x.repeat_interleave(3, 0)[::3]),
            ((logits, z, mu.mT.contiguous().mT, logvar.mT.contiguous().mT), x),
        ]
        for i, (inputs, target) in enumerate(views):
            leaves = tuple(t.detach().requires_grad_() for t in inputs)
            got = weight_and_gradients(pyvae.importance_log_weight, leaves, target)
            for name, a, b in zip(("log w", *NAMES), got, expected, strict=True):
                assert torch.equal(a, b), (i, name)

    def test_expanded_inputs_and_upstream_gradients(self, device):
        (logits, z, mu, logvar), pixels = model(3, device=device)
        inputs = tuple(
            x.detach().requires_grad_()
            for x in (
                logits[:1, :1].expand_as(logits),
                z[:, :, :1].expand_as(z),
                mu[:1].expand_as(mu),
                logvar,
            )
        )
        log_w = pyvae.importance_log_weight(inputs[0], pixels[:1].expand_as(pixels), *inputs[1:])
        weight = torch.tensor([[[2.0], [-1.0]]], device=device)
        got = torch.autograd.grad(log_w, inputs, weight.expand_as(log_w))
        exact = exactly(inputs)
        log_w = reference.importance_log_weight(exact[0], pixels[:1].expand_as(pixels), *exact[1:])
        expected = torch.autograd.grad((log_w * weight).sum(), exact)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)

    def test_each_part_has_its_own_gradient(self, device):
        inputs, pixels = model(3, device=device)
        logits, *latents = inputs
        parts = importance_log_parts(logits, pixels, *latents)
        whole = pyvae.importance_log_weight(logits, pixels, *latents)
        torch.testing.assert_close(sum(parts), whole, rtol=0, atol=0)
        expected = torch.autograd.grad(whole.sum(), inputs)
        first = torch.autograd.grad(parts[0].sum(), inputs, retain_graph=True)
        second = torch.autograd.grad(parts[1].sum(), inputs)
        assert torch.equal(first[0], expected[0])
        assert [int(g.count_nonzero()) for g in (*first[1:], second[0])] == [0, 0, 0, 0]
        for a, b in zip(second[1:], expected[1:], strict=True):
            assert torch.equal(a, b)

    def test_detached_posteriors_leave_the_gradient_of_z(self, device):
        (logits, z, mu, logvar), pixels = model(3, device=device)
        whole = pyvae.importance_log_weight(logits, pixels, z, mu, logvar).sum()
        stopped = pyvae.importance_log_weight(logits, pixels, z, mu.detach(), logvar.detach()).sum()
        assert torch.equal(whole, stopped)
        expected = torch.autograd.grad(whole, (logits, z))
        got = torch.autograd.grad(stopped, (logits, z, mu, logvar), allow_unused=True)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert got[2:] == (None, None)

    def test_confident_logits(self, device):
        (_, z, mu, logvar), _ = model(1, sizes=(1, 2), device=device)
        target = torch.tensor([[1.0, 0, 0, 1, 0.25, 0.25]], device=device)
        for size in (20.0, 100.0, 1e4):
            row = torch.tensor([size, size, -size, -size, size, -size], device=device)
            logits = torch.stack([row, row.flip(0)]).view(1, 1, 2, 6).requires_grad_()
            log_p, _ = importance_log_parts(logits, target, z, mu, logvar)
            exact = logits.detach().double().requires_grad_()
            expected = -torch.nn.functional.binary_cross_entropy_with_logits(
                exact, target.double().expand_as(exact), reduction="none"
            ).sum(-1)
            torch.testing.assert_close(log_p.double(), expected, rtol=1e-6, atol=0)
            (got,) = torch.autograd.grad(log_p.sum(), logits)
            # sigma(l) itself rounds to 1, its tail does not
            tail = torch.sigmoid(-exact.detach().abs())
            x = target.double().expand_as(exact)
            wanted = torch.where(exact > 0, tail - (1 - x), x - tail)
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-38)

    def test_a_confident_right_answer_keeps_its_digits(self, device):
        (_, z, mu, logvar), _ = model(1, sizes=(1, 2), device=device)
        logits = torch.tensor([[20.0, -20.0], [12.0, -12.0]], device=device).view(1, 1, 2, 2).requires_grad_()
        target = torch.tensor([[1.0, 0.0]], device=device)
        log_p, _ = importance_log_parts(logits, target, z, mu, logvar)
        exact = torch.tensor([[[-2 * math.log1p(math.exp(-size)) for size in (20, 12)]]])
        torch.testing.assert_close(log_p.cpu(), exact, rtol=1e-5, atol=0)

    def test_a_posterior_far_sharper_than_a_missing_sample_is_far(self, device):
        """Three samples in a tile of four: 0 times infinity must not come of the fourth."""
        (logits, _, mu, _), pixels = model(2, sizes=(1, 3), device=device)
        logvar = torch.full_like(mu, -140.0).requires_grad_()
        z = mu.detach()[:, None, None].expand(2, 1, 3, 4).clone().requires_grad_()
        log_w = pyvae.importance_log_weight(logits, pixels, z, mu, logvar)
        gradients = torch.autograd.grad(log_w.sum(), (z, mu, logvar))
        assert all(bool(g.isfinite().all()) for g in (log_w, *gradients))
        assert torch.equal(gradients[2], torch.full_like(logvar, 1.5))

    def test_a_posterior_that_is_the_prior_weighs_nothing(self, device):
        (logits, z, _, _), pixels = model(2, sizes=(2, 5), latents=7, device=device)
        zeros = torch.zeros(2, 7, device=device)
        _, log_ratio = importance_log_parts(logits, pixels, z, zeros, zeros)
        (grad_z,) = torch.autograd.grad(log_ratio.sum(), z)
        assert int(log_ratio.count_nonzero()) == int(grad_z.count_nonzero()) == 0

    def test_offsets_beyond_31_bits(self, device):
        (logits, z, mu, logvar), pixels = model(3, sizes=(1, 3), device=device)
        inputs = (logits.detach().bfloat16().requires_grad_(), z, mu, logvar)
        expected = weight_and_gradients(pyvae.importance_log_weight, inputs, pixels)
        # gigabytes of which only a few pages are ever touched
        base = torch.empty(0, dtype=torch.bfloat16, device=device).resize_(2**31 + 256)
        for strides in [(2**30, 0, 16, 1), (48, 0, 2**30, 1)]:
            far = base.as_strided(logits.shape, strides).copy_(inputs[0].detach())
            got = weight_and_gradients(
                pyvae.importance_log_weight, (far.requires_grad_(), *inputs[1:]), pixels
            )
            for a, b in zip(got, expected, strict=True):
                assert torch.equal(a, b)

    def test_bit_for_bit_from_run_to_run_and_nothing_is_written_to(self, device):
        inputs, pixels = model(2, image=(2100,), device=device)
        target = pack_bits(pixels)
        before = [x.detach().clone() for x in (*inputs, target)]
        versions = [x._version for x in (*inputs, target)]
        first, second = (weight_and_gradients(pyvae.importance_log_weight, inputs, target) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)
        for a, b in zip((*inputs, target), before, strict=True):
            assert torch.equal(a, b)
        assert [x._version for x in (*inputs, target)] == versions

    def test_an_empty_batch(self, device):
        inputs, pixels = model(0, device=device)
        log_w, *gradients = weight_and_gradients(pyvae.importance_log_weight, inputs, pixels)
        assert log_w.shape == (0, 2, 3)
        assert [g.shape for g in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("backend", ["reference", "triton", "native"])
def test_registered_operator(device, monkeypatch, backend):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    torch._dynamo.reset()
    (logits, z, mu, logvar), pixels = model(2, device=device)
    args = (logits, pack_bits(pixels), z, mu, logvar, None)
    torch.library.opcheck(torch.ops.pyvae.importance_log_weight.default, args)
    grads = (torch.randn(2, 2, 3, device=device), torch.randn((), device=device).expand(2, 2, 3))
    detached = tuple(x.detach() if torch.is_tensor(x) else x for x in args)
    torch.library.opcheck(torch.ops.pyvae.importance_log_weight_backward.default, (*grads, *detached))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["reference", "triton", "native"])
def test_compiled_equals_eager(device, monkeypatch, backend, dynamic):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    torch._dynamo.reset()
    compiled = torch.compile(
        pyvae.importance_log_weight, backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    for batch, sizes, pixels in [(2, (2, 3), 9), (3, (4, 1), 11)]:
        inputs, x = model(batch, sizes=sizes, image=(pixels,), device=device)
        got = weight_and_gradients(compiled, inputs, pack_bits(x))
        eager = weight_and_gradients(pyvae.importance_log_weight, inputs, pack_bits(x))
        for a, b in zip(got, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "triton", "native"])
def test_gradients_of_gradients_are_right_or_refused(device, monkeypatch, backend):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    inputs, pixels = model(2, device=device)

    def penalty(inputs):
        logits, *latents = inputs
        log_w = pyvae.importance_log_weight(logits, pixels, *latents)
        gradients = torch.autograd.grad(log_w.sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)

    if backend != "reference":
        with pytest.raises(RuntimeError, match="differentiate once"):
            penalty(inputs)
        return
    for a, b in zip(penalty(inputs), penalty(exactly(inputs)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_float64_of_either_is_float64_of_the_weight():
    (logits, z, mu, logvar), pixels = model(2)
    wide = [x.double() for x in (z, mu, logvar)]
    assert pyvae.importance_log_weight(logits.double(), pixels, z, mu, logvar).dtype == torch.float64
    assert pyvae.importance_log_weight(logits, pixels, *wide).dtype == torch.float64
    compiled = torch.compile(importance_log_parts, backend="aot_eager", fullgraph=True)
    likelihood, ratio = compiled(logits, pixels, *wide)
    assert (likelihood.dtype, ratio.dtype) == (torch.float32, torch.float64)


def test_wrong_arguments(monkeypatch):
    (logits, z, mu, logvar), pixels = model(5)

    def refused(error, match, **changed):
        arguments = {"logits": logits, "target": pixels, "z": z, "mu": mu, "logvar": logvar} | changed
        with pytest.raises(error, match=match):
            pyvae.importance_log_weight(**arguments)

    refused(
        ValueError, r"z: expected shape \[5, M, K, 4\] for mu of shape \[5, 4\], got \[5, 3, 4\]", z=z[:, 0]
    )
    refused(ValueError, r"z: expected shape \[5, M, K, 4\]", z=z[:3])
    refused(ValueError, r"z: expected shape \[5, M, K, 4\]", z=z[..., :3])
    refused(ValueError, "z: no importance sample", z=z[:, :0], logits=logits[:, :0])
    refused(
        ValueError,
        r"logits: expected shape \[5, 2, 3, \*image\], got \[5, 3, 2, 9\]",
        logits=logits.transpose(1, 2),
    )
    refused(ValueError, "logits: expected shape", logits=logits[:, 0, 0])
    refused(ValueError, "logvar: expected the shape of mu", logvar=logvar[:, :2])
    refused(ValueError, r"target: expected the shape of logits \[5, 9\], got \[4, 9\]", target=pixels[:4])
    refused(ValueError, "target: its gradient", target=pixels.float().requires_grad_())
    refused(ValueError, "packed bits of shape", target=pixels.to(torch.uint8)[:, :5])
    refused(ValueError, "target_max: expected 1 or 255", target=pixels.to(torch.uint8), target_max=3)
    refused(ValueError, "z is on meta", z=z.to("meta"))
    refused(ValueError, "logits is on meta", logits=logits.to("meta"))
    refused(TypeError, "z: expected the dtype of mu", z=z.half())
    refused(TypeError, "logits: expected a tensor", logits=[1.0])
    refused(TypeError, "logits: expected float32", logits=logits.int())
    monkeypatch.setenv("PYVAE_CHECK", "1")
    refused(ValueError, "holds NaN or infinity", mu=mu.detach() / 0)
    refused(ValueError, "values must lie in", target=pixels.float() * 2)


def check_infinite(device):
    """As bernoulli_nll has them, from each sample of an image alone."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[inf, -inf], [inf, inf], [nan, 0.0], [0.0, 0.0]], device=device)
    logits = logits.view(1, 2, 2, 2).requires_grad_()
    target = torch.tensor([[1.0, 0.0]], device=device)
    zeros = torch.zeros(1, 2, 2, 3, device=device)
    for x in (target, pack_bits(target)):
        log_w = pyvae.importance_log_weight(logits, x, zeros, zeros[:, 0, 0], zeros[:, 0, 0])
        expected = torch.tensor([0.0, -inf, nan, -2 * math.log(2)], device=device)
        torch.testing.assert_close(log_w.flatten(), expected, equal_nan=True)
        (grad,) = torch.autograd.grad(log_w.sum(), logits)
        expected = torch.tensor([[0.0, 0.0], [0.0, -1.0], [nan, -0.5], [0.5, -0.5]], device=device)
        torch.testing.assert_close(grad.view(4, 2), expected, equal_nan=True)


def test_infinite_logits_of_the_reference(device, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    check_infinite(device)


def test_infinite_logits_of_the_kernels(device, fast_backend):
    check_infinite(device)
