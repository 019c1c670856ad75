"""The compiled operators against the reference, and what is said where they are missing."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pyvae import reference
from pyvae.base import native
from pyvae.random import bits, make_key, normal

ROOT = Path(__file__).resolve().parents[1]
REASON = native.load()
built = pytest.mark.skipif(REASON is not None, reason=str(REASON))
KEYS = torch.stack([make_key(42, 7), make_key(-3, 2**33 + 5), make_key(2**63 - 1, -1)])


def ops():
    return torch.ops.pyvae_native


def images(rows, pixels, kind):
    """Logits, target, target_scale, packed, and the target in float64."""
    generator = torch.Generator().manual_seed(rows * 10_000 + pixels)
    logits = 4 * torch.randn(rows, pixels, generator=generator)
    x = torch.rand(rows, pixels, generator=generator)
    if kind == "float":
        return logits, x, 1.0, False, x.double()
    if kind == "byte":
        byte = (x * 255).to(torch.uint8)
        return logits, byte, 1 / 255, False, byte.double() / 255
    lit = (x < 0.3).to(torch.uint8)
    return logits, reference.pack_bits(lit), 1.0, True, lit.double()


@built
class TestBernoulli:
    @pytest.mark.parametrize("kind", ["float", "byte", "bits"])
    @pytest.mark.parametrize("rows", [1, 3, 64])
    @pytest.mark.parametrize("pixels", [1, 7, 8, 9, 511, 512, 513, 784, 4096])
    def test_loss_and_gradient(self, kind, rows, pixels):
        logits, target, scale, packed, x = images(rows, pixels, kind)
        loss, grad = ops().bernoulli_nll_fwd_bwd(logits, target, scale, packed, 0.25)
        exact = F.binary_cross_entropy_with_logits(logits.double(), x, reduction="none").sum(1)
        torch.testing.assert_close(loss.double(), exact * 0.25, rtol=2e-6, atol=1e-6)
        exact_grad = (torch.sigmoid(logits.double()) - x) * 0.25
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-6, atol=1e-7)
        assert torch.equal(ops().bernoulli_nll_fwd(logits, target, scale, packed, 0.25), loss)

    @pytest.mark.parametrize("kind", ["float", "byte", "bits"])
    def test_losses_of_several_images(self, kind):
        logits, target, scale, packed, _ = images(12, 40, kind)
        each, grad = ops().bernoulli_nll_fwd_bwd(logits, target, scale, packed, 0.5)
        shaped = logits.view(3, 4, 5, 8)
        loss, shaped_grad = ops().bernoulli_nll_fwd_bwd(shaped, target, scale, packed, 0.5, 12, 4)
        torch.testing.assert_close(loss, each.view(3, 4).sum(1))
        assert torch.equal(shaped_grad, grad.view_as(shaped))
        with pytest.raises(RuntimeError, match="images: 5 do not divide 12 rows"):
            ops().bernoulli_nll_fwd(shaped, target, scale, packed, 0.5, 12, 5)

    def test_extreme_logits(self):
        logits = torch.tensor([[1e4, -1e4, 1e4, -1e4, 100.0, -100.0, 0.0, 87.5]])
        x = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.5, 1.0]])
        for column in range(8):
            own = logits[:, column : column + 1], x[:, column : column + 1]
            loss, grad = ops().bernoulli_nll_fwd_bwd(*own, 1.0, False, 1.0)
            exact = F.binary_cross_entropy_with_logits(own[0].double(), own[1].double())
            torch.testing.assert_close(loss.double()[0], exact, rtol=1e-6, atol=1e-30)
            exact_grad = torch.sigmoid(own[0].double()) - own[1]
            torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-6, atol=1e-37)

    def test_small_probabilities_keep_their_digits(self):
        logits = torch.linspace(-80, 0, 161)[:, None]
        loss, grad = ops().bernoulli_nll_fwd_bwd(logits, torch.zeros_like(logits), 1.0, False, 1.0)
        torch.testing.assert_close(loss.double(), F.softplus(logits.double())[:, 0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.double(), torch.sigmoid(logits.double()), rtol=1e-6, atol=0)

    def test_nan_is_kept(self):
        logits, x = torch.zeros(2, 600), torch.zeros(2, 600)
        logits[0, 599] = x[1, 3] = math.nan
        loss, grad = ops().bernoulli_nll_fwd_bwd(logits, x, 1.0, False, 1.0)
        assert loss.isnan().tolist() == [True, True]
        assert grad.isnan().nonzero().tolist() == [[0, 599], [1, 3]]
        logits[0, 599] = math.inf
        assert not torch.isfinite(ops().bernoulli_nll_fwd(logits, torch.ones_like(x) / 2, 1.0, False)[0])

    def test_other_layouts_and_no_rows(self):
        logits, target, scale, packed, _ = images(6, 40, "float")
        expected = ops().bernoulli_nll_fwd(logits, target, scale, packed)
        strided = ops().bernoulli_nll_fwd(
            logits.mT.contiguous().mT, target.repeat(1, 2)[:, :40], scale, packed
        )
        assert torch.equal(strided, expected)
        none = ops().bernoulli_nll_fwd_bwd(logits[:0], target[:0], 1.0, False, 1.0)
        assert [list(x.shape) for x in none] == [[0], [0, 40]]

    def test_wrong_arguments(self):
        logits, target, *_ = images(2, 16, "float")
        for wrong in (target[:1], target[:, :8], target.double()):
            with pytest.raises(RuntimeError):
                ops().bernoulli_nll_fwd(logits, wrong, 1.0, False)
        with pytest.raises(RuntimeError):
            ops().bernoulli_nll_fwd(logits, target, 1.0, True)


def latents(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return (
        torch.randn(shape, generator=generator),
        1.5 * torch.randn(shape, generator=generator),
    )


@built
class TestReparameterize:
    @pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 10, 12, 33, 255, 256, 257, 1023, 1030, 2050])
    @pytest.mark.parametrize("batch", [1, 2, 64, 90])
    def test_values_and_gradients(self, width, batch):
        mu, logvar = latents(3, batch, width)
        z, kl = ops().reparameterize_kl_fwd(mu, logvar, KEYS, 2)
        exact = reference.reparameterize_kl(mu.double(), logvar.double(), key=KEYS, stream=2)
        torch.testing.assert_close(z.double(), exact[0], rtol=1e-6, atol=3e-6)
        torch.testing.assert_close(kl.double(), exact[1], rtol=3e-6, atol=1e-6)
        grad_z, grad_kl = torch.randn_like(z), torch.randn_like(kl) + 2
        for gz, gk in ((grad_z, grad_kl), (grad_z, None), (None, grad_kl)):
            grads = ops().reparameterize_kl_bwd(gz, gk, mu, logvar, KEYS, 2)
            double = [g if g is None else g.double() for g in (gz, gk)]
            expected = reference.reparameterize_kl_backward(*double, mu.double(), logvar.double(), KEYS, 2)
            for grad, want in zip(grads, expected, strict=True):
                torch.testing.assert_close(grad.double(), want, rtol=2e-6, atol=1e-5)

    def test_the_noise_is_that_of_the_contract(self):
        zeros = torch.zeros(3, 5000, 7)
        z, _ = ops().reparameterize_kl_fwd(zeros, zeros, KEYS, 4)
        exact = normal(KEYS, 5000, 7, 4, torch.float64)
        assert float((z.double() - exact).abs().max()) < 1e-6

    def test_members_that_share_a_key_count_on(self):
        zeros = torch.zeros(6, 5, 3)
        z, _ = ops().reparameterize_kl_fwd(zeros, zeros, KEYS[:2], 0)
        exact = normal(KEYS[:2], 15, 3, 0, torch.float64).reshape(6, 5, 3)
        assert float((z.double() - exact).abs().max()) < 1e-6

    def test_kl_of_collapsed_and_of_wide_dimensions(self):
        logvar = torch.tensor([-80, -3, -0.51, -0.5, -0.49, -1e-3, 1e-6, 1e-3, 0.49, 0.5, 0.51, 3, 80.0])
        zeros = torch.zeros(1, 1, len(logvar))
        _, kl = ops().reparameterize_kl_fwd(zeros, logvar.view_as(zeros), KEYS[:1], 0)
        x = logvar.double()
        series = x**2 / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120
        exact = torch.where(x.abs() < 0.01, series, torch.expm1(x) - x) / 2
        torch.testing.assert_close(kl[0].double(), exact, rtol=2e-6, atol=0)

    def test_nan_and_infinity_are_kept(self):
        mu, logvar = torch.zeros(1, 4, 6), torch.zeros(1, 4, 6)
        mu[0, 1, 0], logvar[0, 2, 1], mu[0, 3, 2], logvar[0, 0, 3] = math.nan, math.nan, math.inf, -math.inf
        z, kl = ops().reparameterize_kl_fwd(mu, logvar, KEYS[:1], 0)
        assert z.isnan().nonzero().tolist() == [[0, 1, 0], [0, 2, 1]]
        assert z.isinf().nonzero().tolist() == [[0, 3, 2]]
        assert z[0, 0, 3] == 0
        assert torch.isfinite(kl).tolist() == [[False, False, False, False, True, True]]

    def test_an_absent_gradient_makes_no_nan(self):
        mu, logvar = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 100.0)
        _, grad = ops().reparameterize_kl_bwd(torch.ones_like(mu), None, mu, logvar, KEYS[:1], 0)
        assert bool(torch.isfinite(grad).all())

    @pytest.mark.parametrize("shape", [(2, 65, 10), (1, 64, 256), (2, 33, 257), (1, 5, 4096), (2, 0, 3)])
    @pytest.mark.parametrize("used", ["z", "kl", "both"])
    def test_what_is_kept_gives_the_gradients_of_drawing_again(self, shape, used):
        mu, logvar = latents(*shape)
        z, kl = ops().reparameterize_kl_fwd(mu, logvar, KEYS[: shape[0]], 2)
        kept_z, kept_kl, shift = ops().reparameterize_kl_fwd_keeping(mu, logvar, KEYS[: shape[0]], 2)
        assert torch.equal(kept_z, z)
        torch.testing.assert_close(kept_kl, kl, rtol=0, atol=0, equal_nan=True)
        generator = torch.Generator().manual_seed(1)
        grad_z = torch.randn(z.shape, generator=generator) if used != "kl" else None
        grad_kl = torch.randn(kl.shape, generator=generator) if used != "z" else None
        again = ops().reparameterize_kl_bwd(grad_z, grad_kl, mu, logvar, KEYS[: shape[0]], 2)
        kept = ops().reparameterize_kl_bwd_kept(grad_z, grad_kl, mu, logvar, shift)
        for one, two in zip(kept, again, strict=True):
            assert torch.equal(one, two)

    def test_an_empty_batch(self):
        mu = torch.zeros(2, 0, 3)
        z, kl = ops().reparameterize_kl_fwd(mu, mu, KEYS[:2], 0)
        assert list(z.shape) == [2, 0, 3]
        assert bool(kl.isnan().all())

    def test_an_expanded_gradient(self):
        mu, logvar = latents(2, 4, 6)
        one = torch.ones(1, 1, 1).expand(2, 4, 6)
        strided = ops().reparameterize_kl_bwd(one, None, mu, logvar, KEYS[:2], 0)
        dense = ops().reparameterize_kl_bwd(one.contiguous(), None, mu, logvar, KEYS[:2], 0)
        assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))


def results():
    """Results of every operator on shapes that are cut into many pieces."""
    logits, target, scale, packed, _ = images(200, 3000, "bits")
    mu, logvar = latents(3, 700, 130)
    z, kl = ops().reparameterize_kl_fwd(mu, logvar, KEYS, 0)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3 * 40 * 32, 5, generator=generator)
    edges = reference.bin_edges(codes, 20)
    m, lv = codes.mT.contiguous(), codes.mT.contiguous() - 3
    low, step = reference.quadrature_grid(m, lv, 300)
    return [
        *ops().bernoulli_nll_fwd_bwd(logits, target, scale, packed, 1.0),
        z,
        kl,
        *ops().reparameterize_kl_bwd(z, kl, mu, logvar, KEYS, 0),
        *ops().permute_dims(None, mu, KEYS, 1),
        ops().code_histogram(codes, None, [3, 40, 32], edges),
        ops().posterior_density(m, lv, low, step, [3, 40, 32], 300),
    ]


@built
def test_results_do_not_depend_on_the_number_of_threads():
    try:
        one = results()
        torch.set_num_threads(2)
        two = results()
        torch.set_num_threads(3)
        three = results()
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(one, two, three, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@built
def test_inputs_are_not_written_to():
    logits, target, scale, packed, _ = images(3, 50, "byte")
    mu, logvar = latents(1, 9, 5)
    before = [x.clone() for x in (logits, target, mu, logvar)]
    ops().bernoulli_nll_fwd_bwd(logits, target, scale, packed, 1.0)
    ops().reparameterize_kl_fwd(mu, logvar, KEYS[:1], 0)
    ops().permute_dims(mu, logvar, KEYS[:1], 1)
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, target, mu, logvar), strict=True))


@built
def test_the_integers_are_those_of_the_contract():
    """By the order that they sort: of 5,000 rows it says every bit that matters."""
    z = torch.zeros(3, 5000, 6)
    _, order = ops().permute_dims(None, z, KEYS, 1)
    assert torch.equal(order, bits(KEYS, 5000, 6, 1).argsort(dim=-2, stable=True))


@built
def test_the_library_needs_no_python():
    (library,) = (ROOT / "pyvae").glob("_C*.so")
    names = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True)
    if names.returncode:
        pytest.skip(f"nm: {names.stderr}")
    assert not re.search(r"\bPy[A-Z_]", names.stdout)


@built
def test_loops_are_vector_loops_without_avx512_too():
    """Flags that the interpreter was built with are the compiler's as well, and once made these loops scalar."""
    (library,) = (ROOT / "pyvae").glob("_C*.so")
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    code = subprocess.run(["objdump", "-dC", library], capture_output=True, text=True, check=True).stdout
    clones = re.findall(r"^\w+ <(\S+ )?(\S+)\(.*arch_x86_64_v3\]>:\n((?:.+\n)*)", code, re.M)
    if not clones:
        pytest.skip("not built by g++ for x86-64")
    bodies = [(re.split(r"::|\(", name.rstrip("("))[-1], body) for _, name, body in clones]
    assert {"to_normal", "loss_and_grad", "unpack"} <= {name for name, _ in bodies}
    # whose counts each wait for the one before
    assert {name for name, body in bodies if "%ymm" not in body} <= {"bin_column"}


