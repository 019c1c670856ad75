"""What runs without packages that a machine may lack."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyvae.engine.ranges import _ranges

ROOT = Path(__file__).resolve().parents[1]

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
{program}
"""


def run(missing, program):
    command = [sys.executable, "-c", WITHOUT.format(missing=missing, program=program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_all_but_the_command_line_is_imported_without_what_is_used_later():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "pyvae").rglob("*.py"))
        if not {"kernels", "integrations", "cli", "__main__.py"} & set(path.parts)
    ]
    assert {"pyvae.engine.trainer", "pyvae.evaluation", "pyvae.studies.reproduce", "pyvae.report"} <= set(
        modules
    )
    used_later = ["h5py", "matplotlib", "nvtx", "safetensors", "scipy", "sklearn", "tensorboard", "tyro"]
    done = run([*used_later, "triton"], f"import {', '.join(modules)}")
    assert done.returncode == 0, done.stderr


TRAIN = """
sys.path.insert(0, "tests")
import torch
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.objectives import InfoGAN
from tiny import TinyData

for recipe in (Recipe(batch_size=4), Recipe(batch_size=4, latents=5, architecture="kim", objective=InfoGAN())):
    training(recipe, TinyData(), torch.device("cpu")).advance()
print("trained")
"""


def test_training_needs_no_nvtx():
    done = run(["nvtx"], TRAIN)
    assert done.stdout == "trained\n", done.stderr


def test_ranges_are_those_of_nvtx_then_of_torch(monkeypatch):
    package = SimpleNamespace(annotate=object())
    monkeypatch.setitem(sys.modules, "nvtx", package)
    assert _ranges() is package.annotate
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _ranges() is torch.cuda.nvtx.range
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _ranges() is nullcontext


AS_A_PROGRAM = "import runpy; runpy.run_module('pyvae', run_name='__main__')"


def test_a_command_line_without_tyro_says_so():
    done = run(["tyro"], AS_A_PROGRAM)
    assert done.returncode == 1
    assert done.stderr == "pyvae: error: the command line needs tyro: pip install tyro\n"


def test_what_else_is_missing_is_not_taken_for_tyro():
    pytest.importorskip("tyro")
    done = run(["torch"], AS_A_PROGRAM)
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr
