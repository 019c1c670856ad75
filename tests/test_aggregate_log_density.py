import itertools
import math

import pytest
import torch

import pyvae
from closeness import assert_as_near
from pyvae import reference
from pyvae.ops import aggregate_log_density as ops
from pyvae.ops.aggregate_log_density import aggregate_log_density


def posteriors(device, *shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    logvar = logvar - 1
    z = mu + (logvar / 2).exp() * noise
    return tuple(x.to(device, dtype).requires_grad_() for x in (z, mu, logvar))


def brute_force(z, mu, logvar, weights):
    """log q(z) and log prod q(z_j) from torch.distributions, one pair of images at a time; weights [B, B]."""
    batch, latents = z.shape
    joint, product = [], []
    for i in range(batch):
        density = torch.stack(
            [torch.distributions.Normal(mu[m], (logvar[m] / 2).exp()).log_prob(z[i]) for m in range(batch)]
        )
        joint.append((weights[i] * density.sum(1).exp()).sum().log())
        product.append(sum((weights[i] * density[:, j].exp()).sum().log() for j in range(latents)))
    return torch.stack(joint), torch.stack(product)


def weight_matrix(batch, size, weighting):
    if weighting == "mws":
        return torch.full((batch, batch), 1 / (size * batch), dtype=torch.float64)
    others = batch - 1
    w = torch.full((batch, batch), 1 / others, dtype=torch.float64)
    for i in range(batch):
        w[i, i] = 1 / size
        w[i, (i + 1) % batch] = (size - others) / (size * others)
    return w


@pytest.mark.parametrize("weighting", ["mws", "mss"])
def test_reference_equals_the_definition(weighting):
    z, mu, logvar = posteriors("cpu", 7, 3, dtype=torch.float64)
    expected = brute_force(z, mu, logvar, weight_matrix(7, 100, weighting))
    got = reference.aggregate_log_density(z, mu, logvar, dataset_size=100, weighting=weighting)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (2, 50), (4, 100), (64, 737_280)])
def test_stratified_rows_sum_to_one(batch, size):
    own, successor, other = (math.exp(w) for w in reference.aggregate_log_weights(batch, size, "mss"))
    assert own + successor + (batch - 2) * other == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("latents", [30, 200])
def test_many_latents_do_not_underflow(latents):
    """A sum of exponentials in float32, as in disentanglement-pytorch, is 0 there, and its logarithm -inf."""
    z, mu, logvar = (x.detach() for x in posteriors("cpu", 6, latents))
    z = z + 3  # far from every posterior
    got = aggregate_log_density(z, mu, logvar, dataset_size=737_280)
    pairs = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z[:, None]).sum(2)
    assert pairs.exp().sum(1).log().isinf().all()
    exact = reference.aggregate_log_density(*(x.double() for x in (z, mu, logvar)), dataset_size=737_280)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)


def test_stratified_estimate_is_unbiased():
    """Averaged over every minibatch that holds image 0, exp(log q(z_0)) is q(z_0) of the whole set: N = 6, M = 2."""
    size, others = 6, 2
    z, mu, logvar = posteriors("cpu", size, 2, dtype=torch.float64)
    density = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z[0]).sum(1).exp()
    estimates = []
    for rest in itertools.permutations(range(1, size), others):
        index = [0, *rest]
        log_q, _ = reference.aggregate_log_density(
            z[0].expand(3, -1), mu[index], logvar[index], dataset_size=size, weighting="mss"
        )
        estimates.append(log_q[0].exp())
    torch.testing.assert_close(torch.stack(estimates).mean(), density.mean())


def test_whole_set_weighted_is_the_aggregate_posterior_over_n():
    z, mu, logvar = posteriors("cpu", 30, 4, dtype=torch.float64)
    density = torch.distributions.Normal(mu[None], (logvar[None] / 2).exp()).log_prob(z[:, None]).sum(-1)
    exact = density.exp().mean(1).log()
    log_q, _ = reference.aggregate_log_density(z, mu, logvar, dataset_size=30)
    torch.testing.assert_close(log_q, exact - math.log(30))


