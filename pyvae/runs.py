"""Runs in Python: train them, open them, use what they have learnt. The command line is made of the same."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.base.usual import usual_torch
from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine import checkpoint
from pyvae.engine.device import device_named
from pyvae.engine.files import check_writable, whole_path
from pyvae.engine.grid import check_seeds, parse_seeds
from pyvae.engine.models import GeneratorModel, Model, model_of
from pyvae.engine.opening import open_data, open_run
from pyvae.engine.prepare import prepare
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.signals import awaited, raise_again
from pyvae.errors import PyvaeError, RunError, printable
from pyvae.evaluation.ask import QUICK_METRICS, Told, ask
from pyvae.evaluation.scores import encode_run
from pyvae.metrics import CodeTable
from pyvae.objectives.own import objective_of
from pyvae.recipes import RECIPES

StrPath = str | os.PathLike[str]
_LOG = logging.getLogger(__name__)


class Codes(NamedTuple):
    """The codes of a data set, and the factors that its images were made of."""

    mu: Tensor
    """float32 ``[N, D]``, means of q(z given x), in the order of the images."""
    logvar: Tensor
    """float32 ``[N, D]``, log-variances."""
    factors: Tensor | None
    """int64 ``[N, F]``, the class of each factor; None for data without known factors."""
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    """Classes of each factor."""
    table: CodeTable
    """The same for the metrics of :mod:`pyvae.metrics`: ``pyvae.metrics.mig(run.codes().table)``."""


class Run:
    """A run on disk, finished or not; see :func:`train` and :func:`open`."""

    def __init__(
        self,
        path: StrPath,
        *,
        data: StrPath | None = None,
        own: Sequence[object] = (),
        dataset: Dataset | None = None,
    ) -> None:
        """The run in a directory.

        Args:
            path: of the directory.
            data: where its data lies, if it is not where it lay when the run was made.
            own: functions and classes of your own that it was trained with, if no file holds them.
            dataset: its data, where it is open already.

        Raises:
            RunError: there is no run.
        """
        self._path = whole_path(Path(path))
        self._place = None if data is None else os.fspath(data)
        self._own = tuple(own)
        self._dataset = dataset
        self._directory()

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._path

    @property
    def recipe(self) -> Recipe:
        """All that decides what it computes."""
        return self._directory().recipe

    @property
    def step(self) -> int:
        """Steps that its newest checkpoint has made; 0 while there is none."""
        saved = checkpoint.paths(self._directory().checkpoints)
        return checkpoint.step_of(saved[-1]) if saved else 0

    @property
    def dataset(self) -> Dataset:
        """Its data, opened on first use: ``run.dataset.images([0, 1])`` are float32 ``[2, C, H, W]``.

        Raises:
            RunError: the run has no checkpoint yet, or its data is not where it was, or has changed.
            DataError: the data cannot be read.
        """
        return self._opened()[1]

    def model(self, step: int | None = None) -> Model | GeneratorModel:
        """What it has learnt, as an ``nn.Module`` on the CPU, in eval mode, with ``encode(images) -> (mu, logvar)``,
        ``decode(z) -> logits``, ``reconstruct(images)`` and ``sample(n, seed)``.

        Args:
            step: of a snapshot (``keep_at`` of the recipe) or of a checkpoint that is still there; by default the
                newest checkpoint.

        Raises:
            RunError: there are no weights of this step; those that there are are named.
        """
        directory = self._directory()
        saved = directory.saved(step)
        with usual_torch():
            return model_of(directory, saved)

    def trace(self) -> dict[str, npt.NDArray[Any]]:
        """Columns of ``trace.csv`` by name, ``[rows]`` each: step, loss, recon, kl, beta, capacity, kl_0, kl_1, ...

        Raises:
            RunError: there is no trace yet, or it is damaged.
        """
        return self._directory().trace()

    def evaluate(
        self,
        metrics: Sequence[str] | str = QUICK_METRICS,
        *,
        without: Sequence[str] | str = (),
        samples: int = 5000,
        images: int = 1000,
        held_out: StrPath | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        found: Told = lambda scores: None,
        missing: Told | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Compute metrics from the codes of its whole data set, and keep them in ``metrics.json``.

        Args:
            metrics: names of :data:`pyvae.metrics.METRICS`, "all" of them, or "marginal-likelihood".
            without: factors to leave out, "shape" for the four-factor MIG.
            samples: of each image for the marginal likelihood.
            images: of a fixed random subset for the marginal likelihood.
            held_out: where other images for the marginal likelihood lie.
            seed: of what the metrics draw.
            device: where the network runs.
            found: called with scores as soon as they are known.
            missing: called with the reasons why some cannot be computed; by default they are logged.

        Returns:
            for each metric the fields of its result: ``run.evaluate(["mig"])["mig"]["score"]``.

        Raises:
            PyvaeError: an unknown metric or factor; a metric that was named cannot be computed, once the others are.
            RunError: no checkpoint, data that is not what it was, or a file that cannot be written.
        """
        directory, dataset = self._opened()
        other = None
        if held_out is not None:
            recipe = replace(directory.recipe, data=os.fspath(held_out))
            other = lambda: open_data(recipe)  # noqa: E731
        with usual_torch():
            return ask(
                directory,
                dataset,
                (metrics,) if isinstance(metrics, str) else tuple(metrics),
                device=device_named(str(device)),
                without=(without,) if isinstance(without, str) else without,
                seed=seed,
                samples=samples,
                images=images,
                held_out=other,
                found=found,
                missing=_warn_missing if missing is None else missing,
            )

    def codes(self, *, device: str | torch.device = "auto", progress: bool = True) -> Codes:
        """Encode its whole data set with its newest weights, for metrics of your own.

        Args:
            device: where the encoder runs.
            progress: whether to show a progress bar.

        Raises:
            RunError: no checkpoint, no encoder, or data that is not what it was.
        """
        directory, dataset = self._opened()
        if directory.recipe.code == "factors":
            raise RunError(f"the code of {self.path} is its true factors: there is no encoder")
        with usual_torch():
            table = encode_run(directory, dataset, device=device_named(str(device)), progress=progress)[0]
        factors = None
        if isinstance(dataset, FactorDataset):
            factors = dataset.factor_classes(np.arange(len(dataset)))
        return Codes(table.mu, table.logvar, factors, table.factor_names, table.factor_sizes, table)

    def report(self, *, span: float = 2.0, explorer: bool = True) -> Path:
        """Evaluate it and write ``report.html``, ``metrics.json`` and ``figures/``; returns the path of the page.

        Args:
            span: latent traversals go from ``-span`` to ``span``.
            explorer: whether the page has sliders, and the decoder's weights to draw with.

        Raises:
            RunError: no checkpoint, data that is not what it was, or a file that cannot be written.
        """
        from pyvae import report

        directory, dataset = self._opened()
        check_writable(directory.figures)
        with usual_torch():
            return report.report(directory, dataset, span=span, explorer=explorer)

    def traverse(
        self, *, span: float = 2.0, columns: int = 11, seeds: Sequence[int] | int | None = None
    ) -> list[Path]:
        """Draw latent traversals into ``figures/``; returns the paths of PNGs and GIFs.

        Args:
            span: each latent goes from ``-span`` to ``span``.
            columns: values of each latent.
            seeds: indices of the images to start from; by default a few.

        Raises:
            RunError: as :meth:`report`; a seed, span or number of columns that cannot be.
        """
        from pyvae import report

        directory, dataset = self._opened()
        check_writable(directory.figures)
        if isinstance(seeds, int | np.integer):
            seeds = (int(seeds),)
        starts = None if seeds is None else tuple(seeds)
        with usual_torch():
            return report.traverse(directory, dataset, span=span, columns=columns, seeds=starts)

    def export(self, path: StrPath, *, part: str | None = None, step: int | None = None) -> Path:
        """Write what it has learnt to a file that needs no pyvae; see :func:`pyvae.nets.export.export`.

        Args:
            path: ends in ".pt2" (torch.export) or ".onnx" (``pip install 'pyvae-engine[onnx]'``).
            part: "autoencoder", "encoder", "decoder" or "generator".
            step: as :meth:`model` takes it.

        Raises:
            ExportError: it cannot be written, or the file would compute something else.
            RunError: as :meth:`model`.
        """
        from pyvae.nets.export import export

        directory = self._directory()
        saved = directory.saved(step)
        with usual_torch():
            model = model_of(directory, saved)
            about = {"recipe": json.dumps(directory.recipe.to_json()), "step": str(saved.step)}
            return export(model.net, model.image_shape, whole_path(Path(path)), part=part, metadata=about)

    def __repr__(self) -> str:
        try:
            recipe = self.recipe
            name = recipe.to_json()["objective"]["name"]
            return f"Run({printable(self.path)}: {name}, {self.step:,} of {recipe.steps:,} steps)"
        except PyvaeError as error:
            return f"Run({printable(self.path)}: {error})"

    def _repr_html_(self) -> str:
        """Its numbers and pictures, in a notebook."""
        import html

        from pyvae.report.summary import summary

        try:
            return summary(self._directory())
        except PyvaeError as error:
            return f"<p>{html.escape(str(error))}</p>"

    def _directory(self) -> RunDirectory:
        found = RunDirectory.open(self.path, self._own)
        if self._place is None:
            return found
        return RunDirectory(found.path, replace(found.recipe, data=self._place))

    def _share(self, datasets: Iterable[Dataset]) -> None:
        """Take the data that it was trained on from some that are open, where it is among them."""
        if self._dataset is None and self._place is None:
            newest = self._directory().newest_checkpoint().metadata
            wanted = (newest["data"], tuple(newest["image_shape"]))
            same = (each for each in datasets if (each.fingerprint, each.image_shape) == wanted)
            self._dataset = next(same, None)

    def _opened(self) -> tuple[RunDirectory, Dataset]:
        if self._dataset is None:
            directory, self._dataset = open_run(self.path, self._place, self._own)
            return directory, self._dataset
        return self._directory(), self._dataset


