"""What the tables of a CPU in docs/benchmarks.md come from: ``python benchmarks/cpu.py [--quick] [--only PART ...]``.

One part after another, each a program of its own, which can be called alone too; on a quiet machine, 25 minutes. Then
``python benchmarks/report.py`` writes the tables. What a part does not finish, or finds wrong, fails the whole, after
the others have run.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT


@dataclass(frozen=True)
class Part:
    """A benchmark, and how long it takes: for tables that are read, or to see that all is well."""

    script: str
    whole: str
    quick: str
    peers: bool = False
    """Whether it takes checkouts of other libraries."""


PARTS = {
    "convolutions": Part(
        "bench_convolutions.py", "--rounds 25 --limit 4", "--rounds 3 --limit 1 --minutes 2"
    ),
    "train": Part(
        "bench_train.py", "--rounds 2 --seconds 1.5 --minutes 11", "--rounds 1 --seconds 1 --minutes 5"
    ),
    "peers": Part(
        "bench_peers.py",
        "--rounds 2 --seconds 1.5 --minutes 7",
        "--rounds 1 --seconds 1 --minutes 2",
        peers=True,
    ),
    "metrics": Part("bench_metrics.py", "--rounds 3", "--rounds 1"),
    "ops": Part("bench_ops.py", "--limit 3", "--minutes 3 --limit 2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes instead, in fewer rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="these")
    parser.add_argument("--disentangling-vae", metavar="PATH", help="a checkout of it, to compare with")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/results", help="folder for the files"
    )
    options = parser.parse_args()
    failed = []
    for name in options.only:
        start = time.monotonic()
        print(f"{name}:", flush=True)
        if subprocess.run(command(name, options)).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"not all is well in: {', '.join(failed)}")


def command(name: str, options: argparse.Namespace) -> list[str]:
    """That measures a part."""
    part = PARTS[name]
    peers = options.disentangling_vae if part.peers else None
    return [
        *(sys.executable, str(ROOT / "benchmarks" / part.script)),
        *(part.quick if options.quick else part.whole).split(),
        *(["--disentangling-vae", peers] if peers else []),
        *("--out", str(options.results / f"{name}-cpu.json")),
    ]


if __name__ == "__main__":
    main()
