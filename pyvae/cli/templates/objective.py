"""A loss of my own. Train it with

    pyvae train vae --objective NEW_FILE:Mine --beta 2

Whatever you change here makes another run: a run keeps a copy of this file, and goes on only while it is unchanged.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mine:
    """recon + beta KL, and a small cost of means that are far from 0."""

    # fields are options of the command line (--beta 2) and are kept with the run; each needs a type and a default:
    # int, float, bool, str, Literal["a", "b"], tuple[int, ...], or one of them | None
    beta: float = 4.0
    """Weight of the KL. This text is the option's help."""
    drift: float = 0.01
    """Weight of the squared means."""

    def terms(self, outputs, step):
        """Called in every step; see pyvae.objectives.Outputs for all that is given:
            outputs.recon   []      negative log-likelihood in nats, summed over pixels, averaged over the batch
            outputs.kl      [D]     KL of each latent in nats, averaged over the batch
            outputs.z       [B, D]  samples; outputs.mu and outputs.logvar are those of the posteriors
            outputs.images  [B, C, side, side] in [0, 1]; outputs.logits are what the decoder made of z
            step            []      int64, counted from 0, on the same device

        Return a dict of scalars. "loss" is minimised; all others become columns of trace.csv. "recon" and "kl" are
        filled in where they are missing, "beta" and "capacity" with 0. Stay on the device: no .item(), no if on the
        value of a tensor.
        """
        far = outputs.mu.square().sum(-1).mean()
        kl = outputs.kl.sum(-1)
        return {"loss": outputs.recon + self.beta * kl + self.drift * far, "beta": self.beta, "far": far}
