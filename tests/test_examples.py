"""The examples, run against the packages they are for."""

import difflib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from disent_stub import import_disent
from pyvae.studies.results import read_results

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# so near that a thousandth more or less of beta or gamma shows
SAME_LOSS, SAME_GRADIENT = 2e-6, 2e-5


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_a_plain_loop_before_and_after():
    recons = []
    for name in ("plain_before.py", "plain_after.py"):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), "150"], capture_output=True, text=True, check=True
        )
        recon, kl = map(
            float, re.search(r"recon ([\d.]+), KL ([\d.]+) nats; [\d.]+ ms a step", done.stdout).groups()
        )
        recons.append(recon)
        assert 0 < kl < 30
    # other noise, the same training
    assert recons[0] == pytest.approx(recons[1], rel=0.25)
    before, after = ((EXAMPLES / f"plain_{name}.py").read_text().splitlines() for name in ("before", "after"))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:].strip()]
    assert len(changed) <= 5, changed


def test_a_plain_loop_is_the_same_loss(example, capsys):
    loss, gradient = example("plain_same").main(2)
    assert loss < SAME_LOSS
    assert gradient < SAME_GRADIENT
    assert "ms a step before" in capsys.readouterr().out


def test_a_study_for_a_laptop(tmp_path):
    """Each of its methods and settings trained, scored and reported; of their seeds one, of their steps a few."""
    text = (EXAMPLES / "studies/laptop.toml").read_text()
    short = re.sub("^steps = 700$", "steps = 20", text, flags=re.MULTILINE)
    short = re.sub("capacity_steps = 350", "capacity_steps = 10", short)
    short = re.sub('^seeds = "0-1"$', 'seeds = "0"', short, flags=re.MULTILINE)
    assert "steps = 20" in short
    (tmp_path / "laptop.toml").write_text(short)
    command = [sys.executable, "-m", "pyvae", "study", "laptop.toml", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out/report.html\n"
    rows = read_results(tmp_path / "out/results.csv")
    assert len(rows) == 6
    assert {row.steps_done for row in rows} == {20}
    # twenty steps tell settings of one method apart
    assert len({row.recon for row in rows}) >= 4
    for row in rows:
        assert 0 <= row.scores["mig"] <= 1
        assert row.failure is None
    page = (tmp_path / "out/report.html").read_text()
    assert "Twelve tiny models" in page
    assert page.count("data:image/png") >= 5


def test_lightning(example):
    pytest.importorskip("lightning", reason="pip install pyvae-engine[examples]")
    found = example("lightning_vae").main(15)
    assert found["recon"] < 600
    assert 0 <= found["mig"] <= 1


def test_lightning_is_the_same_loss(example, capsys):
    pytest.importorskip("lightning", reason="pip install pyvae-engine[examples]")
    loss, gradient = example("lightning_same").main(4)
    assert loss < SAME_LOSS
    assert gradient < SAME_GRADIENT
    assert "ms a step before" in capsys.readouterr().out


def test_pythae(example, capsys):
    pytest.importorskip("pythae", reason="pip install pyvae-engine[examples]")
    found = example("pythae_losses").main(2)
    assert list(found) == ["BetaVAE", "BetaTCVAE", "FactorVAE"]
    for name, (loss, gradient) in found.items():
        assert loss < SAME_LOSS, name
        assert gradient < SAME_GRADIENT, name
    assert capsys.readouterr().out.count("ms a step before") == 3


def test_disent(example, capsys):
    import_disent()
    loss, gradient = example("disent_losses").main(2)
    assert loss < SAME_LOSS
    assert gradient < SAME_GRADIENT
    assert "ms a step before" in capsys.readouterr().out
