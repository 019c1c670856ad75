"""Runs of a user's own networks and objectives are resumed, reported, carried and read as the published ones."""

import json
import math
import pickle
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import commands
from own_code import CPU, plain, trained, write
from pyvae.engine import checkpoint
from pyvae.engine.recipe import Recipe, differences
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.report import report
from test_resume import assert_same
from tiny import Corner
from train_own import OWN, recipe

SCRIPT = Path(__file__).with_name("train_own.py")


def test_an_interrupted_run_equals_one_that_was_not(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    whole = trained(tmp_path / "whole", recipe(20))
    assert torch.equal(torch.rand(3), expected)  # a user's generator is left alone
    trained(tmp_path / "parts", recipe(7))
    torch.rand(5)
    trained(tmp_path / "parts", recipe(20))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    saved = whole.newest_checkpoint().tensors
    assert saved["net.encoder.own.1.num_batches_tracked"] == 20
    assert saved["random.cpu"].dtype == torch.uint8
    # what it draws is its own: without it, these are others
    alone = trained(tmp_path / "seed", replace(recipe(20), seed=6))
    assert not torch.equal(alone.newest_checkpoint().tensors["random.cpu"], saved["random.cpu"])
    header = (tmp_path / "whole" / "trace.csv").read_text().splitlines()[0].split(",")
    assert header == [
        "step",
        "loss",
        "recon",
        "kl",
        "beta",
        "capacity",
        "drift",
        "grad_norm",
        "kl_0",
        "kl_1",
        "kl_2",
    ]
    for name in ("my_nets.py", "my_loss.py"):
        assert (tmp_path / "whole" / "source" / name).read_bytes() == (OWN / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_of_200_steps_is_reported_and_scored(tmp_path, monkeypatch):
    from pyvae.evaluation import compute_scores

    whole = trained(tmp_path / "whole", recipe(200))
    rng = random.Random(0)
    path = tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, SCRIPT, path, "200", "0"], stderr=subprocess.DEVNULL)
        least = len(checkpoint.paths(path / "checkpoints")) and checkpoint.step_of(
            checkpoint.paths(path / "checkpoints")[-1]
        )
        while (
            not (found := checkpoint.paths(path / "checkpoints")) or checkpoint.step_of(found[-1]) < least + 9
        ):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1 * rng.random())
        process.kill()
        process.wait()
    trained(path, recipe(200))
    assert_same(tmp_path / "whole", path)
    page = report(whole, Corner())
    assert "my_loss.py:FreeNats" in page.read_text()
    scores = compute_scores(whole, Corner(), ["mig", "sap"], device=CPU)
    assert all(math.isfinite(parts["score"]) for parts in scores.found.values())
    assert scores.steps == 200


def test_reports_and_scores_take_any_network(tmp_path):
    from pyvae.evaluation import compute_scores

    run = trained(tmp_path / "run", recipe(3))
    text = report(run, Corner()).read_text()
    assert "my_loss.py:FreeNats" in text
    assert str(OWN) not in text.split("<h1")[1][:200]
    assert compute_scores(run, Corner(), ["mig"], device=CPU).steps == 3


@pytest.fixture
def copied(tmp_path):
    for name in ("my_nets.py", "my_loss.py"):
        shutil.copy(OWN / name, tmp_path / name)
    of = recipe(3, objective=f"{tmp_path}/my_loss.py:FreeNats", architecture=f"{tmp_path}/my_nets.py:build")
    return trained(tmp_path / "run", of)


def again(run, **changes):
    """The recipe as the files are now."""
    own = {"objective": run.recipe.objective.source.spec, "architecture": run.recipe.architecture.spec}
    return recipe(9, **{**own, **changes})


@pytest.mark.parametrize("name", ["my_loss.py", "my_nets.py"])
def test_a_changed_file_is_named_and_what_it_was_is_used(copied, name):
    path = copied.path.parent / name
    was = copied.load_net()[0].state_dict()
    text = path.read_text()
    path.write_text(text + "\n# a word more\n")
    message = (
        rf"{name} has changed since {copied.path} began \(a copy of what it was is {copied.source / name}\): "
        "put it back, or name another --out"
    )
    with pytest.raises(RunError, match=message):
        RunDirectory.create_or_resume(copied.path, again(copied))
    assert differences(again(copied), copied.recipe) == [f"{name} has changed"]
    # a file that cannot even be loaded any more hinders nobody who reads
    path.write_text("1 / 0\n")
    opened = RunDirectory.open(copied.path)
    assert opened.recipe == copied.recipe
    net, _ = opened.load_net()
    assert all(torch.equal(tensor, was[n]) for n, tensor in net.state_dict().items())
    path.write_text(text)
    trained(copied.path, again(copied))


