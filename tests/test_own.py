"""Networks and objectives of a user's own are trained, resumed, reported and scored as the published ones."""

import json
import math
import pickle
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

import commands
from pyvae.base.source import source_of
from pyvae.bounds import Share
from pyvae.engine import checkpoint
from pyvae.engine.fused.supports import supports
from pyvae.engine.grid import expand, parse_sweep
from pyvae.engine.loop import train
from pyvae.engine.prepare import Training
from pyvae.engine.recipe import Recipe, differences
from pyvae.engine.run import RunDirectory
from pyvae.engine.together import shape_of
from pyvae.engine.trainer import Trainer, check_data
from pyvae.errors import RecipeError, RunError, SourceError
from pyvae.nets import build
from pyvae.objectives import IWAE, BetaVAE, ControlVAE, FactorVAE, Objective, Outputs
from pyvae.objectives.own import RESERVED, objective_of, term_names
from pyvae.report import report
from test_resume import assert_same
from tiny import Corner, GreyData, TinyData
from train_own import OWN, recipe

CPU = torch.device("cpu")
SCRIPT = Path(__file__).with_name("train_own.py")
START = "from dataclasses import InitVar, dataclass\nimport torch\nfrom torch import nn\n"


def trained(path, of, data=None, **options):
    run = RunDirectory.create_or_resume(path, of)
    outcome = train(run, data or Corner(), CPU, log_every=3, **options)
    assert outcome.step == of.steps
    return run


def write(path, text):
    path.write_text(START + text)
    return path


# --- runs


def test_an_interrupted_run_equals_one_that_was_not(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    whole = trained(tmp_path / "whole", recipe(20))
    assert torch.equal(torch.rand(3), expected)  # a user's generator is left alone
    trained(tmp_path / "parts", recipe(7))
    torch.rand(5)
    trained(tmp_path / "parts", recipe(20))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    saved = whole.newest_checkpoint().tensors
    assert saved["net.encoder.own.1.num_batches_tracked"] == 20
    assert saved["random.cpu"].dtype == torch.uint8
    # what it draws is its own: without it, these are others
    alone = trained(tmp_path / "seed", replace(recipe(20), seed=6))
    assert not torch.equal(alone.newest_checkpoint().tensors["random.cpu"], saved["random.cpu"])
    header = (tmp_path / "whole" / "trace.csv").read_text().splitlines()[0].split(",")
    assert header == [
        "step",
        "loss",
        "recon",
        "kl",
        "beta",
        "capacity",
        "drift",
        "grad_norm",
        "kl_0",
        "kl_1",
        "kl_2",
    ]
    for name in ("my_nets.py", "my_loss.py"):
        assert (tmp_path / "whole" / "source" / name).read_bytes() == (OWN / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_of_200_steps_is_reported_and_scored(tmp_path, monkeypatch):
    from pyvae.evaluation import compute_scores

    whole = trained(tmp_path / "whole", recipe(200))
    rng = random.Random(0)
    path = tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, SCRIPT, path, "200", "0"], stderr=subprocess.DEVNULL)
        least = len(checkpoint.paths(path / "checkpoints")) and checkpoint.step_of(
            checkpoint.paths(path / "checkpoints")[-1]
        )
        while (
            not (found := checkpoint.paths(path / "checkpoints")) or checkpoint.step_of(found[-1]) < least + 9
        ):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1 * rng.random())
        process.kill()
        process.wait()
    trained(path, recipe(200))
    assert_same(tmp_path / "whole", path)
    page = report(whole, Corner())
    assert "my_loss.py:FreeNats" in page.read_text()
    scores = compute_scores(whole, Corner(), ["mig", "sap"], device=CPU)
    assert all(math.isfinite(parts["score"]) for parts in scores.found.values())
    assert scores.steps == 200


def test_reports_and_scores_take_any_network(tmp_path):
    from pyvae.evaluation import compute_scores

    run = trained(tmp_path / "run", recipe(3))
    text = report(run, Corner()).read_text()
    assert "my_loss.py:FreeNats" in text
    assert str(OWN) not in text.split("<h1")[1][:200]
    assert compute_scores(run, Corner(), ["mig"], device=CPU).steps == 3


