"""A run directory: ``recipe.json``, ``trace.csv``, ``checkpoints/``, ``snapshots/`` of the steps that the recipe keeps,
``events/`` for TensorBoard, ``figures/``."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pyvae.base.source import Source, keep, source_of
from pyvae.data.binarised import Binarised
from pyvae.data.dataset import Dataset
from pyvae.data.paths import absolute
from pyvae.engine import checkpoint
from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.files import cause_of, clear_leftovers, make_directory, write_atomically
from pyvae.engine.lock import lock
from pyvae.engine.pair import pair_of
from pyvae.engine.plain import checked, read_json
from pyvae.engine.recipe import Recipe, changed_sources, differences
from pyvae.engine.trace import read_trace
from pyvae.errors import RecipeError, RunError, SourceError
from pyvae.nets import Autoencoder, build
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import TERMS, InfoGAN

Net = TypeVar("Net", bound=torch.nn.Module)

_OF_RUN = ("checkpoints", "events", "figures", "profile", "recipe.json", "snapshots", "source", "trace.csv")


class HeldError(RunError):
    """Another process trains the run."""


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe

    @classmethod
    def open(cls, path: Path, own: Iterable[object] = ()) -> "RunDirectory":
        """A run that exists.

        Args:
            path: of its directory.
            own: functions and classes of a user's own that it was trained with, which a file does not hold.

        Raises:
            RunError: no such directory, or no run in it; or code of a user's own is not there any more.
        """
        for each in own:
            source_of(each)
        file = path / "recipe.json"
        if not os.path.lexists(file):
            raise RunError(
                f"{path} holds no run (no recipe.json): make one with `pyvae train ... --out {path}`"
            )
        try:
            return cls(path, Recipe.from_json(read_json(file), path / "source"))
        except OSError as error:
            raise RunError(f"cannot read {file}: {cause_of(error)}") from error
        except SourceError as error:
            raise RunError(f"{path}: {error}") from error
        except ValueError as error:
            raise RunError(
                f"{file} is not a recipe of this version of pyvae: {error}; put back a copy of it: "
                "the header of every checkpoint holds one"
            ) from error

    @classmethod
    def create_or_resume(cls, path: Path, recipe: Recipe) -> "RunDirectory":
        """The run of this recipe at ``path``, new or begun; nothing is written before it is trained.

        Where the data lies is no part of what must agree: training compares what it holds. A run without a
        checkpoint or results binds nobody.

        Raises:
            RunError: the path is a file, a directory with something else in it, or a run of another recipe.
        """
        run = cls(path, replace(recipe, data=absolute(recipe.data)))
        run.check_recipe()
        return run

    def check_recipe(self) -> None:
        """Raise RunError unless this recipe may be trained in the directory, which need not be there."""
        path = self.path
        try:
            if not path.exists():
                return
            if not path.is_dir():
                raise RunError(f"--out {path} is a file: name a directory")
            foreign = [entry.name for entry in path.iterdir() if not _is_of_run(entry.name)]
        except OSError as error:
            raise RunError(f"cannot read --out {path}: {cause_of(error)}") from error
        if os.path.lexists(path / "recipe.json"):
            # another program's is refused, and what was trained binds
            self._check_sources()
            existing = RunDirectory.open(path).recipe
            if self._has_results() and (different := differences(self.recipe, existing)):
                raise RunError(
                    f"{path} holds a run of another recipe ({'; '.join(different)}): "
                    "name another --out, or give that recipe to resume it"
                )
        elif foreign and not self._has_results():
            raise RunError(f"--out {path} is not empty and holds no run: name another directory")

    def _check_sources(self) -> None:
        """Refuse code of a user's own that has changed since the run began; the code that it was need not be loaded."""
        with suppress(OSError, ValueError):
            found = checked(read_json(self.path / "recipe.json"), dict[str, Any]).get("sources", {})
            changed = changed_sources(self.recipe, checked(found, dict[str, str]))
            if changed and self._has_results():
                file = changed[0]
                copy = next(iter(sorted(self.source.glob(f"{Path(file).stem}*.py"))), self.source / file)
                raise RunError(
                    f"{file} has changed since {self.path} began (a copy of what it was is {copy}): put it back, or "
                    "name another --out"
                )

    def _has_results(self) -> bool:
        """Whether there is anything that training or an evaluation of it made."""
        return bool(
            checkpoint.paths(self.checkpoints)
            or checkpoint.paths(self.snapshots)
            or os.path.lexists(self.path / "metrics.json")
        )

    def write_recipe(self) -> None:
        """Write ``recipe.json``, and copies of code of a user's own in ``source``.

        Raises:
            RunError: it cannot be written.
        """
        for copy, text in keep(self.recipe.sources, self.source):
            make_directory(self.source)
            write_atomically(copy, text)
        content = json.dumps(self.recipe.to_json(), indent=2) + "\n"
        write_atomically(self.path / "recipe.json", content.encode())

    def is_written(self) -> bool:
        """Whether ``recipe.json`` is there, and is this recipe in all."""
        return (
            os.path.lexists(self.path / "recipe.json") and RunDirectory.open(self.path).recipe == self.recipe
        )

    @property
    def adversarial(self) -> bool:
        """Whether a generator and a critic are trained, instead of an encoder and a decoder."""
        return isinstance(self.recipe.objective, InfoGAN)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def source(self) -> Path:
        """Copies of the code of a user's own that the recipe names."""
        return self.path / "source"

    @property
    def events(self) -> Path:
        return self.path / "events"

    def clear_leftovers(self) -> None:
        """Remove what killed processes were writing; for who holds the run."""
        for directory in (self.path, self.checkpoints, self.snapshots, self.figures, self.source):
            clear_leftovers(directory)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for training, in a directory that is made where there is none; it goes again where nothing came
        of it.

        Raises:
            HeldError: another process trains it.
            RunError: the directory cannot be made or written.
        """
        made = not self.path.exists()
        make_directory(self.path)
        file = self.path / ".lock"
        try:
            with lock(file, wait=False) as held:
                if not held:
                    raise HeldError(f"{self.path} is being trained by another process")
                try:
                    yield
                finally:
                    if made and [entry.name for entry in self.path.iterdir()] == [file.name]:
                        file.unlink()
        finally:
            if made:
                with suppress(OSError):  # it holds something
                    self.path.rmdir()

    def trace(self) -> dict[str, np.ndarray]:
        """Columns of ``trace.csv``: step, loss, recon, kl, beta, capacity, kl_0, kl_1, ..."""
        needed = ("loss", "information_0") if self.adversarial else (*TERMS, "kl_0")
        return read_trace(self.path / "trace.csv", needed)

    def newest_checkpoint(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            RunError: there is none yet, none is whole, or it is of another recipe than ``recipe.json``.
        """
        newest = self.resumable()
        if newest is None:
            raise RunError(f"{self.path} has no checkpoint yet: run its `pyvae train` command")
        return newest

    def saved(self, step: int | None = None) -> Checkpoint:
        """What is kept of a step, in ``snapshots/`` or ``checkpoints/``; by default the newest checkpoint.

        Raises:
            RunError: as :meth:`newest_checkpoint`, or nothing is kept of that step.
        """
        if step is None:
            return self.newest_checkpoint()
        kept = {
            checkpoint.step_of(path): path
            for directory in (self.checkpoints, self.snapshots)
            for path in checkpoint.paths(directory)
        }
        if step not in kept:
            steps = ", ".join(f"{each:,}" for each in sorted(kept)) or "none"
            wanted = f"{step:,}" if isinstance(step, int) else repr(step)
            raise RunError(f"{self.path} has not kept the weights of step {wanted}; kept: {steps}")
        found = checkpoint.load(kept[step])
        if "recipe" in found.metadata:
            self._check_recipe(found)
        return found

    def newest_for(self, dataset: Dataset) -> Checkpoint:
        """The newest checkpoint, for images of this data set.

        Raises:
            RunError: there is none yet, it is damaged, or it was trained on images of another shape.
        """
        newest = self.newest_checkpoint()
        if (trained_on := tuple(newest.metadata["image_shape"])) != dataset.image_shape:
            raise RunError(
                f"{self.path} was trained on images of shape {trained_on}, but those of {dataset.fingerprint} are "
                f"{dataset.image_shape}: give the data it was trained on"
            )
        return newest

    def resumable(self, *, repair: bool = False, tell: bool = True) -> Checkpoint | None:
        """The newest checkpoint, None where there is none yet; see :func:`pyvae.engine.checkpoint.load_newest`.

        Raises:
            RunError: as :meth:`newest_checkpoint`.
        """
        newest = checkpoint.load_newest(self.checkpoints, repair=repair, tell=tell)
        if newest is not None and "recipe" in newest.metadata:
            self._check_recipe(newest)
        return newest

    def _check_recipe(self, saved: Checkpoint) -> None:
        """Refuse a ``recipe.json`` that was changed since; but for where the data lies, and the length of the run."""
        path = checkpoint.path_of(self.checkpoints, saved.step)
        try:
            trained = Recipe.from_json(saved.metadata["recipe"], self.source)
        except RecipeError as error:
            raise RunError(f"the recipe in {path} is not one of this version of pyvae: {error}") from error
        if different := differences(self.recipe, replace(trained, data=self.recipe.data)):
            if not os.path.lexists(self.path / "recipe.json"):
                raise RunError(
                    f"{self.path} holds checkpoints of another recipe ({'; '.join(different)}): name another --out, or "
                    "give that recipe to resume it"
                )
            raise RunError(
                f"{self.path / 'recipe.json'} is not what {path.name} was trained with ({'; '.join(different)}): put "
                "that back into it"
            )

    def pair_of(self, saved: Checkpoint) -> AdversarialPair:
        """Generator and critic of a checkpoint, on the CPU in eval mode, where the objective has them.

        Raises:
            RunError: it has none, or the checkpoint is not of this recipe.
        """
        objective = self.recipe.objective
        if not isinstance(objective, InfoGAN):
            raise RunError(f"{self.path} has an encoder and a decoder, no generator and critic")
        channels = saved.metadata["image_shape"][0]
        pair = self._filled(lambda: pair_of(self.recipe, objective, channels), saved, "")
        return pair.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def net_of(self, saved: Checkpoint) -> Autoencoder:
        """The network of a checkpoint, on the CPU in eval mode.

        Raises:
            RunError: the run has generator and critic instead, or the checkpoint is not of this recipe.
        """
        if self.adversarial:
            raise RunError(f"{self.path} has a generator and a critic, no encoder and decoder")
        sizes = saved.tensors.get("net.encoder.sizes")
        channels, side, _ = saved.metadata["image_shape"]
        net = self._filled(
            lambda: build(
                self.recipe.architecture,
                channels,
                self.recipe.latents,
                side=side,
                factor_sizes=None if sizes is None else sizes.flatten().tolist(),
            ),
            saved,
            "net.",
        )
        return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def _filled(self, make: Callable[[], Net], saved: Checkpoint, prefix: str) -> Net:
        """A network with the weights of a checkpoint, if it is one that they fit."""
        what = f"the checkpoint of step {saved.step:,} in {self.path}"
        try:
            if isinstance(self.recipe.architecture, Source):
                wanted = make().state_dict()
            else:
                # without memory, of which a recipe can ask for any amount
                with torch.device("meta"):
                    wanted = make().state_dict()
        except SourceError as error:
            raise RunError(f"{self.path}: {error}") from error
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise RunError(
                f"{what} does not fit its recipe, of which no network can be made: {str(error).splitlines()[0]}"
            ) from error
        checkpoint.check_fit(saved.tensors, {prefix + name: tensor for name, tensor in wanted.items()}, what)
        net = make()
        net.load_state_dict({name: saved.tensors[prefix + name] for name in wanted})
        return net

    def shown(self, dataset: Dataset) -> Dataset:
        """A data set as the run's network is to be evaluated on it: grey images binarised once for all, if it was
        trained on binarised ones."""
        return dataset if self.recipe.binarise == "none" else Binarised(dataset)

    def load_net(self) -> tuple[Autoencoder, int]:
        """The network of the newest checkpoint, on the CPU in eval mode, and the steps it was trained for.

        Raises:
            RunError: there is no checkpoint yet.
        """
        newest = self.newest_checkpoint()
        return self.net_of(newest), newest.step


def _is_of_run(name: str) -> bool:
    """Whether a directory that holds this alone is free to become a run."""
    return name in _OF_RUN or name.startswith(".")
