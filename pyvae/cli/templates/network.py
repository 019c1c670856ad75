"""A network of my own. Train it with

    pyvae train vae --architecture NEW_FILE:build

Whatever you change here makes another run: a run keeps a copy of this file, and goes on only while it is unchanged.
"""

from torch import nn


def build(channels, latents, side):
    """Called as build(channels, latents, side), with torch's generator seeded by the run.

    Return an encoder and a decoder, or one module that has both as .encoder and .decoder:
        encoder: images [B, channels, side, side] in [0, 1] -> (mu, logvar), each [B, latents];
                 or one tensor [B, 2 * latents], the mean first
        decoder: z [B, latents] -> logits [B, channels, side, side]; their sigmoid is the picture

    Layers with randomness (nn.Dropout) or with buffers (nn.BatchNorm2d) are welcome: a run that was killed goes on as
    if it had not been. On a GPU, steps are captured as a CUDA graph: no .item(), no if on the value of a tensor.
    """
    quarter = side // 4
    encoder = nn.Sequential(
        nn.Conv2d(channels, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * quarter * quarter, 128),
        nn.ReLU(),
        nn.Linear(128, 2 * latents),
    )
    decoder = nn.Sequential(
        nn.Linear(latents, 128),
        nn.ReLU(),
        nn.Linear(128, 32 * quarter * quarter),
        nn.ReLU(),
        nn.Unflatten(1, (32, quarter, quarter)),
        nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),
    )
    # on a CPU, layers like these are about twice as fast by pyvae's own convolutions:
    # from pyvae.modules import fuse_convolutions
    # fuse_convolutions(encoder), fuse_convolutions(decoder)
    return encoder, decoder
