"""``pyvae report``: the page of a run."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pyvae.cli.invocation import open_run, say
from pyvae.errors import printable


@dataclass(frozen=True)
class Report:
    """Evaluate a run and write its report.html, metrics.json and figures/."""

    run: Positional[Path]
    """Run directory."""
    span: float = 2.0
    """Latent traversals go from -span to span."""
    data: str | None = None
    """Where the data of the run lies, if it is not where it lay when the run was made."""

    def __call__(self) -> int:
        from pyvae.engine.files import check_writable
        from pyvae.report import report

        run, dataset = open_run(self.run, self.data)
        check_writable(run.figures)
        say(printable(str(report(run, dataset, span=self.span))))
        return 0
