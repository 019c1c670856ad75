"""Answer questions from runs of studies: ``findings.py measure QUESTION [RUNS]``, then ``findings.py draw [--check]``.

``measure`` looks at every run in the directory RUNS of a study that has reached its last step, and writes what the
answer needs of it to ``results/findings/QUESTION/ARM-seed-N.json``; a run that has its file already is left out. The
question ``plant`` needs no runs.
``draw`` makes the pictures of docs/findings from those files, and the tables there, which stand between ``<!-- finding:
QUESTION TABLE -->`` and ``<!-- end -->``; ``--check`` changes nothing and fails if a table is out of date.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from questions import QUESTIONS, Result
from questions.runs import arm_of, finished_runs, says_of_every_run

import pyvae
from machine import save
from pyvae.report.figures import save as save_figure
from pyvae.report.figures import write

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs/findings"
RESULTS = ROOT / "benchmarks/results/findings"
_SLOT = re.compile(r"(<!-- finding: ([\w-]+) ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def measure(question: str, runs: Path | None, results: Path = RESULTS) -> None:
    """Write a file for every finished run that has none yet.

    Raises:
        PyvaeError: the question needs runs, and none are given; or a run cannot be read.
    """
    asked = QUESTIONS[question]
    if asked.compute is not None:
        _write(
            results / question / f"{asked.arms[0]}-seed-0.json", arm=asked.arms[0], seed=0, **asked.compute()
        )
    if asked.measure is None:
        return
    if runs is None:
        raise pyvae.PyvaeError(f"{question} is answered from runs: give the directory of its study")
    for path in finished_runs(runs):
        run, arm = pyvae.open(path), arm_of(path, runs)
        out = results / question / f"{arm}-seed-{run.recipe.seed}.json"
        if arm in asked.arms and not out.exists():
            _write(out, **says_of_every_run(run, arm), **asked.measure(run))


def _write(out: Path, **content: Any) -> None:
    save(out, indent=None, **content)  # a number a line would be twice the bytes
    print(out, file=sys.stderr)


def read(question: str, results: Path = RESULTS) -> list[Result]:
    """What was measured, by arm and seed."""
    found = [json.loads(path.read_text()) for path in sorted((results / question).glob("*-seed-*.json"))]
    order = QUESTIONS[question].arms
    return sorted(found, key=lambda result: (order.index(result["arm"]), result["seed"]))


def render(page: str, results: Path = RESULTS) -> str:
    """A page with every table made anew."""

    def fill(slot: re.Match[str]) -> str:
        table = QUESTIONS[slot[2]].tables[slot[3]](read(slot[2], results))
        return f"{slot[1]}\n{table}\n\n{slot[4]}"

    return _SLOT.sub(fill, page)


def draw(results: Path = RESULTS, pages: Path = PAGES) -> None:
    """Make all pictures and tables anew."""
    for name, question in QUESTIONS.items():
        if found := read(name, results):
            for picture, figure in question.pictures(found).items():
                path = pages / picture
                if isinstance(figure, bytes):
                    write(path, figure)
                else:
                    save_figure(figure, path)
    for page in sorted(pages.glob("*.md")):
        page.write_text(render(page.read_text(), results))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="write small files of the runs of a study")
    measuring.add_argument("question", choices=QUESTIONS)
    measuring.add_argument("runs", type=Path, nargs="?", help="directory of the study")
    drawing = commands.add_parser("draw", help="make the pictures and tables of docs/findings")
    drawing.add_argument(
        "--check", action="store_true", help="change nothing; fail if a table is out of date"
    )
    options = parser.parse_args()
    if options.command == "measure":
        try:
            measure(options.question, options.runs)
        except pyvae.PyvaeError as error:
            sys.exit(f"findings.py: {error}")
    elif not options.check:
        draw()
    elif old := [page.name for page in PAGES.glob("*.md") if render(page.read_text()) != page.read_text()]:
        sys.exit(
            f"not what benchmarks/results/findings says: {', '.join(old)}: run python benchmarks/findings.py draw"
        )


if __name__ == "__main__":
    main()
