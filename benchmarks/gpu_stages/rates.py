"""Steps per second of whole training steps, and what one of them spends its time on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch.profiler import ProfilerActivity, profile

import bench_train
from gpu_stages.cases import Cases
from interleaved import synchronise
from pyvae.data import load
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.profile import kernels_of
from pyvae.engine.training import training
from tiny import packed_data

_SECONDS = 0.5
_STEPS = 32
OBJECTIVES = (
    *("vae", "capacity-vae", "control-vae", "annealed-vae", "factor-vae", "tc-vae", "dip-vae"),
    *("iwae", "miwae", "piwae", "ciwae", "infogan", "infowgan-gp"),
)


RATES = (
    *("pyvae --precision tf32", "pyvae --precision fp32", "pyvae --precision bf16, captured"),
    "pyvae --no-capture",
)
POPULAR = ("popular code", "+ fused Adam", "+ channels_last", "popular code, our two losses")
COMPILED = tuple(f"pyvae --precision {precision} --compile" for precision in ("tf32", "bf16", "fp32"))
POPULAR_COMPILED = ("popular code, torch.compile", "+ torch.compile")
OF_OBJECTIVES = tuple(f"pyvae {name} --precision tf32" for name in OBJECTIVES)
_COMPILED_SECONDS = 150.0


def rates(case: Cases) -> None:
    """pyvae's beta-VAE at every precision, captured, and uncaptured."""
    _measure(case, RATES, "pyvae")


def objectives(case: Cases) -> None:
    """Every other objective."""
    _measure(case, OF_OBJECTIVES, "pyvae dip-vae")


def popular(case: Cases) -> None:
    """The same step as popular repositories write it, in torch's own arithmetic."""
    _measure(case, POPULAR, "popular code")


def compiled(case: Cases) -> None:
    """pyvae's with the networks through torch.compile, which takes half a minute each."""
    _measure(case, COMPILED, "pyvae dip-vae")


def popular_compiled(case: Cases) -> None:
    """The popular code through torch.compile, in torch's own arithmetic: so in a process without pyvae's steps."""
    _measure(case, POPULAR_COMPILED, "popular code, torch.compile")


def counted(case: Cases) -> None:
    """Kernels that a step of each objective launches. Profiles come last: they may slow what follows."""
    settle_for(case)
    for name in ("pyvae dip-vae",) if case.dry else (*RATES, *OF_OBJECTIVES):
        case(name, lambda name=name: {"kernels": _launches(case, name)}, 60)


def kernels(case: Cases) -> None:
    """Kernels of a captured step by time."""
    settle_for(case)
    for precision in ("tf32", "bf16", "fp32"):
        case(precision, lambda p=precision: _kernels(case, p))


def _measure(case: Cases, names: Sequence[str], dry: str) -> None:
    settle_for(case)
    for name in (dry,) if case.dry else names:
        seconds = _COMPILED_SECONDS if "compile" in name else 60

        def call(name: str = name) -> dict[str, Any]:
            rate = bench_train.prepared(name)(0.01 if case.dry else _SECONDS)
            return {"steps_per_second": rate.steps_per_second.rounded()}

        case(name, call, seconds)


def settle_for(case: Cases) -> None:
    """The data set is loaded once, not by every variant; a dry run has a small one."""
    data = packed_data() if case.dry else load("dsprites", progress=False)
    bench_train.load = lambda name: data
    if case.dry:
        bench_train.STRIDE = 1
        bench_train.RECIPE = replace(bench_train.RECIPE, batch_size=4)


def _profiled(case: Cases, call: Callable[[], object], steps: int) -> list[tuple[str, float, float]]:
    activities = [ProfilerActivity.CPU]
    if case.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronise(case.device)
    with profile(activities=activities) as profiler:
        call()
        synchronise(case.device)
    return kernels_of(profiler, case.device, steps)


def _launches(case: Cases, name: str) -> float:
    variant = bench_train.VARIANTS[name]
    step = variant.make()
    step()
    found = _profiled(case, step, variant.steps)
    return round(sum(calls for *_, calls in found), 2)


def _kernels(case: Cases, precision: str) -> dict[str, Any]:
    settle_arithmetic(precision)
    recipe = replace(bench_train.RECIPE, precision=precision)
    trainer = training(recipe, bench_train.load("dsprites"), case.device, log_every=100)
    steps = 1 if case.dry else _STEPS
    trainer.advance(2 * steps)
    found = _profiled(case, lambda: trainer.advance(steps), steps)
    return {
        "us": round(sum(us for _, us, _ in found), 1),
        "launches": round(sum(calls for *_, calls in found), 2),
        "kernels": [[name[:160], round(us, 2), round(calls, 2)] for name, us, calls in found[:60]],
    }
