"""Data sets small enough to train on in a test."""

import torch

from pyvae import reference
from pyvae.data.dataset import Dataset, FactorDataset


class TinyData(FactorDataset):
    """Bright squares on a 4 x 5 x 6 grid of (size, row, column)."""

    def __init__(self, channels: int = 1, fingerprint: str = "tiny-v1") -> None:
        sizes = (4, 5, 6)
        super().__init__(
            name="tiny",
            fingerprint=fingerprint,
            image_shape=(channels, 64, 64),
            factor_names=("size", "row", "column"),
            factor_values=[torch.arange(n).double().numpy() for n in sizes],
        )
        classes = self.factor_classes(torch.arange(len(self)))
        side, top, left = 6 + 4 * classes[:, 0], 2 + 10 * classes[:, 1], 2 + 8 * classes[:, 2]
        at = torch.arange(64)
        rows = (at >= top[:, None]) & (at < (top + side)[:, None])
        columns = (at >= left[:, None]) & (at < (left + side)[:, None])
        image = (rows[:, :, None] & columns[:, None, :]).float()
        self._images = image[:, None].expand(-1, channels, -1, -1).contiguous()

    def images(self, index):
        return self._images[self._checked(index)]


class Corner(TinyData):
    """Of the squares, what a network of few weights takes."""

    def __init__(self):
        super().__init__()
        self.image_shape = (1, 12, 12)

    def images(self, index):
        return super().images(index)[..., 16:28, 16:28]


class GreyData(Dataset):
    """Grey gradients of 12 x 12 pixels, with black and white ones among them."""

    def __init__(self):
        super().__init__(name="grey", fingerprint="grey-v1", image_shape=(1, 12, 12))
        at = torch.arange(144, dtype=torch.float32)
        self.pixels = ((at * (1 + torch.arange(40.0)[:, None])) % 256).to(torch.uint8).view(40, 1, 12, 12)

    def __len__(self):
        return len(self.pixels)

    def images(self, index):
        return self.pixels[self._checked(index)].float() / 255


def packed_data():
    """Bright squares, 120 of them, with their bits, which lie on a device."""
    data = TinyData()
    data.bits = reference.pack_bits(data.images(torch.arange(len(data))).flatten(1))
    return data
