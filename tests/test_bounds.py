"""Every field of every objective and of a recipe: what cannot be is refused by name, what can be trains."""

import math
import re
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch

from pyvae.bounds import Checked, parsing, show
from pyvae.cli import main
from pyvae.data.binarised import binarise
from pyvae.engine.batches import Batch, BatchOrder
from pyvae.engine.binarise import BinarisedBatches
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.errors import PyvaeError, RecipeError
from pyvae.objectives import OBJECTIVES, VAE, FactorVAE, InfoGAN
from pyvae.random import Stream, data_order, make_key
from tiny import GreyData, TinyData

CPU = torch.device("cpu")
SOME = [math.nan, math.inf, -math.inf, -1, 0, 0.5, 1, 2**63, 2**64, "1", "", b"1", True, None, 1j, [1], VAE]
HUGE = 10**400


@dataclass(frozen=True)
class Field:
    """What a field takes of ``SOME`` and beside it, and does not."""

    takes: tuple = ()
    refuses: tuple = ()
    heavy: tuple = ()
    """What it takes, but cannot be trained in a test: too large, or it diverges."""
    converts: tuple = ()
    """What it takes for something else."""


WEIGHT = Field((0, 0.5, 1, 1e9), (-1e-9, 1.001e9, HUGE))
SIGNED = Field((-1, 0, 0.5, 1, 1e9, -1e9), (1.001e9, -1.001e9))
SHARE = Field((0, 0.5, 1), (-1e-9, 1.001))
# rates near 1 diverge, and the message on learning rates is then true
RATE = Field((1e-12, 0.01), (1.001, 1e-13), heavy=(0.5, 1))
STEPS = Field((1, 10**12), (0.999, 1.0, 10**12 + 1, HUGE))
COUNT = Field((1,), (1.0, 10**6 + 1, HUGE), heavy=(10**6,))
DIMENSIONS = Field((0, 1), (10_001,), heavy=(10_000,))
SWITCH = Field((True, False))


def named(*names):
    return Field(names, ("nothing",))