@pytest.fixture
def copied(tmp_path):
    for name in ("my_nets.py", "my_loss.py"):
        shutil.copy(OWN / name, tmp_path / name)
    of = recipe(3, objective=f"{tmp_path}/my_loss.py:FreeNats", architecture=f"{tmp_path}/my_nets.py:build")
    return trained(tmp_path / "run", of)


def again(run, **changes):
    """The recipe as the files are now."""
    own = {"objective": run.recipe.objective.source.spec, "architecture": run.recipe.architecture.spec}
    return recipe(9, **{**own, **changes})


@pytest.mark.parametrize("name", ["my_loss.py", "my_nets.py"])
def test_a_changed_file_is_named_and_what_it_was_is_used(copied, name):
    path = copied.path.parent / name
    was = copied.load_net()[0].state_dict()
    text = path.read_text()
    path.write_text(text + "\n# a word more\n")
    message = (
        rf"{name} has changed since {copied.path} began \(a copy of what it was is {copied.source / name}\): "
        "put it back, or name another --out"
    )
    with pytest.raises(RunError, match=message):
        RunDirectory.create_or_resume(copied.path, again(copied))
    assert differences(again(copied), copied.recipe) == [f"{name} has changed"]
    # a file that cannot even be loaded any more hinders nobody who reads
    path.write_text("1 / 0\n")
    opened = RunDirectory.open(copied.path)
    assert opened.recipe == copied.recipe
    net, _ = opened.load_net()
    assert all(torch.equal(tensor, was[n]) for n, tensor in net.state_dict().items())
    path.write_text(text)
    trained(copied.path, again(copied))


def test_a_run_is_read_wherever_it_is_carried(copied, tmp_path):
    carried = tmp_path / "elsewhere" / "run"
    carried.parent.mkdir()
    copied.path.rename(carried)
    for name in ("my_nets.py", "my_loss.py"):
        (tmp_path / name).rename(carried.parent / name)
    run = RunDirectory.open(carried)
    run.load_net()
    moved = again(
        run,
        objective=f"{carried.parent}/my_loss.py:FreeNats",
        architecture=f"{carried.parent}/my_nets.py:build",
    )
    trained(carried, moved)
    (carried / "source" / "my_loss.py").unlink()
    (carried.parent / "my_loss.py").unlink()
    values = json.loads((carried / "recipe.json").read_text())
    values["sources"] = dict.fromkeys(values["sources"], "0" * 64)
    (carried / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(
        RunError, match=rf"is not what it was any more .* nor is a copy of it in {carried}/source"
    ):
        RunDirectory.open(carried)


def test_a_script_does_not_train_itself(tmp_path):
    write(
        tmp_path / "script.py",
        f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from pathlib import Path
from train_own import main
def build(channels, latents, side): ...
main(Path({str(tmp_path / "run")!r}), 3)
""",
    )
    with pytest.raises(RunError, match=r'script.py trains while it is loaded .* if __name__ == "__main__":'):
        Recipe(architecture=f"{tmp_path}/script.py:build")
    assert not (tmp_path / "run").exists()


def test_what_has_no_file_is_given_again(tmp_path, monkeypatch):
    from pyvae.base import source
    from pyvae.objectives import own

    def flat(channels, latents, side):
        return plain(channels, latents, side)

    @dataclass(frozen=True)
    class Local:
        weight: float = 2.0

        def terms(self, outputs, step):
            return {"loss": outputs.recon + self.weight * outputs.kl.sum()}

    for made, name in ((recipe(2, architecture=flat), "flat"), (recipe(2, objective=Local), "Local")):
        run = trained(tmp_path / name, made)
        assert (
            (run.source / f"{name}.py")
            .read_text()
            .lstrip("@")
            .startswith(("def flat", "dataclass(frozen=True)"))
        )
        assert RunDirectory.open(run.path).recipe == run.recipe
        with monkeypatch.context() as another:  # process, which knows nothing of this one's objects
            for module, table in ((source, "_objects"), (source, "_given"), (own, "_made")):
                another.setattr(module, table, {})
            with pytest.raises(
                RunError, match=rf"{name} was given in Python, .*{name}.py: give it again, as"
            ):
                RunDirectory.open(run.path).load_net()
            RunDirectory.open(run.path, own=[flat, Local]).load_net()


@pytest.mark.slow
def test_what_a_script_has_trained_is_read_without_it(tmp_path):
    write(
        tmp_path / "train.py",
        f"""
def build(channels, latents, side):
    pixels = channels * side * side
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * latents)), nn.Sequential(
        nn.Linear(latents, pixels), nn.Unflatten(1, (channels, side, side))
    )

