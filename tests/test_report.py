import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from pyvae import reference
from pyvae.data.subset import subset
from pyvae.engine import checkpoint
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.evaluation import averages as evaluation
from pyvae.evaluation.averages import correlation_ratio, evaluate
from pyvae.nets import build
from pyvae.objectives import BetaVAE, CapacityVAE, FactorVAE
from pyvae.random import Stream, make_key
from pyvae.report import report, traversal
from pyvae.report.figures import draw_trace
from pyvae.report.panels import caption, smooth
from pyvae.report.trained import load_trained
from tiny import Corner, TinyData

RECIPE = Recipe(objective=BetaVAE(), data="tiny", architecture="kim", batch_size=8, steps=6, latents=4)


def make_run(path: Path, images=None, **changes) -> RunDirectory:
    run = RunDirectory.create_or_resume(path, replace(RECIPE, **changes))
    train(run, images or TinyData(), torch.device("cpu"), log_every=1)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def grid(*sizes):
    return torch.cartesian_prod(*(torch.arange(n) for n in sizes))


class TestCorrelationRatio:
    classes = grid(3, 4, 5)

    def test_a_code_that_is_a_factor(self):
        codes = torch.stack([self.classes[:, 1].double() * -7 + 2, self.classes[:, 2].double() ** 2], 1)
        torch.testing.assert_close(
            correlation_ratio(codes, self.classes), torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.float64)
        )

    def test_a_sum_of_factors_shares_the_variance(self):
        a, b = self.classes[:, 0].double(), self.classes[:, 1].double()
        shares = correlation_ratio((a + b)[:, None], self.classes)[0]
        expected = torch.stack([a.var(correction=0), b.var(correction=0)]) / (a + b).var(correction=0)
        torch.testing.assert_close(shares[:2], expected)
        assert shares.sum() == pytest.approx(1)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_constant_code_is_nothing_and_not_nan(self, dtype):
        constants = torch.linspace(-1, 1, 50, dtype=dtype).expand(60, 50)
        assert correlation_ratio(constants, self.classes).tolist() == [[0, 0, 0]] * 50

    def test_an_independent_code_is_next_to_nothing(self):
        codes = torch.randn(60_000, 1, generator=torch.Generator().manual_seed(0))
        assert correlation_ratio(codes, grid(3, 4, 5).repeat(1000, 1)).max() < 1e-3


def test_evaluation_equals_the_formulas(run):
    data, (net, _) = TinyData(), run.load_net()
    index = subset(data)
    assert index.sort().values.tolist() == list(range(120))
    images = data.images(index)
    with torch.no_grad():
        mu, logvar = net.encoder(images)
        noise = reference.posterior_noise(mu.shape, make_key(0, 0), Stream.METRIC, torch.float32)
        logits = net.decoder(mu + (logvar / 2).exp() * noise)
        probability = torch.sigmoid(logits.double())
        recon = -torch.where(images > 0, probability, 1 - probability).log().sum() / 120
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)
    result = evaluate(net, data)
    assert result.recon == pytest.approx(float(recon), rel=1e-5)
    assert result.kl == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-7)
    expected = correlation_ratio(mu, data.factor_classes(index))
    np.testing.assert_allclose(result.dependence, expected, rtol=1e-6)


def test_evaluation_weighs_a_last_batch_that_is_smaller(run, monkeypatch):
    monkeypatch.setattr(evaluation, "_BATCH", 50)
    data, (net, _) = TinyData(), run.load_net()
    recon, kl, sizes = 0.0, torch.zeros(4), []
    for step, index in enumerate(subset(data).split(50)):
        images = data.images(index)
        with torch.no_grad():
            mu, logvar = net.encoder(images)
            z, each = reference.reparameterize_kl(mu, logvar, key=make_key(0, step), stream=Stream.METRIC)
            recon += float(reference.bernoulli_nll(net.decoder(z), images, reduction="sum"))
        kl += each * len(index)
        sizes.append(len(index))
    assert sizes == [50, 50, 20]
    result = evaluate(net, data)
    assert result.recon == pytest.approx(recon / 120, rel=1e-6)
    assert result.kl == pytest.approx((kl / 120).tolist(), rel=1e-5)


