"""The modules against plain torch in float64, in every shape that encoders give."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyvae
from pyvae.modules import BernoulliNLL, KLDecomposition, ReparameterizeKL, TotalCorrelationDiscriminatorLoss
from pyvae.nets import count_weights
from pyvae.random import make_key

KEY = make_key(3, 5)


def posteriors(batch=6, latents=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    mu = torch.randn(batch, latents, generator=g)
    logvar = torch.randn(batch, latents, generator=g) - 1
    return mu.to(dtype).requires_grad_(), logvar.to(dtype).requires_grad_()


def plain_kl(mu, logvar):
    mu, logvar = mu.double(), logvar.double()
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)


class TestBernoulliNLL:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_loss_and_gradient(self, dtype):
        logits = torch.randn(3, 1, 8, 8).to(dtype).requires_grad_()
        x = (torch.rand(3, 1, 8, 8) < 0.3).to(dtype)
        loss = BernoulliNLL()(logits, x)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        exact = logits.detach().double().requires_grad_()
        expected = F.binary_cross_entropy_with_logits(exact, x.double(), reduction="sum") / 3
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
        (grad,) = torch.autograd.grad(loss, logits)
        assert grad.dtype == dtype
        torch.testing.assert_close(
            grad.double(), torch.autograd.grad(expected, exact)[0], rtol=1e-2, atol=1e-3
        )

    def test_options_reach_the_op(self):
        logits, x = torch.randn(2, 3, 1, 4, 4), (torch.rand(3, 1, 4, 4) * 255).to(torch.uint8)
        loss = BernoulliNLL(reduction="none", event_dims=3, target_max=255)(logits, x)
        expected = F.binary_cross_entropy_with_logits(
            logits, (x / 255).expand(2, 3, 1, 4, 4), reduction="none"
        )
        torch.testing.assert_close(loss, expected.sum((2, 3, 4)), rtol=1e-5, atol=1e-5)
        assert "target_max=255" in repr(BernoulliNLL(target_max=255))


class TestReparameterizeKL:
    def test_every_shape_gives_the_same(self):
        mu, logvar = posteriors()
        z, kl = ReparameterizeKL()(mu, logvar, key=KEY)
        torch.testing.assert_close(kl.double(), plain_kl(mu, logvar), rtol=1e-5, atol=1e-6)
        noise = (z - mu) / (logvar / 2).exp()
        assert 0.3 < float(noise.detach().std()) < 2
        both = torch.cat([mu, logvar], 1)
        column = lambda x: x[:, :, None, None]  # noqa: E731
        forms = {
            "halves": (both,),
            "maps": (column(mu), column(logvar)),
            "halved map": (column(both),),
        }
        for name, inputs in forms.items():
            other_z, other_kl = ReparameterizeKL()(*inputs, key=KEY)
            assert torch.equal(other_z.flatten(1), z), name
            assert other_z.ndim == inputs[0].ndim, name
            torch.testing.assert_close(other_kl, kl)
            grads = torch.autograd.grad(other_z.sin().sum() + other_kl.sum(), (mu, logvar))
            expected = torch.autograd.grad(z.sin().sum() + kl.sum(), (mu, logvar), retain_graph=True)
            for a, b in zip(grads, expected, strict=True):
                torch.testing.assert_close(a, b)

    def test_channels_of_maps_are_latents(self):
        """Whatever H and W are: a mean over positions would change beta by their number."""
        mu, logvar = torch.randn(6, 4, 3, 5), torch.randn(6, 4, 3, 5) - 1
        mu.requires_grad_(), logvar.requires_grad_()
        exact = 0.5 * (mu.double() ** 2 + logvar.double().exp() - 1 - logvar.double())
        separate = ReparameterizeKL()(mu, logvar, key=KEY)
        for z, kl in (separate, ReparameterizeKL()(torch.cat([mu, logvar], 1), key=KEY)):
            assert z.shape == mu.shape
            torch.testing.assert_close(kl.double(), exact.sum((0, 2, 3)) / 6, rtol=1e-5, atol=1e-6)
            assert torch.equal(z, separate[0])
            noise = ((z - mu) / (logvar / 2).exp()).detach()
            assert 0.8 < float(noise.std()) < 1.2
            assert len(noise.unique()) == noise.numel()
            grads = torch.autograd.grad(kl.sum(), (mu, logvar))
            expected = torch.autograd.grad(exact.sum() / 6, (mu, logvar), retain_graph=True)
            torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-6)

    def test_maps_in_another_order_of_memory(self):
        mu, logvar = (torch.randn(6, 4, 3, 5) for _ in range(2))
        expected = ReparameterizeKL()(mu, logvar, key=KEY)
        last = [x.to(memory_format=torch.channels_last) for x in (mu, logvar)]
        torch.testing.assert_close(ReparameterizeKL()(*last, key=KEY), expected)

    def test_ranks_and_event_dims(self):
        """Of each rank one meaning, and a word for every other: the KL of an image is right for all."""
        mu, logvar = (x.detach() for x in posteriors(6, 60))
        of_image = plain_kl(mu, logvar).sum()
        shapes = {  # what stands in front of the batch, the code, event_dims
            "rows": ((), (60,), None),
            "members": ((2,), (60,), None),
            "members of members": ((2, 3), (60,), 1),
            "sequences": ((), (4, 15), 2),
            "maps": ((), (4, 3, 5), None),
            "members of maps": ((2,), (4, 3, 5), 3),
            "volumes": ((), (5, 2, 2, 3), 4),
        }
        for name, (lead, code, event_dims) in shapes.items():
            inputs = [x.reshape(6, *code).expand(*lead, 6, *code) for x in (mu, logvar)]
            module = ReparameterizeKL(event_dims=event_dims)
            z, kl = module(*inputs)
            assert z.shape == inputs[0].shape, name
            assert kl.shape == (*lead, code[0]), name
            torch.testing.assert_close(kl.sum(-1).double(), of_image.expand(lead), rtol=1e-5, atol=0)
            both = torch.cat(inputs, len(lead) + 1)
            assert module(both)[0].shape == z.shape, name
        assert repr(ReparameterizeKL(event_dims=2)) == "ReparameterizeKL(event_dims=2)"

    def test_what_no_rank_says_is_refused(self):
        sample = ReparameterizeKL()
        for wrong, error, message in (
            (torch.zeros(2, 7), ValueError, r"7 latents of shape \[2, 7\] cannot be halved"),
            (torch.zeros(2, 7, 4, 4), ValueError, r"7 latents of shape \[2, 7, 4, 4\] cannot be halved"),
            (torch.zeros(4), ValueError, r"expected \[B, D\], .* got \[4\]: say event_dims"),
            (torch.zeros(2, 3, 4, 5, 6), ValueError, r"got \[2, 3, 4, 5, 6\]: say event_dims"),
            ([1.0], TypeError, "mu: expected a tensor, got list"),
        ):
            with pytest.raises(error, match=message):
                sample(wrong)
        with pytest.raises(ValueError, match=r"event_dims=3 leaves no batch dimension in shape \[4, 3, 3\]"):
            ReparameterizeKL(event_dims=3)(torch.zeros(4, 3, 3))
        for wrong in (0, 2.0, "3", True):
            with pytest.raises(
                ValueError, match=r"event_dims: expected an integer of at least 1, the latents, got"
            ):
                ReparameterizeKL(event_dims=wrong)

    @pytest.mark.parametrize("shape", [(3, 2, 4, 5), (4, 2)])
    def test_what_is_transposed_is_refused(self, shape):
        x = torch.zeros(shape)
        other = x.mT
        message = rf"expected the shape of \w+ {list(x.shape)}, got {list(other.shape)}".replace("[", r"\[")
        with pytest.raises(ValueError, match="logvar: " + message):
            ReparameterizeKL()(x, other)
        with pytest.raises(ValueError, match="logvar: " + message):
            KLDecomposition(9)(x, x, other)
        with pytest.raises(ValueError, match="mu: " + message):
            KLDecomposition(9)(x, other, x)
        with pytest.raises(ValueError, match="second: " + message):
            TotalCorrelationDiscriminatorLoss(latents=40).discriminator_loss(x, other)


class TestKLDecomposition:
    @pytest.mark.parametrize("weighting", ["mws", "mss"])
    def test_parts_by_definition(self, weighting):
        n, (mu, logvar) = 100, posteriors(dtype=torch.float64)
        z = (mu + 0.3).detach().requires_grad_()
        parts = KLDecomposition(n, weighting=weighting)(z, mu, logvar)

        def log_normal(x, mean, log_variance):
            return -0.5 * ((x - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi))

        b = len(mu)
        pairs = log_normal(z[:, None], mu[None], logvar[None])
        weight = torch.full((b, b), 1 / (n * b), dtype=torch.float64)  # mws; the op's own tests have mss
        log_q = (pairs.sum(2) + weight.log()).logsumexp(1)
        log_product = (pairs + weight.log()[..., None]).logsumexp(1).sum(1)
        given = log_normal(z, mu, logvar).sum(1)
        prior = log_normal(z, torch.zeros(()), torch.zeros(()).double()).sum(1)
        if weighting == "mws":
            expected = [(given - log_q).mean(), (log_q - log_product).mean(), (log_product - prior).mean()]
            for a, e in zip(parts, expected, strict=True):
                torch.testing.assert_close(a, e)
            inputs = (z, mu, logvar)
            grads = torch.autograd.grad(parts.tc + 2 * parts.mi, inputs, retain_graph=True)
            for a, e in zip(grads, torch.autograd.grad(expected[1] + 2 * expected[0], inputs), strict=True):
                torch.testing.assert_close(a, e)
        torch.testing.assert_close(sum(parts), (given - prior).mean())

    @pytest.mark.parametrize("weighting", ["mws", "mss"])
    def test_positions_of_maps_are_dimensions(self, weighting):
        z, mu, logvar = (torch.randn(6, 4, 3, 2, dtype=torch.float64) for _ in range(3))
        parts = KLDecomposition(50, weighting=weighting)(z, mu, logvar)
        flat = KLDecomposition(50, weighting=weighting)(*(x.reshape(6, 24) for x in (z, mu, logvar)))
        torch.testing.assert_close(parts, flat)
        of_images = (z**2 - (z - mu) ** 2 / logvar.exp() - logvar).sum() / 2 / 6
        torch.testing.assert_close(sum(parts), of_images)
        members = [torch.stack([x, x + 0.1]) for x in (z, mu, logvar)]
        both = KLDecomposition(50, weighting=weighting, event_dims=3)(*members)
        torch.testing.assert_close([x[0] for x in both], list(parts))
        assert both.tc.shape == (2,)
        with pytest.raises(ValueError, match="say event_dims"):
            KLDecomposition(50)(*members)

    def test_maps_and_half_precision(self):
        mu, logvar = (x.detach() for x in posteriors())
        flat = KLDecomposition(50)(mu, mu, logvar)
        maps = KLDecomposition(50)(*(x[:, :, None, None] for x in (mu, mu, logvar)))
        half = KLDecomposition(50)(*(x.bfloat16() for x in (mu, mu, logvar)))
        for a, b, c in zip(flat, maps, half, strict=True):
            assert torch.equal(a, b)
            assert c.dtype == torch.float32
            torch.testing.assert_close(a, c, rtol=0.05, atol=0.05)


class TestTotalCorrelation:
    @pytest.fixture
    def loss(self):
        return TotalCorrelationDiscriminatorLoss(
            nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2))
        )

    def test_the_vae_side_by_definition(self, loss):
        z = torch.randn(6, 4, requires_grad=True)
        tc = loss(z)
        logits = loss.discriminator(z)
        expected = (logits[:, 0] - logits[:, 1]).mean()
        torch.testing.assert_close(tc, expected)
        (grad,) = torch.autograd.grad(expected, z)
        tc.backward()
        torch.testing.assert_close(z.grad, grad)
        assert all(p.grad is None for p in loss.parameters())
        assert torch.equal(loss(z.detach()[:, :, None, None]), tc)

    def test_the_discriminators_side_by_definition(self, loss):
        z, second = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
        out = loss.discriminator_loss(z, second, key=KEY)
        permuted = pyvae.permute_dims(second, key=KEY)
        logits = loss.discriminator(torch.cat([z, permuted]))
        expected = F.cross_entropy(logits, torch.tensor([0] * 6 + [1] * 6))
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad(expected, loss.parameters())
        out.backward()
        for p, g in zip(loss.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, g)
        assert z.grad is None
        assert second.grad is None

    def test_positions_of_maps_are_dimensions(self, loss):
        z, second = torch.randn(6, 2, 1, 2), torch.randn(6, 2, 1, 2)
        assert torch.equal(loss(z), loss(z.reshape(6, 4)))
        assert torch.equal(
            loss.discriminator_loss(z, second, key=KEY),
            loss.discriminator_loss(z.reshape(6, 4), second.reshape(6, 4), key=KEY),
        )

    def test_ensembles_are_refused(self, loss):
        """Halving or counting them by their first dimension would mix members."""
        z = torch.randn(2, 6, 4)
        for call in (loss, loss.discriminator_loss):
            with pytest.raises(ValueError, match=r"z: expected \[B, D\] or \[B, D, H, W\], got \["):
                call(z)

    def test_one_batch_is_halved(self, loss):
        z = torch.randn(7, 4)
        out = loss.discriminator_loss(z, key=KEY)
        assert torch.equal(out, loss.discriminator_loss(z[:3], z[3:6], key=KEY))

    def test_the_papers_discriminator(self):
        assert count_weights(TotalCorrelationDiscriminatorLoss(latents=10)) == 5_018_002
        for wrong in ({}, {"latents": 4, "discriminator": nn.Linear(4, 2)}):
            with pytest.raises(ValueError, match="give a discriminator, or the number of latents"):
                TotalCorrelationDiscriminatorLoss(**wrong)
