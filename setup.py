"""The package and its compiled operators: C++ ones always, CUDA ones where that torch has CUDA and a toolkit is.

Any torch from 2.11 will do to build against, since the binary fits all of them: that of this environment; where an
installer isolates the build, that of the environment that it installs into; else that of a Python on PATH. A build that
lacks something ends, and its last line says what to type; PYVAE_NO_EXT=1 goes without. Metadata and sdists need no
torch.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from setuptools import setup

BUILDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}
OLDEST = (2, 11)
"""The torch whose stable ABI the operators are built for."""
TORCH = f"torch>={OLDEST[0]}.{OLDEST[1]}"
BUILD = "in a checkout of pyvae, pip install .   or   python setup.py build_ext --inplace"
# not -ffast-math: it drops NaN, and on the link line g++ sets flush-to-zero for the whole process
CXX = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fno-wrapv",  # Python's own flags say -fwrapv, which leaves loops with sums for indices scalar
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fopenmp-simd",
    "-fvisibility=hidden",
    "-Wno-psabi",  # wide registers are handed over within a file alone
]
NVCC = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fvisibility=hidden"]
_LOOK = """
import importlib.util, json, sys
print(json.dumps([list(sys.version_info[:2]), sys.path if importlib.util.find_spec("torch") else []]))
"""


def give_up(needs, do):
    """End the build with its last line, which installers show."""
    raise SystemExit(
        f"pyvae: its compiled operators {needs}. {do}, then try again; or set PYVAE_NO_EXT=1 to install pyvae without "
        "them, several times slower on a CPU."
    )


def places(cuda, root):
    """Where the toolkit of a CUDA version may be, the likeliest first."""
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    # as torch does; then where a link leads
    linked = [Path(nvcc).parents[1], Path(nvcc).resolve().parents[1]] if nvcc else []
    versions = sorted(root.glob(f"cuda-{cuda.split('.')[0]}*"), reverse=True)
    return list(dict.fromkeys([*(Path(x) for x in named if x), *linked, root / "cuda", *versions]))


def toolkit(cuda, root=Path("/usr/local")):
    """The first whole one; torch would take that of the first nvcc, which may be a wrapper without headers."""
    tried = places(cuda, root)
    for home in tried:
        if all((home / file).is_file() for file in ("bin/nvcc", "include/cuda_runtime.h")):
            return home
    print(
        f"pyvae: NO CUDA OPERATORS, though this torch has CUDA {cuda}: no bin/nvcc with include/cuda_runtime.h in "
        f"{', '.join(map(str, tried))}. To add them: set CUDA_HOME=/where/cuda/is, and {BUILD}",
        file=sys.stderr,
    )
    return None


def architectures(home):
    """What to compile for where no GPU says it: a processor of each generation runs what is for its first."""
    listed = subprocess.run([home / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = {int(number) for number in re.findall(r"compute_(\d+)$", listed, re.MULTILINE)}
    found = [f"{number // 10}.{number % 10}" for number in (75, 80, 90, 100, 120) if number in known]
    return ";".join(found) + "+PTX" if found else "8.0+PTX"


def module_path(python):
    """That of another interpreter of this version, if torch is on it; else nothing."""
    ours = {"PYTHONPATH", "PYTHONNOUSERSITE"}  # by which pip isolates
    env = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        done = subprocess.run([python, "-c", _LOOK], env=env, cwd="/", capture_output=True, timeout=60)
        version, path = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return path if version == list(sys.version_info[:2]) else []


def reach_torch():
    """Put torch on the module path, behind what the build brings along."""
    if named := os.environ.get("PYVAE_TORCH"):
        home = Path(named).expanduser().absolute()
        if not (home / "__init__.py").is_file():
            give_up(f"need torch, and PYVAE_TORCH={named} has none", "Let it name torch's own folder")
        sys.path.insert(0, str(home.parent))
        return
    if find_spec("torch"):
        return
    # with pip the interpreter is that of the environment to install into; uv and build make one of their own
    folders = [x for x in os.environ.get("PATH", "").split(os.pathsep) if x]
    for python in dict.fromkeys([sys.executable, *(str(Path(x, "python3")) for x in folders)]):
        if path := module_path(python):
            sys.path.extend(x for x in path if x and x not in sys.path)
            return
    give_up(
        f"need {TORCH}, and {sysconfig.get_path('purelib')} has none",
        f"Type: pip install '{TORCH}' (or, for one elsewhere, PYVAE_TORCH=/its/site-packages/torch)",
    )


def import_torch():
    """The torch to build against: new enough, and whole."""
    reach_torch()
    try:
        import torch
    except Exception as e:
        give_up(
            f"need a torch that can be imported, and this one cannot ({e})", f"Type: pip install '{TORCH}'"
        )
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST:
        give_up(
            f"need {TORCH}, and {Path(torch.__file__).parent} is {torch.__version__}",
            f"Type: pip install --upgrade '{TORCH}'",
        )
    return torch


def find_compiler():
    """Let CXX name it, where the usual name is none."""
    named = os.environ.get("CXX")
    found = [x for x in ([named.split()[0]] if named else ["c++", "g++", "clang++"]) if shutil.which(x)]
    if not found:
        looked = f"CXX={named} is none" if named else "there is no c++, g++ or clang++"
        give_up(f"need a C++ compiler, and {looked}", "Type: apt-get install g++ (or as your system has it)")
    if not named and found[0] != "c++":
        os.environ["CXX"] = found[0]


def reach_ninja():
    """Put the one of this environment on PATH: torch looks there alone, and compiles one file at a time without."""
    if find_spec("ninja"):
        import ninja

        if ninja.BIN_DIR:
            os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])


def extension():
    """What setup() is to know of the operators: nothing where they are not asked for."""
    if not BUILDS & set(sys.argv[1:]):
        return {}
    if os.environ.get("PYVAE_NO_EXT") == "1":
        print(f"pyvae: NO COMPILED OPERATORS, as PYVAE_NO_EXT=1. To add them: {BUILD}", file=sys.stderr)
        return {}
    torch = import_torch()
    find_compiler()
    reach_ninja()
    home = toolkit(torch.version.cuda) if torch.version.cuda else None
    if home:
        os.environ["CUDA_HOME"] = str(home)  # read on import
        # torch goes by the GPUs at hand, and has no answer for none
        if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.device_count():
            os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(home)
    from torch.utils import cpp_extension as cpp

    class Build(cpp.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # kept between builds, editable and others, so that only what has changed is compiled again; Python's own
            # headers, which no operator includes, would differ by environment
            self.build_temp = str(Path("build/operators").absolute())
            self.include_dirs = []

        def run(self):
            try:
                super().run()
            except Exception as e:
                give_up(f"were not built ({e})", "What the compiler says stands above: put that right")

    use_cuda = home is not None
    module = (cpp.CUDAExtension if use_cuda else cpp.CppExtension)(
        "pyvae._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp") + (glob("csrc/cuda/*.cu") if use_cuda else [])),
        depends=glob("csrc/**/*.*h", recursive=True),
        define_macros=[("TORCH_TARGET_VERSION", f"0x{OLDEST[0]:02x}{OLDEST[1]:02x}000000000000")]
        + [("USE_CUDA", "1")] * use_cuda,
        # before torch's libraries, which have some of its symbols without the versions that a wheel's tag follows
        libraries=["stdc++"],
        extra_compile_args={"cxx": CXX, "nvcc": NVCC},
        py_limited_api=True,
    )
    wheel = {"py_limited_api": "cp310"}
    if use_cuda:  # by whose number installers prefer it to one without
        wheel["build_number"] = "1cu" + torch.version.cuda.replace(".", "")
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}, "options": {"bdist_wheel": wheel}}


if __name__ == "__main__":
    # in build/lib modules that are gone since would stay, and go into the wheel
    with tempfile.TemporaryDirectory() as fresh:
        given = extension()
        setup(**{**given, "options": {"build": {"build_base": fresh}, **given.get("options", {})}})
