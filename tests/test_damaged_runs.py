"""The command line on runs whose files were changed: each is used, or refused in one line, and nothing is lost."""

import copy
import json
import logging
import os
import random
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyvae import cli
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import RecipeError, RunError
from pyvae.evaluation import read_likelihood, read_scores, score, score_likelihood
from pyvae.objectives import BetaVAE
from pyvae.report import report
from pyvae.report.page import _likelihood, _scores
from tiny import Corner

CPU = torch.device("cpu")


RECIPE = Recipe(
    objective=BetaVAE(beta=2.0),
    data="tiny",
    architecture="rainforth",
    batch_size=2,
    latents=2,
    steps=4,
    keep_at=(2,),
)
TRAIN = (
    "train beta-vae --beta 2 --data tiny --architecture rainforth --init torch --batch-size 2 --latents 2 --keep-at 2 "
    "--device cpu"
)
COMMANDS = {
    "report": "report RUN",
    "evaluate": "evaluate RUN --metrics modularity --device cpu",
    "train": f"{TRAIN} --steps 5 --log-every 1 --out RUN",
}
JSON = ("recipe.json", "metrics.json")
CHECKPOINTS = ("checkpoints/step-000000000002.safetensors", "checkpoints/step-000000000004.safetensors")
FILES = (*JSON, "trace.csv", *CHECKPOINTS, "snapshots/step-000000000002.safetensors")
WRONG = (
    None,
    True,
    -1,
    0,
    2**64,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "7",
    "\ud800",
    "a\0b",
    [],
    [1],
    {},
    {"a": 1},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    run = RunDirectory.create_or_resume(path, RECIPE)
    train(run, Corner(), CPU, log_every=1)
    report(run, Corner())
    score(run, Corner(), ["modularity"], device=CPU)
    score_likelihood(run, Corner(), device=CPU, samples=64, images=2, progress=False)
    assert all((path / name).is_file() for name in FILES)
    return path


@pytest.fixture
def plain_pages(monkeypatch):
    """Reports whose pictures, which take seconds, are not drawn."""
    picture = Path(cli.__file__)

    def drawn(*_, **__):
        return picture

    def none(*_, **__):
        return []

    monkeypatch.setattr("pyvae.report.curves.save", drawn)
    monkeypatch.setattr("pyvae.report.reconstructions.draw", drawn)
    monkeypatch.setattr("pyvae.report.traversal.draw", none)
    monkeypatch.setattr("pyvae.report.traversal.write_png", drawn)


@pytest.fixture
def pyvae(monkeypatch, capsys, caplog):
    monkeypatch.setattr("pyvae.data.load", lambda *_, **__: Corner())
    caplog.set_level(logging.WARNING)

    def call(command, run):
        """(exit status, lines on stderr that are no progress bar, warnings)."""
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["pyvae", *command.replace("RUN", str(run)).split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        lines = [code] if isinstance(code, str) else []
        capsys.readouterr()
        return 1 if lines else code, lines, [record.getMessage() for record in caplog.records]

    return call


def assert_in_order(outcome):
    """Success, or one line that is an error of the user's; warnings are a line each."""
    status, errors, warnings = outcome
    assert status == (1 if errors else 0)
    for line in errors:
        assert line.startswith("pyvae: error: ")
    for line in (*errors, *warnings):
        assert "\n" not in line
        assert "Traceback" not in line


def paths_in(value, at=()):
    """Where the parts of a JSON value are, the value itself first."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths_in(part, (*at, key))


def with_part(value, at, part):
    """The value with the part at a place replaced, or without it."""
    if not at:
        return part
    value = inner = copy.deepcopy(value)
    for key in at[:-1]:
        inner = inner[key]
    if part is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = part
    return value


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, tensors):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def changed_json(content, random):
    value = json.loads(content)
    at = random.choice([at for at in paths_in(value) if at])
    return json.dumps(with_part(value, at, random.choice((..., *WRONG)))).encode()


def changed_description(content, random):
    """A checkpoint whose header is another, without a checksum, as those of earlier versions are."""
    header, tensors = header_of(content)
    about = header["__metadata__"]
    del about["checksum"]
    if random.random() < 0.5:
        about["pyvae"] = changed_json(about["pyvae"], random).decode()
    else:
        at = random.choice([at for at in paths_in(header) if at])
        header = with_part(header, at, random.choice((..., *WRONG)))
    return with_header(header, tensors)


def cut(content, random):
    return content[: random.randrange(len(content))]


def flipped(content, random):
    at = random.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]


def zeroed(content, random):
    first = random.randrange(len(content))
    return content[:first] + bytes(len(content) - first)


def other_bytes(content, random):
    first, size = random.randrange(len(content)), random.randrange(1, 50)
    return content[:first] + random.randbytes(size) + content[first + size :]


def changed_cells(content, random):
    rows = [line.split(b",") for line in content.splitlines()]
    row = random.choice(rows)
    cells = (b"", b"x", b"nan", b"1e999", b"-1", b"\xff", b"1" * 400, b"1e300", "²".encode())
    row[random.randrange(len(row))] = random.choice(cells)
    return b"\n".join(map(b",".join, rows)) + b"\n"


def mutations(name):
    own = {
        ".json": [changed_json] * 4,
        ".csv": [changed_cells] * 3,
        ".safetensors": [changed_description] * 3,
    }
    return [cut, flipped, zeroed, other_bytes, *own[Path(name).suffix]]


def try_all(whole, at, pyvae, seed):
    """Change one file of the run at random, and give it to every command."""
    chance = random.Random(seed)
    name = chance.choice(FILES)
    change = chance.choice(mutations(name))
    content = change((whole / name).read_bytes(), chance)
    for command in COMMANDS.values():
        run = at / "run"
        shutil.copytree(whole, run)
        (run / name).write_bytes(content)
        assert_in_order(pyvae(command, run))
        shutil.rmtree(run)


def parts(name, whole):
    """Every change of one part of a JSON file of the run."""
    value = json.loads((whole / name).read_text())
    return [
        with_part(value, at, part)
        for at in paths_in(value)
        for part in (..., *WRONG)
        if at or part is not ...
    ]


def with_floats(value):
    """A recipe as text, its numbers as floats, so that true and 1 differ but 1 and 1.0 do not."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


def test_a_recipe_is_taken_as_it_stands_or_refused(whole):
    """No value of another type passes, and none is made into another."""
    taken = 0
    for value in parts("recipe.json", whole):
        try:
            held = json.loads(json.dumps(Recipe.from_json(value).to_json()))
        except RecipeError:
            continue
        taken += 1
        # an integer is a number as well, but true is none
        full = {**held, **value, "objective": {**held["objective"], **value["objective"]}}
        assert with_floats(full) == with_floats(held)
    # those of a part that may be left out, and the values that are of the type by chance
    assert taken > 30


def test_metrics_that_are_not_ours_are_kept_beside_new_ones(whole, tmp_path, caplog):
    run = RunDirectory.open(shutil.copytree(whole, tmp_path / "run"))
    file, aside = run.path / "metrics.json", run.path / "metrics.json.damaged"
    kept = 0
    for value in parts("metrics.json", whole)[::5]:
        caplog.clear()
        file.write_text(content := json.dumps(value))
        scores, likelihood = read_scores(run, 4, Corner()), read_likelihood(run, 4, Corner())
        assert {key.split(".")[0] for key, *_ in _scores(scores)} <= {*map(str, scores)}
        assert len(list(_likelihood(likelihood))) in (0, 4)
        if aside.exists():
            assert aside.read_text() == content
            assert (scores, likelihood) == ({}, None)
            assert len(caplog.records) == 1
            aside.unlink()
            kept += 1
        else:
            assert not caplog.records
    assert kept > 60


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"9" * 10_000,
        b"\xff{}",
        b'{"steps": 4, "steps": 5}',
        bytes(100),
    ],
    ids=["empty", "open", "list", "null", "deep", "long", "latin", "twice", "zeros"],
)
@pytest.mark.usefixtures("plain_pages")
def test_json_that_is_none(whole, tmp_path, pyvae, content):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "metrics.json").write_bytes(content)
    status, _, (warning,) = pyvae(COMMANDS["report"], run)
    assert status == 0
    assert warning.startswith(f"{run / 'metrics.json'} is damaged (")
    assert (run / "metrics.json.damaged").read_bytes() == content
    assert json.loads((run / "metrics.json").read_text())["steps"] == 4
    (run / "recipe.json").write_bytes(content)
    for command in COMMANDS.values():
        status, (error,), _ = pyvae(command, run)
        assert status == 1
        assert error.startswith(
            f"pyvae: error: {run / 'recipe.json'} is not a recipe of this version of pyvae: "
        )
        assert "\n" not in error
    assert (run / "recipe.json").read_bytes() == content


