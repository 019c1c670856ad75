"""The CUDA sources compile, without a GPU and against the headers of any torch, and keep their sums in registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "90")
OPTIONS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-DUSE_CUDA=1", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def kernels(log):
    """(architecture, mangled name, registers, spilled bytes) of each kernel in what ptxas -v says."""
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    for name, arch, stores, loads, registers in re.findall(pattern, log, re.DOTALL):
        yield arch, name, int(registers), int(stores) + int(loads)


def test_there_are_sources():
    assert {p.stem for p in SOURCES} == {"code_histogram", "permute_dims", "posterior_entropy"}


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles_without_spilling(source, tmp_path):
    include = Path(torch.__file__).parent / "include"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [NVCC, *OPTIONS, *targets, f"-I{include}", "-c", str(source), "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(kernels(done.stderr))
    assert {arch for arch, *_ in found} == set(ARCHITECTURES)
    for arch, name, registers, spilled in found:
        print(f"{source.stem} sm_{arch} {name}: {registers} registers")
        assert spilled == 0, f"{name} on sm_{arch}"
        assert registers <= 255