def test_a_run_is_read_wherever_it_is_carried(copied, tmp_path):
    carried = tmp_path / "elsewhere" / "run"
    carried.parent.mkdir()
    copied.path.rename(carried)
    for name in ("my_nets.py", "my_loss.py"):
        (tmp_path / name).rename(carried.parent / name)
    run = RunDirectory.open(carried)
    run.load_net()
    moved = again(
        run,
        objective=f"{carried.parent}/my_loss.py:FreeNats",
        architecture=f"{carried.parent}/my_nets.py:build",
    )
    trained(carried, moved)
    (carried / "source" / "my_loss.py").unlink()
    (carried.parent / "my_loss.py").unlink()
    values = json.loads((carried / "recipe.json").read_text())
    values["sources"] = dict.fromkeys(values["sources"], "0" * 64)
    (carried / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(
        RunError, match=rf"is not what it was any more .* nor is a copy of it in {carried}/source"
    ):
        RunDirectory.open(carried)


def test_a_script_does_not_train_itself(tmp_path):
    write(
        tmp_path / "script.py",
        f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from pathlib import Path
from train_own import main
def build(channels, latents, side): ...
main(Path({str(tmp_path / "run")!r}), 3)
""",
    )
    with pytest.raises(RunError, match=r'script.py trains while it is loaded .* if __name__ == "__main__":'):
        Recipe(architecture=f"{tmp_path}/script.py:build")
    assert not (tmp_path / "run").exists()


def test_what_has_no_file_is_given_again(tmp_path, monkeypatch):
    from pyvae.base import source
    from pyvae.objectives import own

    def flat(channels, latents, side):
        return plain(channels, latents, side)

    @dataclass(frozen=True)
    class Local:
        weight: float = 2.0

        def terms(self, outputs, step):
            return {"loss": outputs.recon + self.weight * outputs.kl.sum()}

    for made, name in ((recipe(2, architecture=flat), "flat"), (recipe(2, objective=Local), "Local")):
        run = trained(tmp_path / name, made)
        assert (
            (run.source / f"{name}.py")
            .read_text()
            .lstrip("@")
            .startswith(("def flat", "dataclass(frozen=True)"))
        )
        assert RunDirectory.open(run.path).recipe == run.recipe
        with monkeypatch.context() as another:  # process, which knows nothing of this one's objects
            for module, table in ((source, "_objects"), (source, "_given"), (own, "_made")):
                another.setattr(module, table, {})
            with pytest.raises(
                RunError, match=rf"{name} was given in Python, .*{name}.py: give it again, as"
            ):
                RunDirectory.open(run.path).load_net()
            RunDirectory.open(run.path, own=[flat, Local]).load_net()


@pytest.mark.slow
def test_what_a_script_has_trained_is_read_without_it(tmp_path):
    write(
        tmp_path / "train.py",
        f"""
def build(channels, latents, side):
    pixels = channels * side * side
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * latents)), nn.Sequential(
        nn.Linear(latents, pixels), nn.Unflatten(1, (channels, side, side))
    )

@dataclass(frozen=True)
class Mine:
    weight: float = 2.0

    def terms(self, outputs, step):
        return {{"loss": outputs.recon + self.weight * outputs.kl.sum()}}

if __name__ == "__main__":
    import sys
    from pathlib import Path
    sys.path.insert(0, {str(SCRIPT.parent)!r})
    from train_own import recipe
    from own_code import trained
    trained(Path("run"), recipe(int(sys.argv[1]), objective=Mine, architecture=build))
""",
    )
    commands.run(["train.py", "2"], tmp_path).check_returncode()
    # other lines may change, and it goes on
    (tmp_path / "train.py").write_text((tmp_path / "train.py").read_text() + "    print('done')\n")
    commands.run(["train.py", "4"], tmp_path).check_returncode()
    (tmp_path / "train.py").unlink()
    run = RunDirectory.open(tmp_path / "run")
    assert run.load_net()[1] == 4
    assert run.recipe.objective.weight == 2


def test_a_decoder_of_the_true_factors(tmp_path):
    run = trained(tmp_path / "run", replace(recipe(2), code="factors"))
    assert run.load_net()[0].reads_factors


@pytest.mark.slow
def test_recipes_are_sent_to_other_processes(copied):
    sent = copied.path.parent / "sent"
    sent.write_bytes(pickle.dumps(copied.recipe))
    for name in ("my_nets.py", "my_loss.py"):
        (copied.path.parent / name).unlink()
    code = f"import pickle; r = pickle.load(open({str(sent)!r}, 'rb'))"
    code += "; print(r.objective, r.architecture.object(1, 2, 4))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("FreeNats(gamma=4.0, free=1.0) (Sequential("), done.stderr
