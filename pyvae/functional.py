"""The ops as functions."""

from pyvae.ops.bernoulli_nll import bernoulli_nll
from pyvae.ops.reparameterize_kl import reparameterize_kl

__all__ = ["bernoulli_nll", "reparameterize_kl"]
