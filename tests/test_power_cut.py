"""What a power cut leaves of a run: every state that the calls of the run allow is made again, and gone on with.

A disk keeps of a file what was in it at its last fsync, and of a directory the names at its last fsync. It may keep
more: names that are newer, and files as long as they were, whose blocks were not written and read as zeros.
"""

import os
import threading
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pyvae.base.files import remove_leftovers
from pyvae.engine import checkpoint
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from tiny import Corner

RECIPE = Recipe(data="tiny", architecture="rainforth", batch_size=2, latents=2, steps=5, keep_at=(3,))


class Disk:
    """Records what is on the disk below a directory, before and after each call that brings something there."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.calls = []
        """(name of the call, name of the file)."""
        self.cuts = []
        """States of a cut, each {path: content}, directories None: the least that is kept; newer names and files cut
        at what is kept; newer names and zeros. With the step of the newest checkpoint that is promised."""
        self._contents = {}
        self._names = {}
        self._pins = {}
        self._promised = 0
        self._lock = threading.RLock()
        self._directory(root)
        for call in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, call, self._recorded(call, getattr(os, call)))

    def _recorded(self, call, function):
        def recorded(what, *more, **options):
            with self._lock:
                path = os.readlink(f"/proc/self/fd/{what}") if call == "fsync" else str((what, *more)[-1])
                if not path.startswith(str(self.root)):
                    function(what, *more, **options)
                    return
                self.calls.append((call, os.path.relpath(path, self.root)))
                self._cut()
                # the disk of this machine is not asked, which would take its time
                if call == "fsync":
                    self._keep(what)
                else:
                    function(what, *more, **options)
                self._cut()

        return recorded

    def _keep(self, descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            self._directory(path)
            if path.endswith("checkpoints"):
                self._promised = max(
                    (checkpoint.step_of(p) for p in checkpoint.paths(self.root / "run/checkpoints")),
                    default=0,
                )
        else:
            with open(path, "rb") as file:
                self._contents[self._inode(path)] = file.read()

    def _directory(self, path):
        self._names[self._inode(path)] = {entry.name: self._inode(entry.path) for entry in os.scandir(path)}

    def _inode(self, path):
        number = os.stat(path).st_ino
        # so that no other file is given this number
        if number not in self._pins:
            self._pins[number] = os.open(path, os.O_PATH), os.path.isdir(path)
        return number

    def _cut(self):
        live = {}
        for at, directories, files in os.walk(self.root):
            live |= {os.path.join(at, name): None for name in directories}
            live |= {os.path.join(at, name): self._inode(os.path.join(at, name)) for name in files}
        cut, zeros = {}, {}
        for path, number in live.items():
            name = os.path.relpath(path, self.root)
            kept = None if number is None else self._contents.get(number, b"")
            cut[name] = kept
            zeros[name] = kept if kept is None else kept.ljust(os.stat(path).st_size, b"\0")
        self.cuts.append((self._promised, [self._least(self.root), cut, zeros]))

    def _least(self, path, number=None):
        state = {}
        for name, inner in self._names.get(number or self._inode(path), {}).items():
            if self._pins[inner][1]:
                below = self._least(None, inner)
                state |= {name: None, **{os.path.join(name, key): value for key, value in below.items()}}
            else:
                state[name] = self._contents.get(inner, b"")
        return state

    def close(self):
        for descriptor, _ in self._pins.values():
            os.close(descriptor)


def go_on(path, steps):
    return train(
        RunDirectory.create_or_resume(path, replace(RECIPE, steps=steps)),
        Corner(),
        torch.device("cpu"),
        log_every=1,
        checkpoint_seconds=0,
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)
        go_on(root / "run", 3)
        # of what lies there
        go_on(root / "run", 5)
    disk.close()
    return disk


def states(recorded):
    """(step that is promised, state) of each cut, without those that are there already."""
    seen = set()
    for promised, kinds in recorded.cuts:
        for state in kinds:
            key = promised, hash(frozenset(state.items()))
            if key not in seen:
                seen.add(key)
                yield promised, state


def put(state, at):
    for name, content in sorted(state.items()):
        path = at / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return at / "run"


def steps_in_events(run):
    read = set()
    for path in run.events.iterdir():
        for event in EventFileLoader(str(path)).Load():
            if event.summary.value:
                read.add(event.step)
    return read


def test_after_every_cut_trace_and_events_are_not_behind_the_newest_checkpoint(recorded, tmp_path, caplog):
    whole = (recorded.root / "run/trace.csv").read_bytes().splitlines()
    found = 0
    for number, (promised, state) in enumerate(states(recorded)):
        path = put(state, tmp_path / str(number))
        if not (path / "checkpoints").exists():
            assert promised == 0
            continue
        run = RunDirectory.open(path)
        newest = run.resumable()
        step = newest.step if newest else 0
        assert step >= promised
        trace = (path / "trace.csv").read_bytes().splitlines()
        assert trace[: step + 1] == whole[: step + 1]
        if newest:
            assert newest.metadata["trace_rows"] == step
            assert steps_in_events(run) >= set(range(step))
        found += 1
    assert found > 50
    assert not caplog.messages


def test_what_a_cut_leaves_is_gone_on_with(recorded, tmp_path, caplog):
    # those with a checkpoint, and few, as each takes its time
    possible = [state for promised, state in states(recorded) if promised]
    assert len(possible) > 40  # how many differ, the threads decide
    chosen = possible[:: len(possible) // 8]
    whole = checkpoint.load_newest(recorded.root / "run/checkpoints")
    for number, state in enumerate(chosen):
        path = put(state, tmp_path / str(number))
        go_on(path, 5)
        newest = checkpoint.load_newest(path / "checkpoints")
        assert newest.step == 5
        assert all(torch.equal(tensor, newest.tensors[name]) for name, tensor in whole.tensors.items())
        assert (path / "trace.csv").read_bytes() == (recorded.root / "run/trace.csv").read_bytes()
        assert remove_leftovers(path / "checkpoints") == 0
    assert not caplog.messages


def test_the_order_of_calls(recorded):
    """Trace and events, then the checkpoint's content, its name, and the names of its directory."""
    names = [(call, name) for call, name in recorded.calls if call != "unlink"]
    at = [
        i for i, (call, name) in enumerate(names) if call == "replace" and name.startswith("run/checkpoints/")
    ]
    assert len(at) >= 5
    for i in at:
        before = names[at[at.index(i) - 1] if i > at[0] else 0 : i]
        (trace,) = [j for j, found in enumerate(before) if found == ("fsync", "run/trace.csv")][-1:]
        (events,) = [j for j, (call, name) in enumerate(before) if call == "fsync" and "tfevents" in name][
            -1:
        ]
        assert max(trace, events) < len(before) - 1
        assert before[-1][0] == "fsync"
        assert before[-1][1].startswith("run/checkpoints/.step-")
        assert names[i + 1] == ("fsync", "run/checkpoints")
    # a directory is made before what lies in it counts
    first = names[: at[0]]
    assert {("fsync", "run"), ("fsync", "."), ("fsync", "run/events")} <= set(first)
