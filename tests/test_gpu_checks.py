"""A stage of `make gpu` that finds nothing wrong has looked: each of its ways to judge, on what is wrong."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scripts import BENCHMARKS, ROOT, module, scripts  # noqa: F401


def test_results():
    judged = module("gpu_stages.agreement")._judged
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert judged([x], [x.double()], 1e-6)["ok"]
    one = x.clone()
    one[x.abs().argsort()[800]] = 0.0
    for wrong in (one, x * 1.01, x.clone().fill_(float("nan")), x[:1], x.roll(1)):
        assert not judged([wrong], [x.double()], 1e-3)["ok"]
        assert not judged([x, wrong], [x.double(), x.double()], 1e-3)["ok"]


def test_one_element_of_many():
    judged = module("gpu_stages.agreement")._judged
    x = torch.ones(2**20)
    x[5] = 0.0
    assert not judged([x], [torch.ones(2**20, dtype=torch.float64)], 1e-2)["ok"]


def test_equality():
    equal = module("gpu_stages.agreement")._equal
    x = torch.arange(5)
    assert equal([x, x], [x, x])["ok"]
    assert equal([x, x], [x, x + 1]) == {"ok": False, "error": "results [1] differ"}


def test_steps(monkeypatch):
    """Another trace, or other weights, of the second of the two trainings."""
    captured = module("gpu_stages.captured")
    case = SimpleNamespace(device=torch.device("cpu"), dry=True)
    recipe, data = captured.recipe_of(captured.OBJECTIVES["dip-vae"]), captured.packed_data()
    assert captured._same(case, recipe, data)["ok"]
    make = captured.training

    def other(recipe, data, device, *, capture, **_):
        return make(replace(recipe, seed=recipe.seed + capture), data, device)

    monkeypatch.setattr(captured, "training", other)
    found = captured._same(case, recipe, data)
    assert not found["ok"]
    assert found["first_row"] == 0

    def nudged(recipe, data, device, *, capture, **_):
        trainer = make(recipe, data, device)
        if capture:
            tensors = trainer.tensors
            trainer.tensors = lambda: {n: t + (n == "net.encoder.head.bias") for n, t in tensors().items()}
        return trainer

    monkeypatch.setattr(captured, "training", nudged)
    assert captured._same(case, recipe, data)["differ"] == ["net.encoder.head.bias"]


def test_the_reference_is_no_kernel(monkeypatch):
    cases = module("gpu_stages.cases")
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    cases.refuse_reference("bernoulli_nll", torch.device("cpu"))
    with pytest.raises(RuntimeError, match="bernoulli_nll runs as its reference: PYVAE_BACKEND"):
        cases.refuse_reference("bernoulli_nll", torch.device("cuda"))


def test_tests_that_fail_or_hang(tmp_path, monkeypatch):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import time\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\ndef test_hang(): time.sleep(600)\n"
        "def test_last(): pass\n"
    )
    said = {}
    case = SimpleNamespace(
        out=tmp_path, skipped=set(), left=99.0, emit=lambda name, **line: said.update({name: line})
    )
    monkeypatch.setenv("PYVAE_GPU_TEST_SECONDS", "2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, BENCHMARKS))))
    module("gpu_stages.pytests")._run(case, [str(tests), "--rootdir", str(tmp_path)], processes=1)
    found = {name.split("::")[-1]: line.get("ok") for name, line in said.items()}
    assert found == {
        "test_good": True,
        "test_bad": False,
        "test_hang": False,
        "test_last": True,
        "pytest": None,
    }
    assert "assert 1 == 2" in next(line["error"] for name, line in said.items() if "bad" in name)
