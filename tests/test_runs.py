"""Runs in Python: trained, interrupted, opened and used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import backends

import pyvae
from pyvae import cli, data
from pyvae.engine import checkpoint, signals
from pyvae.engine.loop import _AT_WORK
from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError, RunError
from pyvae.metrics import encode
from pyvae.objectives import BetaVAE, InfoGAN
from tiny import TinyData

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"image_size": 8, "architecture": "rainforth", "latents": 2, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("place")
    np.save(at / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    return at


@pytest.fixture(autouse=True)
def _here(place, monkeypatch, tmp_path):
    """Data that tests may name, and a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYVAE_CACHE", str(place / "cache"))
    load = data.load
    monkeypatch.setattr(data, "load", lambda path, **o: TinyData() if path == "tiny" else load(path, **o))


@pytest.fixture
def small(place):
    return {**SMALL, "data": place / "images.npy"}


def tensors(run):
    """Of the newest checkpoint."""
    with safe_open(checkpoint.paths(run.path / "checkpoints")[-1], "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same(one, other):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (one.path / "trace.csv").read_bytes() == (other.path / "trace.csv").read_bytes()


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pyvae", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)


def test_it_is_what_the_command_makes(place, small, monkeypatch):
    options = {"beta": 2.5, "steps": 4, "seed": 3, "keep_at": (2,), "log_every": 1}
    run = pyvae.train("beta-vae", out="here", **options, **small)
    words = [
        "--beta",
        "2.5",
        "--steps",
        "4",
        "--seed",
        "3",
        "--keep-at",
        "2",
        "--log-every",
        "1",
        "--device",
        "cpu",
    ]
    words += ["--image-size", "8", "--architecture", "rainforth", "--latents", "2", "--batch-size", "4"]
    command(monkeypatch, "train", "beta-vae", "--data", place / "images.npy", *words, "--out", "there")
    there = pyvae.open("there")
    assert run.recipe == there.recipe
    assert run.step == there.step == 4
    assert_same(run, there)
    assert repr(run) == "Run(here: beta-vae, 4 of 4 steps)"


def test_it_goes_on(small):
    straight = pyvae.train("vae", out="straight", steps=6, log_every=1, **small)
    assert pyvae.train("vae", out="x", steps=2, log_every=1, **small).step == 2
    run = pyvae.train("vae", out="x", steps=6, log_every=1, **small)
    assert_same(run, straight)
    with pytest.raises(RunError, match=r"another recipe \(seed is 0 there and 1 here\)"):
        pyvae.train("vae", out="x", steps=6, seed=1, **small)


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("beta-vea", {}, r"no recipe 'beta-vea' \(did you mean beta-vae\?\): there are demo, vae"),
        (
            "beta-vae",
            {"bta": 4},
            r"BetaVAE has no setting 'bta' \(did you mean beta\?\): there are architecture",
        ),
        ("vae", {"beta": 4}, "VAE has no setting 'beta'"),
        ("vae", {"chekpoint_seconds": 4}, r"did you mean checkpoint_seconds\?"),
        ("vae", {"precison": "bf16"}, r"did you mean precision\?"),
        ("vae", {"steps": 0}, "steps must be at least 1, got 0"),
        ("beta-vae", {"beta": "four"}, "beta must be a number, got 'four'"),
        ("vae", {"log_every": 0}, "log-every must be at least 1"),
        ("vae", {"log_every": 2.5}, "log-every must be an integer, got 2.5"),
        ("vae", {"checkpoint_seconds": "1"}, "checkpoint-seconds must be a number, got '1'"),
        (
            "vae",
            {"sweep": "lr"},
            r'sweep: give the values of each setting by its name, as \{"beta": \[1, 4\]\}',
        ),
        ("vae", {"sweep": {1: [1]}}, "sweep: give the values of each setting by its name"),
        ("vae", {"device": "tpu"}, "device tpu cannot be used here"),
        ("vae", {"seeds": 3}, r'give some as "0-7" or \[0, 1\], or one as seed=3'),
        ("vae", {"seeds": "3-1"}, "3-1 runs backwards"),
        ("vae", {"sweep": {"lr": []}}, "sweep lr: it names no value"),
        ("vae", {"data": torch.zeros(2, 64, 64)}, r"data: give a path, .* got Tensor: np.save\("),
        ("vae", {"log_every": "x"}, "--log-every must be an integer, got 'x'"),
        ("vae", {"checkpoint_seconds": "x"}, "--checkpoint-seconds must be a number, got 'x'"),
        ("vae", {"sweep": {"lr": 0.1}}, r'sweep lr: give its values in a list, as \{"lr": \[1, 4\]\}'),
        ("vae", {"seeds": [0], "seed": 1}, "--seed 1 and --seeds 0: give one of them"),
        (Recipe(), {"out": None}, "out: name a directory"),
        (3, {}, "give a name or a Recipe, got int"),
    ],
)
def test_what_is_wrong_is_named(recipe, options, words, small):
    with pytest.raises(PyvaeError, match=words) as caught:
        pyvae.train(recipe, **{"out": "x", "steps": 2, **small, **options})
    assert "\n" not in str(caught.value)
    assert not Path("x").exists()