def open(
    path: StrPath,
    *,
    data: StrPath | None = None,
    architecture: object = None,
    objective: object = None,
) -> Run:
    """A run that was made by :func:`train` or by ``pyvae train``, finished or not.

    Args:
        path: of its directory.
        data: where its data lies, if it is not where it lay when the run was made.
        architecture, objective: your own function or class that it was trained with, if you gave it in a notebook or at
            a prompt, where no file holds it.

    Raises:
        RunError: there is no run.
    """
    return Run(path, data=data, own=[each for each in (architecture, objective) if each is not None])


def compare(
    runs: Iterable[StrPath | Run],
    *,
    out: StrPath | None = None,
    span: float = 2.0,
    data: StrPath | None = None,
) -> Path:
    """Write one page with runs side by side: numbers with their differences, curves in one chart, the same images
    reconstructed by each. The same as ``pyvae report RUN_A RUN_B ...``; no file of a run is touched.

    Args:
        runs: two or more, of any recipes; the first is what the others are compared with.
        out: the page; by default ``comparison.html`` in the folder that holds all of the runs.
        span: latent traversals go from ``-span`` to ``span``.
        data: where the data of all of them lies, if it is not where it lay when they were made.

    Returns:
        its path.

    Raises:
        RunError: fewer than two runs or one of them twice, ``out`` is another file than such a page, no checkpoint,
            data that is not what it was, or a file that cannot be written.
    """
    from pyvae.report.beside import write_beside

    if isinstance(runs, str | os.PathLike):
        raise RunError('runs: give two or more, as ["runs/a", "runs/b"]')
    opened: list[tuple[RunDirectory, Dataset]] = []
    for each in runs:
        if not isinstance(each, Run) and Path(each).is_file():
            # a shell's runs/* names the pages that lie there too
            _LOG.warning("%s is a file, not the directory of a run: left out", each)
            continue
        run = each if isinstance(each, Run) else Run(each, data=data)
        run._share([dataset for _, dataset in opened])
        opened.append(run._opened())
    with usual_torch():
        return write_beside(opened, None if out is None else whole_path(Path(out)), span=span)


