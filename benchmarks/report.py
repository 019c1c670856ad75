"""Write the tables of README.md and docs/benchmarks.md from benchmarks/results: ``python benchmarks/report.py
[--check]``.

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` and is made from ``results/NAME.json``; the first
word of NAME says of what kind it is. The tables ``gpu`` are made from the lines of every ``results/gpu-*`` folder, and
``speed``, the README's, from a few of all of these.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_stages import results as gpu_results
from gpu_stages.markdown import gpu_headlines, gpu_tables
from rate_rows import rows_of, words

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/benchmarks.md")
RESULTS = ROOT / "benchmarks/results"
_NO_GPU = "Nothing has been measured on a GPU yet."
_GIVEN_MORE = {"pyvae, named noise", "pyvae, bits", "pyvae, grid"}
_HURRY = ("pythae", "disent", "disentangling-vae", "pyvae")
"""What the table of speed names, each as it comes."""
_SLOT = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def train_table(result: dict[str, Any]) -> str:
    """Steps per second of each variant, the ratio to the first, and CPU time, by number of threads."""
    rows = rows_of(result)
    names = list(dict.fromkeys(row["variant"] for row in rows))
    head, cells = [result["setting"]], {name: [name] for name in names}
    for threads in dict.fromkeys(row["threads"] for row in rows):
        found = {row["variant"]: row for row in rows if row["threads"] == threads}
        base = next(iter(found.values()))["steps_per_second"][1]
        timed = any("cpu_ms" in row for row in found.values())
        head += [f"steps/s, {words(threads)}", "", *(["CPU ms a step"] if timed else [])]
        for name in names:
            row = found.get(name)
            rate = row["steps_per_second"][1] if row else None
            cells[name] += [_rate(rate), f"{rate / base:.2f}x"] if rate else ["-", "-"]
            if timed:
                cells[name].append(_number(row["cpu_ms"][1]) if row else "-")
    return "\n".join([_table(head, list(cells.values())), *_reasons(result.get("left_out", {}))])


def _table(head: list[str], rows: list[list[str]], named: int = 1) -> str:
    """The first ``named`` columns are words, the others numbers."""
    lines = [head, ["---"] * named + ["---:"] * (len(head) - named), *rows]
    return "\n".join(
        f"|{'|'.join(line)}|" if line is lines[1] else f"| {' | '.join(line)} |" for line in lines
    )


def _reasons(said: dict[str, str]) -> list[str]:
    return [f"\n{name}: {reason}." for name, reason in said.items()]


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
    """Steps per second of each objective in each library, pyvae's over its own, and CPU time, by number of threads."""
    rows = rows_of(result)
    keys = list(dict.fromkeys((row["objective"], row["library"]) for row in rows))
    head, cells = [result["setting"], ""], {key: list(key) for key in keys}
    for threads in dict.fromkeys(row["threads"] for row in rows):
        found = {(r["objective"], r["library"]): r for r in rows if r["threads"] == threads}
        timed = any("cpu_ms" in row for row in found.values())
        head += [f"steps/s, {words(threads)}", "pyvae to it", *(["CPU ms a step"] if timed else [])]
        for key in keys:
            row, own = found.get(key), found.get((key[0], "pyvae"))
            rate = row["steps_per_second"][1] if row else None
            cells[key].append(_rate(rate) if rate else "-")
            cells[key].append(f"{own['steps_per_second'][1] / rate:.2f}x" if own and rate else "-")
            if timed:
                cells[key].append(_number(row["cpu_ms"][1]) if row else "-")
    return "\n".join([_table(head, list(cells.values()), 2), *_reasons(result["skipped"])])


def convolutions_table(result: dict[str, Any]) -> str:
    """Layers in fp32, forward and whole backward, then networks in every precision; the rest is in the file alone."""
    layers: dict[tuple[str, str], dict[str, list[str]]] = {}
    networks: dict[tuple[str, str], dict[str, list[str]]] = {}
    for ours, torchs in _pairs(result["cases"]):
        part, precision = ours["what"].split(", ")
        milliseconds = [_milliseconds(row["us"][1]) for row in (torchs, ours)]
        cells = [*milliseconds, f"{torchs['us'][1] / ours['us'][1]:.2f}x"]
        if ours["kind"] == "network":
            networks.setdefault((ours["op"], f"{part}, {ours['size'].split()[0]} images"), {})[precision] = (
                cells
            )
        elif precision == "fp32":
            cells += [f"{ours['gflop_per_s']:.0f}", f"{100 * ours['of_peak']:.0f}%"]
            layers.setdefault((ours["op"], ours["size"]), {})[part] = cells
    precisions = [p for p in ("fp32", "bf16") if any(p in found for found in networks.values())]
    three = ["torch, ms", "pyvae, ms", ""]
    tables = []
    if layers:
        parts, five = ("forward", "backward"), [*three, "GFLOP/s", "of peak"]
        head = [
            "layer, fp32",
            "input, B x H x W x C",
            *(f"{part}: {title}" if title else "" for part in parts for title in five),
        ]
        tables.append(_table(head, _wide(layers, parts, len(five)), 2))
    if networks:
        head = ["network", "", *(f"{p}: {title}" if title else "" for p in precisions for title in three)]
        tables.append(_table(head, _wide(networks, precisions, len(three)), 2))
    peaks = [f"{p} {peak['gflop_per_s']:.0f} GFLOP/s ({peak['how']})" for p, peak in result["peak"].items()]
    said = f"Peak of one thread: {'; '.join(peaks)}."
    return "\n\n".join(
        [*tables, said + "".join(f" {reason.strip()}" for reason in _reasons(result["left_out"]))]
    )