def test_the_decomposition_adds_up_to_the_sampled_kl():
    z, mu, logvar = posteriors("cpu", 16, 5, dtype=torch.float64)
    normal = torch.distributions.Normal
    given = normal(mu, (logvar / 2).exp()).log_prob(z).sum(1)
    prior = normal(torch.zeros_like(z), 1.0).log_prob(z).sum(1)
    for weighting in ("mws", "mss"):
        joint, product = pyvae.aggregate_log_density(z, mu, logvar, dataset_size=999, weighting=weighting)
        parts = (given - joint).mean() + (joint - product).mean() + (product - prior).mean()
        assert parts.item() == pytest.approx((given - prior).mean().item(), abs=1e-10)


def test_one_latent_has_no_total_correlation():
    z, mu, logvar = posteriors("cpu", 9, 1, dtype=torch.float64)
    joint, product = pyvae.aggregate_log_density(z, mu, logvar, dataset_size=50, weighting="mss")
    torch.testing.assert_close(joint, product)


@pytest.mark.parametrize("weighting", ["mws", "mss"])
def test_gradcheck_and_the_written_backward(weighting):
    inputs = posteriors("cpu", 4, 3, dtype=torch.float64)
    weights = reference.aggregate_log_weights(4, 40, weighting)
    assert torch.autograd.gradcheck(
        lambda *x: reference.aggregate_log_density(*x, dataset_size=40, weighting=weighting), inputs
    )
    table = reference.aggregate_log_density_table(*inputs, weights)
    grad = torch.randn(table.shape, dtype=torch.float64)
    expected = torch.autograd.grad(table, inputs, grad)
    got = reference.aggregate_log_density_backward(
        grad, *(x.detach() for x in inputs), table.detach(), weights
    )
    torch.testing.assert_close(got, expected)


