import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.nets import build
from pyvae.report import traverse
from pyvae.report.figures import write
from pyvae.report.traversal import Traversal, _write_gif, compute, default_seeds
from test_report import RECIPE
from tiny import TinyData


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunDirectory.create_or_resume(tmp_path_factory.mktemp("run") / "run", replace(RECIPE, steps=2))
    train(run, TinyData(), torch.device("cpu"))
    return run


def test_one_latent_at_a_time_in_order_of_kl():
    net, image, kl = build("kim", 1, 3).eval(), TinyData().images(7), [0.5, 2.0, 1.0]
    with torch.no_grad():
        given = net.encoder(image[None])[0]
    result = compute(net, image, given, kl, span=1.5, columns=4)
    assert result.order == [1, 2, 0]
    torch.testing.assert_close(result.values, torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    with torch.no_grad():
        mu = net.encoder(image[None])[0]
        torch.testing.assert_close(result.reconstruction, torch.sigmoid(net.decoder(mu))[0])
        for row, j in enumerate(result.order):
            for column, value in enumerate(result.values):
                z = mu.clone()
                z[0, j] = value
                torch.testing.assert_close(result.decoded[row, column], torch.sigmoid(net.decoder(z))[0])
    assert (result.decoded[0, 0] - result.decoded[0, -1]).abs().max() > 1e-4


def test_files(run):
    paths = traverse(run, TinyData(), columns=5, seeds=[3, 100])
    assert [p.name for p in paths] == [
        "traversal-3.png",
        "traversal-3.gif",
        "traversal-100.png",
        "traversal-100.gif",
    ]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 100
            if path.suffix == ".gif":
                assert image.n_frames == 2 * 5 - 2
                assert image.info["loop"] == 0


def test_the_animation_moves_there_and_back(tmp_path):
    shades = torch.linspace(0, 1, 4).view(1, 4, 1, 1, 1).expand(7, 4, 1, 8, 8)
    blank = torch.zeros(1, 8, 8)
    path = _write_gif(Traversal(blank, blank, list(range(7)), torch.arange(4.0), shades), tmp_path / "a.gif")
    with Image.open(path) as image:
        # 7 latents in rows of five, a gap of 2 after each picture, twice as large
        assert image.size == (5 * 10 * 2, 2 * 10 * 2)
        seen, milliseconds = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            seen.append(image.convert("L").getpixel((4, 24)))
            milliseconds.append(image.info["duration"])
    assert seen == pytest.approx([0, 85, 170, 255, 170, 85], abs=1)
    assert milliseconds == [120] * 6  # equal neighbours would have become one longer frame


def test_three_channels(tmp_path):
    run = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, steps=1))
    train(run, TinyData(channels=3), torch.device("cpu"))
    assert len(traverse(run, TinyData(channels=3))) == 6


def test_default_seeds():
    class Size:
        def __init__(self, size, name="other"):
            self.size, self.name = size, name

        def __len__(self):
            return self.size

    assert default_seeds(Size(737_280, "dsprites")) == (87040, 332800, 578560)
    assert default_seeds(Size(737_280)) == (122880, 368640, 614400)
    assert default_seeds(Size(600, "dsprites")) == (100, 300, 500)
    assert default_seeds(TinyData()) == (20, 60, 100)
    assert default_seeds(Size(1)) == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [120]}, "seed 120 is not an image: the data set has 120"),
        ({"seeds": [-1]}, "seed -1 is not an image"),
        ({"seeds": [3, 999]}, "seed 999 is not an image"),
        ({"span": 0.0}, r"span above 0 and at most 1e\+06"),
        ({"span": math.inf}, r"span above 0 and at most 1e\+06"),
        ({"columns": 1}, "2 to 100 columns"),
    ],
)
def test_what_cannot_be_drawn(run, options, message):
    before = sorted(run.figures.glob("*"))
    with pytest.raises(RunError, match=message):
        traverse(run, TinyData(), **options)
    assert sorted(run.figures.glob("*")) == before


def test_images_of_another_shape(run):
    with pytest.raises(RunError, match=r"trained on images of shape \(1, 64, 64\), but .* \(3, 64, 64\)"):
        traverse(run, TinyData(channels=3))


def test_figures_that_cannot_be_made(tmp_path):
    (tmp_path / "figures").write_text("")
    with pytest.raises(RunError, match=r"cannot make .*figures"):
        write(tmp_path / "figures" / "a.png", b"")
