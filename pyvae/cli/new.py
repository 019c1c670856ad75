"""``pyvae new``: a file for a network or a loss of a user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from pyvae.cli.invocation import say
from pyvae.engine.files import cause_of, whole_path
from pyvae.errors import PyvaeError, printable

_OPTIONS = {"objective": "--objective {}:Mine --beta 2", "network": "--architecture {}:build"}


@dataclass(frozen=True)
class New:
    """Write a file with a network or an objective of your own to begin with, which trains as it is."""

    kind: Positional[Literal["objective", "network"]]
    """What to write."""
    file: Positional[Path]
    """Path of the file, my_loss.py or my_nets.py; one that is there is not written over."""

    def __call__(self) -> int:
        path = whole_path(self.file)
        if path.suffix != ".py":
            raise PyvaeError(f"{self.file}: give the name of a Python file, as my_{self.kind}.py")
        text = template(self.kind, path.name)
        try:
            with open(path, "x") as file:
                file.write(text)
        except FileExistsError:
            raise PyvaeError(f"{self.file} is there already: name another file") from None
        except OSError as error:
            raise PyvaeError(f"cannot write {self.file}: {cause_of(error)}") from error
        say(printable(f"{self.file}: train it with pyvae train vae {_OPTIONS[self.kind].format(self.file)}"))
        return 0


def template(kind: Literal["objective", "network"], name: str) -> str:
    """The text of such a file, of this name."""
    return (Path(__file__).parent / "templates" / f"{kind}.py").read_text().replace("NEW_FILE", name)
