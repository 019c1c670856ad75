"""In which order do factors enter as capacity grows, with a trained encoder?"""

from collections.abc import Sequence
from typing import Any

import torch

import pyvae
from pyvae.data.dataset import FactorDataset
from pyvae.evaluation.averages import posterior
from pyvae.report.traversal import ACTIVE_NATS, compute, default_seeds
from questions import order_pictures, order_tables
from questions.effects import siblings, total_effects
from questions.question import Question, Result, short
from questions.runs import dead_of, snapshot, steps_of
from questions.thumbnails import pack

PUBLISHED = (3.1, 7.3, 15.4, 23.8)
"""Nats at which figure 3 of Burgess et al. 2018 shows traversals."""
GROUPS = 256
"""Of siblings for each factor."""
_BATCH = 512
_SPAN, _COLUMNS, _ROWS = 2.0, 5, 7


def measure(run: pyvae.Run) -> Result:
    """At each snapshot what latents cost and which factors move them, and traversals near the published C."""
    dataset = run.dataset
    assert isinstance(dataset, FactorDataset)
    steps = steps_of(run)
    return {
        "factors": dataset.factor_names,
        "snapshots": [_snapshot(run, dataset, step) for step in steps],
        "traversals": [
            _traversal(run, steps, each) for each in PUBLISHED if each <= capacity_at(run, run.step)
        ],
    }


def capacity_at(run: pyvae.Run, step: int) -> float:
    """C in nats after so many steps."""
    objective: Any = run.recipe.objective
    return float(objective.capacity * min(step / objective.capacity_steps, 1.0))


@torch.inference_mode()
def _snapshot(run: pyvae.Run, dataset: FactorDataset, step: int) -> Result:
    net: Any = run.model(step).net
    found, codes = snapshot(run, step), []
    for factor in range(len(dataset.factor_sizes)):
        index = siblings(dataset, factor, GROUPS)
        parts = [posterior(net, dataset, chunk)[0] for chunk in index.flatten().split(_BATCH)]
        codes.append(torch.cat(parts).unflatten(0, index.shape))
    return {
        "step": step,
        "capacity": capacity_at(run, step),
        "recon": short(found.recon),
        "kl": [short(each) for each in found.kl],
        "dead": None if net.reads_factors else dead_of(run, step),
        "effect": [[short(each) for each in row] for row in total_effects(codes).tolist()],
        "std": [short(each) for each in torch.cat([each.flatten(0, 1) for each in codes]).std(0).tolist()],
    }


def _traversal(run: pyvae.Run, steps: Sequence[int], capacity: float) -> Result:
    """Of the latents that say anything, or the one that says most, from the snapshot whose C is the nearest."""
    step = min(steps, key=lambda each: abs(capacity_at(run, each) - capacity))
    net: Any = run.model(step).net
    kl, seed = snapshot(run, step).kl, default_seeds(run.dataset)[-1]
    with torch.inference_mode():
        mu, _ = posterior(net, run.dataset, torch.tensor([seed]))
    moved = compute(net, run.dataset.images(seed), mu, kl, _SPAN, _COLUMNS)
    rows = [row for row, j in enumerate(moved.order) if kl[j] >= ACTIVE_NATS][:_ROWS] or [0]
    return {
        "published": capacity,
        "step": step,
        "capacity": capacity_at(run, step),
        "latents": [moved.order[row] for row in rows],
        "images": pack(moved.decoded[rows]),
    }


QUESTION = Question(
    arms=("gamma-100", "gamma-100-slow", "gamma-1000", "gamma-1000-kaiming", "factor-bottleneck"),
    measure=measure,
    pictures=order_pictures.pictures,
    tables={
        "runs": order_tables.runs,
        "entry": order_tables.entry,
        "latents": order_tables.latents,
        "dead": order_tables.dead,
    },
)
