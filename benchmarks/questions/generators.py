"""Are the codes of InfoGAN generally below those of VAEs?"""

from typing import Any

import numpy as np
import torch

import pyvae
from pyvae.engine.models import GeneratorModel, Model
from pyvae.engine.run import RunDirectory
from pyvae.evaluation.averages import posterior
from pyvae.metrics import factor_vae, mig
from pyvae.random import make_key
from pyvae.report import generated, traversal
from questions import generators_pictures, generators_tables
from questions.effects import grid_effects
from questions.question import Question, Result, short
from questions.runs import GRID, grid_codes, snapshot, steps_of
from questions.thumbnails import Thumbnails, pack

_SAMPLES = (3, 6)
_COLUMNS = 7
_SEED = 4
"""Of the noise beside moved codes."""


def measure(run: pyvae.Run) -> Result:
    """Scores at each kept step, what each code follows at the end, and images: samples on the way, moved codes."""
    steps = steps_of(run)
    return {
        "snapshots": [_scores(run, step) for step in steps],
        "codes": _codes(run),
        "samples": [_samples(run, step) for step in (steps[0], steps[len(steps) // 2], steps[-1])],
        "moved": _moved(run),
    }


def _scores(run: pyvae.Run, step: int) -> Result:
    """On an eighth of dSprites, all of whose rows are used: see ``questions.runs.GRID``."""
    table = grid_codes(run, step, GRID)
    return {
        "step": step,
        "factor-vae": short(factor_vae(table, variance_points=None).score),
        "mig": short(mig(table, points=None).score),
    }


def _codes(run: pyvae.Run) -> Result:
    """Of each code of the last weights, on real images: what it follows and how much it varies; of a generator the
    bound of its information too, in generated ones."""
    table, model = grid_codes(run, run.step, GRID), run.model()
    found: Result = {
        "factors": table.factor_names,
        "effect": [[short(each) for each in row] for row in grid_effects(table).tolist()],
        "std": [short(each) for each in table.mu.double().std(0).tolist()],
    }
    if isinstance(model, GeneratorModel):
        found["names"] = generated.names_of(model.objective)
        found["nats"] = [
            short(each) for each in generated.information(RunDirectory.open(run.path), model.net)
        ]
        return found
    found["names"] = [f"z{j}" for j in range(model.latents)]
    found["nats"] = [short(each) for each in snapshot(run, run.step).kl]
    return found


def _samples(run: pyvae.Run, step: int) -> Result:
    images = run.model(step).sample(int(np.prod(_SAMPLES)), seed=0)
    return {"step": step, "images": pack(images.unflatten(0, _SAMPLES))}


def _moved(run: pyvae.Run) -> Result:
    """Each code of the last weights moved; of a VAE the latents that say most, at most as many as a generator has."""
    model: Any = run.model()
    if isinstance(model, GeneratorModel):
        codes = model.objective.draw(make_key(_SEED), 1)
        images = generated.moved(model.objective, model.net, codes, _COLUMNS)
        return {"codes": list(range(model.latents)), "images": pack(images)}
    return _traversed(run, model)


@torch.inference_mode()
def _traversed(run: pyvae.Run, model: Model, rows: int = 5) -> dict[str, list[int] | Thumbnails]:
    kl, seed = snapshot(run, run.step).kl, traversal.default_seeds(run.dataset)[-1]
    mu, _ = posterior(model.net, run.dataset, torch.tensor([seed]))
    found = traversal.compute(model.net, run.dataset.images(seed), mu, kl, 2.0, _COLUMNS)
    return {"codes": found.order[:rows], "images": pack(found.decoded[:rows])}


QUESTION = Question(
    arms=("infogan", "infowgan-gp", "infowgan-gp-5", "vae", "beta-vae-4"),
    measure=measure,
    pictures=generators_pictures.pictures,
    tables={
        "runs": generators_tables.runs,
        "scores": generators_tables.scores,
        "codes": generators_tables.codes,
    },
)
