"""What the weights of a run are worth: scores of its codes, its likelihood, and the file that keeps both."""

from pyvae.evaluation.dead import DeadUnits, dead_units
from pyvae.evaluation.likelihood import (
    MARGINAL_LIKELIHOOD,
    check_likelihood,
    compute_likelihood,
    read_likelihood,
    score_likelihood,
)
from pyvae.evaluation.metrics_file import Metrics, read_metrics, read_scores, write_metrics
from pyvae.evaluation.scores import Scores, check_scores, compute_scores, none_of, score

__all__ = [
    "MARGINAL_LIKELIHOOD",
    "DeadUnits",
    "Metrics",
    "Scores",
    "check_likelihood",
    "check_scores",
    "compute_likelihood",
    "compute_scores",
    "dead_units",
    "none_of",
    "read_likelihood",
    "read_metrics",
    "read_scores",
    "score",
    "score_likelihood",
    "write_metrics",
]
