"""The program ``pyvae``: its commands, generated from the recipes' dataclasses, and how it ends."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import pyvae
from pyvae.backend import wanted_backend
from pyvae.base.source import Source, is_spec
from pyvae.bounds import parsing
from pyvae.cli import console
from pyvae.cli.doctor import Doctor
from pyvae.cli.evaluate import Evaluate
from pyvae.cli.export import Export
from pyvae.cli.invocation import INTERRUPTED, say
from pyvae.cli.new import New
from pyvae.cli.report import Report
from pyvae.cli.reproduce import Reproduce
from pyvae.cli.study import Study
from pyvae.cli.train import Train
from pyvae.cli.traverse import Traverse
from pyvae.engine.recipe import Recipe
from pyvae.nets import ARCHITECTURES
from pyvae.objectives.own import objective_of
from pyvae.recipes import RECIPES

_DESCRIPTION = (
    "Variational autoencoders: train, evaluate and reproduce. `pyvae --version` says which pyvae this is."
)


def _union(commands: Mapping[str, Any]) -> Any:
    return Union.__getitem__(tuple(commands.values()))


def _commands(arguments: Sequence[str], objective: str | None) -> Any:
    known = dict(RECIPES)
    if objective is not None and (name := next(iter(arguments[1:]), "")) in known:
        description, recipe = known[name]
        known[name] = description, replace(recipe, objective=objective_of(objective))
    recipes = {
        name: Annotated[
            Train,
            tyro.conf.subcommand(name, default=_default(name, recipe, objective), description=description),
        ]
        for name, (description, recipe) in known.items()
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
        "new": New,
        "doctor": Doctor,
    }
    return _union({name: Annotated[c, tyro.conf.subcommand(name)] for name, c in commands.items()})


def _default(name: str, recipe: Recipe, objective: str | None) -> Train:
    return Train(recipe, Path("runs") / name, objective=objective)


def _objective_in(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without ``--objective NAME``, and the name, which decides what options there are."""
    left = list(arguments)
    for at, argument in enumerate(left):
        if left[:1] != ["train"]:
            break
        if argument.startswith("--objective="):
            return left[:at] + left[at + 1 :], argument.partition("=")[2]
        if argument == "--objective" and at + 1 < len(left):
            return left[:at] + left[at + 2 :], left[at + 1]
    return left, None


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _architecture(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A network is named from the table, or as FILE.py:NAME."""
    if Source not in get_args(info.type):
        return None
    names = ",".join(ARCHITECTURES)

    def read(given: list[str]) -> str:
        if given[0] not in ARCHITECTURES and not is_spec(given[0]):
            raise ValueError(f"choose from {{{names}}}, or name your own as FILE.py:NAME")
        return given[0]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{names}}}|FILE.py:NAME",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, str | Source),
        str_from_instance=lambda value: [str(value)],
    )


def parse(arguments: Sequence[str]) -> Callable[[], int]:
    """The command that the arguments name, ready to be called; a wrong option exits with 2.

    Raises:
        PyvaeError: what stands there cannot be.
    """
    if list(arguments) in (["--version"], ["-V"]):
        return _version
    config = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    # what a recipe refuses is one line of main's, not a box of tyro's
    with parsing():
        left, objective = _objective_in(arguments)
        command = tyro.cli(
            _commands(left, objective),
            prog="pyvae",
            description=_DESCRIPTION,
            args=left,
            config=config,
            registry=_REGISTRY,
        )
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
