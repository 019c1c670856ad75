"""tc_batch, forward and backward: one randperm a dimension as in Kim & Mnih's followers, argsort of noise, pyvae."""

import pytest
import torch

from pyvae.ops.permute_dims import tc_batch

SIZES = [(64, 10), (1024, 10), (64, 128)]


def popular(z, z2):
    columns = [column[torch.randperm(len(z2), device=z2.device)] for column in z2.unbind(1)]
    return torch.cat([z, torch.stack(columns, 1)])


def argsort(z, z2):
    return torch.cat([z, z2.gather(0, torch.rand_like(z2).argsort(0))])


PROVIDERS = {"eager": popular, "eager-argsort": argsort, "compile": torch.compile(argsort), "pyvae": tc_batch}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_permute_dims(timed, device, provider, size):
    generator = torch.Generator(device).manual_seed(0)
    z, z2 = (torch.randn(size, device=device, generator=generator, requires_grad=True) for _ in range(2))
    upstream = torch.ones(2 * size[0], size[1], device=device)

    def call():
        out = PROVIDERS[provider](z, z2)
        return out, *torch.autograd.grad(out, (z, z2), upstream)

    def derive(out, *gradients):
        # the permutation is random: what it keeps is compared
        top, bottom = out.detach().chunk(2)
        return [top, bottom.sort(0).values, *gradients]

    expected = [z.detach(), z2.detach().sort(0).values, *upstream.chunk(2)]
    group = f"tc_batch forward+backward {size[0]}x{size[1]}"
    timed(call, derive, expected, group=group, moved_bytes=8 * 4 * z.numel())
