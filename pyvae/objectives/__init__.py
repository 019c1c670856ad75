"""The objectives of the literature, by the name that recipes and the command line use."""

from pyvae.objectives.beta_vae import BetaVAE
from pyvae.objectives.capacity_vae import CapacityVAE
from pyvae.objectives.objective import Objective, Outputs
from pyvae.objectives.vae import VAE

OBJECTIVES: dict[str, type] = {"vae": VAE, "beta-vae": BetaVAE, "capacity-vae": CapacityVAE}

__all__ = ["OBJECTIVES", "VAE", "BetaVAE", "CapacityVAE", "Objective", "Outputs"]
