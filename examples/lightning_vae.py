"""A beta-VAE in Lightning, with pyvae's losses, and MIG computed in the validation loop."""

import sys

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyvae.metrics import StreamedMetrics
from pyvae.modules import BernoulliNLL, ReparameterizeKL

POSITIONS = 12


class BetaVAE(L.LightningModule):
    def __init__(self, beta: float = 4.0) -> None:
        super().__init__()
        self.beta = beta
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 2 * 6))
        self.decoder = nn.Sequential(
            nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 4096), nn.Unflatten(1, (1, 64, 64))
        )
        self.sample, self.nll = ReparameterizeKL(), BernoulliNLL()
        self.metrics = StreamedMetrics(
            ["mig"], (POSITIONS, POSITIONS), ("row", "column"), options={"mig": {"points": None}}
        )

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, _classes = batch
        z, kl = self.sample(self.encoder(x))
        recon = self.nll(self.decoder(z), x)
        self.log_dict({"recon": recon, "kl": kl.sum()})
        return recon + self.beta * kl.sum()

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        x, classes = batch
        mu, logvar = self.encoder(x).chunk(2, -1)
        self.metrics.update(mu, classes, logvar)

    def on_validation_epoch_end(self) -> None:
        self.log("mig", self.metrics.compute()["mig"]["score"])
        self.metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def squares() -> TensorDataset:
    """A square of 16 pixels at every position of a grid."""
    classes = torch.cartesian_prod(torch.arange(POSITIONS), torch.arange(POSITIONS))
    pixel = torch.arange(64)
    rows, columns = ((pixel >= 4 * c[:, None]) & (pixel < 4 * c[:, None] + 16) for c in classes.T)
    return TensorDataset((rows[:, :, None] & columns[:, None, :])[:, None].float(), classes)


def main(epochs: int = 20) -> dict[str, float]:
    L.seed_everything(0, verbose=False)
    data = squares()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(BetaVAE(), DataLoader(data, 36, shuffle=True), DataLoader(data, 36))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
