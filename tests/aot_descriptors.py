"""Compile the kernel that reads boxes as its plan launches it: ``python tests/aot_descriptors.py`` prints JSON.

A process of its own, since interpreted and compiled kernels do not mix in one.
"""

import json
import os
import re
import sys
import tempfile
from importlib import import_module

import aot
from pyvae.engine.fused.boxes import Descriptor
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan, Pointer, Stride
from pyvae.nets import build

ARCHITECTURES = (90, 100, 120)
INSTRUCTIONS = {
    "boxes": r"cp\.async\.bulk\.tensor\.5d",
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"mma\.sync",
}


def launch_of(plan: Plan) -> aot.Launch:
    """The launch of the weight gradients, as Triton would specialise it."""
    launch = next(x for x in plan.backward if x.kernel[0] == "descriptor_gradients")
    names = getattr(import_module("pyvae.kernels.descriptor_gradients"), launch.kernel[1]).arg_names
    pointers = {"activations": "*fp16", "gradients": "*fp32"}
    signature, divisible = {}, []
    for name, x in zip(names, launch.arguments, strict=False):
        if isinstance(x, Descriptor):
            signature[name] = f"tensordesc<fp16[{','.join(map(str, (1, *x.block)))}]>"
        elif isinstance(x, Pointer):
            signature[name] = pointers.get(x.buffer, "*i32")
        else:
            signature[name] = "i32"
        if isinstance(x, Pointer | Stride) or (isinstance(x, int) and x % 16 == 0):
            divisible.append((name,))
    signature |= dict.fromkeys(dict(launch.constants), "constexpr")
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return aot.Launch(
        launch.kernel,
        launch.label,
        tuple(signature.items()),
        launch.constants,
        tuple(divisible),
        tuple(options.items()),
    )


def main() -> None:
    network = network_of(build("burgess", 1, 10, seed=0))
    launch = launch_of(Plan(network, Layout(network), 64, "fp16", True, pdl=True, descriptors=True))
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for arch in ARCHITECTURES:
            ptx = aot.compiled(launch, arch).asm["ptx"]
            counts = {name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()}
            rows.append(aot.figures((launch, arch))._asdict() | counts)
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main()
