"""``pyvae doctor``: versions, what else is called pyvae, devices, which backend each op takes and why, what computes
convolutions on a CPU, and the data cache."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import pyvae
import pyvae_engine
from pyvae.backend import choose, wanted_backend
from pyvae.base import processor
from pyvae.cli.invocation import say
from pyvae.data import cache
from pyvae.errors import BackendError
from pyvae.nets.convolutions import arithmetic

_PACKAGES = ("torch", "triton", "numpy", "h5py", "safetensors", "matplotlib", "tensorboard", "nvtx", "tyro")
_KERNELS_OF = {"tc_batch": "permute_dims"}
_FILES = 8
"""Files of the cache that are named: packed images leave one for each set."""
_PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_VARIABLES = (
    "PYVAE_BACKEND",
    "PYVAE_CHECK",
    "PYVAE_CACHE",
    "PYVAE_INSIST",
    "PYVAE_LIMIT",
    "TRITON_INTERPRET",
)


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, which backend each op takes and why, and the data cache."""

    def __call__(self) -> int:
        say(describe())
        return 0


def describe() -> str:
    """The report, a line for each fact."""
    sections = {
        **({"to put right": found} if (found := pyvae_engine.beside()) else {}),
        "versions": [f"pyvae {pyvae.__version__}", f"python {platform.python_version()}", *_versions()],
        "devices": _devices(),
        "ops": _ops(),
        "convolutions on a CPU": _convolutions(),
        "fused engine": _fused(),
        "environment": [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
        or ["(nothing set)"],
        "data cache": _cache(),
    }
    return "\n".join(
        line for title, lines in sections.items() for line in [title, *(f"  {x}" for x in lines)]
    )


def _versions() -> list[str]:
    return [f"{name} {_version(name)}" for name in _PACKAGES]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"missing: pip install {name}"


def _devices() -> list[str]:
    facts = [platform.machine(), f"{torch.get_num_threads()} threads", _cpu_capability(), _bfloat16()]
    lines = [f"cpu: {', '.join(facts)}"]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        lines.append(
            f"cuda:{i}: {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    if not torch.cuda.is_available():
        cause = (
            "this torch is a CPU build" if torch.version.cuda is None else "no usable NVIDIA driver or GPU"
        )
        lines.append(f"no CUDA device: {cause}")
    return lines


def _cpu_capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _bfloat16() -> str:
    known = processor.bfloat16()
    if known is None:
        return "not known whether it has instructions for bfloat16"
    return "instructions for bfloat16" if known else "no instructions for bfloat16, so precision bf16 is slow"


def _ops() -> list[str]:
    try:
        wanted_backend()
    except BackendError as error:
        return [f"none: {error}"]
    devices = [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [f"{op} on {device}: {_backend(op, device)}" for op in pyvae.__all__ for device in devices]


def _backend(op: str, device: torch.device) -> str:
    try:
        backend, reason, _ = choose(_KERNELS_OF.get(op, op), device, torch.float32)
    except BackendError as error:
        return f"none ({error})"
    return f"{backend} ({reason})"


def _convolutions() -> list[str]:
    try:
        wanted_backend()
    except BackendError:
        return ["none (see ops)"]
    return [f"{name}: {_arithmetic(dtype)}" for name, dtype in _PRODUCTS.items()]


def _arithmetic(dtype: torch.dtype) -> str:
    try:
        backend, reason, _ = arithmetic(torch.device("cpu"), dtype)
    except BackendError as error:
        return f"none ({error})"
    return f"{'native' if backend == 'native' else 'oneDNN of torch'} ({reason})"


def _fused() -> list[str]:
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    return [f"{device}: {_engine(device)}" for device in devices]


def _engine(device: torch.device) -> str:
    # which no other command needs at once
    from pyvae.engine.fused.supports import lacks, proven_on

    try:
        lacking = lacks(device)
    except BackendError:
        return "no (see ops)"
    if lacking is not None:
        return f"no ({lacking})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this device"
    if proven := proven_on(device):
        return f"yes, and --engine auto takes it for precision {' and '.join(proven)}: measured on {name}"
    return f"yes, but --engine auto takes it for precision fp16 alone: nothing has been measured on {name}"


def _cache() -> list[str]:
    directory = cache.directory()
    found = directory.glob("*") if directory.is_dir() else ()
    sizes = sorted(((file.stat().st_size, file.name) for file in found), reverse=True)
    lines = [str(directory), *(f"{name}: {_mebibytes(size)}" for size, name in sizes[:_FILES])]
    if rest := sizes[_FILES:]:
        lines.append(f"{len(rest)} smaller files: {_mebibytes(sum(size for size, _ in rest))}")
    return lines


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
