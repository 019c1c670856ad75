"""What the results say, in some twenty-five lines: what failed, the rates, and what to do next."""

from collections.abc import Iterator
from typing import Any

from gpu_stages import results
from gpu_stages.plan import STAGES

STEPS = 1_500_000
"""Of the field's full-length runs."""
_LINES = 26
_FAILED = 5
_SHOWN = 3
Newest = dict[tuple[str, str], results.Line]


def minutes(rate: float) -> float:
    """Of a full-length run at so many steps per second."""
    return STEPS / rate / 60


def of_card(lines: list[results.Line], gpu: str) -> Newest:
    """The newest line of every case of a card."""
    return results.newest(line for line in lines if line.get("gpu") == gpu)


def summary(lines: list[results.Line], gpu: str, torch: str) -> str:
    """The summary of a card's results, of at most so many lines.

    Args:
        lines: of every call.
        gpu: the card.
        torch: its version, of which results must be.
    """
    found = of_card(lines, gpu)
    cases = {
        key: line for key, line in found.items() if key[1] != "all" and (key[1] != "start" or "ok" in line)
    }
    code = {stage.name: results.code_of(stage) for stage in STAGES}
    stale = sum(line.get("code") != code.get(stage) for (stage, _), line in cases.items())
    failed = [(key, line) for key, line in cases.items() if line.get("ok") is False]
    cut = sum("cut" in line for line in cases.values())
    last = max(found.values(), key=lambda line: line["time"], default={})
    text = [
        f"{gpu}; torch {torch}; commit {last.get('commit') or 'unknown'}",
        f"{len(cases) - len(failed) - cut} cases done, {len(failed)} failed, {cut} cut off; {stale} of older code",
    ]
    text += [f"FAILED {stage}: {case}: {why(line)[:150]}" for (stage, case), line in failed[:_FAILED]]
    if len(failed) > _FAILED:
        text.append(f"FAILED: {len(failed) - _FAILED} more, in {results.NAME}")
    text += [
        *_fused(found),
        *_rates(found),
        *_kernels(found),
        *_constants(found),
        *_seconds(found),
        *_tables(found),
    ]
    left = [
        stage.name
        for stage in STAGES
        if not stage.always and "all" not in results.done(lines, stage, gpu=gpu, torch=torch)
    ]
    advice = [f"next: {' '.join(each.split())}" for each in _next(found, failed, left)]
    return "\n".join([*text, *advice][:_LINES]) + "\n"


def why(line: results.Line) -> str:
    """What a failed case says of itself, in one line: of a test what was not so, else its error, else its values."""
    error = line.get("error")
    if not error:
        known = {"stage", "case", "code", "gpu", "torch", "commit", "time", "seconds", "ok"}
        return "; ".join(f"{name} {value}" for name, value in line.items() if name not in known)
    said = str(error).splitlines()
    return " ".join(next((x[1:] for x in said if x.startswith("E ")), " ".join(said)).split())


def rate_of(found: Newest, stage: str, case: str) -> float | None:
    """Steps per second, the median, of a case that ran."""
    line = found.get((stage, case), {})
    return line["steps_per_second"][1] if "steps_per_second" in line else None


def _fused(found: Newest) -> Iterator[str]:
    for stage, what in (("fused_rates", "steps/s"), ("fused_members", "steps/s of all members")):
        shown = [
            f"{case.removeprefix('fused, ')} {rate:,.0f}{_beside(found[stage, case])}"
            for (name, case) in found
            if name == stage and (rate := rate_of(found, stage, case))
        ]
        if shown:
            yield f"fused, {what} (predicted): {'; '.join(shown)}"
    for (stage, case), line in found.items():
        if stage == "fused_kernels" and "kernels" in line:
            slow = [
                f"{label} {own:.1f} for {said:.1f}"
                for label, _, own, said, marked in line["kernels"]
                if marked
            ]
            text = f"; slower than predicted: {', '.join(slow[:_SHOWN])}" if slow else ""
            yield f"fused, {case}: {line['us']:.0f} us in {len(line['kernels'])} kernels{text}"
    line = found.get(("fused_training", "fp16, its largest gradients"), {})
    bits = [x for x in line.get("bits_below_the_largest_number", {}).values() if x is not None]
    if bits:
        yield f"fp16: the largest gradients may double {min(bits):.1f} times more"


def _beside(line: results.Line) -> str:
    """The prediction of a rate, in brackets."""
    said = line.get("predicted")
    return f" ({' to '.join(f'{x:,}' for x in (said[::2] if len(said) == 3 else said))})" if said else ""


def _rates(found: Newest) -> Iterator[str]:
    for stages in (("popular", "popular_compiled"), ("rates", "compiled"), ("objectives",)):
        rates = [
            f"{case.removeprefix('pyvae ')} {rate:,.0f} ({minutes(rate):.1f})"
            for (stage, case) in found
            if stage in stages and (rate := rate_of(found, stage, case))
        ]
        if rates:
            yield f"steps/s (minutes for 1.5M): {', '.join(rates)}"


