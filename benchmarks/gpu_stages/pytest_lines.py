"""A plugin of pytest that writes a line for every test when it ends, and leaves out those that need not run again."""

import json
import os
from pathlib import Path

import pytest


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
