"""Compile the kernel that reads boxes as its plan launches it: ``python tests/aot_descriptors.py`` prints JSON.

A process of its own, since interpreted and compiled kernels do not mix in one.
"""

import argparse
import json
import os
import sys
import tempfile

import aot_fused
from machine_code import TENSOR_CORES, code_of, compiled, planned
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan
from pyvae.nets import build

ARCHITECTURES = (90, 100, 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES)
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    network = network_of(build("burgess", 1, 10))
    plan = Plan(network, Layout(network), 64, "fp16", True, pdl=True, descriptors=True)
    (launch,) = (x for x in plan.backward if x.kernel[0] == "descriptor_gradients")
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for arch in args.archs:
            kernel = compiled(planned(plan, launch), arch)
            code = code_of(kernel)
            rows.append(
                {
                    "arch": arch,
                    "registers": code.registers,
                    "shared": code.shared,
                    "stack": code.stack,
                    "spills": code.spills,
                    "boxes": code.count("UTMALDG"),
                    "waits_first": aot_fused.waits_first(kernel.asm["ptx"], code),
                    **{name: code.count(name) for name in TENSOR_CORES},
                }
            )
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
