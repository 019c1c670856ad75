"""The command line with networks and objectives of a user's own: options, sweeps, templates, studies."""

import json
import sys

import numpy as np
import pytest

from pyvae.cli import main
from pyvae.cli.new import template
from pyvae.engine.run import RunDirectory
from pyvae.errors import PlanError
from pyvae.objectives import BetaVAE
from pyvae.studies.plan import keep_source, read_plan
from train_own import OWN

TINY = ("--image-size", "8", "--latents", "2", "--batch-size", "4", "--steps", "2", "--log-every", "1")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The command line in this process, in a folder with images: its status, and what it printed."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyvae", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    return call


def train(call, *arguments):
    return call("train", "vae", "--data", "images.npy", *TINY, *arguments)


def test_templates_train_as_they_are(call, tmp_path):
    for kind, file in (("objective", "my_loss.py"), ("network", "my_nets.py")):
        status, said = call("new", kind, file)
        assert status == 0
        assert (tmp_path / file).read_text() == template(kind, file)
        assert call("new", kind, file)[0] == f"pyvae: error: {file} is there already: name another file"
        # the command that is given is one
        told = said.partition(": train it with pyvae ")[2].split()
        other = () if kind == "network" else ("--architecture", "mlp")
        assert call(*told, "--data", "images.npy", *TINY, *other, "--out", kind)[0] == 0
    assert call("new", "network", "my_nets")[0].endswith("give the name of a Python file, as my_network.py")
    assert RunDirectory.open(tmp_path / "objective").recipe.objective.beta == 2
    header = (tmp_path / "objective" / "trace.csv").read_text().splitlines()[0]
    assert "far" in header.split(",")
    own = ("--objective", "my_loss.py:Mine", "--architecture", "my_nets.py:build", "--out", "both")
    assert train(call, *own)[0] == 0
    for command in ("evaluate", "report", "traverse"):
        assert (
            call(command, "both", *(("--metrics", "unsupervised") if command == "evaluate" else ()))[0] == 0
        )
    (tmp_path / "my_loss.py").write_text("changed = True\n")
    status, _ = train(call, *own)
    assert status == "pyvae: error: my_loss.py has no Mine: it has nothing that can be called"
    (tmp_path / "my_loss.py").write_text(template("objective", "my_loss.py") + "\n")
    status, _ = train(call, *own)
    assert status == (
        "pyvae: error: my_loss.py has changed since both began (a copy of what it was is both/source/my_loss.py): put "
        "it back, or name another --out"
    )
    assert call("evaluate", "both", "--metrics", "unsupervised")[0] == 0


def test_fields_are_options(call, tmp_path):
    named = f"{OWN}/my_loss.py:FreeNats"
    status, text = call("train", "demo", "--objective", named, "-h")
    assert status == 0
    assert "--gamma FLOAT" in text
    assert "Weight of what is beyond the free part. (default: 4.0)" in text
    assert "--beta" not in text.partition("usage")[2]
    assert (
        train(call, f"--objective={named}", "--free", "2.5", "--architecture", f"{OWN}/my_nets.py:build")[0]
        == 0
    )
    recipe = RunDirectory.open(tmp_path / "runs" / "vae").recipe
    assert (recipe.objective.free, recipe.objective.gamma) == (2.5, 4.0)
    swept = ("--objective", named, "--sweep", "gamma=1,2", "--seeds", "0-1", "--out", "many")
    status, _ = train(call, *swept, "--architecture", "mlp")
    assert status == 0
    assert {
        p.parent.relative_to(tmp_path / "many").as_posix() for p in tmp_path.glob("many/**/recipe.json")
    } == {f"gamma-{g}/seed-{s}" for g in (1, 2) for s in (0, 1)}
    assert train(call, "--objective", named, "--beta", "3")[0] == 2
    assert train(call, "--objective", named, "--free", "much")[0] == 2
    networks = f"architecture=mlp,{OWN}/my_nets.py:build"
    assert train(call, "--sweep", networks, "--out", "networks")[0] == 0
    assert {path.parent.name for path in tmp_path.glob("networks/*/recipe.json")} == {
        "architecture-mlp",
        "architecture-my_nets-build",
    }