def _pairs(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Timed rows of pyvae and of torch for the same."""
    timed = {(row["op"], row["what"], row["size"], row["provider"]): row for row in rows if "us" in row}
    for (*key, provider), row in timed.items():
        other = timed.get((*key, "torch"))
        if provider == "pyvae" and other:
            yield row, other


def _wide(
    rows: dict[tuple[str, str], dict[str, list[str]]], parts: Sequence[str], width: int
) -> list[list[str]]:
    """Names, then the cells of each part, side by side."""
    return [
        [*names, *(cell for part in parts for cell in found.get(part, ["-"] * width))]
        for names, found in rows.items()
    ]


def _milliseconds(us: float) -> str:
    return f"{us / 1e3:.2f}" if us < 1e4 else f"{us / 1e3:.1f}"


def speed_table(results: Path) -> str:
    """One objective, network and batch size, for a reader in a hurry: libraries on a CPU, then pyvae on each GPU."""
    lines = ["| beta-VAE, Burgess network, batches of 64 | steps a second |", "|---|---:|"]
    said = []
    path = results / "peers-cpu.json"
    if path.is_file():
        result = json.loads(path.read_text())
        rows = [row for row in rows_of(result) if row["objective"] == "beta-vae"]
        most = max(row["threads"] for row in rows)
        rates = {row["library"]: row["steps_per_second"][1] for row in rows if row["threads"] == most}
        for library in (name for name in _HURRY if name in rates):
            name = f"{library} {result['versions'].get(library, '')}".strip()
            lines.append(f"| CPU, {words(most)}: {name} | {_rate(rates[library])} |")
            if kept := rates.get(f"{library}, buffers kept"):
                lines.append(f"| the same, given pyvae's setting of the memory allocator | {_rate(kept)} |")
        said.append(_provenance({**result["machine"], "threads": most}))
    for card, what, rate, source in gpu_headlines(gpu_results.known(results)):
        lines.append(f"| {card}: pyvae, {what} | {rate:,.0f} |")
        if source not in said:
            said.append(source)
    return "\n\n".join(["\n".join(lines), " ".join(said)])


TABLES = {
    "train": train_table,
    "ops": ops_table,
    "metrics": metrics_table,
    "peers": peers_table,
    "convolutions": convolutions_table,
}


def _provenance(machine: dict[str, Any]) -> str:
    device = machine["gpu"] or f"{machine['cpu']}, {words(machine['threads'])}"
    return f"{device}; torch {machine['torch']}; commit {machine['commit']}, {machine['date']}; medians."


def render(page: str, results: Path = RESULTS) -> str:
    """A page with every table made anew."""

    def fill(slot: re.Match[str]) -> str:
        if slot[2] == "speed":
            return f"{slot[1]}{speed_table(results)}\n{slot[3]}"
        if slot[2] == "gpu":
            tables = gpu_tables(gpu_results.known(results), ops_table)
            return f"{slot[1]}{tables or _NO_GPU}\n{slot[3]}"
        path = results / f"{slot[2]}.json"
        if not path.is_file():
            return f"{slot[1]}Not measured yet.\n{slot[3]}"
        result = json.loads(path.read_text())
        table = TABLES[slot[2].split("-")[0]](result)
        return f"{slot[1]}{table}\n\n{_provenance(result['machine'])}\n{slot[3]}"

    return _SLOT.sub(fill, page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    check = parser.parse_args().check
    old = []
    for page in PAGES:
        before = page.read_text()
        after = render(before)
        if check and before != after:
            old.append(str(page.relative_to(ROOT)))
        elif not check:
            page.write_text(after)
    if old:
        sys.exit(f"not what benchmarks/results says: {', '.join(old)}: run python benchmarks/report.py")


if __name__ == "__main__":
    main()
