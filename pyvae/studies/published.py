"""Published tables and figures as data: the arms that are trained, the numbers they gave, and who says so."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError
from pyvae.objectives import CIWAE, IWAE, MIWAE, PIWAE, BetaVAE, CapacityVAE, FactorVAE, InfoGAN
from pyvae.recipes import RECIPES

Quantity = Literal["recon", "kl", "mig-chen", "mig", "factor-vae", "iwae-64", "log-p", "gap", "ess"]
QUANTITIES: dict[Quantity, str] = {
    "recon": "reconstruction, nats",
    "kl": "KL, nats",
    "mig-chen": "MIG (Chen et al.)",
    "mig": "MIG (20 bins)",
    "factor-vae": "FactorVAE metric",
    "iwae-64": "IWAE-64, nats",
    "log-p": "log p(x), 5,000 samples, nats",
    "gap": "IWAE-64 - log p(x), nats",
    "ess": "effective samples of 5,000",
}
"""What is measured, the metrics among it by their names in pyvae.metrics.METRICS."""
LIKELIHOODS: dict[Quantity, str] = {
    "iwae-64": "iwae_64",
    "log-p": "log_p",
    "gap": "difference",
    "ess": "effective_sample_size",
}
"""What pyvae.evaluation.score_likelihood measures, and its names there."""

Certainty = Literal["code", "quoted", "documents", "recalled", "setting"]
CERTAINTIES: dict[Certainty, str] = {
    "code": "read in the log files or code of a public repository",
    "quoted": "quoted by a third party; the paper was not at hand",
    "documents": "quoted in the documents this project started from; the original was not at hand",
    "recalled": "recalled without the paper at hand",
    "setting": "no result but a setting, which the result must meet",
}


@dataclass(frozen=True)
class Published:
    """A number to compare with."""

    quantity: Quantity
    value: float
    source: str
    """Who published it, and what there is to know of how it was measured."""
    certainty: Certainty
    high: float | None = None
    """Upper end where the sources give a range, which then begins at ``value``."""
    error: float | None = None
    """What stands behind the source's plus-minus sign; taken as a standard error, the wider reading, where the source
    does not say."""
    runs: int | None = None
    """Runs behind it, where known."""
    resolution: float = 0.0
    """Differences up to this mean nothing: half the last printed digit, or what the source's way of measuring adds."""

    def show(self) -> str:
        """The number as it was printed."""
        digits = f"{self.value:g}" if self.high is None else f"{self.value:g} to {self.high:g}"
        return digits if self.error is None else f"{digits} ± {self.error:g}"


@dataclass(frozen=True)
class Arm:
    """A line of a table."""

    name: str
    """Its directory's name."""
    recipe: Recipe
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class Study:
    """A table or figure."""

    title: str
    arms: tuple[Arm, ...]
    without: tuple[str, ...] = ()
    """Factors that its metrics leave out."""
    notes: tuple[str, ...] = ()
    """What differs from the source, and what is left out."""
    data: str = "dsprites"
    """What the numbers are of: "dsprites", or "mnist", whose files must be given."""

    @property
    def metrics(self) -> tuple[Quantity, ...]:
        """Metrics of the codes that its numbers need."""
        return tuple(q for q in self._used if q not in ("recon", "kl", *LIKELIHOODS))

    @property
    def likelihoods(self) -> tuple[Quantity, ...]:
        """What its numbers need of the marginal likelihood, and the effective sample size with it."""
        return tuple(LIKELIHOODS) if any(q in LIKELIHOODS for q in self._used) else ()

    @property
    def _used(self) -> tuple[Quantity, ...]:
        used = {number.quantity for arm in self.arms for number in arm.published}
        return tuple(q for q in QUANTITIES if q in used)

    def recipe(self, arm: Arm, data: str) -> Recipe:
        """The recipe of an arm on this data; dSprites is black and white and 64 x 64 already."""
        if self.data == "mnist" and data == "dsprites":
            return replace(arm.recipe, data=data, image_size=64, binarise="none")
        return replace(arm.recipe, data=data)

    def numbers(self) -> Iterator[tuple[Arm, Published]]:
        """Every published number with its arm."""
        for arm in self.arms:
            for number in arm.published:
                yield arm, number


def parse_scale(scale: float) -> Fraction:
    """The decimal fraction that was meant.

    Raises:
        PyvaeError: not in (0, 1].
    """
    if not 0 < scale <= 1:
        raise PyvaeError(f"--scale must be above 0 and at most 1, got {scale}")
    return Fraction(repr(float(scale)))


