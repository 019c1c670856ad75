"""What the ops refuse, and that they say which argument and which value."""

import pytest
import torch

import pyvae
from pyvae import reference
from pyvae.random import make_key

LATENTS = torch.zeros(4, 3)
LOGITS = torch.zeros(4, 2, 5)
BITS = torch.zeros(4, 2, dtype=torch.uint8)
KEY = make_key(0)


def meta(x):
    return x.to("meta")


WRONG_LATENTS = {
    "no tensor": (([1.0], LATENTS, KEY), TypeError, "mu: expected a tensor, got list"),
    "integers": ((LATENTS.int(), LATENTS, KEY), TypeError, "mu: expected float32, .* got torch.int32"),
    "logvar no tensor": ((LATENTS, None, KEY), TypeError, "logvar: expected a tensor, got NoneType"),
    "shapes": ((LATENTS, LATENTS[:2], KEY), ValueError, r"logvar: expected .* \[4, 3\], got \[2, 3\]"),
    "dtypes": ((LATENTS, LATENTS.half(), KEY), TypeError, "logvar: .* torch.float32, got torch.float16"),
    "devices": ((LATENTS, meta(LATENTS), KEY), ValueError, "logvar is on meta but mu on cpu"),
    "no batch": ((LATENTS[0], LATENTS[0], KEY), ValueError, r"mu: expected shape .*, got \[3\]"),
    "no latents": ((LATENTS[:, :0], LATENTS[:, :0], KEY), ValueError, r"mu: no latent .* \[4, 0\]"),
    "key no tensor": ((LATENTS, LATENTS, 7), TypeError, "key: .* got int"),
    "key of floats": ((LATENTS, LATENTS, KEY.float()), TypeError, "key: .* got torch.float32"),
    "key of three": ((LATENTS, LATENTS, KEY.repeat(2)[:3]), ValueError, r"key: .* got \[3\]"),
    "key of members": ((LATENTS, LATENTS, KEY[None]), ValueError, r"key: shape \[1, 2\] .* dimensions \[\]"),
    "key of other members": (
        (LATENTS.expand(2, 4, 3), LATENTS.expand(2, 4, 3), KEY.expand(3, 2)),
        ValueError,
        r"key: shape \[3, 2\] does not match the leading dimensions \[2\]",
    ),
    "key elsewhere": ((LATENTS, LATENTS, meta(KEY)), ValueError, "key is on meta but mu on cpu"),
    "too many counters": (
        (LATENTS[:1].expand(2**32 + 1, 3), LATENTS[:1].expand(2**32 + 1, 3), KEY),
        ValueError,
        "4294967297",
    ),
}


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("case", WRONG_LATENTS)
def test_reparameterize_kl_refuses(case, backend, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    (mu, logvar, key), error, message = WRONG_LATENTS[case]
    with pytest.raises(error, match=message):
        pyvae.reparameterize_kl(mu, logvar, key=key)


WRONG_IMAGES = {
    "no tensor": ((1.0, LOGITS), {}, TypeError, "logits: expected a tensor, got float"),
    "integers": ((LOGITS.long(), LOGITS), {}, TypeError, "logits: expected float32, .* got torch.int64"),
    "target no tensor": ((LOGITS, [0]), {}, TypeError, "target: expected a tensor, got list"),
    "devices": ((LOGITS, meta(LOGITS)), {}, ValueError, "target is on meta but logits on cpu"),
    "reduction": ((LOGITS, LOGITS), {"reduction": "mean"}, ValueError, "batchmean, sum, none, got 'mean'"),
    "gradient of the target": (
        (LOGITS, LOGITS.clone().requires_grad_()), {}, ValueError, r"target: .*pass target.detach\(\)",
    ),
    "no batch": ((LOGITS, LOGITS), {"event_dims": 3}, ValueError, r"event_dims: 3 .* \[4, 2, 5\]"),
    "negative event_dims": ((LOGITS, LOGITS), {"event_dims": -1}, ValueError, "event_dims: -1"),
    "a scalar": ((LOGITS.sum(), LOGITS.sum()), {}, ValueError, r"event_dims: -1 .* \[\]"),
    "shapes": ((LOGITS, LOGITS[:2]), {}, ValueError, r"target: .* \[4, 2, 5\], got \[2, 2, 5\]"),
    "more dimensions": ((LOGITS, LOGITS[None]), {}, ValueError, r"target: .* got \[1, 4, 2, 5\]"),
    "a target without batch": ((LOGITS, LOGITS[0]), {}, ValueError, r"target: .* got \[2, 5\]"),
    "integer target": ((LOGITS, LOGITS.long()), {}, TypeError, "target: .* got torch.int64"),
    "uint8 pixels": ((LOGITS, LOGITS.byte()), {}, ValueError, "target_max=1 or target_max=255"),
    "target_max": ((LOGITS, LOGITS.byte()), {"target_max": 256}, ValueError, "1 or 255 .*, got 256"),
    "zero target_max": ((LOGITS, LOGITS.byte()), {"target_max": 0}, ValueError, "1 or 255 .*, got 0"),
    "target_max of floats": (
        (LOGITS, LOGITS), {"target_max": 255}, ValueError, "target_max: only .* torch.float32",
    ),
    "too few bits": ((LOGITS, BITS[:, :1]), {}, ValueError, r"\[4, 2\] .* \[4, 2, 5\], got \[4, 1\]"),
    "bits of other images": ((LOGITS, BITS[:3]), {}, ValueError, r"packed bits .* got \[3, 2\]"),
    "a bit": ((LOGITS, BITS.sum(dtype=torch.uint8)), {}, ValueError, r"packed bits .* got \[\]"),
    "bits with target_max": ((LOGITS, BITS), {"target_max": 1}, ValueError, r"target: .* got \[4, 2\]"),
    "packed bits of other members": (
        (LOGITS, torch.zeros(3, 2, 1, dtype=torch.uint8)),
        {"event_dims": 1},
        ValueError,
        r"packed bits of shape \[4, 2, 1\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_bernoulli_nll_refuses(case, backend, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    args, options, error, message = WRONG_IMAGES[case]
    with pytest.raises(error, match=message):
        pyvae.bernoulli_nll(*args, **options)


@pytest.mark.parametrize("backend", ["reference", "triton"])
class TestValues:
    @pytest.fixture(autouse=True)
    def _environment(self, backend, device, monkeypatch):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        self.logits, self.bits, self.latents, self.key = (x.to(device) for x in (LOGITS, BITS, LATENTS, KEY))
        monkeypatch.setenv("PYVAE_CHECK", "1")

    @pytest.mark.parametrize(
        ("value", "shown"), [(-0.5, r"\[-0.5, 0.0\]"), (1.5, r"\[0.0, 1.5\]"), (float("nan"), "nan")]
    )
    def test_targets_outside_0_and_1(self, value, shown, monkeypatch):
        target = self.logits.clone()
        target[1, 1, 3] = value
        with pytest.raises(ValueError, match=rf"target: values must lie in \[0, 1\], got .*{shown}"):
            pyvae.bernoulli_nll(self.logits, target)
        monkeypatch.setenv("PYVAE_CHECK", "0")
        pyvae.bernoulli_nll(self.logits, target)

    def test_uint8_targets_above_their_maximum(self):
        target = torch.full_like(self.logits, 2, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"\[0, 1\], got \[2.0, 2.0\]"):
            pyvae.bernoulli_nll(self.logits, target, target_max=1)
        pyvae.bernoulli_nll(self.logits, target, target_max=255)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("which", [0, 1])
    def test_latents_that_are_not_finite(self, value, which, monkeypatch):
        inputs = [self.latents.clone(), self.latents.clone()]
        inputs[which][2, 1] = value
        with pytest.raises(ValueError, match="mu or logvar holds NaN or infinity"):
            pyvae.reparameterize_kl(*inputs, key=self.key)
        monkeypatch.delenv("PYVAE_CHECK")
        pyvae.reparameterize_kl(*inputs, key=self.key)

    def test_what_is_in_range_passes(self):
        for target in (self.logits + 1, self.logits.bool(), self.logits, self.logits[:0]):
            pyvae.bernoulli_nll(self.logits[: len(target)], target)
        pyvae.bernoulli_nll(self.logits, self.bits + 255)
        pyvae.reparameterize_kl(self.latents, self.latents, key=self.key)

    def test_under_compile_too(self):
        torch._dynamo.reset()
        compiled = torch.compile(pyvae.bernoulli_nll, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(self.logits, self.logits), pyvae.bernoulli_nll(self.logits, self.logits))
        with pytest.raises(ValueError, match="target: values must lie"):
            compiled(self.logits, self.logits - 1)
        compiled = torch.compile(pyvae.reparameterize_kl, backend="aot_eager", fullgraph=True)
        assert bool((compiled(self.latents, self.latents, key=self.key)[1] == 0).all())
        with pytest.raises(ValueError, match="mu or logvar"):
            compiled(self.latents / 0, self.latents, key=self.key)


def test_the_reference_checks_too():
    with pytest.raises(TypeError, match="mu"):
        reference.reparameterize_kl(LATENTS.int(), LATENTS, key=KEY)
    with pytest.raises(ValueError, match="reduction"):
        reference.bernoulli_nll(LOGITS, LOGITS, reduction="mean")