def test_objectives_by_the_names_of_the_published(call, tmp_path):
    assert (
        train(call, "--objective", "beta-vae", "--beta", "2", "--architecture", "mlp", "--out", "named")[0]
        == 0
    )
    values = json.loads((tmp_path / "named" / "recipe.json").read_text())
    assert values["objective"] == {"name": "beta-vae", "beta": 2.0}
    assert "sources" not in values
    status, _ = train(call, "--objective", "gamma-vae")
    assert status.startswith("pyvae: error: objective must be one of vae, beta-vae, ")
    assert status.endswith(", or of your own, FILE.py:NAME, got 'gamma-vae'")


def test_networks_go_through_torch_compile(call, tmp_path, monkeypatch):
    from pyvae.engine import trainer

    seen = []
    monkeypatch.setattr(trainer, "_compiled", lambda module: seen.append(module) or module)
    assert train(call, "--architecture", f"{OWN}/my_nets.py:build", "--compile", "--out", "compiled")[0] == 0
    assert [type(module).__name__ for module in seen] == ["OwnEncoder", "Sequential"]


@pytest.mark.slow
def test_networks_are_compiled(call, tmp_path):
    own = (
        "--architecture",
        f"{OWN}/my_nets.py:build",
        "--objective",
        f"{OWN}/my_loss.py:FreeNats",
        "--compile",
    )
    assert train(call, *own, "--out", "whole", "--steps", "6")[0] == 0
    assert train(call, *own, "--out", "parts", "--steps", "3")[0] == 0
    assert train(call, *own, "--out", "parts", "--steps", "6")[0] == 0
    one, two = ((tmp_path / name / "trace.csv").read_text() for name in ("whole", "parts"))
    assert one == two


STUDY = """
[shared]
data = "images.npy"
image_size = 8
latents = 2
batch_size = 4
steps = 2
[[methods]]
recipe = "vae"
name = "mine"
objective = "code/my_loss.py:FreeNats"
set = { architecture = "code/my_nets.py:build" }
sweep = { gamma = [1, 2] }
[[methods]]
recipe = "vae"
name = "published"
objective = "beta-vae"
set = { architecture = "mlp", beta = 2 }
"""


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "studies"
    (folder / "code").mkdir(parents=True)
    for name in ("my_loss.py", "my_nets.py"):
        (folder / "code" / name).write_bytes((OWN / name).read_bytes())
    (folder / "mine.toml").write_text(STUDY)
    return folder / "mine.toml"


def test_studies_name_code_beside_their_files(study, tmp_path):
    plan = read_plan(study)
    assert [m.name for m in plan.models] == ["mine/gamma-1/seed-0", "mine/gamma-2/seed-0", "published/seed-0"]
    assert [m.recipe.objective.gamma for m in plan.models[:2]] == [1, 2]
    assert plan.models[2].recipe.objective == BetaVAE(2)
    assert plan.models[0].recipe.architecture.path == str(study.parent / "code" / "my_nets.py")
    # where the study's file is copied, its code is
    keep_source(plan, tmp_path / "out")
    for name in ("my_loss.py", "my_nets.py"):
        (study.parent / "code" / name).unlink()
    copy = read_plan(tmp_path / "out" / "study.toml")
    assert [m.recipe for m in copy.models] == [m.recipe for m in plan.models]
    with pytest.raises(
        PlanError, match=r"methods\[1\] \(mine\).set.architecture: .*my_nets.py cannot be read"
    ):
        read_plan(study)
    study.write_text(STUDY.replace("beta-vae", "gamma-vae"))
    with pytest.raises(PlanError, match=r"methods\[1\] \(mine\)"):
        read_plan(study)
    study.write_text(STUDY.replace("beta-vae", "gamma-vae").replace("code/", str(OWN) + "/"))
    with pytest.raises(
        PlanError, match=r"methods\[2\] \(published\).objective: objective must be one of vae, "
    ):
        read_plan(study)


@pytest.mark.slow
def test_a_study_of_ones_own_is_run_and_compared(call, study, tmp_path):
    assert call("study", study, "--out", "out")[0] == 0
    assert "my_loss.py:FreeNats" in (tmp_path / "out" / "results.csv").read_text()
    # nothing is left to do, as far as the table says
    before = (tmp_path / "out" / "results.csv").read_bytes()
    assert call("study", study, "--out", "out")[0] == 0
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
    assert call("study", "out", "--report")[0] == 0
