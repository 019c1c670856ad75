"""The curves of a run's training, where its trace is still there."""

import html
import logging

from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.report.charts import charts
from pyvae.report.figures import draw_trace, save
from pyvae.report.panels import Trace, caption, panels_of

_LOG = logging.getLogger(__name__)


def trace_of(run: RunDirectory) -> Trace | None:
    """The run's trace; None, with a warning, where a disk has lost it: weights and scores are to be seen without."""
    try:
        return run.trace()
    except RunError as error:
        _LOG.warning("the report goes without the curves of training: %s", error)
        return None


def draw(run: RunDirectory, trace: Trace | None) -> str:
    """Charts to be read off, and ``figures/trace.png`` for papers; or a note that there is no trace."""
    if trace is None:
        return (
            f'<p class="notice">The trace of {html.escape(run.path.name)} is lost: there are no curves.</p>'
        )
    save(draw_trace(trace), run.figures / "trace.png")
    return charts(panels_of(trace), caption(trace))
