"""Decoders whose images are not all grey, for tests of the explorer."""

import torch
from torch import nn

from pyvae.nets import Autoencoder


def widened(net: Autoencoder) -> Autoencoder:
    """With weights so large that its pixels are anything from 0 to 1."""
    with torch.no_grad():
        for layer in net.decoder.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                # twice the gain of a ReLU, over what reaches an output
                reached = layer.weight[0].numel()
                if isinstance(layer, nn.ConvTranspose2d):
                    reached = layer.weight.shape[0] * layer.weight[0, 0].numel() // 4
                torch.nn.init.normal_(layer.weight, std=(2.4 / reached) ** 0.5)
    return net.eval()


def many_layers(latents: int, seed: int = 0) -> nn.Sequential:
    """Every layer that the explorer knows, from ``[B, latents]`` to ``[B, 3, 25, 27]``, no two sizes alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = nn.Sequential(
            nn.Linear(latents, 24),
            nn.BatchNorm1d(24),
            nn.ELU(0.7),
            nn.Dropout(0.5),
            nn.Sequential(nn.Linear(24, 6 * 4 * 5, bias=False), nn.SiLU(), nn.Unflatten(1, (6, 4, 5))),
            nn.BatchNorm2d(6, affine=False),
            nn.ConvTranspose2d(6, 8, (3, 4), stride=(2, 1), padding=(0, 1), output_padding=(1, 0), groups=2),
            nn.GELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 7, (3, 2), padding=(1, 0), dilation=(1, 2)),
            nn.LeakyReLU(0.3),
            nn.Flatten(),
            nn.Identity(),
            nn.Unflatten(1, (7, 20, 10)),
            nn.Upsample(size=(25, 27), mode="bilinear", align_corners=True),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(7, 8, 3, stride=1, padding=1, groups=1),
            nn.Softplus(2.0, 1.0),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(8, 6, 2, stride=2, bias=False),
            nn.Tanh(),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
            nn.Sigmoid(),
            nn.ConvTranspose2d(2, 3, 3, padding=1),
        )
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(2)
            for _ in range(20):  # averages of its own
                decoder.train()(2 * torch.randn(16, latents))
    return decoder.eval()