def shorten(recipe: Recipe, scale: Fraction) -> Recipe:
    """The recipe with every length times ``scale``, rounded and at least 1, so that schedules fill the same part of it.

    Capacity that rises by increments keeps its nats in each part of the run: where the period cannot be scaled
    exactly, the increment makes up for it. The memory 1 / (1 - s) of a moving average is a length too. Rates (learning
    rate, gains of a controller) are not touched; against them a shortened ramp is steep, which the published
    anti-windup can answer by never controlling again, so that a scaled run takes the conditional one.
    """
    objective: Any = recipe.objective
    changes: dict[str, Any] = {
        name: _times(getattr(objective, name), scale)
        for name in ("capacity_steps", "annealing_steps", "adaptive_window", "capacity_period")
        if hasattr(objective, name)
    }
    if "capacity_period" in changes:
        stretched = changes["capacity_period"] / (objective.capacity_period * scale)
        changes["capacity_increment"] = objective.capacity_increment * float(stretched)
        memory = max(scale / (1 - Fraction(objective.adaptive_smoothing)), Fraction(1))
        changes["adaptive_smoothing"] = float(1 - 1 / memory)
    if scale < 1 and hasattr(objective, "anti_windup"):
        changes["anti_windup"] = "conditional"
    stage = recipe.lr_stage_steps
    return replace(
        recipe,
        objective=replace(objective, **changes),
        steps=_times(recipe.steps, scale),
        lr_stage_steps=None if stage is None else _times(stage, scale),
        keep_at=tuple(dict.fromkeys(_times(step, scale) for step in recipe.keep_at)),
    )


def _times(length: int, scale: Fraction) -> int:
    return max(math.floor(length * scale + Fraction(1, 2)), 1)


def _recipe(name: str, **changes: Any) -> Recipe:
    return replace(RECIPES[name][1], **changes)


_CONTROL_VAE = (
    "Shao et al. 2020, ControlVAE: MIG by their script, which is Chen et al.'s estimator on one sampled z per image "
    "without the factor shape; mean over 5 seeds, the kind of error is not said"
)
_TERM_PAPER = "term paper on adaptive capacity for ControlVAE, one seed"
_MINIBATCH = _TERM_PAPER + '; "final loss", almost surely of one minibatch, so comparable to within a nat'
_DISVAE = (
    "YannDubs/disentangling-vae, results/*/train_losses.log: mean over every 50th minibatch of the last epoch, "
    "one run"
)
_INFOGAN_CR = (
    "InfoGAN-CR (Lin et al. 2020), table 1: mean of 10 runs of 311,000 steps, the second batch being the first, "
    "metrics of sampled z"
)


def _control(arm: str, recipe: Recipe, mig: float, error: float, kl: float | None = None) -> Arm:
    numbers = [Published("mig-chen", mig, _CONTROL_VAE, "recalled", error=error, runs=5, resolution=5e-5)]
    if kl is not None:
        source = "set point of the controller; 0.1 nats are allowed for"
        numbers.append(Published("kl", kl, source, "setting", resolution=0.1))
    return Arm(arm, recipe, tuple(numbers))


def _trained(arm: str, recipe: Recipe, recon: float, kl: float) -> Arm:
    return Arm(
        arm,
        recipe,
        (
            Published("recon", recon, _DISVAE, "code", runs=1, resolution=0.005),
            Published("kl", kl, _DISVAE, "code", runs=1, resolution=0.005),
        ),
    )


def _factor(gamma: float, metric: float, mig: float) -> Arm:
    recipe = _recipe("factor-vae", objective=FactorVAE(gamma=gamma))
    return _scored(f"factor-vae-{gamma:g}", recipe, _INFOGAN_CR, metric, mig, runs=10)


def _beside_infogan(arm: str, recipe: Recipe, said: str, metric: float, mig: float | None = None) -> Arm:
    return _scored(arm, recipe, f"{said}, table 1 of InfoGAN-CR (Lin et al. 2020)", metric, mig)


def _scored(
    arm: str, recipe: Recipe, source: str, metric: float, mig: float | None, runs: int | None = None
) -> Arm:
    scores: dict[Quantity, float | None] = {"factor-vae": metric, "mig": mig}
    numbers = (
        Published(quantity, value, source, "quoted", runs=runs, resolution=0.005)
        for quantity, value in scores.items()
        if value is not None
    )
    return Arm(arm, recipe, tuple(numbers))


