"""Captured steps equal uncaptured ones, bit for bit."""

from typing import Any

import torch

from gpu_stages.cases import Cases
from pyvae.data import load
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.objectives import BetaVAE, InfoGAN
from test_trainer import OBJECTIVES, recipe_of
from tiny import TinyData, packed_data
from train_own import recipe as own_recipe

PRECISIONS = ("fp32", "tf32", "bf16")


def captured(case: Cases) -> None:
    """dSprites in every precision, then every objective on small data, code of one's own, then streamed steps."""
    data = packed_data()
    sprites = data if case.dry else load("dsprites", progress=False)
    for precision in PRECISIONS:
        recipe = Recipe(objective=BetaVAE(), precision=precision)
        case(f"beta-vae on dSprites, {precision}", lambda recipe=recipe: _same(case, recipe, sprites))
    for name, objective in OBJECTIVES.items():
        case(f"{name}, resident, fp32", lambda o=objective: _same(case, recipe_of(o), data))
    # with dropout, batch normalisation and noise, which torch's own generator gives
    own = own_recipe(64)
    case("network and loss of one's own, resident, fp32", lambda: _same(case, own, data))
    case("factor-vae, streamed, fp32", lambda: _same(case, recipe_of(OBJECTIVES["factor-vae"]), TinyData()))


def captured_rest(case: Cases) -> None:
    """beta-VAE compiled; every objective in every precision, resident and streamed; then all of them compiled."""
    data = {"resident": packed_data(), "streamed": TinyData()}
    sprites = data["resident"] if case.dry else load("dsprites", progress=False)
    recipe = Recipe(objective=BetaVAE(), precision="tf32")
    case("beta-vae on dSprites, tf32, compiled", lambda: _same(case, recipe, sprites, compile=True), 120)
    objectives = {name: OBJECTIVES[name] for name in ("dip-vae", "infogan")} if case.dry else OBJECTIVES
    for precision in PRECISIONS:
        for place, images in data.items():
            if (precision, place) == ("fp32", "resident"):
                continue  # the stage before
            for name, objective in objectives.items():
                recipe = recipe_of(objective, precision=precision)
                case(f"{name}, {place}, {precision}", lambda r=recipe, i=images: _same(case, r, i))
    for precision in PRECISIONS:
        for place, images in data.items():
            for name, objective in objectives.items():
                if isinstance(objective, InfoGAN):
                    continue  # has no compiled steps
                recipe = recipe_of(objective, precision=precision)
                case(
                    f"{name}, {place}, {precision}, compiled",
                    lambda r=recipe, i=images: _same(case, r, i, compile=True),
                    120,
                )


def _same(case: Cases, recipe: Recipe, data: Any, *, compile: bool = False) -> dict[str, Any]:
    """64 steps twice, in portions that begin and end within and without graphs."""
    settle_arithmetic(recipe.precision)
    torch._dynamo.reset()  # which gives up after some networks
    eager, graph = (training(recipe, data, case.device, capture=c, compile=compile) for c in (False, True))
    portions = (1, 2) if case.dry else (5, 43, 16)
    for portion in portions:
        eager.advance(portion)
        graph.advance(portion)
    steps = sum(portions)
    one, two = (trainer.ledger.ring.copy(0, steps).wait() for trainer in (eager, graph))
    there = graph.tensors()
    differ = [name for name, tensor in eager.tensors().items() if not torch.equal(tensor, there[name])]
    row = next((i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), None)
    found = {
        "ok": row is None and not differ and (graph._capture is not None or case.dry),
        "captured": graph._capture is not None,
    }
    if differ or row is not None:
        found |= {"differ": differ[:5], "first_row": row, "bad_step": int(eager.ledger.bad_step)}
    return found
