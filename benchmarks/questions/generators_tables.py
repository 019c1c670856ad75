"""Tables of docs/findings/generators.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyvae.recipes import RECIPES
from questions.question import Result
from questions.tables import NONE_YET, machines, markdown, steps_and_minutes

METRICS = {"factor-vae": "FactorVAE metric", "mig": "MIG"}
_RECIPES = {
    "infogan": "infogan",
    "infowgan-gp": "infowgan-gp",
    "infowgan-gp-5": "infowgan-gp",
    "vae": "vae",
    "beta-vae-4": "beta-vae",
}
"""Of each arm of the study, which names the length that its paper or code has."""


def is_generator(result: Result) -> bool:
    """Whether it has a generator and a critic, no encoder and decoder."""
    return "discriminator_loss" in result["trace"]


def real_images(recipe: Mapping[str, Any], step: int) -> int:
    """Images of the data set that so many steps have seen, repetitions counted."""
    return int(step * recipe["batch_size"] * recipe["objective"].get("critic_steps", 1))


def runs(found: Sequence[Result]) -> str:
    """What was run: time, steps, images, and the share of the recipe's own length."""
    if not found:
        return NONE_YET
    head = ("method", "seed", "minutes", "steps", "of the recipe's", "real images seen")
    rows = []
    for result in found:
        steps, minutes = steps_and_minutes(result)
        done, whole = result["training"]["steps"], RECIPES[_RECIPES[result["arm"]]][1].steps
        seen = real_images(result["recipe"], done)
        rows.append(
            (
                f"`{result['arm']}`",
                str(result["seed"]),
                minutes,
                steps,
                f"{100 * done / whole:.1f} %",
                f"{seen:,}",
            )
        )
    return f"{markdown(head, rows)}\n\n{machines(found)}"


def scores(found: Sequence[Result]) -> str:
    """Scores at the end, and of VAEs also where they had seen as many images as InfoGAN at its end."""
    if not found:
        return NONE_YET
    seen = max(
        (real_images(r["recipe"], r["training"]["steps"]) for r in found if r["arm"] == "infogan"), default=0
    )
    rows = []
    for result in found:
        ends = {"end": result["snapshots"][-1]}
        if not is_generator(result):
            early = [s for s in result["snapshots"] if real_images(result["recipe"], s["step"]) == seen]
            ends = {**({"as many images": early[0]} if early else {}), **ends}
        for when, at in ends.items():
            values = [f"{at[metric]:.3f}" for metric in METRICS]
            rows.append((f"`{result['arm']}`", str(result["seed"]), when, f"{at['step']:,}", *values))
    return markdown(("method", "seed", "when", "step", *METRICS.values()), rows, words=3)


def codes(found: Sequence[Result]) -> str:
    """Of each generator's codes: the information in its own images, and what they do on real ones."""
    if not found:
        return NONE_YET
    rows = []
    for result in found:
        own = result["codes"]
        if is_generator(result):
            for name, nats, std, effect in zip(
                own["names"], own["nats"], own["std"], own["effect"], strict=True
            ):
                cells = [f"{nats:.3f}", f"{std:.2f}", *(f"{share:.2f}" for share in effect)]
                rows.append((f"`{result['arm']}`", str(result["seed"]), name, *cells))
    head = ("method", "seed", "code", "bound, nats", "std on real images", *found[0]["codes"]["factors"])
    return markdown(head, rows, words=3)