GRADIENT = named("total", "stl", "dreg", "rws-dreg")
OUTER = {"outer": COUNT, "samples": COUNT, "gradient": GRADIENT}
INFOGAN = {
    "continuous": DIMENSIONS,
    "categories": Field((0, 2), heavy=(10_000,)),
    "noise": DIMENSIONS,
    "information_weight": WEIGHT,
    "variance": named("fixed", "learned"),
    "batch_norm": SWITCH,
    "spectral_norm": SWITCH,
    "critic_lr": RATE,
    "critic_steps": COUNT,
    "generator_steps": COUNT,
}
FIELDS = {
    "vae": {},
    "beta-vae": {"beta": WEIGHT},
    "capacity-vae": {"gamma": WEIGHT, "capacity": WEIGHT, "capacity_steps": STEPS},
    "control-vae": {
        # not below capacity_start
        "capacity": Field((0.5, 1, 1e9), (0, 0.499, 1.001e9)),
        "schedule": named("stepwise", "constant", "linear", "adaptive"),
        # not above capacity
        "capacity_start": Field((0, 0.5, 1, 16.0), (-1e-9, 16.1)),
        "capacity_increment": Field((0.5, 1, 1e-300, 1e9), (0.0, 1.001e9)),
        "capacity_period": STEPS,
        "capacity_steps": STEPS,
        "adaptive_compared": named("limited", "unlimited"),
        "adaptive_tie": named("raise", "hold"),
        "adaptive_window": STEPS,
        "adaptive_smoothing": Field((0, 0.5, 0.999999), (1, 1.0)),
        "kp": WEIGHT,
        "ki": WEIGHT,
        # not above beta_max, where there is one
        "beta_min": SIGNED,
        # not below beta_min, which is 1
        "beta_max": Field((None, 1, 1e9), (0.999, 1.001e9)),
        "initial_beta": SIGNED,
        "proportional": named("sigmoid", "linear"),
        "anti_windup": named("conditional", "published", "paper"),
    },
    "annealed-vae": {
        "schedule": named("linear", "logistic", "cyclical"),
        "annealing_steps": STEPS,
        "cycles": Field((1, 10**6), (0.999, 10**6 + 1)),
        "proportion": Field((0.5, 1, 1e-300), (0.0, 1.001)),
    },
    "factor-vae": {
        "gamma": WEIGHT,
        "discriminator_layers": Field((1, 100), (101,)),
        "discriminator_width": Field((1,), (2**16 + 1,), heavy=(2**16,)),
        "discriminator_lr": RATE,
    },
    "tc-vae": {
        "beta": WEIGHT,
        "alpha": SIGNED,
        "gamma": WEIGHT,
        "weighting": named("mws", "mss"),
        "kl_estimate": named("sampled", "exact"),
        "annealing_from": Field((1e-3, 0.5, 1, 1e3), (0.0, 1.001e3)),
        "annealing_steps": STEPS,
    },
    "dip-vae": {"variant": named("i", "ii"), "lambda_od": WEIGHT, "lambda_d": WEIGHT},
    "iwae": {"samples": COUNT, "gradient": GRADIENT},
    "miwae": OUTER,
    "piwae": OUTER,
    "ciwae": {
        "samples": COUNT,
        "beta": SHARE,
        "gradient": replace(named("total", "stl", "dreg"), refuses=("rws-dreg",)),
    },
    "infogan": INFOGAN,
    "infowgan-gp": {**INFOGAN, "penalty": WEIGHT},
}
RECIPE_FIELDS = {
    "objective": Field(
        tuple(kind() for kind in OBJECTIVES.values() if not issubclass(kind, InfoGAN)), converts=(VAE,)
    ),
    "data": Field(("1", "")),
    "image_size": Field((1, 4096), (4097,)),
    "channels": Field((1, 3, None), (2, 3.0)),
    "crop": Field((1, None, 2**16), (2**16 + 1,)),
    "corrupt": named("refuse", "skip"),
    "sampling": named("epochs", "replacement"),
    "binarise": named("none", "stochastic"),
    "likelihood": named("bernoulli", "gaussian"),
    "architecture": Field(
        ("mlp", "rainforth"), ("nothing",), heavy=("burgess", "beta-vae-h", "kim", "kim-256"), converts=(VAE,)
    ),
    "init": named("torch", "kaiming", "normal", "glorot"),
    "code": Field(("encoder",), ("nothing",), heavy=("factors",)),
    "latents": Field((1, 64), (2**16 + 1,), heavy=(2**16,)),
    "batch_size": Field((1, 40), (2**24 + 1,), heavy=(2**24,)),
    "optimizer": named("adam", "adagrad"),
    "lr": RATE,
    "lr_stage_steps": Field((1, None, 10**12), (0.999, 10**12 + 1)),
    "precision": replace(named("fp32", "tf32", "bf16"), heavy=("fp16",)),
    "engine": replace(named("auto", "torch"), heavy=("fused",)),
    "steps": STEPS,
    "seed": Field((0, 1, 2**63, 2**64 - 1), (2**64,)),
    "keep_at": Field(([1], (), (1, 7, 10**12)), ((1, 0), (2, 2), (1, 10**12 + 1), (1.0,), (True,), "12")),
}
CASES = [
    *((OBJECTIVES[kind], name, field) for kind, names in FIELDS.items() for name, field in names.items()),
    *((Recipe, name, field) for name, field in RECIPE_FIELDS.items()),
]
IDS = [f"{kind.__name__}-{name}" for kind, name, _ in CASES]


def same(a, b):
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_every_field_has_a_row():
    assert set(FIELDS) == set(OBJECTIVES)
    for kind, names in FIELDS.items():
        assert set(names) == {f.name for f in fields(OBJECTIVES[kind])}, kind
    assert set(RECIPE_FIELDS) == {f.name for f in fields(Recipe)}


@pytest.mark.parametrize(("kind", "name", "field"), CASES, ids=IDS)
def test_what_cannot_be_is_refused_by_name(kind, name, field):
    taken = (*field.takes, *field.heavy)
    known = (*taken, *field.converts)
    refused = [*field.refuses, *(value for value in SOME if not any(same(value, t) for t in known))]
    for value in refused:
        with pytest.raises(RecipeError) as caught:
            kind(**{name: value})
        message = str(caught.value)
        assert re.search(rf"\b{name}\b", message), message
        assert " must be " in message or " is below " in message or " must not be " in message
        assert "\n" not in message
        assert len(message) < 400
        assert isinstance(caught.value, ValueError)
        with parsing(), pytest.raises(PyvaeError) as caught:
            kind(**{name: value})
        assert str(caught.value) == message
        assert not isinstance(caught.value, ValueError)
    for value in taken:
        kept = getattr(kind(**{name: value}), name)
        assert kept == (tuple(value) if isinstance(value, list) else value)


def recipe_with(kind, name, value):
    if kind is Recipe:
        return replace(SMALL, **{name: value})
    objective = kind(**({"discriminator_width": 8} if kind is FactorVAE else {}) | {name: value})
    if not isinstance(objective, InfoGAN):
        return replace(SMALL, objective=objective)
    return Recipe(objective=objective, architecture="kim", latents=objective.codes, batch_size=2, steps=2)


SMALL = Recipe(architecture="rainforth", latents=3, batch_size=4, steps=2)


