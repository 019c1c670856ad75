"""The Gaussian toy: closed forms, estimators against autograd, and the slopes of the paper."""

import math

import pytest
import torch

from pyvae.evaluation.signal_to_noise import (
    ESTIMATORS,
    Ratio,
    Toy,
    gradients,
    log_evidence,
    log_weights,
    make_problem,
    measure,
    signal_to_noise,
    slope,
)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_average_to_the_evidence():
    problem = make_problem(Toy(dimensions=2, batch=3))
    log_w, _ = log_weights(problem, noise(3, 400_000, 2))
    torch.testing.assert_close(
        log_w.logsumexp(1) - math.log(400_000), log_evidence(problem), rtol=0, atol=0.005
    )


def test_the_gap_of_one_sample_at_the_optimum_is_exact():
    # KL of N(m, 2/3 I) to the posterior N(m, 1/2 I) in 20 dimensions
    problem = make_problem(Toy(perturbation=0.0, batch=4))
    log_w, _ = log_weights(problem, noise(4, 200_000, 20))
    exact = 10 * (math.log(0.75) + 1 / 3)
    assert exact == pytest.approx(0.4565, abs=1e-4)
    assert float((log_evidence(problem) - log_w.mean(1)).mean()) == pytest.approx(exact, abs=0.01)


def test_an_exact_posterior_leaves_nothing_to_learn():
    problem = make_problem(Toy(perturbation=0.0, variance=0.5, batch=4))
    draws = noise(10, 4, 7, 20)
    log_w, _ = log_weights(problem, draws)
    torch.testing.assert_close(log_w, log_evidence(problem)[:, None].expand(10, 4, 7))
    for estimator in ("stl", "dreg", "rws-dreg"):
        assert float(gradients(problem, draws, [estimator])[1].abs().max()) < 1e-12
    assert float(gradients(problem, draws)[1].abs().max()) > 0.01


def test_total_gradients_are_those_of_autograd():
    toy = Toy(dimensions=3, batch=5, perturbation=0.3)
    problem, draws = make_problem(toy), noise(5, 6, 3)
    mu, b = problem.mu.clone().requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = problem._replace(mu=mu, mean=problem.mean + b)
    bound = (log_weights(moved, draws)[0].logsumexp(-1) - math.log(6)).mean()
    expected = torch.autograd.grad(bound, (mu, b))
    for a, e in zip(gradients(problem, draws), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_other_estimators_are_those_of_autograd_with_q_held():
    problem, draws = make_problem(Toy(dimensions=3, batch=5, perturbation=0.3)), noise(5, 6, 3)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    z = problem.mean[:, None] + b + math.sqrt(problem.variance) * draws
    held = (z - problem.mean[:, None]) / math.sqrt(problem.variance)
    log_w = log_weights(problem, held)[0]
    weight = log_w.detach().softmax(-1)
    coefficients = {"stl": weight, "dreg": weight**2, "rws-dreg": weight - weight**2}
    for estimator, c in coefficients.items():
        (expected,) = torch.autograd.grad((c * log_w).sum(-1).mean(), b, retain_graph=True)
        torch.testing.assert_close(gradients(problem, draws, [estimator])[1], expected)


def test_estimators_that_should_agree_on_average_do():
    problem = make_problem(Toy(dimensions=2, batch=2, perturbation=0.5))
    draws = noise(200_000, 2, 3, 2)
    means = {e: gradients(problem, draws, [e])[1].mean(0) for e in ("total", "dreg")}
    torch.testing.assert_close(means["dreg"], means["total"], rtol=0, atol=0.01)
    one = noise(5, 2, 1, 2)
    assert torch.equal(gradients(problem, one, ["stl"])[1], gradients(problem, one, ["dreg"])[1])


def test_the_ratio_by_hand():
    problem = make_problem(Toy(dimensions=3, batch=2, perturbation=0.5))
    g = torch.Generator().manual_seed(9)
    draws = torch.randn(500, 4, 2, 5, 3, generator=g, dtype=torch.float64)
    found = signal_to_noise(problem, samples=5, bounds=4, draws=500, seed=9)
    for ratio, each in zip(found, gradients(problem, draws), strict=True):
        g = each.mean(1)
        mean, variance = g.mean(0), g.var(0)
        expected = ((mean**2 - variance / 500).sum() / variance.sum()).sqrt()
        assert ratio.snr == pytest.approx(float(expected), rel=1e-9)
        assert ratio.floor == pytest.approx(500**-0.5)


def test_noise_alone_is_below_the_floor():
    problem = make_problem(Toy(perturbation=0.0, variance=0.5, batch=2))
    # at the exact posterior the total gradient is noise around 0
    found = [signal_to_noise(problem, draws=400, seed=s)[1] for s in range(20)]
    assert all(ratio.snr < ratio.floor for ratio in found)
    assert sum(ratio.snr == 0 for ratio in found) > 3


def test_slope():
    ratios = [Ratio(3 * n**-0.5, 0.0) for n in (1, 10, 100)]
    assert slope((1, 10, 100), ratios) == pytest.approx(-0.5)
    assert slope((1, 10, 100), [*ratios[:2], Ratio(0.0, 0.0)]) == pytest.approx(-0.5)
    assert slope((1, 10, 100), [*ratios[:2], Ratio(1e-4, 0.01)]) == pytest.approx(-0.5)  # below its floor
    assert math.isnan(slope((1, 10), [Ratio(0.0, 0.0)] * 2))


@pytest.mark.parametrize(
    ("against", "parameter", "expected", "draws"),
    [("K", 0, 0.5, 2000), ("M", 0, 0.5, 2000), ("M", 1, 0.5, 8000), ("K", 1, -0.5, 40000)],
)
def test_slopes_of_the_paper(against, parameter, expected, draws):
    problem, counts = make_problem(Toy(batch=4)), (3, 10, 30)
    options = {"K": "samples", "M": "bounds"}
    ratios = [
        signal_to_noise(problem, draws=draws, seed=n, **{options[against]: n})[parameter] for n in counts
    ]
    assert slope(counts, ratios) == pytest.approx(expected, abs=0.08)


def test_dreg_does_not_lose_its_signal():
    problem = make_problem(Toy(batch=4))
    ratios = [
        signal_to_noise(problem, samples=k, draws=4000, estimators=["dreg"], seed=k)[1] for k in (3, 10, 30)
    ]
    assert slope((3, 10, 30), ratios) > 0.25


@pytest.mark.slow
def test_slopes_at_full_size():
    curves = {(c.parameter, c.estimator, c.against): c for c in measure(Toy())}
    assert len(curves) == 2 + len(ESTIMATORS) + 1
    for key in (
        ("theta", "total", "K"),
        ("phi", "total", "K"),
        ("theta", "total", "M"),
        ("phi", "total", "M"),
    ):
        assert curves[key].slope == pytest.approx(curves[key].theory, abs=0.05), key
    assert curves["phi", "dreg", "K"].slope > 0.3
