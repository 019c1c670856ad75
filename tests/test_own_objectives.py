"""Objectives of a user's own: their terms, gradients and settings, and what is wrong with one."""

import json
import math
import pickle
from dataclasses import dataclass, fields, replace
from typing import Literal

import pytest
import torch

from own_code import CPU, SMALL, MyBeta, trained, write
from pyvae.bounds import Share
from pyvae.engine.grid import expand, parse_sweep
from pyvae.engine.prepare import Training
from pyvae.engine.recipe import Recipe, differences
from pyvae.engine.run import RunDirectory
from pyvae.engine.together import shape_of
from pyvae.engine.trainer import Trainer, check_data
from pyvae.errors import RecipeError, SourceError
from pyvae.objectives import IWAE, BetaVAE, ControlVAE, FactorVAE, Objective, Outputs
from pyvae.objectives.own import RESERVED, objective_of, term_names
from tiny import Corner, GreyData
from train_own import OWN, recipe


@dataclass(frozen=True)
class Weighed:
    """Everything that a field can be."""

    power: int = 2
    weight: float = 0.5
    share: Share = 0.25
    per_latent: tuple[int, ...] = (1, 2, 3)
    kind: Literal["mean", "sum"] = "mean"
    offset: float | None = None
    on: bool = True
    word: str = "x"

    def terms(self, outputs, step):
        weights = torch.tensor(self.per_latent, device=outputs.kl.device)
        far = outputs.mu.abs().pow(self.power)
        far = far.mean() if self.kind == "mean" else far.sum()
        return {"loss": outputs.recon + (weights * outputs.kl).sum() + self.weight * far, "far": far}


@dataclass(frozen=True)
class Raised(ControlVAE):
    """ControlVAE, whose KL counts for more."""

    more: float = 1.5

    def terms(self, outputs, step):
        terms = super().terms(outputs, step)
        return {**terms, "loss": terms["loss"] + self.more * terms["kl"], "more": terms["kl"] * self.more}


@dataclass(frozen=True)
class Discriminated(FactorVAE):
    discriminator_width: int = 16

    def terms(self, outputs, step):
        terms = super().terms(outputs, step)
        return {**terms, "square": outputs.total_correlation.square()}


@dataclass(frozen=True)
class Doubled(IWAE):
    samples: int = 3

    def loss(self, drawn):
        return 2 * super().loss(drawn)


def test_an_own_copy_of_beta_vae_computes_its_bits():
    ours, theirs = (
        Trainer(replace(SMALL, objective=o), GreyData(), CPU) for o in (BetaVAE(2.5), MyBeta(2.5))
    )
    for trainer in (ours, theirs):
        trainer.advance(6)
    assert ours.fields == theirs.fields
    assert torch.equal(ours.ledger.row, theirs.ledger.row)
    mine = theirs.tensors()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in ours.tensors().items())
    # whose steps they are is told apart
    assert shape_of(ours.recipe) != shape_of(theirs.recipe)


def test_gradients_are_those_of_the_loss():
    objective = objective_of(Weighed(weight=0.7))
    torch.manual_seed(0)
    mu, logvar, recon = (torch.randn(shape, requires_grad=True) for shape in ((8, 3), (8, 3), ()))
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(0)
    terms = objective.terms(Outputs(recon, kl, mu, mu, logvar, 100), torch.tensor(0))
    got = torch.autograd.grad(terms["loss"], (mu, logvar, recon))
    weight = torch.tensor([1.0, 2.0, 3.0])
    by_hand = weight * mu / 8 + 0.7 * 2 * mu / 24
    torch.testing.assert_close(got[0], by_hand)
    torch.testing.assert_close(got[1], weight * 0.5 * (logvar.exp() - 1) / 8)
    assert got[2] == 1
    assert {n: terms[n].item() for n in ("recon", "beta", "capacity")} == {
        "recon": recon.item(),
        "beta": 0,
        "capacity": 0,
    }
    torch.testing.assert_close(terms["kl"], kl.sum())


