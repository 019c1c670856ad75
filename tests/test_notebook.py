"""The notebook of the examples runs, and shows what it says."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

import pyvae

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
    assert shown[5][-1].count("data:image/") > 2
    written = "".join(out.get("text", "") for cell in code for out in cell.outputs)
    assert "[5, 4] codes" in written
    assert "Traceback" not in written


TRAIN = """
import pyvae
pyvae.train("vae", out="run", data="images.npy", image_size=8, architecture="rainforth", latents=2, batch_size=4,
            device="cpu", checkpoint_seconds=1e6, log_every=1, steps=10**7)
"""


def test_interrupting_the_kernel_saves(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    manager = pytest.importorskip("jupyter_client.manager")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    kernel, client = manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        request = client.execute(TRAIN)
        trace = tmp_path / "run/trace.csv"
        ends = time.monotonic() + 120
        while time.monotonic() < ends and not (trace.exists() and trace.stat().st_size > 250):
            time.sleep(0.05)
        kernel.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        while (
            reply["parent_header"]["msg_id"] != request
        ):  # a slow start asks who it is twice, and is answered twice
            reply = client.get_shell_msg(timeout=60)
        assert (reply["content"]["status"], reply["content"].get("ename")) == ("error", "KeyboardInterrupt")
        assert pyvae.open(tmp_path / "run").step > 0
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
