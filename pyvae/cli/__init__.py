"""The command line, generated from the recipes' dataclasses."""

import itertools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro
from tyro.conf import OmitArgPrefixes, Positional

import pyvae
from pyvae.backend import wanted_backend
from pyvae.bounds import parsing
from pyvae.cli import console
from pyvae.cli.invocation import INTERRUPTED, device_named, interrupted, say, whole_path
from pyvae.cli.study import Study
from pyvae.engine.recipe import Engine, Precision, Recipe
from pyvae.errors import DataError, PyvaeError, RunError, printable
from pyvae.recipes import RECIPES

if TYPE_CHECKING:
    import torch

    from pyvae.data import Dataset
    from pyvae.engine.course import Outcome
    from pyvae.engine.run import RunDirectory
    from pyvae.studies.runner import Place

_LOG = logging.getLogger(__name__)
_DESCRIPTION = (
    "Variational autoencoders: train, evaluate and reproduce. `pyvae --version` says which pyvae this is."
)
_MOST_SEEDS = 1000
QUICK_METRICS = ("mig", "factor-vae", "beta-vae", "sap", "modularity", "explicitness", "irs")


@dataclass(frozen=True)
class Train:
    """Train a recipe, or go on with its run where it stopped; or many runs of it, by --seeds and --sweep."""

    recipe: OmitArgPrefixes[Recipe]
    out: Path
    """Run directory, made or resumed; of many runs the directory that theirs lie in."""
    seeds: str | None = None
    """Train a run for each of these seeds, as 0-7 or 0-7,9: OUT/seed-3. On a GPU, runs that the fused engine knows
    make their steps together; all others, and all on a CPU, are trained one after another. Each becomes what it
    would alone."""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,..."), tyro.conf.UseAppendAction] = ()
    """Train a run for each value of a setting, as beta=1,2,4,8: OUT/beta-4. Give it again for another setting, and
    --seeds beside it: their product is trained, as OUT/beta-4-lr-0.0001/seed-3."""
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
        from pyvae.engine.files import check_writable

        if self.log_every < 1:
            raise PyvaeError(f"--log-every must be at least 1, got {self.log_every}")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise PyvaeError(f"--checkpoint-seconds must not be negative, got {self.checkpoint_seconds}")
        device = device_named(self.device)
        runs = self._runs(whole_path(self.out))
        dataset = self._data([run.recipe for run in runs])
        if self.profile:
            from pyvae.engine.profile import profile_steps

            check_writable(runs[0].path / "profile")
            say(profile_steps(self.recipe, dataset, device, runs[0].path / "profile").rstrip())
            return 0
        for line in dict.fromkeys(line for run in runs for line in _cut_short(run.recipe)):
            _LOG.warning(line)
        if self._is_one:
            return self._train_one(runs[0], dataset, device)
        return self._train_many(runs, dataset, device)

    @property
    def _is_one(self) -> bool:
        return self.seeds is None and not self.sweep

    def _runs(self, out: Path) -> "list[RunDirectory]":
        """The run, or all that --seeds and --sweep name."""
        from pyvae.engine.grid import expand, parse_seeds, parse_sweep
        from pyvae.engine.run import RunDirectory

        if self._is_one:
            return [RunDirectory.create_or_resume(out, self.recipe)]
        if self.profile:
            raise PyvaeError("--profile is of one run: leave --seeds and --sweep out")
        if self.seeds is not None and self.recipe.seed:
            raise PyvaeError(f"--seed {self.recipe.seed} and --seeds {self.seeds}: give one of them")
        seeds = None if self.seeds is None else parse_seeds(self.seeds)
        found = expand(self.recipe, [parse_sweep(self.recipe, each) for each in self.sweep], seeds)
        above = dict.fromkeys(path for each in found for path in (out, *_between(out, out / each.name)))
        for path in above:
            if os.path.lexists(path / "recipe.json"):
                where = f"--out {out} holds a run" if path == out else f"{path}, in --out, is a run"
                raise RunError(f"{where}: name another directory for the runs of --seeds and --sweep")
        return [RunDirectory.create_or_resume(out / each.name, each.recipe) for each in found]

    def _data(self, recipes: "Sequence[Recipe]") -> "Dataset":
        from pyvae.data.shapes3d import Shapes3D
        from pyvae.engine.adversarial import check_compile
        from pyvae.engine.trainer import check_data

        dataset = _load(self.recipe)
        if self.in_memory and isinstance(dataset, Shapes3D):
            dataset.to_memory()
        for recipe in recipes:
            check_data(recipe, dataset)
            check_compile(recipe, self.compile)
        return dataset

    @property
    def _options(self) -> dict[str, Any]:
        names = ("log_every", "checkpoint_seconds", "capture", "compile")
        return {name: getattr(self, name) for name in names}

    def _train_one(self, run: "RunDirectory", dataset: "Dataset", device: "torch.device") -> int:
        from pyvae.engine.loop import train

        outcome = train(run, dataset, device, **self._options)
        _say_trained(run, outcome)
        return interrupted() if outcome.interrupted else 0

    def _train_many(self, runs: "Sequence[RunDirectory]", dataset: "Dataset", device: "torch.device") -> int:
        from pyvae.engine.loop import train_together

        begun = time.monotonic()
        outcomes = train_together(runs, dataset, device, **self._options)
        seconds = time.monotonic() - begun
        for run, outcome in zip(runs, outcomes, strict=True):
            if outcome.failure is None:
                _say_trained(run, outcome)
            else:
                sys.stderr.write(f"pyvae: error: {printable(f'{run.path}: {outcome.failure}')}\n")
        made = sum(outcome.made for outcome in outcomes)
        ended = sum(outcome.step == run.recipe.steps for run, outcome in zip(runs, outcomes, strict=True))
        say(
            f"{ended:,} of {len(runs):,} models are trained; {made:,} model-steps in {seconds:,.1f} s, "
            f"{made / seconds:,.1f} model-steps/s"
        )
        if any(outcome.interrupted for outcome in outcomes):
            return interrupted()
        return int(any(outcome.failure is not None for outcome in outcomes))


