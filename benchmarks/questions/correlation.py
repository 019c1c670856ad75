"""Does the discriminator see the total correlation, and is FactorVAE's code less entangled at equal reconstruction?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pyvae
from pyvae.metrics import CodeTable, factor_vae, mig, total_correlation, unsupervised
from pyvae.objectives import FactorVAE
from pyvae.objectives.tc_vae import decompose_kl
from questions.discriminator import catch_up, discriminator_of, says
from questions.drawing import COLOURS, FAINT, tidy
from questions.question import Question, Result
from questions.runs import GRID, grid_codes, snapshot
from questions.tables import NONE_YET, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS = ("factor-vae-35", "beta-vae-4", "beta-vae-8", "beta-vae-16")
ALL = (1, 1, 1, 1, 1)
BATCHES = ((64, 128), (2048, 4))
"""Of beta-TCVAE's estimates: images in one, and how many."""
_SEED = 23
_DENSITY = COLOURS[0]
_ESTIMATES = {"log_odds": COLOURS[1], "bound": COLOURS[2]}
_PARTS = {
    "mutual_information": ("mutual information", COLOURS[5]),
    "tc": ("total correlation", COLOURS[0]),
    "dimension_wise_kl": ("dimension-wise KL", COLOURS[4]),
}


def measure(run: pyvae.Run) -> Result:
    """Total correlation and its estimates at every snapshot, of an eighth of the images; at the end also of all."""
    steps = [*run.recipe.keep_at, run.step]
    found: Result = {"snapshots": [snapshot_of(run, step) for step in steps]}
    codes = grid_codes(run, run.step, ALL)
    found["whole"] = {
        **correlation_of(codes),
        "minibatch": minibatch_estimates(codes),
        "mig": round(mig(codes).score, 4),
        "factor_vae": round(factor_vae(codes).score, 4),
    }
    if isinstance(run.recipe.objective, FactorVAE):
        found["caught_up"] = catch_up(run, run.step, codes)
    return found


def snapshot_of(run: pyvae.Run, step: int) -> dict[str, Any]:
    """Averages over 4,096 fixed images, and correlations of the codes of a grid."""
    averages = snapshot(run, step)
    codes = grid_codes(run, step, GRID)
    found = {
        "step": step,
        "recon": round(averages.recon, 3),
        "kl": round(sum(averages.kl), 4),
        **correlation_of(codes),
    }
    if isinstance(run.recipe.objective, FactorVAE):
        found["discriminator"] = says(discriminator_of(run, step), codes)
    return found


def correlation_of(codes: CodeTable) -> dict[str, Any]:
    """Total correlation by its density, the other parts of the KL, and what Gaussians of the same covariance have."""
    found = total_correlation(codes, progress=False)
    of_means = unsupervised(codes, points=None).gaussian_total_correlation
    numbers = {
        "tc": found.score,
        "tc_error": found.standard_error,
        "mutual_information": found.kl[0],
        "dimension_wise_kl": found.kl[2],
        "gaussian": found.gaussian,
        "gaussian_of_means": of_means,
    }
    return {"images": len(codes), **{name: round(float(value), 4) for name, value in numbers.items()}}


def minibatch_estimates(codes: CodeTable) -> dict[str, float]:
    """Total correlation as beta-TCVAE estimates it, by weighting and size of the batch: means over batches."""
    found = {}
    for weighting in ("mws", "mss"):
        for size, batches in BATCHES:
            g = torch.Generator().manual_seed(_SEED)
            each = []
            for _ in range(batches):
                rows = torch.randperm(len(codes), generator=g)[:size]
                mu, logvar = codes.mu[rows], codes.logvar[rows]
                z = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=g)
                parts = decompose_kl(z, mu, logvar, dataset_size=len(codes), weighting=weighting)
                each.append(float(parts.tc))
            found[f"{weighting} {size}"] = round(sum(each) / batches, 3)
    return found


def pictures(found: Sequence[Result]) -> dict[str, "Figure"]:
    """What the discriminator says, what the KL is made of, and all arms at equal reconstruction."""
    drawn = {
        "correlation-parts.png": parts_of_kl(found),
        "correlation-equal.png": at_equal_reconstruction(found),
    }
    if adversarial := [result for result in found if "caught_up" in result]:
        drawn["correlation-course.png"] = course(adversarial)
    return drawn


