"""What an explorer holds of a decoder; the page that it makes is tried in test_explorer_page.py."""

import json

import pytest
import torch
from torch import nn

import pyvae.runs
from explorer_nets import many_layers, widened
from pyvae import cli
from pyvae.evaluation.averages import Evaluation, evaluate
from pyvae.nets import ARCHITECTURES, Autoencoder, Encoder, build
from pyvae.nets.adversarial import build_pair
from pyvae.objectives import InfoGAN
from pyvae.random import make_key
from pyvae.report.explorer import held, pair_section, section
from pyvae.report.explorer.content import of_autoencoder, of_pair
from pyvae.report.explorer.held import hold
from pyvae.report.explorer.lowering import CannotRunError, lower
from pyvae.report.explorer.stages import Product, run
from tiny import Corner


def codes(count: int, latents: int) -> torch.Tensor:
    return 2 * torch.randn(count, latents, generator=torch.Generator().manual_seed(0))


def pixels(decoder: nn.Module, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.sigmoid(decoder(z))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_held_draws_what_the_network_draws(architecture):
    net = widened(build(architecture, 3 if architecture == "kim" else 1, 6, seed=1))
    z = codes(5, 6)
    expected = pixels(net.decoder, z)
    assert expected.std() > 0.1
    page = hold(net.decoder, z)
    error = (page.means(z) - expected).abs()
    assert page.largest == pytest.approx(float(error.max()))
    assert page.mean == pytest.approx(float(error.mean()))
    wide = {i for i, s in enumerate(page.stages) if isinstance(s, Product) and s.weight.kind == "byte"}
    assert len(wide) == (3 if architecture == "mlp" else 0)
    assert 0 < page.largest < (0.1 if wide else 1e-3)


def test_a_network_of_ones_own_of_every_layer_that_is_known():
    decoder = many_layers(5)
    z = codes(4, 5)
    with torch.inference_mode():
        torch.testing.assert_close(run(lower(decoder, z), z), decoder(z))
    assert pixels(decoder, z).std() > 0.05
    assert hold(decoder, z).largest < 1e-3


def test_a_generator_with_batch_normalisation_as_the_report_runs_it():
    pair = build_pair(1, continuous=2, categories=3, noise=4)
    with torch.no_grad():
        pair.generator(codes(16, 9))  # averages of its own
    generator = pair.eval().generator
    z = codes(4, 9)
    with torch.inference_mode():
        torch.testing.assert_close(run(lower(generator, z), z), generator(z))


class Shuffled(nn.Sequential):
    def forward(self, x):
        return super().forward(x.flip(1))


def with_hook() -> nn.Module:
    layers = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)))
    layers.register_forward_hook(lambda layer, given, found: found + 1)
    return layers


def last(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)), *layers).eval()


@pytest.mark.parametrize(
    ("decoder", "why"),
    [
        (last(nn.GroupNorm(1, 1)), r"a layer that the page does not know, nn\.GroupNorm \(layer 2\)"),
        (last(nn.Sequential(nn.ReLU(), nn.PReLU())), r"nn\.PReLU \(layer 2\.1\)"),
        (last(nn.BatchNorm2d(1, track_running_stats=False)), "the other images of a batch"),
        (last(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), "pads in a way"),
        (Shuffled(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4))), "does not know, Shuffled$"),
        (with_hook(), "something else than its layers"),
    ],
)
def test_layers_that_a_page_cannot_run(decoder, why):
    with pytest.raises(CannotRunError, match=why):
        lower(decoder, codes(2, 3))


def test_weights_that_are_not_finite():
    decoder = last()
    decoder[0].weight.data[0, 0] = float("nan")
    with pytest.raises(CannotRunError, match="not all finite"):
        lower(decoder, codes(2, 3))


def test_large_layers_take_bytes_when_the_whole_is_too_large(monkeypatch):
    decoder = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 576), nn.Unflatten(1, (1, 24, 24)))
    kinds = lambda: [s.weight.kind for s in hold(decoder, codes(4, 3)).stages if isinstance(s, Product)]  # noqa: E731
    assert kinds() == ["short", "short"]
    monkeypatch.setattr(held, "BUDGET", 300_000)
    assert kinds() == ["short", "byte"]
    page = hold(decoder, codes(4, 3))
    assert page.bytes == 3 * 400 * 2 + 400 * 4 + 400 * 576 + 576 * 4
    assert "8 bits each, those of small layers in 16 (0.2 MB)" in page.accuracy()
    monkeypatch.setattr(held, "MOST", 200_000)
    with pytest.raises(CannotRunError, match=r"would make the page 0\.3 MB larger"):
        hold(decoder, codes(4, 3))


