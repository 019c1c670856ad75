"""Which CUDA toolkit the operators are built with."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parents[1]
SETUP = runpy.run_path(str(SOURCE / "setup.py"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine without CUDA."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, "")
    return tmp_path


def compiler(home):
    """``home`` with nvcc, and without headers."""
    (home / "bin").mkdir(parents=True)
    (home / "bin/nvcc").write_text("#!/bin/sh\n")
    (home / "bin/nvcc").chmod(0o755)
    return home


def whole(home):
    (compiler(home) / "include").mkdir()
    (home / "include/cuda_runtime.h").touch()
    return home


def found(root, cuda="13.0"):
    return SETUP["toolkit"](cuda, root)


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_what_is_named_comes_first(root, monkeypatch, name):
    whole(root / "cuda")
    monkeypatch.setenv(name, str(whole(root / "own")))
    assert found(root) == root / "own"


def test_what_is_named_and_not_whole_is_passed_over(root, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(compiler(root / "own")))
    assert found(root) is None
    assert found(whole(root / "cuda").parent) == root / "cuda"


def test_that_of_the_first_nvcc(root, monkeypatch):
    whole(root / "cuda")
    monkeypatch.setenv("PATH", str(whole(root / "opt/cuda") / "bin"))
    assert found(root) == root / "opt/cuda"


def test_a_wrapper_without_headers_is_none(root):
    compiler(root)
    assert found(root) is None
    whole(root / "cuda-13.0")
    whole(root / "cuda-12.8")
    whole(root / "cuda-13.2")
    assert found(root) == root / "cuda-13.2"
    assert found(root, "12.8") == root / "cuda-12.8"
    whole(root / "cuda")
    assert found(root) == root / "cuda"


def test_a_link_is_followed(root):
    whole(root / "opt/cuda")
    (root / "bin").mkdir()
    (root / "bin/nvcc").symlink_to(root / "opt/cuda/bin/nvcc")
    assert found(root) == root / "opt/cuda"


def test_headers_may_be_beside_the_link(root, monkeypatch):
    """As Debian has it."""
    compiler(root / "lib/cuda")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/nvcc").symlink_to(root / "lib/cuda/bin/nvcc")
    (root / "usr/include").mkdir()
    (root / "usr/include/cuda_runtime.h").touch()
    monkeypatch.setenv("PATH", str(root / "usr/bin"))
    assert found(root) == root / "usr"


def test_nothing_whole_is_said_in_one_line(root, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(compiler(root / "own")))
    assert found(root) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in ("CUDA 13.0", f"{root}/own, {root}/cuda", "CUDA_HOME=", "build_ext --inplace"):
        assert word in said


@pytest.mark.parametrize("there", [True, False])
def test_cuda_operators_are_built_where_a_toolkit_is_and_the_others_anyhow(root, monkeypatch, there):
    # torch reads CUDA_HOME when this is imported
    monkeypatch.delitem(sys.modules, "torch.utils.cpp_extension", raising=False)
    monkeypatch.delattr(torch.utils, "cpp_extension", raising=False)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    home = whole(root / "opt/cuda") if there else None
    monkeypatch.setitem(SETUP["extension"].__globals__, "toolkit", lambda cuda: home)
    monkeypatch.setitem(SETUP["extension"].__globals__, "find_compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    if there:
        (home / "bin/nvcc").write_text("#!/bin/sh\nprintf 'compute_%s\\n' 80 86 90 103 120\n")
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    monkeypatch.chdir(SOURCE)
    given = SETUP["extension"]()
    (module,) = given["ext_modules"]
    assert (str(root / "opt/cuda/include") in module.include_dirs) is there
    assert any(source.endswith(".cu") for source in module.sources) is there
    assert any("cpu" in source for source in module.sources)
    assert given["options"]["bdist_wheel"].get("build_number") == ("1cu130" if there else None)
    # without a GPU torch would find none to compile for
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == ("8.0;9.0;12.0+PTX" if there else "")
