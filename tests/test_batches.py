import pytest
import torch

from pyvae.engine.batches import BatchOrder, ImageSource
from tiny import TinyData

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "batch"), [(120, 8), (120, 7), (5, 64), (1, 3)])
def test_every_epoch_holds_every_image_once(size, batch):
    order = BatchOrder(3, size, batch, CPU)
    epochs = 4
    steps = -(-epochs * size // batch)
    drawn = torch.cat([order.index(step) for step in range(steps)])[: epochs * size].view(epochs, size)
    assert all(torch.equal(epoch.sort().values, torch.arange(size)) for epoch in drawn)
    if size > 100:
        assert len({tuple(epoch.tolist()) for epoch in drawn}) == epochs


def test_a_step_does_not_depend_on_where_the_run_was_resumed():
    straight, resumed = (BatchOrder(9, 737_280, 64, CPU) for _ in range(2))
    expected = [straight.index(step) for step in range(1200)]
    for step in (1199, 300, 301, 11, 999):
        assert torch.equal(resumed.index(step), expected[step])


def test_seeds_differ():
    assert not torch.equal(BatchOrder(1, 1000, 64, CPU).index(0), BatchOrder(2, 1000, 64, CPU).index(0))


def test_images_and_target():
    data = TinyData()
    index = torch.tensor([5, 119, 0, 5])
    images, target = ImageSource(data, CPU).batch(index)
    assert torch.equal(images, data.images(index))
    assert torch.equal(images, target)
