"""Synthetic codes of factor grids, shared by the tests of the metrics: no images, no network."""

import itertools
import math

import numpy as np
import torch

from pyvae.metrics import CodeTable

DSPRITES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
SMALL = {"shape": 3, "scale": 4, "x": 8, "y": 8}


def classes(factors):
    """int64 [N, F]: every combination of classes, the last factor the fastest."""
    return np.array(list(itertools.product(*(range(size) for size in factors.values()))))


def perfect(factors):
    """Float [N, F]: code j is factor j, evenly spaced on [-1, 1]."""
    return 2 * classes(factors) / (np.array(list(factors.values())) - 1) - 1


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def rotated(codes, i, j, degrees=45):
    """Codes with latents i and j rotated into one another."""
    a = math.radians(degrees)
    codes = codes.copy()
    codes[:, [i, j]] = codes[:, [i, j]] @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    return codes


def table(codes, factors=SMALL, *, sigma=0.1, labels=None):
    """A table of mean codes [N, D] with one posterior width; ``labels`` [N, F] unless it is the full grid."""
    mu = torch.tensor(np.asarray(codes), dtype=torch.float32)
    logvar = torch.full_like(mu, 2 * math.log(sigma))
    labels = None if labels is None else torch.tensor(labels)
    return CodeTable(mu, logvar, tuple(factors), tuple(factors.values()), labels)


def log_mixture(z, mu, sigma):
    """log of the mixture of N(mu_n, sigma_n) at z, in float64."""
    terms = -0.5 * ((z[:, None] - mu) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    top = terms.max(1)
    return top + np.log(np.exp(terms - top[:, None]).mean(1))


def mixture_entropy(mu, sigma):
    """Entropy of a mixture of Gaussians by a fine sum."""
    z = np.linspace((mu - 12 * sigma).min(), (mu + 12 * sigma).max(), 4001)
    log_q = log_mixture(z, mu, sigma)
    return -np.sum(np.exp(log_q) * log_q) * (z[1] - z[0])