@pytest.mark.parametrize(("kind", "name", "field"), CASES, ids=IDS)
def test_what_can_be_trains(kind, name, field):
    for value in field.takes:
        recipe = recipe_with(kind, name, value)
        data = TinyData() if isinstance(recipe.objective, InfoGAN) else GreyData()
        trainer = training(recipe, data, CPU)
        for _ in range(2):
            trainer.advance()
            row = dict(zip(trainer.fields, trainer.ledger.row.tolist(), strict=True))
            assert all(map(math.isfinite, row.values())), (value, row)


@pytest.mark.parametrize("kind", ["factor-vae", "tc-vae", "dip-vae", "infogan", "infowgan-gp"])
def test_what_compares_images_needs_two(kind):
    objective = OBJECTIVES[kind]()
    recipe = replace(
        Recipe(objective=objective, architecture="kim", latents=getattr(objective, "codes", 10)), batch_size=2
    )
    with pytest.raises(RecipeError, match=r"batch_size must be at least 2, got 1: .*batch"):
        replace(recipe, batch_size=1)


@pytest.mark.parametrize("seed", [1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_of_64_bits_is_a_seed_of_its_own(seed):
    """Noise, order and binarisation take all of its bits."""
    own, other = (
        training(replace(SMALL, binarise="stochastic", seed=s), GreyData(), CPU) for s in (seed, seed ^ 2**63)
    )
    assert own.ledger.key[0] == make_key(seed)[0] != other.ledger.key[0]
    order, another = (BatchOrder(s, 40, 8, CPU).draw(0, 5) for s in (seed, seed ^ 2**63))
    expected = data_order(make_key(seed), torch.arange(40), 40)
    assert order.flatten().tolist() == expected.tolist() != another.flatten().tolist()
    grey = GreyData().images(torch.arange(4))
    batches = [BinarisedBatches(Grey(grey), s, CPU, Stream.BINARISATION) for s in (seed, seed ^ 2**63)]
    white, others = (b.batch(torch.tensor(3)).images for b in batches)
    assert torch.equal(white, binarise(grey, make_key(seed, 3), Stream.BINARISATION))
    assert not torch.equal(white, others)
    for trainer in (own, other):
        trainer.advance(2)
    assert own.ledger.row.tolist() != other.ledger.row.tolist()


class Grey:
    """Batches that are always these images."""

    prepare = None

    def __init__(self, images):
        self.images = images

    def batch(self, step):
        return Batch(self.images, self.images, None, torch.arange(len(self.images)))


def test_numbers_become_pythons_own():
    recipe = Recipe(
        objective=OBJECTIVES["beta-vae"](beta=np.float32(2)),
        steps=np.int64(7),
        lr=Fraction(1, 2),
        keep_at=[np.int32(3)],
    )
    kept = (recipe.objective.beta, recipe.steps, recipe.lr, recipe.keep_at[0])
    assert kept == (2.0, 7, 0.5, 3)
    assert [type(x) for x in kept] == [float, int, float, int]
    assert type(OBJECTIVES["beta-vae"](beta=3).beta) is float


def test_a_value_is_shown_on_one_line():
    assert show("a\nb") == r"'a\nb'"
    assert "\n" not in show(torch.zeros(3, 3))
    assert show("x" * 500) == "'" + "x" * 79 + "..."
    assert show(10**5000) == "an integer of thousands of digits"


def test_an_array_is_no_number():
    with pytest.raises(RecipeError, match=r"beta must be a number, got tensor\(4.\)"):
        OBJECTIVES["beta-vae"](beta=torch.tensor(4.0))


def test_a_class_of_ones_own():
    @dataclass(frozen=True)
    class Setting(Checked):
        kind: Literal[1, "a"] = 1
        nested: VAE | None = None

    assert Setting("a", VAE()).kind == "a"
    with pytest.raises(RecipeError, match=r"kind must be 1 or 'a', got 1.0"):
        Setting(1.0)
    with pytest.raises(RecipeError, match=r"nested must be VAE\(\) or None, got 3"):
        Setting(nested=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["capacity-vae", "--capacity-steps", "0"], "capacity_steps must be at least 1, got 0"),
        (["beta-vae", "--beta", "nan"], "beta must be finite, got nan"),
        (["control-vae", "--beta-max", "0.5"], "beta_max 0.5 is below beta_min 1.0"),
        (["vae", "--seed", str(2**64)], f"seed must be at most {2**64 - 1:,}, got {2**64}"),
        (["tc-vae", "--batch-size", "1"], "batch_size must be at least 2, got 1: the aggregate posterior is"),
    ],
)
def test_the_command_line_says_it_in_one_line(options, message, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["pyvae", "train", *options, "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert str(stopped.value.code).startswith(f"pyvae: error: {message}")
    assert "\n" not in str(stopped.value.code)
    assert capsys.readouterr() == ("", "")
    assert not out.exists()
