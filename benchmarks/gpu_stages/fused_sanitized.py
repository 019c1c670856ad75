"""A step of the fused engine under compute-sanitizer: memory, races in shared memory, what nobody has written."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from checkout import ROOT
from gpu_stages.cases import Cases, Values
from gpu_stages.fused_run import Run, Way, plan_of

TOOLS = ("memcheck", "racecheck", "initcheck")
IMAGES = 16
_SECONDS = 50.0
_FOUND = 9
"""Exit status of a tool that found something."""
_WORKSPACE = ("activations", "gradients", "stats", "kl_parts", "nll_parts", "squares", "batch")
"""What a step writes before it reads it."""


def fused_sanitized(case: Cases) -> None:
    """Each tool, all at once, where compute-sanitizer is; else the step alone."""
    tool = sanitizer()
    if tool is None or case.dry:
        case("compute-sanitizer", lambda: {"skipped": "compute-sanitizer is not on the path", **_alone(case)})
        return
    command = [sys.executable, "-m", "gpu_stages.fused_sanitized"]
    checks = {}
    try:
        for name in TOOLS:
            if name not in case.skipped:
                checks[name] = Check(
                    [str(tool), "--tool", name, "--error-exitcode", str(_FOUND), *command], case.out
                )
        for name, check in checks.items():
            case(name, check.result, _SECONDS + 10)
    finally:
        for check in checks.values():
            check.end()


def sanitizer() -> Path | None:
    """Where compute-sanitizer is, if anywhere."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = os.pathsep.join(f"{home}/bin" for home in homes if home)
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=places)
    return Path(found) if found else None


class Check:
    """A tool at work on a step."""

    def __init__(self, command: list[str], out: Path) -> None:
        self._log = (out / f"{command[2]}.tmp.txt").open("w+")
        # each buffer is an allocation of its own, whose ends and first writes are seen
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        self._end = time.monotonic() + _SECONDS
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def result(self) -> Values:
        """Whether it found nothing; a tool that takes too long is tried again by the next call."""
        try:
            status = self._process.wait(max(self._end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            return {"cut": True, "why": f"took more than {_SECONDS:g} s"}
        self._log.seek(0)
        said = [line for line in self._log.read().splitlines() if line.strip()]
        if status == 0:
            return {"ok": True, "said": said[-1:]}
        first = [line for line in said if line.startswith("=========")] or said
        how = "found" if status == _FOUND else f"ended with {status}"
        return {"ok": False, "error": f"{how}: {' '.join([*first[:8], *said[-2:]])}"[:600]}

    def end(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)


def _alone(case: Cases) -> Values:
    return {"ok": a_step(case.device, dry=case.dry)}


def a_step(device: torch.device, *, dry: bool) -> bool:
    """A step of two members from a workspace that nothing was written to; whether all of it was finite."""
    plan = plan_of(Way(), dry=dry, images=IMAGES)
    store = torch.randint(2**62, (64, 64), device=device)
    run = Run(plan, store, (0, 1), whole=not dry)
    buffers = run.members.buffers
    for name in () if dry else _WORKSPACE:
        buffers[name] = torch.empty_like(buffers[name])
    run.advance(1, capture=False)
    return not bool(buffers["flags"].any())


if __name__ == "__main__":
    if not a_step(torch.device("cuda"), dry=False):
        sys.exit("the step was not finite")
