"""Compile Triton kernels for NVIDIA GPUs without having one, as launches specialise them, and read the machine code."""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyvae.engine.fused.boxes import Descriptor
from pyvae.engine.fused.launch import Launch as PlannedLaunch
from pyvae.engine.fused.launch import Pointer, Size, Stride
from pyvae.engine.fused.plan import Plan

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
SHARED = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that a program can have, by compute capability."""
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")
_ROWS = {"every": 100, "capacity": 4096}
"""Of the ring of rows: whatever is usual."""


class Launch(NamedTuple):
    """A kernel as (module, name), what it was launched with, and what to call that in a table."""

    kernel: tuple[str, str]
    label: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[tuple[Any, ...], ...]
    options: tuple[tuple[str, Any], ...] = ()


class Instruction(NamedTuple):
    """A line of machine code."""

    text: str
    encoding: int
    """Its upper 64 bits, which hold when it may issue."""

    @property
    def operation(self) -> str:
        """Without the predicate: "LDG.E.128"."""
        return re.match(r"(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", self.text)[1]


class Code(NamedTuple):
    """Of a kernel."""

    instructions: list[Instruction]
    labels: dict[str, int]
    """Index of the instruction behind each."""
    registers: int
    stack: int
    """Bytes."""
    shared: int
    """Bytes."""

    def count(self, *operations: str) -> int:
        """Instructions whose operation begins so."""
        return sum(i.operation.startswith(operations) for i in self.instructions)

    @property
    def spills(self) -> int:
        """Loads and stores of what registers did not hold."""
        return self.count("LDL", "STL")

    def wide(self, *operations: str) -> int:
        """Those of 16 bytes a thread."""
        return sum(i.operation.startswith(operations) and ".128" in i.operation for i in self.instructions)


def specialised(
    kernel: tuple[str, str], label: str, names: Sequence[str], arguments: Sequence[Any], named: dict[str, Any]
) -> Launch:
    """What Triton makes of the arguments of a launch, of a kernel with parameters of these names: tensors lie at
    multiples of 16 bytes, integers count if they are one or a multiple of 16."""
    constants = {name: value for name, value in named.items() if name in names}
    options = {name: value for name, value in named.items() if name not in names}
    signature: dict[str, Any] = {}
    divisible: list[tuple[Any, ...]] = []
    for name, value in zip(names, arguments, strict=False):
        if isinstance(value, tuple):
            signature[name] = tuple(POINTERS[pointer.dtype] for pointer in value)
            divisible += [(name, i) for i in range(len(value))]
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            divisible.append((name,))
        elif isinstance(value, str):  # a type, as Triton writes it
            signature[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value is None or value == 1:
            constants[name] = value
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append((name,))
    signature |= dict.fromkeys(constants, "constexpr")
    return Launch(
        kernel,
        label,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        tuple(options.items()),
    )


def compiled(launch: Launch, arch: int) -> Any:
    """The compiled kernel of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    of = function(launch.kernel)
    signature = dict(launch.signature)
    attrs = {
        (of.arg_names.index(name), *element): [["tt.divisibility", 16]] for name, *element in launch.divisible
    }
    source = ASTSource(
        of,
        signature={name: signature[name] for name in of.arg_names},
        constexprs=dict(launch.constants),
        attrs=attrs,
    )
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True, **dict(launch.options)}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def code_of(kernel: Any) -> Code:
    """What a GPU would run."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def tool(name: str, *options: str) -> str:
            command = [str(tools / name), *options, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage, listing = tool("cuobjdump", "-res-usage"), tool("nvdisasm", "-hex", "-c")
    instructions, labels = _parsed(listing)
    return Code(
        instructions,
        labels,
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared=kernel.metadata.shared,
    )


def launches_of(plan: Plan) -> list[PlannedLaunch]:
    """All that a step needs, its first batch included."""
    return [*plan.first, *plan.forward, *plan.weigh, *plan.backward, *plan.settle]


def planned(plan: Plan, launch: PlannedLaunch) -> Launch:
    """A launch of a plan, as :class:`pyvae.engine.fused.members.Members` launches it."""
    named = dict(launch.constants) | {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": launch.fused_multiply_add,
    }
    if named["PDL"]:
        named["launch_pdl"] = True
    names, arguments = function(launch.kernel).arg_names, [_argument(plan, x) for x in launch.arguments]
    return specialised(launch.kernel, launch.label, names, arguments, named)


def distinct(launches: Iterable[Launch]) -> dict[Launch, Launch]:
    """The first of those that differ in their labels alone, by each of them."""
    first: dict[Launch, Launch] = {}
    return {launch: first.setdefault(launch._replace(label=""), launch) for launch in launches}


def _argument(plan: Plan, x: Any) -> Any:
    if isinstance(x, Pointer):
        dtype = _dtype(plan, x.buffer)
        if x.offset * dtype.itemsize % 16:
            raise ValueError(f"{x} does not lie at a multiple of 16 bytes")
        return torch.empty(0, dtype=dtype, device="meta")
    if isinstance(x, Descriptor):
        block = ",".join(map(str, (1, *x.block)))
        return f"tensordesc<{POINTERS[_dtype(plan, x.buffer)].removeprefix('*')}[{block}]>"
    if isinstance(x, Stride):
        return plan.buffers[x.buffer].size
    return _ROWS[x.of] if isinstance(x, Size) else x


def _dtype(plan: Plan, buffer: str) -> torch.dtype:
    if buffer in plan.buffers:
        return plan.buffers[buffer].dtype
    # what Members makes of other parts
    others = {"tiles": torch.int32, "blocks": torch.int32, "bad_step": torch.int64}
    others["store"] = torch.int64 if plan.bits else torch.uint8
    return others.get(buffer, torch.float64)


def function(kernel: tuple[str, str]) -> Any:
    """Of a module of kernels and a name."""
    return getattr(import_module(f"pyvae.kernels.{kernel[0]}"), kernel[1])


def _parsed(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    within = False
    for line in listing.splitlines():
        if re.match(r"\s*\.section\s+\.text\.", line):
            within = True
        if not within:
            continue
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif first := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]+ \*/", line):
            instructions.append(Instruction(first[1], 0))
        elif (second := re.match(r"\s+/\* 0x([0-9a-f]+) \*/", line)) and instructions:
            instructions[-1] = instructions[-1]._replace(encoding=int(second[1], 16))
    return instructions, labels
