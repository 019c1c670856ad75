"""The command line, generated from the recipes' dataclasses."""

import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro
from tyro.conf import OmitArgPrefixes, Positional

import pyvae
from pyvae import console
from pyvae.backend import wanted_backend
from pyvae.bounds import parsing
from pyvae.cli_study import Study
from pyvae.engine.recipe import Engine, Precision, Recipe
from pyvae.errors import DataError, PyvaeError, RunError, printable
from pyvae.invocation import INTERRUPTED
from pyvae.invocation import device_named as _device
from pyvae.invocation import interrupted as _interrupted
from pyvae.invocation import say as _say
from pyvae.invocation import whole_path as _path
from pyvae.recipes import RECIPES

if TYPE_CHECKING:
    from pyvae.data import Dataset
    from pyvae.engine.run import Run

_LOG = logging.getLogger(__name__)
_DESCRIPTION = (
    "Variational autoencoders: train, evaluate and reproduce. `pyvae --version` says which pyvae this is."
)
_MOST_SEEDS = 1000
QUICK_METRICS = ("mig", "factor-vae", "beta-vae", "sap", "modularity", "explicitness", "irs")


@dataclass(frozen=True)
class Train:
    """Train a recipe, or go on with its run where it stopped."""

    recipe: OmitArgPrefixes[Recipe]
    out: Path
    """Run directory, made or resumed."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one."""
    log_every: int = 100
    """Steps between rows of trace.csv."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    in_memory: bool = True
    """Hold the images of 3dshapes.h5 (5.9 GB) in memory; reading each batch from the file is far slower."""
    capture: bool = True
    """On a GPU, run several steps as one CUDA graph: faster, and the same results."""
    compile: bool = False
    """The networks through torch.compile; its rounding differs, so resume with the same choice."""
    profile: bool = False
    """Instead of training, profile 20 uncaptured steps: OUT/profile/trace.json and a table of kernels."""

    def __call__(self) -> int:
        from pyvae.data.shapes3d import Shapes3D
        from pyvae.engine.adversarial import check_compile
        from pyvae.engine.files import check_writable
        from pyvae.engine.loop import train
        from pyvae.engine.run import Run
        from pyvae.engine.trainer import check_data

        if self.log_every < 1:
            raise PyvaeError(f"--log-every must be at least 1, got {self.log_every}")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise PyvaeError(f"--checkpoint-seconds must not be negative, got {self.checkpoint_seconds}")
        device = _device(self.device, self.recipe.precision)
        out = _path(self.out)
        run = Run.create_or_resume(out, self.recipe)
        dataset = _load(self.recipe)
        if self.in_memory and isinstance(dataset, Shapes3D):
            dataset.to_memory()
        check_data(self.recipe, dataset)
        check_compile(self.recipe, self.compile)
        if self.profile:
            from pyvae.engine.profile import profile_steps

            check_writable(out / "profile")
            _say(profile_steps(self.recipe, dataset, device, out / "profile").rstrip())
            return 0
        for name in ("annealing_steps", "capacity_steps"):
            length, option = getattr(self.recipe.objective, name, 0), name.replace("_", "-")
            if length > self.recipe.steps:
                _LOG.warning(
                    f"the run ends after {self.recipe.steps:,} steps of a schedule of {length:,}: --{option} sets it"
                )
        outcome = train(
            run,
            dataset,
            device,
            log_every=self.log_every,
            checkpoint_seconds=self.checkpoint_seconds,
            capture=self.capture,
            compile=self.compile,
        )
        _say(
            f"{printable(out)}: {outcome.step:,} of {self.recipe.steps:,} steps, "
            f"{outcome.steps_per_second:,.1f} steps/s"
        )
        if outcome.interrupted:
            return _interrupted()
        return 0


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

        run, dataset = _open(self.run, self.data)
        check_writable(run.figures)
        for path in traverse(run, dataset, span=self.span, columns=self.columns, seeds=self.seeds):
            _say(printable(str(path)))
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Compute disentanglement metrics of a run from the codes of its whole data set; see pyvae.metrics."""

    run: Positional[Path]
    """Run directory."""
    metrics: tuple[str, ...] = QUICK_METRICS
    """Names of pyvae.metrics.METRICS, or "all" of them: DCI then takes minutes. Data without known factors has
    "unsupervised" alone. Also "marginal-likelihood": log p(x), IWAE-64, effective sample size and active units."""
    without: tuple[str, ...] = ()
    """Factors to leave out: "shape" for the four-factor MIG of Chen et al. 2018 and ControlVAE."""
    samples: int = 5000
    """Importance samples of each image for the marginal likelihood."""
    images: int = 1000
    """Images of a fixed random subset for the marginal likelihood."""
    held_out: str | None = None
    """Images for the marginal likelihood, as --data of `pyvae train`; default: those it was trained on."""
    data: str | None = None
    """Where the data of the run lies, if it is not where it lay when the run was made."""
    seed: int = 0
    """Of what the metrics draw."""
    device: str = "auto"
    """Where the network runs."""

    def __call__(self) -> int:
        from pyvae.evaluation import (
            MARGINAL_LIKELIHOOD,
            check_likelihood,
            check_scores,
            compute_likelihood,
            compute_scores,
            none_of,
            write_metrics,
        )
        from pyvae.metrics import METRICS

        known = (*METRICS, MARGINAL_LIKELIHOOD)
        if unknown := [name for name in self.metrics if name not in (*known, "all")]:
            raise PyvaeError(f"unknown metric {unknown[0]!r}: there are {', '.join(known)} and all")
        if not self.metrics:
            raise PyvaeError(f"--metrics: name at least one of {', '.join(known)} and all")
        if not 0 <= self.seed < 2**64:
            raise PyvaeError(f"--seed must be from 0 to 2^64 - 1, got {self.seed}")
        asked = [each for name in self.metrics for each in (METRICS if name == "all" else (name,))]
        names = list(dict.fromkeys(asked))
        of_codes = [name for name in names if name != MARGINAL_LIKELIHOOD]
        run, dataset = _open(self.run, self.data)
        device = _device(self.device)
        held_out = None if self.held_out is None else _load(replace(run.recipe, data=self.held_out))
        sizes: dict[str, Any] = {"samples": self.samples, "images": self.images, "held_out": held_out}
        # whatever can be refused is, before the minutes that the encoder takes
        missing = (
            check_scores(run, dataset, of_codes, without=self.without, seed=self.seed) if of_codes else {}
        )
        if missing.keys() == set(names):
            raise PyvaeError(none_of(missing))
        if MARGINAL_LIKELIHOOD in names:
            check_likelihood(run, dataset, **sizes)
        _say_missing(missing)
        unwritten: list[RunError] = []

        def keep(steps: int, values: dict[str, Any]) -> None:
            try:
                write_metrics(run, steps, dataset, values)
            except RunError as error:  # what is still to be computed is shown all the same
                unwritten.append(error)

        if possible := [name for name in of_codes if name not in missing]:
            scores = compute_scores(
                run, dataset, possible, device=device, without=self.without, seed=self.seed
            )
            _say_scores(scores.found)
            _say_missing(scores.missing)
            missing |= scores.missing
            keep(scores.steps, {"scores": scores.found})
        if MARGINAL_LIKELIHOOD in names:
            steps, likelihood = compute_likelihood(run, dataset, device=device, seed=self.seed, **sizes)
            _say_scores({MARGINAL_LIKELIHOOD: likelihood})
            keep(steps, {"marginal_likelihood": likelihood})
        if unwritten:
            raise RunError(f"{unwritten[0]}; the numbers above are right, and not kept")
        # what nobody named need not be there
        if named := [name for name in missing if name in self.metrics and self.metrics != QUICK_METRICS]:
            raise PyvaeError(f"{', '.join(named)} could not be computed; the others could")
        return 0


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

        run, dataset = _open(self.run, self.data)
        check_writable(run.figures)
        _say(printable(str(report(run, dataset, span=self.span))))
        return 0


