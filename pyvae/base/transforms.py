"""What of torch may stand around an op: transforms that only plain torch goes through.

Kernels and compiled operators compute numbers. They know nothing of tangents, batches of vmap, traces or fake tensors,
so the ops take their reference there, which is plain torch. docs/transforms.md is the table, tests/test_transforms.py
tries each on every op. An eager call pays about half a microsecond for the question.
"""

import warnings

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_exporting
from torch.jit._trace import TracerWarning
from torch.nn import Parameter

# the shapes that checks read are those of the trace's inputs, which torch says of its own library as little
warnings.filterwarnings("ignore", category=TracerWarning, module=r"pyvae\.")


def transform(*tensors: Tensor | None) -> str | None:
    """What stands around an op of these tensors that plain torch alone goes through; None: nothing does."""
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives"
    if _are_functorch_transforms_active():
        return "torch.func transforms"
    if is_exporting():
        return "torch.export"
    if _get_tracing_state() is not None:
        return "torch.jit.trace"
    if _len_torch_dispatch_stack() and _records():
        return "fake tensors and what torch records"
    for x in tensors:
        kind = type(x)
        if kind is not Tensor and kind is not Parameter and x is not None:
            return f"tensors of class {kind.__name__}"
    return None


def transform_of_gradients(*grads: Tensor | None) -> str | None:
    """The same of gradients that come to a backward, where batches of them, of ``is_grads_batched``, have no sign but
    their own."""
    for grad in grads:
        if grad is not None and is_legacy_batchedtensor(grad):
            return "batched gradients"
    return transform(*grads)


def compiled() -> bool:
    """Whether torch.compile traces an op, which it then sees as one operator; inside other transforms it does not."""
    return (
        is_compiling()
        and not is_exporting()
        and not _are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def is_known(size: object) -> bool:
    """Whether a size is a number, not the symbol of an open dimension or of a trace, which a check would close."""
    return type(size) is int and not is_compiling()


def refuse(op: str, *tensors: Tensor) -> None:
    """Raise where an op that reads values would find none, or would lose a derivative without a word."""
    if compiled():  # there the graph breaks
        return
    around = transform()
    given = [x for x in tensors if isinstance(x, Tensor)]  # what is none is told by the checks
    if any(hasattr(x, "fake_mode") for x in given):
        around = "fake tensors"
    if any(x.is_meta for x in given):
        around = "meta tensors"
    if around is not None:
        raise RuntimeError(f"{op}: it reads values and has no derivative: call it outside of {around}")


def refuse_gradients(op: str, *tensors: Tensor) -> None:
    """Raise where an op without a derivative would take part in a loss as if it were a constant."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors):
        raise RuntimeError(
            f"{op}: it has no derivative: give it x.detach(), or call it under torch.no_grad()"
        )


def _records() -> bool:
    """Whether a dispatch mode of torch's own is on, which keeps operators for later; a user's, that watches or counts
    them, does not mind kernels."""
    kinds = torch._C._TorchDispatchModeKey
    return any(
        torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL)
    )
