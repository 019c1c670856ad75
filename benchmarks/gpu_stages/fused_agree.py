"""The fused engine's kernels compiled, and its steps against float64 and against each other."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu_stages.cases import Cases
from gpu_stages.ensemble import (
    RECIPE,
    STAGES,
    VARIED,
    Ensemble,
    Varied,
    Way,
    has_pdl,
    images_of,
    net_of,
    plan_of,
    store_of,
    unequal,
)
from gpu_stages.fused_reference import rounded_step
from pyvae.engine.fused.members import rounded
from pyvae.engine.fused.plan import Launch, Operands

OPERANDS: tuple[Operands, ...] = ("fp16", "bf16", "tf32")
# of a gradient's norm: where one value in a thousand falls on the other side of a tie, by 2^-11 (bf16: 2^-8) of itself
_WORST = {"fp16": 1e-2, "tf32": 1e-2, "bf16": 5e-2}
_TYPICAL = {"fp16": 1e-3, "tf32": 1e-3, "bf16": 8e-3}
_LOSS = {"fp16": 1e-5, "tf32": 1e-5, "bf16": 1e-4}
_MOVED = 0.02
"""Of Adam's first steps, of length lr each: float32 weights hold that much of one."""
_PROCESSES = 16
SEEDS = (0, 1, 2, 3)


class _Task(NamedTuple):
    """A launch to be compiled."""

    way: Way
    varied: Varied | None
    at: int


def fused_compile(case: Cases) -> None:
    """Every kernel of the fused step, in processes beside each other, into Triton's cache."""
    case("launches", lambda: _compile(case), 115)


def _compile(case: Cases) -> dict[str, Any]:
    # dSprites may not be there yet
    tasks = list(_tasks(case))
    count = 1 if case.dry else min(_PROCESSES, os.cpu_count() or 1)
    wrong, too_large = [], []
    with ProcessPoolExecutor(count, get_context("spawn"), _end_with_the_parent, (os.getpid(),)) as pool:
        running = {pool.submit(_run, task, case.device.type, case.dry): task for task in tasks}
        for done in as_completed(running):
            task = running[done]
            error = done.exception()
            if error and task.varied and type(error).__name__ == "OutOfResources":
                too_large.append(f"{task.varied.name}, {task.varied.stages} stages")
            elif error:
                wrong.append(f"{task.way}: {_launches(task, dry=case.dry)[task.at].label}: {error}")
    found = {"launches": len(tasks), "processes": count, "too_large": too_large, "ok": not wrong}
    return {**found, "error": "; ".join(wrong)[:600]} if wrong else found


def _end_with_the_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tasks(case: Cases) -> Iterator[_Task]:
    """Those that differ in what is compiled."""
    seen = set()
    ways = [Way(operands) for operands in OPERANDS]
    if has_pdl(case.device):
        ways += [Way(o, pdl=True, side_branch=branch) for o in OPERANDS for branch in (False, True)]
    variants = [(way, None) for way in ways]
    variants += [(Way(), one._replace(stages=stages)) for one in VARIED for stages in STAGES]  # type: ignore[list-item]
    for way, varied in variants[:1] if case.dry else variants:
        for at, launch in enumerate(_launches(_Task(way, varied, 0), dry=case.dry)):
            numbers = tuple(x for x in launch.arguments if isinstance(x, int | float))
            key = (launch.kernel, launch.constants, launch.warps, launch.stages, numbers, way.operands)
            if key not in seen:
                seen.add(key)
                yield _Task(way, varied, at)
        if case.dry:
            return


def _launches(task: _Task, *, dry: bool) -> list[Launch]:
    plan = _plan(task.way, task.varied, dry)
    found = [*plan.first, *plan.forward, *plan.weigh, *plan.backward, *plan.settle]
    return found[:2] if dry else found


@lru_cache(maxsize=16)
def _plan(way: Way, varied: Varied | None, dry: bool) -> Any:
    return plan_of(way, dry=dry, varied=varied)


@lru_cache(maxsize=16)
def _one_of(way: Way, varied: Varied | None, device: str, dry: bool) -> Ensemble:
    """A member on images of no meaning."""
    return Ensemble(_plan(way, varied, dry), torch.ones((64, 64), dtype=torch.int64, device=device))


def _run(task: _Task, device: str, dry: bool) -> None:
    """In a process of its own: what is launched is compiled."""
    torch.set_num_threads(1)
    ensemble = _one_of(task.way, task.varied, device, dry)
    ensemble.members.launch([_launches(task, dry=dry)[task.at]])
    if device == "cuda":
        torch.cuda.synchronize()


