"""Write the tables of the README from benchmarks/results: ``python benchmarks/report.py [--check]``.

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` and is made from ``results/NAME.json``.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
_SLOT = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def train_table(result: dict[str, Any]) -> str:
    """Steps per second of each variant, and the ratio to the first."""
    rates = result["steps_per_second"]
    base = next(iter(rates.values()))
    rows = [f"| {name} | {rate:.1f} | {rate / base:.2f}x |" for name, rate in rates.items()]
    header = [f"| {result['setting']} | steps/s | |", "|---|---:|---:|"]
    return "\n".join([*header, *rows, "", _provenance(result["machine"])])


def _provenance(machine: dict[str, Any]) -> str:
    device = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{device}; torch {machine['torch']}; commit {machine['commit']}, {machine['date']}; medians."


def render(readme: str) -> str:
    """The README with every table made anew."""

    def fill(slot: re.Match[str]) -> str:
        result = json.loads((ROOT / "benchmarks/results" / f"{slot[2]}.json").read_text())
        return f"{slot[1]}{train_table(result)}\n{slot[3]}"

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
