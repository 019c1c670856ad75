"""Every op in plain torch, on any device and in any float dtype: the specification that the kernels are tested
against, and what runs where no kernel does. float64 inputs are computed in float64, all others in float32."""

from pyvae.reference.aggregate_log_density import (
    Weights,
    aggregate_log_density,
    aggregate_log_density_backward,
    aggregate_log_density_table,
    aggregate_log_weights,
    check_weighting,
    log_weights_of,
)
from pyvae.reference.bernoulli_nll import bernoulli_nll, bernoulli_nll_backward
from pyvae.reference.code_histogram import CodeHistogram, bin_edges, check_histogram, code_histogram
from pyvae.reference.gather_bits import IMAGE_DTYPES, check_gather, gather_bits
from pyvae.reference.grid import check_factor_sizes, check_whole, factor_classes
from pyvae.reference.importance_log_weight import (
    importance_log_parts,
    importance_log_weight,
    importance_log_weight_backward,
)
from pyvae.reference.permute_dims import permutations, permute_dims, tc_batch
from pyvae.reference.pixels import pack_bits, pixel_nll, unpack_bits
from pyvae.reference.posterior_entropy import (
    Density,
    PosteriorEntropy,
    check_magnitudes,
    check_posteriors,
    posterior_density,
    posterior_entropy,
    quadrature_grid,
    refined_entropy,
)
from pyvae.reference.reparameterize_kl import posterior_noise, reparameterize_kl, reparameterize_kl_backward

__all__ = [
    "IMAGE_DTYPES",
    "CodeHistogram",
    "Density",
    "PosteriorEntropy",
    "Weights",
    "aggregate_log_density",
    "aggregate_log_density_backward",
    "aggregate_log_density_table",
    "aggregate_log_weights",
    "bernoulli_nll",
    "bernoulli_nll_backward",
    "bin_edges",
    "check_factor_sizes",
    "check_gather",
    "check_histogram",
    "check_magnitudes",
    "check_posteriors",
    "check_weighting",
    "check_whole",
    "code_histogram",
    "factor_classes",
    "gather_bits",
    "importance_log_parts",
    "importance_log_weight",
    "importance_log_weight_backward",
    "log_weights_of",
    "pack_bits",
    "permutations",
    "permute_dims",
    "pixel_nll",
    "posterior_density",
    "posterior_entropy",
    "posterior_noise",
    "quadrature_grid",
    "refined_entropy",
    "reparameterize_kl",
    "reparameterize_kl_backward",
    "tc_batch",
    "unpack_bits",
]
