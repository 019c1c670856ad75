"""posterior_entropy: the sampled estimator of Chen et al., quadrature in PyTorch, pyvae."""

import math

import torch

from interleaved import Case, each
from pyvae import reference
from pyvae.ops.posterior_entropy import posterior_entropy, sampled_entropy

NODES = 200_001


def sampled(mu, logvar):
    """From 1,000 samples: the conditionals cost five times that again."""
    rows = torch.randint(len(mu), (1000,), device=mu.device)
    z = mu[rows] + torch.exp(0.5 * logvar[rows]) * torch.randn(1000, mu.shape[1], device=mu.device)
    return (sampled_entropy(z, mu, logvar)[0],)


def exact_marginal(factor_sizes: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Of the inputs below: a latent per factor, a mixture over its values, integrated on a fine grid of its own; the
    others are Gaussian but for a millionth."""
    entropies = []
    for size in factor_sizes:
        centres = torch.linspace(-1, 1, size, dtype=torch.float64)
        nodes = torch.linspace(-3, 3, NODES, dtype=torch.float64)
        log_q = torch.full((NODES,), -torch.inf, dtype=torch.float64)
        for centre in centres:
            log_q = torch.logaddexp(log_q, -0.5 * (nodes - centre).square() * math.exp(6.0))
        log_q += 3.0 - 0.5 * math.log(2 * math.pi) - math.log(size)
        entropies.append(-torch.trapezoid(log_q.exp() * log_q, nodes))
    idle = 0.5 * math.log(2 * math.pi * math.e * (1 + deviation**2))
    return torch.tensor([*entropies, *[idle] * 5], dtype=torch.float64)


def exact_conditionals(factor_sizes: tuple[int, ...], marginal: torch.Tensor) -> list[torch.Tensor]:
    """``[10, size]`` given each factor: its own latent is then one Gaussian, the others are as before."""
    known = 0.5 * math.log(2 * math.pi * math.e) - 3.0
    found = []
    for factor, size in enumerate(factor_sizes):
        given = marginal.clone()
        given[factor] = known
        found.append(given.unsqueeze(1).expand(-1, size))
    return found


def case(images: int, factor_sizes: tuple[int, ...]) -> Case:
    def make(device, generator):
        classes = reference.factor_classes(images, factor_sizes, torch.device("cpu"))
        used = (classes / (torch.tensor(factor_sizes) - 1.0) * 2 - 1).to(device)
        idle = 0.01 * torch.randn(images, 5, device=device, generator=generator)
        logvar = torch.cat([torch.full_like(used, -6.0), torch.zeros_like(idle)], 1)
        return torch.cat([used, idle], 1), logvar

    def entropies(op):
        def both(mu, logvar):
            found = op(mu, logvar, factor_sizes)
            return found.marginal, *found.conditional

        return both

    functions = {
        "sampled, marginal alone": sampled,
        "reference": entropies(reference.posterior_entropy),
        "pyvae": entropies(posterior_entropy),
    }
    if images > 100_000:
        # the others take minutes; benchmarks/bench_metrics.py extrapolates them
        functions = {"pyvae": functions["pyvae"]}
    exact = exact_marginal(factor_sizes, 0.01)
    exact_given = exact_conditionals(factor_sizes, exact)
    return Case(
        op="posterior_entropy",
        what="marginal and conditional",
        size=(images, 10),
        make=make,
        functions=functions,
        # the sampled one has no conditionals to compare
        derive=lambda _, outputs: [outputs[0], *(outputs[1:] or exact_given)],
        expect=lambda *_: [exact, *exact_given],
        tolerance=1e-5,
        tolerances={"sampled, marginal alone": 0.15},
        # read once; the work is in the exponentials
        moved=2 * 4 * 10 * images,
        uncaptured=tuple(functions),  # each waits to see what it was given
        sets=1,
    )


# a quarter of the orientations of dSprites by a quarter of its positions; then all of it
CASES = [case(11_520, (3, 6, 10, 8, 8)), case(737_280, (3, 6, 40, 32, 32))]


@each(CASES)
def test_posterior_entropy(timed, case, function):
    timed(case, function)
