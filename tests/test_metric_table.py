"""The table of codes that every metric reads, and its making."""

import math

import numpy as np
import pytest
import torch

import codes
from pyvae.metrics import METRICS, CodeTable, encode
from pyvae.metrics.registry import WITHOUT_FACTORS
from pyvae.nets import build
from tiny import TinyData

SIZES = tuple(codes.SMALL.values())


@pytest.fixture
def small():
    return codes.table(codes.perfect(codes.SMALL))


def test_the_grid_knows_its_classes(small):
    expected = codes.classes(codes.SMALL)
    assert np.array_equal(small.classes(), expected)
    rows = torch.tensor([700, 3, 3, 0])
    assert np.array_equal(small.classes(rows), expected[rows])


def test_interventions_change_one_class_alone(small):
    expected = codes.classes(codes.SMALL)
    rng = np.random.default_rng(0)
    rows, factor = rng.integers(len(expected), size=200), rng.integers(4, size=200)
    new = rng.integers(np.array(SIZES)[factor])
    rows, factor, new = map(torch.tensor, (rows, factor, new))
    assert np.array_equal(small.class_of(rows, factor), expected[rows, factor])
    changed = expected[rows].copy()
    changed[np.arange(200), factor] = new
    assert np.array_equal(small.with_class(rows, factor, new), np.ravel_multi_index(changed.T, SIZES))


def test_classes_of_rows_that_are_no_grid():
    labels = np.array([[0, 3, 7, 1], [2, 0, 0, 0], [1, 1, 1, 1]])
    subset = codes.table(np.zeros((3, 2)), labels=labels)
    assert np.array_equal(subset.classes(), labels)
    assert np.array_equal(subset.classes(torch.tensor([2, 0])), labels[[2, 0]])
    with pytest.raises(ValueError, match=r"beta_vae .* full grid"):
        subset.require_grid("beta_vae")


def test_factors_are_left_out_by_name(small):
    assert small.kept(()) == [0, 1, 2, 3]
    assert small.kept(["shape", "x"]) == [1, 3]
    assert small.kept("shape") == [1, 2, 3]
    assert small.names([1, 3]) == ("scale", "y")
    assert small.sizes([1, 3]) == (4, 8)
    with pytest.raises(ValueError, match="no factor 'colour'; there are shape, scale, x, y"):
        small.kept(["colour"])
    with pytest.raises(ValueError, match="every factor"):
        small.kept(codes.SMALL)


@pytest.mark.parametrize("metric", [m for name, m in METRICS.items() if name not in WITHOUT_FACTORS])
def test_metrics_that_need_factors_say_so(metric):
    table = CodeTable(torch.randn(20_000, 2), torch.zeros(20_000, 2), (), ())
    with pytest.raises(ValueError, match="the factors behind these codes are not known"):
        metric(table)


def test_mean_kl_is_that_of_the_closed_form():
    mu = codes.noise(768, 3)
    table = codes.table(mu, sigma=0.5)
    one_by_one = 0.5 * (mu**2 + 0.25 - math.log(0.25) - 1)
    assert np.allclose(table.mean_kl(), one_by_one.mean(0), rtol=1e-6)
    assert np.allclose(table.mean_kl(torch.tensor([5, 9])), one_by_one[[5, 9]].mean(0), rtol=1e-6)


def make(mu=None, logvar=None, names=("a", "b"), sizes=(2, 3), factors=None):
    mu = torch.zeros(6, 2) if mu is None else mu
    return CodeTable(mu, torch.zeros_like(mu) if logvar is None else logvar, names, sizes, factors)


