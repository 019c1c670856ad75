"""Every op at every size against what it replaces, in one process: ``python benchmarks/bench_ops.py --out FILE``.

Microseconds are those of a call on the host, the wait for the device included; on a GPU also those of the kernels
alone, and everything once more inside a CUDA graph. GB/s are of the bytes that the op's file counts, ``of_copy`` is the
share of the speed of a copy of as many bytes in the same run. A result that is wrong is refused and not timed.
"""

import argparse
import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from interleaved import Case, measure
from machine import save
from pyvae.backend import choose
from pyvae.base.allocator import keep_large_buffers

OPS = (
    "bernoulli_nll",
    "reparameterize_kl",
    "permute_dims",
    "aggregate_log_density",
    "importance_log_weight",
    "gather_bits",
    "code_histogram",
    "posterior_entropy",
)


def cases(ops: tuple[str, ...] = OPS) -> list[Case]:
    """Of the ops' files."""
    return [case for op in ops for case in importlib.import_module(f"bench_{op}").CASES]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS, metavar="OP", help="these alone")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=25, help="of every case")
    parser.add_argument(
        "--block", type=float, default=0.02, help="seconds that a function runs for in a round"
    )
    parser.add_argument("--limit", type=float, default=8, help="seconds of a case, beyond three rounds")
    parser.add_argument("--minutes", type=float, help="begin no case after so many")
    parser.add_argument(
        "--autotune",
        action="store_true",
        help="on a GPU also torch.compile's max-autotune, half a minute an op",
    )
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    keep_large_buffers()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    slow = {
        op: choice.reason
        for op in options.ops
        if (choice := choose(op, device, torch.float32)).backend == "reference"
    }
    if slow:
        sys.exit("\n".join(f"{op} would be timed as its reference: {reason}" for op, reason in slow.items()))
    rows, wrong, left = [], [], []
    for case in cases(tuple(options.ops)):
        if device.type not in case.devices:
            continue
        if time.monotonic() > end:
            left.append(f"{case.op} {case.label}")
            continue
        try:
            measured, refused = measure(
                replace(case, autotuned=case.autotuned and options.autotune),
                device,
                rounds=options.rounds,
                block_seconds=options.block,
                limit_seconds=options.limit,
            )
        except Exception as error:
            # the other cases have their times all the same
            wrong.append(f"{case.op} {case.label}: failed: {' '.join(str(error).split())[:200]}")
            print(wrong[-1], flush=True)
            continue
        for row in measured:
            print(line(row), flush=True)
        rows += measured
        wrong += refused
        save(options.out, cases=rows, left_out=left, failed=wrong)
    if rows:
        save(options.out, cases=rows, left_out=left, failed=wrong)
    if left:
        print(f"no time left for {', '.join(left)}")
    if wrong:
        sys.exit("\n".join(["refused:", *wrong]))


def line(row: dict) -> str:
    """A row as it is printed."""
    name = f"{row['provider']}{', graph' if row['graph'] else ''}"
    head = f"{row['op']:22s} {row['size']:>16s}  {name:24s}"
    if "us" not in row:
        return f"{head} {row['refused']}"
    low, median, high = row["us"]
    device = f"  device {row['device_us']:.1f} us" if "device_us" in row else ""
    return (
        f"{head} {median:10.1f} us [{low:.1f}, {high:.1f}]{device}  {row['gb_per_s']:.2f} GB/s  "
        f"{row['of_copy']:.2f} of a copy  {row.get('speedup', float('nan')):.2f}x"
    )


if __name__ == "__main__":
    main()
