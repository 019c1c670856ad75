"""Lines of results: written as soon as they are known, read again by the next call."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_stages.plan import Stage

ROOT = Path(__file__).resolve().parents[2]
NAME = "results.jsonl"
DRY = "dry run on a CPU"
"""The card of what was only tried."""
Line = dict[str, Any]


def append(path: Path, line: Line) -> None:
    """Add a line that is on the disk when this returns; a kill leaves it whole or, if torn, to be skipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(line, default=str) + "\n").encode()
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # stages may run beside each other
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                text = b"\n" + text
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def read(path: Path, start: int = 0) -> list[Line]:
    """The whole lines of a file from a byte on, oldest first; none where there is no file."""
    if not path.is_file():
        return []
    found = []
    for text in path.read_bytes()[start:].split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # torn by a kill
        # those of another version may be anything
        if isinstance(line, dict) and all(isinstance(line.get(k), str) for k in ("stage", "case", "time")):
            found.append(line)
    return found


def known(results: Path, *others: Path) -> list[Line]:
    """Lines of every ``gpu-*`` folder of results and of other folders, oldest first."""
    files = {path.resolve() for path in [*results.glob(f"gpu-*/{NAME}"), *(out / NAME for out in others)]}
    lines = [line for path in sorted(files) for line in read(path)]
    return sorted(lines, key=lambda line: str(line.get("time", "")))


def code_of(stage: Stage) -> str:
    """Changes with the files that the stage's results depend on."""
    digest = hashlib.sha256()
    for path in sorted(_files((*stage.reads, f"benchmarks/{stage.where.replace('.', '/')}.py"))):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _files(patterns: Iterable[str]) -> Iterator[Path]:
    seen = set()
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            if path.is_file() and path not in seen and "__pycache__" not in path.parts:
                seen.add(path)
                yield path


def newest(lines: Iterable[Line]) -> dict[tuple[str, str], Line]:
    """The last line of each case, by stage and case; that it began is none."""
    found: dict[tuple[str, str], Line] = {}
    for line in lines:
        if "begun" not in line and "case" in line:
            found.pop(key := (line["stage"], line["case"]), None)
            found[key] = line
    return found


def is_good(line: Line) -> bool:
    """Whether a case came to its end and was right."""
    return "cut" not in line and line.get("ok", True) is True


def done(lines: Iterable[Line], stage: Stage, *, gpu: str, torch: str) -> dict[str, Line]:
    """Cases of a stage that need not be run again: right, of the code as it is, of this torch, and times of this card.

    The case "all" among them says that the stage came to its end.
    """
    code = code_of(stage)
    mine = {
        case: line
        for (name, case), line in newest(lines).items()
        if name == stage.name
        and (line.get("code"), line.get("torch")) == (code, torch)
        and (line.get("gpu") == gpu or not (stage.per_card or line.get("gpu") in (None, DRY)))
    }
    good = {case: line for case, line in mine.items() if is_good(line)}
    if len(good) < len(mine):
        good.pop("all", None)  # what failed is tried again
    return good


def now() -> str:
    """The time in UTC, as text that sorts."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1000:06d}Z"
