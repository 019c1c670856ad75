"""`make gpu` without a GPU: what it writes, what it repeats, what it survives."""

import ast
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gpu_driver import CASES

from scripts import ROOT, module, scripts  # noqa: F401


def start(out, *stages, **environment):
    command = [sys.executable, str(ROOT / "tests/gpu_driver.py"), str(out), *stages]
    environment = {**os.environ, "NOTES": str(out.parent / "notes"), **environment}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def lines_of(out):
    return module("gpu_stages.results").read(out / "results.jsonl")


def cases_of(out):
    newest = module("gpu_stages.results").newest(lines_of(out))
    return {case: line for (_, case), line in newest.items() if case not in ("start", "all")}


def test_killed_at_any_moment_it_keeps_what_is_done_and_goes_on_there(tmp_path):
    out, notes = tmp_path / "out", tmp_path / "notes"
    for least in (1, 4, 8):
        call = start(out, "naps")
        while not notes.exists() or len(notes.read_text().splitlines()) < least:
            assert call.poll() is None
            time.sleep(0.01)
        call.send_signal(signal.SIGKILL)
        call.wait()
        time.sleep(0.5)  # its processes notice
        done = notes.read_text().splitlines()
        time.sleep(0.5)
        assert notes.read_text().splitlines() == done
        # one may have ended without time to say so
        assert len(set(done) - cases_of(out).keys()) <= 1
        with (out / "results.jsonl").open("ab") as file:
            file.write(b'{"stage": "naps", "ca')  # as a kill within a write leaves it
    call = start(out, "naps")
    said, _ = call.communicate(timeout=60)
    assert call.returncode == 0, said
    assert cases_of(out).keys() == {f"nap {i}" for i in range(CASES)}
    repeated = Counter(notes.read_text().splitlines())
    assert sum(count - 1 for count in repeated.values()) <= 3
    before = notes.read_text()
    said, _ = start(out, "naps").communicate(timeout=60)
    assert "naps: nothing is missing or stale" in said
    assert notes.read_text() == before


def test_a_hang_and_a_crash_cost_their_own_case(tmp_path):
    out = tmp_path / "out"
    said, _ = start(out, "hangs", "naps").communicate(timeout=120)
    found = {case: line for case, line in cases_of(out).items() if line["stage"] == "hangs"}
    good = {case for case, line in found.items() if line.get("ok") is True}
    assert good == {"first", "between", "last"}, said
    for case in ("hang in C", "crash", "hang"):
        assert "its process ended with" in found[case]["error"]
    assert "11" in found["crash"]["error"]
    assert found["wrong"]["error"] == "is wrong"
    assert "ZeroDivisionError" in found["raises"]["error"]
    assert "hangs: 3 done, 5 FAILED" in said
    assert f"naps: {CASES} done" in said
    summary = (out / "summary.txt").read_text()
    assert "FAILED hangs: wrong: is wrong" in summary
    assert "mend what failed in hangs" in summary
    assert len(summary.splitlines()) <= 20
    assert "ended with 1: hung in File" in found["hang"]["error"]
    assert "gpu_driver.py" in found["hang"]["error"]


def test_what_the_time_cuts_off_is_no_failure(tmp_path):
    out = tmp_path / "out"
    said, _ = start(out, "endless", SECONDS="12").communicate(timeout=60)
    found = cases_of(out)
    assert found["first"]["ok"] is True
    assert found["second"]["cut"] is True
    assert "endless: 1 done, 1 cut off, its time was over" in said


def test_the_time_of_the_command_is_that_of_its_stages(tmp_path):
    out = tmp_path / "out"
    start_ = time.monotonic()
    said, _ = start(out, "endless", "naps", MINUTES="0.25").communicate(timeout=60)
    assert time.monotonic() - start_ < 25
    assert cases_of(out)["second"]["cut"] is True
    assert "no time left for naps" in said


