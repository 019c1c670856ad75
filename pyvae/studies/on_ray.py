"""A study on a Ray cluster: groups and scores are tasks, and results lie on a path that all nodes share."""

import contextlib
import importlib.util
import os
import platform
import queue
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import pyvae
from pyvae.errors import PyvaeError, reason
from pyvae.studies.child import Child, GoneError
from pyvae.studies.groups import Group, fits_of, pack
from pyvae.studies.plan import Model
from pyvae.studies.work import (
    ModelOutcome,
    OutOfRoomError,
    Scored,
    Settings,
    dataset_of,
    device_of,
    scored,
    train_group,
)

_RETRIES = 5
"""Of a task whose worker was lost; each goes on from the newest checkpoints."""
_PATIENCE_SECONDS = 150.0
"""A lock of a worker that was lost with its node goes when the file system gives its lease up: on NFS after 90."""
_NODE_SECONDS = 60.0
_STOP_SECONDS = 30.0
_SCORING_GPU = 0.1
"""Of each GPU, left free by training, so that scores need not wait for it."""
_STORE_BYTES = 128 << 20
"""Of a local cluster: what goes through it are recipes and rows."""
LOG = ".ray.log"
"""In the directory of the study: what Ray says."""


class RayPlace:
    """A Ray cluster.

    Args:
        address: "local" for one on this machine that ends with the study, or that of a running one, ``host:port`` or
            "auto".
        num_gpus: of a group, 1 or a part of one; by default 1 where the cluster has GPUs, and ``num_cpus`` is not
            given.
        num_cpus: of a group, 1 by default; as many threads are used.
        head_seconds: for which the head may not answer before it is given up.

    Raises:
        PyvaeError: Ray is not installed, or a number cannot be.
    """

    def __init__(
        self,
        address: str,
        *,
        num_gpus: float | None = None,
        num_cpus: float | None = None,
        head_seconds: float = 20.0,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise PyvaeError("--ray needs Ray: pip install 'pyvae-engine[ray]'")
        if num_gpus is not None and not 0 <= num_gpus <= 1:
            raise PyvaeError(f"--num-gpus must be from 0 to 1, a group being on one GPU, got {num_gpus:g}")
        if num_cpus is not None and not num_cpus > 0:
            raise PyvaeError(f"--num-cpus must be above 0, got {num_cpus:g}")
        self._cluster = _Cluster(address, num_gpus, num_cpus, head_seconds)
        self._done: deque[Scored] = deque()
        self._to_be_scored: set[str] = set()
        self._child: Child | None = None

    def open(self, out: Path, settings: Settings) -> None:
        """Reach the cluster, and have every node prove that it sees ``out``.

        Raises:
            PyvaeError: a node does not see it or has another pyvae, or there is no cluster at the address.
        """
        if settings.device not in ("auto", "cpu", "cuda"):
            raise PyvaeError(
                f"--device {settings.device}: on Ray every group is given its GPU; leave --device out"
            )
        if settings.device == "cpu" and self._cluster.num_gpus is None:
            self._cluster = self._cluster._replace(num_gpus=0.0)
        settings = replace(settings, patience=_PATIENCE_SECONDS)
        self._out = out
        self._child = Child(_drive, self._cluster, out, settings, log=out / LOG)
        self._take(None)

    def pack(self, models: Sequence[Model]) -> Sequence[Group]:
        """Groups for the devices of the cluster, one of which is looked at."""
        self._send(("pack", tuple(models)))
        while (message := self._take(None)) is None or not isinstance(message, _Packed):
            self._keep(message)
        return message.groups

    def train(self, groups: Sequence[Sequence[Model]]) -> Iterator[list[ModelOutcome]]:
        """Train groups wherever there is room, and yield the outcomes of each as it ends."""
        for group in groups:
            self._send(("train", tuple(group)))
        left = len(groups)
        while left:
            message = self._take(None)
            if isinstance(message, Scored):
                self._keep(message)
                yield []
            else:
                left -= 1
                yield message

    def score(self, model: Model) -> None:
        """Have a model scored by a task of its own."""
        self._to_be_scored.add(model.name)
        self._send(("score", model))

    def scored(self, *, wait: bool) -> Iterator[Scored]:
        """Those that have been scored since; ``wait``: all that were to be."""
        while self._done or (wait and self._to_be_scored):
            if not self._done:
                self._keep(self._take(None))
                continue
            found = self._done.popleft()
            self._to_be_scored.discard(found.model)
            yield found

    def close(self, *, finished: bool) -> None:
        """Leave the cluster, or end it, if it is a local one; tasks save first what they have."""
        if self._child is not None:
            self._child.close(_STOP_SECONDS + 10)

    def _keep(self, message: Any) -> None:
        if isinstance(message, Scored):
            self._done.append(message)

    def _send(self, message: Any) -> None:
        assert self._child is not None
        self._child.send(message)

    def _take(self, timeout: float | None) -> Any:
        assert self._child is not None
        try:
            message = self._child.take(timeout)
        except GoneError:
            raise PyvaeError(_gone(self._cluster.address, self._out)) from None
        if isinstance(message, PyvaeError):
            raise message
        return message


class _Packed(NamedTuple):
    groups: Sequence[Group]


class _Cluster(NamedTuple):
    """How to reach a cluster, and what a group takes of it."""

    address: str
    num_gpus: float | None
    num_cpus: float | None
    head_seconds: float


def _gone(address: str, out: Path) -> str:
    return (
        f"the Ray cluster ({address}) is gone, and what it said is in {out / LOG}: what was trained is saved; "
        "start it, and run the same command again"
    )


# From here on: in the process that talks to Ray, which ends a process whose head is gone.


def _drive(
    inbox: "queue.Queue[Any]",
    send: Callable[[Any], None],
    cluster: _Cluster,
    out: Path,
    settings: Settings,
) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "pyvae"}
    if cluster.address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        _check_address(cluster.address)
        ray.init(address=cluster.address, **options)
    except Exception as error:
        send(
            PyvaeError(
                f"no Ray cluster can be reached at {cluster.address} ({reason(error)}): start one with `ray start "
                "--head`, or give --ray local"
            )
        )
        return
    threading.Thread(target=_watch_head, args=(send, cluster, out), daemon=True).start()
    token = out / f".pyvae-{secrets.token_hex(8)}"
    try:
        for left in out.glob(".pyvae-*"):  # by those that were killed
            left.unlink(missing_ok=True)
        token.write_text(token.name)
        share = _share_of(cluster)
        _check_nodes(token)
        send("ready")
        _Driver(send, out, settings, share, token).serve(inbox)
    except PyvaeError as error:
        send(error)
    except OSError as error:
        send(PyvaeError(f"cannot write {token}: {error.strerror}; give room or permission, or another --out"))
    finally:
        with contextlib.suppress(OSError):
            token.unlink()
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), 10).close()