SHAPES = [(1, 1), (2, 1), (5, 3), (17, 10), (33, 2), (3, 9, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weighting", ["mws", "mss"])
def test_kernel_against_the_reference(device, fast_backend, shape, dtype, weighting):
    if weighting == "mss" and shape[-2] == 1:
        pytest.skip("needs two images")
    inputs = posteriors(device, *shape, dtype=dtype)
    exact_inputs = tuple(x.detach().double().requires_grad_() for x in inputs)
    options = {"dataset_size": 1000, "weighting": weighting}
    got = aggregate_log_density(*inputs, **options)
    plain = reference.aggregate_log_density(*inputs, **options)
    exact = reference.aggregate_log_density(*exact_inputs, **options)
    upstream = [torch.randn(exact[0].shape, dtype=torch.float64, device=device) for _ in range(2)]
    for name, *three in zip(("joint", "product"), got, plain, exact, strict=True):
        assert_as_near(*three, what=name, atol=1e-5)

    def gradients(outputs, of):
        return torch.autograd.grad(
            outputs, of, [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
        )

    three = zip(
        ("z", "mu", "logvar"),
        gradients(got, inputs),
        gradients(plain, inputs),
        gradients(exact, exact_inputs),
        strict=True,
    )
    for name, *gradient in three:
        assert_as_near(*gradient, what=name, atol=1e-4)


def assert_as_the_reference(inputs):
    """Results and gradients, against the reference in float64."""
    upstream = torch.linspace(-1, 2, inputs[0][..., 0].numel(), device=inputs[0].device)
    upstream = upstream.reshape(inputs[0].shape[:-1])
    exact_inputs = tuple(x.detach().double().requires_grad_() for x in inputs)
    options = {"dataset_size": 5000, "weighting": "mss"}
    got = aggregate_log_density(*inputs, **options)
    exact = reference.aggregate_log_density(*exact_inputs, **options)
    torch.testing.assert_close([g.double() for g in got], list(exact), rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(got[0] + 2 * got[1], inputs, upstream)
    gradients = torch.autograd.grad(exact[0] + 2 * exact[1], exact_inputs, upstream.double())
    torch.testing.assert_close([g.double() for g in found], list(gradients), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [70, 128, 300])
def test_kernel_over_several_tiles(device, fast_backend, rows):
    if rows > 70 and fast_backend == "triton" and str(device) == "cpu":
        pytest.skip("minutes of interpreting, and more tiles of the same kind")
    assert_as_the_reference(posteriors(device, rows, 2))


@pytest.mark.parametrize("latents", [1, 3, 10, 50, 128])
def test_latents_over_several_tiles(device, fast_backend, latents, monkeypatch):
    """Of the backward: two tiles by two, none of which is full; they are larger, since interpreting is slow."""
    monkeypatch.setattr(ops, "_TILE", (16, 16))
    assert_as_the_reference(posteriors(device, 19, latents))


@pytest.mark.parametrize("most", [(1, 1), (2, 3), (3, 2), (5, 1)], ids=str)
def test_programs_of_several_tiles(device, triton_backend, monkeypatch, most):
    """Where spans are fewer than tiles, a program adds to what it has written; members have their own partial sums."""
    monkeypatch.setattr(ops, "_ROW_SPANS", most[0])
    monkeypatch.setattr(ops, "_COLUMN_SPANS", most[1])
    monkeypatch.setattr(ops, "_TILE", (4, 8))
    found = ops.spans(19)
    assert (found.rows, found.columns) == (4, 8)
    assert (found.row_spans, found.column_spans) == (min(most[0], 5), min(most[1], 3))
    assert_as_the_reference(posteriors(device, 2, 19, 3))


@pytest.mark.parametrize("batch", [1, 2, 3, 64, 65, 2048, 2049, 16_384, 99_999])
def test_spans_cover_every_pair_once(batch):
    rows, columns, row_spans, column_spans, row_span, column_span = ops.spans(batch)
    assert row_span % rows == column_span % columns == 0
    assert (row_spans - 1) * row_span < batch <= row_spans * row_span
    assert (column_spans - 1) * column_span < batch <= column_spans * column_span
    assert row_spans <= 64
    assert column_spans <= 32
    assert batch != 64 or row_spans * column_spans == 32


def test_a_run_changes_no_bit(device, triton_backend):
    runs = []
    for _ in range(2):
        inputs = posteriors(device, 34, 2)
        joint, product = aggregate_log_density(*inputs, dataset_size=5000)
        runs.append([joint, product, *torch.autograd.grad((joint - 2 * product).sum(), inputs)])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_threads_change_no_bit(fast_backend):
    if fast_backend != "native":
        pytest.skip("of the compiled operator")
    inputs = posteriors("cpu", 2, 300, 3)
    found, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            joint, product = aggregate_log_density(*inputs, dataset_size=5000)
            found.append([joint, product, *torch.autograd.grad((joint - 2 * product).sum(), inputs)])
        finally:
            torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_densities_far_apart(device, fast_backend):
    """Posteriors thousands of nats apart: what is 0 beside another is no infinity, and the nearest one decides."""
    z = torch.tensor([[0.0, 0.0], [200.0, -150.0], [1e4, 1e4]], device=device)
    inputs = tuple(x.requires_grad_() for x in (z + 0.5, z.clone(), torch.full_like(z, -2.0)))
    exact_inputs = tuple(x.detach().double().requires_grad_() for x in inputs)
    got = aggregate_log_density(*inputs, dataset_size=30)
    exact = reference.aggregate_log_density(*exact_inputs, dataset_size=30)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)
    for a, b in zip(
        torch.autograd.grad(sum(x.sum() for x in got), inputs),
        torch.autograd.grad(sum(x.sum() for x in exact), exact_inputs),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2)


def test_samples_far_from_every_posterior(device, fast_backend):
    """Densities near -2^26 nats, where float32 steps from 4 to 8: the nearest posterior has weight 1, not e^4."""
    z = (2**13.5 + torch.arange(-16, 16) / 1024).reshape(-1, 1).to(device)
    mu = -4 * torch.arange(32.0, device=device).reshape(-1, 1)
    inputs = tuple(x.requires_grad_() for x in (z, mu, torch.zeros_like(z)))
    exact_inputs = tuple(x.detach().double().requires_grad_() for x in inputs)
    got = aggregate_log_density(*inputs, dataset_size=737_280)
    exact = reference.aggregate_log_density(*exact_inputs, dataset_size=737_280)
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)
        gradients = torch.autograd.grad(one.sum(), inputs, retain_graph=True)
        expected = torch.autograd.grad(other.sum(), exact_inputs, retain_graph=True)
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_densities_beyond_float32(device, fast_backend):
    z = torch.tensor([[0.5, 0.0], [1e25, 0.0], [0.5, -1e30]], device=device)
    got = aggregate_log_density(z, torch.zeros_like(z), torch.zeros_like(z), dataset_size=30)
    expected = reference.aggregate_log_density(z, torch.zeros_like(z), torch.zeros_like(z), dataset_size=30)
    for a, b in zip(got, expected, strict=True):
        assert torch.isfinite(b).tolist() == [True, False, False]
        torch.testing.assert_close(a, b)


def test_blocks_longer_than_the_shortest(fast_backend):
    if fast_backend != "native":
        pytest.skip("of the compiled operator")
    z, mu, logvar = (x.detach() for x in posteriors("cpu", 4133, 1))
    weights = reference.aggregate_log_weights(4133, 10_000, "mss")
    leaves = tuple(x.clone().requires_grad_() for x in (z, mu, logvar))
    joint, product = aggregate_log_density(*leaves, dataset_size=10_000, weighting="mss")
    upstream = torch.linspace(-1, 2, 4133)
    gradients = torch.autograd.grad(joint + 2 * product, leaves, upstream)
    exact_inputs = tuple(x.double() for x in (z, mu, logvar))
    table = reference.aggregate_log_density_table(*exact_inputs, weights)
    exact = reference.aggregate_log_density_backward(
        upstream.double()[:, None] * torch.tensor([2.0, 1.0]), *exact_inputs, table, weights
    )
    torch.testing.assert_close(joint.double(), table[:, 1], rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["chunked", "transposed", "expanded"])
def test_any_strides_give_the_same_bits(device, triton_backend, monkeypatch, layout, dtype):
    monkeypatch.setattr(ops, "_TILE", (4, 8))
    dense = [x.detach() for x in posteriors(device, 2, 9, 3, dtype=dtype)]
    if layout == "expanded":
        dense = [x[:1, :, :1].expand(2, 9, 3) for x in dense]
        strided = dense
    elif layout == "chunked":
        strided = torch.cat(dense, -1).chunk(3, -1)
    else:
        strided = [x.mT.contiguous().mT for x in dense]
    found = []
    for inputs in ([x.contiguous() for x in dense], strided):
        inputs = [x.requires_grad_() for x in inputs]
        joint, product = aggregate_log_density(*inputs, dataset_size=5000, weighting="mss")
        found.append([joint, product, *torch.autograd.grad((joint - 2 * product).sum(), inputs)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_rows_far_apart(device, triton_backend):
    """Offsets of 32 bits would not reach the last rows of a tile."""
    inputs = [x.detach() for x in posteriors(device, 5, 2)]
    wide = torch.empty(0, device="meta").as_strided((1, 5, 2), (0, 2**26, 1))
    (flat, *_), strides = ops._flat(wide, wide, *inputs)
    assert flat.is_contiguous()
    assert strides[:3] == [10, 2, 1]


def test_strided_inputs_and_needed_gradients(device, fast_backend):
    z, mu, logvar = posteriors(device, 6, 4)
    halves = torch.cat([mu, logvar], 1).detach().requires_grad_()
    got = aggregate_log_density(z.detach(), *halves.chunk(2, 1), dataset_size=60)
    expected = reference.aggregate_log_density(z.detach(), *halves.chunk(2, 1), dataset_size=60)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(sum(x.sum() for x in out), halves)[0] for out in (got, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "triton", "native"])
def test_registered_operator(device, monkeypatch, backend):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    inputs = posteriors(device, 3, 2)
    torch.library.opcheck(torch.ops.pyvae.aggregate_log_density.default, (*inputs, 30, "mss"))

    def loss(z, mu, logvar):
        joint, product = pyvae.aggregate_log_density(z, mu, logvar, dataset_size=30)
        return (joint - product).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), loss(*inputs), rtol=1e-6, atol=1e-6)
    got, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_wrong_arguments():
    z, mu, logvar = posteriors("cpu", 4, 2)
    with pytest.raises(ValueError, match=r"z: expected the shape of mu \[4, 2\], got \[3, 2\]"):
        pyvae.aggregate_log_density(z[:3], mu, logvar, dataset_size=10)
    with pytest.raises(TypeError, match="z: expected the dtype of mu"):
        pyvae.aggregate_log_density(z.double(), mu, logvar, dataset_size=10)
    with pytest.raises(ValueError, match="weighting: expected 'mws' or 'mss', got 'mwx'"):
        pyvae.aggregate_log_density(z, mu, logvar, dataset_size=10, weighting="mwx")
    with pytest.raises(ValueError, match="dataset_size: 3 is smaller than the batch of 4"):
        pyvae.aggregate_log_density(z, mu, logvar, dataset_size=3)
    with pytest.raises(ValueError, match="'mss' needs a batch of at least 2"):
        pyvae.aggregate_log_density(z[:1], mu[:1], logvar[:1], dataset_size=3, weighting="mss")
