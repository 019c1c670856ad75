"""Networks written for other programs: what the files compute, without pyvae; and that no wrong file is left."""

import copy
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import pyvae
from pyvae import cli
from pyvae.base.source import source_of
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import ExportError
from pyvae.nets import ARCHITECTURES, FactorEncoder, build
from pyvae.nets import export as module
from pyvae.nets.adversarial import build_pair
from pyvae.nets.export import TOLERANCE, export
from pyvae.objectives import BetaVAE, InfoGAN
from pyvae.runs import Run
from tiny import Corner, TinyData

ONNX = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(ONNX), reason=f"pip install 'pyvae-engine[onnx]' ({', '.join(ONNX)} missing)"
)
FORMATS = [".pt2", pytest.param(".onnx", marks=needs_onnx)]
SLOW_ONNX = [".pt2", pytest.param(".onnx", marks=[needs_onnx, pytest.mark.slow])]
SHAPE = (1, 8, 8)


class Own(nn.Module):
    """A network of somebody else's; its batch normalisation and dropout tell training from evaluation."""

    def __init__(self):
        super().__init__()
        self.encoder = OwnEncoder()
        self.decoder = nn.Sequential(
            *(nn.Linear(3, 64), nn.Unflatten(1, (4, 4, 4)), nn.Dropout(0.5), nn.ConvTranspose2d(4, 1, 2, 2))
        )


class OwnEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten())
        self.mean, self.spread = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, images):
        features = self.trunk(images)
        return self.mean(features), self.spread(features)


class Methods(nn.Module):
    """Whose encoder and decoder are methods."""

    def __init__(self):
        super().__init__()
        self.inner = Own()

    def encoder(self, images):
        return self.inner.encoder(images)

    def decoder(self, z):
        return self.inner.decoder(z)


def own(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Own()
        net.encoder(torch.rand(16, *SHAPE))  # averages of a batch
    return net


def session(path):
    """A file as a function of a tensor, by what other programs would run it with."""
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        (name,) = program.graph_signature.user_inputs
        return lambda **inputs: program.module()(inputs.pop(name), *inputs.values())
    import onnxruntime

    loaded = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), outputs = loaded.get_inputs(), [x.name for x in loaded.get_outputs()]

    def run(**inputs):
        assert set(inputs) == {given.name}
        assert given.shape[0] == "batch"
        found = loaded.run(outputs, {name: x.numpy() for name, x in inputs.items()})
        return {name: torch.from_numpy(x) for name, x in zip(outputs, found, strict=True)}

    return run


def assert_computes(path, name, make, expected, batches=(1, 2, 7)):
    """A file and a function give the same of random inputs, by the names of the outputs."""
    run = session(path)
    g = torch.Generator().manual_seed(1)
    for rows in batches:
        x = make(rows, g)
        with torch.no_grad():
            right = expected(x)
        found = run(**{name: x})
        assert list(found) == list(right)
        for output, value in right.items():
            assert found[output].shape == value.shape
            assert float((found[output] - value).abs().max()) <= TOLERANCE * float(value.abs().max()), output


def images_of(shape):
    return lambda rows, g: torch.rand(rows, *shape, generator=g)


def autoencoding(net):
    """What the three parts of a network compute in evaluation mode."""
    net = net.eval()
    encode = lambda x: dict(zip(("mu", "logvar"), net.encoder(x), strict=True))  # noqa: E731
    return {
        "autoencoder": lambda x: {"logits": net.decoder(net.encoder(x)[0]), **encode(x)},
        "encoder": encode,
        "decoder": lambda z: {"logits": net.decoder(z)},
    }


def assert_parts(net, shape, path, parts=("autoencoder", "encoder", "decoder")):
    right = autoencoding(net)
    given, make = "images", images_of(shape)
    if isinstance(net.encoder, FactorEncoder):
        count = int(net.encoder.sizes.prod())
        given, make = "index", lambda rows, g: torch.randint(count, (rows,), generator=g)
    for part in parts:
        assert export(net, shape, path, part=part) == path
        if part == "decoder":
            latents = net.encoder(make(1, torch.Generator()))[0].shape[1]
            given, make = "z", lambda rows, g, latents=latents: torch.randn(rows, latents, generator=g)
        assert_computes(path, given, make, right[part])


