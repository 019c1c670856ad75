"""The wheel, built and used away from the source tree."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USE = """
import sys, torch, pyvae, pyvae.kernels
assert pyvae.__file__.startswith(sys.argv[1]), pyvae.__file__
z, kl = pyvae.reparameterize_kl(torch.zeros(4, 3), torch.zeros(4, 3))
assert z.shape == (4, 3) and float(kl.sum()) == 0
nll = pyvae.bernoulli_nll(torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64))
assert abs(float(nll) - 2839.13) < 0.01
import pyvae.cli, pyvae.report
from pyvae.kernels import bernoulli_nll, reparameterize_kl
print("used", pyvae.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # through the sdist, so that nothing left over in the source tree gets into the wheel
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_kernels_once_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pyvae", next(t for t in tops if t.endswith(".dist-info"))}
    for kernel in (ROOT / "kernels").glob("*.py"):
        assert f"pyvae/kernels/{kernel.name}" in names
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "pyvae").rglob("*.py")}
    assert source <= names
    assert "pyvae/py.typed" in names


@pytest.fixture(scope="module")
def clean_environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel, and this environment's packages but for its own pyvae."""
    path = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(path, with_pip=False)
    purelib = next((path / "lib").glob("python*/site-packages"))
    # a directory named in a .pth file has its own .pth files ignored, the editable pyvae's among them
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(path / "bin/python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    return path / "bin"


def test_the_wheel_works_away_from_the_source_tree(clean_environment, tmp_path):
    done = subprocess.run(
        [clean_environment / "python", "-c", USE, str(clean_environment.parent)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "used 0.1.0\n"
    listed = subprocess.run(
        [clean_environment / "pyvae", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert "doctor" in listed.stdout
