"""Prove and measure pyvae on the GPU at hand: ``python benchmarks/gpu.py --minutes 11 --out DIR``.

pyvae need not be installed: torch, triton, numpy, h5py, safetensors, scipy, scikit-learn, matplotlib, pillow, tqdm,
tensorboard and pytest with xdist are enough, and nvcc for the CUDA operators. Stages run in the order of
benchmarks/gpu_stages/plan.py, each in a process of its own with a limit of its own. Every result is a line of
DIR/results.jsonl as soon as it is known, so a kill loses the case in hand alone, and a hang ends its case alone. What
benchmarks/results/gpu-*/ and DIR already hold of the code as it is, and was right, is not run again. DIR/summary.txt
says what failed and what to do next.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from checkout import ROOT, commit_of
from gpu_stages import results
from gpu_stages.plan import STAGES, Stage
from gpu_stages.summary import summary

NEEDS = (
    "make gpu needs an NVIDIA GPU with its driver, and a torch built with CUDA: none is here ({why}). "
    "On a CPU, --dry tries every stage at tiny sizes"
)
RESULTS = ROOT / "benchmarks/results"
_LEAST_SECONDS = 8.0
_GRACE_SECONDS = 4.0
_CLOSING_SECONDS = 3.0
_STAGE_CLOSING_SECONDS = 1.5
"""That a stage's own time ends before it is killed."""
_ALL, _OUT_OF_TIME = 0, 5
"""Exit statuses of a worker."""