@pytest.mark.parametrize(
    ("own", "extra", "has"),
    [
        (Raised(capacity=2.0, schedule="constant"), ("more",), "control.beta"),
        (Discriminated(), ("tc", "square"), "discriminator.0.weight"),
        (Doubled(), ("elbo", "ess"), "net.encoder.head.weight"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_subclass_keeps_what_its_base_brings(own, extra, has):
    made = objective_of(own)
    assert isinstance(made, type(own))
    assert term_names(made, 3, CPU)[5:] == extra
    trainer = Trainer(replace(SMALL, objective=own), GreyData(), CPU)
    trainer.advance(2)
    row = dict(zip(trainer.fields, trainer.ledger.row.tolist(), strict=True))
    assert all(map(math.isfinite, row.values()))
    assert has in trainer.tensors()
    if isinstance(own, Doubled):
        plain = Trainer(replace(SMALL, objective=IWAE(samples=3)), GreyData(), CPU)
        plain.advance(1)
        other = Trainer(replace(SMALL, objective=own), GreyData(), CPU)
        other.advance(1)
        assert other.ledger.row[0] == 2 * plain.ledger.row[0]


def test_an_objective_is_a_value():
    made = objective_of(Weighed(power=1, offset=2))
    assert made == objective_of(made) == replace(objective_of(Weighed), power=1, offset=2.0)
    assert isinstance(made, Weighed | Objective)
    assert pickle.loads(pickle.dumps(made)) == made
    of = replace(SMALL, objective=made)
    assert Recipe.from_json(json.loads(json.dumps(of.to_json()))) == of
    assert differences(of, replace(SMALL, objective=Weighed)) == [
        "power is 2 there and 1 here",
        "offset is None there and 2.0 here",
    ]
    assert "objective is beta-vae there and test_own_objectives.py:Weighed here" in differences(
        of, replace(SMALL, objective=BetaVAE())
    )
    assert objective_of("factor-vae") == FactorVAE()
    assert objective_of(BetaVAE) == BetaVAE()
    assert parse_sweep(of, "share=0,0.5") == ("share", [0.0, 0.5])
    assert [each.name for each in expand(of, [("kind", ["mean", "sum"])], [1])] == [
        "kind-mean/seed-1",
        "kind-sum/seed-1",
    ]
    with pytest.raises(RecipeError, match=r"share must be at most 1, got 1.5"):
        replace(made, share=1.5)
    with pytest.raises(RecipeError, match=r"Weighed has no setting 'wieght' \(did you mean weight\?\)"):
        parse_sweep(of, "wieght=1")


@pytest.mark.parametrize("net", ["my_nets.py:build", {"file": "x", "content": "y"}, ["a"], None])
def test_a_recipe_file_names_no_code_without_its_hash(net):
    with pytest.raises(RecipeError, match="architecture must be one of burgess, "):
        Recipe.from_json({**SMALL.to_json(), "architecture": net})
    with pytest.raises(RecipeError, match=r"unknown objective 'my_loss.py:Mine'"):
        Recipe.from_json({**SMALL.to_json(), "objective": {"name": "my_loss.py:Mine"}})


def test_objectives_of_two_texts_are_two(tmp_path):
    path = tmp_path / "my_loss.py"
    made = []
    for word in ("one", "other", "one"):
        path.write_text(f"# {word}\n" + (OWN / "my_loss.py").read_text())
        made.append(replace(SMALL, objective=f"{path}:FreeNats"))
    one, other, same = made
    assert one == same != other
    assert hash(one.objective) == hash(same.objective)
    assert shape_of(one) == shape_of(same) != shape_of(other)
    assert differences(one, other) == ["my_loss.py has changed"]


def test_reserved_names_are_all_options_of_training():
    from pyvae.cli.train import Train

    assert {f.name for f in fields(Train)} <= RESERVED | {f.name for f in fields(Recipe)}


TERMS_THEN = """@dataclass(frozen=True)
class Mine:
    def terms(self, outputs, step):
        terms = {{"loss": outputs.recon + outputs.kl.sum()}}
        {}
        return terms
"""
GOOD = "@dataclass(frozen=True)\nclass Mine:\n    def terms(self, outputs, step):\n        return {}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Mine:\n    x = 1", "is no dataclass: write @dataclass(frozen=True) above class Mine"),
        (
            "@dataclass\nclass Mine:\n    x: int = 1",
            "is not frozen: write @dataclass(frozen=True) above class Mine",
        ),
        (
            "@dataclass(frozen=True)\nclass Mine:\n    x: int = 1",
            "has no terms: write def terms(self, outputs, step)",
        ),
        ("def Mine(): pass", "is no class: write a frozen dataclass with terms(self, outputs, step)"),
        (GOOD + "    gamma: float", "field gamma has no default: write gamma: float = 1.0"),
        (GOOD + "    gamma: float | None", "field gamma has no default: write gamma: float | None = 1.0"),
        (
            GOOD + "    sizes: list[int] = None",
            "field sizes is a list[int], which no option can be: take int, float",
        ),
        (GOOD + "    x: InitVar[int] = 1", "x is an InitVar, which no run could keep: make it a field"),
        (GOOD + "    objective: int = 1", "field objective: an option of training has this name"),
        (GOOD + "    seeds: int = 1", "field seeds: an option of training has this name: call it otherwise"),
        (GOOD + "    lr: float = 1.0", "field lr is one of every recipe: call it otherwise"),
        (GOOD + "    x: float = 'a'", "x must be a number, got 'a'"),
        (GOOD + "    def __post_init__(self):\n        raise ValueError('no')", "Mine: no"),
        (GOOD, "terms gave no tensor loss, which is what is minimised: add it to the dict"),
        (
            GOOD.replace("{}", "outputs.recon"),
            "terms gave a Tensor, and should give a dict of scalars, with loss in it",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.z}"),
            "the term loss has the shape [4, 3], and should be one number",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.recon + outputs.kl.sum(), 'n': (outputs.z > 0).sum()}"),
            "the term n is torch.int64, and should be of floating point: write .float() behind it",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.recon + outputs.kl.sum(), 'n': 'much'}"),
            "the term n is a str, and should be a tensor of shape []",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.recon + outputs.kl.sum(), 'kl_0': outputs.recon}"),
            "the term kl_0: a column of every trace has this name: call it otherwise",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.recon + outputs.kl.sum(), 'a,b': outputs.recon}"),
            "the term a,b cannot be the name of a column",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.recon.detach()}"),
            "the loss has no gradient: make it of outputs.recon",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.recon}"),
            "the loss has no gradient in mu and logvar: nothing would be",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.nothing}"),
            "AttributeError: 'Outputs' object has no attribute 'nothing'",
        ),
        (
            GOOD.replace("{}", "{'loss': outputs.z @ outputs.z}"),
            "my_loss.py, line 7: RuntimeError: mat1 and mat2",
        ),
    ],
)
def test_what_is_wrong_with_an_objective_is_one_line(tmp_path, text, message):
    write(tmp_path / "my_loss.py", text + "\n")
    with pytest.raises(RecipeError) as caught:
        check_data(replace(SMALL, objective=f"{tmp_path}/my_loss.py:Mine"), GreyData())
    assert message in str(caught.value)
    assert "my_loss.py" in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_objective_sees_the_images_and_what_was_made_of_them(tmp_path):
    write(
        tmp_path / "my_loss.py",
        """
@dataclass(frozen=True)
class Pixels:
    def terms(self, outputs, step):
        nll = nn.functional.binary_cross_entropy_with_logits(outputs.logits, outputs.images, reduction="sum")
        nll = nll / len(outputs.images)
        return {"loss": nll + outputs.kl.sum(), "difference": (nll - outputs.recon).abs()}
""",
    )
    rows = {}
    for name in (f"{tmp_path}/my_loss.py:Pixels", "vae"):
        trainer = Trainer(replace(SMALL, objective=name), GreyData(), CPU)
        trainer.advance(3)
        rows[name] = dict(zip(trainer.fields, trainer.ledger.row.tolist(), strict=True))
    own, published = rows.values()
    assert own["difference"] < 1e-4 * published["recon"]
    assert own["loss"] == pytest.approx(published["loss"], rel=1e-5)


