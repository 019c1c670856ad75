"""Codes of a fixed thousand images, kept in ``codes.npz`` of a run: what unsupervised ranking compares."""

import io
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pyvae.base.files import open_regular
from pyvae.data.dataset import Dataset
from pyvae.data.subset import subset
from pyvae.engine import checkpoint
from pyvae.engine.files import write_atomically
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.metrics import CodeTable, encode
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair

IMAGES = 1000
_MOST_BYTES = 1 << 30


class NoCodesError(RunError):
    """A run whose images have no codes: there is no encoder, or it has diverged."""


class Kept(NamedTuple):
    """Codes, and what they are of."""

    steps: int
    """That the weights were trained for."""
    data: str
    """Fingerprint of the images."""
    table: CodeTable
    """Of at most a thousand images, without their factors."""


def write_codes(run: RunDirectory, dataset: Dataset, device: torch.device | str = "cpu") -> Kept:
    """Encode the images with the run's newest weights and keep the codes in the run.

    Raises:
        NoCodesError: no encoder, or codes that are not finite.
        RunError: no checkpoint, images of another shape than it was trained on, or a file that cannot be written.
    """
    if run.recipe.code == "factors":
        raise NoCodesError(f"the code of {run.path} is its true factors: there is no encoder to compare")
    newest = run.newest_for(dataset)
    net: Autoencoder | AdversarialPair = run.pair_of(newest) if run.adversarial else run.net_of(newest)
    shown = run.shown(dataset)
    try:
        table = encode(net, shown, device=device, index=subset(shown, IMAGES), progress=False)
    except ValueError as error:
        raise NoCodesError(f"{run.path}: {error}") from error
    mu, logvar = table.mu, table.logvar
    content = io.BytesIO()
    np.savez(content, mu=mu, logvar=logvar, steps=newest.step, data=dataset.fingerprint)
    write_atomically(_path(run), content.getvalue())
    return Kept(newest.step, dataset.fingerprint, CodeTable(mu, logvar, (), ()))


def keep_codes(run: RunDirectory, dataset: Dataset, device: torch.device | str = "cpu") -> None:
    """:func:`write_codes`, unless they are kept, for a report to come; a run that has none goes without.

    Raises:
        RunError: no checkpoint, or a file that cannot be written.
    """
    if run.recipe.code == "encoder" and read_codes(run) is None:
        with suppress(NoCodesError):
            write_codes(run, dataset, device)


def read_codes(run: RunDirectory) -> Kept | None:
    """What :func:`write_codes` kept, if it is of the run's newest checkpoint and whole; else None."""
    newest = checkpoint.paths(run.checkpoints)
    if not newest:
        return None
    try:
        with open_regular(_path(run)) as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, _MOST_BYTES))
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            mu, logvar = (torch.from_numpy(held[name]) for name in ("mu", "logvar"))
            kept = Kept(int(held["steps"]), str(held["data"]), CodeTable(mu, logvar, (), ()))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return kept if kept.steps == checkpoint.step_of(newest[-1]) else None


def _path(run: RunDirectory) -> Path:
    return run.path / "codes.npz"
