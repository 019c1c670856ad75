"""Disentanglement metrics of a table of codes."""

from pyvae.metrics.beta_vae import BetaVae, beta_vae
from pyvae.metrics.dci import Dci, dci
from pyvae.metrics.factor_vae import FACTOR_VAE_PAPER, FactorVae, factor_vae
from pyvae.metrics.irs import Irs, irs
from pyvae.metrics.mig import Mig, mig
from pyvae.metrics.mig_chen import MigChen, mig_chen
from pyvae.metrics.modularity import Explicitness, Modularity, explicitness, modularity
from pyvae.metrics.registry import METRICS, Evaluation, evaluate, evaluate_possible, unavailable
from pyvae.metrics.sap import Sap, sap
from pyvae.metrics.streaming import StreamedMetrics
from pyvae.metrics.table import CodeTable, encode
from pyvae.metrics.total_correlation import TotalCorrelation, total_correlation
from pyvae.metrics.udr import Udr, udr
from pyvae.metrics.unsupervised import Unsupervised, unsupervised

__all__ = [
    "FACTOR_VAE_PAPER",
    "METRICS",
    "BetaVae",
    "CodeTable",
    "Dci",
    "Evaluation",
    "Explicitness",
    "FactorVae",
    "Irs",
    "Mig",
    "MigChen",
    "Modularity",
    "Sap",
    "StreamedMetrics",
    "TotalCorrelation",
    "Udr",
    "Unsupervised",
    "beta_vae",
    "dci",
    "encode",
    "evaluate",
    "evaluate_possible",
    "explicitness",
    "factor_vae",
    "irs",
    "mig",
    "mig_chen",
    "modularity",
    "sap",
    "total_correlation",
    "udr",
    "unavailable",
    "unsupervised",
]
