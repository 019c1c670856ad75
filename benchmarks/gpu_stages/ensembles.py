"""Runs that train side by side, as the command line trains them: what they give, and how fast they are."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu_stages.cases import Cases, Values
from gpu_stages.fused_run import RECIPE, images_of
from pyvae.data.dataset import Dataset
from pyvae.engine import checkpoint
from pyvae.engine.loop import Outcome, train, train_together
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.objectives import BetaVAE, CapacityVAE, ControlVAE, FactorVAE, Objective

MEMBERS = 8
_STEPS = 600
_BAD_STEP = 48
_BAD = 3
"""The member that is made NaN."""
OBJECTIVES: dict[str, Objective] = {
    "beta-VAE": BetaVAE(),
    "capacity": CapacityVAE(),
    "ControlVAE, adaptive": ControlVAE(schedule="adaptive"),
    "FactorVAE": FactorVAE(),
}
RATES = {1: 32_000, 4: 16_000, 16: 6_400, 64: 1_920}
"""Members, and steps that take four to six seconds."""


def ensembles(case: Cases) -> None:
    """Members together and alone, bit for bit; one that is made NaN; and steps a second with memory, through run
    directories, traces and checkpoints."""
    objectives = list(OBJECTIVES.items())[:1] if case.dry else list(OBJECTIVES.items())
    for name, objective in objectives:
        case(f"{MEMBERS} members of {name}, together and alone", lambda o=objective: _alone(case, o))
    case(f"a member made NaN at step {_BAD_STEP}", lambda: _without_one(case))
    for members, steps in list(RATES.items())[:1] if case.dry else RATES.items():
        case(f"{members} of the command line", lambda m=members, s=steps: _rate(case, m, s))


class _Place:
    """Runs of a case, in a directory that goes with it."""

    def __init__(self, case: Cases, stack: ExitStack) -> None:
        self._case = case
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.dataset: Dataset = images_of(case.dry)

    def recipes(self, count: int, steps: int, objective: Objective) -> list[Recipe]:
        dry = self._case.dry
        own: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "engine": "torch"} if dry else {}
        how = {"precision": "fp16", "engine": "fused", "objective": objective} | own
        return [replace(RECIPE, seed=seed, steps=2 if dry else steps, **how) for seed in range(count)]

    def together(self, name: str, recipes: Sequence[Recipe]) -> tuple[list[RunDirectory], list[Outcome]]:
        """Runs ``name/seed-n``, brought to their ends as one."""
        runs = [RunDirectory(self._folder / name / f"seed-{recipe.seed}", recipe) for recipe in recipes]
        return runs, train_together(runs, self.dataset, self._case.device)

    def alone(self, recipe: Recipe) -> RunDirectory:
        run = RunDirectory(self._folder / "alone" / f"seed-{recipe.seed}", recipe)
        train(run, self.dataset, self._case.device)
        return run


def _alone(case: Cases, objective: Objective) -> Values:
    with ExitStack() as stack:
        place = _Place(case, stack)
        recipes = place.recipes(2 if case.dry else MEMBERS, _STEPS, objective)
        together, _ = place.together("together", recipes)
        wrong = []
        for run in (together[0], together[-1]):
            wrong += [f"seed {run.recipe.seed}: {name}" for name in _differ(run, place.alone(run.recipe))]
        return {"ok": not wrong, "steps": recipes[0].steps, **({"error": "; ".join(wrong)} if wrong else {})}


def _differ(one: RunDirectory, two: RunDirectory) -> list[str]:
    """What two runs have left that is not the same, bit for bit."""
    a, b = one.newest_checkpoint(), two.newest_checkpoint()
    names = [
        name
        for name in a.tensors.keys() | b.tensors.keys()
        if name not in a.tensors or name not in b.tensors or not torch.equal(a.tensors[name], b.tensors[name])
    ]
    names += ["step"] * (a.step != b.step)
    traces = [(run.path / "trace.csv").read_bytes() for run in (one, two)]
    return sorted(names) + ["trace.csv"] * (traces[0] != traces[1])


def _without_one(case: Cases) -> Values:
    """A member whose weights become NaN, and others that must not care."""
    with ExitStack() as stack:
        place = _Place(case, stack)
        whole = place.recipes(4 if case.dry else MEMBERS, _STEPS, BetaVAE())
        at = 1 if case.dry else _BAD_STEP
        runs, _ = place.together("one of them NaN", [replace(recipe, steps=at) for recipe in whole])
        saved = runs[_BAD].newest_checkpoint()
        name = next(name for name in saved.tensors if name.endswith("weight"))
        saved.tensors[name].fill_(float("nan"))
        checkpoint.save(runs[_BAD].checkpoints, saved)
        runs, outcomes = place.together("one of them NaN", whole)
        undisturbed, _ = place.together("undisturbed", whole)
        wrong = [
            f"seed {one.recipe.seed}: {name}"
            for n, (one, two) in enumerate(zip(runs, undisturbed, strict=True))
            if n != _BAD
            for name in _differ(one, two)
        ]
        failed = [n for n, outcome in enumerate(outcomes) if outcome.failure]
        ok = not wrong and failed == [_BAD]
        return {"ok": ok, "failed": failed, **({"error": "; ".join(wrong)} if wrong else {})}


def _rate(case: Cases, members: int, steps: int) -> Values:
    """Of the second half of the steps: what compiling, capturing and the last save take is in both lengths."""
    cuda = case.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    lengths, seconds, failed = (steps // 2, steps), [], False
    for length in lengths:
        with ExitStack() as stack:
            place = _Place(case, stack)
            recipes = place.recipes(1 if case.dry else members, length, BetaVAE())
            _, outcomes = place.together("runs", recipes)
        seconds.append(outcomes[0].made / outcomes[0].steps_per_second)
        failed = failed or any(outcome.failure for outcome in outcomes)
    return {
        "members": members,
        "steps": lengths,
        "took": [round(x, 3) for x in seconds],
        "model_steps_per_second": round(members * (lengths[1] - lengths[0]) / (seconds[1] - seconds[0]), 1),
        "mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if cuda else None,
        "ok": not failed,
    }
