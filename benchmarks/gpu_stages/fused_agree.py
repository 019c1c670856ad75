"""The fused engine's kernels compiled, and its steps against float64 and against each other."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu_stages.beside import end_with_the_parent
from gpu_stages.cases import Cases
from gpu_stages.fused_reference import Reference, rounded_step
from gpu_stages.fused_run import (
    ALL,
    OPERANDS,
    RECIPE,
    STAGES,
    VARIED,
    Run,
    Varied,
    Way,
    has_pdl,
    images_of,
    net_of,
    plan_of,
    store_of,
    unequal,
)
from pyvae.engine.fused.launch import Launch, Operands
from pyvae.engine.fused.members import rounded

# of a gradient's norm. What sums in float32 moves by 2^-23 falls on the other side of some ties, by 2^-11 of itself, or
# 2^-8: that alone moves the median gradient of a step by 2e-3 to 4e-3, in bf16 by 1e-2
_WORST = {"fp16": 2e-2, "tf32": 2e-2, "bf16": 1e-1}
_TYPICAL = {"fp16": 8e-3, "tf32": 8e-3, "bf16": 2e-2}
_LOSS = {"fp16": 1e-5, "tf32": 1e-5, "bf16": 1e-4}
_MOVED = 0.02
"""Of Adam's first steps, of length lr each: float32 weights hold that much of one."""
_PROCESSES = 16
_SECONDS = 20.0
"""Of a case."""
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
    with ProcessPoolExecutor(count, get_context("spawn"), end_with_the_parent, (os.getpid(),)) as pool:
        for task, error in zip(
            tasks, pool.map(partial(_run, case.device.type, case.dry), tasks), strict=True
        ):
            if task.varied and error.startswith("OutOfResources"):
                too_large.append(f"{task.varied.name}, {task.varied.stages} stages")
            elif error:
                wrong.append(f"{task.way}: {error}")
    found = {"launches": len(tasks), "processes": count, "too_large": too_large, "ok": not wrong}
    return {**found, "error": "; ".join(wrong)[:600]} if wrong else found


def _tasks(case: Cases) -> Iterator[_Task]:
    """Those that differ in what is compiled."""
    seen = set()
    ways = [Way(operands) for operands in OPERANDS]
    if has_pdl(case.device):
        ways += [Way(o, pdl=True, side_branch=branch) for o in OPERANDS for branch in (False, True)]
        ways += [*(Way(operands, descriptors=True) for operands in OPERANDS), ALL]
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


@cache
def _plan(way: Way, varied: Varied | None, dry: bool) -> Any:
    return plan_of(way, dry=dry, varied=varied)


@cache
def _one_of(way: Way, varied: Varied | None, device: str, dry: bool) -> Run:
    """A member on images of no meaning."""
    return Run(_plan(way, varied, dry), torch.ones((64, 64), dtype=torch.int64, device=device))


def _run(device: str, dry: bool, task: _Task) -> str:
    """In a process of its own: what is launched is compiled. What went wrong, or nothing."""
    torch.set_num_threads(1)
    try:
        launch = _launches(task, dry=dry)[task.at]
        _one_of(task.way, task.varied, device, dry).members.launch([launch])
        if device == "cuda":
            torch.cuda.synchronize()
    # as text: not every error of a compiler can be sent from process to process
    except Exception as error:
        return f"{type(error).__name__}: launch {task.at}: {' '.join(str(error).split())[:200]}"
    return ""


def fused_agree(case: Cases) -> None:
    """A step against float64; members alone and among others, runs, and ways of launching, bit for bit."""
    for operands in OPERANDS[:1] if case.dry else OPERANDS:
        case(f"a step against float64, {operands}", lambda o=operands: one_step(case, Way(o)), _SECONDS)
    for operands in OPERANDS[:1] if case.dry else OPERANDS:
        case(
            f"50 steps of a member alone and of the last of {len(SEEDS)}, {operands}",
            lambda o=operands: alone_and_among(case, Way(o)),
            _SECONDS,
        )

    def compare(title: str, one: Callable[[], Run], two: Callable[[], Run]) -> None:
        case(title, lambda: same(one, two), _SECONDS)

    compare("500 steps twice", *[partial(advanced, case, 500)] * 2)
    if case.dry:
        return  # of graphs and of early launches there are none
    compare(
        "64 steps in graphs and one by one",
        partial(advanced, case, 64),
        partial(advanced, case, 64, capture=False),
    )
    if has_pdl(case.device):
        for operands in OPERANDS:
            way = Way(operands, descriptors=True)
            case(f"a step against float64, {way}", lambda w=way: one_step(case, w), _SECONDS)
            case(
                f"50 steps of a member alone and of the last of {len(SEEDS)}, {way}",
                lambda w=way: alone_and_among(case, w),
                _SECONDS,
            )
        case(f"a step against float64, {ALL}", lambda: one_step(case, ALL), _SECONDS)
        for branch, operands in product((False, True), OPERANDS):
            early = Way(operands, pdl=True, side_branch=branch)
            compare(
                f"500 steps, {early}, and plain",
                partial(advanced, case, 500, Way(operands)),
                partial(advanced, case, 500, early),
            )