def test_another_objective_leaves_the_rest(small):
    kept = {"steps": 1, "lr": 5e-4, **small}
    for objective in (BetaVAE, BetaVAE(), "beta-vae"):
        recipe = pyvae.train("vae", out="x", objective=objective, beta=7, **kept).recipe
        assert recipe.objective == BetaVAE(beta=7.0)
        assert (recipe.lr, recipe.architecture, recipe.steps) == (5e-4, "rainforth", 1)
    recipe = replace(recipe, seed=5)
    assert pyvae.train(recipe, out="y", device="cpu").recipe == recipe


def test_many(small):
    runs = pyvae.train("beta-vae", out="z", steps=2, seeds="0-1", sweep={"beta": [1, 4]}, **small)
    assert [str(run.path) for run in runs] == [
        *("z/beta-1/seed-0", "z/beta-1/seed-1", "z/beta-4/seed-0", "z/beta-4/seed-1")
    ]
    alone = pyvae.train("beta-vae", out="alone", steps=2, seed=1, beta=4, **small)
    assert_same(runs[3], alone)
    (one,) = pyvae.train("beta-vae", out="one", steps=2, seeds=[1], beta=4, **small)
    assert_same(one, alone)


def switches():
    new = [p.fp32_precision for p in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)]
    old = [torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]
    rest = [backends.cudnn.benchmark, backends.cudnn.deterministic, torch.get_default_dtype()]
    return [*new, *old, *rest, torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_device()]


def test_torch_is_left_as_it_was(small, monkeypatch):
    """Whatever surrounds the call, the run is the same; and what surrounds it stays."""
    plain = pyvae.train("vae", out="plain", steps=2, log_every=1, **small)
    before = switches()
    try:
        for n, (matmul, tf32, dtype, device, gradless) in enumerate(
            [
                ("medium", True, torch.float64, "meta", torch.no_grad),
                ("highest", False, torch.float32, "cpu", torch.inference_mode),
            ]
        ):
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = tf32
            backends.cudnn.benchmark = True
            torch.set_default_dtype(dtype)
            generator = torch.get_rng_state()
            with gradless(), torch.autocast("cpu", torch.bfloat16), torch.device(device):
                mine = switches()
                run = pyvae.train("vae", out=f"x{n}", steps=2, log_every=1, **small)
                run.evaluate("unsupervised")
                weight = next(run.model().parameters())
                assert switches() == mine
            assert (weight.dtype, weight.device.type) == (torch.float32, "cpu")
            assert torch.equal(generator, torch.get_rng_state())
            assert_same(run, plain)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before[3])
        backends.cudnn.allow_tf32, backends.cudnn.benchmark = before[4], before[5]
        backends.mkldnn.matmul.fp32_precision = before[2]
        backends.cuda.matmul.fp32_precision = before[0]


def test_twice_with_another_precision(small, monkeypatch):
    monkeypatch.setenv("PYVAE_INSIST", "1")
    a = pyvae.train("vae", out="a", steps=2, precision="fp32", **small)
    b = pyvae.train("vae", out="b", steps=2, precision="bf16", **small)
    again = pyvae.train("vae", out="c", steps=2, precision="fp32", **small)
    assert_same(a, again)
    assert not torch.equal(tensors(a)["net.encoder.head.weight"], tensors(b)["net.encoder.head.weight"])


def in_thread(call):
    found = []

    def work():
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    return found[0]


def test_from_a_thread(small):
    run = in_thread(lambda: pyvae.train("vae", out="x", steps=2, log_every=1, **small))
    assert_same(run, pyvae.train("vae", out="y", steps=2, log_every=1, **small))


def test_two_at_once_are_refused(small):
    with _AT_WORK:
        refused = in_thread(lambda: pyvae.train("vae", out="x", steps=2, **small))
    assert isinstance(refused, RunError)
    assert str(refused).startswith("another thread of this process is training: wait for it")
    assert not Path("x").exists()
    assert pyvae.train("vae", out="x", steps=2, **small).step == 2


