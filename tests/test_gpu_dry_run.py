"""Every stage of `make gpu` runs to its end on a CPU, at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import module, scripts  # noqa: F401


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be used instead")
def test_a_dry_run_of_every_stage(tmp_path):
    # processes of their own are started in test_gpu.py
    script = Path(__file__).with_name("gpu_dry.py")
    command = [sys.executable, str(script), "--dry", "--minutes", "14", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
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
