"""What would wait for a GPU, seen without one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoSynchronisation(TorchDispatchMode):
    """Refuses what would wait for a GPU: values that go to the host, and shapes that depend on them."""

    REFUSED = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"})

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:])
        )
        waits = name in self.REFUSED or by_mask
        assert not waits, f"{name} waits for the device"
        self.calls += 1
        return op(*args, **(kwargs or {}))


class OnlyKernels(NoSynchronisation):
    """Also refuses tensors made of numbers of the host, which a CUDA graph cannot hold either."""

    REFUSED = NoSynchronisation.REFUSED | {"lift_fresh"}
