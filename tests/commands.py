"""Programs of tests without the seconds in which each would import torch and pyvae.

A server has imported both, and runs no operation: it forks for every program, which sets its folder, its environment
and its streams, and then runs and ends as any process of Python does, signals too. What a program finds imported,
compiled or set differs from a process of its own, and words have the same hashes in all of them.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn, TextIO

_AT_IMPORT = ("PYTHON", "LD_", "LC_", "LANG", "MPLBACKEND", "CUDA_VISIBLE_DEVICES")
"""How variables begin that are read when the server starts or imports: a program's are the server's."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Threads of a pool, once started, would be lost at a fork."""


class Command:
    """A program under way, as subprocess.Popen has it, whose output is kept in files."""

    def __init__(self, server: socket.socket, order: Mapping[str, object]) -> None:
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._line, far = socket.socketpair()
        with far:
            files = [far.fileno(), *(stream.fileno() for stream in self._streams)]
            socket.send_fds(server, [json.dumps(order).encode()], files)
        self._words = self._line.makefile("r")
        self.args = order["program"]
        self.returncode: int | None = None
        self.pid = int(self._words.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._words.readline())
            self._words.close()
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to standard output and to standard error."""
        self.wait(timeout)
        written = []
        for stream in self._streams:
            stream.seek(0)
            written.append(stream.read().decode())
            stream.close()
        return written[0], written[1]


def start(
    program: Sequence[object], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Command:
    """Python with what ``program`` names: ``-m MODULE`` or a file, then its arguments."""
    env = _plain(os.environ if env is None else env)
    server, known = _server()
    read = [x for x in {**known, **env} if x.startswith(_AT_IMPORT) and env.get(x) != known.get(x)]
    assert not read, f"read at import: {read}"
    order = {"program": [str(word) for word in program], "cwd": str(cwd or Path.cwd()), "env": env}
    return Command(server, order)


def run(
    program: Sequence[object],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured text."""
    command = start(program, cwd, env)
    try:
        out, err = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(command.args, command.returncode, out, err)


def _plain(env: Mapping[str, str]) -> dict[str, str]:
    """Without what this process alone is told: kernels of programs are not interpreted."""
    return {name: value for name, value in {**env, **_ONE_THREAD}.items() if name != "TRITON_INTERPRET"}


@cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """A server of this process, which ends with it, and its environment."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = _plain(os.environ)
    command = [sys.executable, __file__, str(far.fileno())]
    quiet = subprocess.DEVNULL  # a terminal would show lines before they are flushed
    with far:
        subprocess.Popen(command, env=env, pass_fds=[far.fileno()], stdin=quiet, stdout=quiet)
    return near, env


def _next_program(orders: socket.socket) -> list[str]:
    """Serves for as long as someone asks; each program leaves this function, in a process of its own."""
    while True:
        words, files, *_ = socket.recv_fds(orders, 1 << 20, 3)
        if not words:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    orders.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    line, *streams = files
    if (pid := os.fork()) != 0:
        # beside the program, to tell how it ended
        os.write(line, f"{pid}\n".encode())
        for file in streams:
            os.close(file)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # nobody may wait for it any more
            os.write(line, f"{status}\n".encode())
        os._exit(0)
    os.close(line)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for at, file in enumerate(streams, start=1):
        os.dup2(file, at)
        os.close(file)
    order = json.loads(words)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    sys.modules["torch"].default_generator.seed()  # as each process draws one of its own
    return order["program"]


def _prepare() -> None:
    """All that programs import, and nothing that starts a thread, which a fork would lose."""
    import torch.utils.tensorboard  # noqa: F401

    import pyvae.cli  # noqa: F401

    assert threading.active_count() == 1
    assert len(os.listdir("/proc/self/task")) == 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    gc.freeze()  # memory that is never written is never copied


def _run(program: list[str]) -> int:
    """What the program ends with, as Python takes it."""
    sys.argv = program
    try:
        if program[0] == "-m":
            del sys.argv[0]
            sys.path[0] = os.getcwd()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return (ended.code or 0) & 0xFF
        sys.stderr.write(f"{ended.code}\n")
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(status: int) -> NoReturn:
    """Without taking apart all that the server has imported, which takes as long as importing it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    written = _flush(sys.stdout)
    gc.collect()  # what the program has left, whose files end with it; the rest is frozen
    if not (_flush(sys.stdout) and written):
        status = 120
    _flush(sys.stderr)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _flush(stream: TextIO | None) -> bool:
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except Exception as error:
        sys.stderr.write(f"Exception ignored in: {stream!r}\n")
        sys.excepthook(type(error), error, error.__traceback__)
        return False
    return True


if __name__ == "__main__":
    _prepare()
    _end(_run(_next_program(socket.socket(fileno=int(sys.argv[1])))))
