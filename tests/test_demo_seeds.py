"""What benchmarks/demo_seeds.py calls clean."""

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = ("shape", "scale", "posX", "posY")
CLASSES = torch.cartesian_prod(*(torch.arange(size) for size in (3, 6, 8, 8)))


@pytest.fixture
def scores(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("demo_seeds").factor_scores


def codes(*columns):
    return torch.stack([column.float() for column in columns], -1)


SHAPE, SCALE, X, Y = (column - column.float().mean() for column in CLASSES.unbind(-1))
NOTHING = torch.zeros(len(CLASSES))


def test_a_latent_for_each_factor_is_clean(scores):
    found = scores(codes(NOTHING, Y, -(X**3), SCALE.exp()), CLASSES, NAMES)
    assert found["clean"]
    assert found["active"] == 3
    assert {name: each["latent"] for name, each in found["factors"].items()} == {
        "scale": 3,
        "posX": 2,
        "posY": 1,
    }
    assert found["factors"]["posX"]["spearman"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        codes(SCALE, X + Y, X - Y),
        codes(SCALE, X.abs(), Y),
        codes(SCALE, X, Y, X**2),
        codes(SCALE + X / 3, X, Y),
        codes(SHAPE, X, Y),
        codes(SCALE * 1e-3, X, Y),
        # one latent for two factors
        codes(10 * SCALE + X, NOTHING, Y),
    ],
    ids=["rotated", "folded", "twice", "mixed", "missing", "asleep", "shared"],
)
def test_what_is_not_clean(scores, wrong):
    assert not scores(wrong, CLASSES, NAMES)["clean"]


def test_a_fold_is_told_from_a_rotation(scores):
    folded = scores(codes(SCALE, X.abs(), Y), CLASSES, NAMES)["factors"]["posX"]
    assert folded["eta_squared"] == pytest.approx(1)
    assert folded["spearman"] == pytest.approx(0, abs=1e-4)
    turned = scores(codes(SCALE, X + Y, X - Y), CLASSES, NAMES)["factors"]["posX"]
    assert turned["eta_squared"] == pytest.approx(0.5, abs=1e-3)
    assert turned["second_eta_squared"] == pytest.approx(0.5, abs=1e-3)


def test_ranks_are_those_of_scipy(scores):
    stats = pytest.importorskip("scipy.stats")
    spearman = importlib.import_module("demo_seeds").spearman
    values = torch.randn(500, 2).round(decimals=1)
    other = torch.randint(0, 6, (500, 3))
    found = spearman(values, other)
    for d in range(2):
        for f in range(3):
            expected = stats.spearmanr(values[:, d], other[:, f]).statistic
            assert float(found[d, f]) == pytest.approx(expected, abs=1e-9)
