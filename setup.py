"""Python always; C++ operators where torch and a compiler are; CUDA ones where that torch has CUDA and nvcc is."""

import os
import sys
from glob import glob

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
]
NVCC = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fvisibility=hidden"]


def give_up(what):
    if REQUIRED:
        raise SystemExit(f"pyvae: PYVAE_REQUIRE_EXT=1, but {what}")
    print(f"pyvae: no compiled operators: {what}. To add them: {BUILD}", file=sys.stderr)
    return {}


def extension():
    try:
        from torch.utils import cpp_extension as cpp
        from torch.version import cuda
    except ImportError as e:
        return give_up(f"torch cannot be imported in the build environment ({e})")

    class BuildOrGoWithout(cpp.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as e:
                give_up(f"the build failed ({e})")
                self.extensions = []

    use_cuda = bool(cuda and cpp.CUDA_HOME)
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


setup(**extension())
