"""Tables of FactorVAE beside beta-VAEs, and of everything that goes by the name of total correlation."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from questions.question import Result
from questions.tables import NONE_YET, dead_units, machines, markdown, steps_and_minutes

ARMS = ("factor-vae-35", "beta-vae-4", "beta-vae-8", "beta-vae-16")
PARTS = {
    "mutual_information": "mutual information",
    "tc": "total correlation",
    "dimension_wise_kl": "dimension-wise KL",
}
"""Of the KL, by what they are in the files."""


def trained(found: Sequence[Result]) -> str:
    """Length and machine of every run."""
    if not found:
        return NONE_YET
    rows = [(name_of(each), *steps_and_minutes(each)) for each in found]
    return f"{markdown(('run', 'steps', 'minutes'), rows)}\n\n{machines(found)}"


def runs(found: Sequence[Result]) -> str:
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
                f"{sum(whole[key] for key in PARTS):.1f}",
                f"{whole['mutual_information']:.2f}",
                f"{whole['tc']:.2f} ± {whole['tc_error']:.2f}",
                f"{whole['dimension_wise_kl']:.2f}",
                f"{whole['factor_vae']:.2f}",
                f"{whole['mig']:.2f}",
            ]
        )
    return markdown(
        ["run", "reconstruction", "KL", *PARTS.values(), "FactorVAE metric", "MIG (20 bins)"], rows
    )


def estimates(found: Sequence[Result]) -> str:
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


def still(found: Sequence[Result]) -> str:
    """What a discriminator comes to say of codes that do not move any more, where they were most dependent."""
    rows = []
    for result in found:
        if most := result.get("most"):
            for said in most["caught_up"]:
                cells = [
                    f"{said[key]:.2f}" for key in ("log_odds", "log_odds_of_product", "bound", "accuracy")
                ]
                rows.append(
                    [name_of(result), f"{most['step']:,}", f"{said['steps']:,}", f"{most['tc']:.2f}", *cells]
                )
    head = [
        "run",
        "encoder of step",
        "further steps of the discriminator",
        "total correlation",
        "mean log-odds of codes",
        "of permuted codes",
        "bound",
        "told apart",
    ]
    return markdown(head, rows) if rows else NONE_YET


def equal(found: Sequence[Result]) -> str:
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


def dead(found: Sequence[Result]) -> str:
    """Dead units of the encoder: of the initial weights, at the first snapshot and at the end."""
    counted = []
    for result in found:
        ends = [result["snapshots"][at] for at in (0, -1)]
        counted += [(name_of(result), 0, result["dead_at_first"])]
        counted += [(name_of(result), each["step"], each["dead"]) for each in ends]
    return dead_units(counted)


def arms_of(found: Sequence[Result]) -> list[str]:
    """Those that there are results of."""
    return [arm for arm in ARMS if any(result["arm"] == arm for result in found)]