def test_a_command_that_is_ended_still_sums_up(tmp_path):
    out = tmp_path / "out"
    call = start(out, "endless")
    while not any(line["case"] == "second" for line in lines_of(out)):
        time.sleep(0.05)
    call.terminate()
    call.communicate(timeout=30)
    assert call.returncode != 0
    assert (
        "endless" in (out / "summary.txt").read_text() or "1 cases done" in (out / "summary.txt").read_text()
    )


def test_a_stage_that_fails_outside_of_its_cases_is_told(tmp_path):
    out = tmp_path / "out"
    said, _ = start(out, "broken", "naps").communicate(timeout=90)
    assert "FAILED broken: start" in said
    assert f"naps: {CASES} done" in said
    assert "no such thing" in (out / "log.txt").read_text()


class TestWhatIsDone:
    GPU = "NVIDIA H100 80GB HBM3"

    def line(self, stage, case="one", **changes):
        results = module("gpu_stages.results")
        good = {"stage": stage.name, "case": case, "code": results.code_of(stage), "gpu": self.GPU}
        return {**good, "torch": "2.11", "time": "1", **changes}

    def stage(self, **changes):
        stage = module("gpu_stages.plan").Stage("ops_agree", "gpu_stages.agreement", 9, ("kernels/*.py",))
        return replace(stage, **changes)

    def done(self, *lines, stage=None):
        stage = stage or self.stage()
        return set(module("gpu_stages.results").done(lines, stage, gpu=self.GPU, torch="2.11"))

    def test_right_results_of_this_code(self):
        line = self.line(self.stage())
        assert self.done(line) == {"one"}
        assert self.done({**line, "ok": True}) == {"one"}
        for change in ({"ok": False}, {"cut": True}, {"code": "old"}, {"torch": "2.12"}, {"begun": True}):
            assert self.done({**line, **change}) == set(), change
        assert self.done({**line, "stage": "other"}) == set()

    def test_the_last_line_counts(self):
        line = self.line(self.stage())
        assert self.done(line, {**line, "ok": False}) == set()
        assert self.done({**line, "ok": False}, line) == {"one"}
        assert self.done(line, {**line, "begun": True}) == {"one"}

    def test_what_failed_is_tried_again_and_nothing_else(self):
        line = self.line(self.stage())
        ended = {**line, "case": "all"}
        assert self.done(line, ended) == {"one", "all"}
        assert self.done(line, {**line, "case": "two", "ok": False}, ended) == {"one"}
        assert self.done(line, {**line, "case": "two", "ok": False, "code": "old"}, ended) == {"one", "all"}

    def test_lines_of_another_version_are_passed_over(self, tmp_path):
        results = module("gpu_stages.results")
        path = tmp_path / "results.jsonl"
        for odd in (
            {"stage": "s"},
            {"stage": [], "case": "a", "time": "1"},
            {"stage": "s", "case": "a", "time": 5},
        ):
            results.append(path, odd)
        with path.open("ab") as file:
            file.write(b"\xff\xfe[1]\n[2]\n")
        results.append(path, good := {"stage": "s", "case": "a", "time": "1"})
        assert results.read(path) == [good]

    def test_another_card_has_other_times_and_the_same_truth(self):
        line = {**self.line(self.stage()), "gpu": "NVIDIA H200"}
        assert self.done(line) == {"one"}
        assert self.done(line, stage=self.stage(per_card=True)) == set()
        dry = {**line, "gpu": module("gpu_stages.results").DRY}
        assert self.done(dry) == set()

    def test_code_changes_with_its_files(self, tmp_path, monkeypatch):
        results = module("gpu_stages.results")
        monkeypatch.setattr(results, "ROOT", tmp_path)
        (tmp_path / "kernels").mkdir()
        file = tmp_path / "kernels/a.py"
        file.write_text("1")
        first = results.code_of(self.stage())
        file.write_text("2")
        second = results.code_of(self.stage())
        (tmp_path / "other.py").write_text("3")
        assert first != second == results.code_of(self.stage())
        file.rename(tmp_path / "kernels/b.py")
        assert results.code_of(self.stage()) != second

    def test_results_of_every_folder_are_read(self, tmp_path):
        results = module("gpu_stages.results")
        for i, folder in enumerate(("gpu-b", "gpu-a", "other")):
            results.append(
                tmp_path / folder / "results.jsonl", {"stage": "s", "case": folder, "time": str(i)}
            )
        results.append(tmp_path / "out/results.jsonl", {"stage": "s", "case": "out", "time": "0.5"})
        found = [line["case"] for line in results.known(tmp_path, tmp_path / "out")]
        assert found == ["gpu-b", "out", "gpu-a"]


