"""Every stage of `make gpu` runs to its end on a CPU, at tiny sizes."""

import json
import subprocess
import sys

import pytest
import torch

from scripts import BENCHMARKS, module, scripts  # noqa: F401


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be used instead")
def test_a_dry_run_of_every_stage(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", "--minutes", "14", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-4000:]
    lines = module("gpu_stages.results").read(tmp_path / "results.jsonl")
    ended = {line["stage"] for line in lines if line.get("case") == "all"}
    stages = module("gpu_stages.plan").STAGES
    assert ended == {stage.name for stage in stages}
    cases = {stage.name: 0 for stage in stages}
    for line in lines:
        cases[line["stage"]] += line["case"] not in ("start", "all") and "begun" not in line
    assert all(cases.values()), cases
    assert json.dumps(lines).count('"ok": false') == 0
    assert {line["gpu"] for line in lines} == {module("gpu_stages.results").DRY}
