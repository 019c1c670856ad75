"""FactorVAE's discriminator against the total correlation: what is measured of a run, and what is drawn of it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import codes
import pyvae
from pyvae import data
from pyvae.metrics import factor_vae, mig, total_correlation
from pyvae.objectives import FactorVAE
from pyvae.studies.plan import read_plan
from scripts import ROOT, module, page_of, scripts  # noqa: F401
from tiny import TinyData

STUDY = ROOT / "examples/studies/findings/correlation.toml"


def correlated(rows=20_000, latents=3):
    """Codes of two latents that are nearly Gaussian, of correlation 0.8, and of others beside them."""
    covariance = np.eye(latents)
    covariance[0, 1] = covariance[1, 0] = 0.8
    mu = codes.noise(rows, latents) @ np.linalg.cholesky(covariance - 0.09 * np.eye(latents)).T
    return codes.table(mu, {"row": rows}, sigma=0.3)


EXACT = -0.5 * math.log(1 - 0.8**2)


class Odds(nn.Module):
    """The discriminator that knows the densities of :func:`correlated`, or a mistaken one."""

    def __init__(self, times=1.0, more=0.0):
        super().__init__()
        self.times, self.more = times, more

    def forward(self, z):
        x, y = z[:, 0], z[:, 1]
        quadratic = (x * x - 1.6 * x * y + y * y) / 0.36
        odds = -0.5 * (quadratic - x * x - y * y) + EXACT
        return torch.stack([self.times * odds + self.more, torch.zeros_like(odds)], 1)


class TestDiscriminator:
    def test_one_that_knows_the_densities_says_the_total_correlation(self):
        found = module("questions.discriminator").says(Odds(), correlated())
        assert found["log_odds"] == pytest.approx(EXACT, abs=5 * found["log_odds_error"])
        assert found["log_odds_error"] < 0.02
        assert found["bound"] == pytest.approx(EXACT, abs=0.06)
        # the other way round it is another divergence
        assert found["log_odds_of_product"] < -EXACT
        assert 0.65 < found["accuracy"] < 0.8

    def test_a_constant_is_seen_through_by_the_bound(self):
        says = module("questions.discriminator").says
        plain, more = says(Odds(), correlated()), says(Odds(more=3.0), correlated())
        assert more["log_odds"] == pytest.approx(plain["log_odds"] + 3, abs=1e-3)
        assert more["bound"] == pytest.approx(plain["bound"], abs=1e-3)
        nothing = says(Odds(times=0.0, more=2.0), correlated())
        assert (nothing["log_odds"], nothing["bound"], nothing["accuracy"]) == (2.0, 0.0, 0.5)

    @pytest.mark.parametrize("times", [-1.0, 0.3, 0.6])
    def test_a_mistaken_one_bounds_less(self, times):
        found = module("questions.discriminator").says(Odds(times=times), correlated())
        assert found["bound"] < EXACT - 0.05

    def test_samples_are_new_at_every_call_and_the_same_in_every_run(self):
        discriminator = module("questions.discriminator")
        draw, again = (discriminator.drawing(correlated(), 3) for _ in range(2))
        first, second = draw(4000), draw(4000)
        assert not torch.equal(first, second)
        assert torch.equal(first, again(4000))
        # posteriors are much narrower than what lies between most of them
        assert (first - second).norm(dim=1).median() > 1
        assert torch.corrcoef(first.mT)[0, 1] == pytest.approx(0.8, abs=0.03)
        assert torch.corrcoef(discriminator.permuted(first).mT)[0, 1] == pytest.approx(0, abs=0.08)
        assert first.std(0).tolist() == pytest.approx([1, 1, 1], abs=0.05)


def test_beta_tcvaes_estimates_depend_on_weighting_and_batch():
    correlation = module("questions.correlation")
    table = correlated()
    found = correlation.minibatch_estimates(table)
    assert set(found) == {"mws 64", "mws 2048", "mss 64", "mss 2048"}
    # a constant of two latents fewer than there are, and what a batch does not know
    assert found["mws 2048"] == pytest.approx(EXACT + 2 * math.log(len(table)), abs=1.5)
    assert found["mss 2048"] == pytest.approx(EXACT, abs=0.1)
    assert found["mss 64"] < found["mss 2048"] - 0.1


def test_gaussians_and_density_agree_on_a_gaussian():
    found = module("questions.correlation").correlation_of(correlated())
    assert found["tc"] == pytest.approx(EXACT, abs=5 * found["tc_error"] + 0.02)
    assert found["gaussian"] == pytest.approx(EXACT, abs=0.02)
    of_means = -0.5 * math.log(1 - (0.8 / 0.91) ** 2)
    assert found["gaussian_of_means"] == pytest.approx(of_means, abs=0.03)


def test_between_two_betas():
    between = module("questions.correlation_tables").between
    points = [{"recon": 90.0, "tc": 1.0}, {"recon": 50.0, "tc": 3.0}, {"recon": 150.0, "tc": 0.4}]
    assert between(points, 60.0) == pytest.approx({"recon": 60.0, "tc": 2.5})
    assert between(points, 120.0) == pytest.approx({"recon": 120.0, "tc": 0.7})
    assert between(points, 40.0) is None
    assert between(points, 151.0) is None


def test_the_study_changes_the_objective_alone():
    models = read_plan(STUDY).models
    assert {model.method for model in models} == set(module("questions.correlation_tables").ARMS)
    recipes = [{**model.recipe.to_json(), "seed": 0} for model in models]
    objectives = [recipe.pop("objective") for recipe in recipes]
    assert all(recipe == recipes[0] for recipe in recipes)
    published = pyvae.recipes.RECIPES["factor-vae"][1]
    assert objectives[0] == published.to_json()["objective"]
    shared = {name: value for name, value in published.to_json().items() if name not in ("objective", "seed")}
    assert {name for name in shared if shared[name] != recipes[0][name]} == {"steps", "keep_at"}
    for model in models:
        beta = getattr(model.recipe.objective, "beta", None)
        assert model.method == ("factor-vae-35" if beta is None else f"beta-vae-{beta:g}")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A tiny one of each method."""
    monkeypatch.setattr(data, "load", lambda path, **options: TinyData())
    settings = {
        "steps": 12,
        "keep_at": (4, 8),
        "log_every": 2,
        "device": "cpu",
        "batch_size": 8,
        "data": "tiny",
    }
    for name, beta in (("beta-vae-4", 4.0), ("beta-vae-8", 8.0)):
        pyvae.train(
            "beta-vae",
            out=tmp_path / name / "seed-0",
            architecture="kim",
            init="torch",
            beta=beta,
            **settings,
        )
    pyvae.train("factor-vae", out=tmp_path / "factor-vae-35/seed-0", discriminator_width=20, **settings)
    return tmp_path


