"""Write the tables of the README from benchmarks/results: ``python benchmarks/report.py [--check]``.

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` and is made from ``results/NAME.json``; the first
word of NAME says of what kind it is. The tables ``gpu`` are made from the lines of every ``results/gpu-*`` folder.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from gpu_stages import results as gpu_results
from gpu_stages.markdown import gpu_tables

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results"
_NO_GPU = "Nothing has been measured on a GPU yet."
_GIVEN_MORE = {"pyvae, named noise", "pyvae, bits", "pyvae, grid"}
_SLOT = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def train_table(result: dict[str, Any]) -> str:
    """Steps per second of each variant, and the ratio to the first."""
    rates = result["steps_per_second"]
    base = next(iter(rates.values()))
    rows = [f"| {name} | {_rate(rate)} | {rate / base:.2f}x |" for name, rate in rates.items()]
    return "\n".join([f"| {result['setting']} | steps/s | |", "|---|---:|---:|", *rows])


def ops_table(result: dict[str, Any]) -> str:
    """Microseconds of each op, called by pyvae as it stands, beside the best of eager and of torch.compile.

    In graphs where all can be captured. Bold is the fastest, whoever it is. What is given more than the others (packed
    bits, a key that is drawn already) is in the file alone.
    """
    cases: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in result["cases"]:
        cases.setdefault((row["op"], row["what"], row["size"]), []).append(row)
    head = [
        "op",
        "size",
        "eager, us",
        "torch.compile, us",
        "pyvae, us",
        "to eager",
        "to compile",
        "of a copy",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for (op, what, size), rows in cases.items():
        timed = [row for row in rows if "us" in row]
        captured = {row["provider"] for row in timed if row["graph"]}
        fair = captured == {row["provider"] for row in timed}
        usable = [row for row in timed if row["graph"] == fair]
        best = {kind: _fastest(usable, kind) for kind in ("other", "compile", "pyvae")}
        times = {kind: row["us"][1] for kind, row in best.items() if row}
        if "pyvae" not in times:
            continue
        least = min(times.values())
        cells = [f"`{op}`, {what}", size]
        for kind in ("other", "compile", "pyvae"):
            text = _number(times[kind]) if kind in times else "-"
            cells.append(f"**{text}**" if times.get(kind) == least and len(times) > 1 else text)
        cells += [f"{times[k] / times['pyvae']:.2f}x" if k in times else "-" for k in ("other", "compile")]
        cells.append(f"{best['pyvae']['of_copy']:.2f}")  # type: ignore[index]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fastest(rows: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    mine = [row for row in rows if kind_of(row["provider"]) == kind and row["provider"] not in _GIVEN_MORE]
    return min(mine, key=lambda row: row["us"][1], default=None)


def kind_of(provider: str) -> str:
    """Whether it is pyvae, torch.compile or what the popular code does."""
    first = provider.split(",")[0]
    return first if first in ("pyvae", "compile") else "other"


def _rate(x: float) -> str:
    return f"{x:.1f}" if x >= 1 else f"{x:.2g}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def metrics_table(result: dict[str, Any]) -> str:
    """Seconds of each way of computing a metric, and whether the number is extrapolated."""
    lines = ["| metric | way | seconds | |", "|---|---|---:|---:|"]
    for rows in result["metrics"].values():
        ours = next(row["seconds"][1] for row in rows if row["way"].startswith("pyvae"))
        for row in rows:
            about = "about " if row["extrapolated"] else ""
            seconds = row["seconds"][1]
            lines.append(
                f"| {row['metric']} | {row['way']} | {about}{seconds:,.3g} | {seconds / ours:.3g}x |"
            )
    return "\n".join(lines)


def peers_table(result: dict[str, Any]) -> str:
    """Steps per second of each objective in each library."""
    names = list(dict.fromkeys(row["library"] for row in result["rates"]))
    lines = [f"| {result['setting']}, steps/s | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for objective in dict.fromkeys(row["objective"] for row in result["rates"]):
        rates = {
            row["library"]: row["steps_per_second"][1]
            for row in result["rates"]
            if row["objective"] == objective
        }
        cells = [_rate(rates[name]) if name in rates else "-" for name in names]
        lines.append(f"| {objective} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n{name}: {reason}." for name, reason in result["skipped"].items())])


TABLES = {"train": train_table, "ops": ops_table, "metrics": metrics_table, "peers": peers_table}


def _provenance(machine: dict[str, Any]) -> str:
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    device = machine["gpu"] or f"{machine['cpu']}, {threads}"
    return f"{device}; torch {machine['torch']}; commit {machine['commit']}, {machine['date']}; medians."


def render(readme: str, results: Path = RESULTS) -> str:
    """The README with every table made anew."""

    def fill(slot: re.Match[str]) -> str:
        if slot[2] == "gpu":
            tables = gpu_tables(gpu_results.known(results), ops_table)
            return f"{slot[1]}{tables or _NO_GPU}\n{slot[3]}"
        path = results / f"{slot[2]}.json"
        if not path.is_file():
            return f"{slot[1]}Not measured yet.\n{slot[3]}"
        result = json.loads(path.read_text())
        table = TABLES[slot[2].split("-")[0]](result)
        return f"{slot[1]}{table}\n\n{_provenance(result['machine'])}\n{slot[3]}"

    return _SLOT.sub(fill, readme)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    check = parser.parse_args().check
    before = README.read_text()
    after = render(before)
    if check and before != after:
        sys.exit("README.md is not what benchmarks/results says: run python benchmarks/report.py")
    README.write_text(after)


if __name__ == "__main__":
    main()
