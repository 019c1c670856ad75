"""disent where torchvision is missing or does not load, as beside a torch without CUDA."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def stand_in() -> bool:
    """Put empty modules in torchvision's place where it cannot be imported: disent's package imports it for data sets
    and losses, none of which is called here. Returns whether that was needed."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        pass
    else:
        return False
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
    return True
