"""Checkpoints: one safetensors file of everything a run needs to go on, with its description in the header.

Nothing is ever unpickled. A file appears whole or not at all, and the one before it is kept. Its header has a checksum
of everything else in it, so that what is read is what was written.
"""

import contextlib
import json
import logging
import math
import os
import platform
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

import torch
from torch import Tensor

from pyvae.base.files import NotRegularError, open_regular
from pyvae.engine.files import cause_of, make_directory, set_aside, sync_path, write_atomically
from pyvae.engine.plain import checked, parse_json
from pyvae.engine.trace import HostCopy, to_host
from pyvae.errors import RunError

_LOG = logging.getLogger(__name__)
_KEPT = 2
_NAME = re.compile(r"step-(\d{12,18})\.safetensors")
_ON_A_CPU = " CPU, "
# the format's own limit
_LONGEST_HEADER = 100_000_000


class Checkpoint(NamedTuple):
    """Tensors by name, and what they are."""

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class _Required(TypedDict):
    step: int
    data: str
    image_shape: tuple[int, int, int]


class Metadata(_Required, total=False):
    """What a checkpoint says of itself; ``step``, ``data`` and ``image_shape`` at least."""

    recipe: dict[str, Any]
    seconds: float
    device: str
    engine: str
    convolutions: str
    """What computes them: "native", pyvae's own for CPUs, or "native+linear", with linear layers beside them; "torch";
    "cudnn"; or "none", where a network has none that pyvae's own would take. The fused engine does not say."""
    convolutions_before: list[tuple[str, int]]
    """Others that the run has gone on from, each with the step that it took them until."""
    versions: dict[str, str]
    trace_rows: int