SCRIPT = """
import signal, threading
import pyvae.runs  # torch cannot be imported once the main thread is through

def train():
    return pyvae.train("vae", out="run", data={data!r}, image_size=8, architecture="rainforth", latents=2, batch_size=4,
                       device="cpu", checkpoint_seconds=1e6, log_every=1, steps={steps})

{rest}
print("went on", flush=True)
"""


def script(place, rest, *, steps=10**7, number=None):
    """What a program ended with, and what it printed; it gets a signal once it has made steps."""
    text = SCRIPT.format(data=str(place / "images.npy"), steps=steps, rest=textwrap.dedent(rest))
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if number is not None:
            trace = Path("run/trace.csv")
            while process.poll() is None and not (trace.exists() and trace.stat().st_size > 250):
                time.sleep(0.02)
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def test_an_interrupt_saves_and_stops_the_program(place, small):
    status, out, err = script(place, "train()", number=signal.SIGINT)
    assert status == -signal.SIGINT  # as any program that Ctrl-C ends
    assert out == ""
    assert "interrupted at step" in err
    assert err.rstrip().endswith("KeyboardInterrupt")
    step = pyvae.open("run").step
    assert step > 0
    run = pyvae.train("vae", out="run", steps=step + 2, log_every=1, **small)
    assert_same(run, pyvae.train("vae", out="straight", steps=step + 2, log_every=1, **small))


@pytest.mark.slow
def test_a_program_that_takes_its_signals_itself_goes_on(place):
    status, out, _ = script(
        place,
        """
        signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
        print(train().step > 0, flush=True)
        """,
        number=signal.SIGTERM,
    )
    assert (status, out) == (0, "mine\nTrue\nwent on\n")


@pytest.mark.parametrize("daemon", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_thread_stops_with_a_main_thread_that_was_interrupted(place, daemon):
    rest = f"""
        thread = threading.Thread(target=train, daemon={daemon})
        thread.start()
        thread.join()
        """
    _, out, err = script(place, rest, number=signal.SIGINT)
    assert out == ""
    assert "interrupted at step" in err
    assert pyvae.open("run").step > 0


def test_a_thread_goes_on_when_the_main_thread_is_through(place):
    status, out, err = script(place, "threading.Thread(target=train).start()", steps=20)
    assert (status, out) == (0, "went on\n"), err
    assert pyvae.open("run").step == 20
    assert "no more events" not in err


def test_only_an_interrupted_main_thread_stops_others(monkeypatch):
    gone = threading.Thread()
    monkeypatch.setattr(threading, "main_thread", lambda: gone)
    for name, error, stops in (
        ("last_value", KeyboardInterrupt(), True),
        ("last_value", ValueError(), False),
        ("last_value", None, False),
    ):
        monkeypatch.setattr(sys, name, error, raising=False)
        with signals.collected() as caught:
            assert bool(caught) is stops
    monkeypatch.undo()
    monkeypatch.setattr(sys, "last_value", KeyboardInterrupt(), raising=False)
    assert not in_thread(lambda: bool(signals._OfTheMainThread()))


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A run with a snapshot, of data with factors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda path, **o: TinyData())
        out = tmp_path_factory.mktemp("trained") / "run"
        recipe = Recipe(
            BetaVAE(), data="tiny", architecture="kim", latents=3, batch_size=8, steps=4, keep_at=(2,)
        )
        return pyvae.train(recipe, out=out, device="cpu", log_every=1)


@pytest.fixture
def run(trained, tmp_path):
    return pyvae.open(shutil.copytree(trained.path, tmp_path / "copy"))


def test_a_model_gives_what_evaluation_uses(run):
    model, images = run.model(), TinyData().images(torch.arange(7))
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    table = encode(
        run._directory().load_net()[0], TinyData(), device="cpu", index=torch.arange(7), progress=False
    )
    mu, logvar = model.encode(images)
    assert torch.equal(mu, table.mu)
    assert torch.equal(logvar, table.logvar)
    assert torch.equal(model.encode((images * 255).to(torch.uint8))[0], mu)
    logits = model.decode(mu)
    assert logits.shape == images.shape
    assert torch.equal(model.reconstruct(images), torch.sigmoid(logits))
    assert torch.equal(model(images), model.reconstruct(images))
    assert torch.equal(model.sample(5, seed=1), model.sample(5, seed=1))
    assert not torch.equal(model.sample(5, seed=1), model.sample(5, seed=2))
    assert not torch.equal(model.sample(5), model.sample(5))
    assert model.sample(5).numpy().shape == (5, 1, 64, 64)
    for wrong, words in (
        (images[0], r"expected shape \[B, 1, 64, 64\], got \[1, 64, 64\]: images\[None\] is a batch of one"),
        (images[..., :32], r"got \[7, 1, 64, 32\]$"),
    ):
        with pytest.raises(ValueError, match=words):
            model.encode(wrong)
    with pytest.raises(TypeError, match="expected float32"):
        model.encode(images.double())
    with pytest.raises(ValueError, match=r"z: expected shape \[B, 3\]"):
        model.decode(torch.zeros(2, 4))
    with pytest.raises(
        TypeError, match=r"images: expected a tensor, got numpy.ndarray: write torch.as_tensor"
    ):
        model.encode(images.numpy())
    with pytest.raises(TypeError, match=r"z: expected a tensor, got list"):
        model.decode([[0.0, 0.0, 0.0]])
    with pytest.raises(TypeError, match=r"z: expected float32, got torch.int64"):
        model.decode(torch.zeros(2, 3, dtype=torch.int64))
    for count in (-1, 2.0):
        with pytest.raises(ValueError, match=f"n: expected a whole number from 0 on, got {count}"):
            model.sample(count)