@overload
def train(
    recipe: str | Recipe,
    *,
    out: StrPath | None = ...,
    seeds: None = ...,
    sweep: None = ...,
    device: str | torch.device = ...,
    log_every: int = ...,
    checkpoint_seconds: float = ...,
    in_memory: bool = ...,
    capture: bool = ...,
    compile: bool = ...,
    **settings: Any,
) -> Run: ...
@overload
def train(
    recipe: str | Recipe,
    *,
    out: StrPath | None = ...,
    seeds: str | Iterable[int],
    sweep: Mapping[str, Iterable[Any]] | None = ...,
    device: str | torch.device = ...,
    log_every: int = ...,
    checkpoint_seconds: float = ...,
    in_memory: bool = ...,
    capture: bool = ...,
    compile: bool = ...,
    **settings: Any,
) -> list[Run]: ...
@overload
def train(
    recipe: str | Recipe,
    *,
    out: StrPath | None = ...,
    seeds: None = ...,
    sweep: Mapping[str, Iterable[Any]],
    device: str | torch.device = ...,
    log_every: int = ...,
    checkpoint_seconds: float = ...,
    in_memory: bool = ...,
    capture: bool = ...,
    compile: bool = ...,
    **settings: Any,
) -> list[Run]: ...
def train(
    recipe: str | Recipe,
    *,
    out: StrPath | None = None,
    seeds: str | Iterable[int] | None = None,
    sweep: Mapping[str, Iterable[Any]] | None = None,
    device: str | torch.device = "auto",
    log_every: int = 100,
    checkpoint_seconds: float = 60.0,
    in_memory: bool = True,
    capture: bool = True,
    compile: bool = False,
    **settings: Any,
) -> Run | list[Run]:
    """Train a recipe, or go on with its run where it stopped: the same as ``pyvae train``.

    Ctrl-C saves first, and then raises KeyboardInterrupt; the same call goes on. What this sets of torch's switches is
    put back.

    Args:
        recipe: a name in :data:`pyvae.recipes.RECIPES`, or a :class:`pyvae.engine.recipe.Recipe`.
        out: directory of the run, made or resumed; of many runs the directory that theirs lie in. By default
            ``runs/NAME``.
        seeds: train a run for each of these, as "0-7" or a list, in ``out/seed-3``.
        sweep: train a run for each value of some settings, as ``{"beta": [1, 4]}``, in ``out/beta-4``; with ``seeds``
            for every pair, in ``out/beta-4/seed-3``.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one.
        log_every: steps between rows of the trace.
        checkpoint_seconds: time between checkpoints.
        in_memory: hold the images of 3dshapes.h5 (5.9 GB) in memory.
        capture: on a GPU, run several steps as one CUDA graph: faster, and the same results.
        compile: the networks through torch.compile; its rounding differs, so resume with the same choice.
        settings: any field of the recipe or of its objective: ``steps=100_000, precision="bf16", beta=4``. Another
            ``objective=`` leaves the other fields of the recipe as they are.

    Returns:
        the run; with ``seeds`` or ``sweep`` all of them, in their order.

    Raises:
        PyvaeError: no such recipe or setting; the nearest one is named.
        RecipeError: a setting cannot be this, or the recipe cannot be trained on this data or device.
        RunError: ``out`` holds something else, another process or thread trains, a file cannot be written, or a loss
            is no longer finite.
        DataError: the data cannot be read.
    """
    wanted = _recipe_of(recipe, settings)
    if out is None:
        if not isinstance(recipe, str):
            raise PyvaeError('out: name a directory for a recipe of your own, as out="runs/mine"')
        out = Path("runs") / recipe
    training = prepare(
        wanted,
        Path(out),
        seeds=_seeds_of(seeds),
        sweeps=None if sweep is None else _sweeps_of(sweep),
        device=str(device),
        log_every=log_every,
        checkpoint_seconds=checkpoint_seconds,
        in_memory=in_memory,
        capture=capture,
        compile=compile,
    )
    with awaited():
        outcomes = training.train()
        number = next((outcome.signal for outcome in outcomes if outcome.signal is not None), None)
        if number is not None:
            _LOG.warning(
                "%s: interrupted at step %s and saved; the same call goes on", out, f"{outcomes[0].step:,}"
            )
    if failed := [
        f"{run.path}: {outcome.failure}"
        for run, outcome in zip(training.runs, outcomes, strict=True)
        if outcome.failure is not None
    ]:
        others = f"; and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        raise RunError(f"{failed[0]}{others}; the other runs are as far as they could go")
    if number is not None:
        raise_again(number)
    runs = [Run(run.path, dataset=training.dataset) for run in training.runs]
    return runs if training.many else runs[0]


