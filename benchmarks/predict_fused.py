"""Predict the kernels of a fused training step on an H100 from their machine code, without having one.

Of each launch: programs a member, registers and shared memory of a program, millions of multiply-adds, megabytes
read and written once, microseconds for one member (S = 1) and a member's share of them where the device is full of
members (many).

The times come from sm_model.py, which no chip has calibrated: believe them to +-40 %. They hold neither a launch's
own cost, which is assumed below, nor that of memory beyond the L2, nor of what the instruction cache does not hold.
--out writes what is printed, for a measurement to be held against.
"""

import argparse
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from machine_code import Code, code_of, compiled, distinct, planned
from pyvae.engine.fused.launch import DTYPES, Launch
from pyvae.engine.fused.layout import Layout, padded, z_width
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan
from pyvae.nets import build
from sm_model import CLOCK_GHZ, MULTIPROCESSORS, loops, seats, simulate, trace

ARCH = 90
IMAGES = 64
OPERANDS = ("fp16", "bf16", "tf32")
LAUNCH_US = {"plain": 1.3, "pdl": 0.7}
"""Assumed of a launch in a graph, and of one that takes its place before the one in front of it has ended."""
FILE = Path(__file__).with_name("predicted_fused.json")


class Work(NamedTuple):
    """Of a launch, for one member."""

    mmac: float
    """Millions of multiply-adds."""
    megabytes: float
    """Read and written, each number once."""


def plan_of(operands: str) -> Plan:
    """Burgess' network on bits, with 10 latents."""
    network = network_of(build("burgess", 1, 10))
    return Plan(network, Layout(network), IMAGES, operands, True, pdl=True)


def launches_of(plan: Plan) -> list[Launch]:
    """Those of one step among others: the one before has made its batch."""
    return [*plan.forward, *plan.weigh, *plan.backward, *plan.settle]


def digest(launch: Launch) -> str:
    """Changes with whatever a launch's machine code and time depend on, but for the kernel's source."""
    held = (launch.kernel, launch.programs, launch.constants, launch.warps, launch.stages)
    return hashlib.sha256(repr(held).encode()).hexdigest()[:12]


