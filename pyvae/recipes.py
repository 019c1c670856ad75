"""Published runs as recipes. Where a source leaves something out, the line says what was taken instead."""

from dataclasses import replace

from pyvae.engine.recipe import Recipe
from pyvae.objectives import (
    CIWAE,
    DIPVAE,
    IWAE,
    MIWAE,
    PIWAE,
    TCVAE,
    VAE,
    AnnealedVAE,
    BetaVAE,
    CapacityVAE,
    ControlVAE,
    FactorVAE,
    InfoGAN,
    InfoWGANGP,
)

# stages of 1, 3, 9, ... epochs of 3,000 steps on MNIST, 100 here
_RAINFORTH = Recipe(
    architecture="rainforth",
    init="glorot",
    latents=50,
    batch_size=20,
    lr=1e-3,
    lr_stage_steps=100,
    steps=328_000,
)

RECIPES: dict[str, tuple[str, Recipe]] = {
    "demo": (
        "A beta-VAE that finds the factors of dSprites within two minutes on two CPU cores: beta 4, batch 32, "
        "Adam 1e-3, 3,000 steps; of no paper",
        Recipe(
            objective=BetaVAE(), architecture="burgess", init="kaiming", batch_size=32, lr=1e-3, steps=3_000
        ),
    ),
    "vae": (
        "VAE with the network of Burgess et al. 2018; Adam 5e-4, 345,600 steps (30 epochs of dSprites) as in "
        "YannDubs/disentangling-vae: recon 17.99, KL 25.40 nats there",
        Recipe(objective=VAE(), architecture="burgess", lr=5e-4, steps=345_600),
    ),
    "beta-vae": (
        "beta-VAE as 1Konny/Beta-VAE trains it on dSprites: beta 4, Adam 1e-4, 1.5M steps",
        Recipe(objective=BetaVAE(), architecture="beta-vae-h", init="kaiming", lr=1e-4, steps=1_500_000),
    ),
    "beta-vae-mlp": (
        "beta-VAE of Higgins et al. 2017, table 1: 1200-unit MLP, Adagrad 1e-2; batch and length are not published "
        "(64 and 300,000 here)",
        Recipe(objective=BetaVAE(), architecture="mlp", optimizer="adagrad", lr=1e-2, steps=300_000),
    ),
    "capacity-vae": (
        "Capacity-annealed beta-VAE of Burgess et al. 2018: gamma 1000, C to 25 nats in 100,000 steps, Adam 5e-4; "
        "300,000 steps as disentanglement_lib",
        Recipe(objective=CapacityVAE(), architecture="burgess", lr=5e-4, steps=300_000),
    ),
    "control-vae": (
        "ControlVAE of Shao et al. 2020 on dSprites, set point 18: C from 0.5 by 0.15 every 5,000 steps, reached at "
        "585,000; anti-windup as in the authors' code, Adam 1e-4, 1.5M steps. Its set point 16 is control-vae-linear",
        Recipe(
            objective=ControlVAE(capacity=18.0, anti_windup="published"),
            architecture="beta-vae-h",
            init="kaiming",
            steps=1_500_000,
        ),
    ),
    "control-vae-linear": (
        "ControlVAE of Shao et al. 2020, set point 16: the linear arm of the capacity comparison, C from 0.5 by 0.15 "
        "every 5,000 steps, reached at 520,000 of 1.5M",
        Recipe(
            objective=ControlVAE(anti_windup="published"),
            architecture="beta-vae-h",
            init="kaiming",
            steps=1_500_000,
        ),
    ),
    "control-vae-adaptive": (
        "The adaptive arm of the capacity comparison: C from 0.5 towards 16 over all 1.5M steps, raised only while "
        "beta does not rise; else as control-vae-linear. --capacity-steps 520000 gives both arms the same time at 16",
        Recipe(
            objective=ControlVAE(schedule="adaptive", anti_windup="published"),
            architecture="beta-vae-h",
            init="kaiming",
            steps=1_500_000,
        ),
    ),
    "kl-annealing": (
        "Logistic KL annealing of Bowman et al. 2016 over 10,000 steps (the constants of ControlVAE's code); published "
        "for text, network and length here are those of the recipe vae",
        Recipe(objective=AnnealedVAE(), architecture="burgess", lr=5e-4, steps=345_600),
    ),
    "cyclical-annealing": (
        "Cyclical KL annealing of Fu et al. 2019: 4 cycles, beta rising over half of each; published for text, network "
        "and length here are those of the recipe vae. With other --steps give the same --annealing-steps",
        Recipe(
            objective=AnnealedVAE(schedule="cyclical", annealing_steps=345_600),
            architecture="burgess",
            lr=5e-4,
            steps=345_600,
        ),
    ),
    "factor-bottleneck": (
        "The bottleneck of Burgess et al. 2018, section 4.1: a decoder of the five true factors, each through a noisy "
        "channel, C to 25 nats in 100,000 steps as capacity-vae; traversals at C = 3.1, 7.3, 15.4 and 23.8 nats, as "
        "figure 3. --gamma 100 --steps 30000 --capacity-steps 30000 show its order (position, scale, shape, "
        "orientation) sooner",
        Recipe(
            objective=CapacityVAE(),
            architecture="burgess",
            code="factors",
            latents=5,
            lr=5e-4,
            steps=100_000,
            keep_at=(12_400, 29_200, 61_600, 95_200),
        ),
    ),
    "factor-vae": (
        "FactorVAE of Kim & Mnih 2018 on 2D Shapes: gamma 35, Adam 1e-4, discriminator's Adam 1e-4 (0.5, 0.9), "
        "300,000 steps",
        Recipe(objective=FactorVAE(), architecture="kim", lr=1e-4, steps=300_000),
    ),
    "tc-vae": (
        "beta-TCVAE of Chen et al. 2018 on dSprites: beta 6, minibatch-weighted, 1200-unit MLP, batch 2048, "
        "Adam 1e-3, 18,000 steps",
        Recipe(objective=TCVAE(), architecture="mlp", batch_size=2048, lr=1e-3, steps=18_000),
    ),
    "dip-vae-i": (
        "DIP-VAE I as disentanglement_lib trains it: lambda_od 10, lambda_d 100, Adam 1e-4, 300,000 steps",
        Recipe(objective=DIPVAE(), architecture="locatello", init="glorot", steps=300_000),
    ),
    "dip-vae-ii": (
        "DIP-VAE II as disentanglement_lib trains it: lambda_od 10, lambda_d 10, Adam 1e-4, 300,000 steps",
        Recipe(
            objective=DIPVAE(variant="ii", lambda_d=10.0),
            architecture="locatello",
            init="glorot",
            steps=300_000,
        ),
    ),
    "iwae": (
        "IWAE of Burda et al. 2016 as Rainforth et al. 2018 train it on MNIST: 64 samples, 200-200 tanh MLP, 50 "
        "latents, batch 20, Adam falling from 1e-3 in eight stages; of their 9,840,000 "
        "steps a thirtieth",
        replace(_RAINFORTH, objective=IWAE()),
    ),
    "miwae": (
        "MIWAE of Rainforth et al. 2018: (M, K) = (8, 8); else as iwae. --outer 4 --samples 16 and --outer 64 "
        "--samples 1, a VAE of 64 samples, are the paper's others",
        replace(_RAINFORTH, objective=MIWAE()),
    ),
    "piwae": (
        "PIWAE of Rainforth et al. 2018: (M, K) = (8, 8); else as iwae. --outer 4 --samples 16 is the paper's other",
        replace(_RAINFORTH, objective=PIWAE()),
    ),
    "ciwae": (
        "CIWAE of Rainforth et al. 2018: beta 0.5 and 64 samples; else as iwae. --beta 0.05 is the paper's other",
        replace(_RAINFORTH, objective=CIWAE()),
    ),
    "infogan": (
        "InfoGAN of Chen et al. 2016 with the codes of Kim & Mnih 2018 on 2D Shapes: 4 uniform ones and 3 classes, "
        "lambda 0.2; --continuous 5 --categories 0 is their other form. The rest as the code of InfoGAN-CR has it: "
        "noise of 5 dimensions, batch and spectral normalisation, rates 1e-3 and 2e-3, 322,560 steps (28 epochs)",
        Recipe(objective=InfoGAN(), architecture="kim", latents=5, lr=1e-3, steps=322_560),
    ),
    "infowgan-gp": (
        "InfoWGAN-GP of Kim & Mnih 2018 on 2D Shapes: 4 uniform codes and 3 classes, lambda 0.2, penalty 10, 5 steps "
        "of the critic for one of the generator, Adam 1e-4 (0.5, 0.9); --continuous 5 --categories 0 is their other "
        "form. Noise of 5 dimensions and batch normalisation of the generator as InfoGAN-CR; 100,000 steps",
        Recipe(objective=InfoWGANGP(), architecture="kim", latents=5, lr=1e-4, steps=100_000),
    ),
}
