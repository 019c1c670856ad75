"""`make gpu` without a GPU: what it writes, what it repeats, what it survives."""

import importlib
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
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_driver import CASES

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name):
    return importlib.import_module(name)


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
    said, _ = start(out, "endless", SECONDS="8").communicate(timeout=60)
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


class TestChecks:
    """A stage that finds nothing wrong has looked: each of its ways to judge, on what is wrong."""

    def test_results(self):
        judged = module("gpu_stages.agreement")._judged
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        assert judged([x], [x.double()], 1e-6)["ok"]
        one = x.clone()
        one[x.abs().argsort()[800]] = 0.0
        for wrong in (one, x * 1.01, x.clone().fill_(float("nan")), x[:1], x.roll(1)):
            assert not judged([wrong], [x.double()], 1e-3)["ok"]
            assert not judged([x, wrong], [x.double(), x.double()], 1e-3)["ok"]

    def test_one_element_of_many(self):
        judged = module("gpu_stages.agreement")._judged
        x = torch.ones(2**20)
        x[5] = 0.0
        assert not judged([x], [torch.ones(2**20, dtype=torch.float64)], 1e-2)["ok"]

    def test_equality(self):
        equal = module("gpu_stages.agreement")._equal
        x = torch.arange(5)
        assert equal([x, x], [x, x])["ok"]
        assert equal([x, x], [x, x + 1]) == {"ok": False, "error": "results [1] differ"}

    def test_steps(self, monkeypatch):
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
                trainer.tensors = lambda: {
                    n: t + (n == "net.encoder.head.bias") for n, t in tensors().items()
                }
            return trainer

        monkeypatch.setattr(captured, "training", nudged)
        assert captured._same(case, recipe, data)["differ"] == ["net.encoder.head.bias"]

    def test_the_reference_is_no_kernel(self, monkeypatch):
        cases = module("gpu_stages.cases")
        monkeypatch.setenv("PYVAE_BACKEND", "reference")
        cases.refuse_reference("bernoulli_nll", torch.device("cpu"))
        with pytest.raises(RuntimeError, match="bernoulli_nll runs as its reference: PYVAE_BACKEND"):
            cases.refuse_reference("bernoulli_nll", torch.device("cuda"))

    def test_tests_that_fail_or_hang(self, tmp_path, monkeypatch):
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


