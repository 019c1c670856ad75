"""Tables of the literature at full length, in order of worth; what the time cuts off goes on in the next call.

Runs lie in runs/gpu. Of a run that is cut off, what it needs to go on is packed beside the results, where it is small
enough to be brought home; a call on another machine unpacks the newest pack it finds.
"""

import json
import os
import shutil
import signal
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from checkout import ROOT
from gpu_stages.cases import Cases, OutOfTimeError
from pyvae.data import load
from pyvae.data.dataset import Dataset
from pyvae.engine import checkpoint
from pyvae.engine.recipe import Precision
from pyvae.studies.published import Arm, Study
from pyvae.studies.reproduce import reproduce, study_of
from pyvae.studies.toys import reproduce_toy
from tiny import packed_data

RESULTS = ROOT / "benchmarks/results"
RUNS = ROOT / "runs/gpu"
PACKED_BYTES = 15 << 20
"""Of the largest pack; a 1200-unit MLP's would be 170 MB."""
_HOURS = 3600.0
_CLOSING_SECONDS = 20.0
"""To finish the steps under way, save and pack."""
_PACKED_SECONDS = 60.0
STUDIES: tuple[tuple[str, int, Precision], ...] = (
    ("control-vae-capacity", 1, "fp16"),
    ("beta-vae", 1, "fp16"),
    ("tc-vae", 5, "tf32"),
    ("control-vae-capacity-controls", 1, "fp16"),
    ("burgess", 1, "tf32"),
    ("factor-vae", 1, "fp16"),
    ("infogan", 1, "tf32"),
)
"""With their seeds, and a precision; fp16 is that of the fused engine, which has no kernels of tc-vae's MLP, none of
burgess's factors and none of critics. The last four are the questions of docs/findings at full length."""


def published_tables(case: Cases) -> None:
    """Scored as `pyvae reproduce` scores them; every arm and seed is a case."""
    dataset = packed_data() if case.dry else load("dsprites", progress=False)
    # the interpreter would take minutes for a step of the fused engine
    for name, seeds, precision in (("beta-vae", 1, "tf32"),) if case.dry else STUDIES:
        study = study_of(name)
        for arm in study.arms[:1] if case.dry else study.arms:
            for seed in range(seeds):
                one = _OneRun(name, study, arm, seed, precision, case)
                case(one.title, lambda one=one: one.bring_on(dataset), _HOURS)


def toys(case: Cases) -> None:
    """Figures that are computed on the CPU, beside the tables."""
    name, scale = "tighter-bounds-toy", 1e-4 if case.dry else 1.0

    def call() -> dict[str, Any]:
        out = RUNS / ("dry" if case.dry else "") / name
        reproduce_toy(name, out, seeds=(0,), scale=scale)
        return {"scale": scale, "results": json.loads((out / "results.json").read_text())}

    case(name, call, _HOURS)


class _OneRun:
    """A seed of an arm of a study."""

    def __init__(
        self, name: str, study: Study, arm: Arm, seed: int, precision: Precision, case: Cases
    ) -> None:
        self.title = f"{name}, {arm.name}, seed {seed}"
        self._name = name
        self._study = replace(study, arms=(arm,))
        self._arm = arm
        self._seed = seed
        self._precision = precision
        self._case = case
        label = f"{name}--{arm.name}--seed-{seed}"
        self._out = RUNS / ("dry" if case.dry else "") / label
        self._run = self._out / arm.name / f"seed-{seed}"
        self._pack = case.out / f"{label}.tar.gz"

    def bring_on(self, dataset: Dataset) -> dict[str, Any]:
        """Train from wherever it stands to its end, and score it; or as far as the time goes, and pack it."""
        case = self._case
        if case.dry:
            shutil.rmtree(self._out, ignore_errors=True)
        else:
            self._unpack()
        with _before_the_end(case, self._save):
            done = reproduce(
                self._name,
                self._study,
                dataset,
                case.device,
                self._out,
                seeds=(self._seed,),
                scale=Fraction(2, self._arm.recipe.steps) if case.dry else Fraction(1),
                data="tiny" if case.dry else "dsprites",
                precision=self._precision,
            )
        if done is None:
            self._save()
            raise OutOfTimeError
        self._pack.unlink(missing_ok=True)
        return {
            "study": self._name,
            "arm": self._arm.name,
            "seed": self._seed,
            "precision": self._precision,
            "results": json.loads((self._out / "results.json").read_text()),
        }

    def _save(self) -> None:
        """What the run needs to go on, in one file if that is small."""
        saved = checkpoint.paths(self._run / "checkpoints")
        if not saved:
            return
        steps = checkpoint.step_of(saved[-1])
        self._case.emit(f"{self.title}: so far", steps=steps, of=self._arm.recipe.steps)
        unfinished = self._pack.with_suffix(".tmp")
        with tarfile.open(unfinished, "w:gz", compresslevel=1) as tar:
            for file in (self._run / "recipe.json", self._run / "trace.csv", saved[-1]):
                tar.add(file, file.relative_to(self._run))
        if unfinished.stat().st_size > PACKED_BYTES:
            unfinished.unlink()
        else:
            unfinished.replace(self._pack)

    def _unpack(self) -> None:
        """The newest pack of this very recipe, where it is ahead of what lies there."""
        recipe = replace(
            self._study.recipe(self._arm, "dsprites"), precision=self._precision, seed=self._seed
        )
        written = json.loads(json.dumps(recipe.to_json()))
        there = checkpoint.paths(self._run / "checkpoints")
        best, steps = None, checkpoint.step_of(there[-1]) if there else 0
        for pack in {*RESULTS.glob(f"gpu-*/{self._pack.name}"), self._pack}:
            held = _steps_in(pack, written)
            if held > steps:
                best, steps = pack, held
        if best:
            shutil.rmtree(self._run, ignore_errors=True)
            self._run.mkdir(parents=True)
            with tarfile.open(best) as tar:
                tar.extractall(self._run, filter="data")


def _steps_in(pack: Path, recipe: dict[str, Any]) -> int:
    """Steps of a pack of this recipe; 0 of any other file."""
    try:
        with tarfile.open(pack) as tar:
            file = tar.extractfile("recipe.json")
            if file is None or json.load(file) != recipe:
                return 0
            return max(checkpoint.step_of(Path(n)) for n in tar.getnames() if n.endswith(".safetensors"))
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError, ValueError):
        return 0


@contextmanager
def _before_the_end(case: Cases, save: Callable[[], None]) -> Iterator[None]:
    """Before the end, as Ctrl-C: training finishes its steps, saves, and returns. And every minute, should the whole
    command be ended from outside, the run's newest checkpoint is packed as it is."""
    over = threading.Event()

    def watch() -> None:
        packed, told = time.monotonic(), False
        while not over.wait(0.5):
            if not told and case.left < _CLOSING_SECONDS:
                told = True
                os.kill(os.getpid(), signal.SIGTERM)
            late = case.left < _CLOSING_SECONDS / 2
            if late or time.monotonic() - packed > _PACKED_SECONDS:
                save()
                packed = time.monotonic()
            if late:
                return

    watching = threading.Thread(target=watch, daemon=True)
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # outside of training it would end the process
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGTERM, previous)