@dataclass(frozen=True)
class Mine:
    weight: float = 2.0

    def terms(self, outputs, step):
        return {{"loss": outputs.recon + self.weight * outputs.kl.sum()}}

if __name__ == "__main__":
    import sys
    from pathlib import Path
    sys.path.insert(0, {str(SCRIPT.parent)!r})
    from train_own import recipe
    from test_own import trained
    trained(Path("run"), recipe(int(sys.argv[1]), objective=Mine, architecture=build))
""",
    )
    commands.run(["train.py", "2"], tmp_path).check_returncode()
    # other lines may change, and it goes on
    (tmp_path / "train.py").write_text((tmp_path / "train.py").read_text() + "    print('done')\n")
    commands.run(["train.py", "4"], tmp_path).check_returncode()
    (tmp_path / "train.py").unlink()
    run = RunDirectory.open(tmp_path / "run")
    assert run.load_net()[1] == 4
    assert run.recipe.objective.weight == 2


def test_a_decoder_of_the_true_factors(tmp_path):
    run = trained(tmp_path / "run", replace(recipe(2), code="factors"))
    assert run.load_net()[0].reads_factors


@pytest.mark.slow
def test_recipes_are_sent_to_other_processes(copied):
    sent = copied.path.parent / "sent"
    sent.write_bytes(pickle.dumps(copied.recipe))
    for name in ("my_nets.py", "my_loss.py"):
        (copied.path.parent / name).unlink()
    code = f"import pickle; r = pickle.load(open({str(sent)!r}, 'rb'))"
    code += "; print(r.objective, r.architecture.object(1, 2, 4))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("FreeNats(gamma=4.0, free=1.0) (Sequential("), done.stderr


# --- objectives


@dataclass(frozen=True)
class MyBeta:
    """An own copy of beta-VAE."""

    beta: float = 4.0

    def terms(self, outputs, step):
        return {"loss": outputs.recon + self.beta * outputs.kl.sum(-1), "beta": self.beta}


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


SMALL = Recipe(architecture="rainforth", latents=3, batch_size=8, lr=1e-3, steps=4)


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
    assert "objective is beta-vae there and test_own.py:Weighed here" in differences(
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


# --- networks


def plain(channels, latents, side):
    pixels = channels * side * side
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * latents)), nn.Sequential(
        nn.Linear(latents, pixels), nn.Unflatten(1, (channels, side, side))
    )


def pair_of_heads(channels, latents, side):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.mu, self.logvar = (nn.Linear(channels * side * side, latents) for _ in "ab")

        def forward(self, images):
            return self.mu(images.flatten(1)), self.logvar(images.flatten(1))

    net = nn.Module()
    net.encoder, net.decoder = Heads(), plain(channels, latents, side)[1]
    return net


def shared(channels, latents, side):
    """The decoder multiplies by the encoder's own weight."""

    class Back(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, z):
            return (z @ self.layer.weight[:latents]).unflatten(1, (channels, side, side))

    encoder, _ = plain(channels, latents, side)
    return encoder, Back(encoder[1])


def partly(channels, latents, side):
    """Something is frozen, and something is never used."""
    encoder, decoder = plain(channels, latents, side)
    decoder.register_parameter("idle", nn.Parameter(torch.ones(3)))
    encoder[1].bias.requires_grad_(False)
    return encoder, decoder


@pytest.mark.parametrize("made", [plain, pair_of_heads, shared, partly], ids=lambda f: f.__name__)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_networks_of_many_kinds_train_and_resume(tmp_path, made, optimizer):
    of = replace(recipe(6, architecture=made), optimizer=optimizer)
    whole = trained(tmp_path / "whole", of)
    trained(tmp_path / "parts", replace(of, steps=2))
    trained(tmp_path / "parts", of)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    net, _ = whole.load_net()
    mu, logvar = net.encoder(torch.rand(2, 1, 12, 12))
    assert mu.shape == logvar.shape == (2, 3)
    assert net.decoder(mu).shape == (2, 1, 12, 12)
    start = build(of.architecture, 1, 3, side=12, seed=of.seed)
    moved = [n for n, p in start.named_parameters() if not torch.equal(p, dict(net.named_parameters())[n])]
    frozen = {"encoder.own.1.bias", "decoder.idle"} if made is partly else set()
    assert set(moved) == {n for n, _ in start.named_parameters()} - frozen