class TestPlan:
    def test_every_stage_is_a_function_that_says_what_it_does(self):
        for stage in module("gpu_stages.plan").STAGES:
            assert getattr(module(stage.where), stage.name).__doc__, stage.name

    def test_what_it_reads_exists(self):
        for stage in module("gpu_stages.plan").STAGES:
            for pattern in stage.reads:
                assert any(ROOT.glob(pattern)), (stage.name, pattern)

    def test_names_are_different_and_the_first_eleven_minutes_prove_and_measure(self):
        stages = module("gpu_stages.plan").STAGES
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names)
        spent = 0
        for stage in stages:
            spent += 0 if stage.beside else stage.seconds
            if spent > 660:
                break
        assert names.index(stage.name) > names.index("rates")

    def test_every_objective_has_a_rate(self):
        from pyvae.objectives import OBJECTIVES

        rates, variants = module("gpu_stages.rates"), module("bench_train").VARIANTS
        assert {*rates.OBJECTIVES, "beta-vae"} == set(OBJECTIVES)
        named = (rates.RATES, rates.POPULAR, rates.COMPILED, rates.POPULAR_COMPILED, rates.OF_OBJECTIVES)
        for name in itertools.chain(*named):
            assert "cuda" in variants[name].devices, name

    @pytest.mark.parametrize(
        ("files", "what"), [("STEP", "pyvae.engine.training"), ("TABLES", "pyvae.reproduce")]
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
        apart = ("pyvae/report/", "pyvae/errors", "pyvae/allocator")
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be used instead")
def test_a_dry_run_of_every_stage(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", "--minutes", "14", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-4000:]
    lines = lines_of(tmp_path)
    ended = {line["stage"] for line in lines if line.get("case") == "all"}
    stages = module("gpu_stages.plan").STAGES
    assert ended == {stage.name for stage in stages}
    cases = {stage.name: 0 for stage in stages}
    for line in lines:
        cases[line["stage"]] += line["case"] not in ("start", "all") and "begun" not in line
    assert all(cases.values()), cases
    assert json.dumps(lines).count('"ok": false') == 0
    assert {line["gpu"] for line in lines} == {module("gpu_stages.results").DRY}


class TestRunsThatGoOn:
    """A run of a published table that the time cuts off is packed, and unpacked by the next call."""

    def run_of(self, out, monkeypatch, seed=0):
        from pyvae.reproduce import study_of

        tables = module("gpu_stages.tables")
        monkeypatch.setattr(tables, "RUNS", out.parent / "runs")
        monkeypatch.setattr(tables, "RESULTS", out.parent / "results")
        study = study_of("beta-vae")
        said = []
        case = SimpleNamespace(out=out, dry=False, emit=lambda case, **values: said.append((case, values)))
        out.mkdir(exist_ok=True)
        return tables._OneRun("beta-vae", study, study.arms[0], seed, case), said

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


class TestTables:
    GPU = "NVIDIA H200"

    def lines(self):
        common = {"gpu": self.GPU, "torch": "2.11", "commit": "abc", "time": "2026-01-02T"}
        rate = {"steps_per_second": [1900, 2000, 2100]}
        number = {"quantity": "mig-chen", "published": {"value": 0.45, "high": 0.5}}
        scores = {"study": "tc-vae", "arm": "tc-vae-6"}
        found = [
            {"stage": "ops_agree", "case": "good", "ok": True},
            {"stage": "ops_agree", "case": "bad", "ok": False, "errors": [1e-9, 0.25]},
            {"stage": "captured", "case": "late", "cut": True},
            {"stage": "rates", "case": "pyvae --precision tf32", **rate},
            {"stage": "counted", "case": "pyvae --precision tf32", "kernels": 114.2},
            {"stage": "objectives", "case": "pyvae dip-vae", "ok": False, "error": "no | such kernel"},
            *(
                {
                    "stage": "published_tables",
                    "case": f"{s}",
                    **scores,
                    "results": {"numbers": [{**number, "ours": {"value": v}}]},
                }
                for s, v in ((0, 0.40), (1, 0.44))
            ),
        ]
        return [{**common, **line} for line in found]

    def text(self, lines):
        return module("gpu_stages.markdown").gpu_tables(lines, module("report").ops_table)

    def test_what_failed_is_shown_as_failed(self):
        text = self.text(self.lines())
        assert "| every op against float64, three dtypes, forward and gradient | 1 | 1 | 0 |" in text
        assert "| captured steps against uncaptured ones, bit for bit | 0 | 0 | 1 |" in text
        assert "| ops_agree: bad | errors [1e-09, 0.25] |" in text
        assert "| objectives: pyvae dip-vae | no \\| such kernel |" in text
        assert "| pyvae dip-vae | failed | - | - |" in text
        assert "| pyvae --precision tf32 | 2,000 | 12.5 | 114 |" in text
        assert "| tc-vae, tc-vae-6, mig-chen | 0.42, 0.4 to 0.44 of 2 seeds | 0.45 to 0.5 |" in text
        assert text.endswith("NVIDIA H200; torch 2.11; commit abc, 2026-01-02; medians.")

    def test_a_card_that_only_began_has_no_table(self):
        assert self.text([{**self.lines()[0], "case": "start"}]) == ""

    def test_a_dry_run_is_no_result(self):
        dry = [{**line, "gpu": module("gpu_stages.results").DRY} for line in self.lines()]
        assert self.text(dry) == ""

    def test_the_readme_has_them_when_their_files_are_there(self, tmp_path):
        results, report = module("gpu_stages.results"), module("report")
        slot = "<!-- results: gpu -->\n<!-- end -->\n"
        assert "Nothing has been measured on a GPU yet." in report.render(slot, tmp_path)
        for line in self.lines():
            results.append(tmp_path / "gpu-h200/results.jsonl", line)
        filled = report.render(slot, tmp_path)
        assert "#### NVIDIA H200" in filled
        assert report.render(filled, tmp_path) == filled

    def test_the_summary_says_what_to_do_next(self):
        text = module("gpu_stages.summary").summary(self.lines(), self.GPU, "2.11")
        assert "FAILED ops_agree: bad: errors [1e-09, 0.25]" in text
        assert "steps/s (minutes for 1.5M): --precision tf32 2,000 (12.5)" in text
        assert "next: mend what failed in ops_agree, objectives, in this order" in text
        assert "next: the next call begins with ops_agree, steps_agree" in text
        assert len(text.splitlines()) <= 20

    def test_the_summary_is_twenty_lines_whatever_happens(self):
        error = "def test():\n>   assert 1 == 2\nE   assert 1 == 2\n" * 9
        failed = [{**self.lines()[1], "case": str(i), "error": error} for i in range(30)]
        device = {
            **self.lines()[0],
            "stage": "kernels",
            "case": "tf32",
            "us": 400.0,
            "launches": 99.0,
            "kernels": [],
        }
        us = {"forward": 1.0}
        layouts = [
            {**self.lines()[0], "stage": "convolutions", "case": f"x, {layout}, {p}", "us": us}
            for layout in ("NHWC", "NCHW")
            for p in ("tf32", "bf16")
        ]
        rates = [
            {**self.lines()[0], "stage": stage, "case": case, "steps_per_second": [r, r, r]}
            for stage, case, r in (
                ("rates", "pyvae --precision bf16, captured", 1000),
                ("rates", "pyvae --no-capture", 2000),
                ("rates", "pyvae --precision fp32", 1900),
                ("compiled", "pyvae --precision tf32 --compile", 3000),
                ("popular", "popular code", 500),
            )
        ]
        lines = [*self.lines(), *failed, device, *layouts, *rates]
        text = module("gpu_stages.summary").summary(lines, self.GPU, "2.11")
        assert "FAILED ops_agree: 0: assert 1 == 2\n" in text
        assert "400: 100 us lie between launches" in text
        assert "bf16 is slower than tf32 (0.50x)" in text
        assert "torch.compile's networks are 1.50x as fast" in text
        assert "capture pays nothing" in text
        assert "convolutions in tf32: 1 us in NHWC (taken), 1 in NCHW" in text
        assert 15 < len(text.splitlines()) <= 20
