"""A process that has imported what stages need and waits for its order, a line of JSON on its input."""

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from gpu_stages.cases import Cases, OutOfTimeError


def _end_with_the_parent() -> None:
    # a command that is killed must not leave its stage behind on the device
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _as_it_is(module: Any, **_: Any) -> Any:
    """Stands in for torch.compile, which takes half a minute a network."""
    return module


def main() -> None:
    importlib.import_module("pyvae.engine.training")
    text = sys.stdin.readline()
    if not text:
        return
    order = json.loads(text)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    device = torch.device("cpu" if order["dry"] else "cuda")
    cases = Cases(
        Path(order["path"]), order["common"], set(order["skip"]), order["end"], device, dry=order["dry"]
    )
    if order["dry"]:
        torch.compile = _as_it_is  # type: ignore[assignment]
    run = getattr(importlib.import_module(order["where"]), order["stage"])
    cases.emit("start")
    try:
        run(cases)
    except OutOfTimeError:
        sys.exit(5)
    cases.emit("all")
    sys.stdout.flush()
    os._exit(0)  # what fails in leaving is no failure of the stage


if __name__ == "__main__":
    main()