@pytest.mark.parametrize("ending", FORMATS)
def test_a_published_network(ending, tmp_path, capfd, recwarn):
    net, path = build("burgess", 1, 10, init="kaiming"), tmp_path / f"model{ending}"
    export(net, (1, 64, 64), path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert_computes(path, "images", images_of((1, 64, 64)), autoencoding(net)["autoencoder"])


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_published_network(name, ending, tmp_path):
    assert_parts(build(name, 3, 6, init="kaiming"), (3, 64, 64), tmp_path / f"model{ending}")


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_factors_instead_of_an_encoder(ending, tmp_path):
    net = build("burgess", 1, 3, factor_sizes=(3, 6, 40))
    assert_parts(net, (1, 64, 64), tmp_path / f"model{ending}")


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(("categories", "learned"), [(0, False), (3, True)])
def test_a_generator_and_its_critic(categories, learned, ending, tmp_path):
    pair = build_pair(1, continuous=4, categories=categories, noise=8, learned_variance=learned)
    for _ in range(3):  # averages of batch normalisation, and power iterations
        pair.generator(torch.randn(8, 12 + categories))
        pair.critic(torch.rand(8, 1, 64, 64))
    pair.eval()
    path = tmp_path / f"model{ending}"
    export(pair, (1, 64, 64), path)
    assert_computes(
        *(path, "inputs", lambda rows, g: torch.randn(rows, 12 + categories, generator=g)),
        lambda x: {"logits": pair.generator(x)},
    )
    export(pair, (1, 64, 64), path, part="encoder")
    assert_computes(
        path,
        "images",
        images_of((1, 64, 64)),
        lambda x: dict(zip(("mu", "logvar"), pair.encoder(x), strict=True)),
    )


def test_a_network_of_ones_own(tmp_path):
    assert_parts(own(), SHAPE, tmp_path / "model.pt2")
    methods = Methods()
    methods.inner = own(1)
    assert_parts(methods, SHAPE, tmp_path / "model.pt2")


def one_tensor(channels, latents, side):
    """A network whose encoder gives mean and log-variance in one tensor."""
    pixels = channels * side * side
    decoder = nn.Sequential(nn.Linear(latents, pixels), nn.Unflatten(1, (channels, side, side)))
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * latents)), decoder


def test_a_network_of_ones_own_as_runs_build_it(tmp_path):
    assert_parts(build(source_of(one_tensor), 1, 3, side=8), SHAPE, tmp_path / "model.pt2")


WITHOUT_PYVAE = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name)

BLOCKED = ("pyvae", "triton") if sys.argv[1].endswith(".pt2") else ("pyvae", "triton", "torch")
sys.meta_path.insert(0, Blocked())
import numpy as np

x = np.load(sys.argv[2])
if sys.argv[1].endswith(".pt2"):
    import torch
    kept = {"recipe": ""}  # the others come along
    program = torch.export.load(sys.argv[1], extra_files=kept)
    found = program.module()(torch.from_numpy(x))["logits"].numpy()
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    kept = session.get_modelmeta().custom_metadata_map
    (found,) = session.run(["logits"], {"images": x})