def fused_agree(case: Cases) -> None:
    """A step against float64; members alone and among others, runs, and ways of launching, bit for bit."""
    for operands in OPERANDS[:1] if case.dry else OPERANDS:
        case(f"a step against float64, {operands}", lambda o=operands: one_step(case, o))
    for operands in OPERANDS[:1] if case.dry else OPERANDS:
        case(
            f"50 steps of a member alone and of the last of {len(SEEDS)}, {operands}",
            lambda o=operands: alone_and_among(case, o),
        )
    case("500 steps twice", lambda: same(case, 500, lambda: advanced(case, 500), lambda: advanced(case, 500)))
    if case.dry:
        return  # of graphs and of early launches there are none
    case(
        "64 steps in graphs and one by one",
        lambda: same(case, 64, lambda: advanced(case, 64), lambda: advanced(case, 64, capture=False)),
    )
    if has_pdl(case.device):
        for branch in (False, True):
            for operands in OPERANDS:
                way = Way(operands, pdl=True, side_branch=branch)
                case(
                    f"500 steps, {way}, and plain",
                    lambda w=way: same(
                        case,
                        500,
                        lambda: advanced(case, 500, Way(w.operands)),
                        lambda: advanced(case, 500, w),
                    ),
                )


def one_step(case: Cases, operands: Operands) -> dict[str, Any]:
    """Loss, gradients and moved weights of the first step, against float64 with the same roundings."""
    ensemble = Ensemble(plan_of(Way(operands), dry=case.dry), store_of(case.device, case.dry))
    plan, net = ensemble.plan, net_of(RECIPE.seed)
    which = ensemble.orders[0].draw(0, 1)[0]
    images = images_of(case.dry).images(which.cpu()).to(case.device, torch.float64)
    weight = float(ensemble.members.buffers["kl_weight"][0, 0])
    right = rounded_step(net.double().to(case.device), RECIPE.seed, images, weight, operands)
    before = ensemble.members.buffers["master"][0].clone()
    ensemble.advance(1)
    row = ensemble.members.buffers["row"][0]
    errors = {name: _error(ensemble.gradient(name), exact) for name, exact in right.gradients.items()}
    # the step of Adam, from the kernels' own gradients
    moved = plan.layout.tensors(ensemble.members.buffers["master"][0])
    held = plan.layout.tensors(before)
    lengths = []
    for name in right.gradients:
        g = ensemble.gradient(name)
        expected = held[name].double() - RECIPE.lr * g / (g.abs() + 1e-8)
        lengths.append(float((moved[name].double() - expected).abs().max()) / RECIPE.lr)
    master, weights = (ensemble.members.buffers[name][0] for name in ("master", "weights"))
    worst = max(errors, key=lambda name: errors[name])
    found = {
        "nll": _error(row[1], right.nll),
        "kl": _error(row[6:], right.kl),
        "worst_gradient": [worst, errors[worst]],
        "median_gradient": median(errors.values()),
        "adam": max(lengths),
        "weights_are_rounded": torch.equal(weights, rounded(master, operands)),
        "flags": int(ensemble.members.buffers["flags"][0, 0]),
    }
    # NaN is never below
    ok = (
        found["nll"] < _LOSS[operands]
        and found["kl"] < _WORST[operands]
        and all(error < _WORST[operands] for error in errors.values())
        and found["median_gradient"] < _TYPICAL[operands]
        and max(lengths) < _MOVED
        and all(length == length for length in lengths)
        and found["weights_are_rounded"]
        and found["flags"] == 0
    )
    return {"ok": bool(ok), **found}


def _error(ours: Tensor, right: Tensor) -> float:
    return float((ours.double() - right).norm() / right.norm().clamp_min(1e-30))


def advanced(case: Cases, steps: int, way: Way = Way(), *, capture: bool = True) -> Ensemble:  # noqa: B008
    """A member after some steps; in a dry run after two, of which only forward is computed."""
    return several(case, (RECIPE.seed,), steps, way, capture=capture)


def several(case: Cases, seeds: tuple[int, ...], steps: int, way: Way, *, capture: bool = True) -> Ensemble:
    """Members after some steps."""
    ensemble = Ensemble(
        plan_of(way, dry=case.dry), store_of(case.device, case.dry), seeds, whole=not case.dry
    )
    ensemble.advance(1 if case.dry else steps, capture=capture)
    return ensemble


def alone_and_among(case: Cases, operands: Operands) -> dict[str, Any]:
    """The last of the members, and one of its seed by itself."""
    seeds = SEEDS[-2:] if case.dry else SEEDS
    together = several(case, seeds, 50, Way(operands))
    alone = several(case, seeds[-1:], 50, Way(operands))
    return _judged(together.state(len(seeds) - 1), alone.state())


def same(case: Cases, steps: int, one: Callable[[], Ensemble], two: Callable[[], Ensemble]) -> dict[str, Any]:
    """Whether two trainings of one seed end in the same state, after so many steps."""
    states = [make().state() for make in (one, two)]
    return _judged(*states)


def _judged(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Any]:
    differ = unequal(one, two)
    flags = int(one["flags"][0])
    found: dict[str, Any] = {"ok": not differ and not flags, "steps": int(one["key"][1])}
    return {**found, "differ": differ, "flags": flags} if differ or flags else found
