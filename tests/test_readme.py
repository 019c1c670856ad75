import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "benchmarks/report.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<!-- results: train-cpu -->" in README


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", README))))
def test_python_examples_run(number):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    exec(compile(code, f"README example {number + 1}", "exec"), {})


def test_commands_exist():
    """Every `pyvae ...` line of the README parses: it gets as far as its run directory, recipe or data."""
    from pyvae.cli import parse

    commands = re.findall(r"^pyvae (.+?)(?:  #.*)?$", README, re.MULTILINE)
    assert len(commands) > 4
    for command in commands:
        if command.endswith("--help"):
            with pytest.raises(SystemExit, match="0"):
                parse(command.split())
        else:
            assert callable(parse(command.split()))


def test_environment_variables_are_those_of_the_code():
    used = {
        name
        for path in [*(ROOT / "pyvae").rglob("*.py")]
        for name in re.findall(r"PYVAE_[A-Z]+", path.read_text())
    }
    documented = set(re.findall(r"^\| `(PYVAE_[A-Z]+)", README, re.MULTILINE))
    assert documented == used


def test_every_recipe_is_listed():
    from pyvae.recipes import RECIPES

    assert [name for name in RECIPES if f"`{name}`" not in README] == []
