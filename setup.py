"""Python always; C++ operators where torch and a compiler are; CUDA ones where that torch has CUDA and a toolkit is."""

import os
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

REQUIRED = os.environ.get("PYVAE_REQUIRE_EXT") == "1"
BUILD = "pip install --no-build-isolation -e .   or   python setup.py build_ext --inplace"
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


def give_up(what):
    if REQUIRED:
        raise SystemExit(f"pyvae: PYVAE_REQUIRE_EXT=1, but {what}")
    print(f"pyvae: no compiled operators: {what}. To add them: {BUILD}", file=sys.stderr)
    return {}


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
        f"{', '.join(map(str, tried))}. To add them: CUDA_HOME=/where/cuda/is {BUILD}",
        file=sys.stderr,
    )
    return None


def extension():
    try:
        from torch.version import cuda

        home = toolkit(cuda) if cuda else None
        if home:
            os.environ["CUDA_HOME"] = str(home)  # read on import
        from torch.utils import cpp_extension as cpp
    except ImportError as e:
        return give_up(f"torch cannot be imported in the build environment ({e})")

    class BuildOrGoWithout(cpp.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as e:
                give_up(f"the build failed ({e})")
                self.extensions = []

    use_cuda = home is not None
    module = (cpp.CUDAExtension if use_cuda else cpp.CppExtension)(
        "pyvae._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp") + (glob("csrc/cuda/*.cu") if use_cuda else [])),
        depends=glob("csrc/**/*.*h", recursive=True),
        # the stable ABI of torch 2.11
        define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000")] + [("USE_CUDA", "1")] * use_cuda,
        extra_compile_args={"cxx": CXX, "nvcc": NVCC},
        py_limited_api=True,
    )
    options = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildOrGoWithout}, "options": options}


if __name__ == "__main__":
    setup(**extension())