class TestPlan:
    def test_every_stage_is_a_function_that_says_what_it_does(self):
        for stage in module("gpu_stages.plan").STAGES:
            assert getattr(module(stage.where), stage.name).__doc__, stage.name

    def test_what_it_reads_exists(self):
        for stage in module("gpu_stages.plan").STAGES:
            for pattern in stage.reads:
                assert any(ROOT.glob(pattern)), (stage.name, pattern)

    def test_names_are_different_and_nine_and_a_half_minutes_prove_and_measure_both_engines(self):
        """All but a sweep of tiles, which is for those who cut kernels anew."""
        stages = module("gpu_stages.plan").STAGES
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names)
        spent, within = 0, []
        for stage in stages:
            spent += 0 if stage.beside else stage.seconds
            if spent > 570:
                break
            within.append(stage.name)
        fused = {name for name in names if name.startswith("fused")} - {"fused_tiles"}
        assert {*fused, "early_launches", "ensembles", "rates"} <= set(within)
        # rates of steps that were not looked at mean nothing
        assert within.index("fused_agree") < within.index("fused_rates")

    def test_results_become_stale_with_what_the_stages_share(self):
        plan, files = module("gpu_stages.plan"), module("gpu_stages.results")._files
        for stage in plan.STAGES:
            if not stage.name.startswith(("fused", "early")):
                continue
            read = {path.stem for path in files(stage.reads)} | {"cases"}
            tree = ast.parse((ROOT / f"benchmarks/{stage.where.replace('.', '/')}.py").read_text())
            modules = {
                name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpu_stages")
                for name in (
                    [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
                )
            }
            assert modules <= read, stage.name

    def test_every_objective_has_a_rate(self):
        from pyvae.objectives import OBJECTIVES

        rates, variants = module("gpu_stages.rates"), module("bench_train").VARIANTS
        assert {*rates.OBJECTIVES, "beta-vae"} == set(OBJECTIVES)
        named = (rates.RATES, rates.POPULAR, rates.COMPILED, rates.POPULAR_COMPILED, rates.OF_OBJECTIVES)
        for name in itertools.chain(*named):
            assert "cuda" in variants[name].devices, name

    @pytest.mark.parametrize(
        ("files", "what"),
        [
            ("STEP", "pyvae.engine.training"),
            ("FUSED", "pyvae.engine.fused.members"),
            ("TABLES", "pyvae.studies.reproduce"),
        ],
    )
    def test_results_become_stale_with_all_that_is_imported(self, files, what):
        reads = getattr(module("gpu_stages.plan"), files)
        read = {str(path.relative_to(ROOT)) for path in module("gpu_stages.results")._files(reads)}
        code = f"import {what}, sys; print(*(n for n in sys.modules if n.startswith('pyvae.')))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        imported = {name.replace(".", "/") + ".py" for name in done.stdout.split()}
        # no result depends on what is drawn and said
        apart = ("pyvae/report/", "pyvae/errors", "pyvae/base/allocator")
        assert {f for f in imported - read if (ROOT / f).is_file() and not f.startswith(apart)} == set()


def test_without_a_gpu_it_says_what_it_would_need(monkeypatch, capsys):
    gpu = module("gpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "gpu_name", lambda: (_ for _ in ()).throw(OSError("no NVIDIA driver")))
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert str(stopped.value).startswith("make gpu needs an NVIDIA GPU")
    assert "\n" not in str(stopped.value)


def test_a_folder_is_named_after_its_card():
    assert module("gpu").folder_of("NVIDIA H100 80GB HBM3").name == "gpu-h100-80gb-hbm3"


class TestRunsThatGoOn:
    """A run of a published table that the time cuts off is packed, and unpacked by the next call."""

    def run_of(self, out, monkeypatch, seed=0):
        from pyvae.studies.reproduce import study_of

        tables = module("gpu_stages.tables")
        monkeypatch.setattr(tables, "RUNS", out.parent / "runs")
        monkeypatch.setattr(tables, "RESULTS", out.parent / "results")
        study = study_of("beta-vae")
        said = []
        case = SimpleNamespace(out=out, dry=False, emit=lambda case, **values: said.append((case, values)))
        out.mkdir(exist_ok=True)
        return tables._OneRun("beta-vae", study, study.arms[0], seed, "tf32", case), said

    def train(self, one, step):
        from pyvae.engine import checkpoint

        recipe = replace(one._study.recipe(one._arm, "dsprites"), precision="tf32", seed=one._seed)
        run = one._run
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.json").write_text(json.dumps(recipe.to_json()))
        (run / "trace.csv").write_text(f"step\n{step}\n")
        checkpoint.save(run / "checkpoints", checkpoint.Checkpoint(step, {"x": torch.arange(3.0) + step}, {}))

    def test_the_newest_pack_of_this_recipe(self, tmp_path, monkeypatch):
        one, said = self.run_of(tmp_path / "out", monkeypatch)
        self.train(one, 500)
        one._save()
        home = tmp_path / "results/gpu-a-card"
        home.mkdir(parents=True)
        one._pack.rename(home / one._pack.name)
        self.train(one, 700)
        one._save()
        assert [values["steps"] for _, values in said] == [500, 700]
        assert said[0][0] == "beta-vae, beta-1, seed 0: so far"
        trace = (one._run / "trace.csv").read_text()
        for lost in (one._pack, home / one._pack.name):
            shutil.rmtree(one._run)
            one._unpack()
            assert (one._run / "trace.csv").read_text() == trace
            lost.unlink()
            trace = "step\n500\n"
        shutil.rmtree(one._run)
        one._unpack()
        assert not one._run.exists()

    def test_what_lies_there_and_is_ahead_stays(self, tmp_path, monkeypatch):
        one, _ = self.run_of(tmp_path / "out", monkeypatch)
        self.train(one, 500)
        one._save()
        self.train(one, 900)
        one._unpack()
        assert (one._run / "trace.csv").read_text() == "step\n900\n"

    def test_a_pack_of_another_recipe_or_a_torn_one_is_left_alone(self, tmp_path, monkeypatch):
        one, _ = self.run_of(tmp_path / "out", monkeypatch)
        self.train(one, 500)
        recipe = json.loads((one._run / "recipe.json").read_text())
        (one._run / "recipe.json").write_text(json.dumps({**recipe, "batch_size": 32}))
        one._save()
        shutil.rmtree(one._run)
        one._unpack()
        assert not one._run.exists()
        one._pack.write_bytes(one._pack.read_bytes()[:100])
        one._unpack()
        assert not one._run.exists()

    def test_a_large_one_is_not_packed(self, tmp_path, monkeypatch):
        one, said = self.run_of(tmp_path / "out", monkeypatch)
        monkeypatch.setattr(module("gpu_stages.tables"), "PACKED_BYTES", 100)
        self.train(one, 500)
        one._save()
        assert said
        assert list((tmp_path / "out").iterdir()) == []