def _capacity(arm: str, recipe: str, mig: float, recon: float) -> Arm:
    return Arm(
        arm,
        _recipe(recipe),
        (
            Published("mig-chen", mig, _TERM_PAPER, "documents", runs=1, resolution=5e-5),
            Published("recon", recon, _MINIBATCH, "documents", runs=1, resolution=1.0),
        ),
    )


def _changed(arm: str, name: str, **changes: Any) -> Arm:
    recipe = _recipe(name)
    return Arm(arm, replace(recipe, objective=replace(recipe.objective, **changes)))


def _hypothesis(arm: str, **changes: Any) -> Arm:
    source = "the linear arm's: what would be found if the schedule alone made the difference; " + _TERM_PAPER
    return replace(
        _changed(arm, "control-vae-adaptive", **changes),
        published=(
            Published("mig-chen", 0.5279, source, "documents", runs=1, resolution=5e-5),
            Published("recon", 18.2191, source, "documents", runs=1, resolution=1.0),
        ),
    )


def _bound(
    arm: str,
    objective: Any,
    iwae: tuple[float, float],
    log_p: tuple[float, float],
    gap: tuple[float, float],
    certainty: Certainty = "quoted",
) -> Arm:
    return Arm(
        arm,
        _recipe(
            "iwae",
            objective=objective,
            image_size=28,
            binarise="stochastic",
            lr_stage_steps=3_000,
            steps=9_840_000,
        ),
        (
            Published("iwae-64", iwae[0], _RAINFORTH, certainty, error=iwae[1], runs=4, resolution=0.005),
            Published("log-p", log_p[0], _RAINFORTH, certainty, error=log_p[1], runs=4, resolution=0.005),
            Published("gap", gap[0], _RAINFORTH, certainty, error=gap[1], runs=4, resolution=0.005),
        ),
    )


_RAINFORTH = (
    "Rainforth et al. 2018, table 1, MNIST test set: mean and deviation over 4 runs, which is taken as a standard "
    "error"
)

_NO_SHAPE = (
    "MIG is that of Chen et al. over four factors, without shape, as the source's; by quadrature, the limit of their "
    "10,000 samples."
)

_SHORT_ADAPTIVE = (
    "Scaled to fewer than some tens of thousands of steps, adaptive capacity hardly rises: the controller's integral "
    "gain is a rate and stays as it is, so that beta climbs, and C waits, for as long as it takes to press the KL to "
    "the first set points. docs/findings/capacity.md tells of a study that scales the gains too."
)

