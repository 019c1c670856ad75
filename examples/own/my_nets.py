"""A network of one's own: convolutions with batch normalisation and dropout, for square images of any even side.

pyvae train vae --architecture my_nets.py:build
"""

from torch import nn


def build(channels, latents, side):
    """An encoder, whose last layer gives mean and log-variance, and a decoder to logits."""
    half = side // 2
    encoder = nn.Sequential(
        nn.Conv2d(channels, 8, 4, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8 * half * half, 2 * latents),
    )
    decoder = nn.Sequential(
        nn.Linear(latents, 8 * half * half),
        nn.ReLU(),
        nn.Unflatten(1, (8, half, half)),
        nn.ConvTranspose2d(8, channels, 4, stride=2, padding=1),
    )
    return encoder, decoder