class Worker:
    """A process that has imported torch and waits for a stage."""

    def __init__(self, log: IO[bytes], *, dry: bool) -> None:
        paths = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
        }
        environment.setdefault("OMP_NUM_THREADS", "4")
        for name in ("PYVAE_BACKEND", "PYVAE_CHECK", "TRITON_INTERPRET"):
            environment.pop(name, None)
        if dry:
            environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu_stages.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # so that what it started ends with it
        )

    def begin(self, order: dict[str, Any]) -> None:
        """Hand it its stage."""
        try:
            assert self._process.stdin
            self._process.stdin.write(f"{json.dumps(order)}\n".encode())
            self._process.stdin.flush()
        except OSError:
            pass  # it died on import: what it leaves tells

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None when it had to be killed."""
        try:
            return self._process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End it, without waiting long for one that the driver holds."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"process {self._process.pid} does not end", file=sys.stderr)


@dataclass
class _Running:
    """A stage under way."""

    stage: Stage
    start: float
    seconds: float
    since: int
    """Where in the file of results its lines begin."""
    worker: Worker | None = None

    @property
    def left(self) -> float:
        return self.start + self.seconds - time.monotonic()


class Call:
    """One call of this command: its time, its files, and what is known."""

    def __init__(self, out: Path, minutes: float, gpu: str) -> None:
        self.out = out
        self.path = out / results.NAME
        self.gpu = gpu
        self.dry = gpu == results.DRY
        self._end = time.monotonic() + 60 * minutes - _CLOSING_SECONDS
        self._torch = version_of("torch")
        self._commit = commit_of(ROOT)
        self._spare: Worker | None = None
        out.mkdir(parents=True, exist_ok=True)
        self._log = (out / "log.txt").open("ab")

    @property
    def left(self) -> float:
        """Seconds until the command ends."""
        return self._end - time.monotonic()

    def run(self, stages: list[Stage]) -> None:
        """Every stage that has something left to do, those beside each other together."""
        groups: list[list[Stage]] = []
        for stage in stages:
            if stage.beside and groups:
                groups[-1].append(stage)
            else:
                groups.append([stage])
        started: list[_Running] = []
        try:
            for group in groups:
                if self.left < _LEAST_SECONDS:
                    self._say(f"no time left for {', '.join(stage.name for stage in group)} and what follows")
                    break
                started = [found for stage in group if (found := self._start(stage))]
                for running in started:
                    self._finish(running)
        finally:
            for worker in (self._spare, *(running.worker for running in started)):
                if worker:
                    worker.kill()

    def _lines(self) -> list[results.Line]:
        return results.read(self.path) if self.dry else results.known(RESULTS, self.out)

    def _known(self, stage: Stage) -> dict[str, results.Line]:
        lines = self._lines()
        found = results.done(lines, stage, gpu=self.gpu, torch=self._torch)
        if stage.includes:
            part = next(other for other in STAGES if other.name == stage.includes)
            within = results.done(lines, part, gpu=self.gpu, torch=self._torch)
            found = {case: line for case, line in within.items() if case != "all"} | found
        return found

    def _start(self, stage: Stage) -> "_Running | None":
        known = self._known(stage)
        if "all" in known and not stage.always:
            self._say(f"{stage.name}: nothing is missing or stale")
            return None
        running = _Running(stage, time.monotonic(), min(stage.seconds, self.left), results.size(self.path))
        self._begin(running, set() if stage.always else set(known))
        return running

    def _begin(self, running: "_Running", skip: set[str]) -> None:
        running.worker, self._spare = self._spare or self._worker(), None
        running.worker.begin(
            {
                "stage": running.stage.name,
                "where": running.stage.where,
                "path": str(self.path.resolve()),
                "skip": sorted(skip),
                "end": running.start + running.seconds - _STAGE_CLOSING_SECONDS,
                "dry": self.dry,
                "common": self._common(running.stage),
            }
        )

    def _worker(self) -> Worker:
        return Worker(self._log, dry=self.dry)

    def _common(self, stage: Stage) -> dict[str, Any]:
        return {
            "stage": stage.name,
            "code": results.code_of(stage),
            "gpu": self.gpu,
            "torch": self._torch,
            "commit": self._commit,
        }

    def _finish(self, running: "_Running") -> None:
        """See a stage to its end; a case that ends its process is told, and another process goes on behind it."""
        stage, before = running.stage, -1
        while True:
            # the next one imports while this one runs
            self._spare = self._spare or self._worker()
            assert running.worker
            status = running.worker.wait(running.left)
            over = status in (_ALL, _OUT_OF_TIME, None)
            begun, ended = self._cases(running)
            for case in begun:
                self._tell(stage, case, None if over else status)
            if over:
                break
            if len(ended | begun) == before:
                self._tell(stage, "start", status)
                break
            if running.left < _LEAST_SECONDS:
                break
            before = len(ended | begun)
            known = set() if stage.always else set(self._known(stage))
            self._begin(running, known | ended | begun)
        how = {_ALL: "", _OUT_OF_TIME: ", its time was over", None: ", its time was over"}.get(
            status, ", broken off"
        )
        self._say(f"{stage.name}: {self._counts(running)}{how}, {time.monotonic() - running.start:.0f} s")

    def _cases(self, running: "_Running") -> tuple[set[str], set[str]]:
        """Cases of a stage that were begun in this call and never ended, and those that ended."""
        begun, ended = set(), set()
        for line in results.read(self.path, running.since):
            if line["stage"] == running.stage.name:
                (begun if "begun" in line else ended).add(line["case"])
        return begun - ended, ended

    def _tell(self, stage: Stage, case: str, status: int | None) -> None:
        """A line for a case that could not write its own."""
        line = {**self._common(stage), "time": results.now(), "case": case}
        if status is None:
            line["cut"] = True
        else:
            line |= {"ok": False, "error": f"its process ended with {status}: {self._last_words()}"}
        results.append(self.path, line)

    def _last_words(self) -> str:
        """What the log says of the last case; of a hang, where its main thread stood."""
        said = (self.out / "log.txt").read_text(errors="replace").split("\n-- ")[-1]
        hung = "hung in " if "Timeout (" in said else ""
        return hung + " ".join(said.split("most recent call first):")[-1].split())[:300]

    def _counts(self, running: "_Running") -> str:
        mine = [
            line
            for (name, case), line in results.newest(results.read(self.path, running.since)).items()
            if name == running.stage.name and case not in ("start", "all")
        ]
        failed = sum(line.get("ok") is False for line in mine)
        cut = sum("cut" in line for line in mine)
        parts = [f"{len(mine) - failed - cut} done"]
        parts += [f"{failed} FAILED"] if failed else []
        parts += [f"{cut} cut off"] if cut else []
        return ", ".join(parts)

    def _say(self, text: str) -> None:
        print(f"[{max(self.left, 0):4.0f} s left] {text}", flush=True)

    def close(self) -> None:
        """Write and print the summary."""
        text = summary(self._lines(), self.gpu, self._torch)
        (self.out / "summary.txt").write_text(text)
        print(text, end="", flush=True)


def version_of(package: str) -> str:
    """Of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def gpu_name() -> str:
    """Of the first GPU, asked of the driver: torch, which takes seconds to import, is for the stages.

    Raises:
        OSError: there is none; the message says why.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise OSError("no NVIDIA driver") from None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        raise OSError("the driver sees no GPU")
    if driver.cuDeviceGetName(name, len(name), device):
        raise OSError("the driver does not name its GPU")
    return name.value.decode()


def folder_of(gpu: str) -> Path:
    """Where the results of a card go: ``benchmarks/results/gpu-h100-80gb-hbm3``, say."""
    return RESULTS / "-".join(["gpu", *gpu.removeprefix("NVIDIA ").lower().split()])


def end_with_a_summary() -> None:
    """Of SIGTERM too, as timeout sends it: what is known is still summed up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=11.0, help="end after so many, summary included")
    parser.add_argument(
        "--out", type=Path, help="folder of the results; by default benchmarks/results/gpu-<card>"
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--dry", action="store_true", help="every stage at tiny sizes on a CPU; proves nothing of a GPU"
    )
    parser.add_argument("--check", action="store_true", help="only say whether there is a GPU")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error("--minutes must be more than 0")
    try:
        gpu = results.DRY if options.dry else gpu_name()
    except OSError as error:
        sys.exit(NEEDS.format(why=error))
    if options.check:
        return
    torch = version_of("torch")
    if not torch or (not options.dry and "+cpu" in torch):
        sys.exit(NEEDS.format(why=f"torch {torch} has no CUDA" if torch else "torch is not installed"))
    end_with_a_summary()
    out = options.out or (Path(tempfile.mkdtemp(prefix="pyvae-dry-")) if options.dry else folder_of(gpu))
    call = Call(out, options.minutes, gpu)
    try:
        call.run([stage for stage in STAGES if not options.only or stage.name in options.only])
    finally:
        call.close()
    if options.dry and "FAILED" in (out / "summary.txt").read_text():
        sys.exit(1)


if __name__ == "__main__":
    main()
