"""results.csv: what is written is read again, whatever stands in it, and what is no table is told in one line."""

import math
import time
from dataclasses import replace

import pytest

from pyvae.engine.recipe import Recipe
from pyvae.errors import RunError
from pyvae.objectives import DIPVAE, BetaVAE, ControlVAE, FactorVAE
from pyvae.studies.results import Row, about, flat, read_results, write_results

RECIPES = (
    Recipe(objective=BetaVAE(beta=4.0), data="dsprites", seed=2**64 - 1, lr=1e-4),
    Recipe(objective=ControlVAE(schedule="adaptive"), keep_at=(10, 20), lr_stage_steps=7),
    Recipe(objective=FactorVAE(gamma=0.1 + 0.2), channels=3, data="/a, b\n/\udce9.npz:x"),
    Recipe(objective=DIPVAE(variant="ii")),
)


def rows_of_all():
    known = {"steps_done": 9, "seconds": 1.25, "steps_per_second": 7.2, "engine": "fused", "device": "H, 1"}
    return [
        about("a/seed-1", "a", RECIPES[0], **known, recon=1 / 3, kl=5e-324, images=9, scores={"mig": 0.1}),
        about(
            "b/seed-1", "b", RECIPES[1], without="shape", scores={"dci": 0.5, "dci.completeness": math.nan}
        ),
        about("c/seed-1", "c", RECIPES[2], steps_done=3, failure='loss is not finite in step 3, "so"'),
        about("d/seed-1", "d", RECIPES[3]),
    ]


def test_what_is_written_is_read(tmp_path):
    rows = rows_of_all()
    write_results(tmp_path / "r.csv", rows)
    found = read_results(tmp_path / "r.csv")
    assert math.isnan(found[1].scores["dci.completeness"])
    found[1] = replace(found[1], scores={"dci": 0.5, "dci.completeness": rows[1].scores["dci.completeness"]})
    assert found == rows
    assert [dict(row.recipe) for row in found] == [flat(recipe) for recipe in RECIPES]


def test_every_field_of_a_recipe_is_a_column(tmp_path):
    write_results(tmp_path / "r.csv", rows_of_all())
    columns = (tmp_path / "r.csv").read_text(errors="surrogateescape").splitlines()[0].split(",")
    assert len(set(columns)) == len(columns)
    own = {"model", "method", "data", "seed", "engine", "recipe.engine", "score.mig", "failure"}
    assert own <= set(columns)
    for recipe in RECIPES:
        known = recipe.to_json()
        assert {f"objective.{name}" for name in known["objective"] if name != "name"} <= set(columns)
    assert {"lr", "steps", "precision", "keep_at", "channels"} <= set(columns)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has no column model"),
        (b"\xff\xfe\x00", "it has no column model"),
        (b"model,method\na,b\n", "it has no column data"),
        (b'"', "unexpected end of data"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, content, why):
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(RunError, match=f"is not a table.*{why}.*makes it anew") as told:
        read_results(tmp_path / "r.csv")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (",d,", ",", "line .* has .* cells"),
        ("dsprites,18446744073709551615", "dsprites,-1", "seed cannot be '-1'"),
        ("1.25", "fast", "seconds cannot be 'fast'"),
        ("score.mig", "method", "two columns have one name"),
    ],
)
def test_what_was_changed_is_told(tmp_path, before, after, why):
    write_results(tmp_path / "r.csv", rows_of_all())
    content = (tmp_path / "r.csv").read_bytes()
    assert before.encode() in content
    (tmp_path / "r.csv").write_bytes(content.replace(before.encode(), after.encode(), 1))
    with pytest.raises(RunError, match=why):
        read_results(tmp_path / "r.csv")


def test_no_table_is_told(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*r\.csv: No such file or directory"):
        read_results(tmp_path / "r.csv")


def test_thousands_are_quick(tmp_path):
    scores = {f"metric-{i}": i / 7 for i in range(12)}
    rows = [
        about(f"m/seed-{i}", "m", replace(RECIPES[i % 4], seed=i), steps_done=i, scores=scores)
        for i in range(1800)
    ]
    start = time.monotonic()
    write_results(tmp_path / "r.csv", rows)
    found = read_results(tmp_path / "r.csv")
    assert time.monotonic() - start < 10
    assert len(found) == 1800
    assert isinstance(found[-1], Row)
    assert found == rows