np.save(sys.argv[2], found)
print(kept["recipe"], kept["pyvae"], kept["part"])
"""


@pytest.mark.parametrize("ending", SLOW_ONNX)
def test_a_file_runs_where_pyvae_is_not(ending, tmp_path):
    numpy = pytest.importorskip("numpy")
    net, path, x = build("rainforth", 1, 3, side=8), tmp_path / f"model{ending}", torch.rand(5, 1, 8, 8)
    recipe = json.dumps({"lr": 1e-3, "name": "a\nb é"})
    export(net, SHAPE, path, metadata={"recipe": recipe})
    numpy.save(tmp_path / "x.npy", x.numpy())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYVAE, str(path), str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{recipe} {pyvae.__version__} autoencoder"
    found = torch.from_numpy(numpy.load(tmp_path / "x.npy"))
    torch.testing.assert_close(found, net.decoder(net.encoder(x)[0]).detach(), rtol=0, atol=1e-5)


def test_the_network_is_left_as_it_was(tmp_path):
    pair = build_pair(1, continuous=2, categories=0, noise=2).to(memory_format=torch.channels_last)
    pair.critic(torch.rand(2, 1, 64, 64))[0].sum().backward()
    pair.critic.trunk.own_convolutions = False
    kept = {name: (x, x.clone(), x.grad, x._version) for name, x in pair.named_parameters()}
    layers = [(type(layer), layer.training) for layer in pair.modules()]
    global_state = torch.get_rng_state()
    export(pair, (1, 64, 64), tmp_path / "model.pt2", part="encoder")
    assert torch.equal(global_state, torch.get_rng_state())
    assert [(type(layer), layer.training) for layer in pair.modules()] == layers
    assert not pair.critic.trunk.own_convolutions
    for name, x in pair.named_parameters():
        same, value, grad, version = kept[name]
        assert x is same
        assert x.requires_grad
        assert x.grad is grad
        assert x._version == version
        assert torch.equal(x, value)
        assert x.stride() == value.stride()
    pair.critic(torch.rand(2, 1, 64, 64))  # its weights are parametrised as before
    program = torch.export.load(tmp_path / "model.pt2")
    assert program.state_dict[
        "critic.trunk.2.weight"
    ].is_contiguous()  # and what it gives, to be read by address


def test_half_precision_is_written_as_float32(tmp_path):
    net = own().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        path = export(net, SHAPE, tmp_path / "model.pt2")
    assert net.decoder[0].weight.dtype == torch.bfloat16
    nodes = torch.export.load(path).graph.nodes
    kinds = {x.meta["val"].dtype for x in nodes if isinstance(x.meta.get("val"), torch.Tensor)}
    assert kinds == {torch.float32, torch.int64}  # and the count of batches
    assert_computes(path, "images", images_of(SHAPE), autoencoding(net.float())["autoencoder"])


@pytest.mark.parametrize("ending", SLOW_ONNX)
def test_a_file_that_computes_something_else_is_none(ending, tmp_path, monkeypatch):
    trace = torch.export.export

    def broken(part, *args, **options):
        program = trace(copy.deepcopy(part), *args, **options)
        with torch.no_grad():
            program.state_dict["decoder.0.bias"].mul_(1.01)
        return program

    monkeypatch.setattr(torch.export, "export", broken)
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"an older one")
    with pytest.raises(ExportError, match="is not what the network computes: logits"):
        export(own(), SHAPE, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"an older one"


def test_differences_are_shares_of_the_largest():
    right = torch.tensor([100.0, 1.0, float("inf"), float("nan")])
    assert module._difference(right.clone(), right) == 0
    assert module._difference(right + torch.tensor([0.0, 0.5, 0.0, 0.0]), right) == pytest.approx(5e-3)
    for wrong in (right[:3], right.double(), right.nan_to_num(nan=0.0), right.nan_to_num(posinf=1.0), -right):
        assert module._difference(wrong, right) > 1
    tiny = torch.tensor([1e-9])  # what is left of a sum that cancels
    assert module._difference(tiny, torch.zeros(1)) < TOLERANCE


class Branches(Own):
    def __init__(self):
        super().__init__()
        self.decoder = Branch()


class Branch(nn.Module):
    def forward(self, z):
        return z if z.sum() > 0 else -z


class Calls(Own):
    """Which calls an operator of a library of its own."""

    def __init__(self, operator):
        super().__init__()
        self.decoder = Call(operator)


class Call(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, z):
        return self.operator(z)


class Bare(Own):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Flatten()


@pytest.fixture
def negation():
    with torch.library._scoped_library("of_ones_own", "FRAGMENT") as library:
        library.define("negate(Tensor x) -> Tensor")
        library.impl("negate", torch.neg, "CompositeExplicitAutograd")
        yield torch.ops.of_ones_own.negate


def refused(path, net=None, shape=SHAPE, **options):
    with pytest.raises(ExportError) as caught:
        export(own() if net is None else net, shape, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_what_cannot_be_is_one_line(tmp_path, negation, capfd):
    path = tmp_path / "model.pt2"
    assert "ends in .pt2 or .onnx" in refused(tmp_path / "model.pth")
    assert "there is no directory" in refused(tmp_path / "none/model.pt2")
    assert "autoencoder or encoder or decoder, for this network, got 'generator'" in refused(
        path, part="generator"
    )
    pair = build_pair(1, continuous=2, categories=0, noise=2)
    assert "generator or encoder, for this network, got 'autoencoder'" in refused(
        path, pair, part="autoencoder"
    )
    assert "(channels, height, width)" in refused(path, shape=(8, 8))
    assert "images of shape [1, 1, 10, 10]" in refused(path, shape=(1, 10, 10))
    assert "Linear has no encoder" in refused(path, nn.Linear(3, 3))
    assert "a torch module, got function" in refused(path, lambda x: x)
    assert "names and texts, got 'recipe': dict" in refused(path, metadata={"recipe": {}})
    assert "data-dependent" in refused(path, Branches())
    assert "of_ones_own.negate" in refused(path, Calls(negation))
    assert "does not take images of shape" in refused(path, Bare())
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    assert "cannot be written: " in refused(path)
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")  # nor the graphs that torch prints of what it refuses


def test_a_batch_of_one_size_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, z):
            return z.new_zeros(2, 1, 8, 8) + z.sum(1).view(-1, 1, 1, 1)

    net = own()
    net.decoder = Fixed()
    assert "specialized it to be a constant" in refused(tmp_path / "model.pt2", net)
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert (
        refused(tmp_path / "model.onnx") == "model.onnx needs onnxruntime: pip install 'pyvae-engine[onnx]'"
    )


def test_a_run_is_exported(tmp_path, monkeypatch, capsys):
    size = {"architecture": "rainforth", "latents": 2, "batch_size": 4, "steps": 2}
    recipe = Recipe(objective=BetaVAE(), data="tiny", keep_at=(1,), **size)
    data = Corner()
    run = RunDirectory.create_or_resume(tmp_path / "run", recipe)
    train(run, data, torch.device("cpu"), log_every=1)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyvae", "export", "run", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().out

    for step, options in ((2, ()), (1, ("--step", "1"))):
        assert call("model.pt2", *options) == (0, "model.pt2\n")
        kept = {"step": ""}
        torch.export.load("model.pt2", extra_files=kept)
        assert (kept["step"], Recipe.from_json(json.loads(kept["recipe"]))) == (str(step), recipe)
        right = autoencoding(run.net_of(run.saved(step)))["autoencoder"]
        assert_computes(tmp_path / "model.pt2", "images", images_of(data.image_shape), right)
    assert not torch.equal(run.net_of(run.saved(1)).decoder[0].bias, run.net_of(run.saved(2)).decoder[0].bias)
    status, _ = call("model.pt2", "--step", "3")
    assert status == "pyvae: error: run has not kept the weights of step 3; kept: 1, 2"
    status, _ = call("model.pth")
    assert status == "pyvae: error: model.pth: expected a name that ends in .pt2 or .onnx"


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_a_run_with_a_generator_is_exported(ending, tmp_path):
    recipe = Recipe(objective=InfoGAN(), data="tiny", architecture="kim", latents=5, batch_size=8, steps=2)
    run = RunDirectory.create_or_resume(tmp_path / "run", recipe)
    train(run, TinyData(), torch.device("cpu"), log_every=1)
    pair, path = run.pair_of(run.saved()), tmp_path / f"model{ending}"
    Run(run.path).export(path)
    inputs = pair.generator[0].in_features
    assert_computes(
        *(path, "inputs", lambda rows, g: torch.randn(rows, inputs, generator=g)),
        lambda x: {"logits": pair.generator(x)},
    )


FULL = """
import resource, signal, sys
from pyvae.nets import build
from pyvae.nets.export import export

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
export(build("rainforth", 1, 3, side=8), (1, 8, 8), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_a_full_disk_leaves_nothing(ending, tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / f"model{ending}")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.rstrip().endswith(f"model{ending} cannot be written: File too large")
    assert list(tmp_path.iterdir()) == []


def test_no_path_of_this_machine_is_in_a_file(tmp_path):
    path = export(own(), SHAPE, tmp_path / "model.pt2")
    assert os.path.dirname(__file__).encode() not in path.read_bytes()