STUDIES: dict[str, Study] = {
    "control-vae-capacity": Study(
        "ControlVAE with linear and with adaptive capacity, C from 0.5 to 16 nats in 1.5M steps",
        (
            _capacity("linear", "control-vae-linear", 0.5279, 18.2191),
            _capacity("adaptive", "control-vae-adaptive", 0.5273, 37.1294),
        ),
        without=("shape",),
        notes=(
            _NO_SHAPE,
            "The schedules confound the comparison of reconstructions: linear capacity is at 16 nats for the last "
            "980,000 steps, adaptive capacity reaches them at the very end. The law (1 - t/T)^(1/2) of the gap to 16 "
            "nats, which follows where beta rises in half of the steps, is dotted in the panel of C.",
            "Where the rule of adaptive capacity is ambiguous, options are the defaults of "
            "pyvae.control.adapt_capacity.",
            _SHORT_ADAPTIVE,
        ),
    ),
    "control-vae-capacity-controls": Study(
        "What the adaptive rule does to ControlVAE once the schedule's length or its noise is taken out",
        (
            _hypothesis("adaptive-held", capacity_steps=520_000),
            _changed("adaptive-smoothed", "control-vae-adaptive", adaptive_smoothing=0.999),
            _changed("linear-stretched", "control-vae-linear", schedule="linear"),
        ),
        without=("shape",),
        notes=(
            _NO_SHAPE,
            "adaptive-held ends its schedule at step 520,000, where linear capacity does, and holds 16 nats for the "
            "rest: compared with the linear arm's numbers, it tells how much of the published difference is the "
            "schedule's. adaptive-smoothed compares beta with its moving average over 1,000 steps, which the noise of "
            "minibatches moves less. linear-stretched reaches 16 nats at the very end, as adaptive capacity, but in a "
            "straight line. None of them is a published run, and the last two have no numbers to be compared with.",
            _SHORT_ADAPTIVE,
        ),
    ),
    "control-vae": Study(
        "ControlVAE at 16 and 18 nats against beta-VAE and FactorVAE, MIG",
        (
            _control("control-vae-16", _recipe("control-vae-linear"), 0.5628, 0.0222, 16.0),
            _control("control-vae-18", _recipe("control-vae"), 0.5432, 0.0281, 18.0),
            _control(
                "beta-vae-100",
                Recipe(
                    objective=CapacityVAE(gamma=100.0, capacity=15.0),
                    architecture="burgess",
                    init="kaiming",
                    lr=5e-4,
                    steps=1_500_000,
                ),
                0.5138,
                0.0371,
            ),
            _control(
                "factor-vae-10",
                _recipe(
                    "factor-vae",
                    objective=FactorVAE(gamma=10.0, discriminator_layers=5),
                    steps=1_500_000,
                ),
                0.5625,
                0.0443,
            ),
        ),
        without=("shape",),
        notes=(
            _NO_SHAPE,
            "beta-VAE has gamma 100, C to 15 nats in 100,000 steps and 1.5M steps in all, as "
            "run_dsprites_B_gamma100_z10_c15.sh of ControlVAE's code, which counts C from step 1, not 0. Of FactorVAE "
            "that code has only the name, in the script of its MIG: the network is taken from 1Konny/FactorVAE, with "
            "five hidden layers in the discriminator. There gamma 10 has 700,000 steps, and weights start from "
            "N(0, 0.02); here it has 1.5M, as the others, and torch's weights.",
        ),
    ),
    "burgess": Study(
        "Capacity-annealed beta-VAE of Burgess et al. 2018, C to 25 nats in 100,000 steps",
        (
            Arm(
                "capacity-1000",
                _recipe("capacity-vae"),
                (
                    Published(
                        "kl",
                        25.0,
                        "final C of Burgess et al. 2018, who give no other number; 0.1 nats are allowed for",
                        "setting",
                        resolution=0.1,
                    ),
                ),
            ),
            _trained(
                "capacity-100",
                _recipe("capacity-vae", objective=CapacityVAE(gamma=100.0), lr=1e-3, steps=345_600),
                81.06,
                25.00,
            ),
            Arm("factor-bottleneck", _recipe("factor-bottleneck")),
        ),
        notes=(
            "Figure 3 of the paper has no numbers but an order: position pays at the lowest C (3.1 nats), then scale "
            "(7.3), shape, and orientation (15.4 and 23.8); see the arm factor-bottleneck.",
            "The published run of capacity-100 counts C from step 1, not 0, and starts from kaiming_uniform weights, "
            "ours from kaiming_normal ones. Our numbers are of the final weights.",
        ),
    ),
    "beta-vae": Study(
        "VAE and beta-VAE with the network of Burgess et al., reconstruction and KL after 30 epochs",
        (
            _trained("beta-1", _recipe("vae", objective=BetaVAE(beta=1.0)), 17.99, 25.40),
            _trained("beta-4", _recipe("vae", objective=BetaVAE(beta=4.0)), 35.61, 15.35),
        ),
        notes=(
            "In the published runs the weight of the KL rises in a straight line from 0 to its value over the first "
            "10,000 steps (reg_anneal in their specs.json), and weights start from kaiming_uniform, some 2.4 times as "
            "wide as torch's. Here the weight is constant, and the weights are torch's.",
            "Ours are of the final weights, the published ones averages over every 50th step of the last epoch.",
        ),
    ),
    "factor-vae": Study(
        "FactorVAE at gamma 10, 20 and 40 against beta-VAE, the FactorVAE metric",
        (
            _factor(10.0, 0.83, 0.40),
            _factor(20.0, 0.83, 0.40),
            _factor(40.0, 0.82, 0.43),
            Arm(
                "beta-vae-4",
                _recipe("factor-vae", objective=BetaVAE(beta=4.0)),
                (
                    Published(
                        "factor-vae",
                        0.73,
                        "Kim & Mnih 2018, about, mean at beta 4",
                        "recalled",
                        resolution=0.005,
                    ),
                ),
            ),
        ),
        notes=(
            "Kim & Mnih's network and 300,000 steps in every arm. Metrics are of mean codes, with the defaults of "
            "disentanglement_lib; InfoGAN-CR took sampled codes: for the FactorVAE metric the accuracy on 500 votes of "
            "100 points that trained its classifier, no latent pruned, and for MIG 73,728 images.",
            "The code of InfoGAN-CR (FactorVAE_dSprites/) has five hidden layers in the discriminator where ours has "
            "six, no activation after the encoder's layer of 128, weights from N(0, 0.02) where ours are torch's, and "
            "permutes the batch that it trains on where ours takes a second one.",
        ),
    ),
    "infogan": Study(
        "InfoGAN and InfoWGAN-GP against a VAE of the same layers, the FactorVAE metric",
        (
            _beside_infogan("infogan", _recipe("infogan"), "InfoGAN of an earlier paper", 0.59, 0.05),
            _beside_infogan(
                "infogan-5-codes",
                _recipe("infogan", objective=InfoGAN(continuous=5, categories=0, information_weight=0.05)),
                "modified InfoGAN",
                0.82,
            ),
            Arm("infowgan-gp", _recipe("infowgan-gp")),
            _beside_infogan(
                "vae",
                _recipe("factor-vae", objective=BetaVAE(beta=1.0)),
                "VAE of an earlier paper",
                0.63,
                0.10,
            ),
        ),
        notes=(
            "Kim & Mnih 2018 find InfoGAN and InfoWGAN-GP well below the VAEs (recalled without the paper at hand); "
            "we know of no number of InfoWGAN-GP on dSprites.",
            "infogan has the codes of Kim & Mnih, infogan-5-codes those of InfoGAN-CR without its contrastive "
            "regulariser, which joins for the last tenth there. Both have spectral normalisation; 0.59 may be of an "
            "InfoGAN without it, so that infogan may well be higher.",
            "Scores are of mean codes of real images, which a generator's information head reads.",
        ),
    ),
    "tighter-bounds": Study(
        "IWAE, MIWAE, PIWAE and CIWAE on MNIST: tighter bounds are not necessarily better",
        (
            _bound("vae", MIWAE(outer=64, samples=1), (-86.69, 0.08), (-86.21, 0.19), (-0.47, 0.20)),
            _bound("iwae", IWAE(samples=64), (-86.11, 0.10), (-84.52, 0.02), (-1.59, 0.10)),
            _bound("miwae-8-8", MIWAE(outer=8, samples=8), (-85.69, 0.04), (-84.97, 0.10), (-0.72, 0.11)),
            _bound(
                "miwae-4-16",
                MIWAE(outer=4, samples=16),
                (-85.60, 0.07),
                (-84.56, 0.05),
                (-1.04, 0.08),
                "recalled",
            ),
            _bound("piwae-8-8", PIWAE(outer=8, samples=8), (-85.74, 0.07), (-84.46, 0.06), (-1.28, 0.09)),
            _bound(
                "piwae-4-16",
                PIWAE(outer=4, samples=16),
                (-85.68, 0.06),
                (-84.40, 0.17),
                (-1.27, 0.18),
                "recalled",
            ),
            _bound(
                "ciwae-0.05",
                CIWAE(samples=64, beta=0.05),
                (-85.91, 0.11),
                (-84.57, 0.09),
                (-1.34, 0.14),
                "recalled",
            ),
            _bound("ciwae-0.5", CIWAE(samples=64, beta=0.5), (-86.08, 0.08), (-85.24, 0.08), (-0.84, 0.11)),
        ),
        notes=(
            "The 784-200-200-50 network, batch 20, 3,280 epochs in eight stages of the learning rate, images binarised "
            "anew each time. Evaluated on 1,000 images of t10k-images-idx3-ubyte where that lies beside the training "
            "images, each binarised once for all; the paper evaluates on all 10,000.",
            "The paper's code was not found. That of Burda et al. (yburda/iwae), whose setting it takes over, differs "
            "from ours in Adam (epsilon 1e-4, beta1 0.99, second moments from 1; here 1e-8, 0.9 and 0), in rates "
            "rounded to two digits, and in the decoder's bias, which starts at the pixels' log-odds, here at 0.",
            "The signal-to-noise ratios of the paper are the study tighter-bounds-toy.",
        ),
        data="mnist",
    ),
    "tc-vae": Study(
        "beta-TCVAE of Chen et al. 2018 on dSprites: 1200-unit MLP, batch 2048, 18,000 steps, MIG",
        (
            Arm(
                "tc-vae-6",
                _recipe("tc-vae"),
                (
                    Published(
                        "mig-chen",
                        0.45,
                        "0.45 is the paper's, via a third party's README; 0.50 is what users of Chen's code report "
                        "(YannDubs/disentangling-vae, issue 64)",
                        "quoted",
                        high=0.50,
                        resolution=0.005,
                    ),
                ),
            ),
        ),
        without=("shape",),
        notes=(
            _NO_SHAPE,
            "Network, batch, rate and length are those of rtqichen/beta-tcvae, whose encoder gives log sigma, ours log "
            "sigma^2.",
        ),
    ),
}
