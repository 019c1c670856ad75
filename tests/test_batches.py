import math
import time

import pytest
import torch

import pyvae
from pyvae.engine.batches import BatchOrder, ImageSource, Streamed
from pyvae.errors import DataError
from pyvae.random import Stream, bits, make_key
from pyvae.reference import pack_bits
from tiny import TinyData

CPU = torch.device("cpu")


def index(order, step):
    order.prepare(step)
    return order.index(torch.tensor(step))


@pytest.mark.parametrize(("size", "batch"), [(120, 8), (120, 7), (5, 64), (1, 3)])
def test_every_epoch_holds_every_image_once(size, batch):
    order = BatchOrder(3, size, batch, CPU)
    epochs = 4
    steps = -(-epochs * size // batch)
    drawn = torch.cat([index(order, step) for step in range(steps)])[: epochs * size].view(epochs, size)
    assert all(torch.equal(epoch.sort().values, torch.arange(size)) for epoch in drawn)
    if size > 100:
        assert len({tuple(epoch.tolist()) for epoch in drawn}) == epochs


def test_a_step_does_not_depend_on_where_the_run_was_resumed():
    straight, resumed = (BatchOrder(9, 737_280, 64, CPU) for _ in range(2))
    expected = [index(straight, step) for step in range(1200)]
    for step in (1199, 300, 301, 11, 999):
        assert torch.equal(index(resumed, step), expected[step])


def test_seeds_and_streams_differ():
    first = index(BatchOrder(1, 1000, 64, CPU), 0)
    assert not torch.equal(first, index(BatchOrder(2, 1000, 64, CPU), 0))
    assert not torch.equal(first, index(BatchOrder(1, 1000, 64, CPU, Stream.SECOND_BATCH), 0))


def test_with_replacement_every_image_is_as_likely_and_steps_are_independent():
    size, batch = 50, 64
    order = BatchOrder(5, size, batch, CPU, replacement=True)
    drawn = order.draw(0, 2000)
    assert drawn.min() == 0
    assert drawn.max() == size - 1
    counts = torch.bincount(drawn.flatten(), minlength=size).double()
    chi2 = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi2 - (size - 1)) < 5 * math.sqrt(2 * (size - 1))
    # a batch of an epoch holds no image twice; 64 of 50 must
    assert all(len(row.unique()) < batch for row in drawn[:20])
    assert len({tuple(row.tolist()) for row in drawn}) == 2000
    assert torch.equal(order.draw(700, 3), drawn[700:703])
    one = BatchOrder(5, 737_280, 4, CPU, replacement=True).draw(123, 1)[0]
    words = bits(make_key(5, 123), 4, 2, Stream.DATA_ORDER)
    exact = [(((int(high) << 32) + int(low)) * 737_280) >> 64 for high, low in words]
    assert one.tolist() == exact


@pytest.fixture(params=["floats", "bytes", "bits"])
def data(request):
    made = TinyData()
    everything = made.images(torch.arange(len(made)))
    if request.param == "bytes":
        made.pixels = (everything * 255).to(torch.uint8)
    if request.param == "bits":
        made.bits = pack_bits(everything.flatten(1))
    return made


def test_images_and_target(data):
    expected = TinyData()
    source = ImageSource(data, CPU)
    batches = source.batches(3, 7)
    order = BatchOrder(3, len(data), 7, CPU)
    for step in (0, 1, 40, 39, 1023, 1024, 2):
        batches.prepare(step)
        images, target, target_max, which = batches.batch(torch.tensor(step))
        assert torch.equal(which, index(order, step))
        shown = expected.images(index(order, step))
        assert torch.equal(images, shown)
        logits = torch.randn(shown.shape)
        loss = pyvae.bernoulli_nll(logits, target, target_max=target_max)
        torch.testing.assert_close(loss, pyvae.bernoulli_nll(logits, shown))
    some = torch.tensor([5, 119, 0, 5])
    assert torch.equal(source.images(some), expected.images(some))


@pytest.mark.parametrize("window", [1, 4])
def test_what_is_read_ahead_is_what_the_step_needs(window):
    data, read = TinyData(), []

    def reader(rows):
        read.append(rows)
        return data.images(rows)

    order = BatchOrder(9, len(data), 5, CPU, window=window)
    streamed = Streamed(reader, order, CPU, window)
    for step in (0, 1, 2, 3, 4, 5, 17, 16, 3):
        streamed.prepare(step)
        assert torch.equal(streamed.batch(torch.tensor(step)).images, data.images(order.draw(step, 1)[0]))
    assert all(len(rows) == 5 * window for rows in read)


def test_a_window_that_is_not_the_next_waits_for_the_reader():
    """They share pinned memory on a GPU."""
    data, reading, together = TinyData(), [], []

    def reader(rows):
        reading.append(rows)
        time.sleep(0.05)
        together.append(len(reading))
        reading.pop()
        return data.images(rows)

    streamed = Streamed(reader, BatchOrder(9, len(data), 5, CPU, window=1), CPU, 1)
    for step in (0, 7, 3):
        streamed.prepare(step)
    assert set(together) == {1}


def test_a_reader_that_fails_is_heard():
    def broken(rows):
        raise DataError("the file ends early")

    streamed = Streamed(broken, BatchOrder(9, 100, 5, CPU, window=1), CPU, 1)
    with pytest.raises(DataError, match="ends early"):
        streamed.prepare(0)