def with_nan(value):
    x = torch.zeros(6, 2)
    x[4, 1] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mu": with_nan(math.nan)}, ValueError, "mu: latent 1 holds NaN"),
        ({"logvar": with_nan(math.inf)}, ValueError, "logvar: latent 1 holds NaN or infinity"),
        ({"mu": torch.zeros(5, 2)}, ValueError, r"5 rows are not the full grid of \(2, 3\), which has 6"),
        ({"mu": torch.zeros(6)}, ValueError, r"mu: expected shape \[N, D\], got \[6\]"),
        ({"mu": torch.zeros(6, 0)}, ValueError, "mu: expected shape"),
        ({"mu": torch.zeros(0, 2)}, ValueError, "mu: expected shape"),
        (
            {"logvar": torch.zeros(6, 3)},
            ValueError,
            r"logvar: expected the shape of mu \[6, 2\], got \[6, 3\]",
        ),
        ({"mu": torch.zeros(6, 2).double()}, TypeError, "mu: expected torch.float32"),
        ({"names": ("a",)}, ValueError, "does not fit the names"),
        ({"factors": torch.zeros(6, 3).long()}, ValueError, r"factors: expected shape \[6, 2\]"),
        ({"factors": torch.zeros(6, 2).int()}, TypeError, "factors: expected torch.int64"),
        ({"factors": torch.full((6, 2), 2)}, ValueError, r"a class of a is not in \[0, 2\)"),
        ({"factors": torch.full((6, 2), -1)}, ValueError, r"a class of a is not in \[0, 2\)"),
        (
            {"factors": torch.zeros(6, 2)},
            TypeError,
            "factors: expected torch.int64 on the CPU, got torch.float32",
        ),
        (
            {"factors": torch.zeros(2, 6).long()},
            ValueError,
            r"factors: expected shape \[6, 2\], got \[2, 6\]",
        ),
        ({"factors": np.zeros((6, 2), int)}, TypeError, "factors: expected a tensor, got ndarray"),
        (
            {"mu": np.zeros((6, 2), np.float32), "logvar": torch.zeros(6, 2)},
            TypeError,
            "mu: expected a tensor",
        ),
        ({"mu": torch.zeros(6, 2).half()}, TypeError, "mu: expected torch.float32"),
        ({"mu": torch.zeros(6, 2).long()}, TypeError, "mu: expected torch.float32"),
        ({"mu": torch.zeros(6, 2, 1, 1)}, ValueError, r"mu: expected shape \[N, D\], got \[6, 2, 1, 1\]"),
        ({"mu": torch.zeros(6, 2).to_sparse(), "logvar": torch.zeros(6, 2)}, TypeError, "torch.sparse_coo"),
        (
            {"logvar": torch.zeros(2, 6)},
            ValueError,
            r"logvar: expected the shape of mu \[6, 2\], got \[2, 6\]",
        ),
        ({"logvar": torch.zeros(6, 2).double()}, TypeError, "logvar: expected torch.float32"),
        ({"logvar": np.zeros((6, 2))}, TypeError, "logvar: expected a tensor, got ndarray"),
        ({"sizes": (2, 0)}, ValueError, "factor_sizes: at least 1 needed, got 0"),
        ({"sizes": (2, 3.0)}, TypeError, r"factor_sizes: expected a whole number, got 3\.0"),
        ({"sizes": (6, True)}, TypeError, "factor_sizes: expected a whole number, got True"),
        ({"names": ("a", "a")}, ValueError, "factor_names: a name stands twice in 'a', 'a'"),
        ({"names": ("a", 1)}, TypeError, "factor_names: expected strings, got 1"),
        ({"names": "ab"}, TypeError, "factor_names: expected strings, got the one string 'ab'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        make(**arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metrics_take_tables_alone(metric):
    for other in (np.zeros((6, 2)), torch.zeros(6, 2), None):
        with pytest.raises(TypeError, match=f"table: expected a CodeTable, got {type(other).__name__}"):
            metric(other)


def test_codes_of_a_graph_and_lists_of_factors():
    mu = codes.table(codes.perfect(codes.SMALL)).mu.requires_grad_()
    table = CodeTable(mu, torch.zeros(768, 4), list(codes.SMALL), list(codes.SMALL.values()))
    assert not table.mu.requires_grad
    assert (table.factor_names, table.factor_sizes) == (tuple(codes.SMALL), SIZES)
    assert (
        METRICS["mig"](table, points=None).score
        == METRICS["mig"](codes.table(mu.detach()), points=None).score
    )


@pytest.fixture(scope="module")
def net():
    return build("burgess", 1, 4, seed=3)


@pytest.mark.parametrize("training", [True, False])
def test_encode_follows_the_data_set(net, training):
    data = TinyData()
    net.train(training)
    table = encode(net, data, device="cpu", batch_size=50, progress=False)
    with torch.no_grad():
        mu, logvar = net.encoder(data.images(torch.arange(120)))
    torch.testing.assert_close(table.mu, mu)
    torch.testing.assert_close(table.logvar, logvar)
    assert (table.factor_names, table.factor_sizes) == (data.factor_names, (4, 5, 6))
    assert table.factors is None
    assert not table.mu.requires_grad
    assert not table.mu.is_inference()
    assert net.training == training
    assert torch.equal(table.classes(), data.factor_classes(torch.arange(120)))


def test_encode_a_subset(net):
    data = TinyData()
    index = [119, 4, 4, 60]
    table = encode(net, data, device="cpu", batch_size=3, index=index, progress=False)
    with torch.no_grad():
        torch.testing.assert_close(table.mu, net.encoder(data.images(index))[0])
    assert torch.equal(table.classes(), data.factor_classes(index))


def test_encode_from_another_source_of_images(net):
    data = TinyData()
    seen = []

    def load(index):
        seen.append(index)
        return 1 - data.images(index)

    table = encode(net, data, device="cpu", batch_size=64, images=load, progress=False)
    assert torch.equal(torch.cat(seen), torch.arange(120))
    with torch.no_grad():
        torch.testing.assert_close(table.mu, net.encoder(1 - data.images(torch.arange(120)))[0])


def test_encode_shows_progress_unless_told_not_to(net, capsys):
    encode(net, TinyData(), device="cpu", progress=False)
    assert capsys.readouterr().err == ""
    encode(net, TinyData(), device="cpu")
    assert "encode" in capsys.readouterr().err


def test_encode_refuses(net):
    with pytest.raises(ValueError, match="batch_size"):
        encode(net, TinyData(), device="cpu", batch_size=0)
    with pytest.raises(IndexError, match="120"):
        encode(net, TinyData(), device="cpu", index=[0, 120], progress=False)
    with pytest.raises(ValueError, match=r"index: expected shape \[N\] .*, got \[1, 2\]"):
        encode(net, TinyData(), device="cpu", index=[[0, 1]], progress=False)
    with pytest.raises(ValueError, match=r"index: expected shape \[N\] with N at least 1, got \[0\]"):
        encode(net, TinyData(), device="cpu", index=torch.arange(0), progress=False)
    for index, dtype in (([0.5, 1.7], "float32"), (np.ones(120, dtype=bool), "bool")):
        with pytest.raises(TypeError, match=f"index: expected whole numbers, got torch.{dtype}"):
            encode(net, TinyData(), device="cpu", index=index, progress=False)
    with pytest.raises(TypeError, match=r"batch_size: expected a whole number, got 2\.5"):
        encode(net, TinyData(), device="cpu", batch_size=2.5)
    broken = build("burgess", 1, 4)
    with torch.no_grad():
        broken.encoder.head.bias[2] = math.nan
    with pytest.raises(ValueError, match="mu: latent 2 holds NaN"):
        encode(broken, TinyData(), device="cpu", progress=False)
