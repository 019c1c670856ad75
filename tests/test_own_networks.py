"""Networks of a user's own are trained, resumed, captured and compiled, and what is wrong with one is told."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from own_code import CPU, SMALL, MyBeta, plain, trained, write
from pyvae.base.source import source_of
from pyvae.engine.fused.supports import supports
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.trainer import Trainer, check_data
from pyvae.errors import RecipeError, SourceError
from pyvae.nets import build
from pyvae.objectives.own import objective_of
from test_resume import assert_same
from tiny import Corner, TinyData
from train_own import recipe


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
        (replace(SMALL, objective=MyBeta), "own_code.py:MyBeta"),
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
