"""Runs as the command line opens them: wherever their data lies, read-only, evaluated in part."""

import errno
import json
import os
import shutil
import sys
import threading

import numpy as np
import pytest
import torch

import pyvae
from pyvae import cli, data
from pyvae.cli import console
from pyvae.cli.invocation import INTERRUPTED
from pyvae.engine import files
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import DataError, PyvaeError, RecipeError, RunError
from pyvae.evaluation import ask, metrics_file, scores, write_metrics
from pyvae.objectives import BetaVAE
from tiny import TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(objective=BetaVAE(), data="tiny", architecture="mlp", latents=2, batch_size=4, steps=2)
TINY = ("--architecture", "mlp", "--image-size", "8", "--latents", "2", "--batch-size", "4", "--steps", "2")


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: status or last line, and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyvae", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of images, and one of data with factors."""
    at = tmp_path_factory.mktemp("place")
    np.save(at / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVAE_CACHE", str(at / "cache"))
        patch.chdir(at)
        patch.setattr(sys, "argv", ["pyvae", "train", "vae", "--data", "images.npy", *TINY, "--out", "run"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        train(RunDirectory.create_or_resume(at / "factors", RECIPE), TinyData(), CPU, log_every=1)
        yield at


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A copy of both, elsewhere."""
    at = shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(at)
    monkeypatch.setenv("PYVAE_CACHE", str(place / "cache"))
    load = data.load
    monkeypatch.setattr(data, "load", lambda path, **o: TinyData() if path == "tiny" else load(path, **o))
    return at


UNSUPERVISED = ("--metrics", "unsupervised")


def test_version(call):
    assert call("--version") == (0, f"pyvae {pyvae.__version__}\n")


def test_a_run_is_opened_from_any_folder(here, place, call, monkeypatch):
    monkeypatch.chdir("/")
    for command in (
        ("evaluate", here / "run", *UNSUPERVISED),
        ("traverse", here / "run"),
        ("report", here / "run"),
    ):
        assert call(*command)[0] == 0
    assert (here / "run/report.html").exists()
    assert str(place / "images.npy") in (here / "run/report.html").read_text()


def test_data_that_was_moved_is_asked_for_and_taken(here, call, monkeypatch):
    recipe = json.loads((here / "run/recipe.json").read_text())
    recipe["data"] = str(here / "gone.npy")
    (here / "run/recipe.json").write_text(json.dumps(recipe))
    for command in ("evaluate", "traverse", "report"):
        options = UNSUPERVISED if command == "evaluate" else ()
        assert call(command, "run", *options) == (
            f"pyvae: error: the data of run is not at {here}/gone.npy any more: say where with --data",
            "",
        )
        assert call(command, "run", "--data", "images.npy", *options)[0] == 0
    again = ("train", "vae", "--data", "./images.npy", *TINY[:-1], "3", "--out", "run")
    assert call(*again)[0] == 0
    assert RunDirectory.open(here / "run").recipe.data == str(here / "images.npy")
    assert call("evaluate", "run", *UNSUPERVISED)[0] == 0


def test_other_data_is_refused_unless_asked_for(here, call, caplog):
    np.save(here / "other.npy", np.full((12, 8, 8), 200, np.uint8))
    shutil.copy(here / "images.npy", here / "kept.npy")
    recipe = json.loads((here / "run/recipe.json").read_text())
    (here / "run/recipe.json").write_text(json.dumps({**recipe, "data": str(here / "other.npy")}))
    status, _ = call("evaluate", "run", *UNSUPERVISED)
    assert status.startswith("pyvae: error: run was trained on images-12x1x8x8-crc32:")
    assert "other.npy holds images-12x1x8x8-crc32:" in status
    assert call("evaluate", "run", "--data", "kept.npy", *UNSUPERVISED)[0] == 0
    assert not caplog.records
    assert call("evaluate", "run", "--data", "other.npy", *UNSUPERVISED)[0] == 0
    assert "the results are of the latter" in caplog.text


def test_what_was_computed_is_shown_before_it_is_written(here, call, monkeypatch):
    def fail(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(files, "replacing", fail)
    status, out = call("evaluate", "run", *UNSUPERVISED)
    assert out.startswith("unsupervised gaussian_")
    assert status.startswith("pyvae: error: cannot write run/metrics.json: Read-only file system")
    assert status.endswith("; the numbers above are right, and not kept")
    monkeypatch.setattr(ask, "compute_likelihood", lambda *_, **__: (2, {"log_p": -1.5}))
    monkeypatch.setattr(ask, "check_likelihood", lambda *_, **__: None)
    status, out = call("evaluate", "run", "--metrics", "marginal-likelihood")
    assert out == "marginal-likelihood log_p    -1.5000\n"
    assert "Read-only file system" in status


@pytest.mark.parametrize("command", ["report", "traverse"])
def test_what_cannot_be_written_is_told_before_it_is_drawn(here, call, monkeypatch, command):
    from pyvae import report

    monkeypatch.setattr(report, command, lambda *_, **__: pytest.fail("drawn in vain"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status, _ = call(command, "run")
    assert status == "pyvae: error: cannot write to run: give permission, or copy it to where there is"
    monkeypatch.undo()


def test_figures_that_are_a_file(here, call):
    (here / "run/figures").write_text("mine")
    for command in ("report", "traverse"):
        assert call(command, "run")[0] == (
            "pyvae: error: cannot write to run/figures: run/figures is no directory"
        )


def test_metrics_that_cannot_be_computed_are_named_and_the_others_kept(here, call, caplog, monkeypatch):
    def metrics():
        return json.loads((here / "factors/metrics.json").read_text())["scores"].keys()

    status, out = call(
        "evaluate", "factors", "--metrics", "mig", "sap", "mig", "--without", "size", "row", "column"
    )
    assert "left out" in status
    assert out == ""
    status, out = call("evaluate", "factors", "--metrics", "all", "mig")
    assert out.count("mig ") == 1
    done = metrics()
    monkeypatch.setattr(
        scores, "unavailable", lambda names, **_: {"sap": "sap cannot"} if "sap" in names else {}
    )
    shutil.rmtree(here / "factors/figures", ignore_errors=True)
    (here / "factors/metrics.json").unlink()
    assert call("evaluate", "factors")[0] == 0
    assert "sap is not computed: sap cannot" in caplog.messages
    assert metrics() == set(ask.QUICK_METRICS) - {"sap", "explicitness"}
    assert done >= metrics()
    (here / "factors/metrics.json").unlink()
    status, out = call("evaluate", "factors", "--metrics", "sap", "mig")
    assert status == "pyvae: error: sap could not be computed; the others could"
    assert out.startswith("mig ")
    assert metrics() == {"mig"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics",), "--metrics: name at least one of mig, "),
        (("--metrics", "mig", "fid"), "unknown metric 'fid': there are mig, "),
        (("--metrics", "mig", "fid"), "marginal-likelihood and all"),
        (("--metrics", "sap", "explicitness"), "sap, explicitness: train + test: 10000 + 5000 points"),
        (("--metrics", "mig", "--without", "colour"), "no factor 'colour'"),
        (("--metrics", "mig", "--seed", "-1"), "--seed must be from 0 to 2^64 - 1, got -1"),
        (("--metrics", "mig", "--seed", 2**64), "--seed must be from 0 to 2^64 - 1"),
        (("--metrics", "mig", "marginal-likelihood", "--samples", 3), "at least 64 samples, got 3"),
        (("--metrics", "mig", "marginal-likelihood", "--images", 0), "at least 1 image"),
        (("--metrics", "mig", "marginal-likelihood", "--held-out", "gone"), "gone"),
    ],
)
def test_cheap_mistakes_come_before_the_encoder(here, call, monkeypatch, options, words):
    monkeypatch.setattr(scores, "encode", lambda *_, **__: pytest.fail("encoded in vain"))
    status, _ = call("evaluate", "factors", *options)
    assert words in status
    assert not (here / "factors/metrics.json").exists()


def test_reasons_are_told_before_the_encoder(here, call, caplog, monkeypatch):
    def encode(*_, **__):
        assert "sap is not computed: train + test: 10000 + 5000 points" in caplog.text
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "encode", encode)
    assert call("evaluate", "factors")[0] == INTERRUPTED


def test_grey_images_are_refused_before_the_encoder(here, call, monkeypatch):
    monkeypatch.setattr(scores, "encode", lambda *_, **__: pytest.fail("encoded in vain"))
    status, _ = call("evaluate", "run", "--metrics", "unsupervised", "marginal-likelihood")
    assert "grey images have no Bernoulli likelihood" in status


def test_a_likelihood_beside_metrics_that_cannot_be(here, call, monkeypatch, caplog):
    """Neither takes the other with it."""
    monkeypatch.setattr(ask, "compute_likelihood", lambda *_, **__: (2, {"log_p": -1.5}))
    monkeypatch.setattr(ask, "check_likelihood", lambda *_, **__: None)
    status, out = call("evaluate", "run", "--metrics", "marginal-likelihood", "mig")
    assert out == "marginal-likelihood log_p    -1.5000\n"
    assert status == "pyvae: error: mig could not be computed; the others could"
    assert (
        "images.npy are not known, and only unsupervised and total-correlation can do without" in caplog.text
    )


def test_scores_of_other_data_leave_those_of_its_own(here, call, caplog):
    np.save(here / "other.npy", np.full((12, 8, 8), 200, np.uint8))
    assert call("evaluate", "run", *UNSUPERVISED)[0] == 0
    before = (here / "run/metrics.json").read_bytes()
    assert call("evaluate", "run", "--data", "other.npy", *UNSUPERVISED)[0] == 0
    assert "metrics.json keeps what is of its own data" in caplog.text
    assert (here / "run/metrics.json").read_bytes() == before


def test_a_lost_trace_costs_the_curves_alone(here, call, caplog):
    (here / "run/trace.csv").unlink()
    assert call("report", "run")[0] == 0
    assert "The trace of run is lost" in (here / "run/report.html").read_text()
    assert "the report goes without the curves of training: cannot read run/trace.csv" in caplog.text


def test_a_home_is_written_out(here, call, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert call("train", "vae", "--data", "~/images.npy", *TINY, "--out", "~/new")[0] == 0
    assert (here / "new/recipe.json").exists()
    assert call("evaluate", "~/new", *UNSUPERVISED)[0] == 0
    for command in (("train", "vae", *TINY, "--out", "~nobody-here/x"), ("report", "~nobody-here/x")):
        assert call(*command)[0] == (
            "pyvae: error: ~nobody-here/x: there is no such user here; write the path out"
        )


def test_a_newline_in_the_name_of_a_run(here, call):
    status, out = call("train", "vae", "--data", "images.npy", *TINY, "--out", "a\nb")
    assert status == 0
    assert out.startswith("a\\nb: 2 of 2 steps")
    assert out.count("\n") == 1


def test_no_name_is_no_folder(here, call):
    assert call("train", "vae", "--data", "", *TINY, "--out", "new")[0] == (
        "pyvae: error: the name of the data is empty: give a path, or 'dsprites'"
    )


def test_seeds_to_the_last(here, call):
    assert call("evaluate", "factors", "--metrics", "mig", "--seed", 2**64 - 1)[0] == 0


def test_writers_at_once_lose_nothing(tmp_path, monkeypatch):
    """Each reads what the other wrote, however they interleave."""
    run, data = RunDirectory(tmp_path, RECIPE), TinyData()
    read = metrics_file.read_metrics
    both = threading.Barrier(2)

    def slow(*arguments):
        found = read(*arguments)
        try:
            both.wait(0.3)  # never both between reading and writing
            pytest.fail("two at once")
        except threading.BrokenBarrierError:
            return found

    monkeypatch.setattr(metrics_file, "read_metrics", slow)
    threads = [
        threading.Thread(
            target=write_metrics, args=(run, 2, data, {"scores": {name: {"score": 1.0}}, name: 1})
        )
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["scores"].keys() == {"a", "b"}
    assert (written["a"], written["b"]) == (1, 1)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PyvaeError("a\nb"), r"a\nb"),
        (DataError("x\t\x1b[31m"), r"x\t\x1b[31m"),
        (RunError("é 🎲"), "é 🎲"),
        (RecipeError("\udcff"), r"\udcff"),
        (OSError(errno.ENOSPC, "No space left on device", "a\nb"), r"a\nb: No space left on device; "),
        (OSError("plain"), "plain; "),
        (MemoryError(), "out of memory: give a smaller --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory: give a smaller --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory: "),
        (RuntimeError("a fault"), None),
        (ValueError("a fault"), None),
        (KeyError("a fault"), None),
    ],
)
def test_errors_that_reach_a_user_are_one_line(error, line):
    found = console.one_line(error)
    if line is None:
        assert found is None
    else:
        assert found.startswith(line)
        assert found.isprintable()


def test_every_error_of_ours_is_one_of_the_users():
    """All classes of errors that pyvae makes; what else is raised names a wrong call, not a wrong command."""
    import importlib
    import pkgutil

    own = set()
    for module in pkgutil.walk_packages(pyvae.__path__, "pyvae."):
        if module.name.startswith(("pyvae.kernels", "pyvae.integrations", "pyvae._C", "pyvae.__main__")):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if (
                isinstance(value, type)
                and issubclass(value, Exception)
                and value.__module__.startswith("pyvae")
            ):
                own.add(value.__name__)
    kinds = (*PyvaeError.__subclasses__(), *RecipeError.__subclasses__())
    users = {cls.__name__ for cls in (PyvaeError, *kinds)}
    assert users == {
        *("PyvaeError", "DataError", "RunError", "RecipeError", "BackendError", "SeedError"),
        *("PlanError", "OutOfRoomError", "ExportError", "SourceError"),
    }
    assert own - users == {
        "UnusableError",
        "CannotRunError",
        "CropError",
        "TooFewCodes",
        "DamagedError",
        "NotRegularError",
        "UnknownNetworkError",
        "GoneError",
        "HeldError",
        "NoCodesError",
    }  # caught


def test_a_reader_who_has_enough(tmp_path):
    import subprocess

    command = f"{sys.executable} -m pyvae reproduce --list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    full = f"{sys.executable} -m pyvae --version > /dev/full"
    done = subprocess.run(["bash", "-c", full], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("pyvae: error: No space left on device; ")
