"""The objectives of the literature, by the name that recipes and the command line use."""

from pyvae.objectives.annealed_vae import AnnealedVAE
from pyvae.objectives.beta_vae import BetaVAE
from pyvae.objectives.capacity_vae import CapacityVAE
from pyvae.objectives.control_vae import ControlVAE
from pyvae.objectives.dip_vae import DIPVAE
from pyvae.objectives.factor_vae import FactorVAE
from pyvae.objectives.infogan import InfoGAN, InfoWGANGP
from pyvae.objectives.iwae import CIWAE, IWAE, MIWAE, PIWAE, ImportanceWeighted
from pyvae.objectives.objective import TERMS, Objective, Outputs
from pyvae.objectives.tc_vae import TCVAE
from pyvae.objectives.vae import VAE

OBJECTIVES: dict[str, type[Objective]] = {
    "vae": VAE,
    "beta-vae": BetaVAE,
    "capacity-vae": CapacityVAE,
    "control-vae": ControlVAE,
    "annealed-vae": AnnealedVAE,
    "factor-vae": FactorVAE,
    "tc-vae": TCVAE,
    "dip-vae": DIPVAE,
    "iwae": IWAE,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "infogan": InfoGAN,
    "infowgan-gp": InfoWGANGP,
}

__all__ = [
    "CIWAE",
    "DIPVAE",
    "IWAE",
    "MIWAE",
    "OBJECTIVES",
    "PIWAE",
    "TCVAE",
    "TERMS",
    "VAE",
    "AnnealedVAE",
    "BetaVAE",
    "CapacityVAE",
    "ControlVAE",
    "FactorVAE",
    "ImportanceWeighted",
    "InfoGAN",
    "InfoWGANGP",
    "Objective",
    "Outputs",
]
