"""Stochastic binarisation: the kernel against plain torch, and plain torch against the contract of the noise."""

import pytest
import torch

from pyvae.data.binarised import Binarised
from pyvae.engine.binarise import binarise
from pyvae.random import Stream, bits, make_key
from tiny import GreyData

SHAPES = [(20, 1, 28, 28), (3, 1, 5, 5), (2, 3, 7, 9), (1, 1, 1, 1), (130, 1, 8, 8)]


def grey_of(shape, device):
    grey = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    grey.view(-1)[::5] = 0
    grey.view(-1)[1::5] = 1
    return grey.to(device)


@pytest.mark.parametrize("stream", [Stream.BINARISATION, Stream.SECOND_BINARISATION])
@pytest.mark.parametrize("step", [0, 3, 2**33 + 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_reference(shape, step, stream, device, monkeypatch):
    pytest.importorskip("triton")
    seed, at = make_key(2**40 + 7, step, device).unbind()
    made = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        made.append(binarise(grey_of(shape, device), seed, at, stream))
    assert torch.equal(*made)
    assert made[0].shape == shape
    assert made[0].dtype == torch.float32


def test_the_kernel_takes_any_strides(device, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    grey = grey_of((4, 3, 6, 6), device)
    seed, step = make_key(1, 2, device).unbind()
    dense = binarise(grey, seed, step, Stream.BINARISATION)
    other = binarise(grey.contiguous(memory_format=torch.channels_last), seed, step, Stream.BINARISATION)
    assert torch.equal(dense, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pixel_is_white_where_its_draw_is_below_its_grey(shape):
    grey = grey_of(shape, "cpu")
    seed, step = make_key(9, 4).unbind()
    made = binarise(grey, seed, step, Stream.BINARISATION).flatten(1)
    words = bits(make_key(9, 4), *made.shape, Stream.BINARISATION)
    for mine, word, p in zip(made.flatten(), words.flatten(), grey.flatten(), strict=True):
        assert mine == float(((int(word) >> 9) + 0.5) / 2**23 < float(p))
    assert (made[grey.flatten(1) == 0] == 0).all()
    assert (made[grey.flatten(1) == 1] == 1).all()


def test_a_data_set_binarised_once_for_all():
    data = Binarised(GreyData(), seed=3)
    everything = data.images(torch.arange(40))
    assert torch.equal(data.images([39, 0, 5]), everything[[39, 0, 5]])
    assert torch.equal(data.images(7), everything[7])
    assert not torch.equal(Binarised(GreyData(), seed=4).images(torch.arange(40)), everything)
    assert (data.fingerprint, len(data), data.image_shape) == ("grey-v1", 40, (1, 12, 12))
    same = GreyData()
    same.pixels = torch.full_like(same.pixels, 128)
    images = Binarised(same).images(torch.arange(40)).flatten(1)
    assert len(images.unique(dim=0)) == 40
    assert float(images.mean()) == pytest.approx(128 / 255, abs=0.03)
    with pytest.raises(IndexError, match="40 is out of range for 40 images"):
        data.images(40)
