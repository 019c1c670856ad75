"""``pyvae traverse``: what each latent does, in pictures."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pyvae.cli.invocation import open_run, say
from pyvae.errors import printable


@dataclass(frozen=True)
class Traverse:
    """Draw latent traversals of a run as PNG and GIF, in its figures/."""

    run: Positional[Path]
    """Run directory."""
    span: float = 2.0
    """Traverse from -span to span."""
    columns: int = 11
    """Values of each latent."""
    data: str | None = None
    """Where the data of the run lies, if it is not where it lay when the run was made."""
    seeds: tuple[int, ...] | None = None
    """Indices of the images to start from; default: a square, an ellipse and a heart, or three images spread over
    other data."""

    def __call__(self) -> int:
        from pyvae.engine.files import check_writable
        from pyvae.report import traverse

        run, dataset = open_run(self.run, self.data)
        check_writable(run.figures)
        for path in traverse(run, dataset, span=self.span, columns=self.columns, seeds=self.seeds):
            say(printable(str(path)))
        return 0
