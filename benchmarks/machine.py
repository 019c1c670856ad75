"""Where and with what a result was measured."""

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import pyvae
from checkout import ROOT, commit_of
from pyvae.base import processor
from pyvae.engine.files import write_atomically
from pyvae.nets.convolutions import arithmetic


def describe(threads: list[int] | None = None) -> dict[str, Any]:
    """Hardware, versions, commit and date; the numbers of threads, where they are others than torch's own."""
    return {
        "cpu": processor.name(),
        "threads": threads or torch.get_num_threads(),
        "convolutions": ", ".join(arithmetic(torch.device("cpu"), torch.float32)[:2]),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyvae": pyvae.__version__,
        "commit": commit_of(ROOT),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def save(
    out: Path | None, threads: list[int] | None = None, *, indent: int | None = 1, **content: Any
) -> None:
    """Write what was measured, and where, if ``out`` names a file: whole, whenever the process may be killed."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": describe(threads), **content}, indent=indent)
        write_atomically(out, f"{text}\n".encode())
