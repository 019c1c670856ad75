"""Codes of generators beside those of VAEs: what is measured of a run, and how it becomes tables and pictures."""

import copy
import math

import pytest
import torch

import pyvae
from pyvae.metrics import factor_vae, mig
from pyvae.studies.plan import read_plan
from scripts import ROOT, module, page_of, scripts  # noqa: F401
from sprites_tiny import use_tiny_sprites

STEPS = {"steps": 3, "keep_at": (1, 2), "batch_size": 8, "lr": 0.02, "device": "cpu", "log_every": 1}
"""A rate with which images change in every step."""


@pytest.fixture
def study(monkeypatch, tmp_path):
    use_tiny_sprites(monkeypatch, tmp_path / "cache")
    pyvae.train("infogan", out=tmp_path / "study/infogan/seed-0", **STEPS)
    pyvae.train("vae", architecture="kim", out=tmp_path / "study/vae/seed-0", **STEPS)
    return tmp_path / "study"


def test_runs_become_files_tables_and_pictures(study, tmp_path):
    findings = module("findings")
    results, pages = tmp_path / "results", tmp_path / "pages"
    assert len(findings.measure("generators", study, results)) == 2
    gan, vae = findings.read("generators", results)
    assert (gan["arm"], vae["arm"]) == ("infogan", "vae")
    assert [each["step"] for each in vae["snapshots"]] == [1, 2, 3]
    assert [each["step"] for each in gan["samples"]] == [1, 2, 3]

    for path, result in (("infogan", gan), ("vae", vae)):
        run = pyvae.open(study / path / "seed-0")
        table = module("questions.runs").grid_codes(run, 2)
        assert table.factor_sizes == (3, 6, 2, 2, 2)
        wanted = factor_vae(table, variance_points=None).score, mig(table, points=None).score
        assert (result["snapshots"][1]["factor-vae"], result["snapshots"][1]["mig"]) == pytest.approx(
            wanted, rel=1e-3, abs=1e-6
        )
        drawn = torch.nn.functional.avg_pool2d(run.model(2).sample(18, seed=0), 2).unflatten(0, (3, 6))
        shown = module("questions.thumbnails").unpack(result["samples"][1]["images"])
        torch.testing.assert_close(shown, drawn, rtol=0, atol=0.5 / 15 + 1e-6)
    assert gan["codes"]["names"] == ["c0", "c1", "c2", "c3", "class"]
    assert gan["codes"]["nats"][-1] <= math.log(3)
    assert gan["moved"]["codes"] == [0, 1, 2, 3, 4]
    strongest = sorted(range(10), key=lambda j: -vae["codes"]["nats"][j])
    assert vae["moved"]["codes"] == strongest[:5]

    pages.mkdir()
    (pages / "generators.md").write_text(page_of("generators"))
    findings.draw(results, pages)
    page = (pages / "generators.md").read_text()
    assert "| `infogan` | 0 | 0 | 3 | 0.0 % | 24 |" in page
    # the VAE had seen as many images at its end too
    assert page.count("| as many images | 3 |") == 1
    assert page.count("| c1 |") == 1
    pictures = sorted(each.name for each in pages.glob("*.png"))
    wanted = ("codes", "samples", "scores", "training")
    assert pictures == [f"generators-{name}.png" for name in wanted]
    assert all((pages / name).stat().st_size > 3_000 for name in pictures)


def test_images_of_a_critic_of_more_steps_count():
    count = module("questions.generators_tables").real_images
    assert count({"batch_size": 64, "objective": {"critic_steps": 5}}, 10) == 3200
    assert count({"batch_size": 64, "objective": {"beta": 4.0}}, 10) == 640


def test_the_share_that_is_known_goes_from_none_to_all():
    """The bounds are those of the objective where the head says 0, and where it says the code."""
    from pyvae.nets.adversarial import CodePosterior
    from pyvae.objectives import InfoGAN
    from pyvae.objectives.infogan import Codes

    low, high = module("questions.generators_pictures")._CONTINUOUS
    codes = Codes(
        torch.zeros(20001, 0), torch.linspace(-1, 1, 20001).unsqueeze(-1), torch.zeros(20001).long()
    )
    objective = InfoGAN(continuous=1, categories=0)
    for mean, bound in ((torch.zeros_like(codes.continuous), low), (codes.continuous, high)):
        found = objective.information(CodePosterior(mean, None, torch.empty(20001, 0)), codes)
        assert float(found) == pytest.approx(bound, abs=1e-3)


def test_a_picture_has_each_method_once():
    first = module("questions.tables").first_of_arms
    found = [{"arm": "vae", "seed": 0}, {"arm": "vae", "seed": 1}, {"arm": "infogan", "seed": 1}]
    assert first(copy.deepcopy(found)) == [found[0], found[2]]


def test_tables_without_a_run_say_so():
    question = module("questions.generators").QUESTION
    assert {table([]) for table in question.tables.values()} == {"No run has been measured yet."}


def test_the_study_has_the_arms_of_the_question():
    plan = read_plan(ROOT / "examples/studies/findings/generators.toml")
    arms = tuple(dict.fromkeys(model.method for model in plan.models))
    assert arms == module("questions.generators").QUESTION.arms
    assert arms == tuple(module("questions.generators_tables")._RECIPES)
    recipes = {model.method: model.recipe for model in plan.models}
    assert {recipe.architecture for recipe in recipes.values()} == {"kim"}
    vae, beta = recipes["vae"], recipes["beta-vae-4"]
    assert (vae.lr, vae.init, vae.steps, vae.keep_at) == (beta.lr, beta.init, beta.steps, beta.keep_at)
    # at one of its steps a VAE has seen as many images as InfoGAN at its end
    assert recipes["infogan"].steps in vae.keep_at
