"""A plugin of pytest that writes a line for every test when it ends, and leaves out those that need not run again."""

import faulthandler
import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = set(json.loads(Path(os.environ["PYVAE_GPU_SKIP"]).read_text()))
    left = [item for item in items if item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = left


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the process that has them all writes
    if report.when == "call" or report.outcome != "passed":
        line = {"case": report.nodeid, "ok": not report.failed, "seconds": round(report.duration, 2)}
        if report.skipped:
            line["skipped"] = True
        if report.failed:
            line["error"] = report.longreprtext[-600:]
        with open(os.environ["PYVAE_GPU_TESTS"], "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs, or that leaves a device which answers no more, ends its process: xdist tells it as failed, and
    another one goes on."""
    faulthandler.dump_traceback_later(float(os.environ.get("PYVAE_GPU_TEST_SECONDS", "60")), exit=True)
    try:
        ran = yield
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(3)
        return ran
    finally:
        faulthandler.cancel_dump_traceback_later()