def test_every_way_to_draw(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    (tmp_path / "draw.cpp").write_text(DRAW)
    program = tmp_path / "draw"
    command = [compiler, "-std=c++17", "-O1", f"-I{ROOT}", tmp_path / "draw.cpp", "-o", program]
    subprocess.run(command, check=True)
    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert "draw_portably" in found
    assert not [name for name in found if name.startswith("wrong:")]


DRAW = """
#include <cstdio>
#include <initializer_list>
#include "csrc/cpu/draw.h"
using namespace pyvae;
void check(decltype(&draw_portably) way, const char* name) {
  bool right = true;
  for (int count : {1, 8, 13, 16, 200, kDraw}) {
    alignas(64) uint32_t words[4 * kDraw];
    const uint64_t seed = 0xFEDCBA9876543210, step = 0x1122334455667788;
    const uint32_t stream = 0x89ABCDEF, first = 0xFFFFFFF0;
    way(seed, step, stream, first, count, words);
    for (int i = 0; i < count; ++i) {
      const Words expected = philox(seed, first + i, stream, step);
      right = right && words[i] == expected.x && words[i + kDraw] == expected.y &&
              words[i + 2 * kDraw] == expected.z && words[i + 3 * kDraw] == expected.w;
    }
  }
  std::printf("%s%s\\n", right ? "" : "wrong:", name);
}
int main() {
  check(draw_portably, "draw_portably");
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) check(draw_avx2, "draw_avx2");
  if (__builtin_cpu_supports("avx512f")) check(draw_avx512, "draw_avx512");
#endif
}
"""


@built
def test_loading_leaves_denormals_alone():
    tiny = torch.tensor([1e-40])
    assert float(tiny * 1) == float(tiny) != 0


@built
def test_unknown_operators_and_devices():
    assert "not among them" in (native.missing("no_such_op", "cpu") or "")
    assert "no compiled operator runs on meta" in (native.missing("permute_dims", "meta") or "")


def test_ops_run_without_the_library(tmp_path):
    """As on a machine where nothing was built."""
    script = (
        "import torch, warnings; warnings.simplefilter('ignore')\n"
        "from pyvae.base import native\n"
        "native.EXTENSION_SUFFIXES = ['.absent']\n"
        "from pyvae.ops.permute_dims import tc_batch\n"
        "from pyvae.ops.code_histogram import code_histogram\n"
        "from pyvae.ops.posterior_entropy import posterior_entropy\n"
        "x = torch.randn(6, 2)\n"
        "tc_batch(x, x); code_histogram(x, None, (2, 3)); posterior_entropy(x, x, (2, 3))\n"
        "assert 'not built' in native.load()\n"
        "assert not hasattr(torch.ops.pyvae_native, 'permute_dims')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
