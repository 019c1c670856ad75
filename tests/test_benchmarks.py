"""The benchmarks measure what they say: gate, order, statistics, comparison, tables."""

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from waiting import OnlyKernels

import pyvae
from pyvae.backend import Choice
from pyvae.nets import build

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

    def test_another_clock(self):
        interleaved = script("interleaved")
        clock = iter(range(1000))
        runners = {"a": interleaved.Runner(lambda i: None)}
        timing = {"rounds": 3, "block_seconds": 0, "limit_seconds": 1e9}
        times = interleaved.interleave(runners, CPU, **timing, clock=lambda: next(clock) * 7.0)
        assert times["a"] == [7e6] * 3

    def test_operations_are_counted_where_bytes_are_not(self):
        rows, _ = script("interleaved").measure(double_case(moved=0, flop=1000), CPU, **TIMING)
        for row in rows:
            assert row["gflop_per_s"] == pytest.approx(1 / row["us"][1], rel=1e-3)
            assert not {"gb_per_s", "of_copy"} & row.keys()

    def test_all_may_be_wrong(self):
        rows, wrong = script("interleaved").measure(double_case(moved=0, expect=lambda x: [x]), CPU, **TIMING)
        assert len(wrong) == 2
        assert all("us" not in row for row in rows)

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
        packed = {"1": rate(2.0).packed(), "2": rate(3.5).packed()}
        outputs = iter([(1, "", "ZeroDivisionError"), (0, json.dumps(packed), "")])
        commands = []

        def run(command, **_):
            commands.append(command)
            return SimpleNamespace(
                **dict(zip(("returncode", "stdout", "stderr"), next(outputs), strict=True))
            )

        monkeypatch.setattr(bench_train.subprocess, "run", run)
        assert bench_train.run_process("pyvae", 1.0, [1, 2], None) is None
        assert "ZeroDivisionError" in capsys.readouterr().err
        assert bench_train.run_process("pyvae", 1.0, [1, 2], None) == {1: rate(2.0), 2: rate(3.5)}
        assert commands[1][-2:] == ["--variant", "pyvae"]
        assert commands[1][2:5] == ["--threads", "1", "2"]


def rate(steps_per_second, cpu_ms=50.0):
    three = (script("interleaved").Spread(x, x, x) for x in (steps_per_second, cpu_ms, 25.0))
    return script("step_rate").Rate(*three)


