"""What the metrics draw is a function of the seed and of what it is drawn for."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import codes
from pyvae.metrics.sampling import Draw, check_split, draw_integers, draw_key, draw_points, split_codes
from pyvae.random import data_order, make_key

N = 737_280


def test_points_are_different_rows_everywhere():
    rows = draw_points(10_000, N, draw_key(0, Draw.MIG))
    assert len(set(rows.tolist())) == 10_000
    assert 0 <= rows.min() < 1000 < N - 1000 < rows.max() < N
    assert chisquare(np.bincount(rows // (N // 64), minlength=64)).pvalue > 1e-3


def test_points_depend_on_seed_draw_and_part_alone():
    def points(*key):
        return draw_points(100, N, draw_key(*key))

    assert torch.equal(points(0, Draw.MIG), points(0, Draw.MIG))
    for other in ((1, Draw.MIG), (0, Draw.DCI), (0, Draw.MIG, 1)):
        assert len(set(points(0, Draw.MIG).tolist()) & set(points(*other).tolist())) < 5


def test_points_are_not_the_training_batches_of_that_seed():
    for epoch in range(16):
        batch = data_order(make_key(0, epoch), torch.arange(100), N)
        assert not torch.equal(draw_points(100, N, draw_key(0, Draw(epoch))), batch)


def test_all_points_are_the_rows_in_order():
    assert torch.equal(draw_points(None, 7, draw_key(0, Draw.MIG)), torch.arange(7))
    assert torch.equal(draw_points(7, 7, draw_key(0, Draw.MIG)).sort().values, torch.arange(7))


def test_keys_never_meet():
    keys = {tuple(draw_key(0, draw, part).tolist()) for draw in Draw for part in range(200)}
    assert len(keys) == len(Draw) * 200


@pytest.mark.parametrize("size", [1, 5, 768])
def test_integers_are_uniform(size):
    drawn = draw_integers(size, 500, 64, draw_key(1, Draw.BETA_VAE_FIRST))
    assert drawn.shape == (500, 64)
    counts = np.bincount(drawn.flatten(), minlength=size)
    assert len(counts) == size
    assert size == 1 or chisquare(counts).pvalue > 1e-3


def test_a_split_holds_codes_with_their_classes():
    perfect = codes.table(codes.classes(codes.SMALL))
    kept, rows = check_split(perfect, 500, 200, ("scale",), 0, Draw.SAP)
    split = split_codes(perfect, kept, rows, 500)
    assert kept == [0, 2, 3]
    assert np.array_equal(split.train_codes[:, kept], split.train_classes)
    assert np.array_equal(split.test_codes[:, kept], split.test_classes)
    rows = np.concatenate([split.train_codes, split.test_codes])
    assert rows.shape == (700, 4)
    assert len(np.unique(rows, axis=0)) == 700


def test_too_few_points_are_refused():
    table = codes.table(codes.perfect(codes.SMALL))
    with pytest.raises(ValueError, match="points: 769 asked for, the table has 768 rows"):
        draw_points(769, 768, draw_key(0, Draw.MIG))
    with pytest.raises(ValueError, match="points: at least 2"):
        draw_points(1, 768, draw_key(0, Draw.MIG))
    with pytest.raises(ValueError, match=r"train \+ test: 700 \+ 69 points asked for, the table has 768"):
        check_split(table, 700, 69, (), 0, Draw.DCI)
    with pytest.raises(ValueError, match="test: at least 2"):
        check_split(table, 700, 0, (), 0, Draw.DCI)


def test_a_factor_that_does_not_vary_is_refused():
    labels = codes.classes(codes.SMALL)
    labels[:, 1] = 2
    table = codes.table(codes.perfect(codes.SMALL), labels=labels)
    with pytest.raises(ValueError, match="factor scale has one class"):
        check_split(table, 100, 100, (), 0, Draw.DCI)
    assert check_split(table, 100, 100, ("scale",), 0, Draw.DCI)[0] == [0, 2, 3]
