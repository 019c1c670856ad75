"""What the fused engine was predicted to do before any GPU had run it, to stand beside what is measured.

Rates are those of a model that reads machine code, for an H200, to be believed to some 40 %: low, expected and high
where it gives all three. Those of kernels are of benchmarks/predicted_fused.json, where it is there.
"""

import json
from typing import Any, NamedTuple

from checkout import ROOT
from gpu_stages.fused_run import Way

FILE = ROOT / "benchmarks/predicted_fused.json"
LAUNCH_US = {"one after another": 1.3, "early (PDL)": 0.7}
"""Of a kernel that does nothing, in a graph."""
LEAST_SAVED_US = 0.3
"""That early launches must save of each kernel, to pay for what hangs on them."""
SLOW = 1.6
"""What a kernel takes of its prediction before it is the next to be looked at."""
_MEMORY_TB_S = 3.35
"""Of an H100, the least of those predicted for; the model answers from an L2 that has no limit."""
_L2_MB = 50
_MANY = 16
"""Members that kernels are timed with."""
_OF_ONE = {
    Way("fp16"): (7_000, 10_000, 13_000),
    Way("bf16"): (7_000, 10_000, 13_000),
    Way("tf32"): (7_000,),
    Way("fp16", pdl=True, side_branch=True): (9_000, 13_000, 17_000),
    Way("bf16", pdl=True, side_branch=True): (9_000, 13_000, 17_000),
    Way("tf32", pdl=True, side_branch=True): (8_000,),
}
_OF_MANY = {
    ("fp16", 16): (14_000, 25_000, 35_000),
    ("fp16", 64): (15_000, 26_000, 36_000),
    ("tf32", 16): (13_000, 15_000),
}


def rate(way: Way, members: int = 1) -> tuple[int, ...] | None:
    """Steps of all members a second."""
    return _OF_ONE.get(way) if members == 1 else _OF_MANY.get((way.operands, members))


class Predicted(NamedTuple):
    """Microseconds of a kernel: of one member, and of each where many fill the device."""

    one: float | None
    many: float | None


def kernels(operands: str) -> dict[str, Predicted]:
    """By the label of the launch; of none where nothing was predicted."""
    try:
        rows = json.loads(FILE.read_text())["operands"][operands]["kernels"]
        return {row["label"]: Predicted(_number(row["us_alone"]), _of_many(row)) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _of_many(row: dict[str, Any]) -> float | None:
    """At least the time of what does not stay in the L2."""
    us, megabytes = _number(row["us_many"]), _number(row.get("megabytes")) or 0.0
    beyond = megabytes / _MEMORY_TB_S if _MANY * megabytes > _L2_MB else 0.0
    return us and round(max(us, beyond), 3)


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, int | float) else None
