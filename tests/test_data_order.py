"""The keyed permutation of the data: a bijection, and a random one."""

import math

import pytest
import torch

from pyvae import random
from pyvae.random import data_order, feistel_domain, make_key

DSPRITES = 737_280
SHAPES3D = 480_000


def order(n, *key):
    return data_order(make_key(*key), torch.arange(n), n)


def test_a_bijection_for_every_small_n():
    for n in range(1, 301):
        assert torch.equal(order(n, n, 3).sort().values, torch.arange(n)), n


@pytest.mark.parametrize("n", [1000, 2501, 9973, 65537, SHAPES3D, DSPRITES])
@pytest.mark.parametrize("key", [(0, 0), (-1, 7), (2**63 - 1, 2**33)])
def test_a_bijection_for_big_n(n, key):
    assert torch.equal(order(n, *key).sort().values, torch.arange(n))


def test_a_position_does_not_depend_on_the_others():
    whole = order(1000, 5, 1)
    some = torch.tensor([[999, 0], [17, 17]])
    assert torch.equal(data_order(make_key(5, 1), some, 1000), whole[some])


def test_keys_broadcast_against_positions():
    keys = torch.stack([make_key(5, epoch) for epoch in range(4)])
    mixed = data_order(keys, torch.tensor([10, 20, 30, 40]), 97)
    for i, key in enumerate(keys):
        assert int(mixed[i]) == int(data_order(key, torch.tensor(10 * (i + 1)), 97))
    table = data_order(keys[:, None], torch.arange(97), 97)
    for i, key in enumerate(keys):
        assert torch.equal(table[i], data_order(key, torch.arange(97), 97))


def test_other_seeds_and_epochs_give_other_orders():
    base = order(1000, 3, 5)
    for key in [(4, 5), (3 + 2**32, 5), (3, 6), (3, 5 + 2**32)]:
        other = order(1000, *key)
        # the number of matches of two random permutations is Poisson(1): 12 has probability 1e-9
        assert int((base == other).sum()) < 12
    matches = [int((order(1000, 3, epoch) == base).sum()) for epoch in range(6, 206)]
    assert abs(sum(matches) / 200 - 1) < 5 / math.sqrt(200)


def chi_square(counts):
    """Deviation of a chi-square from its mean, in standard deviations."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [7, 64, 97, 1000])
def test_every_position_gets_every_image_equally_often(n):
    keys = torch.stack([torch.full((100_000,), 31), torch.arange(100_000)], -1)
    for position in (0, 1, n - 1):
        image = data_order(keys, torch.tensor(position), n)
        assert abs(chi_square(torch.bincount(image, minlength=n).double())) < 5


def test_pairs_of_positions_get_every_pair_of_images_equally_often():
    n = 12
    keys = torch.stack([torch.arange(100_000), torch.full((100_000,), 2)], -1)
    images = data_order(keys[:, None], torch.tensor([0, 1]), n)
    counts = torch.bincount(images[:, 0] * n + images[:, 1], minlength=n * n).view(n, n)
    assert int(counts.diag().sum()) == 0
    assert abs(chi_square(counts[~torch.eye(n, dtype=torch.bool)].double())) < 5


def test_an_epoch_is_not_correlated_with_the_position():
    image = order(DSPRITES, 8, 0).double()
    position = torch.arange(DSPRITES).double()
    pairs = torch.stack([position, image])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) * math.sqrt(DSPRITES) < 5
    # neighbours in the order are not neighbours in the data
    pairs = torch.stack([image[:-1], image[1:]])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) * math.sqrt(DSPRITES) < 5


def test_no_cycle_walking_for_dsprites(monkeypatch):
    assert feistel_domain(DSPRITES) == (768, 960)
    calls = []
    feistel = random._feistel

    def counted(*args):
        calls.append(1)
        return feistel(*args)

    monkeypatch.setattr(random, "_feistel", counted)
    order(DSPRITES, 1, 2)
    assert len(calls) == 1
    order(97, 1, 2)
    assert len(calls) > 2


def test_the_domain_is_little_larger_than_the_range():
    for n in (*range(1, 3000), *range(3000, 200_000, 997), SHAPES3D, 202_599, 10**6, 2**31 - 1):
        a, b = feistel_domain(n)
        assert 8 <= a <= b
        assert a * b >= n
        if n > 2500:
            assert a * b < 1.02 * n, n
            assert a > math.sqrt(n) / 2 - 1, n


@pytest.mark.parametrize("n", [0, -1, 2**31])
def test_a_range_that_does_not_fit_is_refused(n):
    with pytest.raises(ValueError, match=rf"n must be in \[1, 2\*\*31\), got {n}"):
        data_order(make_key(0), torch.arange(1), n)


def test_a_key_is_required():
    with pytest.raises(TypeError, match="key"):
        data_order(torch.zeros(2), torch.arange(3), 3)
