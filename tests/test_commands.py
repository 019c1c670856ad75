"""Programs of the server are those of processes of their own."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import commands

SAYS = """
import atexit, os, sys, threading, time
print(sys.argv[1:], os.getcwd(), os.environ.get("SAID"), __name__, sys.path[0], os.isatty(0), sys.stdin.read())
atexit.register(print, "left")
threading.Thread(target=lambda: (time.sleep(0.1), print("and the thread"))).start()
class Left:
    def __init__(self):
        Left.self = self
    def __del__(self):
        print("taken apart")
        raise KeyError
def end(code):
    {end}
end(int(sys.argv[1]))
"""


def both(words, tmp_path, env=None):
    """What the server's program ended with, then that of an own process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    env.pop("TRITON_INTERPRET", None)
    alone = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return [(d.returncode, d.stdout, d.stderr) for d in (commands.run(words, tmp_path, env), alone)]


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit(code)",
        "sys.exit('a word')",
        "sys.exit(-15)",
        "sys.stdout.close()",
        "Left()",
        "raise KeyError(code)",
        "raise KeyboardInterrupt",
        "os.kill(os.getpid(), 9)",
        "os._exit(code)",
    ],
)
def test_a_script_ends_as_alone(tmp_path, end):
    (tmp_path / "says.py").write_text(SAYS.format(end=end))
    ours, alone = both(["says.py", "3", "x y"], tmp_path, {"SAID": "ä"})
    # a traceback begins with what called the script
    assert ours[:2] == alone[:2]
    assert ours[2].splitlines()[-1:] == alone[2].splitlines()[-1:]


def test_pyvae_is_as_alone(tmp_path):
    """Output, messages and files of commands, through `python -m pyvae`."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    env = {"PYVAE_CACHE": str(tmp_path / "cache"), "COLUMNS": "100"}
    for line in ("train vae --steps x", "report nowhere"):
        ours, alone = both(["-m", "pyvae", *line.split()], tmp_path, env)
        assert ours == alone, line
    tiny = (
        "train vae --data images.npy --architecture mlp --image-size 8 --latents 2 --batch-size 4 --steps 3"
    )
    for out, program in (("ours", commands.run), ("alone", None)):
        words = ["-m", "pyvae", *tiny.split(), "--out", out]
        if program:
            done = program(words, tmp_path, {**os.environ, **env})
        else:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=tmp_path,
                env={**os.environ, **env},
                capture_output=True,
                text=True,
            )
        assert done.returncode == 0, done.stderr
    traces = [(tmp_path / out / "trace.csv").read_bytes() for out in ("ours", "alone")]
    assert traces[0] == traces[1]


def test_signals_reach_it(tmp_path):
    (tmp_path / "waits.py").write_text("import time\nopen('there', 'w')\ntime.sleep(100)")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        command = commands.start(["waits.py"], tmp_path)
        while not (tmp_path / "there").exists():
            time.sleep(0.01)
        assert command.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(0.01)
        command.send_signal(number)
        assert command.wait(10) == command.poll() == -number
        (tmp_path / "there").unlink()


def test_each_draws_numbers_of_its_own(tmp_path):
    (tmp_path / "draws.py").write_text(
        "import random, torch, numpy\nprint(random.random(), torch.rand(1).item(), numpy.random.rand())"
    )
    drawn = [commands.run(["draws.py"], tmp_path).stdout.split() for _ in range(2)]
    assert [len(numbers) for numbers in drawn] == [3, 3]
    assert not set(drawn[0]) & set(drawn[1])


@pytest.mark.parametrize("name", ["MPLBACKEND", "PYTHONHASHSEED", "LC_ALL"])
def test_what_is_read_at_import_cannot_be_asked_for(tmp_path, name):
    with pytest.raises(AssertionError, match=f"'{name}'"):
        commands.run(["-m", "pyvae", "--version"], tmp_path, {**os.environ, name: "1"})
