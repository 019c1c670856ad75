"""The fused engine's stages of `make gpu` find what is wrong: each of their ways to judge, on what is wrong."""

import json
import os
import stat
import time
from functools import lru_cache
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from scripts import BENCHMARKS, ROOT, module, scripts  # noqa: F401

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be used instead")


def case_of(*, dry=True):
    return SimpleNamespace(device=torch.device("cpu"), dry=dry)


class Calls(SimpleNamespace):
    """Cases that keep what they find."""

    def __call__(self, name, call, *_):
        self.said = {**getattr(self, "said", {}), name: call()}


def stage(name):
    return module(f"gpu_stages.{name}")


class TestAStep:
    """One whole step, made once; then each thing that it leaves is spoilt."""

    @staticmethod
    @lru_cache(maxsize=1)
    def made():
        """What the stage said, and what it judged."""
        agree = stage("fused_agree")
        given, judge = [], agree.judged_step
        with mock.patch.object(agree, "judged_step", lambda *x: given.extend(x) or judge(*x)):
            found = agree.one_step(case_of(), stage("fused_run").Way())
        return found, given

    def judged(self, given):
        return stage("fused_agree").judged_step(*given)

    def test_a_right_one(self):
        found, given = self.made()
        assert found["ok"], found
        # an interpreter sums as float64 does but for 1e-7: what is not rounded alike shows
        assert found["median_gradient"] < 1e-4
        assert found["worst_gradient"][1] < 1e-3
        assert self.judged(given) | {"reference_seconds": found["reference_seconds"]} == found

    @pytest.mark.parametrize("place", ["gradient", "master", "weights", "nll", "kl", "flags"])
    @pytest.mark.parametrize("factor", [1.1, float("nan")])
    def test_what_is_spoilt_is_seen(self, place, factor):
        _, given = self.made()
        buffers, gradient = given[0].members.buffers, given[0].plan.gradients["decoder.2.weight"]
        held = {
            "gradient": buffers["gradients"][0, gradient.offset : gradient.offset + gradient.stride],
            "nll": buffers["row"][0, 1],
            "kl": buffers["row"][0, 7],
        }.get(place, buffers.get(place))
        before = held.clone()
        try:
            held.copy_(before * factor if held.is_floating_point() else before + 1)
            assert not self.judged(given)["ok"]
        finally:
            held.copy_(before)
        assert self.judged(given)["ok"]

    def test_weights_that_move_too_far_are_seen(self):
        _, (run, before, *rest) = self.made()
        further = before - (run.members.buffers["master"][0] - before) * 0.1
        assert not self.judged((run, further, *rest))["ok"]

    def test_another_rounding_is_seen(self):
        _, (run, before, right, _) = self.made()
        net = stage("fused_run").net_of(0).double()
        images = stage("fused_run").images_of(True).images(run.orders[0].draw(0, 1)[0]).double()
        coarse = stage("fused_reference").rounded_step(net, 0, images, 4.0, "bf16")
        assert not self.judged((run, before, coarse, "fp16"))["ok"]
        assert set(coarse.gradients) == set(right.gradients)


def test_two_trainings_that_differ():
    agree = stage("fused_agree")
    case = case_of()
    one = agree.several(case, (0,), 1, stage("fused_run").Way())
    two = agree.several(case, (1,), 1, stage("fused_run").Way())
    assert agree.same(lambda: one, lambda: one)["ok"]
    found = agree.same(lambda: one, lambda: two)
    assert not found["ok"]
    assert "stats" in found["differ"]
    one.members.buffers["flags"].fill_(1)
    assert not agree.same(lambda: one, lambda: one)["ok"]


def test_a_member_that_sees_the_others(monkeypatch):
    agree = stage("fused_agree")
    make = agree.several

    def disturbed(case, seeds, steps, way):
        run = make(case, seeds, steps, way)
        run.members.buffers["stats"][-1, 3] += len(seeds) > 1
        return run

    way = stage("fused_run").Way()
    assert agree.alone_and_among(case_of(), way)["ok"]
    monkeypatch.setattr(agree, "several", disturbed)
    assert agree.alone_and_among(case_of(), way)["differ"] == ["stats"]


