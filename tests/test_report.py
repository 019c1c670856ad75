import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from pyvae import reference
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import Run
from pyvae.errors import RunError
from pyvae.objectives import BetaVAE, CapacityVAE
from pyvae.random import Stream, make_key
from pyvae.report import report
from pyvae.report.evaluation import correlation_ratio, evaluate, subset
from pyvae.report.figures import draw_trace, smooth
from tiny import TinyData

RECIPE = Recipe(objective=BetaVAE(), data="tiny", architecture="kim", batch_size=8, steps=6, latents=4)


def make_run(path: Path, images=None, **changes) -> Run:
    run = Run.create_or_resume(path, replace(RECIPE, **changes))
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

    def test_a_constant_code_is_nothing_and_not_nan(self):
        assert correlation_ratio(torch.full((60, 1), 0.1), self.classes).tolist() == [[0, 0, 0]]


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


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "src":
                self.sources.append(value)
            if name == "href":
                self.links.append(value)
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data):
        self.text += data


def test_the_page_is_complete_and_needs_nothing_else(run):
    path = report(run, TinyData())
    page = Page(path.read_text())
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert path == run.path / "report.html"
    assert page.links == []
    assert len(page.sources) == 8
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


def test_two_reports_say_the_same(run):
    report(run, TinyData())
    first = (run.path / "metrics.json").read_text()
    report(run, TinyData())
    assert (run.path / "metrics.json").read_text() == first


def test_a_short_run_says_so(tmp_path):
    run = make_run(tmp_path / "run", steps=2)
    longer = Run.create_or_resume(run.path, replace(RECIPE, steps=1000))
    assert "made 2 of its 1,000 steps" in Page(report(longer, TinyData()).read_text()).text


def test_three_channels_without_factors_and_one_logged_step(tmp_path):
    data = TinyData(channels=3)
    data.factor_names = ()
    run = make_run(tmp_path / "run", data, steps=1)
    text = Page(report(run, data).read_text()).text
    assert "η²" not in text
    assert json.loads((run.path / "metrics.json").read_text())["eta_squared"] is None


def test_what_a_user_wrote_is_escaped(tmp_path):
    run = make_run(tmp_path / "<b>run", steps=1, data="tiny<script>")
    text = report(run, TinyData()).read_text()
    assert "<script>" not in text
    assert "tiny&lt;script&gt;" in text


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
    assert titles(trace)[3:] == ["weight of the KL in the gradient", "capacity C, nats"]


def test_smoothing_keeps_means_and_constants():
    np.testing.assert_allclose(smooth(np.full(500, 3.0)), 3.0)
    ramp = np.arange(500.0)
    np.testing.assert_allclose(smooth(ramp)[20:-20], ramp[20:-20])
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0])), [1.5, 1.5])


def test_runs_without_anything_to_report(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path)
    run = Run.create_or_resume(tmp_path / "run", RECIPE)
    with pytest.raises(RunError, match="no checkpoint yet"):
        run.load_net()
    with pytest.raises(RunError, match=r"cannot read .*trace.csv"):
        report(run, TinyData())