def test_a_model_of_another_precision(run):
    images = run.dataset.images(range(3))
    model, double = run.model(), run.model().double()
    for given in images, images.double():
        mu, logvar = double.encode(given)
        assert (mu.dtype, logvar.dtype) == (torch.float64, torch.float64)
        torch.testing.assert_close(mu.float(), model.encode(images)[0])
    torch.testing.assert_close(double.sample(2, seed=0).float(), model.sample(2, seed=0))
    half = run.model().bfloat16()
    assert half.reconstruct(images.bfloat16()).dtype == half.sample(2).dtype == torch.bfloat16


def test_a_model_of_another_step(run):
    newest, kept = run.model(), run.model(step=2)
    with safe_open(checkpoint.path_of(run.path / "snapshots", 2), "pt") as file:
        assert torch.equal(
            kept.state_dict()["net.encoder.head.weight"], file.get_tensor("net.encoder.head.weight")
        )
    weights = "net.encoder.head.weight"
    assert not torch.equal(newest.state_dict()[weights], kept.state_dict()[weights])
    assert torch.equal(newest.state_dict()[weights], run.model(step=4).state_dict()[weights])
    for step in (3, "x"):
        with pytest.raises(RunError, match=rf"has not kept the weights of step {step!r}; kept: 2, 4$"):
            run.model(step=step)


def test_a_run_is_used_whatever_torch_is_set_to(run):
    drawn = run.traverse(seeds=(seed for seed in (0, 1)))
    assert drawn == run.traverse(seeds=[0, 1])
    torch.set_default_dtype(torch.float64)
    try:
        assert run.model().sample(2).dtype == torch.float32
        assert run.codes(progress=False).mu.dtype == torch.float32
        assert run.evaluate("unsupervised")
        assert run.traverse(seeds=[0, 1]) == drawn
        assert run.report().exists()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_codes_are_those_of_the_metrics(run):
    codes, dataset = run.codes(progress=False), TinyData()
    table = encode(run._directory().load_net()[0], dataset, device="cpu", progress=False)
    assert torch.equal(codes.mu, table.mu)
    assert torch.equal(codes.logvar, table.logvar)
    assert torch.equal(codes.factors, dataset.factor_classes(torch.arange(120)))
    assert (codes.factor_names, codes.factor_sizes) == (("size", "row", "column"), (4, 5, 6))
    assert pyvae.metrics.mig(codes.table, points=None).score == run.evaluate("mig")["mig"]["score"]


def test_it_is_evaluated_as_by_the_command(run, trained, monkeypatch, tmp_path):
    names = ["mig", "beta-vae", "unsupervised", "marginal-likelihood"]
    options = {"without": ["size"], "samples": 64, "images": 3, "seed": 2, "device": "cpu"}
    there = shutil.copytree(trained.path, tmp_path / "there")
    found = run.evaluate(names, **options)
    words = ["--without", "size", "--samples", "64", "--images", "3", "--seed", "2", "--device", "cpu"]
    command(monkeypatch, "evaluate", there, "--metrics", *names, *words)
    assert (run.path / "metrics.json").read_bytes() == (there / "metrics.json").read_bytes()
    assert found.keys() == set(names)
    kept = json.loads((there / "metrics.json").read_text())
    assert found["mig"] == kept["scores"]["mig"]
    assert found["marginal-likelihood"] == kept["marginal_likelihood"]
    with pytest.raises(PyvaeError, match="unknown metric 'fid': there are mig"):
        run.evaluate(["fid"])


