"""The ops as functions.

Latents are ``[..., B, D]`` and images ``[..., B, *image]`` whatever the rank, dimensions in front of the batch being
ensemble members; :mod:`pyvae.modules` takes what networks give, maps among it. Inside transforms of torch (torch.func,
forward-mode derivatives, tracing, export) an op is its reference in plain torch, or it refuses: docs/transforms.md.
"""

from pyvae.ops.aggregate_log_density import aggregate_log_density
from pyvae.ops.bernoulli_nll import bernoulli_nll
from pyvae.ops.code_histogram import code_histogram
from pyvae.ops.gather_bits import gather_bits
from pyvae.ops.importance_log_weight import importance_log_weight
from pyvae.ops.permute_dims import permute_dims, tc_batch
from pyvae.ops.posterior_entropy import posterior_entropy
from pyvae.ops.reparameterize_kl import reparameterize_kl

__all__ = [
    "aggregate_log_density",
    "bernoulli_nll",
    "code_histogram",
    "gather_bits",
    "importance_log_weight",
    "permute_dims",
    "posterior_entropy",
    "reparameterize_kl",
    "tc_batch",
]
