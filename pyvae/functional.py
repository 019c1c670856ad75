"""The ops as functions."""

from pyvae.ops.aggregate_log_density import aggregate_log_density
from pyvae.ops.bernoulli_nll import bernoulli_nll
from pyvae.ops.reparameterize_kl import reparameterize_kl

__all__ = ["aggregate_log_density", "bernoulli_nll", "reparameterize_kl"]
