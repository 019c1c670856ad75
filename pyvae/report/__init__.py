"""What a run has learnt, to look at: evaluation, figures, latent traversals and one self-contained page."""

from pyvae.report.page import report
from pyvae.report.traversal import traverse

__all__ = ["report", "traverse"]
