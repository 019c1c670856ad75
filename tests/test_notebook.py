"""The notebook of the examples runs, and shows what it says."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_first_steps(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(ROOT / "examples/first_steps.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # those of one machine and day
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = {
        n: [out["data"]["text/html"] for out in cell.outputs if "text/html" in out.get("data", {})]
        for n, cell in enumerate(code)
    }
    assert "400 of 400 steps" in shown[1][-1]
    assert shown[1][-1].count("data:image/png;base64,") == 1
    assert shown[5][-1].count("data:image/png;base64,") > 2
    written = "".join(out.get("text", "") for cell in code for out in cell.outputs)
    assert "[5, 4] codes" in written
    assert "Traceback" not in written
