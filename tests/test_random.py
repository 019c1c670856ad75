"""The randomness contract in torch: which integers, which floats, and that they are random."""

import math

import numpy as np
import pytest
import torch

from pyvae.engine.batches import BatchOrder
from pyvae.engine.ledger import Ledger
from pyvae.errors import PyvaeError, SeedError
from pyvae.nets import seeded
from pyvae.random import (
    Stream,
    bits,
    check_counters,
    fresh_key,
    make_key,
    normal,
    philox,
    uniform,
    uniform_from_bits,
)

# Random123 1.14, tests/kat_vectors, philox4x32 of 10 rounds: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD = 2**32
STANDARD_ERRORS = 5.0


def whole(key):
    """The seed whose two words are the given key."""
    return make_key(key[0] + (key[1] << 32))[0]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(counter, key, output):
    words = philox(whole(key), tuple(torch.tensor(c) for c in counter))
    assert tuple(int(w) for w in words) == output


def test_element_row_d_takes_word_d_mod_4_of_its_counter():
    key = make_key(-3, 5 * WORD + 9)
    rows, columns = 5, 7
    drawn = bits(key, rows, columns, Stream.PRIOR)
    for row in range(rows):
        for d in range(columns):
            counter = (row * 2 + d // 4, int(Stream.PRIOR), 9, 5)
            words = philox(key[0], tuple(torch.tensor(c) for c in counter))
            assert int(drawn[row, d]) == int(words[d % 4])


def test_the_same_integers_under_compile():
    torch._dynamo.reset()
    compiled = torch.compile(lambda key: bits(key, 9, 10, 3), backend="aot_eager", fullgraph=True)
    for seed, step in [(0, 0), (-1, 2**40 + 3), (2**63 - 1, -1)]:
        key = make_key(seed, step)
        assert torch.equal(compiled(key), bits(key, 9, 10, 3))
    counter, key, output = KNOWN[2]
    known = torch.compile(philox, backend="aot_eager", fullgraph=True)
    words = known(whole(key), tuple(torch.tensor(c) for c in counter))
    assert tuple(int(w) for w in words) == output


def test_a_key_is_taken_modulo_two_to_the_64():
    assert make_key(-(2**63), -1).tolist() == [-(2**63), -1]
    assert make_key(2**63, 2**64 - 1).tolist() == [-(2**63), -1]
    assert make_key(np.uint64(2**64 - 1), torch.tensor(5)).tolist() == [-1, 5]


def test_seeds_of_more_bits_are_refused():
    """Two of them would be one, and draw the same."""
    for seed in (2**64, 2**64 + 5, -(2**63) - 1):
        with pytest.raises(SeedError, match=rf"^seed: expected -2\*\*63 to 2\*\*64 - 1, got {seed}$"):
            make_key(seed)
        with pytest.raises(PyvaeError, match=r"^step: expected"):
            make_key(0, seed)
    with pytest.raises(TypeError, match="seed: expected an integer, got float"):
        make_key(1.5)


def test_every_seed_of_64_bits_trains():
    """Weights, noise, order of the data and binarisation are functions of all of its bits."""
    cpu, batches = torch.device("cpu"), []
    for seed in (2**64 - 1, 2**63, 2**63 - 1, 0):
        order = BatchOrder(seed, 1000, 8, cpu)
        assert Ledger(["loss"], seed, rows=1, log_every=1, device=cpu).key.tolist() == make_key(seed).tolist()
        order.prepare(3)
        batches.append(order.index(torch.tensor(3)).tolist())
        with seeded(seed):
            assert torch.initial_seed() % 2**64 == seed
    assert len({tuple(b) for b in batches}) == 4


def test_uniform_is_exact_and_open():
    words = torch.tensor([0, 511, 512, WORD - 512, WORD - 1])
    expected = [2.0**-24, 2.0**-24, 3 * 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-24]
    assert uniform_from_bits(words).tolist() == expected
    assert uniform_from_bits(words, torch.float64).tolist() == expected
    drawn = uniform(make_key(1), 1000, 16, 0)
    assert torch.equal(drawn.double(), uniform(make_key(1), 1000, 16, 0, torch.float64))
    assert 0 < drawn.min() < 1e-3
    assert 1 - 1e-3 < drawn.max() < 1


def test_normal_is_box_muller_on_words_01_and_23():
    key = make_key(11, 4)
    u = uniform(key, 3, 8, 2, torch.float64).tolist()
    drawn = normal(key, 3, 7, 2, torch.float64)
    for row in range(3):
        for d in range(7):
            radius, angle = u[row][d - d % 2], u[row][d - d % 2 + 1]
            trigonometry = math.cos if d % 2 == 0 else math.sin
            expected = math.sqrt(-2 * math.log(radius)) * trigonometry(2 * math.pi * angle)
            assert float(drawn[row, d]) == pytest.approx(expected, rel=1e-12)
    single = normal(key, 3, 7, 2)
    torch.testing.assert_close(single.double(), drawn, rtol=1e-5, atol=1e-6)


def test_normals_stay_finite_at_the_ends_of_the_uniform():
    largest = math.sqrt(2 * 24 * math.log(2))
    assert float(torch.sqrt(-2 * torch.log(uniform_from_bits(torch.tensor(0))))) == pytest.approx(largest)
    assert float(torch.sqrt(-2 * torch.log(uniform_from_bits(torch.tensor(WORD - 1))))) > 0


def test_a_row_draws_the_same_in_a_bigger_batch_of_the_same_width():
    key = make_key(2, 3)
    assert torch.equal(normal(key, 100, 10, 0)[:7], normal(key, 7, 10, 0))
    assert torch.equal(bits(key, 100, 10, 0)[:, :9], bits(key, 100, 9, 0))
    assert not torch.equal(bits(key, 100, 10, 0)[:, :8], bits(key, 100, 8, 0))


def test_an_ensemble_member_draws_what_it_would_alone():
    keys = torch.stack([make_key(s, t) for s, t in [(1, 0), (1, 9), (-5, 2**33), (2**63 - 1, 0)]]).view(
        2, 2, 2
    )
    together = normal(keys, 6, 5, Stream.METRIC)
    assert together.shape == (2, 2, 6, 5)
    for i in range(2):
        for j in range(2):
            assert torch.equal(together[i, j], normal(keys[i, j], 6, 5, Stream.METRIC))


def test_every_part_of_the_key_changes_every_draw():
    base = bits(make_key(1, 1), 64, 8, 0)
    others = [
        bits(make_key(2, 1), 64, 8, 0),
        bits(make_key(1 + WORD, 1), 64, 8, 0),
        bits(make_key(1, 2), 64, 8, 0),
        bits(make_key(1, 1 + WORD), 64, 8, 0),
        bits(make_key(1, 1), 64, 8, 1),
        bits(make_key(1, 1), 65, 8, 0)[1:],
    ]
    for other in others:
        # 512 words of 32 bits: one chance equality in 8 million
        assert int((base == other).sum()) == 0
        # half of the 16,384 bits differ, within 5 standard errors of 64
        flipped = sum(int(((base ^ other) >> i & 1).sum()) for i in range(32))
        assert abs(flipped - 8192) < STANDARD_ERRORS * 64


def test_streams_keep_their_numbers():
    expected = {
        "POSTERIOR": 0, "PERMUTATION": 1, "DATA_ORDER": 2, "SECOND_BATCH": 3, "PRIOR": 4, "METRIC": 5,
        "SECOND_POSTERIOR": 6, "BINARISATION": 7, "SECOND_BINARISATION": 8, "NOISE": 9, "CODE": 10,
        "CATEGORY": 11, "INTERPOLATION": 12,
    }  # fmt: skip
    assert {stream.name: int(stream) for stream in Stream} == expected


def moments(x):
    """(name, deviation in standard errors) of the sample moments of standard normals."""
    n = x.numel()
    x = x.flatten().double()
    mean, second = x.mean(), x.square().mean()
    third, fourth = (x**3).mean(), (x**4).mean()
    # variances of x, x^2, x^3, x^4 under N(0, 1): 1, 2, 15, 96
    return {
        "mean": float(mean) * math.sqrt(n),
        "variance": float(second - 1) * math.sqrt(n / 2),
        "skew": float(third) * math.sqrt(n / 15),
        "kurtosis": float(fourth - 3) * math.sqrt(n / 96),
    }


def tails(x):
    """{k: deviation of P(|x| > k) in standard errors}."""
    n = x.numel()
    deviations = {}
    for k in (1, 2, 3, 4, 5):
        p = math.erfc(k / math.sqrt(2))
        deviations[k] = (int((x.abs() > k).sum()) - n * p) / math.sqrt(n * p * (1 - p))
    return deviations


def autocorrelations(x):
    """Deviations in standard errors of the products of elements 1 to 8 apart, along both dimensions."""
    deviations = {}
    for name, y in (("rows", x), ("columns", x.T)):
        for lag in range(1, 9):
            product = y[lag:] * y[:-lag]
            deviations[name, lag] = float(product.double().mean()) * math.sqrt(product.numel())
    return deviations


def test_ten_million_normals():
    x = normal(make_key(20240601, 17), 100_000, 100, Stream.POSTERIOR)
    for measured in (moments(x), tails(x), autocorrelations(x), moments(x[:, 0::2]), moments(x[:, 1::2])):
        for name, deviation in measured.items():
            assert abs(deviation) < STANDARD_ERRORS, (name, deviation)
    # cos and sin of one pair share their radius: uncorrelated, and so are their squares
    products = (x[:, 0::2].double().square() - 1) * (x[:, 1::2].double().square() - 1) / 2
    assert abs(float(products.mean())) * math.sqrt(products.numel()) < STANDARD_ERRORS
    assert float(x.abs().max()) <= math.sqrt(2 * 24 * math.log(2)) + 1e-5


def test_consecutive_steps_and_members_are_uncorrelated():
    keys = torch.stack([make_key(5, step) for step in range(9)] + [make_key(5 + i, 0) for i in range(1, 9)])
    x = normal(keys, 1000, 64, 0).flatten(1).double()
    correlation = x @ x.T / x.shape[1]
    away = correlation - torch.diag(correlation.diag())
    assert float(away.abs().max()) * math.sqrt(x.shape[1]) < STANDARD_ERRORS


def test_words_fill_their_range_evenly():
    words = bits(make_key(77), 1 << 16, 16, 0).flatten()
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift) & 255, minlength=256).double()
        expected = words.numel() / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi2 - 255) < STANDARD_ERRORS * math.sqrt(2 * 255)


