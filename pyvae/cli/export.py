"""``pyvae export``: the network of a run, for other programs."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pyvae.cli.invocation import say
from pyvae.errors import printable


@dataclass(frozen=True)
class Export:
    """Write the trained network of a run to a file that runs without pyvae: .pt2 for torch, .onnx for others."""

    run: Positional[Path]
    """Run directory."""
    file: Positional[Path]
    """Ends in .pt2 or .onnx; the latter needs `pip install 'pyvae-engine[onnx]'`."""
    part: str | None = None
    """What the file computes: "autoencoder", "encoder" or "decoder", of a GAN "generator" or "encoder"; default: the
    first."""
    step: int | None = None
    """Of weights that were kept with --keep-at; default: the newest."""

    def __call__(self) -> int:
        from pyvae.runs import Run

        say(printable(Run(self.run).export(self.file, part=self.part, step=self.step)))
        return 0