class _Tensor(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def save(directory: Path, checkpoint: Checkpoint, keep: int | None = _KEPT) -> Path:
    """Write ``step-<number>.safetensors`` and remove all but the newest ``keep``; None keeps all.

    Raises:
        RunError: the file cannot be written; the earlier ones survive.
    """
    from safetensors.torch import save as serialise

    make_directory(directory)
    path = path_of(directory, checkpoint.step)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    description = json.dumps({**checkpoint.metadata, "step": checkpoint.step})
    header = {"pyvae": description, "checksum": _checksum(description, tensors)}
    write_atomically(path, serialise(tensors, header))
    for old in paths(directory)[:-keep] if keep else ():
        # one more than is needed does no harm
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def _checksum(description: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the description and of every tensor's name, dtype, shape and bytes: 4 GB/s, where SHA-256 has 2."""
    crc = zlib.crc32(description.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"crc32:{crc:08x}"


class DamagedError(RunError):
    """A checkpoint does not hold what was written."""


class Saver:
    """Writes checkpoints on another thread: the device stops for no longer than a copy in its own memory."""

    def __init__(self, directory: Path, writer: Executor, rest_on: Sequence[Callable[[], None]] = ()) -> None:
        """Into ``directory``, by ``writer``, which others may share; before a checkpoint takes its name, ``rest_on``
        brings to the disk what it stands on."""
        self._directory = directory
        self._rest_on = rest_on
        self._writer = writer
        self._writing: tuple[int, Future[Path]] | None = None
        self._reached = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Start writing the tensors as they are now.

        Raises:
            RunError: the checkpoint before could not be written.
        """
        self.wait()
        alike: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        for name, tensor in checkpoint.tensors.items():
            alike.setdefault((tensor.device, tensor.dtype), {})[name] = tensor.detach()
        # a hundred tensors by themselves would cost a GPU's host milliseconds, for each of an ensemble's members
        copies = [
            (
                {name: x.shape for name, x in held.items()},
                to_host(torch.cat([x.reshape(-1) for x in held.values()])),
            )
            for held in alike.values()
        ]
        # the device's memory is free for others while this is written
        self._writing = (
            checkpoint.step,
            self._writer.submit(self._write, checkpoint._replace(tensors={}), copies),
        )

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

    def _write(self, about: Checkpoint, copies: list[tuple[dict[str, torch.Size], HostCopy]]) -> Path:
        tensors: dict[str, Tensor] = {}
        for shapes, copy in copies:
            parts = copy.wait().split([shape.numel() for shape in shapes.values()])
            tensors |= {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        if not self._reached:
            sync_path(self._directory)
            self._reached = True
        for sync in self._rest_on:
            sync()
        return save(self._directory, about._replace(tensors=tensors))


def path_of(directory: Path, step: int) -> Path:
    """The file of a step."""
    return directory / f"step-{step:012d}.safetensors"


def step_of(path: Path) -> int:
    """The step of a file."""
    return int(path.stem.removeprefix("step-"))


def paths(directory: Path) -> list[Path]:
    """Checkpoint files, oldest first.

    Raises:
        RunError: the directory cannot be read.
    """
    try:
        found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {directory}: {cause_of(error)}; there should be checkpoints") from error
    return sorted(found, key=step_of)


def load_newest(directory: Path, *, repair: bool = False, tell: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint, or None where there is none at all.

    Args:
        directory: of the checkpoints.
        repair: rename damaged files, so that they are neither counted nor written over. For who holds the run.
        tell: of damaged ones that are newer.

    Raises:
        RunError: there are checkpoints, and none is whole; the message says what to do.
    """
    damaged: list[tuple[Path, RunError]] = []
    for path in reversed(paths(directory)):
        try:
            found = load(path)
        except DamagedError as error:
            if not os.path.lexists(path):
                # training has written newer ones since they were listed, and removed this
                return load_newest(directory, repair=repair, tell=tell)
            damaged.append((path, error))
            continue
        for later, problem in damaged:
            if tell:
                _LOG.warning("%s: taking the one before, of step %s", problem, f"{found.step:,}")
            if repair:
                set_aside(later)
        return found
    if damaged:
        more = f", nor is any of the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
        raise RunError(
            f"{damaged[0][1]}{more}: put back a copy of {directory}, or remove it to train from the first step on"
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        DamagedError: the file is not what was written, or foreign.
        RunError: it cannot be read, whatever it holds.
    """
    try:
        return _read(path)
    except (FileNotFoundError, NotRegularError) as error:
        raise DamagedError(f"{path} is not a whole checkpoint ({cause_of(error)})") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {cause_of(error)}") from error
    except ValueError as error:
        raise DamagedError(f"{path} is not a whole checkpoint ({error})") from error


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    # not by its path: mapped into memory, a file that is cut short meanwhile would end the process
    with open_regular(path) as file:
        start, about, size = _start(file)
        content = start + file.read(size)
    try:
        tensors = deserialise(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"no safetensors file: {str(error).splitlines()[0]}") from error
    # of earlier versions there is none
    if about.get("checksum", sums := _checksum(about["pyvae"], tensors)) != sums:
        raise ValueError("its checksum is another: a part of it has changed since it was written")
    metadata = _description(path, about["pyvae"])
    return Checkpoint(metadata.pop("step"), tensors, metadata)


def _start(file: BinaryIO) -> tuple[bytes, dict[str, str], int]:
    """What stands before the tensors, the description in it, and the bytes that follow.

    Raises:
        ValueError: it is no checkpoint, or cut short.
    """
    content = file.read(8)
    length = int.from_bytes(content, "little")
    if len(content) < 8 or not 2 <= length <= _LONGEST_HEADER:
        raise ValueError("no safetensors file")
    header = file.read(length)
    parts = checked(parse_json(header), dict[str, Any], "its header")
    about = checked(parts.pop("__metadata__", {}), dict[str, str], "its description")
    parts = checked(parts, dict[str, _Tensor], "its header")
    size = max((part["data_offsets"][1] for part in parts.values()), default=0)
    # before it is read: a hole of terabytes costs its maker nothing
    if size != os.fstat(file.fileno()).st_size - 8 - length:
        raise ValueError("cut short, or of another size than it says")
    if "pyvae" not in about:
        raise ValueError("a safetensors file, but none of pyvae's")
    return content + header, about, size


def newest_description(directory: Path) -> dict[str, Any] | None:
    """The :class:`Metadata` of the newest checkpoint, whose tensors are not read; None where there is none, or the
    newest is damaged as far as its header shows.

    Raises:
        RunError: the directory cannot be read.
    """
    for path in paths(directory)[-1:]:
        with contextlib.suppress(OSError, ValueError), open_regular(path) as file:
            return _description(path, _start(file)[1]["pyvae"])
    return None


def _description(path: Path, text: str) -> dict[str, Any]:
    metadata = checked(parse_json(text.encode()), Metadata)
    if metadata["step"] != step_of(path):
        raise ValueError(f"it says that it is of step {metadata['step']}")
    channels, *sides = metadata["image_shape"]
    if channels not in (1, 3) or min(sides) < 1:
        raise ValueError(f"image_shape cannot be {metadata['image_shape']}")
    if not (0 <= metadata.get("seconds", 0.0) < math.inf):
        raise ValueError(f"seconds cannot be {metadata['seconds']}")
    if metadata.get("trace_rows", 0) < 0:
        raise ValueError(f"trace_rows cannot be {metadata['trace_rows']}")
    return metadata


def engine_of(metadata: Mapping[str, Any]) -> str:
    """The engine that trained a checkpoint; versions that did not say had torch's alone."""
    return str(metadata.get("engine", "torch"))


def convolutions_in(metadata: Mapping[str, Any]) -> str:
    """What computed the convolutions up to a checkpoint of the torch engine; versions that did not say had torch's on a
    CPU and cuDNN's on a GPU."""
    if "convolutions" in metadata:
        return str(metadata["convolutions"])
    return "torch" if _ON_A_CPU in metadata.get("device", _ON_A_CPU) else "cudnn"


def device_name(device: torch.device) -> str:
    """What a checkpoint says of the device that a run is trained on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}{_ON_A_CPU}{torch.get_num_threads()} threads"


def check_fit(held: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that are not those which a network or a trainer has, by name, shape and dtype.

    An optimiser has moments only when it has made a step: those are held to the parameter they are of.

    Raises:
        RunError: one is missing or another; the line begins with ``what``.
    """
    for name, tensor in wanted.items():
        if name not in held:
            raise RunError(f"{what} does not fit its recipe: it has no {name}")
        _check_like(held[name], tensor, f"{what} does not fit its recipe: {name}")
    for name, tensor in held.items():
        module, moment_of, rest = name.partition(".optimizer.")
        parameter = wanted.get(f"{module}.{rest.rpartition('.')[0]}")
        if moment_of and parameter is not None and tensor.ndim:
            _check_like(tensor, parameter, f"{what} does not fit its recipe: {name}")


def _check_like(held: Tensor, wanted: Tensor, what: str) -> None:
    if (held.shape, held.dtype) != (wanted.shape, wanted.dtype):
        there, here = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (held, wanted))
        raise RunError(f"{what} is {there}, and should be {here}")