@dataclass(frozen=True)
class Reproduce:
    """Train the arms of a published table or go on with them, evaluate them, and write one report of our numbers
    beside the published ones."""

    name: Positional[str | None] = None
    """What to reproduce; --list names all."""
    list: bool = False
    """Only list what there is, with its arms and published numbers."""
    seeds: int = 5
    """Seeds of each arm."""
    first_seed: int = 1
    """The first of them; the others follow."""
    scale: float = 1.0
    """Shorten every length to this part of it, 0.001 for a try. What comes out is no reproduction."""
    out: Path | None = None
    """Directory of the runs, ARM/seed-N, and of the report; default runs/NAME, with the scale if there is one."""
    data: str = "dsprites"
    """What to train on, as for `pyvae train`; numbers of other data reproduce nothing."""
    precision: Precision = "fp32"
    """Of the networks' products; weights, losses and moments are always float32. See `pyvae train -h`."""
    engine: Engine = "auto"
    """What trains, torch's layers or kernels of our own; see `pyvae train -h`."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    capture: bool = True
    """On a GPU, run several steps as one CUDA graph: faster, and the same results."""

    def __call__(self) -> int:
        from pyvae.reproduce import describe, reproduce, study_of
        from pyvae.studies.published import STUDIES, parse_scale
        from pyvae.toys import TOYS, reproduce_toy

        if self.list:
            toys = [f"{name}: {title}" for name, (title, _) in TOYS.items()]
            _say("\n\n".join([*(describe(name) for name in STUDIES), *toys]))
            return 0
        if self.name is None:
            raise PyvaeError(f"name what to reproduce: there are {', '.join([*STUDIES, *TOYS])}")
        study = None if self.name in TOYS else study_of(self.name)
        scale = parse_scale(self.scale)
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise PyvaeError(f"--seeds must be at least 1 and at most {_MOST_SEEDS:,}, got {self.seeds}")
        if not 0 <= self.first_seed <= 2**64 - self.seeds:
            raise PyvaeError(
                f"--first-seed must not be negative, nor a seed above 2^64 - 1, got {self.first_seed}"
            )
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        name = self.name if scale == 1 else f"{self.name}-{self.scale:g}"
        out = _path(self.out) if self.out else Path("runs") / name
        try:
            if study is None:
                page: Path | None = reproduce_toy(self.name, out, seeds=seeds, scale=self.scale)
            else:
                dataset = _load(study.recipe(study.arms[0], self.data))
                held_out = _test_images(study.recipe(study.arms[0], self.data)) if study.likelihoods else None
                page = reproduce(
                    self.name,
                    study,
                    dataset,
                    _device(self.device, self.precision),
                    out,
                    seeds=seeds,
                    scale=scale,
                    data=self.data,
                    held_out=held_out,
                    precision=self.precision,
                    engine=self.engine,
                    checkpoint_seconds=self.checkpoint_seconds,
                    capture=self.capture,
                )
        except KeyboardInterrupt:
            page = None
        if page is None:
            return _interrupted()
        _say(printable(str(page)))
        return 0


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, which backend each op takes and why, and the data cache."""

    def __call__(self) -> int:
        from pyvae.doctor import describe

        _say(describe())
        return 0


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


