"""Training by the fused engine beside torch's: the same recipe and seed, 20,000 steps."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from gpu_stages.cases import Cases, Values
from gpu_stages.fused_run import RECIPE, Run, Way, images_of, plan_of, store_of
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.fused.launch import DTYPES
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import BURST
from pyvae.engine.training import training
from pyvae.objectives import CapacityVAE, Objective

STEPS = 20_000
_LOG_EVERY = 100
_SHOWN_EVERY = 1_000
_NLL, _KL = 1, 6
"""Columns of a row; the KL of each latent stands at its end."""
_EARLY_STEPS = 200
_EARLY = 0.01
"""Of the reconstruction, while rounding has had no time to part two runs."""
_LATE = 0.1
"""Of the means over the last quarter: two runs of one seed that have parted differ by as much as two seeds."""
Rows = Sequence[tuple[int, list[float]]]


def fused_training(case: Cases) -> None:
    """Reconstruction and KL of each latent as torch's in tf32; how near gradients come to the largest fp16; and that a
    trainer's steps are those of its members."""
    held: dict[str, Rows] = {}

    def fused() -> Values:
        held["fused"], found = _fused(case, RECIPE.objective, _steps(case))
        return found

    case("fp16, its largest gradients", fused)
    case("torch engine in tf32, and fp16", lambda: _against_torch(case, held.get("fused")))
    case("trainer and members, fp16", lambda: _trainer(case, held.get("fused")))
    if not case.dry:
        objective = CapacityVAE()
        case(
            f"capacity-vae, gamma {objective.gamma:g}, fp16, its largest gradients",
            lambda: _fused(case, objective, _steps(case))[1],
        )


def _steps(case: Cases) -> int:
    return 1 if case.dry else STEPS


def _log_every(case: Cases) -> int:
    return 1 if case.dry else _LOG_EVERY


def _fused(case: Cases, objective: Objective, steps: int) -> tuple[Rows, Values]:
    """Rows of a run, and the largest gradients that were seen at the end of a burst."""
    way = Way()
    plan = plan_of(way, dry=case.dry, objective=objective)
    run = Run(
        plan,
        store_of(case.device, case.dry),
        objective=objective,
        log_every=_log_every(case),
        whole=not case.dry,
    )
    network = plan.network
    places = {"latents": f"{network.head}'", "last maps": f"{network.up[-1].name}'"}
    largest = {place: torch.zeros((), device=case.device) for place in places}
    while run.step < steps:
        run.advance(min(BURST, steps - run.step))
        for place, name in places.items():
            largest[place] = torch.maximum(largest[place], run.largest(name))
    rows = run.members.ledgers[0].ring.copy(0, steps).wait()
    return rows, {
        "rows": shown(rows),
        "largest_gradient": {place: float(x) for place, x in largest.items()},
        "bits_below_the_largest_number": {
            place: headroom(float(x), torch.finfo(DTYPES[way.operands]).max) for place, x in largest.items()
        },
        "ok": int(run.members.buffers["flags"][0, 0]) == 0,
    }


def headroom(largest: float, limit: float) -> float | None:
    """How many times the largest may double, as a logarithm to base 2; None where there is nothing."""
    return round(math.log2(limit / largest), 2) if 0 < largest < math.inf else None


def shown(rows: Rows) -> list[list[float]]:
    """Step, reconstruction and KL of each latent, of every thousandth step and the last."""
    return [
        [step, *(float(f"{x:.5g}") for x in (values[_NLL], *values[_KL:]))]
        for step, values in rows
        if step % _SHOWN_EVERY == 0 or step == rows[-1][0]
    ]


def _against_torch(case: Cases, mine: Rows | None) -> Values:
    if mine is None:  # it was known from an earlier call
        mine, _ = _fused(case, RECIPE.objective, _steps(case))
    recipe = _recipe(case, precision="tf32")
    settle_arithmetic(recipe.precision)
    trainer = training(recipe, images_of(case.dry), case.device, log_every=_log_every(case))
    trainer.advance(_steps(case))
    theirs = trainer.ledger.ring.copy(0, _steps(case)).wait()
    return {"rows": shown(theirs), **near(mine, theirs)}


def near(mine: Rows, theirs: Rows) -> Values:
    """Whether two traces are those of one recipe: near at first, and in what they reach."""
    early = [
        abs(a[_NLL] / b[_NLL] - 1)
        for (step, a), (_, b) in zip(mine, theirs, strict=True)
        if step <= _EARLY_STEPS
    ]
    late = len(mine) * 3 // 4
    means = [
        [sum(values[i] for _, values in rows[late:]) / len(rows[late:]) for i in (_NLL, 2)]
        for rows in (mine, theirs)
    ]
    parted = [abs(a / b - 1) for a, b in zip(*means, strict=True)]
    # NaN is never below, and hides from a maximum
    return {
        "ok": all(x < _EARLY for x in early) and all(x < _LATE for x in parted),
        "first_200_steps": float(f"{max(early):.3g}"),
        "last_quarter": {name: float(f"{x:.3g}") for name, x in zip(("nll", "kl"), parted, strict=True)},
    }


def _trainer(case: Cases, mine: Rows | None) -> Values:
    if case.dry:
        return {"skipped": "the tiles of a GPU take too long in the interpreter"}
    if mine is None:
        mine, _ = _fused(case, RECIPE.objective, _steps(case))
    recipe = _recipe(case, precision="fp16", engine="fused")
    trainer = training(recipe, images_of(case.dry), case.device, log_every=_log_every(case))
    trainer.advance(_steps(case))
    theirs = trainer.ledger.ring.copy(0, _steps(case)).wait()
    row = next((step for (step, a), (_, b) in zip(mine, theirs, strict=True) if a != b), None)
    return {"ok": row is None, **({} if row is None else {"first_step_that_differs": row})}


def _recipe(case: Cases, **changes: Any) -> Recipe:
    size = plan_of(Way(), dry=True).images if case.dry else RECIPE.batch_size
    return replace(RECIPE, batch_size=size, steps=STEPS, **changes)
