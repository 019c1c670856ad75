"""The benchmarks measure what they say: gate, order, statistics, comparison, tables."""

import contextlib
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from waiting import OnlyKernels

import pyvae

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
OPS = sorted(set(pyvae.__all__) - {"tc_batch"})  # one with permute_dims, which it is the use of
CPU = torch.device("cpu")
MACHINE = {"cpu": "a CPU", "gpu": None, "threads": 1, "torch": "2", "commit": "abc", "date": "2026-01-01"}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name):
    return importlib.import_module(name)


def run_script(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def double_case(**changes):
    """Twice a vector, of which one function is right and one wrong."""
    return script("interleaved").Case(
        **{
            "op": "double",
            "what": "value",
            "size": (1000,),
            "make": lambda device, generator: (torch.rand(1000, device=device, generator=generator) + 1,),
            "functions": {"eager": lambda x: (x + x,), "pyvae": lambda x: (2 * x,)},
            "expect": lambda x: [2 * x],
            "moved": 8000,
            **changes,
        }
    )


TIMING = {"rounds": 4, "block_seconds": 1e-4, "limit_seconds": 60}


class TestGate:
    def test_a_wrong_result_is_not_timed(self):
        calls = []

        def wrong(x):
            calls.append(1)
            return (2.001 * x,)

        case = double_case(functions={"eager": lambda x: (x + x,), "pyvae": wrong})
        rows, refused = script("interleaved").measure(case, CPU, **TIMING)
        assert len(refused) == 1
        assert "double 1000, pyvae: wrong result" in refused[0]
        assert "us" in rows[0]
        assert "us" not in rows[1]
        assert len(calls) == 1

    @pytest.mark.parametrize(
        "result", [lambda x: (x * torch.nan,), lambda x: (2 * x, x), lambda x: (2 * x[:-1],)]
    )
    def test_nan_shapes_and_numbers_of_results(self, result):
        case = double_case()
        x = case.inputs(CPU)[0]
        with pytest.raises(AssertionError):
            case.gate("pyvae", x, result(*x))

    def test_the_tolerance_is_of_the_largest_value(self):
        case = double_case(expect=lambda x: [2e-6 * x])
        (x,) = case.inputs(CPU)[0]
        case.gate("pyvae", (x,), (2.00001e-6 * x,))
        with pytest.raises(AssertionError):
            case.gate("pyvae", (x,), (2.002e-6 * x,))

    def test_what_fails_is_told_and_does_not_end_the_others(self):
        def broken(x):
            raise RuntimeError("no such kernel")

        case = double_case(functions={"eager": lambda x: (x + x,), "pyvae": broken})
        rows, refused = script("interleaved").measure(case, CPU, **TIMING)
        assert rows[1]["refused"] == "failed: no such kernel"
        assert refused == []

    def test_the_driver_fails_and_keeps_the_others(self, tmp_path, monkeypatch):
        bench_ops = script("bench_ops")
        good = double_case()
        bad = double_case(op="triple", expect=lambda x: [3 * x])
        monkeypatch.setattr(bench_ops, "cases", lambda ops: [bad, good])
        with pytest.raises(SystemExit, match="triple 1000, eager: wrong result"):
            self.drive(tmp_path / "ops.json", monkeypatch)
        result = json.loads((tmp_path / "ops.json").read_text())
        assert [row["op"] for row in result["cases"] if "us" in row] == ["double", "double"]
        assert any("triple 1000, eager: wrong result" in line for line in result["failed"])

    def test_the_driver_tells_what_it_had_no_time_for(self, tmp_path, monkeypatch, capsys):
        bench_ops = script("bench_ops")
        monkeypatch.setattr(bench_ops, "cases", lambda ops: [double_case(), double_case(op="triple")])
        clock = iter([0.0, 1.0, 1e9])
        monkeypatch.setattr(bench_ops, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        self.drive(tmp_path / "ops.json", monkeypatch, "--minutes", "1")
        assert json.loads((tmp_path / "ops.json").read_text())["left_out"] == ["triple 1000"]
        assert "no time left for triple 1000" in capsys.readouterr().out

    def test_the_reference_is_not_timed_as_pyvae(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PYVAE_BACKEND", "reference")
        with pytest.raises(SystemExit, match="gather_bits would be timed as its reference: PYVAE_BACKEND"):
            self.drive(tmp_path / "ops.json", monkeypatch)
        assert not (tmp_path / "ops.json").exists()

    def drive(self, out, monkeypatch, *more):
        arguments = ["bench_ops.py", "--rounds", "3", "--block", "0", "--out", str(out), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        threads = torch.get_num_threads()
        try:
            script("bench_ops").main()
        finally:
            torch.set_num_threads(threads)


class TestTiming:
    def test_functions_run_in_turn_and_in_another_order_every_round(self):
        interleaved = script("interleaved")
        seen = []
        runners = {name: interleaved.Runner(lambda i, name=name: seen.append(name)) for name in "abc"}
        timing = {**TIMING, "block_seconds": 0, "rounds": 3}
        times = interleaved.interleave(runners, CPU, **timing)
        assert "".join(seen[-9:]) == "abcbcacab"
        assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 3)

    def test_inputs_are_rotated(self):
        case = double_case(sets=3)
        sets = case.inputs(CPU)
        assert len({float(x[0]) for (x,) in sets}) == 3
        seen = []
        seeing = replace(case, functions={"eager": lambda x: (seen.append(float(x[0])), (x + x,))[1]})
        runner = script("interleaved").prepare(seeing, "eager", sets)
        seen.clear()
        for i in range(6):
            runner.run(i)
        assert seen == [float(x[0]) for (x,) in sets] * 2

    @pytest.mark.parametrize(
        ("moved", "expected"), [(1 << 20, 1), (8 << 20, 8), (32 << 20, 2), (1 << 30, 2), (5 << 20, 13)]
    )
    def test_rotation_exceeds_the_cache_twice(self, moved, expected):
        assert script("interleaved").rotation(moved, 32 << 20) == expected

    def test_three_rounds_whatever_the_limit(self):
        interleaved = script("interleaved")
        runners = {"a": interleaved.Runner(lambda i: None)}
        times = interleaved.interleave(runners, CPU, rounds=50, block_seconds=0, limit_seconds=0)
        assert len(times["a"]) == 3

    def test_microseconds_are_per_call(self, monkeypatch):
        interleaved = script("interleaved")
        clock = iter(range(1000))
        monkeypatch.setattr(interleaved.time, "perf_counter", lambda: next(clock) * 1.0)
        runners = {"graph": interleaved.Runner(lambda i: None, calls=4)}
        times = interleaved.interleave(runners, CPU, rounds=3, block_seconds=2, limit_seconds=1e9)
        # a block lasts a second of this clock and holds two runs of four calls
        assert times["graph"] == [1e6 / 8] * 3

    def test_rows(self):
        rows, _ = script("interleaved").measure(double_case(compiled=None), CPU, **TIMING)
        for row in rows:
            low, median, high = row["us"]
            assert 0 < low <= median <= high
            assert row["gb_per_s"] == pytest.approx(8000 / median / 1e3, rel=1e-3)
            assert row["of_copy"] > 0
        assert rows[0]["speedup"] == 1
        assert rows[1]["speedup"] == pytest.approx(rows[0]["us"][1] / rows[1]["us"][1], rel=1e-3)

    def test_quartiles(self):
        spread = script("interleaved").Spread
        assert spread.of([9.0, 1.0, 2.0, 8.0, 3.0, 4.0, 7.0, 6.0, 5.0]) == spread(5, 3, 7)
        assert spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == spread(3, 1, 5)
        assert spread.of([7.0]) == spread(7, 7, 7)
        assert spread.of([5.0, 1.0, 2.0, 4.0, 3.0]).rounded() == [1, 3, 5]
        assert spread.of_rounds([spread(2, 1, 3), spread(4, 2, 7)]) == spread(3, 1.5, 5)
        assert spread.of_rounds([spread(m, 0, 9) for m in (5.0, 1.0, 2.0, 4.0, 3.0)]) == spread(3, 1, 5)


class TestGraph:
    """Without a GPU: its graphs are stood in for by calls that are made at once."""

    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch):
        stream = SimpleNamespace(wait_stream=lambda other: None)
        fakes = {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda _: contextlib.nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": lambda _: contextlib.nullcontext(),
            "synchronize": lambda: None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def test_every_set_is_captured(self):
        case = double_case(sets=20)
        runner = script("interleaved").capture(case, "pyvae", case.inputs(CPU))
        assert runner.calls == 20

    def test_a_wrong_graph_is_refused(self):
        calls = []

        def late(x):
            calls.append(1)
            return (2 * x if len(calls) < 19 else x,)

        case = double_case(functions={"eager": late})
        with pytest.raises(AssertionError):
            script("interleaved").capture(case, "eager", case.inputs(CPU))

    def test_rows_of_a_gpu(self, monkeypatch):
        interleaved = script("interleaved")
        gpu = torch.device("cuda")
        # inputs and copies stay on the CPU; everything else goes the way of a GPU
        sets = double_case().inputs(CPU)
        monkeypatch.setattr(interleaved.Case, "inputs", lambda self, device: sets)
        copy = interleaved.copy_runner(8000, CPU)
        monkeypatch.setattr(interleaved, "copy_runner", lambda moved, device: copy)
        monkeypatch.setattr(interleaved, "device_microseconds", lambda runner: 1.5)
        rows, wrong = interleaved.measure(double_case(uncaptured=("eager",)), gpu, **TIMING)
        assert wrong == []
        assert [(row["provider"], row["graph"]) for row in rows] == [
            ("eager", False),
            ("pyvae", False),
            ("pyvae", True),
        ]
        assert all(row["device_us"] == 1.5 for row in rows)
        assert "speedup" not in rows[2]  # its rival is in no graph

    def test_max_autotune_on_a_gpu_alone(self):
        case = double_case(compiled="eager", autotuned=True)
        assert case.names(CPU) == ["eager", "pyvae", "compile"]
        assert case.names(torch.device("cuda"))[-1] == "compile, max-autotune"
        assert double_case(compiled="eager").names(torch.device("cuda"))[-1] == "compile"

    def test_every_compiled_op_is_tuned_at_one_size(self):
        cases = script("bench_ops").cases()
        for op in {c.op for c in cases if c.compiled}:
            assert sum(c.autotuned for c in cases if c.op == op) == 1, op

    @pytest.mark.parametrize("sets", [1, 3, 5, 12, 16, 20])
    def test_a_graph_holds_every_set_as_often(self, sets):
        case = double_case(sets=sets)
        runner = script("interleaved").capture(case, "pyvae", case.inputs(CPU))
        assert runner.calls % sets == 0
        assert 16 <= runner.calls < 16 + sets
        assert script("interleaved").copy_runner(8000, torch.device("cpu"))().calls == 1

    def test_a_capture_that_breaks_off_gives_the_stream_back(self, monkeypatch):
        restored = []
        monkeypatch.setattr(torch.cuda, "set_stream", restored.append)
        case = double_case()
        sets = case.inputs(CPU)

        @contextlib.contextmanager
        def broken(_):
            yield
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "graph", broken)
        with pytest.raises(RuntimeError, match="not permitted"):
            script("interleaved").capture(case, "pyvae", sets)
        assert restored == [torch.cuda.current_stream()]


class TestCases:
    def test_every_op_is_in_the_driver(self):
        assert sorted(OPS) == sorted(script("bench_ops").OPS)

    @pytest.mark.parametrize(("gpu", "floats", "bits"), [(False, 12, 8.125), (True, 20, 12.25)])
    def test_bytes_of_bernoulli_nll_are_those_of_its_passes(self, gpu, floats, bits, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        pixels = 64 * 4096
        case = script("bench_bernoulli_nll").case((64, 4096))
        counted = [case.bytes_of(name) / pixels for name in ("eager", "compile", "pyvae", "pyvae, bits")]
        assert counted == [20, 20, floats, bits]

    def test_every_op_has_cases_on_a_cpu_of_its_name(self):
        cases = script("bench_ops").cases()
        for op in OPS:
            mine = [c for c in cases if c.op == op]
            assert any("cpu" in c.devices for c in mine), op
            assert any(name.startswith("pyvae") for c in mine for name in c.functions), op
        assert len({(c.op, c.what, c.size) for c in cases}) == len(cases)

    @pytest.mark.parametrize("op", OPS)
    def test_results_of_the_smallest_size_pass_the_gate(self, op):
        case = script(f"bench_{op}").CASES[0]
        inputs = case.inputs(CPU)[0]
        for name, function in case.functions.items():
            if "sampled" in name:
                continue  # seconds, and random
            outputs = case.evaluate(function, inputs)
            case.gate(name, inputs, outputs)
            for place in range(len(outputs)):
                # one number alone
                wrong = [x.detach().clone() for x in outputs]
                wrong[place].view(-1)[-1] += 1
                with pytest.raises(AssertionError):
                    case.gate(name, inputs, tuple(wrong))

    @pytest.mark.parametrize("op", ["bernoulli_nll", "reparameterize_kl"])
    def test_batches_that_a_gpu_alone_has_pass_the_gate(self, op):
        case = script(f"bench_{op}").case((8192, 16))
        inputs = case.inputs(CPU)[0]
        for name, function in case.functions.items():
            case.gate(name, inputs, case.evaluate(function, inputs))

    @pytest.mark.parametrize("op", OPS)
    def test_a_graph_can_hold_what_it_is_to_hold(self, op):
        case = script(f"bench_{op}").CASES[0]
        inputs = case.inputs(CPU)[0]
        for name, function in case.functions.items():
            # pyvae's kernels on a GPU are others than here
            if name not in case.uncaptured and not name.startswith("pyvae"):
                with OnlyKernels():
                    case.evaluate(function, inputs)

    @pytest.mark.parametrize("op", ["code_histogram", "posterior_entropy"])
    def test_what_waits_is_in_no_graph(self, op):
        for case in script(f"bench_{op}").CASES:
            assert set(case.uncaptured) == set(case.functions)
        case = script(f"bench_{op}").CASES[0]
        inputs = case.inputs(CPU)[0]
        with pytest.raises(AssertionError, match="waits for the device"), OnlyKernels():
            case.evaluate(case.functions["pyvae"], inputs)

    def test_training_has_every_objective(self):
        from pyvae.objectives import OBJECTIVES

        variants = script("bench_train").VARIANTS
        assert [n for n in OBJECTIVES if f"pyvae {n}" not in variants] == ["beta-vae"]
        for name in OBJECTIVES.keys() - {"beta-vae"}:
            assert variants[f"pyvae {name}"].devices == ("cpu",)
            assert variants[f"pyvae {name} --precision tf32"].devices == ("cuda",)
        recipe_of = script("bench_train").recipe_of
        for name, kind in OBJECTIVES.items():
            recipe = recipe_of(objective=kind(), precision="tf32")
            assert (type(recipe.objective), recipe.batch_size, recipe.precision) == (kind, 64, "tf32"), name

    def test_a_variant_runs_in_a_process_of_its_own_and_may_fail(self, monkeypatch, capsys):
        bench_train = script("bench_train")
        spread = {"median": 2.0, "low": 1.0, "high": 3.0}
        outputs = iter([(1, "", "ZeroDivisionError"), (0, json.dumps(spread), "")])
        commands = []

        def run(command, **_):
            commands.append(command)
            return SimpleNamespace(
                **dict(zip(("returncode", "stdout", "stderr"), next(outputs), strict=True))
            )

        monkeypatch.setattr(bench_train.subprocess, "run", run)
        assert bench_train.run_process("pyvae", 1.0, 2, None) is None
        assert "ZeroDivisionError" in capsys.readouterr().err
        assert bench_train.run_process("pyvae", 1.0, 2, None).median == 2
        assert commands[1][-2:] == ["--variant", "pyvae"]


class TestCompare:
    def result(self, *microseconds, op="double"):
        row = {"op": op, "what": "once", "size": "1", "provider": "pyvae", "graph": False}
        row["us"] = list(microseconds)
        return {"machine": MACHINE, "cases": [row]}

    @pytest.mark.parametrize(
        ("old", "new", "verdict"),
        [
            ((9, 10, 11), (9, 10, 11), ""),
            ((9, 10, 11), (14, 15, 16), "SLOWER"),
            ((9, 10, 11), (10.5, 12, 13), ""),  # within the noise of either
            ((9.9, 10, 10.1), (10.2, 10.3, 10.4), ""),  # beyond the noise, but too little to matter
            ((9, 10, 11), (5, 6, 7), "faster"),
            ((9, 10, 11), (20, 20, 20), "measured once"),
        ],
    )
    def test_verdict(self, old, new, verdict):
        changes, alone = script("compare").compare(self.result(*old), self.result(*new))
        assert [c.verdict for c in changes] == [verdict]
        assert changes[0].ratio == pytest.approx(new[1] / old[1])
        assert changes[0].low == pytest.approx(new[0] / old[2])
        assert changes[0].high == pytest.approx(new[2] / old[0])
        assert alone == []

    def test_rates_are_turned_round(self):
        old = {"machine": MACHINE, "steps_per_second": {"pyvae": 20.0}, "quartiles": {"pyvae": [19, 20, 21]}}
        new = {"machine": MACHINE, "steps_per_second": {"pyvae": 10.0}, "quartiles": {"pyvae": [9, 10, 11]}}
        (change,) = script("compare").compare(old, new)[0]
        assert change.ratio == 2
        assert change.verdict == "SLOWER"
        peers = {"rates": [{"objective": "vae", "library": "x", "steps_per_second": [1.0, 2.0, 4.0]}]}
        assert script("compare").times(peers) == {"vae, x": (0.25, 0.5, 1.0)}

    def test_exit_status(self, tmp_path):
        old, new = tmp_path / "old.json", tmp_path / "new.json"
        old.write_text(json.dumps(self.result(9, 10, 11)))
        new.write_text(json.dumps(self.result(19, 20, 21)))
        assert run_script("compare.py", old, old).returncode == 0
        assert run_script("compare.py", new, old).returncode == 0
        slower = run_script("compare.py", old, new)
        assert slower.returncode == 1
        assert "2.00 [1.73, 2.33] SLOWER" in slower.stdout
        new.write_text(json.dumps(self.result(1, 1, 1, op="other")))
        assert (
            "in one file alone: double, once, 1, pyvae; other, once, 1, pyvae"
            in run_script("compare.py", old, new).stdout
        )
        new.write_text("{}")
        bad = run_script("compare.py", old, new)
        assert "is no result file" in bad.stderr
        assert len(bad.stderr.splitlines()) == 1

    def test_results_of_the_repository_can_be_compared(self):
        for path in (BENCHMARKS / "results").glob("*.json"):
            content = json.loads(path.read_text())
            if "microseconds" not in content:
                assert script("compare").times(content), path


def op_row(provider, us, graph=False):
    return {
        "op": "double",
        "what": "value",
        "size": "64",
        "provider": provider,
        "graph": graph,
        "us": [us, us, us],
        "of_copy": 0.5,
    }


class TestReport:
    def test_the_fastest_is_bold_whoever_it_is(self):
        rows = [
            op_row("eager", 30.0),
            op_row("pyvae", 20.0),
            op_row("pyvae, bits", 25.0),
            op_row("compile", 10.0),
        ]
        table = script("report").ops_table({"cases": rows})
        assert (
            table.splitlines()[2]
            == "| `double`, value | 64 | 30.0 | **10.0** | 20.0 | 1.50x | 0.50x | 0.50 |"
        )

    def test_graphs_where_there_are_graphs(self):
        rows = [op_row("eager", 30.0), op_row("eager", 3.0, graph=True)]
        rows += [op_row("pyvae", 20.0), op_row("pyvae", 2.0, graph=True)]
        table = script("report").ops_table({"cases": rows})
        assert "| 3.0 | - | **2.0** | 1.50x | - |" in table
        # in a graph against outside of one is no comparison
        table = script("report").ops_table({"cases": [*rows, op_row("compile", 25.0)]})
        assert "| 30.0 | 25.0 | **20.0** | 1.50x | 1.25x |" in table

    def test_a_refused_function_has_no_time(self):
        refused = {**op_row("compile", 1.0), "refused": "wrong result"}
        del refused["us"]
        table = script("report").ops_table({"cases": [op_row("eager", 30.0), refused, op_row("pyvae", 20.0)]})
        assert "| 30.0 | - | **20.0** |" in table

    def test_what_was_extrapolated_says_so(self):
        rows = [
            {"metric": "MIG", "way": "pyvae", "seconds": [1, 2, 3], "extrapolated": False},
            {"metric": "MIG", "way": "numpy", "seconds": [100, 200, 300], "extrapolated": True},
        ]
        table = script("report").metrics_table({"metrics": {"MIG": rows}})
        assert table.splitlines()[2:] == ["| MIG | pyvae | 2 | 1x |", "| MIG | numpy | about 200 | 100x |"]

    def test_peers_that_were_skipped_are_named(self):
        result = {
            "setting": "burgess",
            "rates": [{"objective": "vae", "library": "pyvae", "steps_per_second": [10, 20, 30]}],
            "skipped": {"disent": "not installed"},
        }
        table = script("report").peers_table(result)
        assert "| vae | 20.0 |" in table
        assert "disent: not installed." in table

    def test_slots_are_filled_from_files_and_an_edit_is_noticed(self, tmp_path):
        report = script("report")
        result = {"machine": MACHINE, "setting": "net", "steps_per_second": {"popular": 10.0, "pyvae": 25.0}}
        (tmp_path / "train-x.json").write_text(json.dumps(result))
        empty = "a\n<!-- results: train-x -->\n<!-- end -->\n<!-- results: ops-x -->\n<!-- end -->\n"
        filled = report.render(empty, tmp_path)
        assert "| pyvae | 25.0 | 2.50x |" in filled
        assert "a CPU, 1 thread; torch 2; commit abc, 2026-01-01" in filled
        assert "Not measured yet." in filled
        assert report.render(filled, tmp_path) == filled
        assert report.render(filled.replace("25.0", "26.0"), tmp_path) == filled


class TestMetrics:
    def test_ways_that_disagree_are_refused(self):
        bench_metrics = script("bench_metrics")
        ways = {"pyvae": bench_metrics.Way(lambda: 0.5), "numpy": bench_metrics.Way(lambda: 0.51)}
        with pytest.raises(AssertionError, match="MIG: numpy"):
            bench_metrics.measure("MIG", ways, CPU, 1)

    def test_a_slice_is_multiplied_and_marked(self, monkeypatch):
        bench_metrics = script("bench_metrics")
        clock = iter(range(100))
        monkeypatch.setattr(bench_metrics.time, "perf_counter", lambda: next(clock) * 1.0)
        ways = {"pyvae": bench_metrics.Way(lambda: 1), "slice": bench_metrics.Way(lambda: 1, 10)}
        whole, part = bench_metrics.measure("MIG", ways, CPU, 2)
        assert (whole["seconds"], whole["extrapolated"]) == ([1, 1, 1], False)
        assert (part["seconds"], part["extrapolated"]) == ([10, 10, 10], True)

    def test_estimators_agree(self):
        bench_metrics = script("bench_metrics")
        mu, logvar = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0))
        z = mu[:7] + 0.1
        exact = torch.distributions.Normal(mu.double(), torch.exp(0.5 * logvar.double()))
        expected = torch.logsumexp(exact.log_prob(z.double()[:, None]), 1) - torch.tensor(500.0).log()
        streamed = bench_metrics.streamed_log_q(z, mu, logvar)
        torch.testing.assert_close(streamed.double(), expected, rtol=0, atol=1e-5)
        plain = torch.from_numpy(bench_metrics.numpy_log_q(z.numpy(), mu.numpy(), logvar.numpy()))
        torch.testing.assert_close(plain.double(), expected, rtol=0, atol=1e-5)

    def test_pairs_of_the_sampled_estimator(self):
        # 10,000 of each subset: all of dSprites once for the marginal and once for every factor
        assert script("bench_metrics").pairs_of_samples() == 6 * 737_280 * 10_000


class TestPeers:
    def test_what_is_not_there_is_skipped_with_a_reason(self, tmp_path):
        missing = script("bench_peers").missing
        assert missing("pyvae", None) is None
        assert missing("disentangling-vae", None) == "no checkout given: --disentangling-vae PATH"
        assert missing("disentangling-vae", tmp_path) == f"{tmp_path} holds no disvae folder"
        (tmp_path / "disvae").mkdir()
        assert missing("disentangling-vae", tmp_path) is None

    def test_an_uninstalled_library(self, monkeypatch):
        bench_peers = script("bench_peers")
        library = bench_peers.Library(bench_peers.pythae_model, ("beta-vae",), needs="no-such-package")
        monkeypatch.setitem(bench_peers.LIBRARIES, "pythae", library)
        assert "not installed" in bench_peers.missing("pythae", None)

    def test_another_network_is_refused(self):
        check = script("bench_peers").check_weights
        check({("pyvae", "vae"): 10, ("x", "vae"): 10, ("x", "other"): 11})
        with pytest.raises(ValueError, match="vae: x trains 11 weights and pyvae 10"):
            check({("pyvae", "vae"): 10, ("x", "vae"): 11})