def _load(recipe: Recipe) -> "Dataset":
    from pyvae.data import load

    return load(
        recipe.data,
        size=recipe.image_size,
        channels=recipe.channels,
        crop=recipe.crop,
        corrupt=recipe.corrupt,
    )


def _test_images(recipe: Recipe) -> "Dataset | None":
    """MNIST's test images, where they lie beside its training images."""
    from pyvae.data.mnist import test_file

    test = test_file(Path(recipe.data).expanduser())
    return _load(replace(recipe, data=str(test))) if test else None


def _open(path: Path, data: str | None) -> tuple["Run", "Dataset"]:
    """A run and its data, from where it lay when the run was made, or from ``data``."""
    from pyvae.data.paths import NAMES, lies_there
    from pyvae.engine.run import Run

    run = Run.open(path := _path(path))
    trained_on = run.newest_checkpoint().metadata["data"]
    if data is not None:
        run = Run(path, replace(run.recipe, data=data))
    try:
        dataset = _load(run.recipe)
    except DataError as error:
        there = run.recipe.data
        if data is None and there not in NAMES and not lies_there(there):
            raise RunError(f"the data of {path} is not at {there} any more: say where with --data") from error
        raise
    if dataset.fingerprint != trained_on:
        found = f"{path} was trained on {trained_on}, but {run.recipe.data} holds {dataset.fingerprint}"
        if data is None:
            raise RunError(f"{found}: say with --data where the former is, or give the latter to take it")
        _LOG.warning("%s: the results are of the latter", found)
    return run, dataset


def _version() -> int:
    _say(f"pyvae {pyvae.__version__}")
    return 0


def _say_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    for name, parts in scores.items():
        for part, value in parts.items():
            label = f"{name if part == 'score' else f'{name} {part}':28s}"
            if isinstance(value, int | float):
                _say(f"{label} {value:.4f}" if isinstance(value, float) else f"{label} {value:,}")


def _say_missing(missing: Mapping[str, str]) -> None:
    for name, why in missing.items():
        _LOG.warning("%s is not computed: %s", name, why)