def a_network(decoder: nn.Module, latents: int) -> Autoencoder:
    return Autoencoder(Encoder(nn.Flatten(), 144, latents), decoder).eval()


def test_sliders_by_kl_with_the_factors_that_they_follow():
    net, data = build("mlp", 1, 3, side=12).eval(), Corner()
    dependence = [[0.1, 0.2, 0.7], [0.6, 0.1, 0.3], [0.9, 0.0, 0.0]]
    content = of_autoencoder(net, data, Evaluation(120, 1.0, [0.5, 2.0, 0.01], dependence, [1.0] * 3))
    assert [(s.name, s.index, s.follows, s.active) for s in content.sliders] == [
        ("z1", 1, "size", True),
        ("z0", 0, "column", True),
        ("z2", 2, None, False),
    ]
    assert [s.share for s in content.sliders[:2]] == [0.6, 0.7]
    index = [int(s.name.removeprefix("image ")) for s in content.starts]
    assert len(set(index)) == 12
    with torch.inference_mode():
        means = net.encoder(data.images(index))[0]
    torch.testing.assert_close(torch.stack([s.code for s in content.starts]), means)
    measured = content.measured()
    assert measured.abs().amax(0).tolist() == [3, 3, 3]
    assert len(measured) == 12 + 3 * 4 * 12


def test_a_slider_reaches_every_mean():
    net = a_network(nn.Linear(2, 144), 2)
    net.encoder.head.bias.data[1] = -7.3
    evaluation = Evaluation(120, 1.0, [1.0, 1.0], None, [1.0] * 2)
    spans = [s.span for s in of_autoencoder(net, Corner(), evaluation).sliders]
    assert spans[0] == 3
    assert 7.3 < spans[1] < 9


def test_codes_of_a_generator_start_where_the_pictures_of_codes_do():
    objective = InfoGAN(continuous=2, categories=3, noise=4)
    content = of_pair(objective, build_pair(1, continuous=2, categories=3, noise=4).eval())
    assert [(s.name, s.index, s.span) for s in content.sliders] == [("c0", 4, 1.0), ("c1", 5, 1.0)]
    assert (content.choice.first, content.choice.count) == (6, 3)
    assert content.starts[0].name == "noise 2"
    torch.testing.assert_close(
        content.starts[0].code, objective.generator_input(objective.draw(make_key(2), 1))[0]
    )


def test_a_page_that_cannot_run_a_decoder_says_so():
    net = a_network(nn.Sequential(nn.Linear(2, 144), nn.Unflatten(1, (1, 12, 12)), nn.GroupNorm(1, 1)), 2)
    text = section(net, Corner(), evaluate(net, Corner()))
    assert "still pictures alone: it cannot run the decoder, because" in text
    assert "nn.GroupNorm (layer 2)" in text
    assert "<script" not in text


def test_what_cannot_run_of_a_generator_says_so():
    pair = build_pair(1, continuous=2, categories=0, noise=4).eval()
    pair.generator[0].weight.data[0] = float("inf")
    assert "cannot run the generator, because its weights" in pair_section(
        InfoGAN(continuous=2, categories=0, noise=4), pair
    )


def test_names_cannot_end_the_script():
    net = a_network(nn.Sequential(nn.Linear(2, 144), nn.Unflatten(1, (1, 12, 12))), 2)
    data = Corner()
    data.factor_names = ("</script>", "row", "column")
    text = section(net, data, Evaluation(120, 1.0, [1.0, 1.0], [[1.0, 0, 0]] * 2, [1.0] * 2))
    found = text.split('id="explorer-data">')[1].split("</script>")[0]
    assert json.loads(found)["sliders"][0]["follows"] == "</script>"
    assert "follows &lt;/script&gt;" in text


def test_the_command_line_can_leave_it_out(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(pyvae.runs.Run, "_directory", lambda run: None)
    monkeypatch.setattr(pyvae.runs.Run, "report", lambda run, **options: given.append(options) or tmp_path)
    for further in ([], ["--no-explorer"]):
        monkeypatch.setattr("sys.argv", ["pyvae", "report", str(tmp_path), *further])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    assert [options["explorer"] for options in given] == [True, False]