def test_images_of_three_channels_and_any_side(tmp_path):
    class Small(TinyData):
        def __init__(self):
            super().__init__(channels=3)
            self.image_shape = (3, 10, 10)

        def images(self, index):
            return super().images(index)[..., 16:26, 16:26]

    run = trained(tmp_path / "run", recipe(2), Small())
    assert run.load_net()[0].decoder(torch.zeros(1, 3)).shape == (1, 3, 10, 10)


def test_a_network_starts_from_the_seed_and_is_initialised():
    of = Recipe(architecture=plain)
    first, same, other = (build(of.architecture, 1, 3, side=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.decoder[0].weight, same.decoder[0].weight)
    assert not torch.equal(first.decoder[0].weight, other.decoder[0].weight)
    zeroed = build(of.architecture, 1, 3, side=8, init="glorot").decoder[0]
    assert torch.equal(zeroed.bias, torch.zeros_like(zeroed.bias))


def test_convolutions_of_pyvaes_own_stand_in_a_users_network(tmp_path):
    path = write(
        tmp_path / "my_nets.py",
        """
from pyvae.modules import fuse_convolutions

def build(channels, latents, side):
    encoder = nn.Sequential(
        nn.Conv2d(channels, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 2 * latents),
    )
    decoder = nn.Sequential(nn.Linear(latents, channels * side * side), nn.Unflatten(1, (channels, side, side)))
    return fuse_convolutions(encoder), decoder
""",
    )
    of = recipe(4, architecture=f"{path}:build")
    whole = trained(tmp_path / "whole", of)
    trained(tmp_path / "parts", replace(of, steps=2))
    trained(tmp_path / "parts", of)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    from pyvae.nets.layers import convolutions_of

    said = whole.newest_checkpoint().metadata["convolutions"]
    assert said.partition("+")[0] == convolutions_of(whole.load_net()[0], CPU, "fp32")
    plain_run = trained(tmp_path / "plain", recipe(1, architecture=plain))
    assert plain_run.newest_checkpoint().metadata["convolutions"] == "none"


def test_the_fused_engine_leaves_them_to_torch(monkeypatch):
    from pyvae.engine.fused import supports as module
    from pyvae.engine.training import training

    monkeypatch.setattr(module, "lacks", lambda device: None)
    for of, what in (
        (recipe(1), "my_nets.py:build"),
        (replace(SMALL, objective=MyBeta), "test_own.py:MyBeta"),
    ):
        of = replace(of, precision="tf32")
        assert supports(of, Corner(), CPU) == f"{what} is of your own, and has no kernels"
        assert isinstance(training(of, Corner(), CPU), Trainer)
        with pytest.raises(RecipeError, match=rf"engine fused: {what} is of your own.*: --engine torch"):
            training(replace(of, engine="fused"), Corner(), CPU)


RETURN = "def build(channels, latents, side):\n    return "


COUNTING = (
    "class E(nn.Linear):\n    def __init__(self):\n        super().__init__(144, 6)\n"
    "        self.register_buffer('n', torch.zeros(1), persistent={1})\n    def forward(self, x):\n"
    "        self.n = {0}\n        return super().forward(x.flatten(1))\n"
    + RETURN
    + "E(), nn.Sequential(nn.Linear(3, 144), nn.Unflatten(1, (1, 12, 12)))"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RETURN + "3", "gave int, and should give a module with encoder and decoder, or a pair of modules"),
        (
            RETURN + "nn.Linear(2, 2)",
            "the Linear that it gives has no encoder: name its two modules encoder and decoder",
        ),
        (RETURN + "nn.Flatten(), 3", "its decoder is int, and should be a torch.nn.Module"),
        (RETURN + "nn.Flatten(), nn.Flatten()", "the network has no parameters to train"),
        (
            RETURN + "1 / 0",
            "my_nets.py, line 5 called as build(1, 3, 12): ZeroDivisionError: division by zero",
        ),
        (
            "def build(channels): pass",
            "called as build(1, 3, 12): TypeError: build() takes 1 positional argument but 3",
        ),
        (
            RETURN + "nn.Sequential(nn.Flatten(), nn.Linear(144, 7)), nn.Linear(3, 4)",
            "its encoder, of images [2, 1, 12, 12], gave [2, 7], and should give (mu, logvar), [2, 3] each, or one "
            "tensor [2, 6] of mean and log-variance",
        ),
        (
            RETURN + "nn.Sequential(nn.Flatten(), nn.Linear(144, 6)), nn.Linear(3, 144)",
            "its decoder, of codes [2, 3], gave [2, 144], and should give logits [2, 1, 12, 12]",
        ),
        (
            RETURN + "nn.Sequential(nn.Flatten(), nn.Linear(100, 6)), nn.Linear(3, 144)",
            "in its encoder, of images [2, 1, 12, 12]: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            "class E(nn.Module):\n    def forward(self, x):\n        return [x.flatten(1)[:, :3]] * 3\n"
            + RETURN
            + "E(), nn.Linear(3, 144)",
            "its encoder, of images [2, 1, 12, 12], gave list of 3, and should give (mu, logvar)",
        ),
        (
            "class E(nn.Module):\n    def forward(self, x):\n        return x.flatten(1)[:, :6] / 0\n"
            + RETURN
            + "E(), nn.Linear(3, 144)",
            "gave numbers that are not finite",
        ),
        (
            "class E(nn.Module):\n    def forward(self, x):\n        return x.flatten(1)[:, :6].long()\n"
            + RETURN
            + "E(), nn.Linear(3, 144)",
            "gave int64, and should give floating-point numbers",
        ),
        (
            "class E(nn.Linear):\n    def forward(self, x):\n"
            "        return super().forward(x.flatten(1))[self.training :]\n"
            + RETURN
            + "E(144, 6), nn.Sequential(nn.Linear(3, 144), nn.Unflatten(1, (1, 12, 12)))",
            "its encoder, of images [2, 1, 12, 12], in training, gave [1, 6]",
        ),
        (
            RETURN + "nn.Sequential(nn.Flatten(), nn.LazyLinear(6)), nn.Linear(3, 144)",
            "encoder.1.weight is of a lazy layer, whose size is not known before it runs: name its size",
        ),
        (
            RETURN + "nn.Sequential(nn.Flatten(), nn.Linear(144, 6)).half(), nn.Linear(3, 144)",
            "encoder.1.weight is float16, and weights are float32 here",
        ),
        (COUNTING.format("self.n.new_zeros(2)", "True"), "the buffer encoder.n is of another shape once"),
        (COUNTING.format("self.n + 1", "False"), "the buffer encoder.n changes while the network runs"),
        (
            "class Both(nn.Module):\n    @property\n    def encoder(self):\n        raise ValueError('none')\n"
            + RETURN
            + "Both()",
            "asked for its encoder and decoder: ",
        ),
        (
            "class Both(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.encoder, self.decoder, self.third = nn.Flatten(), nn.Flatten(), nn.Linear(2, 2)\n"
            + RETURN
            + "Both()",
            "third.weight is in neither encoder nor decoder, and would not be trained: put it into one of them",
        ),
    ],
)
def test_what_is_wrong_with_a_network_is_one_line(tmp_path, text, message):
    write(tmp_path / "my_nets.py", text + "\n")
    before = torch.get_rng_state()
    with pytest.raises(SourceError) as caught:
        check_data(replace(SMALL, architecture=f"{tmp_path}/my_nets.py:build"), Corner())
    assert message in str(caught.value)
    assert str(caught.value).startswith("my_nets.py")
    assert str(caught.value).isprintable()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sigmoid_at_the_end_of_a_decoder_is_told(tmp_path, caplog):
    pixels = "nn.Linear(3, 144), nn.Unflatten(1, (1, 12, 12))"
    for name, end in ("plain", ""), ("squashed", ", nn.Sigmoid()"):
        write(
            tmp_path / f"{name}.py",
            f"{RETURN}nn.Sequential(nn.Flatten(), nn.Linear(144, 6)), nn.Sequential({pixels}{end})\n",
        )
        check_data(replace(SMALL, architecture=f"{tmp_path}/{name}.py:build"), Corner())
    assert [record.getMessage() for record in caplog.records] == [
        "squashed.py:build: all logits that its decoder gave lie between 0 and 1. Has it a sigmoid at its end? It "
        "should have none: pixels are the sigmoid of what it gives"
    ]


