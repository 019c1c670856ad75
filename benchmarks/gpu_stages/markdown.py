"""The tables of GPUs in docs/benchmarks.md, from lines of results: what is right, what failed, and how fast it is."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpu_stages import results
from gpu_stages.results import Line
from gpu_stages.summary import Newest, minutes, of_card, why

CHECKS = {
    "fused_agree": "the fused engine against float64, alone and among others, early and in graphs",
    "ensembles": "runs together and alone, bit for bit, a NaN among them, and rates through run directories",
    "fused_training": "its 20,000 steps beside those of torch's engine",
    "fused_sanitized": "its step under compute-sanitizer",
    "ops_agree": "every op against float64, three dtypes, forward and gradient",
    "steps_agree": "the engine's kernels, and steps of every objective against a CPU's",
    "integers": "draws, orders and counts, to the last bit those of a CPU",
    "captured": "captured steps against uncaptured ones, bit for bit",
    "captured_rest": "the same in every precision, streamed and compiled",
    "chosen_tests": "the tests that say most",
    "all_tests": "every test",
}
_RATES = ("popular", "popular_compiled", "rates", "compiled", "objectives")
_FUSED = ("fused_rates", "fused_members")
_CONSTANTS = ("early_launches", "launches", "optimizers")
_HEADLINES = {
    ("rates", "pyvae --no-capture"): "torch's layers, fp32, `--no-capture`",
    ("rates", "pyvae --precision fp32"): "torch's layers, fp32, steps as CUDA graphs (default)",
    ("rates", "pyvae --precision tf32"): "torch's layers, tf32, the same way",
    ("fused_rates", "fused, fp16, plain graph"): "kernels of its own, `--precision fp16`",
    ("fused_members", "16 members, fp16, plain graph"): "the same, steps of 16 models side by side",
}
OpsTable = Callable[[dict[str, Any]], str]


def gpu_tables(lines: list[Line], ops_table: OpsTable) -> str:
    """A section for each card, the newest results of each; "" where there are none.

    Args:
        lines: of every call.
        ops_table: makes the table of ops from their rows.
    """
    cards = dict.fromkeys(line.get("gpu") for line in lines)
    sections = []
    for card in cards:
        if card and card != results.DRY:
            found = {k: line for k, line in of_card(lines, card).items() if k[1] not in ("start", "all")}
            if not found:
                continue
            sections.append("\n\n".join([f"### {card}", *_parts(found, ops_table), _provenance(card, found)]))
    return "\n\n".join(sections)


def gpu_headlines(lines: list[Line]) -> Iterator[tuple[str, str, float, str]]:
    """The few rates that say most: of each card what ran, its steps a second, and where that was measured."""
    for card in dict.fromkeys(line.get("gpu") for line in lines):
        if not card or card == results.DRY:
            continue
        found = of_card(lines, card)
        for key, what in _HEADLINES.items():
            if "steps_per_second" in (line := found.get(key, {})):
                yield card, what, line["steps_per_second"][1], _provenance(card, found)


def _parts(found: Newest, ops_table: OpsTable) -> Iterator[str]:
    yield from _table(_checks(found), "| what | right | wrong | cut off |", "|---|---:|---:|---:|")
    yield from _table(_failures(found), "| failed | why |", "|---|---|")
    yield from _table(
        _training(found),
        "| burgess, batch 64 | steps/s | 1.5M steps, minutes | kernels a step |",
        "|---|---:|---:|---:|",
    )
    yield from _table(
        _fused(found),
        "| fused engine, burgess, batch 64 | steps/s of all members | predicted | 1.5M steps of each, minutes |",
        "|---|---:|---:|---:|",
    )
    yield from _table(
        _ensembles(found),
        "| runs side by side, fp16, with traces and checkpoints | model-steps/s | MiB |",
        "|---|---:|---:|",
    )
    rows = [
        r
        for (stage, _), line in found.items()
        if stage in ("small_ops", "large_ops")
        for r in line.get("rows", ())
    ]
    if rows:
        yield ops_table({"cases": rows})
    yield from _table(_metrics(found), "| both MIGs of all of dSprites | seconds |", "|---|---:|")
    yield from _table(_constants(found), "| constant | us |", "|---|---:|")
    yield from _table(_published(found), "| published table | ours | published |", "|---|---:|---:|")


def _table(rows: Iterable[str], *head: str) -> Iterator[str]:
    if body := list(rows):
        yield "\n".join([*head, *body])


def _checks(found: Newest) -> Iterator[str]:
    for stage, what in CHECKS.items():
        lines = [line for (name, _), line in found.items() if name == stage]
        wrong = sum(line.get("ok") is False for line in lines)
        cut = sum("cut" in line for line in lines)
        if lines:
            yield f"| {what} | {len(lines) - wrong - cut} | {wrong} | {cut} |"


def _failures(found: Newest) -> Iterator[str]:
    for (stage, case), line in found.items():
        if line.get("ok") is False:
            yield f"| {stage}: {case} | {_cell(why(line))[:160]} |"


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _training(found: Newest) -> Iterator[str]:
    for wanted in _RATES:
        for (stage, case), line in found.items():
            if stage != wanted or "cut" in line:
                continue
            if "steps_per_second" in line:
                rate = line["steps_per_second"][1]
                counted = found.get(("counted", case), {}).get("kernels")
                launches = "-" if counted is None else f"{counted:.0f}"
                yield f"| {case} | {rate:,.0f} | {minutes(rate):.1f} | {launches} |"
            else:
                yield f"| {case} | failed | - | - |"


def _fused(found: Newest) -> Iterator[str]:
    for wanted in _FUSED:
        for (stage, case), line in found.items():
            if stage == wanted and "steps_per_second" in line:
                rate, said = line["steps_per_second"][1], line.get("predicted")
                low_high = (
                    f"{said[0]:,} to {said[-1]:,}" if said and len(said) > 1 else said and f"{said[0]:,}"
                )
                alone = minutes(rate / line.get("members", 1))
                yield f"| {case} | {rate:,.0f} | {low_high or '-'} | {alone:.1f} |"


def _ensembles(found: Newest) -> Iterator[str]:
    for (stage, _), line in found.items():
        if stage == "ensembles" and "model_steps_per_second" in line:
            yield f"| {line['members']} | {line['model_steps_per_second']:,.0f} | {line['mib']:,.0f} |"


def _metrics(found: Newest) -> Iterator[str]:
    for (stage, case), line in found.items():
        if stage == "both_migs" and "s" in line:
            yield f"| {case} | {line['s'][len(line['s']) // 2]:.3g} |"


def _constants(found: Newest) -> Iterator[str]:
    for (stage, case), line in found.items():
        if stage in _CONSTANTS and "us" in line:
            yield f"| {case} | {line['us']:.3g} |"


def _published(found: Newest) -> Iterator[str]:
    seeds: dict[tuple[str, str, str], list[float]] = {}
    published: dict[tuple[str, str, str], str] = {}
    for (stage, _), line in found.items():
        if stage != "published_tables" or "results" not in line:
            continue
        for number in line["results"]["numbers"]:
            key = (line["study"], line["arm"], number["quantity"])
            seeds.setdefault(key, []).append(number["ours"]["value"])
            high = number["published"].get("high")
            published[key] = f"{number['published']['value']:g}" + ("" if high is None else f" to {high:g}")
    for key, values in seeds.items():
        mean = sum(values) / len(values)
        spread = (
            f", {min(values):.4g} to {max(values):.4g} of {len(values)} seeds"
            if len(values) > 1
            else ", one seed"
        )
        yield f"| {', '.join(key)} | {mean:.4g}{spread} | {published[key]} |"


def _provenance(card: str, found: Newest) -> str:
    machine = found.get(("build", "machine"), {})
    last = max(found.values(), key=lambda line: line["time"])
    commits = dict.fromkeys(line.get("commit") or "unknown" for line in found.values())
    driver = re.search(r"\b\d{3}\.\d+(\.\d+)?", machine.get("driver") or "")
    triton = (machine.get("packages") or {}).get("triton")
    parts = [
        card,
        f"driver {driver[0]}" if driver else "",
        f"CUDA {machine['cuda']}" if machine.get("cuda") else "",
        f"torch {last.get('torch')}",
        f"triton {triton}" if triton else "",
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}, {last['time'][:10]}",
        "medians.",
    ]
    return "; ".join(filter(None, parts))
