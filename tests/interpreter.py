"""Triton's interpreter, which takes most of its time to work out the same types and shapes again: here it keeps them.

What kernels compute is left as it is: tests/test_interpreter.py compares.
"""

import math
from collections.abc import Callable
from inspect import getmembers
from typing import Any

import pytest


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Keep what depends on types and shapes alone; of the Triton whose source was read, others stay as they are."""
    try:
        import triton
    except ImportError:
        return
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    if not triton.__version__.startswith("3.7."):
        return
    patch.setattr(interpreter, "_get_np_dtype", _np_dtype(interpreter._get_np_dtype))
    patch.setattr(interpreter, "_patch_builtin", _patch_builtin(interpreter, core))
    patch.setattr(core.block_type, "__init__", _block_type(core.block_type.__init__))
    patch.setattr(core.tensor, "__init__", _tensor(core))
    patch.setattr(TritonSemantic, "broadcast_impl_value", _broadcast(TritonSemantic.broadcast_impl_value))


def _np_dtype(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    kept: dict[str, Any] = {}

    def np_dtype(type_):
        name = type_.scalar.name  # by which types are equal
        if name not in kept:
            kept[name] = find(type_)
        return kept[name]

    return np_dtype


def _patch_builtin(interpreter: Any, core: Any) -> Callable[..., None]:
    kept: dict[Any, list[str]] = {}

    def patch_builtin(package, builder, scope):
        if package not in kept:
            kept[package] = [name for name, member in getmembers(package) if core.is_builtin(member)]
        for name in kept[package]:
            # within a kernel that calls another, they are patched already
            if core.is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    return patch_builtin


def _block_type(init: Callable[..., None]) -> Callable[..., None]:
    kept: dict[tuple[Any, ...], tuple[Any, int, str]] = {}

    def __init__(self, element_ty, shape):
        key = (element_ty.name, *getattr(shape, "values", shape))
        if not all(type(size) is int for size in key[1:]):
            init(self, element_ty, shape)
            return
        if key not in kept:
            init(self, element_ty, shape)
            kept[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = kept[key]

    return __init__


def _tensor(core: Any) -> Callable[..., None]:
    kept: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def __init__(self, handle, type):
        key = tuple(type.shape.values) if type.is_block() else ()
        if key not in kept:
            kept[key] = core.constexpr(math.prod(key)), core.tuple([core.constexpr(size) for size in key])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = kept[key]

    return __init__


def _broadcast(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    def broadcast_impl_value(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        if a.is_block() and b.is_block() and a.shape.values == b.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_impl_value