class TestRates:
    """Of whole steps, by threads, and of CPU time."""

    def test_what_waits_takes_no_cpu_time_and_what_another_thread_does_is_counted(self):
        rate_of = script("step_rate").rate_of

        def busy():
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                pass

        def aside():
            thread = threading.Thread(target=busy)
            thread.start()
            thread.join()

        waiting = rate_of(lambda: time.sleep(0.01), 2, 0.05, CPU)
        assert waiting.steps_per_second.median <= 200
        assert waiting.cpu_ms.median < 2.5
        own, others = rate_of(busy, 2, 0.05, CPU), rate_of(aside, 2, 0.05, CPU)
        assert own.main_thread_cpu_ms.median == pytest.approx(5, rel=0.2)
        assert own.cpu_ms.low >= 4.9
        assert others.cpu_ms.low >= 4.9
        assert others.main_thread_cpu_ms.median < 2.5

    def test_rounds_are_medians(self):
        rounds = [rate(x, cpu) for x, cpu in ((1.0, 9.0), (5.0, 7.0), (2.0, 8.0))]
        row = script("step_rate").Rate.of_rounds(rounds).row()
        assert row["steps_per_second"] == [1, 2, 5]
        assert row["cpu_ms"] == [7, 8, 9]

    @pytest.mark.parametrize(
        ("given", "counts"),
        [("2 1 2", [2, 1]), ("4", [4]), ("0", None), ("-1", None), ("two", None), ("", None)],
    )
    def test_threads(self, given, counts, capsys):
        parser = argparse.ArgumentParser()
        script("step_rate").add_threads(parser)
        if counts:
            assert parser.parse_args(["--threads", *given.split()]).threads == counts
        else:
            with pytest.raises(SystemExit):
                parser.parse_args(["--threads", *given.split()])
            assert "--threads" in capsys.readouterr().err

    def test_every_number_of_threads_is_set(self):
        before, seen = torch.get_num_threads(), []
        try:
            found = script("step_rate").rates_by_threads(
                lambda: (seen.append(torch.get_num_threads()), rate(1.0))[1], [2, 1]
            )
        finally:
            torch.set_num_threads(before)
        assert (seen, list(found)) == ([2, 1], ["2", "1"])

    def test_networks_have_both_kinds_of_convolutions(self, monkeypatch):
        bench_train = script("bench_train")
        for name in ("pyvae", *(f"pyvae --architecture {a}" for a in ("beta-vae-h", "kim", "locatello"))):
            assert {name, f"{name}, torch's convolutions"} <= bench_train.VARIANTS.keys()
        trainer = SimpleNamespace(net=build("kim", 1, 10), advance=lambda count: None)
        asked = []
        monkeypatch.setattr(bench_train, "load", lambda name: None)
        monkeypatch.setattr(
            bench_train, "training", lambda recipe, *_, **__: (asked.append(recipe.architecture), trainer)[1]
        )
        bench_train.VARIANTS["pyvae --architecture kim"].make()
        assert trainer.net.decoder.own_convolutions
        bench_train.VARIANTS["pyvae --architecture kim, torch's convolutions"].make()
        assert not trainer.net.decoder.own_convolutions
        assert asked == ["kim", "kim"]

    def test_others_have_no_convolutions_of_ours(self, monkeypatch):
        bench_train = script("bench_train")
        assert not script("bench_peers").network().decoder.own_convolutions
        nets = []
        monkeypatch.setattr(bench_train, "build", lambda *a, **k: (nets.append(build(*a, **k)), nets[-1])[1])
        monkeypatch.setattr(
            bench_train, "load", lambda name: SimpleNamespace(bits=torch.zeros(700, 512).byte())
        )
        popular = [
            name for name in bench_train.HERE if not name.startswith("pyvae") and "compile" not in name
        ]
        for name in popular:
            bench_train.VARIANTS[name].make()
        own = [name for name, net in zip(popular, nets, strict=True) if net.encoder.trunk.own_convolutions]
        assert own == ["popular code, our convolutions"]

    @pytest.mark.parametrize("known", [False, None, True])
    def test_bf16_is_left_out_where_it_says_nothing(self, known, tmp_path, monkeypatch, capsys):
        bench_train, bench_peers = script("bench_train"), script("bench_peers")
        monkeypatch.setattr(bench_train.processor, "bfloat16", lambda: known)
        monkeypatch.setattr(bench_train, "run_process", lambda name, *_: {1: rate(4.0), 2: rate(6.0)})
        out, bf16 = tmp_path / "train.json", "pyvae --precision bf16"
        arguments = ["--rounds", "1", "--threads", "1", "2", "--only", "pyvae", bf16, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["bench_train.py", *arguments])
        bench_train.main()
        result = json.loads(out.read_text())
        measured = [(row["variant"], row["threads"]) for row in result["rates"]]
        assert ("instructions for products of bfloat16" in result["left_out"].get(bf16, "")) == (not known)
        assert measured == [(name, n) for name in (["pyvae", bf16] if known else ["pyvae"]) for n in (1, 2)]
        assert (f"{bf16}: left out" in capsys.readouterr().out) == (not known)
        assert (bench_peers.missing("pyvae, bf16", None) is None) == bool(known)
        assert bench_peers.missing("pyvae", None) is None
        bench_convolutions = script("bench_convolutions")
        monkeypatch.setattr(bench_convolutions, "arithmetic", lambda *_: Choice("native", "all is there"))
        assert list(bench_convolutions.left_out()) == ([] if known else ["bf16"])
        assert result["machine"]["threads"] == [1, 2]


