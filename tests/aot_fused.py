"""Compile the kernels of fused networks for NVIDIA GPUs without having one, as their plans launch them.

``python tests/aot_fused.py`` prints what each distinct launch needs; test_fused_aot.py reads it with ``--json``.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any, NamedTuple

from aot import ARCHITECTURES
from machine_code import SHARED, TENSOR_CORES, Code, Launch, code_of, compiled, distinct, launches_of, planned
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.weighting import Weighting, weighting_of
from pyvae.nets import build
from pyvae.objectives import AnnealedVAE, CapacityVAE, ControlVAE

OPERANDS = ("fp16", "bf16", "tf32")
NETWORKS = {
    "burgess": ("burgess", 1, 10),
    "burgess, 3 channels": ("burgess", 3, 10),
    "beta-vae-h": ("beta-vae-h", 1, 10),
    "kim": ("kim", 3, 10),
    "kim-256": ("kim-256", 1, 10),
    "locatello": ("locatello", 3, 10),
    "burgess, 32 latents": ("burgess", 1, 32),
}
"""Architecture, channels, latents."""
OBJECTIVES = (
    CapacityVAE(gamma=100.0, capacity=25.0, capacity_steps=100),
    ControlVAE(),
    ControlVAE(schedule="adaptive"),
    AnnealedVAE(annealing_steps=100, cycles=4, schedule="linear"),
)
_GLOBAL = re.compile(r"\b(?:ld|st|atom|red|cp\.async\S*|prefetch)\.\S*global|\bcp\.async\.")


class Figures(NamedTuple):
    network: str
    operands: str
    kernel: str
    label: str
    arch: int
    rows: int
    """Of the tile that tensor cores multiply at a time, 0 where they do not."""
    warps: int
    registers: int
    shared: int
    stack: int
    spills: int
    tensor_core: int
    """Instructions for tensor cores, and of these those for a whole warp group (9.0) or for tensor memory (10.0)."""
    grouped: int
    wide_loads: int
    narrow_copies: int
    """Asynchronous copies of less than 16 bytes a thread."""
    wide_stores: int
    programmatic: bool
    """Whether it may be launched before those in front of it have ended."""
    waits_first: bool
    """Whether it waits for the launches before it, and lets the next begin, ahead of all traffic with memory."""


def plan_of(network: str, operands: str, **named: Any) -> Plan:
    """Of a batch of 64."""
    arch, channels, latents = NETWORKS[network]
    net = network_of(build(arch, channels, latents))
    return Plan(net, Layout(net), 64, operands, channels == 1, **named)


def planned_launches(network: str, operands: str, arch: int, *, briefly: bool) -> list[Launch]:
    """Distinct ones; of burgess, those of all kinds of objectives and of a side branch, too; briefly: few."""
    pdl = arch >= 90
    plan = plan_of(network, operands, pdl=pdl)
    found = [planned(plan, launch) for launch in launches_of(plan)]
    if network == "burgess":
        for objective in OBJECTIVES:
            plan = plan_of(network, operands, pdl=pdl, weighting=weighting_of(objective))
            found += [planned(plan, launch) for launch in [*plan.weigh, *plan.settle]]
        plan = plan_of(network, operands, pdl=pdl, weighting=Weighting("seam"), before_norm=1, behind_norm=2)
        found += [planned(plan, launch) for launch in [*launches_of(plan), *plan.second()]]
        plan = plan_of(network, operands, pdl=pdl, side_branch=True)
        found += [planned(plan, launch) for launch in plan.backward]
    found = list(dict.fromkeys(distinct(found).values()))
    return _few(found, arch) if briefly else found


def _few(launches: list[Launch], arch: int) -> list[Launch]:
    """For 9.0 all but those that differ in sizes alone; elsewhere one of each kernel, with a mask where it has one."""
    kinds: dict[Any, Launch] = {}
    for launch in sorted(launches, key=lambda x: not dict(x.constants).get("GATED")):
        rest = {name: x for name, x in launch.constants if name not in ("H", "K", "N", "PERIOD")}
        kinds.setdefault((launch.kernel, *(rest.items() if arch == 90 else ())), launch)
    return list(kinds.values())


def figures(job: tuple[str, str, Launch, int]) -> Figures:
    """Of a launch on an architecture."""
    network, operands, launch, arch = job
    kernel = compiled(launch, arch)
    code = code_of(kernel)
    copies = code.count("LDGSTS")
    constants = dict(launch.constants)
    return Figures(
        network=network,
        operands=operands,
        kernel=launch.kernel[1],
        label=launch.label,
        arch=arch,
        rows=constants.get("BM", 128 if launch.kernel[0] == "weight_gradients" else 0),
        warps=dict(launch.options)["num_warps"],
        registers=code.registers,
        shared=code.shared,
        stack=code.stack,
        spills=code.spills,
        tensor_core=code.count(*TENSOR_CORES),
        grouped=code.count(*TENSOR_CORES[1:]),
        wide_loads=code.wide("LDG", "LDGSTS"),
        narrow_copies=copies - code.wide("LDGSTS"),
        wide_stores=code.wide("STG"),
        programmatic=constants["PDL"],
        waits_first=waits_first(kernel.asm["ptx"], code),
    )


def waits_first(ptx: str, code: Code) -> bool:
    """Whether it waits for the launches before it, and lets the next begin, ahead of all traffic with memory."""
    body = ptx[ptx.index("{") :]
    wait, follow = (body.find(f"griddepcontrol.{word}") for word in ("wait", "launch_dependents"))
    if min(wait, follow) < 0:
        return False
    first = _GLOBAL.search(body)
    operations = [i.operation for i in code.instructions]
    waits, follows = (operations.index(name) for name in ("ACQBULK", "PREEXIT"))
    # what the assembler has made of it counts
    traffic = (o.startswith(("LDG", "STG", "ATOMG", "RED", "LD.", "ST.", "UTMA", "UBLK")) for o in operations)
    return wait < follow < first.start() and waits < follows < next(
        i for i, is_one in enumerate(traffic) if is_one
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["burgess"])
    parser.add_argument("--operands", nargs="+", choices=OPERANDS, default=["fp16"])
    parser.add_argument("--archs", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument(
        "--briefly",
        action="store_true",
        help="no launches that differ in sizes alone, and but for 9.0 one a kernel",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    # interpreted and compiled kernels do not mix in one process
    os.environ.pop("TRITON_INTERPRET", None)
    jobs, known = [], set()
    for network, operands, arch in product(args.networks, args.operands, args.archs):
        for launch in planned_launches(network, operands, arch, briefly=args.briefly):
            same = (launch._replace(label=""), arch)
            if same not in known:
                known.add(same)
                jobs.append((network, operands, launch, arch))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(args.processes) as pool:
            rows = list(pool.map(figures, jobs, chunksize=4))
    if args.json:
        json.dump([row._asdict() for row in rows], sys.stdout)
        return
    print(
        f"{'launch':60}  arch operands  regs shared (most) spills tensor grouped ld.128 narrow st.128 waits"
    )
    for row in rows:
        print(
            f"{row.label[:60]:60} sm_{row.arch:<4}{row.operands:8}{row.registers:4} {row.shared:6} "
            f"{SHARED[row.arch]:6} {row.spills:6} {row.tensor_core:6} {row.grouped:7} {row.wide_loads:6} "
            f"{row.narrow_copies:6} {row.wide_stores:6} {row.waits_first}"
        )


if __name__ == "__main__":
    main()