def trips(plan: Plan, launch: Launch, code: Code) -> list[list[int]]:
    """How often each loop of the machine code runs, for each program."""
    count, c = len(loops(code)), dict(launch.constants)
    kernel = launch.kernel[1]
    if kernel == "weight_gradients_kernel":
        return [[-(-tile.count // c["BK"])] * count for tile in plan.weight_tiles]
    if kernel == "flat_adam_kernel":
        return _trips_of_adam(plan, launch, code)
    if kernel == "member_rows_kernel":
        # parts of the KL and of the loss, squares of the gradient: what is left of them after four at a time
        return [[1] * count]
    if not count:
        return [[]] * launch.programs
    of_source = {
        "dense_kernel": [c.get("K", 0) // c.get("BK", 1)],
        "conv_down_kernel": [4],
        "loss_kernel": [4],
        "up_first_conv_kernel": [4],
        "latents_kernel": [c.get("K", 0) // c.get("BK", 1), c.get("N", 0) // c.get("BN", 1)],
        "latents_backward_kernel": [c.get("N", 0) // c.get("BK", 1), c.get("K", 0) // c.get("BN", 1)],
    }[kernel]
    kept = [n for n in of_source if n > 1][-count:]
    return [kept] * launch.programs


def _trips_of_adam(plan: Plan, launch: Launch, code: Code) -> list[list[int]]:
    # parts of a gradient in fours, its other parts one by one; many parts, so many at a time; the batch has no loop
    c, found = dict(launch.constants), []
    names = ["fours", "ones", "many"]
    if len(loops(code)) != len(names):
        raise ValueError(f"{len(loops(code))} loops in Adam's code, whose loops are {names}")
    for block in plan.blocks:
        if block.parts > 16:
            found.append([0, 0, -(-block.parts // c["PARTS"])])
        else:
            found.append([(block.parts - 1) // 4, (block.parts - 1) % 4 % 2, 0])
    return found + [[-1, -1, -1]] * (launch.programs - len(plan.blocks))


def work(plan: Plan, launch: Launch) -> Work:
    """What a launch computes and moves."""
    c, b, e = dict(launch.constants), plan.images, DTYPES[plan.operands].itemsize
    channels, gated = plan.network.channels, c.get("GATED", False)
    batch = b * 1024 * 2 if plan.bits else b * channels * 4096
    width, p = plan.layout.width, padded(plan.network.latents)
    maps, small = b * 1024 * 32, b * 256 * 32
    if launch.kernel[1] in ("conv_down_kernel", "conv_up_kernel"):
        positions, weight = b * c["H"] ** 2, c["TAPS"] ** 2 * c["CB"] * c["CS"]
        sizes = positions * c["CS"], 4 * positions * c["CB"]
        written = sizes[0] if launch.kernel[1] == "conv_down_kernel" else sizes[1]
        return _work(positions * weight, e * (sum(sizes) + weight + written * gated))
    if launch.kernel[1] == "dense_kernel":
        k, n = c["K"], c["N"]
        return _work(b * k * n, e * (b * k + k * n + b * n * (1 + gated)))
    if launch.kernel[1].startswith("latents"):
        k, n, z = c["K"], c["N"], z_width(plan.network.latents)
        backward = launch.kernel[1] != "latents_kernel"
        moved = e * (b * (k * (1 + backward) + n + z) + 2 * k * p + n * z) + 4 * 3 * b * p
        return _work(b * (2 * k * p + n * p), moved)
    if launch.kernel[1] == "first_conv_kernel":
        return _work(maps * 16 * channels, batch + e * maps)
    if launch.kernel[1] == "up_first_conv_kernel":
        parts = 4 * launch.programs * (512 * channels + 32)
        return _work(b * 1024 * (128 * 32 + 2 * 16 * 32 * channels), batch + e * small + parts)
    if launch.kernel[1] == "loss_kernel":
        return _work(b * 256 * 512 * 16 * channels, batch + e * (maps + b * channels * 4096))
    if launch.kernel[1] == "loss_backward_kernel":
        parts = 4 * launch.programs * (512 * channels + 32)
        return _work(2 * maps * 16 * channels, e * (2 * maps + b * channels * 4096) + parts)
    if launch.kernel[1] == "weight_gradients_kernel":
        made = sum(t.count * 32 * t.units for t in plan.weight_tiles) * 32
        # of tiles that share an operand, one
        big = {
            (t.a - t.a % t.a_image, t.first): t.count * t.a_image >> 2 * t.log_side for t in plan.weight_tiles
        }
        small = {(t.b - t.b % t.b_row, t.first): t.count * t.b_row for t in plan.weight_tiles}
        return _work(made, e * (sum(big.values()) + sum(small.values())) + 4 * 4096 * launch.programs)
    if launch.kernel[1] == "flat_adam_kernel":
        return _work(0, 4 * sum(block.parts * block.size for block in plan.blocks) + (24 + e) * width + batch)
    return _work(0, 4 * (plan.buffers["nll_parts"].size + plan.buffers["squares"].size))


def _work(multiplied: int, moved: int) -> Work:
    return Work(multiplied / 1e6, moved / 1e6)


def predict(operands: str) -> dict[str, Any]:
    """Of all launches of a step."""
    plan = plan_of(operands)
    launches = launches_of(plan)
    specialised = [planned(plan, launch) for launch in launches]
    same = distinct(specialised)
    known: dict[Any, tuple[Code, float, float]] = {}
    rows = []
    for launch, special in zip(launches, specialised, strict=True):
        key = same[special]
        if key not in known:
            code = code_of(compiled(special, ARCH))
            known[key] = code, *_times(code, trips(plan, launch, code), launch.warps)
        code, alone, many = known[key]
        done = work(plan, launch)
        rows.append(
            {
                "label": launch.label,
                "kernel": launch.kernel[1],
                "digest": digest(launch),
                "programs": launch.programs,
                "registers": code.registers,
                "shared": code.shared,
                "mmac": round(done.mmac, 2),
                "megabytes": round(done.megabytes, 3),
                "us_alone": round(alone, 2),
                "us_many": round(many, 3),
            }
        )
    return {"kernels": rows, "sums": _sums(rows)}


def _times(code: Code, counts: list[list[int]], warps: int) -> tuple[float, float]:
    """Microseconds of one member, and a member's share of a full device."""
    made = {tuple(n): trace(code, n) for n in counts}
    traces = [made[tuple(n)] for n in counts]
    clock, held = CLOCK_GHZ * 1e3, seats(code, warps)
    # the multiprocessor that has the first program, and so most of them
    alone = simulate(code, traces[::MULTIPROCESSORS], warps).clocks / clock
    # twice what it holds, of all kinds alike
    sample = [traces[i * len(traces) // (2 * held)] for i in range(2 * held)]
    full = simulate(code, sample, warps).clocks / clock
    return alone, full * len(traces) / (2 * held * MULTIPROCESSORS)


def _sums(rows: list[dict[str, Any]]) -> dict[str, Any]:
    alone, many = (sum(row[name] for row in rows) for name in ("us_alone", "us_many"))
    return {
        "launches": len(rows),
        "mmac": round(sum(row["mmac"] for row in rows), 1),
        "megabytes": round(sum(row["megabytes"] for row in rows), 1),
        "us_alone": round(alone, 1),
        "us_alone_plain": round(alone + LAUNCH_US["plain"] * len(rows), 1),
        "us_alone_pdl": round(alone + LAUNCH_US["pdl"] * len(rows), 1),
        "us_many": round(many, 1),
    }


def show(operands: str, predicted: dict[str, Any]) -> None:
    """As a table."""
    print(f"{operands:62} programs regs shared   MMAC     MB  us, S=1  us, many")
    for row in predicted["kernels"]:
        print(
            f"{row['label'][:62]:62} {row['programs']:8} {row['registers']:4} {row['shared']:6} {row['mmac']:6.1f} "
            f"{row['megabytes']:6.2f} {row['us_alone']:8.2f} {row['us_many']:9.2f}"
        )
    sums = predicted["sums"]
    print(
        f"{sums['launches']} launches, {sums['mmac']:.0f} MMAC, {sums['megabytes']:.0f} MB; "
        f"S = 1: {sums['us_alone']:.0f} us, "
        f"{sums['us_alone_plain']:.0f} with {LAUNCH_US['plain']} a launch in a graph, "
        f"{sums['us_alone_pdl']:.0f} with {LAUNCH_US['pdl']} a programmatic dependent one; "
        f"many: {sums['us_many']:.0f} us a member-step\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--operands", nargs="+", choices=OPERANDS, default=OPERANDS, help="of the products (all)"
    )
    parser.add_argument(
        "--out", type=Path, help=f"JSON file to write, such as {FILE.name} beside this script"
    )
    args = parser.parse_args()
    # interpreted and compiled kernels do not mix in one process
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    found = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for operands in args.operands:
            found[operands] = predict(operands)
            show(operands, found[operands])
    if args.out:
        about = {
            "what": "a prediction from machine code by a model that no chip has calibrated, +-40 %",
            "architecture": f"sm_{ARCH}",
            "multiprocessors": MULTIPROCESSORS,
            "clock_ghz": CLOCK_GHZ,
            "network": "burgess",
            "images": IMAGES,
            "us_a_launch": LAUNCH_US,
            "triton": triton.__version__,
        }
        args.out.write_text(json.dumps(about | {"operands": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
