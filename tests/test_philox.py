"""The device functions of kernels/philox.py draw what pyvae.random draws."""

import math

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from pyvae.kernels.philox import data_order, normal_rows, philox, philox_at, uniform  # noqa: E402
from pyvae.random import Stream, bits, feistel_domain, make_key, normal, uniform_from_bits  # noqa: E402
from pyvae.random import data_order as torch_data_order  # noqa: E402
from pyvae.random import philox as torch_philox  # noqa: E402
from pyvae.random import uniform as torch_uniform  # noqa: E402
from test_random import KNOWN, STANDARD_ERRORS, autocorrelations, moments, tails, whole  # noqa: E402

SEEDS = [0, 1, -1, -(2**63), 2**63 - 1, 2**32, 2**32 - 1, 2**31, 12345678901234567, -98765432109]
STEPS = [0, 1, 2**32 - 1, 2**32, 2**40 + 3, -1]


@triton.jit
def known_answer(seed_ptr, counter_ptr, out_ptr):
    at = tl.arange(0, 1)
    c0 = tl.load(counter_ptr + at).to(tl.uint32)
    c1 = tl.load(counter_ptr + 1 + at).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2 + at).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3 + at).to(tl.uint32)
    w0, w1, w2, w3 = philox(tl.load(seed_ptr), c0, c1, c2, c3)
    tl.store(out_ptr + at, w0.to(tl.int64))
    tl.store(out_ptr + 1 + at, w1.to(tl.int64))
    tl.store(out_ptr + 2 + at, w2.to(tl.int64))
    tl.store(out_ptr + 3 + at, w3.to(tl.int64))


@triton.jit
def draw_words(key_ptr, out_ptr, uniform_ptr, first, STREAM: tl.constexpr, N: tl.constexpr):
    """Words [N, 4] and their uniforms at counters first .. first + N of the key of this program."""
    pid = tl.program_id(0)
    index = first + tl.arange(0, N).to(tl.int64)
    words = philox_at(tl.load(key_ptr + 2 * pid), tl.load(key_ptr + 2 * pid + 1), index, STREAM)
    at = (pid * N + tl.arange(0, N)) * 4
    for i in tl.static_range(4):
        tl.store(out_ptr + at + i, words[i].to(tl.int64))
        tl.store(uniform_ptr + at + i, uniform(words[i]))


@triton.jit
def draw_normals(key_ptr, out_ptr, D, STREAM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Normals [programs * ROWS, COLUMNS], the first D columns of which belong to a row of D."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    quad = tl.arange(0, COLUMNS // 4).to(tl.int64)
    x = normal_rows(tl.load(key_ptr), tl.load(key_ptr + 1), row, quad, D, STREAM, ROWS, COLUMNS)
    tl.store(out_ptr + row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], x)


@triton.jit
def draw_order(key_ptr, position_ptr, domain_ptr, out_ptr, STREAM: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    position = tl.load(position_ptr + at).to(tl.uint32)
    size = tl.load(domain_ptr).to(tl.uint32)
    left = tl.load(domain_ptr + 1).to(tl.uint32)
    right = tl.load(domain_ptr + 2).to(tl.uint32)
    image = data_order(tl.load(key_ptr), tl.load(key_ptr + 1), position, size, left, right, STREAM)
    tl.store(out_ptr + at, image.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(device, counter, key, output):
    out = torch.zeros(4, dtype=torch.int64, device=device)
    known_answer[(1,)](whole(key).reshape(1).to(device), torch.tensor(counter, device=device), out)
    assert tuple(out.tolist()) == output


@pytest.mark.parametrize("stream", [Stream.POSTERIOR, Stream.DATA_ORDER, Stream.METRIC])
def test_the_same_integers_and_uniforms_as_torch(device, stream):
    keys = torch.stack([make_key(s, t) for s in SEEDS for t in STEPS]).to(device)
    n = 16
    words = torch.zeros(len(keys), n, 4, dtype=torch.int64, device=device)
    uniforms = torch.zeros(len(keys), n, 4, device=device)
    draw_words[(len(keys),)](keys, words, uniforms, 0, STREAM=int(stream), N=n)
    assert torch.equal(words, bits(keys, n, 4, stream))
    assert torch.equal(uniforms, torch_uniform(keys, n, 4, stream))
    assert torch.equal(uniforms, uniform_from_bits(words))


def test_counters_above_two_to_the_31_are_unsigned(device):
    n, first = 16, 2**32 - 16
    words = torch.zeros(1, n, 4, dtype=torch.int64, device=device)
    draw_words[(1,)](make_key(3, 4, device), words, torch.zeros_like(words).float(), first, STREAM=1, N=n)
    index = torch.arange(first, first + n)
    expected = torch_philox(torch.tensor(3), (index, index * 0 + 1, index * 0 + 4, index * 0))
    assert torch.equal(words[0].cpu(), torch.stack(expected, -1))


@pytest.mark.parametrize("latents", [1, 3, 4, 5, 10, 16])
def test_the_same_normals_as_torch(device, latents):
    rows, columns = 64, 16
    key = make_key(-7, 2**33 + 1, device)
    x = torch.zeros(2 * rows, columns, device=device)
    draw_normals[(2,)](key, x, latents, STREAM=4, ROWS=rows, COLUMNS=columns)
    expected = normal(key, 2 * rows, latents, 4, torch.float64)
    # sin_turns is within 2e-7, and a radius is below 5.8
    torch.testing.assert_close(x[:, :latents].double(), expected, rtol=3e-6, atol=2e-6)


def test_a_million_normals(device):
    columns = 128
    # an interpreted program costs the same at any size, a compiled one must fit its registers
    rows, programs = (4096, 2) if device.type == "cpu" else (8, 1024)
    x = torch.zeros(programs * rows, columns, device=device)
    draw_normals[(programs,)](make_key(99, 3, device), x, columns, STREAM=0, ROWS=rows, COLUMNS=columns)
    for measured in (moments(x), tails(x), autocorrelations(x), moments(x[:, 0::2]), moments(x[:, 1::2])):
        for name, deviation in measured.items():
            assert abs(deviation) < STANDARD_ERRORS, (name, deviation)
    assert float(x.abs().max()) <= math.sqrt(2 * 24 * math.log(2)) + 1e-5


@pytest.mark.parametrize("n", [1, 2, 3, 7, 63, 64, 97, 1000, 65537, 480_000, 737_280])
def test_the_same_data_order_as_torch(device, n):
    count = 128
    spread = torch.arange(count, device=device) * max(n // count, 1) % n
    spread[-1] = n - 1
    domain = torch.tensor([n, *feistel_domain(n)], device=device)
    for seed, epoch in [(1, 0), (-5, 2**32 + 7), (2**63 - 1, 123)]:
        key = make_key(seed, epoch, device)
        image = torch.full((count,), -1, device=device)
        draw_order[(1,)](key, spread, domain, image, STREAM=int(Stream.DATA_ORDER), N=count)
        assert torch.equal(image, torch_data_order(key, spread, n))