def _watch_head(send: Callable[[Any], None], cluster: _Cluster, out: Path) -> None:
    """Ray itself waits for a minute, and then ends the process without a word."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    seen = time.monotonic()
    while time.monotonic() - seen < cluster.head_seconds:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), 5):
            seen = time.monotonic()
        time.sleep(1)
    send(PyvaeError(_gone(cluster.address, out)))
    time.sleep(1)
    os._exit(1)


class _Share(NamedTuple):
    """What tasks ask of the cluster."""

    train: dict[str, Any]
    score: dict[str, Any]
    threads: int
    places: int
    """Groups that are trained at the same time."""
    scorers: int


def _share_of(cluster: _Cluster) -> _Share:
    import ray

    there = ray.cluster_resources()
    gpus, cpus = there.get("GPU", 0.0), there.get("CPU", 0.0)
    each_cpu = cluster.num_cpus or 1
    each_gpu = cluster.num_gpus
    if each_gpu is None:
        each_gpu = 1.0 if gpus and cluster.num_cpus is None else 0.0
    if each_gpu > gpus:
        raise PyvaeError(f"the Ray cluster ({cluster.address}) has no GPU: leave --num-gpus out")
    if each_cpu > cpus:
        raise PyvaeError(
            f"the Ray cluster ({cluster.address}) has {cpus:g} CPU cores: give --num-cpus {max(int(cpus), 1)} or fewer"
        )
    # 2 // 0.1 is 19
    places = int(min(cpus / each_cpu, gpus / each_gpu if each_gpu else cpus) + 1e-9)
    train = {"num_cpus": each_cpu, "max_retries": _RETRIES}
    # scores need no core of their own: they are few, and training may hold all
    score = {"num_cpus": 0, "max_retries": _RETRIES, "scheduling_strategy": "SPREAD"}
    scorers = max(len(_alive()), 1)
    if each_gpu:
        train["num_gpus"] = round(each_gpu * (1 - _SCORING_GPU), 4)
        score["num_gpus"] = _SCORING_GPU
        scorers = max(int(gpus), 1)
    return _Share(train, score, max(int(each_cpu), 1), max(places, 1), scorers)


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _check_nodes(token: Path) -> None:
    """Raise PyvaeError unless every node has this pyvae, and sees the file that was just written."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in _alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_look).options(num_cpus=0, max_retries=1, scheduling_strategy=there)
        asked.append((f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", task.remote(token)))
    for name, reference in asked:
        try:
            version, seen = ray.get(reference, timeout=_NODE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise PyvaeError(
                f"node {name} of the Ray cluster does not answer: take it away, or start it again"
            ) from None
        except ray.exceptions.RayError as error:
            raise PyvaeError(
                f"node {name} of the Ray cluster cannot run pyvae ({_told(error)}): install pyvae "
                f"{pyvae.__version__} there"
            ) from None
        if version != pyvae.__version__:
            raise PyvaeError(
                f"node {name} of the Ray cluster has pyvae {version}, not {pyvae.__version__}: install the same"
            )
        if not seen:
            raise PyvaeError(_unshared(name, token.parent))


def _unshared(node: str, out: Path) -> str:
    return (
        f"node {node} of the Ray cluster does not see {out}, where results go: give an --out on a file system that "
        "all nodes share, under one path"
    )


def _told(error: Exception) -> str:
    """What went wrong in a task, without the traceback that Ray puts before it."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {reason(cause)}" if cause is not None else reason(error)


class _Driver:
    """Keeps the cluster at work, and tells what has come of it."""

    def __init__(
        self, send: Callable[[Any], None], out: Path, settings: Settings, share: _Share, token: Path
    ) -> None:
        import ray

        self._send, self._share = send, share
        if "num_gpus" not in share.train:  # which a node may have all the same
            settings = replace(settings, device="cpu")
        self._arguments = out, settings, token, share.threads
        self._tasks = {
            "train": ray.remote(_train_task).options(**share.train),
            "pack": ray.remote(_pack_task).options(**share.train),
            "score": ray.remote(_score_task).options(**share.score),
        }
        # few at a time, so that what is asked for later need not wait for all that was before
        self._most = {"train": 2 * share.places, "pack": 1, "score": share.scorers}
        self._waiting: dict[str, deque[Any]] = {kind: deque() for kind in self._tasks}
        self._running: dict[Any, tuple[str, Any]] = {}

    def serve(self, inbox: "queue.Queue[Any]") -> None:
        """Until None comes."""
        import ray

        while True:
            with contextlib.suppress(queue.Empty):
                while True:
                    # without work there is nothing to look at meanwhile
                    message = inbox.get(block=not self._running, timeout=1.0)
                    if message is None:
                        self._stop()
                        return
                    kind, what = message
                    self._waiting[kind].append(what)
                    self._submit()
            if self._running:
                ready, _ = ray.wait(list(self._running), timeout=0.1)
                for reference in ready:
                    self._finish(reference)
            self._submit()

    def _submit(self) -> None:
        for kind, waiting in self._waiting.items():
            busy = sum(running == kind for running, _ in self._running.values())
            while waiting and busy < self._most[kind]:
                what = waiting.popleft()
                self._running[self._tasks[kind].remote(what, *self._arguments)] = kind, what
                busy += 1

    def _finish(self, reference: Any) -> None:
        import ray

        kind, what = self._running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, OutOfRoomError) or (kind == "pack" and isinstance(cause, PyvaeError)):
                self._send(cause)
                return
            line = str(cause) if isinstance(cause, PyvaeError) else f"its task on Ray failed: {_told(error)}"
            if kind == "train":
                self._send([ModelOutcome(model.name, 0, error=line) for model in what])
            else:
                self._send(Scored(what.name, error=line) if kind == "score" else PyvaeError(line))
            return
        if kind == "pack":
            result = _Packed(pack(what, result, places=self._share.places))
        elif kind == "train" and any(outcome.interrupted for outcome in result):
            self._waiting[kind].append(what)  # somebody ended its worker, which saved
            return
        self._send(result)

    def _stop(self) -> None:
        import ray

        for reference in self._running:
            ray.cancel(reference)  # as ^C does: training saves first
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOP_SECONDS)


# From here on: tasks, in processes of Ray's workers.


def _look(token: Path) -> tuple[str, bool]:
    return pyvae.__version__, _sees(token)


def _sees(token: Path) -> bool:
    try:
        return token.read_text() == token.name
    except OSError:
        return False


def _begin(token: Path, threads: int) -> None:
    # a node may have come since all were asked
    if not _sees(token):
        raise PyvaeError(_unshared(platform.node(), token.parent))
    torch.set_num_threads(threads)


def _pack_task(models: Sequence[Model], out: Path, settings: Settings, token: Path, threads: int) -> Any:
    _begin(token, threads)
    return fits_of(models, lambda recipe: dataset_of(recipe, settings), device_of(settings.device))


def _train_task(
    models: Sequence[Model], out: Path, settings: Settings, token: Path, threads: int
) -> list[ModelOutcome]:
    _begin(token, threads)
    return train_group(models, out, settings)


def _score_task(model: Model, out: Path, settings: Settings, token: Path, threads: int) -> Scored:
    _begin(token, threads)
    return scored(model, out, settings)
