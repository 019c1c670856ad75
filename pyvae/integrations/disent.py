"""disent (Michlo 2021): its frameworks, with pyvae's reconstruction loss.

>>> from disent.frameworks.vae import BetaVae  # doctest: +SKIP
>>> class FusedBetaVae(FusedReconstruction, BetaVae):  # doctest: +SKIP
...     pass
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyvae.errors import PyvaeError
from pyvae.functional import bernoulli_nll

_BERNOULLI = ("bce", "bernoulli")


class FusedReconstruction:
    """In front of a disent VAE framework among the bases of a class: its Bernoulli reconstruction loss in one pass.

    The value is disent's for the same ``loss_reduction``: "mean" divides by the pixels of the batch, "mean_sum" by its
    images, "sum" by nothing. Everything else, the KL included, stays disent's.

    Raises:
        PyvaeError: in the first step, for another ``recon_loss`` than "bce" or "bernoulli".
    """

    cfg: Any

    def compute_ave_recon_loss(
        self, xs_partial_recon: Sequence[Tensor], xs_targ: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The average over the observations, and what disent logs."""
        if self.cfg.recon_loss not in _BERNOULLI:
            raise PyvaeError(f"FusedReconstruction: recon_loss is {self.cfg.recon_loss!r}: set it to 'bce'")
        losses = [self._loss(logits, x) for logits, x in zip(xs_partial_recon, xs_targ, strict=True)]
        loss = sum(losses[1:], losses[0]) / len(losses)
        return loss, {"pixel_loss": loss}

    def _loss(self, logits: Tensor, x: Tensor) -> Tensor:
        if self.cfg.loss_reduction == "sum":
            return bernoulli_nll(logits, x, reduction="sum")
        loss = bernoulli_nll(logits, x)
        return loss / logits[0].numel() if self.cfg.loss_reduction == "mean" else loss