def test_a_run_shows_itself(run):
    before = run._repr_html_()
    assert "beta-vae" in before
    assert "4 of 4 steps on tiny" in before
    assert before.count("data:image/png;base64,") == 1  # the curves
    assert "run.report()" in before
    score = run.evaluate("mig")["mig"]["score"]
    page = run.report()
    assert page == run.path / "report.html"
    assert [path.suffix for path in run.traverse(seeds=3)] == [".png", ".gif"]
    shown = run._repr_html_()
    assert f"{score:.3f}" in shown
    assert shown.count("data:image/jpeg;base64,") > 2
    assert len(shown) < 500_000  # of pictures that are larger on disk, which a notebook would keep
    assert "run.report()" not in shown
    assert "http" not in shown
    (run.path / "recipe.json").write_text("<b>")
    assert "is not a recipe" in run._repr_html_()
    assert "<b>" not in run._repr_html_()
    assert "is not a recipe" in repr(run)


def test_a_run_that_has_not_begun(small):
    with pytest.raises(RunError, match="holds no run"):
        pyvae.open("nothing")
    run = pyvae.train("vae", out="x", steps=2, **small)
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "trace.csv").unlink()
    run = pyvae.open("x")
    assert run.step == 0
    assert "0 of 2 steps" in run._repr_html_()
    for call in (run.model, run.report, run.codes, run.evaluate):
        with pytest.raises(RunError, match="has no checkpoint yet"):
            call()


def test_trace_and_data(run):
    trace = run.trace()
    assert trace["step"].tolist() == [0, 1, 2, 3]
    assert {"loss", "recon", "kl", "kl_2"} <= trace.keys()
    assert run.dataset.fingerprint == "tiny-v1"


def test_what_was_trained_leaves_as_a_file(run):
    path = run.export("model.pt2")
    images = TinyData().images(torch.arange(3))
    found = torch.export.load(path).module()(images)
    torch.testing.assert_close(found["mu"], run.model().encode(images)[0])


def test_a_generator(place):
    options = {"architecture": "kim", "data": "tiny", "steps": 1, "batch_size": 4, "device": "cpu"}
    run = pyvae.train("infogan", out="x", **options)
    model, images = run.model(), TinyData().images(torch.arange(3))
    mu, logvar = model.encode(images)
    assert mu.shape == logvar.shape == (3, 5)
    objective, net = InfoGAN(), run._directory().pair_of(run._directory().newest_checkpoint())
    codes = objective.draw(pyvae.random.make_key(1), 2)
    inputs = objective.generator_input(codes)
    with torch.no_grad():
        expected = net.generator.images(inputs)
    assert torch.equal(model.sample(2, seed=1), expected)
    z = torch.cat([codes.continuous, codes.category[:, None].float() - 1], -1)
    assert torch.equal(torch.sigmoid(model.decode(z, codes.noise)), expected)
    assert model.reconstruct(images).shape == images.shape
    assert run.codes(progress=False).mu.shape == (120, 5)
    run.report()
    assert run._repr_html_().count("data:image/") > 1


def test_a_decoder_of_factors():
    run = pyvae.train("factor-bottleneck", out="x", data="tiny", latents=3, steps=1, keep_at=(), device="cpu")
    model = run.model()
    mu, logvar = model.encode(torch.tensor([0, 119]))
    assert mu.shape == logvar.shape == (2, 3)
    assert model.reconstruct(torch.tensor([0, 119])).shape == (2, 1, 64, 64)
    with pytest.raises(TypeError, match="encodes factors: expected int64 indices"):
        model.encode(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match="from 0 to 119"):
        model.encode(torch.tensor([120]))
    with pytest.raises(RunError, match="is its true factors"):
        run.codes()


def test_nothing_is_imported_before_it_is_used():
    text = """
        import sys
        import pyvae
        loaded = {"torch", "numpy", "pyvae.runs"} & set(sys.modules)
        assert not loaded, loaded
        for name in dir(pyvae):
            assert getattr(pyvae, name) is not None, name
        assert pyvae.data.load and pyvae.metrics.mig and pyvae.objectives.BetaVAE and pyvae.nets.build
        assert pyvae.modules.BernoulliNLL and pyvae.train and pyvae.open is not open
        assert pyvae.reference.bernoulli_nll is not pyvae.bernoulli_nll
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'tran'"):
        pyvae.tran  # noqa: B018


def test_a_bar_in_a_notebook(monkeypatch):
    from types import SimpleNamespace

    from tqdm import tqdm

    from pyvae.base import progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert (progress.bar_class(), progress.redrawn()) == (tqdm, False)
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    )
    assert progress.redrawn()
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert progress.bar_class() is tqdm
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    assert progress.bar_class().__name__ == "tqdm_notebook"