def _kernels(found: Newest) -> Iterator[str]:
    line = found.get(("kernels", "tf32"), {})
    if "kernels" in line:
        longest = ", ".join(f"{name[:40]} {us:.0f}" for name, us, _ in line["kernels"][:_SHOWN])
        yield f"a tf32 step: {line['us']:.0f} us in {line['launches']:.0f} kernels; us: {longest}"


def _constants(found: Newest) -> Iterator[str]:
    wanted = {
        "kernel in a graph of 800": "a kernel in a graph",
        "Triton kernel in a graph, one after another": "of Triton",
        "Triton kernel in a graph, early (PDL)": "early",
        "barrier of all blocks": "a barrier",
    }
    shown = [
        f"{name} {found['launches', c]['us']:.2f}" for c, name in wanted.items() if _has(found, "launches", c)
    ]
    if shown:
        yield f"us: {', '.join(shown)}"


def _has(found: Newest, stage: str, case: str) -> bool:
    return "us" in found.get((stage, case), {})


def _seconds(found: Newest) -> Iterator[str]:
    line = found.get(("both_migs", "from weights"), {})
    if "s" in line:
        yield f"both MIGs from weights: {line['s'][len(line['s']) // 2]:.2f} s"


def _tables(found: Newest) -> Iterator[str]:
    shown = []
    for (stage, case), line in found.items():
        if stage == "published_tables" and "steps" in line:
            shown.append(f"{case} {line['steps']:,} of {line['of']:,} steps")
        for number in line["results"]["numbers"] if stage == "published_tables" and "results" in line else ():
            ours, published = (number[whose]["value"] for whose in ("ours", "published"))
            shown.append(f"{case}: {number['quantity']} {ours:.4g}, published {published:g}")
    if shown:
        yield "; ".join(shown)


def slower_ops(found: Newest) -> list[str]:
    """Ops of which another way is faster, in graphs where all ways are captured."""
    slower = []
    for (stage, case), line in found.items():
        if stage not in ("small_ops", "large_ops"):
            continue
        timed = [row for row in line.get("rows", ()) if "us" in row and row["graph"]]
        ours = [row["us"][1] for row in timed if row["provider"].startswith("pyvae")]
        others = [row["us"][1] for row in timed if not row["provider"].startswith("pyvae")]
        if ours and others and min(ours) > 1.05 * min(others):
            slower.append(f"{case} ({min(ours) / min(others):.2f}x)")
    return slower


def _next(found: Newest, failed: list[Any], left: list[str]) -> Iterator[str]:
    if failed:
        stages = list(dict.fromkeys(stage for (stage, _), _ in failed))
        yield f"mend what failed in {', '.join(stages)}, in this order"
    tf32, bf16, fp32, eager, compiled = (
        rate_of(found, stage, case)
        for stage, case in (
            ("rates", "pyvae --precision tf32"),
            ("rates", "pyvae --precision bf16, captured"),
            ("rates", "pyvae --precision fp32"),
            ("rates", "pyvae --no-capture"),
            ("compiled", "pyvae --precision tf32 --compile"),
        )
    )
    device = found.get(("kernels", "tf32"), {}).get("us")
    rule = found.get(("early_launches", "rule"), {}).get("rule")
    if rule:
        yield rule
    yield from _stages(found)
    if tf32 and device:
        gap = 1e6 / tf32 - device
        yield f"a step takes {1e6 / tf32:.0f} us, its kernels {device:.0f}: {gap:.0f} us lie between launches"
    if tf32 and bf16 and bf16 < tf32:
        yield f"bf16 is slower than tf32 ({bf16 / tf32:.2f}x): look for casts among its kernels"
    if tf32 and compiled and compiled > 1.05 * tf32:
        yield f"torch.compile's networks are {compiled / tf32:.2f}x as fast: see what it fuses"
    if fp32 and eager and eager > 0.95 * fp32:
        yield "capture pays nothing: see whether steps were captured at all"
    yield from _layouts(found)
    if slower := slower_ops(found):
        yield f"ops behind another way: {'; '.join(slower[:_SHOWN])}"
    if left:
        yield f"the next call begins with {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}"


def _stages(found: Newest) -> Iterator[str]:
    """Loops that would be faster with another number of stages, to the same result."""
    better = [
        f"{case}: {line['fastest']} instead of {line['planned']}"
        for (stage, case), line in found.items()
        if stage == "fused_num_stages" and "us" in line and line["fastest"] != line["planned"]
    ]
    if better:
        yield f"stages of loops: {'; '.join(better)}"


def _layouts(found: Newest) -> Iterator[str]:
    """Which layout of the convolutions is the faster, where every layer was timed in both."""
    for precision in ("tf32", "bf16"):
        sums: dict[str, list[float]] = {"NHWC": [], "NCHW": []}
        for (stage, case), line in found.items():
            if stage == "convolutions" and case.endswith(precision) and "us" in line:
                sums["NHWC" if "NHWC" in case else "NCHW"].append(sum(line["us"].values()))
        if sums["NCHW"] and len(sums["NCHW"]) == len(sums["NHWC"]):
            nhwc, nchw = sum(sums["NHWC"]), sum(sums["NCHW"])
            yield f"convolutions in {precision}: {nhwc:.0f} us in NHWC (taken), {nchw:.0f} in NCHW"
