"""Published runs as recipes. Where a source leaves something out, the line says what was taken instead, and where
public code does something else, what.

The papers were not at hand; what is said of them alone is recalled. Read were 1Konny/Beta-VAE 977a1ec (run_*.sh,
main.py, solver.py, model.py), 1Konny/FactorVAE 8c97b1f (scripts/, model.py), YannDubs/disentangling-vae f045219
(hyperparam.ini, results/*/specs.json and train_losses.log, disvae/), shj1987/ControlVAE-ICML2020 468ce4f
(Disentangling/, Language_modeling/Text_gen_PTB/annealing.py), haofuml/cyclical_annealing 6ef4eba (README.md,
language_model/, dialog/), katalinic/betaVAE (latent_traversal/, understanding_disentangling/), paruby/FactorVAE
(factor_vae.py), rtqichen/beta-tcvae 1a3577d (vae_quant.py, lib/dist.py), google-research/disentanglement_lib 86a644d
(config/unsupervised_study_v1/, methods/), yburda/iwae (experiments.py, optimizers.py, iwae.py) and fjxmlzn/InfoGAN-CR
e0537bc (InfoGAN-CR_dSprites/). No code of Rainforth et al. 2018 and none of InfoWGAN-GP on dSprites was found.
"""

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
        "A beta-TCVAE that finds position and scale of dSprites in about a minute on two CPU cores: beta 10, batch 32, "
        "Adam 2e-3, 4,000 steps; of no paper. Its weights start 15 times as large and fall for 2,000 steps: a network "
        "that pays much for information learns position first, without folds, and the total correlation turns the "
        "latents to x and y. Of the seeds 0 to 9 nine give x, y and scale a latent each; in the tenth x and y stay "
        "turned against their latents, and none learns shape or orientation so soon",
        Recipe(
            objective=TCVAE(beta=10.0, kl_estimate="exact", annealing_from=15.0, annealing_steps=2_000),
            architecture="burgess",
            init="kaiming",
            batch_size=32,
            lr=2e-3,
            steps=4_000,
        ),
    ),
    "vae": (
        "VAE with the network of Burgess et al. 2018; Adam 5e-4, 345,600 steps (30 epochs of dSprites) as in "
        "YannDubs/disentangling-vae: recon 17.99, KL 25.40 nats there. Its run lets the weight of the KL rise from 0 "
        "over the first 10,000 steps and starts from kaiming_uniform weights; here that weight is 1 from the start, "
        "and the weights are torch's",
        Recipe(objective=VAE(), architecture="burgess", lr=5e-4, steps=345_600),
    ),
    "beta-vae": (
        "beta-VAE with the network, initial weights and rate of 1Konny/Beta-VAE: beta 4, Adam 1e-4, 1.5M steps. That "
        "is how its scripts train 3D Chairs, with a squared error; on dSprites they train Burgess et al.'s objective "
        "alone (gamma 100, C to 20 nats, Adam 5e-4)",
        Recipe(objective=BetaVAE(), architecture="beta-vae-h", init="kaiming", lr=1e-4, steps=1_500_000),
    ),
    "beta-vae-mlp": (
        "beta-VAE of Higgins et al. 2017, table 1: 1200-unit MLP, Adagrad 1e-2, as katalinic/betaVAE also has it "
        "(batch 32; sums of squares from TensorFlow's 0.1, where torch's are from 0). Batch 64 and 300,000 steps are "
        "taken, and beta 4",
        Recipe(objective=BetaVAE(), architecture="mlp", optimizer="adagrad", lr=1e-2, steps=300_000),
    ),
    "capacity-vae": (
        "Capacity-annealed beta-VAE of Burgess et al. 2018: gamma 1000, C to 25 nats in 100,000 steps, Adam 5e-4; "
        "300,000 steps as disentanglement_lib, whose network, rate (1e-4) and way of drawing images (--sampling "
        "replacement) are others. Initial weights as 1Konny's code: from torch's, with gamma 1000, comes a code that "
        "is the same for all images",
        Recipe(objective=CapacityVAE(), architecture="burgess", init="kaiming", lr=5e-4, steps=300_000),
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
        "every 5,000 steps, reached at 520,000 of 1.5M; else as control-vae",
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
        "Logistic KL annealing of Bowman et al. 2016 over 10,000 steps (the constants of ControlVAE's code for text); "
        "network and length are those of the recipe vae",
        Recipe(objective=AnnealedVAE(), architecture="burgess", lr=5e-4, steps=345_600),
    ),
    "cyclical-annealing": (
        "Cyclical KL annealing of Fu et al. 2019: 4 cycles, beta rising over half of each, as the README of their code "
        "has it; its scripts, for text, have cycles of ten epochs from beta 0.1, and others. Network and length are "
        "those of the recipe vae. With other --steps give the same --annealing-steps",
        Recipe(
            objective=AnnealedVAE(schedule="cyclical", annealing_steps=345_600),
            architecture="burgess",
            lr=5e-4,
            steps=345_600,
        ),
    ),
    "factor-bottleneck": (
        "The bottleneck of Burgess et al. 2018, section 4.1: a decoder of the five true factors, each through a noisy "
        "channel, C to 25 nats in 100,000 steps, gamma 1000 and Adam 5e-4 as capacity-vae; traversals at C = 3.1, 7.3, "
        "15.4 and 23.8 nats, as figure 3. --gamma 100 --steps 30000 --capacity-steps 30000 --keep-at 3720 8760 18480 "
        "28560 show its order (position, scale, shape, orientation) sooner. katalinic/betaVAE has gamma 100, C from "
        "0.5 by 0.75 nats in 10,000 steps, and noise that scales with the factor",
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
        "300,000 steps; initial weights are torch's. paruby/FactorVAE has these rates and gamma, and one batch for "
        "both losses; 1Konny/FactorVAE gamma 6.4 or 10, five hidden layers, weights from N(0, 0.02) and 700,000 steps",
        Recipe(objective=FactorVAE(), architecture="kim", lr=1e-4, steps=300_000),
    ),
    "tc-vae": (
        "beta-TCVAE of Chen et al. 2018 on dSprites: beta 6, minibatch-weighted, 1200-unit MLP, batch 2048, "
        "Adam 1e-3, 18,000 steps (50 epochs), as their code; its encoder gives log sigma, ours log sigma^2",
        Recipe(objective=TCVAE(), architecture="mlp", batch_size=2048, lr=1e-3, steps=18_000),
    ),
    "dip-vae-i": (
        "DIP-VAE I as disentanglement_lib trains it: lambda_od 10, one of its six from 1 to 50, lambda_d ten times as "
        "much, Adam 1e-4, 300,000 steps. Images come once in an epoch; there each is drawn by itself: --sampling "
        "replacement",
        Recipe(objective=DIPVAE(), architecture="locatello", init="glorot", steps=300_000),
    ),
    "dip-vae-ii": (
        "DIP-VAE II as disentanglement_lib trains it: lambda_od 10, one of its six from 1 to 50, lambda_d as much; "
        "else as dip-vae-i",
        Recipe(
            objective=DIPVAE(variant="ii", lambda_d=10.0),
            architecture="locatello",
            init="glorot",
            steps=300_000,
        ),
    ),
    "iwae": (
        "IWAE of Burda et al. 2016 as Rainforth et al. 2018 train it on MNIST: 64 samples, 200-200 tanh MLP, 50 "
        "latents, batch 20, Adam falling from 1e-3 in eight stages; of their 9,840,000 steps a thirtieth. Adam's "
        "epsilon is 1e-8; the code of Burda et al. has 1e-4, betas 0.99 and 0.999, second moments from 1, rates "
        "rounded to two digits, and a decoder's bias from the pixels' log-odds",
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
        "noise of 5 dimensions, batch and spectral normalisation, rates 1e-3 and 2e-3, 322,560 steps (28 epochs). "
        "There the noise is uniform, the codes are 5 uniform ones with lambda 0.05, both generator's steps read the "
        "same codes, weights start from N(0, 0.02), and a contrastive regulariser joins at step 288,000",
        Recipe(objective=InfoGAN(), architecture="kim", latents=5, lr=1e-3, steps=322_560),
    ),
    "infowgan-gp": (
        "InfoWGAN-GP of Kim & Mnih 2018 on 2D Shapes: 4 uniform codes and 3 classes, lambda 0.2, penalty 10, 5 steps "
        "of the critic for one of the generator, Adam 1e-4 (0.5, 0.9); --continuous 5 --categories 0 is their other "
        "form. Noise of 5 dimensions (normal, not uniform) and batch normalisation of the generator as InfoGAN-CR; "
        "100,000 steps are taken",
        Recipe(objective=InfoWGANGP(), architecture="kim", latents=5, lr=1e-4, steps=100_000),
    ),
}