class TestConvolutions:
    def test_every_layer_of_the_networks_once(self):
        bench = script("bench_convolutions")
        found = {(layer.name, layer.shape[1]): nets for layer, nets in bench.layers().items()}
        assert len(found) == 14
        assert (
            found["conv 4 x 4, 1 to 32", 64]
            == found["transposed conv 4 x 4, 32 to 1", 32]
            == list(bench.NETS)
        )
        assert found["transposed conv 4 x 4, 64 to 32", 8] == ["beta-vae-h", "kim", "locatello"]
        assert found["conv 2 x 2, 64 to 64", 8] == ["locatello"]
        assert found["conv 4 x 4, 32 to 32", 8] == ["burgess"]
        flop = {(layer.name, layer.shape[1]): layer.flop / 1e6 for layer in bench.layers()}
        # as counted elsewhere: docs of the prototype, 4.72 GFLOP a step of burgess
        assert round(flop["conv 4 x 4, 32 to 32", 32]) == 537
        assert round(bench.network_flop("burgess")["forward and backward"] / 1e9, 2) == 4.72

    @pytest.mark.parametrize("what", ["forward", "data gradient", "weight gradient", "backward"])
    def test_a_pass_is_checked(self, what, monkeypatch):
        bench = script("bench_convolutions")
        monkeypatch.setattr(bench, "BATCH", 2)
        small = [layer for layer in bench.layers() if layer.side <= 4 or layer.large == 1]
        for layer in (layer for layer in small if what in layer.passes):
            case = bench.layer_case(layer, what, "fp32")
            inputs = case.inputs(CPU)[0]
            for name, function in case.functions.items():
                outputs = case.evaluate(function, inputs)
                case.gate(name, inputs, outputs)
                for place in range(len(outputs)):
                    wrong = [x.detach().clone() for x in outputs]
                    wrong[place].view(-1)[-1] += wrong[place].abs().max() / 100
                    with pytest.raises(AssertionError):
                        case.gate(name, inputs, tuple(wrong))

    def test_a_network_is_checked_and_has_both_kinds(self, monkeypatch):
        bench = script("bench_convolutions")
        monkeypatch.setitem(bench.PARTS, "forward and backward", (bench._step, 2))
        case = bench.network_case("burgess", "forward and backward", "fp32")
        net, other, *rest = case.inputs(CPU)[0]
        assert net.decoder.own_convolutions
        assert not other.decoder.own_convolutions
        for name, function in case.functions.items():
            outputs = case.evaluate(function, (net, other, *rest))
            case.gate(name, (net, other, *rest), outputs)
            wrong = [x.detach().clone() for x in outputs]
            wrong[5] *= 1.1
            with pytest.raises(AssertionError):
                case.gate(name, (net, other, *rest), tuple(wrong))

    def test_torchs_are_not_timed_as_ours(self, monkeypatch):
        monkeypatch.setenv("PYVAE_BACKEND", "reference")
        monkeypatch.setattr(sys, "argv", ["bench_convolutions.py"])
        with pytest.raises(SystemExit, match="no convolutions of our own to time: PYVAE_BACKEND"):
            script("bench_convolutions").main()

    def test_the_peak_is_one(self, monkeypatch):
        peak = script("peak")
        monkeypatch.setattr(peak, "_ROUNDS", 3)
        peak.peak.cache_clear()
        loop = peak.peak("fp32")
        monkeypatch.setattr(peak.shutil, "which", lambda name: None)
        peak.peak.cache_clear()
        products = peak.peak("fp32")
        peak.peak.cache_clear()
        assert products.how.endswith("for want of a C compiler")
        assert products.gflop_per_s > 1
        if "loop in C" in loop.how:
            # a library reaches most of it on a quiet machine, and none more
            assert 0.7 < loop.gflop_per_s / products.gflop_per_s < 10


