"""disent as tests import it."""

import sys
from pathlib import Path

import pytest


def import_disent() -> None:
    """Skip the test where disent is not installed."""
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from without_torchvision import stand_in

    # before the stand-in: torchmetrics would take it for the real thing
    pytest.importorskip("lightning", reason="pip install pyvae-engine[examples]")
    stand_in()
    pytest.importorskip("disent", reason="pip install --no-deps disent, and pyvae-engine[examples]")
