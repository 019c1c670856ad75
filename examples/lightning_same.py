"""lightning_vae.py beside the same module with losses as people write them: same loss, same gradients, and the time of
a step in Lightning's own loop."""

import statistics
import sys
import time
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vae import BetaVAE, squares
from pyvae import reference
from pyvae.random import Stream, fresh_key
from side_by_side import largest_difference, spread


class Plain(BetaVAE):
    """With F.binary_cross_entropy_with_logits and the KL formula."""

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, _classes = batch
        mu, logvar = self.encoder(x).chunk(2, -1)
        z = mu + torch.exp(0.5 * logvar) * self.noise(mu)
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") / len(x)
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
        self.log_dict({"recon": recon, "kl": kl})
        return recon + self.beta * kl

    def noise(self, mu: Tensor) -> Tensor:
        return torch.randn_like(mu)


class PlainWithOurNoise(Plain):
    def noise(self, mu: Tensor) -> Tensor:
        return reference.posterior_noise(mu.shape, fresh_key(mu.device), Stream.POSTERIOR, mu.dtype)


class Watch(L.Callback):
    """The first loss and its gradients, and the seconds from the start of each step to its end."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.loss: float | None = None
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_after_backward(self, _: L.Trainer, module: L.LightningModule) -> None:
        if not self.gradients:
            self.gradients = [
                p.grad.detach().cpu().clone() for p in module.parameters() if p.grad is not None
            ]

    def on_train_batch_end(self, _: L.Trainer, module: L.LightningModule, outputs: Any, *__: Any) -> None:
        if self.loss is None:
            self.loss = float(outputs["loss"])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def watched(kind: type[BetaVAE], epochs: int, *, as_if_trained: bool = False) -> Watch:
    L.seed_everything(0, verbose=False)
    watch, module = Watch(), kind()
    if as_if_trained:
        spread(module.encoder)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[watch],
    )
    trainer.fit(module, DataLoader(squares(), 36))
    return watch


def main(epochs: int = 20) -> tuple[float, float]:
    before, after = (watched(kind, 1, as_if_trained=True) for kind in (PlainWithOurNoise, BetaVAE))
    assert before.loss is not None
    assert after.loss is not None
    difference = largest_difference(before.gradients, after.gradients)
    print(f"loss {before.loss:.4f} before, {after.loss:.4f} after; gradients differ by {difference:.1e}")
    runs: dict[type[BetaVAE], list[float]] = {Plain: [], BetaVAE: []}
    for _ in range(4):  # in turns, so that both meet the same noise of the machine
        for kind, seconds in runs.items():
            seconds += watched(kind, max(1, epochs // 4)).seconds[1:]
    old, new = (statistics.median(seconds) * 1e3 for seconds in runs.values())
    print(f"{old:.2f} ms a step before, {new:.2f} ms after: {old / new:.2f}x")
    return abs(before.loss - after.loss) / before.loss, difference


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
