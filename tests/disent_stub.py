"""Import disent also where torchvision is missing or does not load, as beside a torch without CUDA.

disent's package imports torchvision for data sets and losses that no test here uses.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest


def import_disent() -> None:
    """Skip the test where disent is not installed."""
    # before the stub: torchmetrics would take it for the real thing
    pytest.importorskip("lightning", reason="pip install pyvae[examples]")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        unused = {"": (), ".datasets": ("ImageFolder",), ".models": ("vgg19_bn",), ".transforms": ()}
        for part, names in {**unused, ".transforms.functional": ()}.items():
            module = ModuleType(f"torchvision{part}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            module.__path__ = []
            for name in names:
                setattr(module, name, type(name, (), {}))
            sys.modules[module.__name__] = module
            parent, _, own = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], own, module)
    pytest.importorskip("disent", reason="pip install --no-deps disent, and pyvae[examples]")