def one_step(case: Cases, way: Way) -> dict[str, Any]:
    """Loss, gradients and moved weights of the first step, against float64 with the same roundings."""
    operands = way.operands
    run = Run(plan_of(way, dry=case.dry), store_of(case.device, case.dry))
    net = net_of(RECIPE.seed)
    which = run.orders[0].draw(0, 1)[0]
    images = images_of(case.dry).images(which.cpu()).double()
    weight = float(run.members.buffers["kl_weight"][0, 0])
    # half a second on a core, ten on an H100, whose library has only slow convolutions of float64
    start = time.perf_counter()
    right = rounded_step(net.double(), RECIPE.seed, images, weight, operands).to(case.device)
    seconds = round(time.perf_counter() - start, 2)
    before = run.members.buffers["master"][0].clone()
    run.advance(1)
    return {**judged_step(run, before, right, operands), "reference_seconds": seconds}


def judged_step(run: Run, before: Tensor, right: Reference, operands: Operands) -> dict[str, Any]:
    """What a step has left, and whether all of it is right.

    Args:
        before: float32 ``[width]`` weights in front of the step.
    """
    layout, buffers = run.plan.layout, run.members.buffers
    row, master, weights = (buffers[name][0] for name in ("row", "master", "weights"))
    errors = {name: _error(run.gradient(name), exact) for name, exact in right.gradients.items()}
    # the step of Adam, from the kernels' own gradients
    moved, held = layout.tensors(master), layout.tensors(before)
    lengths = []
    for name in right.gradients:
        g = run.gradient(name)
        expected = held[name].double() - RECIPE.lr * g / (g.abs() + 1e-8)
        lengths.append(float((moved[name].double() - expected).abs().max()) / RECIPE.lr)
    worst = max(errors, key=lambda name: errors[name])
    nll, kl, typical = _error(row[1], right.nll), _error(row[6:], right.kl), median(errors.values())
    adam, same = max(lengths), torch.equal(weights, rounded(master, operands))
    flags = int(buffers["flags"][0, 0])
    # NaN is never below, and hides from a maximum
    ok = (
        nll < _LOSS[operands]
        and kl < _TYPICAL[operands]
        and typical < _TYPICAL[operands]
        and all(error < _WORST[operands] for error in errors.values())
        and all(length < _MOVED for length in lengths)
        and same
        and flags == 0
    )
    return {
        "ok": ok,
        "nll": nll,
        "kl": kl,
        "worst_gradient": [worst, errors[worst]],
        "median_gradient": typical,
        "adam": adam,
        "weights_are_rounded": same,
        "flags": flags,
    }


def _error(ours: Tensor, right: Tensor) -> float:
    return float((ours.double() - right).norm() / right.norm().clamp_min(1e-30))


def advanced(case: Cases, steps: int, way: Way = Way(), *, capture: bool = True) -> Run:  # noqa: B008
    """A member after some steps; in a dry run after two, of which only forward is computed."""
    return several(case, (RECIPE.seed,), steps, way, capture=capture)


def several(case: Cases, seeds: tuple[int, ...], steps: int, way: Way, *, capture: bool = True) -> Run:
    """Members after some steps."""
    run = Run(plan_of(way, dry=case.dry), store_of(case.device, case.dry), seeds, whole=not case.dry)
    run.advance(1 if case.dry else steps, capture=capture)
    return run


def alone_and_among(case: Cases, way: Way) -> dict[str, Any]:
    """The last of the members, and one of its seed by itself."""
    seeds = SEEDS[-2:] if case.dry else SEEDS
    together = several(case, seeds, 50, way)
    alone = several(case, seeds[-1:], 50, way)
    return _judged(together.state(len(seeds) - 1), alone.state())


def same(one: Callable[[], Run], two: Callable[[], Run]) -> dict[str, Any]:
    """Whether two trainings of one seed end in the same state."""
    states = [make().state() for make in (one, two)]
    return _judged(*states)


def _judged(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Any]:
    differ = unequal(one, two)
    flags = int(one["flags"][0])
    found: dict[str, Any] = {"ok": not differ and not flags, "steps": int(one["key"][1])}
    return {**found, "differ": differ, "flags": flags} if differ or flags else found
