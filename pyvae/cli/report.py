"""``pyvae report``: the page of a run, or of several side by side."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pyvae.cli.invocation import say
from pyvae.errors import PyvaeError, printable


@dataclass(frozen=True)
class Report:
    """Evaluate a run and write its report.html, metrics.json and figures/; or put several runs side by side in one
    page."""

    run: Positional[Path]
    """Run directory."""
    others: Positional[tuple[Path, ...]] = ()
    """Further runs: `pyvae report RUN_A RUN_B ...` writes one page that compares them, and touches none of them."""
    span: float = 2.0
    """Latent traversals go from -span to span."""
    explorer: bool = True
    """Sliders in the page, and the decoder's weights to draw with; of several runs there are none."""
    data: str | None = None
    """Where the data of the runs lies, if it is not where it lay when they were made."""
    out: Path | None = None
    """The page of several runs; by default comparison.html in the folder that holds all of them."""

    def __call__(self) -> int:
        from pyvae import runs

        if self.others:
            paths = (self.run, *self.others)
            page = runs.compare(paths, out=self.out, span=self.span, data=self.data)
        elif self.out is not None:
            raise PyvaeError("--out is of several runs: name more than one, or leave it out")
        else:
            run = runs.open(self.run, data=self.data)
            page = run.report(span=self.span, explorer=self.explorer)
        say(printable(page))
        return 0
