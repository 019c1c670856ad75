"""``pyvae report``: the page of a run."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pyvae.cli.invocation import say
from pyvae.errors import printable


@dataclass(frozen=True)
class Report:
    """Evaluate a run and write its report.html, metrics.json and figures/."""

    run: Positional[Path]
    """Run directory."""
    span: float = 2.0
    """Latent traversals go from -span to span."""
    explorer: bool = True
    """Sliders in the page, and the decoder's weights to draw with."""
    data: str | None = None
    """Where the data of the run lies, if it is not where it lay when the run was made."""

    def __call__(self) -> int:
        from pyvae import runs

        run = runs.open(self.run, data=self.data)
        say(printable(run.report(span=self.span, explorer=self.explorer)))
        return 0
