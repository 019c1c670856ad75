"""reparameterize_kl: the reference against closed forms, the kernels against the reference."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import pyvae
from closeness import assert_as_near
from pyvae import reference
from pyvae.ops.reparameterize_kl import tile
from pyvae.random import Stream, make_key, normal

KEY = make_key(42, 7)


def latents(*shape, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(sum(shape))
    mu = torch.randn(shape, generator=generator, dtype=torch.float64)
    logvar = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5
    return tuple(x.to(dtype).to(device).requires_grad_() for x in (mu, logvar))


def upstream(z, kl):
    """Gradients that are not 1, nor the same twice."""
    generator = torch.Generator().manual_seed(z.numel())
    grad_z = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    grad_kl = torch.randn(kl.shape, generator=generator, dtype=torch.float64) + 2
    return grad_z.to(z.dtype).to(z.device), grad_kl.to(kl.dtype).to(kl.device)


def outputs_and_gradients(op, mu, logvar, **options):
    z, kl = op(mu, logvar, **options)
    return (z, kl, *torch.autograd.grad((z, kl), (mu, logvar), upstream(z, kl)))


def assert_kernel_near_reference(mu, logvar, key):
    kernel = outputs_and_gradients(pyvae.reparameterize_kl, mu, logvar, key=key)
    same = outputs_and_gradients(reference.reparameterize_kl, mu, logvar, key=key)
    m, lv = (x.detach().double().requires_grad_() for x in (mu, logvar))
    z, kl = reference.reparameterize_kl(m, lv, key=key)
    grads = [g.double() for g in upstream(kernel[0], kernel[1])]
    exact = (z, kl, *torch.autograd.grad((z, kl), (m, lv), grads))
    for name, k, s, e in zip(("z", "kl", "grad_mu", "grad_logvar"), kernel, same, exact, strict=True):
        assert_as_near(k, s, e, name)


def test_kl_is_that_of_torch_distributions():
    mu, logvar = latents(33, 6, dtype=torch.float64)
    _, kl = reference.reparameterize_kl(mu, logvar, key=KEY)
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    torch.testing.assert_close(kl, expected.mean(0), rtol=1e-13, atol=1e-13)


def test_z_is_the_posterior_sample_of_the_contract():
    mu, logvar = latents(9, 6, dtype=torch.float64)
    z, _ = reference.reparameterize_kl(mu, logvar, key=KEY, stream=Stream.SECOND_BATCH)
    noise = normal(KEY, 9, 6, Stream.SECOND_BATCH, torch.float64)
    torch.testing.assert_close(z, mu + torch.exp(logvar / 2) * noise, rtol=1e-14, atol=0)


def test_a_standard_normal_posterior_is_the_noise_and_costs_nothing():
    zeros = torch.zeros(50, 3)
    z, kl = reference.reparameterize_kl(zeros, zeros, key=KEY)
    assert torch.equal(z, normal(KEY, 50, 3, Stream.POSTERIOR))
    assert kl.tolist() == [0, 0, 0]


def test_kl_of_a_collapsed_dimension_keeps_its_digits():
    logvar = torch.full((1, 1), 1e-3)
    _, kl = reference.reparameterize_kl(torch.zeros_like(logvar), logvar, key=KEY)
    # 1/2 (e^x - 1 - x) = x^2/4 + x^3/12 + x^4/48 + ...
    x = logvar.double()
    torch.testing.assert_close(kl.double(), (x**2 / 4 + x**3 / 12 + x**4 / 48)[0], rtol=2e-4, atol=0)


def test_gradcheck():
    mu, logvar = latents(4, 3, dtype=torch.float64)
    keyed = lambda m, lv: reference.reparameterize_kl(m, lv, key=KEY)  # noqa: E731
    assert torch.autograd.gradcheck(keyed, (mu, logvar))
    assert torch.autograd.gradgradcheck(keyed, (mu, logvar))


@pytest.mark.parametrize("used", ["both", "z", "kl"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)])
def test_the_closed_form_backward_is_the_gradient(used, shape):
    mu, logvar = latents(*shape, dtype=torch.float64)
    z, kl = reference.reparameterize_kl(mu, logvar, key=KEY)
    grad_z, grad_kl = upstream(z, kl)
    grad_z, grad_kl = (grad_z if used != "kl" else None), (grad_kl if used != "z" else None)
    loss = sum((y * g).sum() for y, g in ((z, grad_z), (kl, grad_kl)) if g is not None)
    expected = torch.autograd.grad(loss, (mu, logvar))
    closed = reference.reparameterize_kl_backward(grad_z, grad_kl, mu, logvar, KEY, Stream.POSTERIOR)
    torch.testing.assert_close(closed, expected, rtol=1e-12, atol=1e-14)


def test_tiles_hold_whole_counters_and_about_a_thousand_elements():
    for batch in (1, 2, 63, 64, 10_000):
        for width in (1, 4, 10, 128, 130, 4096):
            rows, columns = tile(batch, width)
            assert columns % 4 == 0
            assert rows & (rows - 1) == columns & (columns - 1) == 0
            assert rows * columns <= 1024
            assert rows < 2 * batch


@pytest.mark.usefixtures("fast_backend")
class TestKernels:
    @pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 10, 16, 31, 33, 64, 65, 127, 128, 129, 130])
    def test_widths(self, device, width):
        assert_kernel_near_reference(*latents(5, width, device=device), KEY.to(device))

    @pytest.mark.parametrize("batch", [1, 63, 65])
    @pytest.mark.parametrize("width", [1, 10, 33])
    def test_batches(self, device, batch, width):
        assert_kernel_near_reference(*latents(batch, width, device=device), KEY.to(device))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(1, 1), (5, 10), (63, 33), (3, 128)])
    def test_half_precision(self, device, dtype, shape):
        assert_kernel_near_reference(*latents(*shape, dtype=dtype, device=device), KEY.to(device))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(b, d) for b in (1, 2, 63, 64, 65, 257) for d in (1, 3, 10, 65, 130)])
    def test_batches_by_widths(self, device, dtype, shape):
        assert_kernel_near_reference(*latents(*shape, dtype=dtype, device=device), KEY.to(device))

    @pytest.mark.parametrize("seed", [(-3, 2**33 + 5), (2**63 - 1, -1)])
    def test_keys_of_all_bits(self, device, seed):
        assert_kernel_near_reference(*latents(5, 6, device=device), make_key(*seed, device=device))

    def test_small_and_large_variances(self, device):
        """The two branches of e^x - 1 - x, and their border at 1/2."""
        logvar = torch.tensor([-30, -3, -0.51, -0.5, -0.49, -1e-3, 0, 1e-6, 1e-3, 0.49, 0.5, 0.51, 3, 20.0])
        logvar = logvar[None].to(device).requires_grad_()
        mu = torch.zeros_like(logvar, requires_grad=True)
        _, kl = pyvae.reparameterize_kl(mu, logvar, key=KEY.to(device))
        (grad,) = torch.autograd.grad(kl.sum(), logvar)
        x = logvar.detach().double()[0].cpu()
        series = x**2 / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120
        exact = torch.where(x.abs() < 0.01, series, torch.expm1(x) - x) / 2
        torch.testing.assert_close(kl.double().cpu(), exact, rtol=2e-6, atol=0)
        torch.testing.assert_close(grad.double().cpu()[0], torch.expm1(x) / 2, rtol=2e-6, atol=0)

    def test_an_empty_batch(self, device):
        for shape in [(0, 10), (2, 0, 3), (0, 4, 3)]:
            mu, logvar = latents(*shape, device=device)
            z, kl, grad_mu, grad_logvar = outputs_and_gradients(
                pyvae.reparameterize_kl, mu, logvar, key=KEY.to(device)
            )
            assert z.shape == grad_mu.shape == grad_logvar.shape == shape
            assert kl.shape == (*shape[:-2], shape[-1])
            assert bool(kl.isnan().all())

    @pytest.mark.parametrize(
        "layout",
        {
            "halves": lambda x, y: torch.cat([x, y], -1).chunk(2, -1),
            "transposed": lambda x, y: (x.mT.contiguous().mT, y.mT.contiguous().mT),
            "every other": lambda x, y: (
                x.repeat_interleave(2, -1)[..., ::2],
                y.repeat_interleave(3, -2)[::3],
            ),
            "one row": lambda x, y: (x[:1].expand_as(x), y),
            "one column": lambda x, y: (x, y[:, :1].expand_as(y)),
            "one element": lambda x, y: (x[:1, :1].expand_as(x), y[:1, :1].expand_as(y)),
            "offset": lambda x, y: (torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x), y),
        }.items(),
        ids=lambda item: item[0],
    )
    def test_layouts(self, device, layout):
        mu, logvar = (x.detach().requires_grad_() for x in layout[1](*latents(7, 6, device=device)))
        dense = [
            x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in (mu, logvar)
        ]
        key = KEY.to(device)
        strided = outputs_and_gradients(pyvae.reparameterize_kl, mu, logvar, key=key)
        expected = outputs_and_gradients(pyvae.reparameterize_kl, *dense, key=key)
        for got, want in zip(strided, expected, strict=True):
            assert torch.equal(got, want)

    @pytest.mark.parametrize("strides", [(2**30, 4, 1), (8, 2**30, 1), (8, 1, 2**30)])
    def test_offsets_beyond_31_bits(self, device, strides):
        # 4 GiB of which only a few pages are ever touched
        base = torch.empty(0, dtype=torch.bfloat16, device=device).resize_(2**31 + 64)
        shape = (3, 3, 3) if strides[0] > 8 else (1, 3, 3)
        mu, logvar = (base.as_strided(shape, strides, offset) for offset in (0, 17))
        dense = [x.detach() for x in latents(*shape, dtype=torch.bfloat16, device=device)]
        mu.copy_(dense[0])
        logvar.copy_(dense[1])
        key = KEY.to(device)
        views = outputs_and_gradients(
            pyvae.reparameterize_kl, mu.detach().requires_grad_(), logvar.detach().requires_grad_(), key=key
        )
        expected = outputs_and_gradients(
            pyvae.reparameterize_kl, *(x.clone().requires_grad_() for x in dense), key=key
        )
        for got, want in zip(views, expected, strict=True):
            assert torch.equal(got, want)

    @pytest.mark.gpu
    @pytest.mark.slow
    def test_more_than_two_to_the_31_elements(self, device):
        shape = (4, 2**22 + 3, 130)
        mu, logvar = (
            x.detach().expand(shape) for x in latents(4, 1, 130, dtype=torch.float16, device=device)
        )
        keys = torch.stack([make_key(3, step, device) for step in range(4)])
        z, kl = pyvae.reparameterize_kl(mu, logvar, key=keys)
        for member in (0, 3):
            alone = pyvae.reparameterize_kl(mu[member], logvar[member], key=keys[member])
            assert torch.equal(z[member], alone[0])
            # torch adds the partial sums, and may cut so many otherwise for another number of columns
            torch.testing.assert_close(kl[member], alone[1], rtol=1e-5, atol=1e-6)
        rows = 2**20
        expected, _ = reference.reparameterize_kl(mu[3, :rows], logvar[3, :rows], key=keys[3])
        torch.testing.assert_close(z[3, :rows], expected, rtol=2e-3, atol=2e-3)

    def test_expanded_upstream_gradients(self, device):
        mu, logvar = latents(7, 6, device=device)
        m, lv = (x.detach().double().requires_grad_() for x in (mu, logvar))
        key = KEY.to(device)
        for grad_z, grad_kl in [((1, 1), (1,)), ((7, 1), (6,)), ((1, 6), (1,))]:
            a, b = torch.randn(grad_z, device=device), torch.randn(grad_kl, device=device)
            z, kl = pyvae.reparameterize_kl(mu, logvar, key=key)
            grads = torch.autograd.grad((z, kl), (mu, logvar), (a.expand_as(z), b.expand_as(kl)))
            z, kl = reference.reparameterize_kl(m, lv, key=key)
            exact = torch.autograd.grad((z * a).sum() + (kl * b).sum(), (m, lv))
            torch.testing.assert_close([g.double() for g in grads], list(exact), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("used", ["z", "kl"])
    def test_one_output_used(self, device, used):
        mu, logvar = latents(7, 6, device=device)
        m, lv = (x.detach().double().requires_grad_() for x in (mu, logvar))
        key = KEY.to(device)
        which = ("z", "kl").index(used)
        y = pyvae.reparameterize_kl(mu, logvar, key=key)[which]
        grads = torch.autograd.grad(y.square().sum(), (mu, logvar))
        y = reference.reparameterize_kl(m, lv, key=key)[which]
        exact = torch.autograd.grad(y.square().sum(), (m, lv))
        torch.testing.assert_close([g.double() for g in grads], list(exact), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("learned", [0, 1])
    def test_an_input_without_gradient(self, device, learned):
        both = latents(7, 6, device=device)
        key = KEY.to(device)
        expected = outputs_and_gradients(pyvae.reparameterize_kl, *both, key=key)[2 + learned]
        inputs = [x if i == learned else x.detach() for i, x in enumerate(both)]
        z, kl = pyvae.reparameterize_kl(*inputs, key=key)
        returned = []
        z.grad_fn.register_hook(lambda grad_inputs, grad_outputs: returned.extend(grad_inputs))
        torch.autograd.backward((z, kl), upstream(z, kl))
        assert torch.equal(inputs[learned].grad, expected)
        assert torch.equal(returned[learned], expected)
        assert returned[1 - learned] is None

    def test_a_graph_that_is_kept_gives_its_gradients_twice(self, device):
        mu, logvar = latents(7, 6, device=device)
        z, kl = pyvae.reparameterize_kl(mu, logvar, key=KEY.to(device))
        first, second = (
            torch.autograd.grad((z, kl), (mu, logvar), upstream(z, kl), retain_graph=True) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_no_graph_where_none_is_asked_for(self, device):
        mu, logvar = latents(7, 6, device=device)
        with torch.no_grad():
            z, kl = pyvae.reparameterize_kl(mu, logvar, key=KEY.to(device))
        assert not z.requires_grad
        assert not kl.requires_grad
        assert torch.equal(z, pyvae.reparameterize_kl(mu, logvar, key=KEY.to(device))[0])

    def test_bit_for_bit_from_run_to_run(self, device):
        mu, logvar = latents(65, 130, device=device)
        first, second = (
            outputs_and_gradients(pyvae.reparameterize_kl, mu, logvar, key=KEY.to(device)) for _ in range(2)
        )
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)

    def test_inputs_are_not_written_to(self, device):
        inputs = [*(x.detach() for x in latents(7, 6, device=device)), KEY.to(device)]
        before = [x.clone() for x in inputs]
        versions = [x._version for x in inputs]
        mu, logvar = (x.requires_grad_() for x in inputs[:2])
        outputs_and_gradients(pyvae.reparameterize_kl, mu, logvar, key=inputs[2])
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
        assert [x._version for x in inputs] == versions


@pytest.fixture(params=["reference", "triton"])
def backend(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("PYVAE_BACKEND", request.param)
    return request.param


@pytest.mark.usefixtures("backend")
class TestKeys:
    def test_the_same_key_draws_the_same_and_another_does_not(self, device):
        zeros = torch.zeros(6, 5, device=device)
        draw = lambda *key, **options: pyvae.reparameterize_kl(  # noqa: E731
            zeros, zeros, key=make_key(*key, device=device), **options
        )[0]
        assert torch.equal(draw(1, 2), draw(1, 2))
        for other in (draw(1, 3), draw(2, 2), draw(1, 2, stream=Stream.SECOND_BATCH), draw(1 + 2**32, 2)):
            assert int((other == draw(1, 2)).sum()) == 0

    def test_torch_manual_seed_governs_no_key(self, device):
        zeros = torch.zeros(6, 5, device=device)
        torch.manual_seed(3)
        first, second = (pyvae.reparameterize_kl(zeros, zeros)[0] for _ in range(2))
        torch.manual_seed(3)
        assert torch.equal(pyvae.reparameterize_kl(zeros, zeros)[0], first)
        assert int((first == second).sum()) == 0

    def test_the_backward_draws_the_noise_of_the_forward_without_a_key(self, device):
        mu, logvar = latents(6, 5, device=device)
        z, _ = pyvae.reparameterize_kl(mu, logvar)
        grad_mu, grad_logvar = torch.autograd.grad(z.sum(), (mu, logvar))
        assert torch.equal(grad_mu, torch.ones_like(mu))
        torch.testing.assert_close(grad_logvar, (0.5 * (z - mu)).detach(), rtol=1e-4, atol=1e-5)

    def test_members_of_one_key_count_their_rows_on(self, device):
        mu, logvar = (x.detach() for x in latents(2, 3, 4, 5, device=device))
        key = KEY.to(device)
        z, kl = pyvae.reparameterize_kl(mu, logvar, key=key)
        flat, _ = pyvae.reparameterize_kl(mu.view(24, 5), logvar.view(24, 5), key=key)
        assert torch.equal(z.view(24, 5), flat)
        assert kl.shape == (2, 3, 5)
        torch.testing.assert_close(kl[1, 2], pyvae.reparameterize_kl(mu[1, 2], logvar[1, 2], key=key)[1])

    def test_members_of_their_own_keys_are_as_alone(self, device):
        mu, logvar = latents(2, 3, 4, 5, device=device)
        keys = torch.stack([make_key(8, step, device) for step in range(6)]).view(2, 3, 2)
        together = outputs_and_gradients(pyvae.reparameterize_kl, mu, logvar, key=keys)
        grads = upstream(*together[:2])
        for i in range(2):
            for j in range(3):
                m, lv = (x[i, j].detach().requires_grad_() for x in (mu, logvar))
                z, kl = pyvae.reparameterize_kl(m, lv, key=keys[i, j])
                alone = (z, kl, *torch.autograd.grad((z, kl), (m, lv), [g[i, j] for g in grads]))
                for a, b in zip(together, alone, strict=True):
                    torch.testing.assert_close(a[i, j], b, rtol=1e-6, atol=1e-7)
                assert torch.equal(together[0][i, j], z)

    def test_a_key_for_each_outer_member_is_shared_by_the_inner_ones(self, device):
        mu, logvar = (x.detach() for x in latents(2, 3, 4, 5, device=device))
        keys = torch.stack([make_key(8, step, device) for step in range(2)])
        z, _ = pyvae.reparameterize_kl(mu, logvar, key=keys)
        for i in range(2):
            assert torch.equal(z[i], pyvae.reparameterize_kl(mu[i], logvar[i], key=keys[i])[0])
        one, _ = pyvae.reparameterize_kl(mu, logvar, key=keys[:1])
        for i in range(2):
            assert torch.equal(one[i], pyvae.reparameterize_kl(mu[i], logvar[i], key=keys[0])[0])

    def test_a_strided_key(self, device):
        mu, logvar = (x.detach() for x in latents(2, 4, 5, device=device))
        keys = torch.stack([make_key(8, step, device) for step in range(4)])
        z, _ = pyvae.reparameterize_kl(mu, logvar, key=keys[::2])
        assert torch.equal(z, pyvae.reparameterize_kl(mu, logvar, key=keys[::2].clone())[0])
        transposed = keys[:2].T.contiguous().T
        assert torch.equal(
            pyvae.reparameterize_kl(mu, logvar, key=transposed)[0],
            pyvae.reparameterize_kl(mu, logvar, key=keys[:2])[0],
        )
