"""permute_dims and tc_batch: the permutation is that of the contract, uniform, and undone by the gradient."""

from itertools import pairwise

import pytest
import torch

from pyvae import reference
from pyvae.base import native
from pyvae.ops.permute_dims import permute_dims, tc_batch
from pyvae.random import Stream, bits, make_key

KEY = make_key(42, 7)
KEYS = torch.stack([make_key(1, 2), make_key(-5, 2**40)])
BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(native.load() is not None, reason=str(native.load()))),
]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", request.param)
    return request.param


def codes(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.usefixtures("backend")
class TestPermutation:
    @pytest.mark.parametrize("batch", [1, 2, 3, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 5000, 70_000])
    def test_is_the_stable_argsort_of_the_words(self, batch):
        z = codes(batch, 10)
        order = torch.argsort(bits(KEY, batch, 10, Stream.PERMUTATION), dim=0, stable=True)
        assert torch.equal(permute_dims(z, key=KEY), z.gather(0, order))

    @pytest.mark.parametrize("shape", [(4, 33, 7), (2, 3, 20, 5), (2, 0, 3), (0, 4, 3)])
    @pytest.mark.parametrize("key", [KEY, KEYS], ids=["one key", "keys"])
    def test_members(self, shape, key):
        if key.ndim == 2 and shape[0] != len(key):
            key = KEYS[:1].expand(shape[0], 2)
        z = codes(*shape)
        assert torch.equal(permute_dims(z, key=key), reference.permute_dims(z, key=key))

    def test_a_member_is_permuted_as_it_would_be_alone(self):
        z = codes(2, 40, 6)
        together = permute_dims(z, key=KEYS)
        for member in range(2):
            assert torch.equal(together[member], permute_dims(z[member], key=KEYS[member]))

    def test_columns_keep_their_values_bit_for_bit(self):
        z = codes(3, 300, 9)
        assert torch.equal(permute_dims(z).sort(-2).values, z.sort(-2).values)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtypes(self, dtype):
        z = codes(65, 10, dtype=dtype)
        out = permute_dims(z, key=KEY)
        assert out.dtype == dtype
        assert torch.equal(out, reference.permute_dims(z, key=KEY))

    def test_one_row_stays(self):
        z = codes(4, 1, 6)
        assert torch.equal(permute_dims(z), z)

    def test_layouts(self):
        z = codes(12, 6)
        expected = permute_dims(z, key=KEY)
        for view in (z.mT.contiguous().mT, z.repeat_interleave(2, -1)[:, ::2], torch.cat([z, z])[:12]):
            assert torch.equal(permute_dims(view, key=KEY), expected)

    def test_ties_go_by_row(self):
        """Keys whose words tie are too rare to look for: 20,000 rows of one column hold about 0.05 a key."""
        for seed in range(400):
            words = bits(make_key(seed), 20_000, 4, Stream.PERMUTATION)
            if any(len(w.unique()) < len(w) for w in words.unbind(1)):
                z = torch.arange(20_000.0)[:, None].expand(-1, 4)
                order = words.argsort(dim=0, stable=True)
                assert torch.equal(permute_dims(z, key=make_key(seed)), z.gather(0, order))
                return
        pytest.fail("no tie found")

    def test_ties_of_a_small_batch_go_by_row(self):
        key = make_key(942)  # the first whose 400 columns hold one
        words = bits(key, 128, 400, Stream.PERMUTATION)
        assert len(words[:, 237].unique()) == 127
        z = torch.arange(128.0)[:, None].expand(-1, 400)
        assert torch.equal(permute_dims(z, key=key), z.gather(0, words.argsort(dim=0, stable=True)))

    def test_the_stream_and_the_key_matter(self):
        z = codes(64, 10)
        outs = [
            permute_dims(z, key=KEY),
            permute_dims(z, key=make_key(42, 8)),
            permute_dims(z, key=KEY, stream=0),
        ]
        assert not any(torch.equal(a, b) for a, b in pairwise(outs))

    def test_manual_seed_governs_a_missing_key(self):
        z = codes(64, 10)
        torch.manual_seed(3)
        first, second = permute_dims(z), permute_dims(z)
        torch.manual_seed(3)
        assert torch.equal(permute_dims(z), first)
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("shape", [(5, 3), (2, 70, 6), (300, 2)])
    def test_gradient_is_that_of_the_gather(self, shape):
        z = codes(*shape, dtype=torch.float64).requires_grad_()
        grad = codes(*shape, dtype=torch.float64).flip(-2)
        (expected,) = torch.autograd.grad(reference.permute_dims(z, key=KEY), z, grad)
        (got,) = torch.autograd.grad(permute_dims(z, key=KEY), z, grad)
        assert torch.equal(got, expected)

    def test_gradcheck(self):
        z = codes(6, 3, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: permute_dims(x, key=KEY), z)
        assert torch.autograd.gradgradcheck(lambda x: permute_dims(x, key=KEY).square(), z)

    @pytest.mark.parametrize("shape", [(5, 3), (2, 70, 6)])
    def test_tc_batch(self, shape):
        z, z2 = (codes(*shape, dtype=torch.float64).requires_grad_() for _ in range(2))
        out = tc_batch(z, z2, key=KEY)
        assert torch.equal(out, torch.cat([z, reference.permute_dims(z2, key=KEY)], -2))
        grad = torch.randn_like(out)
        got = torch.autograd.grad(out, (z, z2), grad)
        expected = torch.autograd.grad(reference.tc_batch(z, z2, key=KEY), (z, z2), grad)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_tc_batch_of_one_that_needs_no_gradient(self):
        z, z2 = codes(5, 3), codes(5, 3).requires_grad_()
        (grad,) = torch.autograd.grad(tc_batch(z, z2, key=KEY).sum(), z2)
        assert torch.equal(grad, torch.ones_like(z2))
        (grad,) = torch.autograd.grad(tc_batch(z2, z, key=KEY).sum(), z2)
        assert torch.equal(grad, torch.ones_like(z2))

    def test_compiles_whole(self):
        z, z2 = (codes(2, 9, 5).requires_grad_() for _ in range(2))
        key = KEYS

        def batch(z, z2, key):
            return tc_batch(z, z2, key=key).square().sum() + permute_dims(z, key=key)[..., 0].sum()

        whole = torch.compile(batch, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(whole(z, z2, key), batch(z, z2, key))
        got = torch.autograd.grad(whole(z, z2, key), (z, z2))
        assert all(
            torch.equal(a, b)
            for a, b in zip(got, torch.autograd.grad(batch(z, z2, key), (z, z2)), strict=True)
        )

    @pytest.mark.parametrize("with_first", [True, False])
    def test_opcheck(self, with_first):
        z = codes(2, 9, 5).requires_grad_()
        first = codes(2, 9, 5).requires_grad_() if with_first else None
        torch.library.opcheck(torch.ops.pyvae.permute_dims.default, (first, z, KEYS, 1))


def test_func_transforms():
    z, weight = torch.randn(3, 5, 4), torch.randn(10, 4)
    keys = torch.stack([make_key(0, i) for i in range(3)])

    def loss(z, key):
        return (weight * tc_batch(z, z.exp(), key=key) ** 2).sum() + permute_dims(z, key=key)[0].sum()

    found = torch.func.vmap(torch.func.grad(loss))(z, keys)
    for i in range(3):
        leaf = z[i].clone().requires_grad_()
        torch.testing.assert_close(found[i], torch.autograd.grad(loss(leaf, keys[i]), leaf)[0])
    tangent = torch.randn(5, 4)
    _, slope = torch.func.jvp(lambda z: loss(z, keys[0]), (z[0],), (tangent,))
    torch.testing.assert_close(slope, (found[0] * tangent).sum(), rtol=1e-4, atol=1e-4)


def chi_square(counts):
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def orders(count, batch, columns):
    keys = torch.stack([torch.full((count,), 11), torch.arange(count)], -1)
    z = torch.arange(float(batch))[:, None].expand(count, batch, columns)
    return permute_dims(z, key=keys).long()


@pytest.mark.usefixtures("backend")
class TestDistribution:
    """Bounds at p = 1e-4 for a fixed set of keys; the draws do not change from run to run."""

    def test_all_permutations_of_four_rows_are_equally_likely(self):
        order = orders(24_000, 4, 3)
        place = torch.tensor([64, 16, 4, 1])
        for column in range(3):
            code = (order[..., column] * place).sum(-1)
            counts = torch.bincount(code, minlength=256).double()
            assert int((counts > 0).sum()) == 24
            assert chi_square(counts[counts > 0]) < 56.0  # 23 degrees of freedom

    def test_every_row_goes_everywhere(self):
        order = orders(20_000, 10, 2)
        for column in range(2):
            cells = torch.arange(10) * 10 + order[..., column]
            counts = torch.bincount(cells.flatten(), minlength=100).double()
            assert chi_square(counts) < 140.0  # 81 degrees of freedom

    def test_dimensions_are_independent(self):
        order = orders(20_000, 6, 6)
        for a in range(6):
            for b in range(a):
                cells = order[:, 0, a] * 6 + order[:, 0, b]
                assert (
                    chi_square(torch.bincount(cells, minlength=36).double()) < 80.0
                )  # 35 degrees of freedom


def test_wrong_arguments():
    z = torch.zeros(4, 3)
    with pytest.raises(TypeError, match="z: expected float32"):
        permute_dims(z.long())
    with pytest.raises(ValueError, match=r"z: expected shape \[..., rows, columns\], got \[4\]"):
        permute_dims(z[:, 0])
    with pytest.raises(TypeError, match="key: expected an int64 tensor"):
        permute_dims(z, key=KEY.float())
    with pytest.raises(ValueError, match="key: shape"):
        permute_dims(z, key=KEYS)
    with pytest.raises(ValueError, match="key is on meta"):
        permute_dims(z, key=KEY.to("meta"))
    with pytest.raises(ValueError, match=r"z2: expected the shape of z \[4, 3\], got \[3, 3\]"):
        tc_batch(z, z[:3])
    with pytest.raises(TypeError, match="z2: expected the dtype of z"):
        tc_batch(z, z.double())
