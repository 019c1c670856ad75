"""Tables of docs/findings/order.md."""

from collections.abc import Sequence

import numpy as np

from pyvae.metrics.factor_vae import CONSTANT
from pyvae.report.traversal import ACTIVE_NATS
from questions.question import Result
from questions.tables import NONE_YET, dead_units, machines, markdown, name_of, steps_and_minutes

CARRIED = 0.5
"""Nats from which on a factor counts as carried."""


def tells(snapshot: Result) -> np.ndarray:
    """Whether each latent differs between images, bool ``[D]``; one that does not may cost nats all the same."""
    return np.array(snapshot["std"]) >= CONSTANT


def spent(snapshot: Result) -> np.ndarray:
    """Nats ``[F]`` of the KL that go to each factor: a latent's are shared out as its total effects are.

    Of a bottleneck of true factors, where a latent has one factor, it is the KL of each channel. A latent that is the
    same for all images is spent on none.
    """
    effect = np.array(snapshot["effect"])
    share = effect / np.maximum(effect.sum(1, keepdims=True), np.finfo(float).tiny)
    return (np.array(snapshot["kl"]) * tells(snapshot)) @ share


def curves(result: Result) -> dict[str, np.ndarray]:
    """Nats spent on each factor at each snapshot."""
    nats = np.stack([spent(each) for each in result["snapshots"]])
    return dict(zip(result["factors"], nats.T, strict=True))


def first_capacity(result: Result, nats: np.ndarray, threshold: float = CARRIED) -> float | None:
    """C at which a curve first reaches the threshold, on straight lines between snapshots from (0, 0) on."""
    x = np.array([0.0, *(each["capacity"] for each in result["snapshots"])])
    y = np.array([0.0, *nats])
    reached = np.flatnonzero(y >= threshold)
    if not len(reached):
        return None
    after = reached[0]
    share = (threshold - y[after - 1]) / (y[after] - y[after - 1])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))


def followed(result: Result, latent: int, snapshot: int = -1) -> list[str]:
    """The factor that moves a latent most, and the one next to it where that moves it at least half as much."""
    effect = result["snapshots"][snapshot]["effect"][latent]
    first, second = np.argsort(effect)[::-1][:2]
    names = [result["factors"][first]]
    return [*names, result["factors"][second]] if effect[second] >= 0.5 * effect[first] else names


def runs(found: Sequence[Result]) -> str:
    """What was run, and where it ended."""
    if not found:
        return NONE_YET
    head = ("method", "seed", "gamma", "steps", "minutes", "C, nats", "KL, nats", "reconstruction, nats")
    rows = []
    for result in found:
        end, objective = result["snapshots"][-1], result["recipe"]["objective"]
        rows.append(
            (
                f"`{result['arm']}`",
                str(result["seed"]),
                f"{objective['gamma']:g}",
                *steps_and_minutes(result),
                f"{end['capacity']:.1f}",
                f"{sum(end['kl']):.2f}",
                f"{end['recon']:.1f}",
            )
        )
    return f"{markdown(head, rows)}\n\n{machines(found)}"


def entry(found: Sequence[Result]) -> str:
    """C from which on each factor is carried."""
    if not found:
        return NONE_YET
    names = list(curves(found[0]))
    rows = []
    for result in found:
        reached = [first_capacity(result, nats) for nats in curves(result).values()]
        cells = ["-" if each is None else f"{each:.1f}" for each in reached]
        rows.append((f"`{result['arm']}`", str(result["seed"]), *cells))
    return markdown(("method", "seed", *names), rows)


def latents(found: Sequence[Result]) -> str:
    """At the end, KL of each latent that says anything, and the share of each factor's total effect in it."""
    if not found:
        return NONE_YET
    head = ("method", "seed", "latent", "KL, nats", *found[0]["factors"])
    rows = []
    for result in found:
        end = result["snapshots"][-1]
        for j in sorted(range(len(end["kl"])), key=lambda j: -end["kl"][j]):
            if end["kl"][j] >= ACTIVE_NATS:
                says = tells(end)[j]
                shares = [f"{share:.2f}" if says else "constant" for share in end["effect"][j]]
                rows.append(
                    (f"`{result['arm']}`", str(result["seed"]), f"z{j}", f"{end['kl'][j]:.2f}", *shares)
                )
    return markdown(head, rows, words=3)


def dead(found: Sequence[Result]) -> str:
    """Dead units of the encoder, at the first snapshot and at the end."""
    ends = [(result, result["snapshots"][at]) for result in found for at in (0, -1)]
    return dead_units([(name_of(result), each["step"], each["dead"]) for result, each in ends])
