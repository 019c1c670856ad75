"""What a step spends its time on: a trace for viewers, and a table of kernels per step."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pyvae.data.dataset import Dataset
from pyvae.engine.arithmetic import check_precision, settle_arithmetic
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training

_WARM_UP = 5


def profile_steps(
    recipe: Recipe, dataset: Dataset, device: torch.device, out: Path, *, steps: int = 20
) -> str:
    """Profile uncaptured steps of a fresh trainer, so no run is touched.

    Args:
        recipe: what to train.
        dataset: that of the recipe.
        device: where.
        out: directory for ``trace.json`` (Chrome's and Perfetto's format) and ``kernels.txt``. Nsight Systems, run
            around the same, shows the NVTX ranges of a step's parts as well.
        steps: how many to profile, after a warm-up.

    Returns:
        the table that ``kernels.txt`` holds.

    Raises:
        RecipeError: the recipe cannot be trained on this data, or not on this device.
    """
    settle_arithmetic(recipe.precision)
    trainer = training(recipe, dataset, device, capture=False)
    check_precision(trainer.recipe, device)
    trainer.advance(_WARM_UP)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with profile(activities=activities) as profiler:
        trainer.advance(steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    out.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(out / "trace.json"))
    table = _table(profiler, device, steps)
    (out / "kernels.txt").write_text(table)
    return table


def ran_on_gpu(event: Any) -> bool:
    """Whether an event of a profile is a kernel, copy or fill.

    The ranges that optimisers and torch.compile mark stand among them, and would count theirs again.
    """
    return event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)


def kernels_of(profiler: profile, device: torch.device, steps: int) -> list[tuple[str, float, float]]:
    """(name, microseconds a step, calls a step) of each kernel, or on a CPU of each operator without those it calls;
    the longest first."""
    kernels = device.type == "cuda"
    time: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events() or ():
        if ran_on_gpu(event) if kernels else event.device_type.name != "CUDA":
            time[event.name] += event.device_time_total if kernels else event.self_cpu_time_total
            calls[event.name] += 1
    return [(name, us / steps, calls[name] / steps) for name, us in time.most_common()]


def _table(profiler: profile, device: torch.device, steps: int) -> str:
    """:func:`kernels_of` as text."""
    found = kernels_of(profiler, device, steps)
    what = "kernel" if device.type == "cuda" else "operator"
    lines = [f"{'us/step':>10} {'calls/step':>10}  {what}"]
    lines += [f"{us:10.1f} {calls:10.2f}  {name}" for name, us, calls in found]
    total = f"{sum(us for _, us, _ in found):10.1f} {sum(calls for *_, calls in found):10.2f}  all"
    return "\n".join([*lines, total]) + "\n"