def test_what_a_function_makes_is_one_for_each_of_its_values():
    def wide(width):
        def build(channels, latents, side):
            pixels = channels * side * side
            encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.Linear(width, 2 * latents))
            return encoder, nn.Sequential(nn.Linear(latents, pixels), nn.Unflatten(1, (channels, side, side)))

        return build

    def scaled(scale):
        @dataclass(frozen=True)
        class Scaled:
            weight: float = scale

            def terms(self, outputs, step):
                return {"loss": outputs.recon + self.weight * scale * outputs.kl.sum()}

        return Scaled

    nets = [source_of(wide(width)) for width in (4, 8, 4)]
    assert [source.object(1, 2, 6)[0][1].out_features for source in nets] == [4, 8, 4]
    assert nets[0] == nets[2] != nets[1]
    assert [objective_of(scaled(scale)).weight for scale in (1.0, 2.0)] == [1.0, 2.0]
    with pytest.raises(
        SourceError, match=r"build takes width from the function around it, .* of type object: make"
    ):
        source_of(wide(object()))
    with pytest.raises(
        SourceError, match=r"a Linear that is made already cannot .*: give the class or function"
    ):
        source_of(nn.Linear(2, 2))


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


def test_what_cannot_be_captured_is_one_line(monkeypatch):
    """As on a GPU, where a value that is read ends the capture, and another error follows from that."""
    from pyvae.engine import stepper

    class Capture:
        def __init__(self, step, count):
            try:
                step()
            finally:
                raise RuntimeError("capture was invalidated\nmore of it")

    @dataclass(frozen=True)
    class Reads:
        def terms(self, outputs, step):
            if outputs.kl.sum().item() > 1e9 or step == 16:
                raise RuntimeError("a value was read")
            return {"loss": outputs.recon + outputs.kl.sum()}

    monkeypatch.setattr(stepper, "Capture", Capture)
    trainer = Trainer(recipe(32, objective=Reads, architecture="rainforth"), Corner(), CPU)
    trainer.advance(16)
    trainer._capturable = True
    with pytest.raises(
        SourceError, match=r"^Reads.py, line \d+: steps cannot be one CUDA graph \(capture was in.*d\): no"
    ):
        trainer.advance(16)


