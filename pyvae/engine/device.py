"""Devices by their names."""

import torch

from pyvae.errors import PyvaeError


def device_named(name: str) -> torch.device:
    """The device of a name: "auto" is a GPU where there is one.

    Raises:
        PyvaeError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("there are cpu and cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PyvaeError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return device
