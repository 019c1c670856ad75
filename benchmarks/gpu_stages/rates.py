"""Steps per second of whole training steps, and what one of them spends its time on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import bench_train
from gpu_stages.cases import Cases
from gpu_stages.tiny_data import packed_data
from pyvae.data import load
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.profile import kernels_of
from pyvae.engine.training import training

_SECONDS = 0.5
_STEPS = 32
OBJECTIVES = (
    *("vae", "capacity-vae", "control-vae", "annealed-vae", "factor-vae", "tc-vae", "dip-vae"),
    *("iwae", "miwae", "piwae", "ciwae", "infogan", "infowgan-gp"),
)


def rates(case: Cases) -> None:
    """pyvae's beta-VAE at every precision, captured, and uncaptured."""
    names = ["pyvae --precision tf32", "pyvae --precision fp32", "pyvae --precision bf16, captured"]
    _measure(case, [*names, "pyvae --no-capture"], ["pyvae"])


def objectives(case: Cases) -> None:
    """Every other objective."""
    _measure(case, [f"pyvae {name} --precision tf32" for name in OBJECTIVES], ["pyvae dip-vae"])


def popular(case: Cases) -> None:
    """The same step as popular repositories write it, in torch's own arithmetic."""
    names = ["popular code", "+ fused Adam", "+ channels_last", "popular code, our two losses"]
    _measure(case, [*names, "popular code, torch.compile", "+ torch.compile"], ["popular code"])


def compiled(case: Cases) -> None:
    """pyvae's with the networks through torch.compile."""
    names = [f"pyvae --precision {precision} --compile" for precision in ("tf32", "bf16", "fp32")]
    _measure(case, names, ["popular code, torch.compile"])


def kernels(case: Cases) -> None:
    """Kernels of a captured step by time."""
    for precision in ("tf32", "bf16", "fp32"):
        case(precision, lambda p=precision: _kernels(case, p))


def _measure(case: Cases, names: Sequence[str], dry: Sequence[str]) -> None:
    _settle_for(case)
    for name in dry if case.dry else names:
        case(name, lambda name=name: _rate(name, 0.01 if case.dry else _SECONDS), 60)


def _rate(name: str, seconds: float) -> dict[str, Any]:
    found = bench_train.measure(name, seconds)
    return {
        "steps_per_second": found.rate.rounded(),
        **({} if found.kernels is None else {"kernels": round(found.kernels, 2)}),
    }


def _settle_for(case: Cases) -> None:
    """The data set is loaded once, not by every variant; a dry run has a small one."""
    data = packed_data() if case.dry else load("dsprites", progress=False)
    bench_train.load = lambda name: data
    if case.dry:
        bench_train.STRIDE = 1
        bench_train.RECIPE = replace(bench_train.RECIPE, batch_size=4)


def _kernels(case: Cases, precision: str) -> dict[str, Any]:
    _settle_for(case)
    settle_arithmetic(precision)
    recipe = replace(bench_train.RECIPE, precision=precision)
    trainer = training(recipe, bench_train.load("dsprites"), case.device, log_every=100)
    steps = 1 if case.dry else _STEPS
    trainer.advance(steps + _STEPS * (not case.dry))
    activities = [ProfilerActivity.CPU]
    if case.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        trainer.advance(steps)
        if case.device.type == "cuda":
            torch.cuda.synchronize()
    found = kernels_of(profiler, case.device, steps)
    return {
        "us": round(sum(us for _, us, _ in found), 1),
        "launches": round(sum(calls for *_, calls in found), 2),
        "kernels": [[name[:160], round(us, 2), round(calls, 2)] for name, us, calls in found[:60]],
    }
