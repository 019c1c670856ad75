"""Networks: those of the papers by name, how they are built and initialised, and the layers that they are made of."""

from pyvae.nets.autoencoder import Autoencoder, Encoder, FactorEncoder
from pyvae.nets.build import build, count_weights, seeded, takes_any_side
from pyvae.nets.discriminator import build_discriminator
from pyvae.nets.initialise import INITIALISATIONS, Initialisation
from pyvae.nets.published import (
    ANY_SIDE,
    ARCHITECTURES,
    SIDE,
    ArchitectureName,
    beta_vae_h,
    burgess,
    kim,
    kim_256,
    locatello,
    mlp,
    rainforth,
)

__all__ = [
    "ANY_SIDE",
    "ARCHITECTURES",
    "INITIALISATIONS",
    "SIDE",
    "ArchitectureName",
    "Autoencoder",
    "Encoder",
    "FactorEncoder",
    "Initialisation",
    "beta_vae_h",
    "build",
    "build_discriminator",
    "burgess",
    "count_weights",
    "kim",
    "kim_256",
    "locatello",
    "mlp",
    "rainforth",
    "seeded",
    "takes_any_side",
]