def test_fresh_key_follows_manual_seed(device):
    torch.manual_seed(5)
    first, second = fresh_key(device), fresh_key(device)
    torch.manual_seed(5)
    again = fresh_key(device)
    torch.manual_seed(6)
    other = fresh_key(device)
    assert first.dtype == torch.int64
    assert first.shape == (2,)
    assert first.device.type == device.type
    assert torch.equal(first, again)
    words = {word for key in (first, second, other) for word in key.tolist()}
    assert len(words) == 6
    # all bits are drawn: the chance that one is equal in 64 keys is 2^-63
    many = torch.stack([fresh_key(device) for _ in range(64)])
    for bit in range(63):
        lit = (many >> bit & 1).sum(0)
        assert bool(((lit > 0) & (lit < 64)).all())


def test_a_key_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"key: expected an int64 tensor .* got int$"):
        bits(7, 1, 1, 0)
    with pytest.raises(TypeError, match=r"key: .*got torch\.float32"):
        bits(torch.zeros(2), 1, 1, 0)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_a_key_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"key: expected shape .* got \[") as error:
        normal(torch.zeros(shape, dtype=torch.int64), 1, 1, 0)
    assert str(list(shape)) in str(error.value)


def test_a_key_draws_no_more_than_its_counters():
    check_counters(2**32)
    with pytest.raises(ValueError, match="4294967297"):
        check_counters(2**32 + 1)
    with pytest.raises(ValueError, match=r"2\*\*32"):
        bits(make_key(0), 2**32 + 1, 1, 0)