def test_a_kernel_that_does_not_compile_is_told(monkeypatch):
    agree, way = stage("fused_agree"), stage("fused_run").Way()
    paths = (BENCHMARKS, ROOT / "tests", ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setattr(
        agree, "_tasks", lambda case: iter([agree._Task(way, None, 0), agree._Task(way, None, 99)])
    )
    found = agree._compile(case_of())
    assert not found["ok"]
    assert found["error"] == "fp16, plain graph: IndexError: launch 99: list index out of range"


def test_stages_that_change_a_result(monkeypatch):
    times, run = stage("fused_times"), stage("fused_run")
    make = run.plan_of

    def spoilt(way, *, dry, varied=None):
        plan = make(way, dry=dry, varied=varied)
        if varied and varied.stages == 2:
            plan.forward = [x for x in plan.forward if not varied.takes(x)]
        return plan

    loss = next(one for one in run.VARIED if one.name == "loss")
    monkeypatch.setattr(times, "plan_of", spoilt)
    found = times.stages_of(case_of(), loss, 1)
    assert not found["ok"]
    assert "2 stages: row" in found["error"]
    assert found["planned"] == 1


def test_varied_launches_are_in_the_plan():
    run = stage("fused_run")
    counts = {}
    for one in run.VARIED:
        plan = run.plan_of(run.Way(), dry=True, varied=one._replace(stages=7))
        counts[one.name] = [x.label for x in (*plan.forward, *plan.backward) if x.stages == 7]
    assert counts["conv_down at side 16"] == ["encoder.trunk.2 forward", "decoder.11 data gradient"]
    assert [len(labels) for labels in counts.values()] == [2, 1, 1]


class TestPredictions:
    def test_a_slow_kernel_is_marked(self):
        times, predicted = stage("fused_times"), stage("predictions").Predicted(2.0, 1.0)
        assert times.kernel_row("a", 4.0, 1.0, 1, predicted) == ["a", 4.0, 3.0, 2.0, False]
        assert times.kernel_row("a", 4.3, 1.0, 1, predicted) == ["a", 4.3, 3.3, 2.0, True]
        assert times.kernel_row("a", 25.0, 1.0, 16, predicted) == ["a", 25.0, 1.5, 1.0, False]
        assert times.kernel_row("a", 27.0, 1.0, 16, predicted)[-1]
        assert times.kernel_row("a", 99.0, 1.0, 1, None) == ["a", 99.0, 98.0, None, False]

    def test_they_are_read_from_what_is_there(self, tmp_path, monkeypatch):
        predictions = stage("predictions")
        monkeypatch.setattr(predictions, "FILE", tmp_path / "predicted.json")
        assert predictions.kernels("fp16") == {}
        rows = [
            {"label": "a", "us_alone": 2, "us_many": 1.5},
            {"label": "b", "us_alone": 1.0, "us_many": None},
            # of 320 MB for sixteen, which come from memory, and of 16, which do not
            {"label": "c", "us_alone": 6.0, "us_many": 2.9, "megabytes": 20.0},
            {"label": "d", "us_alone": 1.0, "us_many": 0.1, "megabytes": 1.0},
        ]
        held = {"clock_ghz": 1.98, "operands": {"fp16": {"kernels": rows}}}
        predictions.FILE.write_text(json.dumps(held))
        assert predictions.kernels("fp16") == {
            "a": (2.0, 1.5),
            "b": (1.0, None),
            "c": (6.0, 5.97),
            "d": (1.0, 0.1),
        }
        assert predictions.kernels("tf32") == {}
        predictions.FILE.write_text("{")
        assert predictions.kernels("fp16") == {}

    def test_early_launches_that_save_too_little(self):
        rule = stage("fused_times")._rule
        assert rule(0.6)["rule"] == "early launches save 0.60 us each, 0.3 or more: they pay"
        assert "leave them" in rule(0.2)["rule"]


class TestTraces:
    def rows(self, nll=30.0, kl=20.0, steps=20_000, early=None):
        return [
            (step, [0.0, early if early and 0 < step <= 200 else nll, kl, 0.0, 0.0, 0.0, kl])
            for step in range(0, steps, 100)
        ]

    def test_near_ones(self):
        near = stage("fused_training").near
        assert near(self.rows(), self.rows(nll=30.2, kl=21.0))["ok"]
        for other in (
            self.rows(early=31.0),
            self.rows(early=30.0, nll=34.0),
            self.rows(kl=25.0),
            self.rows(early=30.0, nll=float("nan")),
            self.rows(early=float("nan")),
            self.rows(kl=float("nan")),
        ):
            assert not near(self.rows(), other)["ok"]

    def test_what_is_shown(self):
        shown = stage("fused_training").shown(self.rows())
        assert [row[0] for row in shown] == [*range(0, 20_000, 1000), 19_900]
        assert shown[0] == [0, 30.0, 20.0]

    def test_headroom(self):
        headroom = stage("fused_training").headroom
        assert headroom(65504.0 / 8, 65504.0) == 3.0
        assert headroom(131008.0, 65504.0) == -1.0
        assert headroom(0.0, 65504.0) is None

    def test_a_trainer_that_makes_other_steps(self, monkeypatch):
        training = stage("fused_training")
        rows = self.rows(steps=400)
        other = [*rows[:3], (300, [1.0, *rows[3][1][1:]])]
        monkeypatch.setattr(training, "_recipe", lambda case, **changes: changes)
        case = case_of(dry=False)
        monkeypatch.setattr(training, "images_of", lambda dry: None)

        def trained(rows):
            ring = SimpleNamespace(copy=lambda first, stop: SimpleNamespace(wait=lambda: rows))
            made = SimpleNamespace(advance=lambda steps: None, ledger=SimpleNamespace(ring=ring))
            monkeypatch.setattr(training, "training", lambda *_, **__: made)
            return training._trainer(case, self.rows(steps=400))

        assert trained(rows) == {"ok": True}
        assert trained(other) == {"ok": False, "first_step_that_differs": 300}


class TestSanitizer:
    def tool(self, tmp_path, script):
        tool = tmp_path / "compute-sanitizer"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
        return tool

    def results(self, tmp_path, monkeypatch, script):
        sanitized = stage("fused_sanitized")
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        self.tool(tmp_path, script)
        case = Calls(device=None, dry=False, out=tmp_path, skipped={"racecheck"})
        sanitized.fused_sanitized(case)
        assert not list(tmp_path.glob("*.tmp.txt"))
        return case.said

    def test_each_tool_judges(self, tmp_path, monkeypatch):
        script = 'test "$2" = memcheck && exit 0\necho "========= Uninitialized read"; exit 9'
        said = self.results(tmp_path, monkeypatch, script)
        assert said.keys() == {"memcheck", "initcheck"}
        assert said["memcheck"]["ok"]
        assert not said["initcheck"]["ok"]
        assert "Uninitialized read" in said["initcheck"]["error"]

    def test_a_step_that_fails_is_no_good_one(self, tmp_path, monkeypatch):
        said = self.results(tmp_path, monkeypatch, "echo no such device; exit 1")
        assert said["memcheck"] == {"ok": False, "error": "ended with 1: no such device no such device"}

    def test_one_that_takes_too_long_is_tried_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(stage("fused_sanitized"), "_SECONDS", 0.3)
        start = time.monotonic()
        said = self.results(tmp_path, monkeypatch, "exec sleep 60")
        assert time.monotonic() - start < 10
        assert said["memcheck"]["cut"]

    def test_without_it_that_is_said(self, monkeypatch):
        sanitized = stage("fused_sanitized")
        monkeypatch.setattr(sanitized, "sanitizer", lambda: None)
        monkeypatch.setattr(sanitized, "a_step", lambda *_, **__: True)
        case = Calls(device=None, dry=False)
        sanitized.fused_sanitized(case)
        assert case.said == {
            "compute-sanitizer": {"skipped": "compute-sanitizer is not on the path", "ok": True}
        }


def test_what_is_tried_of_a_launch():
    tiles = stage("fused_tiles")
    one = [(("rows", 32),), (("rows", 64),), (("warps", 8),)]
    two = [(("rows", 32), ("warps", 2)), (("rows", 32), ("warps", 8))]
    assert tiles.cuts_of("rows=32,64 warps=8 | rows=32 warps=2,8 | warps=8") == one + two
    for cuts in tiles.sweep(torch.device("cpu")).values():
        today, *others = cuts
        launches = [cut.launch(cut.plan(dry=False)) for cut in others]
        assert today.launch(today.plan(dry=False)) not in launches or today.label == "Adam, next batch"


def test_a_cut_that_changes_a_result_is_named(monkeypatch):
    tiles = stage("fused_tiles")
    label = "decoder.2 forward"
    cuts = [tiles.Cut(stage("fused_run").Way(), label, changes) for changes in [(), (("dense_columns", 64),)]]
    compiled = {cut: SimpleNamespace(result=lambda timeout: "") for cut in cuts}
    case = SimpleNamespace(device=torch.device("cpu"), dry=True, left=60.0)
    assert tiles._measure(case, tiles._Beds(case), cuts, compiled)["ok"]
    launch = tiles.Cut.launch

    def spoilt(cut, plan):
        # half of its outputs
        found = launch(cut, plan)
        return found._replace(programs=found.programs // 2) if cut.changes else found

    monkeypatch.setattr(tiles.Cut, "launch", spoilt)
    found = tiles._measure(case, tiles._Beds(case), cuts, compiled)
    assert found["error"] == "dense_columns=64: at decoder.2 (not finite)"