def _between(top: Path, path: Path) -> Iterator[Path]:
    """The directories that ``path`` lies in, below ``top``."""
    return itertools.takewhile(lambda each: each != top, path.parents)


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
            say(printable(str(path)))
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
        device = device_named(self.device)
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
        say(printable(str(report(run, dataset, span=self.span))))
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
    ray: str | None = None
    """Train on a Ray cluster: its ADDRESS, or "local" for one on this machine. `pip install 'pyvae[ray]'`."""
    num_gpus: float | None = None
    """On Ray, GPUs of a group of runs that train together, 0.5 for two groups on each."""
    num_cpus: float | None = None
    """On Ray, CPU cores of a group."""

    def __call__(self) -> int:
        from pyvae.studies.published import STUDIES, parse_scale
        from pyvae.studies.reproduce import describe, reproduce, study_of
        from pyvae.studies.toys import TOYS, reproduce_toy

        if self.list:
            toys = [f"{name}: {title}" for name, (title, _) in TOYS.items()]
            say("\n\n".join([*(describe(name) for name in STUDIES), *toys]))
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
        place = self._place()
        if place is not None and study is None:
            raise PyvaeError(f"{self.name} takes no cluster: leave --ray out")
        name = self.name if scale == 1 else f"{self.name}-{self.scale:g}"
        out = whole_path(self.out) if self.out else Path("runs") / name
        try:
            if study is None:
                page: Path | None = reproduce_toy(self.name, out, seeds=seeds, scale=self.scale)
            else:
                first = study.recipe(study.arms[0], self.data)
                dataset = _load(first)
                test = _test_file(self.data) if study.likelihoods else None
                page = reproduce(
                    self.name,
                    study,
                    dataset,
                    device_named(self.device),
                    out,
                    seeds=seeds,
                    scale=scale,
                    data=self.data,
                    held_out=_load(replace(first, data=test)) if test else None,
                    held_out_data=test,
                    precision=self.precision,
                    engine=self.engine,
                    checkpoint_seconds=self.checkpoint_seconds,
                    capture=self.capture,
                    place=place,
                )
        except KeyboardInterrupt:
            page = None
        if page is None:
            return interrupted()
        say(printable(str(page)))
        return 0

    def _place(self) -> "Place | None":
        if self.ray is None:
            for name, value in (("--num-gpus", self.num_gpus), ("--num-cpus", self.num_cpus)):
                if value is not None:
                    raise PyvaeError(f"{name} is of Ray: give --ray local, or --ray ADDRESS")
            return None
        from pyvae.studies.on_ray import RayPlace

        return RayPlace(self.ray, num_gpus=self.num_gpus, num_cpus=self.num_cpus)


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, which backend each op takes and why, and the data cache."""

    def __call__(self) -> int:
        from pyvae.cli.doctor import describe

        say(describe())
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


def _test_file(data: str) -> str | None:
    """Where MNIST's test images lie, if they are beside its training images."""
    from pyvae.data.mnist import test_file
    from pyvae.data.paths import absolute

    test = test_file(Path(data).expanduser())
    return absolute(str(test)) if test else None


def _open(path: Path, data: str | None) -> tuple["RunDirectory", "Dataset"]:
    """A run and its data, from where it lay when the run was made, or from ``data``."""
    from pyvae.data.paths import NAMES, lies_there
    from pyvae.engine.run import RunDirectory

    run = RunDirectory.open(path := whole_path(path))
    trained_on = run.newest_checkpoint().metadata["data"]
    if data is not None:
        run = RunDirectory(path, replace(run.recipe, data=data))
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


def _cut_short(recipe: Recipe) -> Iterator[str]:
    """A line for each schedule that goes on after the last step."""
    for name in ("annealing_steps", "capacity_steps"):
        length, option = getattr(recipe.objective, name, 0), name.replace("_", "-")
        if length > recipe.steps:
            yield (
                f"the run ends after {recipe.steps:,} steps of a schedule of {length:,}: --{option} sets it"
            )


def _say_trained(run: "RunDirectory", outcome: "Outcome") -> None:
    rate = f"{outcome.steps_per_second:,.1f} steps/s" if outcome.made else "none of them now"
    say(f"{printable(run.path)}: {outcome.step:,} of {run.recipe.steps:,} steps, {rate}")


def _version() -> int:
    say(f"pyvae {pyvae.__version__}")
    return 0


def _say_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    for name, parts in scores.items():
        for part, value in parts.items():
            label = f"{name if part == 'score' else f'{name} {part}':28s}"
            if isinstance(value, int | float):
                say(f"{label} {value:.4f}" if isinstance(value, float) else f"{label} {value:,}")


def _say_missing(missing: Mapping[str, str]) -> None:
    for name, why in missing.items():
        _LOG.warning("%s is not computed: %s", name, why)