class Page(HTMLParser):
    """What a page shows, without the explanations of its terms."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.strongest: list[tuple[int, int]] = []
        self.in_cell = False
        self.unseen = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "src":
                self.sources.append(value)
            if name == "href":
                self.links.append(value)
        assert tag not in ("link", "iframe")
        assert tag != "script" or "src" not in dict(attrs)
        if self.unseen or tag in ("script", "style") or dict(attrs).get("role") == "tooltip":
            self.unseen += 1
            return
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.in_cell = True
            if "strongest" in (dict(attrs).get("class") or ""):
                self.strongest.append((len(self.rows) - 1, len(self.rows[-1])))
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if self.unseen:
            self.unseen -= 1
        elif tag in ("th", "td"):
            self.in_cell = False

    def handle_data(self, data):
        if self.unseen:
            return
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data


def test_the_page_is_complete_and_needs_nothing_else(run):
    path = report(run, TinyData())
    page = Page(path.read_text())
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert path == run.path / "report.html"
    parts = (
        "results", "explorer", "training", "reconstructions", "latent-traversals", "recipe", "compare",
    )  # fmt: skip
    assert page.links == [f"#{part}" for part in parts]
    assert len(page.sources) == 7 + 13  # those of the explorer: what to start from, and the input
    assert all(s.startswith(("data:image/png;base64,", "data:image/gif;base64,")) for s in page.sources)
    assert f"{metrics['recon']:.2f} nats" in page.text
    assert f"{metrics['kl']:.2f} nats" in page.text
    assert metrics["kl"] == pytest.approx(sum(metrics["kl_of_latents"]))
    assert metrics["elbo"] == pytest.approx(-metrics["recon"] - metrics["kl"])
    assert metrics["factors"] == ["size", "row", "column"]
    assert metrics["steps"] == 6
    assert "This run has made" not in page.text
    for name in ("trace.png", "reconstructions.png"):
        assert (run.figures / name).read_bytes().startswith(b"\x89PNG")


def test_the_table_of_latents_is_that_of_the_metrics(run, monkeypatch):
    monkeypatch.setattr(traversal, "ACTIVE_NATS", 0.0)
    page = Page(report(run, TinyData()).read_text())
    metrics = json.loads((run.path / "metrics.json").read_text())
    head = page.rows.index(["latent", "KL, nats", "size", "row", "column"])
    order = sorted(range(4), key=lambda j: -metrics["kl_of_latents"][j])
    eta = metrics["eta_squared"]
    for place, j in enumerate(order):
        expected = [f"z{j}", f"{metrics['kl_of_latents'][j]:.3f}", *(f"{share:.2f}" for share in eta[j])]
        assert page.rows[head + 1 + place] == expected
    assert page.strongest == [(head + 1 + place, 2 + int(np.argmax(eta[j]))) for place, j in enumerate(order)]
    assert ["ELBO", f"{metrics['elbo']:.2f} nats"] in page.rows
    assert ["steps", "6"] in page.rows


def test_two_reports_say_the_same(run):
    report(run, TinyData())
    first = (run.path / "metrics.json").read_text()
    report(run, TinyData())
    assert (run.path / "metrics.json").read_text() == first


def test_a_short_run_says_so_and_the_explorer_can_be_left_out(tmp_path):
    run = make_run(tmp_path / "run", steps=2)
    longer = RunDirectory.create_or_resume(run.path, replace(RECIPE, steps=1000))
    text = report(longer, TinyData(), explorer=False).read_text()
    assert "made 2 of its 1,000 steps" in Page(text).text
    assert "pyvaeNetwork" not in text


def test_other_data_than_it_was_trained_on(run):
    text = Page(report(run, TinyData(fingerprint="tiny<v2>")).read_text()).text
    assert "6 steps on tiny-v1" in text
    assert "other data than it was trained on: tiny<v2>" in text
    assert "other data" not in Page(report(run, TinyData()).read_text()).text


def test_the_speed_is_that_of_one_checkpoint(run):
    newest = checkpoint.load_newest(run.checkpoints)
    trained = load_trained(run, TinyData())
    assert trained.steps == 6
    assert trained.steps_per_second == pytest.approx(6 / newest.metadata["seconds"])


def test_three_channels_and_one_logged_step(tmp_path):
    data = TinyData(channels=3)
    run = make_run(tmp_path / "run", data, steps=1)
    assert "η²" in Page(report(run, data).read_text()).text


def test_what_a_user_wrote_is_escaped(tmp_path):
    run = make_run(tmp_path / "<b>run", steps=1, data="tiny<script>")
    text = report(run, TinyData()).read_text()
    assert "tiny<script>" not in text
    assert "tiny&lt;script&gt;" in text
    assert "<b>run" not in text


def titles(trace):
    return [axes.get_title(loc="left") for axes in draw_trace(trace).axes]


def test_panels_that_say_nothing_are_left_out(tmp_path, run):
    assert titles(run.trace()) == [
        "reconstruction, nats per image",
        "KL, nats per image",
        "KL of each latent, nats",
    ]
    capacity = make_run(tmp_path / "run", objective=CapacityVAE(capacity_steps=10))
    trace = capacity.trace()
    trace["beta"][:3] *= -1
    assert titles(trace)[3:] == [
        "weight of the KL in the gradient",
        "capacity C, nats",
        "KL of each latent against C, nats",
    ]
    axes = draw_trace(trace).axes[-1]
    assert axes.get_xlabel() == "C, nats"
    assert np.array_equal(axes.lines[2].get_xdata(), trace["capacity"])


def test_an_objectives_own_terms_have_panels(tmp_path):
    objective = FactorVAE(discriminator_layers=1, discriminator_width=8)
    trace = make_run(tmp_path / "run", objective=objective).trace()
    assert titles(trace)[3:] == ["tc, nats", "discriminator loss, nats"]
    assert titles(trace | {"largest_mean": trace["tc"]})[-1] == "largest mean"  # whose unit nobody knows


def lines(trace, title):
    axes = next(a for a in draw_trace(trace).axes if a.get_title(loc="left").startswith(title))
    return [line.get_ydata() for line in axes.lines], [line.get_marker() for line in axes.lines]


def made_up_trace(rows):
    step = np.arange(rows)
    noise = np.random.default_rng(0).normal(size=(3, rows))
    capacity = np.minimum(step / 50, 1.0)
    return {
        "step": step,
        "recon": 9 + noise[0],
        "kl": noise[1],
        "beta": 1 + 0 * noise[0],
        "capacity": capacity,
    }


@pytest.mark.parametrize("rows", [1, 3, 59])
def test_a_short_trace_is_drawn_as_it_is(rows):
    trace = {**made_up_trace(rows), "kl_0": np.arange(rows) ** 2.0, "kl_1": np.ones(rows)}
    values, markers = lines(trace, "KL of each latent")
    np.testing.assert_array_equal(values, [trace["kl_0"], trace["kl_1"]])
    assert markers == ["." if rows < 5 else "None"] * 2
    np.testing.assert_array_equal(lines(trace, "reconstruction")[0], [trace["recon"]])
    assert "running mean" not in caption(trace)


def test_a_long_trace_is_smoothed_but_for_its_schedule():
    trace = {**made_up_trace(200), "kl_0": np.random.default_rng(1).normal(size=200)}
    np.testing.assert_array_equal(lines(trace, "reconstruction")[0], [trace["recon"], smooth(trace["recon"])])
    np.testing.assert_array_equal(lines(trace, "KL of each latent")[0], [smooth(trace["kl_0"])])
    np.testing.assert_array_equal(lines(trace, "capacity")[0], [trace["capacity"]])
    assert "running mean" in caption(trace)


def test_smoothing_keeps_means_and_constants():
    np.testing.assert_allclose(smooth(np.full(500, 3.0)), 3.0)
    ramp = np.arange(500.0)
    np.testing.assert_allclose(smooth(ramp)[20:-20], ramp[20:-20])
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0])), [1.5, 1.5])
    values = np.random.default_rng(0).normal(size=353)
    values[[3, 200]] = np.nan
    expected = [np.nanmean(values[max(i - 7, 0) : i + 8]) for i in range(353)]
    np.testing.assert_allclose(smooth(values), expected)


def test_smoothing_forgets_a_spike():
    values = np.full(300, 2.0)
    values[20] = 3e38
    np.testing.assert_array_equal(smooth(values)[27:], 2.0)


def test_a_picture_of_many_latents_has_those_of_the_highest_kl(monkeypatch):
    monkeypatch.setattr(traversal, "MOST_ROWS", 2)
    net, data = build("mlp", 1, 3, side=12).eval(), Corner()
    with torch.inference_mode():
        mu, _ = net.encoder(data.images(torch.tensor([7])))
    found = traversal.compute(net, data.images(7), mu, [0.1, 3.0, 2.0], 2.0, 5)
    assert found.order == [1, 2]
    assert found.decoded.shape == (2, 5, 1, 12, 12)


def test_runs_without_anything_to_report(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory.open(tmp_path)
    run = RunDirectory.create_or_resume(tmp_path / "run", RECIPE)
    with pytest.raises(RunError, match="no checkpoint yet"):
        run.load_net()
    with pytest.raises(RunError, match="no checkpoint yet"):
        report(run, TinyData())
    run.path.mkdir()
    (run.path / "trace.csv").write_text("step,loss\n")
    with pytest.raises(RunError, match="holds no step yet"):
        run.trace()
    (run.path / "trace.csv").write_text("step,loss\n0,1\n")
    with pytest.raises(RunError, match="is not that of its recipe: it has no column recon"):
        run.trace()
    (run.path / "trace.csv").write_text("step,loss,recon,kl,beta,capacity,kl_0\n0,1,1,1,1,1,1\n")
    with pytest.raises(RunError, match="no checkpoint yet"):
        report(run, TinyData())
    assert not (run.path / "report.html").exists()
