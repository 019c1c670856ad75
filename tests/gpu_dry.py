"""A dry run of benchmarks/gpu.py whose stages are forked from this process, which has imported what they need.

``TRITON_INTERPRET=1 python gpu_dry.py --dry ...``: else each of some forty would import torch anew.
"""

import gc
import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpu  # noqa: E402
import interpreter  # noqa: E402
from gpu_stages import worker  # noqa: E402
from gpu_stages.plan import STAGES  # noqa: E402


class Forked:
    """As much of subprocess.Popen as gpu.Worker uses."""

    def __init__(self, command, *, stdout, env, cwd, **_):
        assert command == [sys.executable, "-m", worker.__name__]
        its, ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for file, as_file in ((its, 0), (stdout.fileno(), 1), (stdout.fileno(), 2)):
                os.dup2(file, as_file)
            os.closerange(3, 256)  # the other stages' streams, which end with this process alone
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            try:
                worker.main()
            except SystemExit as ended:
                os._exit(ended.code)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(0)
        os.close(its)
        self.stdin = open(ours, "wb")  # noqa: SIM115
        self._status = None

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.pid, seconds)
            else:
                time.sleep(0.01)
        return self._status


def main():
    for stage in STAGES:
        importlib.import_module(stage.where)
    interpreter.quicken(pytest.MonkeyPatch())
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()
    gpu.subprocess = SimpleNamespace(
        Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    gpu.main()


if __name__ == "__main__":
    main()
