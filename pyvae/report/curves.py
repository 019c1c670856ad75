"""The curves of a run's training, where its trace is still there."""

import html
import logging

from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.report.figures import Trace, draw_trace, save, trace_caption
from pyvae.report.markup import figure

_LOG = logging.getLogger(__name__)


def trace_of(run: RunDirectory) -> Trace | None:
    """The run's trace; None, with a warning, where a disk has lost it: weights and scores are to be seen without."""
    try:
        return run.trace()
    except RunError as error:
        _LOG.warning("the report goes without the curves of training: %s", error)
        return None


def draw(run: RunDirectory, trace: Trace | None) -> str:
    """``figures/trace.png`` with its caption, or a note that there is none."""
    if trace is None:
        return (
            f'<p class="notice">The trace of {html.escape(run.path.name)} is lost: there are no curves.</p>'
        )
    return figure(save(draw_trace(trace), run.figures / "trace.png"), trace_caption(trace))
