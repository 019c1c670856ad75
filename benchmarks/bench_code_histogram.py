"""code_histogram of the codes of dSprites: numpy as disentanglement_lib writes it, PyTorch, pyvae."""

import numpy as np
import pytest
import torch

from pyvae import reference
from pyvae.ops.code_histogram import code_histogram

DSPRITES = (3, 6, 40, 32, 32)
SIZES = {"10000": 10_000, "737280": 737_280}


def popular(codes, factors, factor_sizes):
    """Digitise, then count the pairs, for each code and factor."""
    x, classes = codes.double().cpu().numpy(), factors.cpu().numpy()
    counts = np.empty((x.shape[1], 20, sum(factor_sizes)), dtype=np.int64)
    for j in range(x.shape[1]):
        edges = np.histogram(x[:, j], 20)[1]
        binned = np.digitize(x[:, j], edges[:-1]) - 1
        start = 0
        for f, size in enumerate(factor_sizes):
            cells = np.bincount(binned * size + classes[:, f], minlength=20 * size)
            counts[j, :, start : start + size] = cells.reshape(20, size)
            start += size
    return torch.from_numpy(counts)


PROVIDERS = {
    "numpy": popular,
    "reference": lambda *args: reference.code_histogram(*args).counts,
    "pyvae": lambda *args: code_histogram(*args).counts,
    "pyvae-grid": lambda codes, _, sizes: code_histogram(codes, None, sizes).counts,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_code_histogram(benchmark, device, provider, size):
    rows = SIZES[size]
    if provider == "pyvae-grid" and rows != 737_280:
        pytest.skip("not the full grid")
    codes = torch.randn(rows, 10, generator=torch.Generator().manual_seed(0)).to(device)
    factors = reference.factor_classes(737_280, DSPRITES, torch.device("cpu"))
    factors = (factors[torch.randperm(737_280)[:rows]] if rows < 737_280 else factors).to(device)

    def call():
        # on the host: a GPU has finished
        return PROVIDERS[provider](codes, factors, DSPRITES).cpu()

    assert torch.equal(call(), popular(codes, factors, DSPRITES))
    benchmark.group = f"code_histogram {rows}x10, 5 factors"
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
