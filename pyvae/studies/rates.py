"""How many steps a second a machine makes, measured by making some; nothing of a run is written."""

import contextlib
import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pyvae
from pyvae.base.allocator import keep_large_buffers
from pyvae.data import cache
from pyvae.data.dataset import Dataset
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.files import make_directory, write_atomically
from pyvae.engine.fused.ensemble import Ensemble
from pyvae.engine.plain import checked, read_json
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import BURST, RING_ROWS, Stepper
from pyvae.engine.together import shape_of
from pyvae.engine.training import training
from pyvae.errors import PyvaeError

_LOG = logging.getLogger(__name__)
_SECONDS = 1.0
_FEWEST = 3
_EVERY = 100


def rate_of(recipe: Recipe, dataset: Dataset, device: torch.device, members: int) -> float:
    """Steps of all members in a second, of a group of this recipe: what was measured on this machine before, or else
    now, in a second or two.

    Args:
        recipe: with the engine that trains it.
        members: that stand in an ensemble; 1 for the torch engine.
    """
    key = _key(recipe, dataset, device, members)
    held = _read()
    if key not in held:
        _LOG.info("measuring how fast %s trains here", type(recipe.objective).__name__)
        held[key] = measure([replace(recipe, seed=n) for n in range(members)], dataset, device)
        _write(key, held[key])
    return held[key]


def measure(recipes: Sequence[Recipe], dataset: Dataset, device: torch.device) -> float:
    """Steps of all members in a second."""
    keep_large_buffers()
    settle_arithmetic(recipes[0].precision)
    stepper = (
        training(recipes[0], dataset, device, log_every=_EVERY)
        if len(recipes) == 1
        else _Together(recipes, dataset, device)
    )
    steps = BURST if device.type == "cuda" else 1
    stepper.advance(_FEWEST * steps)  # kernels are compiled, and a graph is captured
    _wait(device)
    began, made = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < _SECONDS or made < _FEWEST:
        stepper.advance(steps)
        _wait(device)
        made += steps
        steps = min(2 * steps, 16 * BURST) if device.type == "cuda" else 1
    return made * len(recipes) / passed


class _Together(Stepper):
    """Steps of an ensemble, of which nothing is kept."""

    def __init__(self, recipes: Sequence[Recipe], dataset: Dataset, device: torch.device) -> None:
        self._ensemble = Ensemble(recipes, dataset, device, rows=RING_ROWS, log_every=_EVERY)
        super().__init__(
            recipes[0],
            self._ensemble.fields,
            device,
            log_every=_EVERY,
            capture=True,
            ledger=self._ensemble.ledgers[0],
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        return self._ensemble.tensors()

    def restore(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        self._ensemble.restore(step, tensors)
        self._restart(step)

    def _prepare(self, step: int) -> None:
        self._ensemble.prepare(step)

    def _step(self) -> None:
        self._ensemble.step()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _key(recipe: Recipe, dataset: Dataset, device: torch.device, members: int) -> str:
    """What decides a rate, in 32 digits: not where the data lies, nor how long the run is."""
    shape = shape_of(replace(recipe, data="", steps=1, keep_at=()))
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{platform.node()} {platform.machine()} {torch.get_num_threads()}"
    versions = pyvae.__version__, torch.__version__
    known = (shape, dataset.fingerprint, members, place, versions)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def _file() -> Path:
    return cache.directory() / "rates.json"


def _read() -> dict[str, float]:
    """What was measured before; nothing where that cannot be read."""
    try:
        held: dict[str, float] = checked(read_json(_file()), dict[str, float])
    except (OSError, ValueError):
        return {}
    return {key: rate for key, rate in held.items() if 0 < rate < math.inf}


def _write(key: str, rate: float) -> None:
    """Keep a rate beside the others; measured again where it cannot be kept."""
    with contextlib.suppress(PyvaeError):
        make_directory(_file().parent)
        values: dict[str, Any] = {**_read(), key: rate}
        write_atomically(_file(), json.dumps(values, indent=1).encode())
