"""The program ``pyvae``: its commands, generated from the recipes' dataclasses, and how it ends."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

import pyvae
from pyvae.backend import wanted_backend
from pyvae.bounds import parsing
from pyvae.cli import console
from pyvae.cli.doctor import Doctor
from pyvae.cli.evaluate import Evaluate
from pyvae.cli.export import Export
from pyvae.cli.invocation import INTERRUPTED, say
from pyvae.cli.report import Report
from pyvae.cli.reproduce import Reproduce
from pyvae.cli.study import Study
from pyvae.cli.train import Train
from pyvae.cli.traverse import Traverse
from pyvae.recipes import RECIPES

_DESCRIPTION = (
    "Variational autoencoders: train, evaluate and reproduce. `pyvae --version` says which pyvae this is."
)


def _union(commands: Mapping[str, Any]) -> Any:
    return Union.__getitem__(tuple(commands.values()))


def _commands() -> Any:
    recipes = {
        name: Annotated[
            Train,
            tyro.conf.subcommand(name, default=Train(recipe, Path("runs") / name), description=description),
        ]
        for name, (description, recipe) in RECIPES.items()
    }
    train = make_dataclass("_Train", [("command", _union(recipes))], namespace={"__doc__": Train.__doc__})
    commands = {
        "train": train,
        "traverse": Traverse,
        "evaluate": Evaluate,
        "report": Report,
        "export": Export,
        "reproduce": Reproduce,
        "study": Study,
        "doctor": Doctor,
    }
    return _union({name: Annotated[c, tyro.conf.subcommand(name)] for name, c in commands.items()})


def parse(arguments: Sequence[str]) -> Callable[[], int]:
    """The command that the arguments name, ready to be called; a wrong option exits with 2."""
    if list(arguments) in (["--version"], ["-V"]):
        return _version
    config = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    # what a recipe refuses is one line of main's, not a box of tyro's
    with parsing():
        command = tyro.cli(_commands(), prog="pyvae", description=_DESCRIPTION, args=arguments, config=config)
    return getattr(command, "command", command)


def main() -> None:
    """Entry point of ``pyvae``: exits with 1 on an error of the user's, 2 on a wrong option, 130 when interrupted."""
    console.set_up()
    # as ^C does: what is begun is put away, where training does not save first
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = sys.argv[1:]
    try:
        command = parse(arguments)
        if not isinstance(command, Doctor):  # which says what is wrong with it
            wanted_backend()
        status = command()
        sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.stderr.write("pyvae: interrupted\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if (line := console.one_line(error)) is None:
            raise
        sys.exit(f"pyvae: error: {line}")


def _version() -> int:
    say(f"pyvae {pyvae.__version__}")
    return 0
