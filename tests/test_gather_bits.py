import numpy as np
import pytest
import torch

import pyvae
from pyvae import reference
from pyvae.base import native
from pyvae.ops.gather_bits import gather_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8]


@pytest.fixture(params=["reference", "triton", "native"])
def backend(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "native" and (reason := native.missing("gather_bits", "cpu")):
        pytest.skip(reason)
    monkeypatch.setenv("PYVAE_BACKEND", request.param)


def random_store(images, row_bytes, device="cpu"):
    """Bytes of any value: bits behind the last pixel are lit too."""
    generator = torch.Generator().manual_seed(images + row_bytes)
    return torch.randint(256, (images, row_bytes), generator=generator, dtype=torch.uint8).to(device)


def unpacked(store, index, pixels):
    """Gathered and unpacked by numpy, uint8."""
    rows = store.cpu().numpy()[index.cpu().numpy()]
    return rows, np.unpackbits(rows, axis=-1, bitorder="little")[..., :pixels]


def assert_gathers(store, index, pixels, dtype):
    images, bits = gather_bits(store, index, pixels=pixels, dtype=dtype)
    rows, expected = unpacked(store, index, pixels)
    assert (images.dtype, bits.dtype) == (dtype, torch.uint8)
    assert images.device == bits.device == store.device
    assert images.is_contiguous()
    assert bits.is_contiguous()
    assert images.shape == expected.shape
    assert np.array_equal(images.float().cpu().numpy(), expected.astype(np.float32))
    assert np.array_equal(bits.cpu().numpy(), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "pixels", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 784, 1000, 1023, 1024, 1025, 2049, 4095, 4096]
)
def test_against_numpy(device, backend, pixels, dtype):
    store = random_store(7, -(-pixels // 8), device)
    assert_gathers(store, torch.tensor([6, 0, 3], device=device), pixels, dtype)


def test_every_small_size(device, backend):
    for pixels in range(1, 70):
        store = random_store(3, -(-pixels // 8), device)
        assert_gathers(store, torch.tensor([2, 0], device=device), pixels, torch.float32)


def test_every_byte(device, backend):
    store = torch.arange(256, dtype=torch.uint8, device=device).view(256, 1)
    assert_gathers(store, torch.arange(256, device=device), 8, torch.uint8)


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([4, 4, 0, 4, 0]),
        torch.arange(10)[::3],
        torch.arange(10).flip(0).view(5, 2).T,
        torch.tensor(7).expand(6),
        torch.empty(0, dtype=torch.int64),
        torch.empty((3, 0), dtype=torch.int64),
        torch.tensor([[1, 2, 3], [9, 0, 5]]),
        torch.tensor(8),
    ],
    ids=["repeated", "strided", "transposed", "expanded", "empty", "empty 2-d", "2-d", "0-d"],
)
def test_index(device, backend, index):
    base = torch.empty_strided(index.shape, index.stride(), dtype=torch.int64, device=device)
    index = index.to(device) if 0 in index.stride() else base.copy_(index)
    assert_gathers(random_store(10, 5, device), index, 37, torch.float32)


def test_an_empty_store(device, backend):
    assert_gathers(
        random_store(0, 2, device), torch.empty(0, dtype=torch.int64, device=device), 16, torch.uint8
    )


def test_a_strided_store(device, backend):
    wide = random_store(12, 20, device)
    before = wide.clone()
    index = torch.tensor([5, 0, 2], device=device)
    for store in (wide[::2, 3:12], wide[:, ::3], random_store(9, 30, device).T):
        assert_gathers(store, index, 8 * store.shape[1] - 3, torch.float32)
    assert torch.equal(wide, before)


def test_defaults(device, backend):
    store = random_store(4, 3, device)
    images, bits = pyvae.gather_bits(store, torch.tensor([3, 1], device=device))
    assert images.dtype == torch.float32
    assert images.shape == (2, 24)
    assert bits.shape == (2, 3)


def test_results_are_no_views_of_the_store(device, backend):
    store = random_store(2, 1, device)
    before = store.clone()
    images, bits = gather_bits(store, torch.tensor([0, 1], device=device), dtype=torch.uint8)
    images.zero_()
    bits.zero_()
    assert torch.equal(store, before)


def test_more_than_two_gigabytes(device, backend):
    row_bytes = 2**20
    # memory that is never touched is never had: this takes a few pages on a CPU
    store = torch.empty((2050, row_bytes), dtype=torch.uint8, device=device)
    store[2049, :2], store[1, :2] = 0b10110001, 0b01001110
    rows = store[:, :2]
    assert_gathers(rows, torch.tensor([2049, 1], device=device), 13, torch.float32)


@pytest.mark.gpu
def test_more_than_two_billion_pixels(device):
    store = random_store(3, 2**18, device)
    index = torch.arange(2**10 + 3, device=device) % 3
    images, bits = gather_bits(store, index, dtype=torch.uint8)
    assert images.numel() > 2**31
    assert np.array_equal(images[-1].cpu().numpy(), unpacked(store, index[-1:], None)[1][0])
    assert torch.equal(bits[-1], store[index[-1]])


def test_the_bits_are_a_target(device, backend):
    images, bits = gather_bits(random_store(5, 3, device), torch.tensor([4, 2], device=device), pixels=21)
    logits = torch.linspace(-3, 3, 42, device=device).view(2, 21)
    torch.testing.assert_close(reference.bernoulli_nll(logits, bits), reference.bernoulli_nll(logits, images))


def test_a_packed_store_comes_back(device, backend):
    pixels = (torch.rand(6, 100, generator=torch.Generator().manual_seed(0)) < 0.3).to(device)
    index = torch.tensor([5, 5, 2], device=device)
    images, _ = gather_bits(reference.pack_bits(pixels), index, pixels=100, dtype=torch.uint8)
    assert torch.equal(images, pixels[index].to(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pixels", [16, 13])
def test_registered_operator(device, backend, pixels, dtype):
    args = (random_store(5, 2, device), torch.tensor([[1], [4]], device=device), pixels, dtype)
    torch.library.opcheck(torch.ops.pyvae.gather_bits.default, args)


def test_an_empty_batch_through_the_operator(device, backend):
    args = (random_store(5, 2, device), torch.empty(0, dtype=torch.int64, device=device), 13, torch.float32)
    torch.library.opcheck(torch.ops.pyvae.gather_bits.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(device, backend, dynamic):
    def step(store, index):
        images, bits = pyvae.gather_bits(store, index, dtype=torch.bfloat16)
        return images * 2, bits

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for batch, row_bytes in ((3, 4), (5, 9)):
        store, index = random_store(6, row_bytes, device), torch.arange(batch, device=device)
        for got, expected in zip(compiled(store, index), step(store, index), strict=True):
            assert torch.equal(got, expected)


def test_wrong_arguments(backend):
    store, index = random_store(4, 2), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"store: expected torch.uint8, got torch.float32"):
        gather_bits(store.float(), index)
    with pytest.raises(TypeError, match=r"index: expected torch.int64, got torch.int32"):
        gather_bits(store, index.int())
    with pytest.raises(TypeError, match="index: expected a tensor, got list"):
        gather_bits(store, [0, 1])
    with pytest.raises(TypeError, match=r"dtype: expected float32, .* or uint8, got torch.float64"):
        gather_bits(store, index, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"store: expected shape .*, got \[8\]"):
        gather_bits(store.flatten(), index)
    with pytest.raises(ValueError, match=r"store: expected shape .*, got \[4, 0\]"):
        gather_bits(store[:, :0], index)
    with pytest.raises(ValueError, match="index is on meta but store on cpu"):
        gather_bits(store, index.to("meta"))
    for pixels in (8, 17, 0, -1):
        with pytest.raises(ValueError, match=f"pixels: expected 9 to 16 for 2 bytes an image, got {pixels}"):
            gather_bits(store, index, pixels=pixels)


@pytest.mark.parametrize("outside", [-1, 4, 2**40])
def test_out_of_range(device, backend, monkeypatch, outside):
    monkeypatch.setenv("PYVAE_CHECK", "1")
    store, index = random_store(4, 2, device), torch.tensor([0, outside, 3], device=device)
    low, high = min(outside, 0), max(outside, 3)
    message = f"index: values must lie in 0 to 3, the images of store, got {low} to {high}"
    compiled = torch.compile(gather_bits, backend="aot_eager", fullgraph=True)
    for function in (gather_bits, reference.gather_bits, compiled):
        with pytest.raises(IndexError, match=message):
            function(store, index)
    with pytest.raises(IndexError, match="got 0 to 0"):
        gather_bits(store[:0], index[:1])
    assert_gathers(store, torch.tensor([0, 3], device=device), 16, torch.float32)


def test_nothing_is_read_without_the_check(backend, monkeypatch):
    """The values of an index that only a GPU holds cannot be known: neither can those of a meta tensor."""
    monkeypatch.delenv("PYVAE_CHECK", raising=False)
    store, index = random_store(4, 2).to("meta"), torch.empty(3, dtype=torch.int64, device="meta")
    assert reference.check_gather(store, index, 13, torch.float32) == 13
    images, bits = reference.gather_bits(store, index, pixels=13)
    assert (images.shape, bits.shape) == ((3, 13), (3, 2))


@pytest.mark.parametrize("index", [[0, 4], [-1], [2**40]])
def test_an_index_out_of_range_is_refused_on_a_cpu(index):
    with pytest.raises(IndexError, match=r"^index(: values must lie in 0 to 3, .* got| out of range)"):
        gather_bits(random_store(4, 3), torch.tensor(index))
