"""The command line as a user meets it: every wrong input ends in one clear line and a non-zero status."""

import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

import commands
from pyvae.backend import OPS
from pyvae.base import native


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def pyvae(cache, tmp_path):
    def call(*arguments, **environment):
        env = {**os.environ, "PYVAE_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
        return commands.run(["-m", "pyvae", *arguments], tmp_path, env)

    return call


def refused(done, *words, status=1):
    """One line on standard error that holds the words, and no traceback."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


def test_train_resume_report_traverse(pyvae, tmp_path):
    options = ("--architecture", "kim", "--batch-size", 4, "--log-every", 1, "--latents", 3, "--beta", 2.5)
    done = pyvae("train", "beta-vae", *options, "--steps", 3, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "run: 3 of 3 steps" in done.stdout
    done = pyvae("train", "beta-vae", *options, "--steps", 5, "--out", "run")
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["objective"] == {"name": "beta-vae", "beta": 2.5}
    assert (recipe["architecture"], recipe["latents"], recipe["steps"]) == ("kim", 3, 5)
    rows = (tmp_path / "run/trace.csv").read_text().splitlines()
    assert rows[0] == "step,loss,recon,kl,beta,capacity,grad_norm,kl_0,kl_1,kl_2"
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2", "3", "4"]
    assert list((tmp_path / "run/events").glob("events*"))

    refused(
        pyvae("train", "vae", "--out", "run"),
        "run of another recipe",
        "objective is beta-vae there and vae here",
    )

    done = pyvae("traverse", "run", "--seeds", 1000, "--columns", 5, "--span", 3)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert (tmp_path / line).is_file()
    done = pyvae("report", "run")
    assert done.returncode == 0, done.stderr
    refused(pyvae("evaluate", "run", "--metrics", "fid"), "unknown metric 'fid': there are mig")
    assert (tmp_path / done.stdout.strip()).name == "report.html"
    assert json.loads((tmp_path / "run/metrics.json").read_text())


def test_doctor_names_the_backend_of_every_op(pyvae):
    done = pyvae("doctor", PYVAE_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert "reparameterize_kl on cpu: reference (PYVAE_BACKEND=reference)" in done.stdout
    assert "bernoulli_nll on cpu: reference" in done.stdout
    assert "permute_dims on cpu: reference (PYVAE_BACKEND=reference)" in done.stdout
    assert "convolutions on a CPU\n  fp32: oneDNN of torch (PYVAE_BACKEND=reference)\n" in done.stdout


def test_doctor_knows_the_compiled_operators(pyvae):
    lines = [line.strip() for line in pyvae("doctor").stdout.splitlines()]
    expected = "native (compiled)" if native.load() is None else "reference (the compiled operators"
    for op in [op for op, kernels in OPS.items() if kernels.native] + ["tc_batch"]:
        line = next(line for line in lines if line.startswith(f"{op} on cpu"))
        assert line.startswith(f"{op} on cpu: {expected}")


@pytest.mark.parametrize(
    "command", [(), ("train",), ("train", "beta-vae"), ("traverse",), ("evaluate",), ("report",), ("doctor",)]
)
def test_help(pyvae, command):
    done = pyvae(*command, "--help")
    assert done.returncode == 0
    assert "usage: pyvae" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "beta-vae", "--betta", 4),
        ("train", "gamma-vae"),
        ("train", "vae", "--seed", "x"),
        ("fly",),
        ("report",),
    ],
)
def test_unknown_options(pyvae, arguments):
    done = pyvae(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", 0), ("steps must be at least 1, got 0",)),
        (("--batch-size", -1), ("batch_size must be at least 1",)),
        (("--lr", "nan"), ("lr must be finite, got nan",)),
        (("--log-every", 0), ("--log-every must be at least 1",)),
        (("--device", "cuda:7"), ("--device cuda:7 cannot be used here", "--device cpu")),
        (("--device", "abacus"), ("--device abacus cannot be used here",)),
        (("--data", "missing.npz"), ("missing.npz",)),
        (("--data", "shapes3d"), ("3dshapes.h5",)),
    ],
)
def test_impossible_recipes(pyvae, tmp_path, options, words):
    refused(pyvae("train", "vae", *options, "--out", "run"), *words)
    assert not (tmp_path / "run").exists()


def test_damaged_and_foreign_data(pyvae, tmp_path):
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    whole = (tmp_path / "foreign.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 100)
    for name in ("text.npz", "foreign.npz", "half.npz", "half.h5"):
        refused(pyvae("train", "vae", "--data", name, "--out", "run"), name)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_images(pyvae, tmp_path):
    (tmp_path / "faces/a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(9):
        picture = Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8))
        picture.save(tmp_path / f"faces/a/{i}.png")
    (tmp_path / "faces/a/4.jpg").write_bytes(b"\xff\xd8")
    train = ("train", "vae", "--data", "faces", "--architecture", "kim", "--batch-size", 4, "--steps", 2)
    refused(pyvae(*train, "--out", "run"), "faces/a/4.jpg: corrupt (", "--corrupt skip")
    assert not (tmp_path / "run").exists()
    (tmp_path / "faces/a/4.jpg").unlink()
    done = pyvae(*train, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "packing faces: 100%" in done.stderr
    for command in ("report", "traverse"):
        done = pyvae(command, "run")
        assert done.returncode == 0, done.stderr
        assert "packing" not in done.stderr
    why = "faces are not known, and only unsupervised and total-correlation can do"
    refused(pyvae("evaluate", "run"), "mig, factor-vae, ", why)
    done = pyvae("evaluate", "run", "--metrics", "unsupervised")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("unsupervised gaussian_")


@pytest.mark.parametrize(
    "recipe", ["ciwae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("iwae", "miwae", "piwae"))]
)
def test_importance_weighted_recipes(pyvae, tmp_path, recipe):
    """On grey images of their own size, binarised in every step, with the likelihood of other images."""
    generator = np.random.default_rng(0)
    for name in ("train", "test"):
        grey = generator.integers(0, 256, (12, 14, 14), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=grey)
    own = {"miwae": ("--outer", 3), "piwae": ("--gradient", "dreg"), "ciwae": ("--beta", 0.05)}.get(
        recipe, ()
    )
    train = (
        "train",
        recipe,
        "--data",
        "train.npz",
        "--image-size",
        14,
        "--samples",
        2,
        "--batch-size",
        4,
        *own,
    )
    done = pyvae(*train, "--steps", 3, "--lr-stage-steps", 1, "--binarise", "stochastic", "--out", "run")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "run/trace.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,recon,kl,beta,capacity,elbo,ess,grad_norm,kl_0,")
    evaluate = (
        "evaluate",
        "run",
        "--metrics",
        "marginal-likelihood",
        "--held-out",
        "test.npz",
        "--images",
        5,
    )
    done = pyvae(*evaluate, "--samples", 70)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run/metrics.json").read_text())["marginal_likelihood"]
    assert (found["images"], found["samples"], found["latents"]) == (5, 70, 50)
    assert found["data"] != found["trained_on"]
    assert f"marginal-likelihood log_p    {found['log_p']:.4f}" in done.stdout
    assert f"marginal-likelihood active_units {found['active_units']}" in done.stdout
    done = pyvae("report", "run")
    assert done.returncode == 0, done.stderr
    assert "IWAE-64" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("recipe", "codes"),
    [
        pytest.param("infogan", (), marks=pytest.mark.slow),
        ("infowgan-gp", ("--continuous", 5, "--categories", 0)),
    ],
)
def test_adversarial_recipes(pyvae, tmp_path, recipe, codes):
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    train = ("train", recipe, "--data", "train.npz", "--batch-size", 4, "--critic-steps", 2, *codes)
    refused(pyvae(*train, "--latents", 7, "--out", "run"), "--latents 5")
    refused(pyvae(*train, "--compile", "--out", "compiled"), "--compile", "leave it out")
    assert not (tmp_path / "compiled").exists()
    done = pyvae(*train, "--steps", 3, "--log-every", 1, "--out", "run")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "run/trace.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,information,grad_norm,discriminator_loss,discriminator_grad_norm,")
    assert rows[0].endswith("information_4")
    assert len(rows) == 4
    refused(pyvae("evaluate", "run", "--metrics", "marginal-likelihood"), "needs a decoder's likelihood")
    done = pyvae("evaluate", "run", "--metrics", "unsupervised")
    assert done.returncode == 0, done.stderr
    assert "unsupervised" in json.loads((tmp_path / "run/metrics.json").read_text())["scores"]
    done = pyvae("traverse", "run", "--seeds", 4)
    assert done.stdout.strip().endswith("codes-4.png")
    done = pyvae("report", "run")
    assert done.returncode == 0, done.stderr
    assert "Generated images" in (tmp_path / "run/report.html").read_text()


def test_a_likelihood_that_cannot_be(pyvae, tmp_path):
    np.savez(tmp_path / "grey.npz", images=np.arange(3 * 144, dtype=np.uint8).reshape(3, 12, 12))
    train = ("train", "vae", "--data", "grey.npz", "--image-size", 12, "--batch-size", 2, "--steps", 1)
    refused(pyvae(*train, "--out", "wrong"), "images are 12 x 12, but the networks take 64 x 64")
    done = pyvae(*train, "--architecture", "mlp", "--out", "run")
    assert done.returncode == 0, done.stderr
    evaluate = ("evaluate", "run", "--metrics", "marginal-likelihood")
    refused(pyvae(*evaluate), "grey images have no Bernoulli likelihood", "--binarise stochastic")
    refused(pyvae(*evaluate, "--samples", 10), "IWAE-64 needs at least 64 samples, got 10")
    gaussian = (*train, "--architecture", "mlp", "--likelihood", "gaussian", "--out", "gaussian")
    assert pyvae(*gaussian).returncode == 0
    refused(
        pyvae("evaluate", "gaussian", *evaluate[2:]), "of bernoulli pixels, but the likelihood of gaussian"
    )
    refused(
        pyvae("train", "iwae", "--likelihood", "gaussian"), "importance-weighted objectives are of bernoulli"
    )
    refused(pyvae("train", "vae", "--binarise", "stochastic", "--out", "both"), "those of dsprites are not")


def test_wrong_out(pyvae, tmp_path):
    (tmp_path / "file").write_text("hello")
    refused(pyvae("train", "vae", "--out", "file"), "--out file is a file")
    refused(pyvae("train", "vae", "--out", "file/run"), "cannot make file/run (Not a directory)")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("hello")
    refused(pyvae("train", "vae", "--out", "full"), "not empty and holds no run")
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["thesis.tex"]


def test_runs_that_are_none(pyvae, tmp_path):
    for command in ("report", "traverse", "evaluate"):
        refused(pyvae(command, "nowhere"), "nowhere holds no run", "pyvae train")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/recipe.json").write_text("{")
    refused(pyvae("report", "odd"), "recipe.json is not a recipe")
    (tmp_path / "odd/recipe.json").write_text('{"format": 99}')
    refused(pyvae("report", "odd"), "another version of pyvae")


def test_a_cache_that_cannot_be_written(pyvae, tmp_path):
    (tmp_path / "blocked").write_text("")
    done = pyvae("train", "vae", "--steps", 1, "--out", "run", PYVAE_CACHE=str(tmp_path / "blocked"))
    refused(done, "PYVAE_CACHE")


def test_reproduce(pyvae, tmp_path):
    command = ("reproduce", "beta-vae", "--scale", 0.00001, "--seeds", 1)
    done = pyvae(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "runs/beta-vae-1e-05/report.html"
    results = json.loads((tmp_path / "runs/beta-vae-1e-05/results.json").read_text())
    assert [(r["arm"], r["seed"], r["steps"]) for r in results["runs"]] == [
        ("beta-1", 1, 3),
        ("beta-4", 1, 3),
    ]
    refused(
        pyvae("reproduce", "beta-vae", "--scale", 0.00002, "--out", "runs/beta-vae-1e-05"),
        "run of 3 steps, not 7",
        "--scale",
    )


def test_reproduce_says_what_there_is(pyvae):
    done = pyvae("reproduce", "--list")
    assert done.returncode == 0, done.stderr
    assert "adaptive, 1,500,000 steps: MIG (Chen et al.) 0.5273; reconstruction, nats 37.1294" in done.stdout
    refused(pyvae("reproduce", "no-such-table"), "unknown study 'no-such-table'", "control-vae-capacity")
    refused(pyvae("reproduce"), "name what to reproduce")
    refused(pyvae("reproduce", "burgess", "--scale", 2), "--scale must be above 0 and at most 1")
    refused(pyvae("reproduce", "burgess", "--seeds", 0), "--seeds must be at least 1")
    refused(pyvae("reproduce", "burgess", "--first-seed", -1), "--first-seed must not be negative")


def test_what_cannot_be_trained_leaves_no_directory(pyvae, tmp_path):
    np.save(tmp_path / "images.npy", np.full((4, 8, 8), 200, dtype=np.uint8))
    refused(
        pyvae("train", "vae", "--data", "images.npy", "--image-size", 32, "--out", "run"),
        "images are 32 x 32, but the networks take 64 x 64: --image-size 64",
    )
    refused(
        pyvae("train", "factor-bottleneck", "--data", "images.npy", "--out", "run"),
        "images.npy are not known",
    )
    refused(pyvae("train", "factor-bottleneck", "--latents", 3, "--out", "run"), "--latents 5")
    assert not (tmp_path / "run").exists()


def test_a_schedule_longer_than_the_run_is_named(pyvae):
    short = ("--architecture", "kim", "--batch-size", 2, "--steps", 2)
    done = pyvae("train", "cyclical-annealing", *short, "--out", "run")
    assert "the run ends after 2 steps of a schedule of 345,600: --annealing-steps sets it" in done.stderr
    done = pyvae(
        "train", "cyclical-annealing", *short, "--annealing-steps", 2, "--cycles", 1, "--out", "other"
    )
    assert done.returncode == 0
    assert "schedule" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_toy_that_is_stopped_says_how_to_go_on(tmp_path, number):
    command = ("reproduce", "tighter-bounds-toy", "--scale", "0.005", "--seeds", "1000", "--out", "out")
    process = commands.start(["-m", "pyvae", *command], tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "out/report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stdout == f"interrupted and saved; go on with: pyvae {' '.join(command)}\n"


@pytest.mark.slow
def test_reproduce_on_mnists_files(pyvae, tmp_path):
    from test_idx import write

    rng = np.random.default_rng(0)
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        write(tmp_path / name, rng.integers(0, 256, (70, 28, 28), dtype=np.uint8))
    data = tmp_path / "train-images-idx3-ubyte"
    done = pyvae("reproduce", "tighter-bounds", "--scale", 3e-7, "--seeds", 1, "--data", data, "--out", "out")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len(results["runs"]) == 8
    for run in results["runs"]:
        metrics = json.loads((tmp_path / f"out/{run['arm']}/seed-1/metrics.json").read_text())
        likelihood = metrics["marginal_likelihood"]
        assert likelihood["data"] != likelihood["trained_on"]
        assert run["values"]["log-p"] == likelihood["log_p"]
        assert run["values"]["gap"] == pytest.approx(likelihood["iwae_64"] - likelihood["log_p"])
        assert run["recipe"]["binarise"] == "stochastic"
    page = (tmp_path / "out/report.html").read_text()
    assert "Other data than the published" in page
    assert "is that of training images" not in page