def course(found: Sequence[Result]) -> "Figure":
    """Total correlation over the run by its density and by the discriminator, and what more steps of it would do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    *axes, last = figure.subplots(1, len(found) + 1, sharey=True)
    for ax, result in zip(axes, found, strict=True):
        snapshots = result["snapshots"]
        steps = thousands(each["step"] for each in snapshots)
        ax.plot(thousands(result["trace"]["step"]), result["trace"]["tc"], color=FAINT, linewidth=0.8)
        _plot(ax, steps, [each["tc"] for each in snapshots], _DENSITY)
        for key, colour in _ESTIMATES.items():
            _plot(ax, steps, [each["discriminator"][key] for each in snapshots], colour)
        ax.set_title(f"total correlation, nats (seed {result['seed']})", fontsize=10, loc="left")
        ax.set_xlabel("thousand steps (grey: log-odds of training batches)", fontsize=8)
    for result in found:
        steps = [each["steps"] for each in result["caught_up"]]
        last.axhline(result["whole"]["tc"], color=_DENSITY, linewidth=1.2)
        for key, colour in _ESTIMATES.items():
            _plot(last, steps, [each[key] for each in result["caught_up"]], colour)
    last.set_title("at the end, the encoder held still", fontsize=10, loc="left")
    last.set_xlabel("further steps of the discriminator", fontsize=8)
    for ax in (*axes, last):
        ax.axhline(0, color=FAINT, linewidth=0.6)
        tidy(ax)
    names = {
        "by its density": _DENSITY,
        "mean log-odds": COLOURS[1],
        "bound by the discriminator": COLOURS[2],
    }
    _legend(axes[0], names)
    return figure


def parts_of_kl(found: Sequence[Result]) -> "Figure":
    """Mutual information, total correlation and dimension-wise KL over the run: a panel an arm, its first seed."""
    from matplotlib.figure import Figure

    firsts = [next(result for result in found if result["arm"] == arm) for arm in arms_of(found)]
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(firsts), sharey=True))
    colours = [colour for _, colour in _PARTS.values()]
    for ax, result in zip(axes, firsts, strict=True):
        steps = thousands(each["step"] for each in result["snapshots"])
        values = [[each[key] for each in result["snapshots"]] for key in _PARTS]
        ax.stackplot(steps, values, colors=colours, alpha=0.75, linewidth=0)
        ax.set_title(f"{result['arm']}, KL in nats", fontsize=9, loc="left")
        ax.set_xlabel("thousand steps", fontsize=8)
        tidy(ax)
    _legend(axes[-1], dict(reversed(_PARTS.values())))
    return figure


def at_equal_reconstruction(found: Sequence[Result]) -> "Figure":
    """Total correlation and mutual information against reconstruction: a line a run, its end a larger point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {
        "tc": "total correlation, nats",
        "mutual_information": "mutual information of image and code, nats",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for result in found:
            colour = colour_of(result["arm"])
            x, y = ([each[name] for each in result["snapshots"]] for name in ("recon", key))
            _plot(ax, x, y, colour)
            ax.plot(x[-1:], y[-1:], "o", color=colour, markersize=8)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("reconstruction, nats", fontsize=8)
        tidy(ax)
    _legend(axes[0], {arm: colour_of(arm) for arm in arms_of(found)})
    return figure


def _plot(axes: "Axes", x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axes.plot(x, y, "o-", color=colour, markersize=3.5, linewidth=1.2)


def _legend(axes: "Axes", names: Mapping[str, str]) -> None:
    """What each colour is, in words of that colour."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in names.values()]
    axes.legend(handles, names, fontsize=8, frameon=False, labelcolor="linecolor")


def thousands(steps: Iterable[float]) -> list[float]:
    return [step / 1000 for step in steps]


def arms_of(found: Sequence[Result]) -> list[str]:
    """Those that there are results of."""
    return [arm for arm in ARMS if any(result["arm"] == arm for result in found)]


def colour_of(arm: str) -> str:
    return COLOURS[ARMS.index(arm)]


def trained_table(found: Sequence[Result]) -> str:
    """Length and machine of every run."""
    if not found:
        return NONE_YET
    rows = []
    for result in found:
        training = result["training"]
        hours = training["seconds"] / 3600
        rows.append(
            [
                name_of(result),
                f"{training['steps']:,}",
                f"{training['steps_per_second']:.1f}",
                f"{hours:.1f}",
                training["device"],
            ]
        )
    return markdown(["run", "steps", "steps/s", "hours", "machine"], rows)


def runs_table(found: Sequence[Result]) -> str:
    """What each run came to, in codes of all images."""
    if not found:
        return NONE_YET
    rows = []
    for result in found:
        whole = result["whole"]
        rows.append(
            [
                name_of(result),
                f"{result['snapshots'][-1]['recon']:.1f}",
                f"{sum(whole[key] for key in _PARTS):.1f}",
                f"{whole['mutual_information']:.2f}",
                f"{whole['tc']:.2f} ± {whole['tc_error']:.2f}",
                f"{whole['dimension_wise_kl']:.2f}",
                f"{whole['factor_vae']:.2f}",
                f"{whole['mig']:.2f}",
            ]
        )
    head = ["reconstruction", "KL", "mutual information", "total correlation", "dimension-wise KL"]
    return markdown(["run", *head, "FactorVAE metric", "MIG (20 bins)"], rows)


def estimates_table(found: Sequence[Result]) -> str:
    """Total correlation of the last weights, by everything that goes by that name: a row a way, a column a run."""
    if not found:
        return NONE_YET

    def in_training(result: Result) -> float | None:
        values = result["trace"].get("tc", ())
        return float(np.mean(values[-(len(values) // 10 or 1) :])) if len(values) else None

    def discriminator(result: Result, key: str, at: int) -> float | None:
        return result["caught_up"][at][key] if "caught_up" in result else None

    ways: dict[str, Callable[[Result], float | None]] = {
        "by its density, all images": lambda r: r["whole"]["tc"],
        "by its density, an eighth of the images": lambda r: r["snapshots"][-1]["tc"],
        "discriminator in training, last tenth: mean log-odds": in_training,
        "discriminator: mean log-odds": lambda r: discriminator(r, "log_odds", 0),
        "discriminator: bound": lambda r: discriminator(r, "bound", 0),
        "discriminator after more steps: mean log-odds": lambda r: discriminator(r, "log_odds", -1),
        "discriminator after more steps: bound": lambda r: discriminator(r, "bound", -1),
        "Gaussian of the covariance of q(z)": lambda r: r["whole"]["gaussian"],
        "Gaussian of the covariance of the means": lambda r: r["whole"]["gaussian_of_means"],
    }
    for key in found[0]["whole"]["minibatch"]:
        weighting, size = key.split()
        ways[f"beta-TCVAE's, {weighting}, batch {size}"] = lambda r, key=key: r["whole"]["minibatch"][key]  # type: ignore[misc]
    rows = []
    for name, way in ways.items():
        values = [way(result) for result in found]
        rows.append([name, *("-" if value is None else f"{value:.2f}" for value in values)])
    return markdown(["nats", *map(name_of, found)], rows)


def equal_table(found: Sequence[Result]) -> str:
    """FactorVAE beside what beta-VAEs have at its reconstruction, in a straight line between two of them."""
    if not found:
        return NONE_YET
    betas = [
        means_of([r for r in found if r["arm"] == arm])
        for arm in arms_of(found)
        if arm.startswith("beta-vae")
    ]
    head = {
        "recon": "reconstruction",
        "mutual_information": "mutual information",
        "tc": "total correlation",
        "factor_vae": "FactorVAE metric",
        "mig": "MIG (20 bins)",
    }
    rows = []
    for result in found:
        if result["arm"].startswith("factor-vae"):
            own = means_of([result])
            rows.append([name_of(result), *(f"{own[key]:.2f}" for key in head)])
            other = between(betas, own["recon"])
            rows.append(["beta-VAE there", *("-" if other is None else f"{other[key]:.2f}" for key in head)])
    return markdown(["", *head.values()], rows)


def means_of(results: Sequence[Result]) -> dict[str, float]:
    """At the end, over the seeds of an arm."""
    ends = [{**result["whole"], "recon": result["snapshots"][-1]["recon"]} for result in results]
    keys = [key for key, value in ends[0].items() if isinstance(value, float)]
    return {key: sum(end[key] for end in ends) / len(ends) for key in keys}


def between(points: Sequence[Mapping[str, float]], recon: float) -> dict[str, float] | None:
    """On the line between the neighbours on both sides of a reconstruction; None where there is none on one side."""
    for low, high in pairwise(sorted(points, key=lambda point: point["recon"])):
        if low["recon"] <= recon <= high["recon"]:
            share = (recon - low["recon"]) / (high["recon"] - low["recon"])
            return {key: low[key] + share * (high[key] - low[key]) for key in low}
    return None


def name_of(result: Result) -> str:
    return f"{result['arm']}, seed {result['seed']}"


QUESTION = Question(
    arms=ARMS,
    measure=measure,
    pictures=pictures,
    tables={"trained": trained_table, "runs": runs_table, "estimates": estimates_table, "equal": equal_table},
)