class TestEverything:
    @pytest.mark.parametrize("quick", [True, False])
    def test_every_part_takes_its_arguments(self, quick, tmp_path, monkeypatch):
        cpu = script("cpu")
        options = argparse.Namespace(quick=quick, disentangling_vae="there", results=tmp_path)
        for name, part in cpu.PARTS.items():
            command = cpu.command(name, options)
            assert command[-2:] == ["--out", str(tmp_path / f"{name}-cpu.json")]
            assert ("there" in command) == (name == "peers")
            source = (BENCHMARKS / part.script).read_text()
            assert all(f'"{word}"' in source for word in command if word.startswith("--"))

    def test_a_failure_is_one_of_the_whole_and_the_others_run(self, monkeypatch, capsys):
        cpu = script("cpu")
        ran = []

        def run(command):
            ran.append(Path(command[1]).stem)
            return SimpleNamespace(returncode=int("train" in command[1]))

        monkeypatch.setattr(cpu.subprocess, "run", run)
        monkeypatch.setattr(sys, "argv", ["cpu.py", "--only", "train", "peers"])
        with pytest.raises(SystemExit, match="not all is well in: train"):
            cpu.main()
        assert ran == ["bench_train", "bench_peers"]


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
        row = {"objective": "vae", "library": "x", "steps_per_second": [1.0, 2.0, 4.0]}
        peers = {"machine": MACHINE, "rates": [row, {**row, "threads": 2}]}
        times = script("compare").times(peers)
        assert times == dict.fromkeys(("vae, x, 1 thread", "vae, x, 2 threads"), (0.25, 0.5, 1.0))

    def test_an_older_file_is_compared_by_its_threads(self):
        old = {"machine": {**MACHINE, "threads": 2}, "steps_per_second": {"pyvae": 20.0}}
        old["quartiles"] = {"pyvae": [19, 20, 21]}
        rates = [
            {"variant": "pyvae", "threads": n, "steps_per_second": [9 * n, 10 * n, 11 * n]} for n in (1, 2)
        ]
        changes, alone = script("compare").compare(old, {"machine": MACHINE, "rates": rates})
        assert [(c.name, c.ratio) for c in changes] == [("pyvae, 2 threads", 1)]
        assert alone == ["pyvae, 1 thread"]

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
        row = {"objective": "vae", "library": "pyvae", "steps_per_second": [10, 20, 30]}
        result = {
            "machine": MACHINE,
            "setting": "burgess",
            "rates": [row],
            "skipped": {"disent": "not installed"},
        }
        table = script("report").peers_table(result)
        assert "| vae | pyvae | 20.0 | 1.00x |" in table
        assert "disent: not installed." in table

    def test_peers_by_threads_with_cpu_time(self):
        def row(library, threads, rate, **more):
            three = [rate] * 3
            return {
                "objective": "vae",
                "library": library,
                "threads": threads,
                "steps_per_second": three,
                "cpu_ms": [1e3 / rate] * 3,
                **more,
            }

        rates = [row("pyvae", 1, 20.0), row("pyvae", 2, 36.0), row("x", 1, 8.0)]
        result = {"machine": MACHINE, "setting": "net", "rates": rates, "skipped": {}}
        table = script("report").peers_table(result).splitlines()
        of_one, of_two = ("steps/s, 1 thread", "steps/s, 2 threads")
        assert table[0].split(" | ")[2::3] == [of_one, of_two]
        assert table[2:] == [
            "| vae | pyvae | 20.0 | 1.00x | 50.0 | 36.0 | 1.00x | 27.8 |",
            "| vae | x | 8.0 | 2.50x | 125 | - | - | - |",
        ]

    def test_training_by_threads_with_cpu_time(self):
        rows = [
            {"variant": name, "threads": n, "steps_per_second": [x] * 3, "cpu_ms": [n * 1e3 / x] * 3}
            for name, n, x in (
                ("popular", 1, 5.0),
                ("popular", 2, 8.0),
                ("pyvae", 1, 20.0),
                ("pyvae", 2, 40.0),
            )
        ]
        result = {"machine": MACHINE, "setting": "net", "rates": rows, "left_out": {"pyvae, bf16": "no way"}}
        table = script("report").train_table(result).splitlines()
        assert table[0] == (
            "| net | steps/s, 1 thread |  | CPU ms a step | steps/s, 2 threads |  | CPU ms a step |"
        )
        assert table[1] == "|---|---:|---:|---:|---:|---:|---:|"
        assert table[3] == "| pyvae | 20.0 | 4.00x | 50.0 | 40.0 | 5.00x | 50.0 |"
        assert table[-1] == "pyvae, bf16: no way."

    def test_convolutions(self):
        def row(provider, us, part="forward", precision="fp32", kind="layer"):
            return {
                "op": "conv 4 x 4, 1 to 32",
                "size": "64 x 64 x 64 x 1",
                "graph": False,
                "kind": kind,
                "what": f"{part}, {precision}",
                "provider": provider,
                "us": [us] * 3,
                "gflop_per_s": 90.4,
                "of_peak": 0.768,
            }

        rows = [row("torch", 2000.0), row("pyvae", 800.0), row("torch", 15000.0, "backward")]
        rows += [row("torch", 1.0, "weight gradient"), row("pyvae", 1.0, "weight gradient")]
        rows += [row("torch", 40e3, "encoder", kind="network"), row("pyvae", 20e3, "encoder", kind="network")]
        result = {
            "cases": rows,
            "peak": {"fp32": {"gflop_per_s": 117.7, "how": "a loop"}},
            "left_out": {"bf16": "no instructions"},
        }
        layers, networks, said = script("report").convolutions_table(result).split("\n\n")
        assert layers.splitlines()[2:] == [
            "| conv 4 x 4, 1 to 32 | 64 x 64 x 64 x 1 | 2.00 | 0.80 | 2.50x | 90 | 77% | - | - | - | - | - |"
        ]
        assert networks.splitlines()[2:] == [
            "| conv 4 x 4, 1 to 32 | encoder, 64 images | 40.0 | 20.0 | 2.00x |"
        ]
        assert said == "Peak of one thread: fp32 118 GFLOP/s (a loop). bf16: no instructions."

    def test_the_table_of_speed_has_each_library_as_it_comes_and_with_our_allocator(self, tmp_path):
        rates = {"disent": (1, 2), "disent, buffers kept": (3, 4), "pyvae, bf16": (9, 9), "pyvae": (5, 6)}
        rows = [
            {"library": name, "objective": objective, "threads": threads, "steps_per_second": [0, rate, 99]}
            for name, both in rates.items()
            for objective, factor in (("beta-vae", 1), ("iwae", 100))
            for threads, rate in zip((1, 2), (factor * x for x in both), strict=True)
        ]
        versions, machine = {"disent": "0.8"}, {**MACHINE, "threads": [1, 2]}
        result = {"machine": machine, "versions": versions, "setting": "net", "rates": rows, "skipped": {}}
        (tmp_path / "peers-cpu.json").write_text(json.dumps(result))
        table = script("report").speed_table(tmp_path).splitlines()
        assert table[2:5] == [
            "| CPU, 2 threads: disent 0.8 | 2.0 |",
            "| the same, given pyvae's setting of the memory allocator | 4.0 |",
            "| CPU, 2 threads: pyvae | 6.0 |",
        ]
        assert table[-1] == "a CPU, 2 threads; torch 2; commit abc, 2026-01-01; medians."

    def test_slots_are_filled_from_files_and_an_edit_is_noticed(self, tmp_path):
        report = script("report")
        rates = {"popular": 10.0, "pyvae": 25.0}
        result = {"machine": MACHINE, "setting": "net", "steps_per_second": rates}  # of an older kind
        result["quartiles"] = {name: [rate] * 3 for name, rate in rates.items()}
        (tmp_path / "train-x.json").write_text(json.dumps(result))
        empty = "a\n<!-- results: train-x -->\n<!-- end -->\n<!-- results: ops-x -->\n<!-- end -->\n"
        filled = report.render(empty, tmp_path)
        assert "| pyvae | 25.0 | 2.50x |" in filled
        assert "a CPU, 1 thread; torch 2; commit abc, 2026-01-01" in filled
        assert "Not measured yet." in filled
        assert report.render(filled, tmp_path) == filled
        assert report.render(filled.replace("25.0", "26.0"), tmp_path) == filled
        row = {"variant": "pyvae", "threads": 2, "steps_per_second": [25.0] * 3}
        result = {"machine": {**MACHINE, "threads": [1, 2]}, "setting": "net", "rates": [row]}
        (tmp_path / "train-x.json").write_text(json.dumps(result))
        assert "a CPU, 1 and 2 threads; torch" in report.render(filled, tmp_path)


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
