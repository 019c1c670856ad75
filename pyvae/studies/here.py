"""A study on this machine: groups are trained in this process, one after another, and scored in one beside it."""

import contextlib
import logging
import os
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pyvae.data.dataset import Dataset
from pyvae.errors import printable
from pyvae.studies.child import Child, GoneError
from pyvae.studies.groups import Group, groups_of
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

_LOG = logging.getLogger(__name__)
_MOST_LOST = 2


class Here:
    """This process, and one that scores while it trains.

    Args:
        dataset: that of all models, open already; they are then scored in this process as well, between groups.
        held_out: images of the marginal likelihood, open already.
    """

    def __init__(self, dataset: Dataset | None = None, held_out: Dataset | None = None) -> None:
        self._data = dataset, held_out
        self._waiting: deque[Model] = deque()
        self._sent: dict[str, Model] = {}
        self._child: Child | None = None
        self._lost = 0

    def open(self, out: Path, settings: Settings) -> None:
        """Be ready to work on a study."""
        self._out, self._settings = out, settings

    def pack(self, models: Sequence[Model]) -> Sequence[Group]:
        """Groups for the device that is asked for."""
        device = device_of(self._settings.device)
        return groups_of(models, lambda recipe: self._data[0] or dataset_of(recipe, self._settings), device)

    def train(self, groups: Sequence[Sequence[Model]]) -> Iterator[list[ModelOutcome]]:
        """Train one group after another; what is to be scored meanwhile is."""
        trained, total = 0, sum(map(len, groups))
        for group in groups:
            _say_which(group, trained, total)
            trained += len(group)
            if self._waiting and self._data[0] is None and self._lost < _MOST_LOST:
                self._hand_over()
            yield train_group(group, self._out, self._settings, self._data[0])

    def score(self, model: Model) -> None:
        """Have a model scored sometime."""
        self._waiting.append(model)

    def scored(self, *, wait: bool) -> Iterator[Scored]:
        """Models that have been scored since; ``wait``: all that were to be."""
        while self._sent:
            # nothing is trained any more: the last in the queue are scored here
            if wait and len(self._sent) > 1 and self._child is not None:
                name, model = self._sent.popitem()
                self._child.send(name)
                yield self._scored_here(model)
            try:
                yield from self._taken(None if wait and len(self._sent) == 1 else 0)
            except queue.Empty:
                if not wait:
                    break
        while self._waiting and (wait or self._data[0] is not None):
            yield self._scored_here(self._waiting.popleft())

    def close(self, *, finished: bool) -> None:
        """End the process beside this one, whatever it is at: what it has not told is scored another time."""
        if self._child is not None:
            self._child.close()

    def _scored_here(self, model: Model) -> Scored:
        _LOG.info(printable(f"scoring {model.name}"))
        return scored(model, self._out, self._settings, *self._data)

    def _hand_over(self) -> None:
        if self._child is None:
            self._child = Child(_score_all, self._out, self._settings)
        while self._waiting:
            model = self._waiting.popleft()
            self._sent[model.name] = model
            self._child.send(model)

    def _taken(self, timeout: float | None) -> Iterator[Scored]:
        """What the process beside this one has told; where it is gone, its models wait again."""
        assert self._child is not None
        try:
            message = self._child.take(timeout)
        except GoneError:
            self._lost += 1
            again = "it is started again" if self._lost < _MOST_LOST else "scores come at the end"
            _LOG.warning("the process that scores beside training has ended: %s", again)
            self._waiting.extend(self._sent.values())
            self._sent.clear()
            self._child = None
            return
        if isinstance(message, OutOfRoomError):
            raise message
        if self._sent.pop(message.model, None) is not None:
            yield message


def _say_which(group: Sequence[Model], trained: int, total: int) -> None:
    first, last = trained + 1, trained + len(group)
    numbers = f"model {first:,}" if first == last else f"models {first:,} to {last:,}"
    others = f" and {len(group) - 1:,} others" if len(group) > 1 else ""
    _LOG.info(printable(f"training {numbers} of {total:,}: {group[0].name}{others}"))


def _score_all(inbox: "queue.Queue[Any]", send: Callable[[Any], None], out: Path, settings: Settings) -> None:
    """Score models as they come; a name takes back what was sent."""
    with contextlib.suppress(OSError):
        os.nice(10)  # training goes first
    torch.set_num_threads(max(torch.get_num_threads() // 2, 1))
    waiting: dict[str, Model] = {}
    while True:
        try:
            message = inbox.get(block=not waiting)
        except queue.Empty:
            model = waiting.pop(next(iter(waiting)))
            try:
                send(scored(model, out, settings))
            except OutOfRoomError as error:
                send(error)
            continue
        if message is None:
            return
        if isinstance(message, str):
            waiting.pop(message, None)
        else:
            waiting[message.name] = message
