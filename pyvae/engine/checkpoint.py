"""Checkpoints: one safetensors file of everything a run needs to go on, with its description in the header.

Nothing is ever unpickled. A file appears whole or not at all, and the one before it is kept.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pyvae.engine.files import write_atomically
from pyvae.engine.trace import HostCopy, to_host
from pyvae.errors import RunError

_KEPT = 2
_PATTERN = "step-*.safetensors"


class Checkpoint(NamedTuple):
    """Tensors by name, and what they are."""

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def save(directory: Path, checkpoint: Checkpoint, keep: int | None = _KEPT) -> Path:
    """Write ``step-<number>.safetensors`` and remove all but the newest ``keep``; None keeps all.

    Raises:
        RunError: the file cannot be written; the earlier ones survive.
    """
    from safetensors.torch import save as serialise

    directory.mkdir(parents=True, exist_ok=True)
    path = path_of(directory, checkpoint.step)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    header = {"pyvae": json.dumps({"step": checkpoint.step, **checkpoint.metadata})}
    write_atomically(path, serialise(tensors, header))
    for old in paths(directory)[:-keep] if keep else ():
        old.unlink(missing_ok=True)
    return path


class Saver:
    """Writes checkpoints on a thread of its own: the device stops for no longer than a copy in its own memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pyvae-save")
        self._writing: tuple[int, Future[Path]] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Start writing the tensors as they are now.

        Raises:
            RunError: the checkpoint before could not be written.
        """
        self.wait()
        copies = {name: to_host(tensor.detach()) for name, tensor in checkpoint.tensors.items()}
        self._writing = checkpoint.step, self._writer.submit(self._write, checkpoint, copies)

    def wait(self) -> int | None:
        """Wait for what is being written; returns its step, None when nothing was.

        Raises:
            RunError: it could not be written; the earlier ones survive.
        """
        if self._writing is None:
            return None
        (step, writing), self._writing = self._writing, None
        writing.result()
        return step

    def _write(self, checkpoint: Checkpoint, copies: dict[str, HostCopy]) -> Path:
        tensors = {name: copy.wait() for name, copy in copies.items()}
        return save(self._directory, checkpoint._replace(tensors=tensors))


def path_of(directory: Path, step: int) -> Path:
    """The file of a step."""
    return directory / f"step-{step:012d}.safetensors"


def step_of(path: Path) -> int:
    """The step of a file."""
    return int(path.stem.removeprefix("step-"))


def paths(directory: Path) -> list[Path]:
    """Checkpoint files, oldest first."""
    return sorted(directory.glob(_PATTERN))


def load_newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint, or None where there is none.

    Raises:
        RunError: the newest file is not a whole checkpoint; the message says what to remove.
    """
    found = paths(directory)
    return load(found[-1]) if found else None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        RunError: the file is truncated or foreign.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["pyvae"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(metadata.pop("step"), tensors, metadata)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(
            f"{path} is not a whole checkpoint ({type(error).__name__}); remove it to go on from the one before"
        ) from error
