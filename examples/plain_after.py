"""plain_before.py with pyvae: four lines are other ones."""

import sys
import time

import torch
from torch import nn

from pyvae import bernoulli_nll, reparameterize_kl

torch.manual_seed(0)
x_at, y_at = torch.randint(0, 48, (2, 512))
pixel = torch.arange(64)
inside = [(at[:, None] <= pixel) & (pixel < at[:, None] + 16) for at in (y_at, x_at)]
images = (inside[0][:, :, None] & inside[1][:, None, :])[:, None].float()

encoder = nn.Sequential(nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 20))
decoder = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 4096), nn.Unflatten(1, (1, 64, 64)))
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

seconds = []
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 200):
    start = time.perf_counter()
    x = images[torch.randint(len(images), (64,))]
    mu, logvar = encoder(x).chunk(2, dim=1)
    z, kl = reparameterize_kl(mu, logvar)
    recon = bernoulli_nll(decoder(z), x)
    kl = kl.sum()
    loss = recon + 4 * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    seconds.append(time.perf_counter() - start)
print(
    f"recon {recon.item():.1f}, KL {kl.item():.2f} nats; {sorted(seconds)[len(seconds) // 2] * 1e3:.2f} ms a step"
)
