"""Streamed metrics are those of all codes at once."""

import pytest
import torch

from pyvae.metrics import CodeTable, StreamedMetrics, evaluate

SIZES, NAMES = (3, 4, 5), ("shape", "row", "column")
OPTIONS = {
    "mig": {"points": None},
    "mig-chen": {},
    "factor-vae": {"variance_points": None, "votes": 200, "evaluation_votes": 50, "points_per_vote": 8},
    "beta-vae": {"train": 100, "evaluation": 50, "pairs": 4},
    "modularity": {"points": None},
    "sap": {"train": 40, "test": 20},
}


def codes():
    g = torch.Generator().manual_seed(0)
    classes = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))
    mu = torch.cat([classes.float(), torch.randn(60, 1, generator=g)], 1) + 0.1 * torch.randn(
        60, 4, generator=g
    )
    return classes, mu, torch.randn(60, 4, generator=g) - 3


def streamed(names, **options):
    return StreamedMetrics(names, SIZES, NAMES, seed=3, options={n: OPTIONS[n] for n in names}, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_batches_in_any_order_are_the_whole_table(name):
    classes, mu, logvar = codes()
    expected = evaluate(CodeTable(mu, logvar, NAMES, SIZES), [name], seed=3, options={name: OPTIONS[name]})
    metric = streamed([name])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    # as a distributed sampler does, which fills the last batch
    for batch in torch.cat([order, order[:4]]).split(9):
        metric.update(mu[batch][..., None, None], classes[batch].int(), logvar[batch])
    assert metric.compute() == expected
    assert metric.compute() == expected
    metric.reset()
    with pytest.raises(ValueError, match="no codes yet"):
        metric.compute()


def test_part_of_the_grid_serves_what_needs_no_intervention():
    classes, mu, logvar = codes()
    metric = streamed(["mig"])
    metric.update(mu[:50], classes[:50], logvar[:50])
    table = CodeTable(mu[:50], logvar[:50], NAMES, SIZES, classes[:50])
    assert metric.compute() == evaluate(table, ["mig"], seed=3, options={"mig": OPTIONS["mig"]})
    metric = streamed(["beta-vae"])
    metric.update(mu[:50], classes[:50])
    with pytest.raises(
        ValueError, match="beta_vae intervenes on factors: it needs the codes of the full grid"
    ):
        metric.compute()


def test_what_cannot_be_is_refused():
    classes, mu, logvar = codes()
    metric = streamed(["mig", "mig-chen"])
    with pytest.raises(ValueError, match="logvar: mig-chen cannot do without"):
        metric.update(mu, classes)
    with pytest.raises(
        ValueError, match=r"expected codes \[B, D\] and factors \[B, 3\], got \[60, 4\] and \[60, 2\]"
    ):
        metric.update(mu, classes[:, :2], logvar)
    metric.update(mu, classes, logvar)
    with pytest.raises(ValueError, match="3 latents after batches of 4"):
        metric.update(mu[:, :3], classes, logvar[:, :3])
    metric.update(mu, classes + 1, logvar)
    with pytest.raises(ValueError, match="a class of shape is not in"):
        metric.compute()
    with pytest.raises(ValueError, match="unknown metric 'x'"):
        StreamedMetrics(["x"], SIZES)
    with pytest.raises(ValueError, match="does not fit the sizes"):
        StreamedMetrics(["mig"], SIZES, NAMES[:2])
    with pytest.raises(ValueError, match="factor_sizes: give the number"):
        StreamedMetrics(["mig"], ())