@pytest.mark.slow
def test_what_cannot_be_compiled_is_one_line():
    class Branches(nn.Module):
        def __init__(self, pixels, latents):
            super().__init__()
            self.layer = nn.Linear(pixels, 2 * latents)

        def forward(self, images):
            both = self.layer(images.flatten(1))
            return -both if both.sum().item() > 0 else both

    def branching(channels, latents, side):
        return Branches(channels * side * side, latents), plain(channels, latents, side)[1]

    trainer = Trainer(recipe(2, architecture=branching), Corner(), CPU, compile=True)
    with pytest.raises(
        SourceError, match=r"torch.compile cannot take the network whole .*: leave --compile out"
    ):
        trainer.advance()


@pytest.mark.gpu
def test_captured_steps_draw_what_single_ones_do_and_resume(tmp_path):
    """Dropout, batch normalisation and noise in the loss, on a GPU."""
    device, rows = torch.device("cuda"), {"log_every": 3}
    torch.manual_seed(11)
    expected = torch.rand(3, device=device)
    torch.manual_seed(11)
    for name, lengths, capture in (("whole", [80], True), ("single", [80], False), ("parts", [37, 80], True)):
        for steps in lengths:
            run = RunDirectory.create_or_resume(tmp_path / name, recipe(steps))
            train(run, Corner(), device, capture=capture, **rows)
    assert torch.equal(torch.rand(3, device=device), expected)
    assert_same(tmp_path / "whole", tmp_path / "single")
    assert_same(tmp_path / "whole", tmp_path / "parts")
