"""Did anything become slower? ``python benchmarks/compare.py OLD.json NEW.json``: ratios with their noise.

Both are files of the same benchmark. A ratio below 1 is a gain. The band is what the quartiles of both files allow
(of fewer than eight rounds, the least and the greatest): from the new lower over the old upper one to the new upper
over the old lower one. Slower by more than the band, and by 5% at least, is a regression: it is marked, and the exit
status is 1. What was measured once has no band, and is not judged.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rate_rows import rows_of, words

LEAST = 1.05
Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Change:
    """Times new over old."""

    name: str
    ratio: float
    low: float
    high: float
    judged: bool = True

    @property
    def verdict(self) -> str:
        if not self.judged:
            return "measured once"
        if self.low > 1 and self.ratio > LEAST:
            return "SLOWER"
        return "faster" if self.high < 1 and self.ratio < 1 / LEAST else ""


def times(result: dict[str, Any]) -> dict[str, Quartiles]:
    """Lower quartile, median and upper quartile of the time of everything in a result file, by name.

    Raises:
        ValueError: a file of no benchmark that is known here.
    """
    if "cases" in result:
        return {
            f"{row['op']}, {row['what']}, {row['size']}, {row['provider']}"
            f"{', graph' if row['graph'] else ''}": _three(row["us"])
            for row in result["cases"]
            if "us" in row
        }
    if "metrics" in result:
        return {
            f"{row['metric']}, {row['way']}": _three(row["seconds"])
            for rows in result["metrics"].values()
            for row in rows
        }
    if "rates" in result or "steps_per_second" in result:
        return {
            ", ".join(
                [
                    *(row[key] for key in ("objective", "library", "variant") if key in row),
                    words(row["threads"]),
                ]
            ): _inverse(row["steps_per_second"])
            for row in rows_of(result)
        }
    raise ValueError("holds no results of a benchmark of this folder")


def _three(values: list[float]) -> Quartiles:
    low, median, high = values
    return low, median, high


def _inverse(rates: Any) -> Quartiles:
    low, median, high = rates
    return 1 / high, 1 / median, 1 / low


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[Change], list[str]]:
    """Changes of what both files hold, and names that stand in one alone."""
    before, after = times(old), times(new)
    changes = []
    for name in before.keys() & after.keys():
        (low, median, high), (new_low, new_median, new_high) = before[name], after[name]
        judged = low < high and new_low < new_high
        changes.append(Change(name, new_median / median, new_low / high, new_high / low, judged))
    order = {name: place for place, name in enumerate(after)}
    return sorted(changes, key=lambda c: order[c.name]), sorted(before.keys() ^ after.keys())


def read(path: Path) -> dict[str, Any]:
    """A result file; ends the program with one line if it is none."""
    try:
        result = json.loads(path.read_text())
        times(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is no result file: {error}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    old, new = read(options.old), read(options.new)
    for what in ("cpu", "gpu", "threads", "torch"):
        if old["machine"][what] != new["machine"][what]:
            print(f"not the same {what}: {old['machine'][what]}, then {new['machine'][what]}")
    changes, alone = compare(old, new)
    for c in changes:
        print(f"{c.name:72s} {c.ratio:5.2f} [{c.low:.2f}, {c.high:.2f}] {c.verdict}".rstrip())
    if alone:
        print(f"in one file alone: {'; '.join(alone)}")
    slower = [c for c in changes if c.verdict == "SLOWER"]
    if slower:
        sys.exit(f"{len(slower)} of {len(changes)} became slower by more than noise")


if __name__ == "__main__":
    main()