_OPTIONS = (
    *("out", "seeds", "sweep", "device", "log_every", "checkpoint_seconds", "in_memory", "capture"),
    "compile",
)


def _recipe_of(recipe: str | Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a name, or the one given, with other values of some fields, its own and those of its objective."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            near = _nearest(recipe, RECIPES)
            raise PyvaeError(f"no recipe {recipe!r}{near}: there are {', '.join(RECIPES)}")
        recipe = RECIPES[recipe][1]
    elif not isinstance(recipe, Recipe):
        raise PyvaeError(f"recipe: give a name or a Recipe, got {type(recipe).__name__}")
    objective = objective_of(settings["objective"]) if "objective" in settings else recipe.objective
    own = {field.name for field in fields(objective)}
    known = own | {field.name for field in fields(Recipe)}
    for name in settings:
        if name not in known:
            near = _nearest(name, (*known, *_OPTIONS))
            there = ", ".join(sorted({*known, *_OPTIONS}))
            raise PyvaeError(f"{type(objective).__name__} has no setting {name!r}{near}: there are {there}")
    of_objective = {k: v for k, v in settings.items() if k in own}
    of_recipe = {k: v for k, v in settings.items() if k not in own and k != "objective"}
    data = of_recipe.get("data")
    if isinstance(data, os.PathLike):
        of_recipe["data"] = os.fspath(data)
    elif data is not None and not isinstance(data, str):
        raise PyvaeError(
            f"data: give a path, which a run can find again, got {type(data).__name__}: "
            'np.save("images.npy", images) writes an array'
        )
    # all at once: one value may allow another
    return replace(recipe, objective=replace(objective, **of_objective), **of_recipe)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _seeds_of(seeds: str | Iterable[int] | None) -> Sequence[int] | None:
    if seeds is None:
        return None
    if isinstance(seeds, str):
        return parse_seeds(seeds)
    if not isinstance(seeds, Iterable):
        raise PyvaeError(f'seeds: give some as "0-7" or [0, 1], or one as seed={seeds}')
    return check_seeds(list(seeds))


def _sweeps_of(sweep: Mapping[str, Iterable[Any]]) -> list[tuple[str, list[Any]]]:
    if not isinstance(sweep, Mapping) or not all(isinstance(name, str) for name in sweep):
        raise PyvaeError('sweep: give the values of each setting by its name, as {"beta": [1, 4]}')
    for name, values in sweep.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise PyvaeError(f'sweep {name}: give its values in a list, as {{"{name}": [1, 4]}}')
    return [(name, list(values)) for name, values in sweep.items()]


def _warn_missing(reasons: Mapping[str, str]) -> None:
    for name, why in reasons.items():
        _LOG.warning("%s is not computed: %s", name, why)