def test_what_goes_wrong_in_training_is_one_line(tmp_path):
    write(
        tmp_path / "my_loss.py",
        """
@dataclass(frozen=True)
class Mine:
    def terms(self, outputs, step):
        if step == 2:
            raise KeyError("late")
        return {"loss": outputs.recon + outputs.kl.sum()}
""",
    )
    of = recipe(5, objective=f"{tmp_path}/my_loss.py:Mine")
    before = torch.get_rng_state()
    with pytest.raises(SourceError, match=r"my_loss.py, line 9 in training: KeyError: 'late'"):
        trained(tmp_path / "run", of)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("if step == 2: terms['late'] = outputs.recon", "the term late is not there in every step"),
        ("if step < 2: terms['early'] = outputs.recon", "the term early is not there in every step"),
        ("if step == 2: terms['loss'] = outputs.recon.detach()", "the loss has no gradient"),
        ("if step == 2: terms['loss'] = outputs.kl", "the term loss has the shape"),
    ],
)
def test_terms_stay_what_they_were_when_tried(tmp_path, line, message):
    write(tmp_path / "my_loss.py", TERMS_THEN.format(line))
    with pytest.raises(SourceError, match=message):
        trained(tmp_path / "run", recipe(5, objective=f"{tmp_path}/my_loss.py:Mine"))


def test_any_name_and_type_of_a_term_is_a_column(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_INSIST", "1")
    text = (
        "terms |= {'KL_free': outputs.kl.half().sum(), '_a.b-c': (outputs.z @ outputs.z.T).bfloat16().sum()}"
    )
    write(tmp_path / "my_loss.py", TERMS_THEN.format(text))
    run = trained(tmp_path / "run", recipe(4, objective=f"{tmp_path}/my_loss.py:Mine", precision="bf16"))
    assert {"KL_free", "_a.b-c"} <= run.trace().keys()


def test_a_schedule_of_a_users_own_need_not_be_a_number(tmp_path):
    text = TERMS_THEN.replace("Mine:\n", "Mine:\n    capacity_steps: int | None = None\n")
    write(tmp_path / "my_loss.py", text.format("pass"))
    of = recipe(1, objective=f"{tmp_path}/my_loss.py:Mine")
    training = Training([RunDirectory(tmp_path / "run", of)], False, Corner(), CPU, {})
    assert training.train()[0].step == 1