def test_runs_are_measured_and_drawn(runs, tmp_path, monkeypatch):
    findings, correlation = module("findings"), module("questions.correlation")
    discriminator = module("questions.discriminator")
    monkeypatch.setattr(correlation, "GRID", (1, 1, 2))
    monkeypatch.setattr(correlation, "ALL", (1, 1, 1))
    monkeypatch.setattr(correlation, "BATCHES", ((8, 4), (32, 2)))
    monkeypatch.setattr(correlation, "factor_vae", lambda table: factor_vae(table, variance_points=None))
    monkeypatch.setattr(correlation, "mig", lambda table: mig(table, points=None))
    monkeypatch.setattr(discriminator, "CAUGHT_UP", (0, 5))
    monkeypatch.setattr(discriminator, "SAMPLES", 200)
    results, pages = tmp_path / "results", tmp_path / "pages"
    findings.measure("correlation", runs, results)
    found = findings.read("correlation", results)
    assert [each["arm"] for each in found] == ["factor-vae-35", "beta-vae-4", "beta-vae-8"]
    for result in found:
        run = pyvae.open(runs / result["arm"] / "seed-0")
        assert [each["step"] for each in result["snapshots"]] == [4, 8, 12]
        assert [each["images"] for each in result["snapshots"]] == [60] * 3
        expected = total_correlation(run.codes(progress=False).table, progress=False)
        assert result["whole"]["tc"] == pytest.approx(expected.score, abs=1e-4)
        assert result["whole"]["tc_error"] == pytest.approx(expected.standard_error, abs=1e-4)
        parts = [result["whole"][key] for key in ("mutual_information", "tc", "dimension_wise_kl")]
        assert sum(parts) == pytest.approx(float(run.codes(progress=False).table.mean_kl().sum()), abs=1e-3)
        assert [units for _, units in result["snapshots"][0]["dead"]] == [32, 32, 64, 64, 128]
        assert list(result["whole"]["minibatch"]) == ["mws 8", "mws 32", "mss 8", "mss 32"]
    told = [each["discriminator"] for each in found[0]["snapshots"]]
    assert len({each["log_odds"] for each in told}) == 3
    assert "discriminator" not in found[1]["snapshots"][0]
    assert [each["steps"] for each in found[0]["caught_up"]] == [0, 5]
    assert found[0]["caught_up"][0]["log_odds"] != found[0]["caught_up"][1]["log_odds"]
    most, snapshots = found[0]["most"], found[0]["snapshots"]
    assert most["tc"] == max(each["tc"] for each in snapshots)
    (at,) = (each for each in snapshots if each["step"] == most["step"])
    begun, *_, taught = most["caught_up"]
    assert {name: value for name, value in begun.items() if name != "steps"} == pytest.approx(
        at["discriminator"], abs=1e-3
    )
    assert taught["log_odds"] != begun["log_odds"]
    mu, _ = (
        pyvae.open(runs / "factor-vae-35/seed-0")
        .model(most["step"])
        .encode(TinyData().images(torch.arange(0, 120, 2)))
    )
    assert abs(most["farthest"][0]) == pytest.approx(mu.mean(0).abs().max().item(), abs=1e-3)
    assert all(path.stat().st_size < 150_000 for path in results.rglob("*.json"))

    pages.mkdir()
    (pages / "correlation.md").write_text(page_of("correlation"))
    findings.draw(results, pages)
    text = (pages / "correlation.md").read_text()
    assert f"| factor-vae-35, seed 0 | {found[0]['snapshots'][-1]['recon']:.1f} |" in text
    for step in (0, 4, 12):
        assert f"| factor-vae-35, seed 0 | {step} | 0 of 32 | 0 of 32 | " in text
    assert found[0]["dead_at_first"] == found[1]["dead_at_first"] != found[0]["snapshots"][-1]["dead"]
    assert "| by its density, an eighth of the images |" in text
    last = pyvae.open(runs / "factor-vae-35/seed-0").trace()["tc"][-1]
    assert f"| discriminator in training, last tenth: mean log-odds | {last:.2f} | - | - |" in text
    for name in ("correlation-course.png", "correlation-parts.png", "correlation-equal.png"):
        assert 10_000 < (pages / name).stat().st_size < 300_000


def test_the_discriminator_is_that_of_the_snapshot_and_learns_when_the_encoder_stands_still(
    runs, monkeypatch
):
    discriminator = module("questions.discriminator")
    run = pyvae.open(runs / "factor-vae-35/seed-0")
    nets = [discriminator.discriminator_of(run, step) for step in (4, 8)]
    assert not torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert isinstance(run.recipe.objective, FactorVAE)
    monkeypatch.setattr(discriminator, "CAUGHT_UP", (0, 400))
    monkeypatch.setattr(
        FactorVAE, "discriminator_optimizer", lambda self, net: torch.optim.Adam(net.parameters(), 1e-2)
    )
    before, after = discriminator.catch_up(run, 8, correlated(latents=10))
    assert before["bound"] < 0.1 < after["bound"] < EXACT + 0.1
    assert after["accuracy"] > before["accuracy"] + 0.05
