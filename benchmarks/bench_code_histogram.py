"""code_histogram of the codes of dSprites: numpy as disentanglement_lib writes it, PyTorch, pyvae."""

import numpy as np
import torch

from interleaved import Case, each
from pyvae import reference
from pyvae.ops.code_histogram import code_histogram

SIZES = (3, 6, 40, 32, 32)
IMAGES = 737_280


def popular(codes, factors):
    """Digitise, then count the pairs, for each code and factor."""
    x, classes = codes.double().cpu().numpy(), factors.cpu().numpy()
    counts = np.empty((x.shape[1], 20, sum(SIZES)), dtype=np.int64)
    for j in range(x.shape[1]):
        edges = np.histogram(x[:, j], 20)[1]
        binned = np.digitize(x[:, j], edges[:-1]) - 1
        start = 0
        for f, size in enumerate(SIZES):
            cells = np.bincount(binned * size + classes[:, f], minlength=20 * size)
            counts[j, :, start : start + size] = cells.reshape(20, size)
            start += size
    return torch.from_numpy(counts)


def case(rows: int) -> Case:
    def make(device, generator):
        factors = reference.factor_classes(IMAGES, SIZES, torch.device("cpu"))
        if rows < IMAGES:
            factors = factors[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))[:rows]]
        return torch.randn(rows, 10, device=device, generator=generator), factors.to(device)

    functions = {
        "numpy": popular,
        "reference": lambda codes, factors: reference.code_histogram(codes, factors, SIZES).counts,
        "pyvae": lambda codes, factors: code_histogram(codes, factors, SIZES).counts,
    }
    if rows == IMAGES:
        # of the full grid in its order the classes need not be read
        functions["pyvae, grid"] = lambda codes, factors: code_histogram(codes, None, SIZES).counts
    # the range and the counts each read the codes; the counts read a class of eight bytes per factor
    codes, classes = 2 * 4 * 10 * rows, 8 * len(SIZES) * rows
    return Case(
        op="code_histogram",
        what="20 bins, 5 factors",
        size=(rows, 10),
        make=make,
        functions=functions,
        evaluate=lambda function, inputs: (function(*inputs),),
        expect=lambda codes, factors: [popular(codes, factors)],
        tolerance=0,
        moved={name: codes + (0 if name == "pyvae, grid" else classes) for name in functions},
        uncaptured=tuple(functions),  # numpy, and edges that are checked to be finite
        sets=4 if rows == IMAGES else 1,
    )


CASES = [case(10_000), case(IMAGES)]


@each(CASES)
def test_code_histogram(timed, case, function):
    timed(case, function)