@pytest.mark.usefixtures("plain_pages")
def test_a_file_that_has_no_end_is_not_read_to_it(whole, tmp_path, pyvae):
    for name in FILES:
        run = shutil.copytree(whole, tmp_path / "run")
        os.truncate(run / name, 1 << 40)
        for command in COMMANDS.values():
            assert_in_order(pyvae(command, run))
        shutil.rmtree(run)


@pytest.mark.parametrize("name", [*FILES, ".lock"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
@pytest.mark.usefixtures("plain_pages")
def test_what_is_no_regular_file_is_not_waited_for(whole, tmp_path, pyvae, name, kind):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "device":
        (run / name).symlink_to("/dev/zero")
    else:
        (run / name).mkdir()
    for command in COMMANDS.values():
        outcome = pyvae(command, run)
        assert_in_order(outcome)
        status, errors, warnings = outcome
        if name == "recipe.json" or (name == ".lock" and command == COMMANDS["train"]):
            assert status == 1
            assert name in errors[0]
        elif name in CHECKPOINTS[1:] and command != COMMANDS["train"]:
            assert status == 0
            assert "taking the one before, of step 2" in warnings[0]


def test_a_recipe_that_was_changed_since_is_refused(whole, tmp_path, pyvae):
    run = shutil.copytree(whole, tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["objective"]["beta"] = 3.0
    (run / "recipe.json").write_text(json.dumps(recipe))
    for command in (
        COMMANDS["report"],
        COMMANDS["evaluate"],
        COMMANDS["train"].replace("--beta 2", "--beta 3"),
    ):
        status, (error,), _ = pyvae(command, run)
        assert status == 1
        assert (
            "recipe.json is not what step-000000000004.safetensors was trained with (beta is 2.0 there"
            in error
        )
    recipe["objective"]["beta"], recipe["steps"], recipe["data"] = 2.0, 7, "elsewhere"
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert pyvae(COMMANDS["evaluate"], run) == (0, [], [])


def test_a_recipe_of_another_network_is_refused(whole, tmp_path):
    run = RunDirectory.open(shutil.copytree(whole, tmp_path / "run"))
    saved = run.newest_checkpoint()
    for change in ({"latents": 3}, {"latents": 65_536}, {"architecture": "mlp"}):
        with pytest.raises(RunError, match=r"the checkpoint of step 4 in .* does not fit its recipe"):
            RunDirectory(run.path, replace(RECIPE, **change)).net_of(saved)


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("part", range(3))
def test_files_that_were_changed_at_random(whole, tmp_path, pyvae, part):
    for seed in range(10 * part, 10 * part + 10):
        try_all(whole, tmp_path, pyvae, seed)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("part", range(10))
def test_files_that_were_changed_at_random_many_times(whole, tmp_path, pyvae, part):
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        try_all(whole, tmp_path, pyvae, seed)
