"""TensorBoard scalars of every row of the trace: a convenience, so what fails here is said and training goes on."""

import io
import logging
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from pyvae.base.files import sync_directory
from pyvae.engine.files import append_all, cause_of, make_directory
from pyvae.errors import reason

_LOG = logging.getLogger(__name__)
_VERSION = "brain.Event:2"


class Events:
    """A file of events, written on another thread. After a first failure nothing is written any more."""

    def __init__(self, directory: Path, fields: Sequence[str], resume_at: int, writer: Executor) -> None:
        """Begin a file in ``directory``; a viewer then drops what earlier files have of step ``resume_at`` on.

        Args:
            directory: made where it is not.
            fields: names of the values of a row.
            resume_at: the step to go on with.
            writer: of one thread, which the events of others may share.
        """
        self._directory = directory
        self._tags = [field.replace("kl_", "kl/") for field in fields]
        self._writer = writer
        self._file: io.FileIO | None = None
        self._writing: Future[None] = self._writer.submit(self._begin, resume_at)

    def close(self) -> None:
        """Write nothing more once what has been given is written."""
        self._writer.submit(self._end)

    def write(self, rows: list[tuple[int, list[float]]]) -> None:
        """Start writing rows, when those before are through."""
        self._writing.result()
        self._writing = self._writer.submit(self._write, rows, time.time())

    def sync(self) -> None:
        """Wait until what has been given is on the disk; on any thread."""
        self._writer.submit(self._sync).result()

    def _begin(self, resume_at: int) -> None:
        now = time.time()
        # viewers read files in the order of their names
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            from tensorboard.compat.proto import event_pb2

            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            make_directory(self._directory)
            self._file = open(self._directory / name, "xb", buffering=0)  # noqa: SIM115
            self._append(
                [
                    event_pb2.Event(wall_time=now, file_version=_VERSION),
                    event_pb2.Event(wall_time=now, step=resume_at, file_version=_VERSION),
                    event_pb2.Event(wall_time=now, step=resume_at, session_log=start),
                ]
            )
            sync_directory(self._directory)
        except Exception as error:  # a tensorboard beside another protobuf raises anything
            self._give_up(error)

    def _write(self, rows: list[tuple[int, list[float]]], now: float) -> None:
        try:
            if self._file is not None:
                self._append(self._events(rows, now))
        except Exception as error:
            self._give_up(error)

    def _events(self, rows: list[tuple[int, list[float]]], now: float) -> list[Any]:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        events = []
        for step, row in rows:
            # one record: one of each value takes ten times as long
            values = [
                summary_pb2.Summary.Value(tag=tag, simple_value=value)
                for tag, value in zip(self._tags, row, strict=True)
            ]
            events.append(
                event_pb2.Event(wall_time=now, step=step, summary=summary_pb2.Summary(value=values))
            )
        return events

    def _append(self, events: list[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        if self._file is not None:
            append_all(self._file, records.getvalue())

    def _sync(self) -> None:
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._give_up(error)

    def _end(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._file = None
        because = cause_of(error) if isinstance(error, OSError) else reason(error)
        _LOG.warning(
            "%s: no more events for TensorBoard are written (%s); training goes on, and trace.csv has every row",
            self._directory,
            because,
        )
