"""ControlVAE's controller against a plant: what may be scaled with the length of a run, and what must be.

The plant stands for the network. Its KL goes towards an equilibrium that falls with beta, ``plant`` steps behind, and
a batch shows it with noise::

    K(t) = K(t-1) + (K*(beta) - K(t-1)) lr_times / plant
    KL(t) = K(t) + sd sqrt(K / (K + 2)) n(t)

In equilibrium a nat of KL saves beta nats of reconstruction. The ends of K* are those of YannDubs/disentangling-vae for
dSprites, 25.40 nats at beta 1 and 15.35 at beta 4. The rest is the slope of reconstruction over KL in our own run of
Burgess et al.'s objective (results/findings/order/gamma-100-seed-0.json), below 8 nats, where that run has learnt what
there was to learn: the first nats, of position, are dear to give up, and hold out against a beta of 100.

In a run that is 20 times as short, C rises 20 times as fast; what is asked is which of the gains and the learning rate
(the plant is so many times as quick) must be multiplied for the same curves over t / T.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyvae.objectives import ControlVAE
from pyvae.report.palette import plain_axes
from questions.drawing import COLOURS, FAINT, INK
from questions.question import Question, Result, short
from questions.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EQUILIBRIUM = (
    *((1.0, 25.40), (4.0, 15.35), (12.0, 7.25), (20.0, 5.7), (30.0, 4.8), (45.0, 3.8), (60.0, 2.8)),
    *((85.0, 2.35), (125.0, 1.6), (200.0, 0.8), (500.0, 0.02)),
)
"""Beta, and the nats that it leaves; straight lines over log beta between them."""
CELLS = 2_000
FULL, SCALED = 1_500_000, 75_000
POINTS = 150
SLOW = 2_000.0
"""Steps in which the slower of two plants answers."""
LINES = {
    "published length": (INK, "-", 2.6),
    "20 times as short": (FAINT, "--", 1.4),
    "and gains times 20": (COLOURS[1], "--", 1.4),
    "and learning rate times 10": (COLOURS[0], "-", 1.0),
}
"""Colour, style and width of those that are drawn."""
_WORDS = {"stepwise": "linear", "adaptive": "adaptive"}


@dataclass(frozen=True)
class Trial:
    """A simulated run."""

    name: str
    objective: ControlVAE
    steps: int
    plant: float
    """Its ``tau`` at the published learning rate."""
    lr_times: float = 1.0
    sd: float = 0.35
    seed: int = 0


def simulate(trial: Trial) -> dict[str, Any]:
    """Curves over ``t / T`` in means of blocks, and the share of the steps that raised C.

    The rules of pyvae.control in Python's floats, which are a hundred times as fast for one model;
    tests/test_questions.py holds the two together.
    """
    o, gauss = trial.objective, random.Random(trial.seed).gauss
    kp, ki, low, end = o.kp, o.ki, o.beta_min, o.capacity_steps
    start, stop, smoothing = o.capacity_start, o.capacity, o.adaptive_smoothing
    kept, exp, log = min(trial.lr_times / trial.plant, 1.0), math.exp, math.log
    equilibrium, finest = equilibria()
    k = integral = 0.0
    output = beta = reference = o.initial_beta
    capacity, raised = start, 0
    curves: dict[str, list[float]] = {name: [0.0] * POINTS for name in ("capacity", "kl", "beta")}
    block, counts = trial.steps / POINTS, [0] * POINTS
    for t in range(trial.steps):
        k += kept * (equilibrium[min(int(log(beta) * finest), CELLS)] - k)
        kl = k + trial.sd * math.sqrt(k / (k + 2.0)) * gauss(0.0, 1.0)
        if o.schedule == "stepwise":
            capacity = min(start + o.capacity_increment * ((t + 1) // o.capacity_period), stop)
        elif o.schedule == "linear":
            capacity = min(start + (stop - start) * t / end, stop)
        error = capacity - kl
        if not (output < low and error > 0):
            integral -= ki * error
        output = kp / (1.0 + exp(error)) + low + integral
        beta = max(output, low)
        if o.schedule == "adaptive":
            holds = beta > reference
            reference = reference * smoothing + beta * (1.0 - smoothing)
            if t >= end - 1:
                capacity = stop if t >= end or not holds else capacity
            elif not holds:
                capacity += (stop - capacity) / (end - t)
            raised += not holds and t < end
        place = int(t / block)
        counts[place] += 1
        for name, value in (("capacity", capacity), ("kl", k), ("beta", beta)):
            curves[name][place] += value
    return {
        "name": trial.name,
        "schedule": o.schedule,
        "steps": trial.steps,
        "kp": kp,
        "ki": ki,
        "plant": trial.plant,
        "lr_times": trial.lr_times,
        "sd": trial.sd,
        "raised": round(raised / min(end, trial.steps), 4) if o.schedule == "adaptive" else None,
        **{
            name: [short(total / count) for total, count in zip(totals, counts, strict=True)]
            for name, totals in curves.items()
        },
    }


def equilibrium_of(beta: float) -> float:
    """K* in nats."""
    betas, nats = zip(*EQUILIBRIUM, strict=True)
    return float(np.interp(math.log(beta), np.log(betas), nats))


def equilibria() -> tuple[list[float], float]:
    """K* in cells of log beta, and how many there are to 1."""
    finest = CELLS / math.log(EQUILIBRIUM[-1][0])
    return [equilibrium_of(math.exp(cell / finest)) for cell in range(CELLS + 1)], finest


def trials(schedule: Literal["stepwise", "adaptive"], plant: float) -> list[Trial]:
    """The published run, and shortened ones with more and more of it scaled; the first is the one to be like."""
    published = ControlVAE(schedule=schedule)
    times = FULL // SCALED
    short = replace(published, capacity_period=published.capacity_period // times, capacity_steps=SCALED)
    gains = replace(short, kp=published.kp * times, ki=published.ki * times)
    return [
        Trial("published length", published, FULL, plant),
        Trial("20 times as short", short, SCALED, plant),
        Trial("and gains times 20", gains, SCALED, plant),
        Trial("and learning rate times 10", gains, SCALED, plant, 10.0),
        Trial("and learning rate times 20", gains, SCALED, plant, 20.0),
    ]


def smoothed(plant: float) -> list[Trial]:
    """The run with scaled gains, and a comparison that is smoothed over 50 steps."""
    objective = replace(trials("adaptive", plant)[2].objective, adaptive_smoothing=0.98)
    return [Trial(f"smoothed, noise {sd:g}", objective, SCALED, plant, sd=sd) for sd in (0.2, 0.35, 0.6)]


def model() -> dict[str, Any]:
    """What docs/findings/capacity.md draws, of two plants."""
    return {
        "trials": [
            simulate(trial)
            for plant in (200.0, SLOW)
            for trial in (*trials("stepwise", plant), *trials("adaptive", plant), *smoothed(plant))
        ]
    }


def pictures(found: Sequence[Result]) -> dict[str, "Figure"]:
    """C, KL and beta of the published length beside shortened runs, of the slower plant."""
    from matplotlib.figure import Figure

    shown = [trial for trial in found[0]["trials"] if trial["plant"] == SLOW and trial["name"] in LINES]
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    x = (np.arange(POINTS) + 0.5) / POINTS
    titles = {"capacity": "C, nats", "kl": "KL, nats", "beta": "beta"}
    for row, (schedule, words) in enumerate(_WORDS.items()):
        for column, (name, title) in enumerate(titles.items()):
            ax = axes[row, column]
            for trial in shown:
                if trial["schedule"] == schedule:
                    colour, style, width = LINES[trial["name"]]
                    ax.plot(x, trial[name], style, color=colour, linewidth=width, label=trial["name"])
            ax.set_title(f"{words}: {title}", fontsize=10, loc="left")
            plain_axes(ax)
    axes[1, 1].set_xlabel("t / T", fontsize=9)
    axes[0, 2].legend(fontsize=8, frameon=False)
    return {"plant.png": figure}


def trials_table(found: Sequence[Result]) -> str:
    """How far each trial is from the one of the published length, in means over the run, of the slower plant."""
    rows, reference = [], {}
    for trial in found[0]["trials"]:
        if trial["steps"] == FULL:
            reference = trial
        names = ("capacity", "kl", "beta")
        off = [float(np.abs(np.subtract(trial[name], reference[name])).mean()) for name in names]
        alike = trial is reference or trial["name"].startswith("smoothed")
        if trial["plant"] != SLOW:
            continue
        rows.append(
            [
                f"{_WORDS[trial['schedule']]}: {trial['name']}",
                "-" if trial["raised"] is None else f"{trial['raised']:.3f}",
                *("-" if alike else f"{each:.2f}" for each in off),
            ]
        )
    return markdown(["simulated run", "p", "C off by, nats", "KL off by, nats", "beta off by"], rows)


QUESTION = Question(arms=("model",), compute=model, pictures=pictures, tables={"trials": trials_table})
