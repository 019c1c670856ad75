"""What the other stages stand on: the operators built for the card at hand, and dSprites."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from checkout import ROOT
from gpu_stages.cases import Cases
from pyvae.base import native
from pyvae.data import load

_PACKAGES = (
    "triton",
    "numpy",
    "h5py",
    "safetensors",
    "nvtx",
    "tyro",
    "tensorboard",
    "pytest",
    "pytest-xdist",
)


def build(case: Cases) -> None:
    """The machine, and csrc compiled for its card."""
    case("machine", lambda: _machine(case.device))
    case("operators", lambda: _operators(case), seconds=140)
    case("backends", lambda: _backends(case.device))


def data(case: Cases) -> None:
    """dSprites, generated into the cache; seconds, once."""
    case(
        "dsprites", lambda: {} if case.dry else {"images": len(load("dsprites", progress=False))}, seconds=60
    )


def _machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _first_line("model name", Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
    }
    if device.type != "cuda":
        return found
    card = torch.cuda.get_device_properties(device)
    return found | {
        "name": card.name,
        "capability": [card.major, card.minor],
        "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "l2_mib": round(card.L2_cache_size / 2**20, 1),
        "cudnn": torch.backends.cudnn.version(),
        "driver": _first_line("NVRM version", Path("/proc/driver/nvidia/version")),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(start: str, path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(start)), "")


def _operators(case: Cases) -> dict[str, Any]:
    if case.dry:
        return {"built": "not in a dry run"}
    major, minor = torch.cuda.get_device_capability()
    environment = {
        **os.environ,
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        "MAX_JOBS": str(max(1, (os.cpu_count() or 2) - 2)),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    # else what is newer than its sources is left alone, be it built without CUDA
    command += ["--force"] if native.missing("permute_dims", "cuda") else []
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    print(done.stderr, file=sys.stderr)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"ok": False, "error": "; ".join(said[-3:])[:600], "nvcc": shutil.which("nvcc")}
    return {}


_CHOICES = """
import json, torch
from pyvae.backend import OPS, choose
print(json.dumps({op: choose(op, torch.device("DEVICE"), torch.float32)[:2] for op in OPS}))
"""


def _backends(device: torch.device) -> dict[str, Any]:
    """What each op takes; on a GPU the reference is wrong. Asked of a process that knows no older build."""
    command = [sys.executable, "-c", _CHOICES.replace("DEVICE", device.type)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True)
    chosen = json.loads(done.stdout.splitlines()[-1])
    slow = [f"{op}: {reason}" for op, (backend, reason) in chosen.items() if backend == "reference"]
    found: dict[str, Any] = {"backends": {op: backend for op, (backend, _) in chosen.items()}}
    return {**found, "ok": not slow, **({"error": "; ".join(slow)} if slow else {})}
