"""The prediction that lies beside the benchmarks is of the plan as it is; the model behind it counts what it should."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import predict_fused
import sm_model
from machine_code import Code, Instruction

PREDICTED = json.loads(predict_fused.FILE.read_text())
AGAIN = "python benchmarks/predict_fused.py --out benchmarks/predicted_fused.json"


@pytest.mark.parametrize("operands", predict_fused.OPERANDS)
def test_the_file_is_of_the_plan(operands):
    plan = predict_fused.plan_of(operands)
    launches = predict_fused.launches_of(plan)
    rows = PREDICTED["operands"][operands]["kernels"]
    expected = [(x.label, x.kernel[1], x.programs, predict_fused.digest(x)) for x in launches]
    found = [(row["label"], row["kernel"], row["programs"], row["digest"]) for row in rows]
    assert found == expected, f"make it anew: {AGAIN}"
    for launch, row in zip(launches, rows, strict=True):
        work = predict_fused.work(plan, launch)
        assert (row["mmac"], row["megabytes"]) == (round(work.mmac, 2), round(work.megabytes, 3)), row[
            "label"
        ]


def test_a_digest_changes_with_what_decides_the_code():
    launch = predict_fused.launches_of(predict_fused.plan_of("fp16"))[1]
    constants = tuple((name, 32 if name == "BM" else value) for name, value in launch.constants)
    others = [
        launch._replace(stages=1),
        launch._replace(warps=8),
        launch._replace(programs=1),
        launch._replace(constants=constants),
    ]
    assert len({predict_fused.digest(x) for x in [launch, *others]}) == 5
    assert predict_fused.digest(launch._replace(label="")) == predict_fused.digest(launch)


def test_multiply_adds_are_those_of_the_network():
    """Forward, data gradients of all but the first layer, weight gradients; the first layer again; padding."""
    plan = predict_fused.plan_of("fp16")
    by_kernel = Counter()
    for launch in predict_fused.launches_of(plan):
        by_kernel[launch.kernel[1]] += round(1e6 * predict_fused.work(plan, launch).mmac)
    # of one image: first layer and last, three pairs, dense layers
    ends, pairs = 1024 * 16 * 32, [side**2 * 16 * 32 * 32 for side in (16, 8, 4)]
    dense = [512 * 256, 256 * 256]
    assert by_kernel["first_conv_kernel"] == 64 * ends
    assert by_kernel["conv_down_kernel"] == 64 * 2 * sum(pairs)
    # but for the second layer's data gradient, which is in the last
    assert by_kernel["conv_up_kernel"] == 64 * (2 * sum(pairs) - pairs[0])
    assert by_kernel["up_first_conv_kernel"] == 64 * (pairs[0] + 2 * ends)
    # a fourth of the taps of a block of 4 x 4 pixels reaches each of them
    assert by_kernel["loss_kernel"] == 64 * 4 * ends
    assert by_kernel["loss_backward_kernel"] == 64 * 2 * ends
    assert by_kernel["dense_kernel"] == 64 * (4 * dense[0] + 4 * dense[1])
    padded = 256 * 2 * 16 + 256 * 16
    assert by_kernel["latents_kernel"] == by_kernel["latents_backward_kernel"] == 64 * padded


def test_sums_are_those_of_the_rows():
    for predicted in PREDICTED["operands"].values():
        rows, sums = predicted["kernels"], predicted["sums"]
        assert sums["launches"] == len(rows)
        for name in ("mmac", "megabytes", "us_alone", "us_many"):
            assert sums[name] == pytest.approx(sum(row[name] for row in rows), abs=0.06)
        for kind, each in PREDICTED["us_a_launch"].items():
            assert sums[f"us_alone_{kind}"] == pytest.approx(sums["us_alone"] + each * len(rows), abs=0.11)


def instruction(text, stall=1, writes=7, reads=7, waits=0):
    return Instruction(text, (stall | writes << 5 | reads << 8 | waits << 11) << 41)


def code(*instructions, labels=None, registers=32):
    return Code(list(instructions), labels or {}, registers, stack=0, shared=0)


LOOP = code(
    instruction("MOV R1, c[0x0]"),  # 0
    instruction("@P0 BRA `(.L_x_2)"),  # past the loop
    instruction("LDG.E.128 R4, [R2]", writes=0),  # 2, of the loop
    instruction("FADD R0, R4, R0", stall=4, waits=1),
    instruction("@P1 BRA `(.L_x_1)"),
    instruction("STG.E [R2], R0"),  # 5
    instruction("EXIT"),
    labels={".L_x_1": 2, ".L_x_2": 5},
)


def test_a_trace_goes_through_loops_as_often_as_said():
    assert sm_model.trace(LOOP, [3]) == [0, 1, *[2, 3, 4] * 3, 5, 6]
    assert sm_model.trace(LOOP, [0]) == [0, 1, 5, 6]
    with pytest.raises(ValueError, match="2 counts for 1 loops"):
        sm_model.trace(LOOP, [1, 1])


def test_a_trace_takes_the_branch_to_a_loop_and_else_falls_through():
    guarded = code(
        instruction("@!P0 BRA `(.L_x_1)"),
        instruction("BRA `(.L_x_3)"),  # past the loop
        instruction("LDG.E R4, [R2]"),  # 2
        instruction("@P1 BRA `(.L_x_1)"),
        instruction("@P2 EXIT"),  # 4
        instruction("STG.E [R2], R0"),
        instruction("EXIT"),
        labels={".L_x_1": 2, ".L_x_3": 4},
    )
    assert sm_model.trace(guarded, [2]) == [0, 2, 3, 2, 3, 4, 5, 6]
    assert sm_model.trace(guarded, [0]) == [0, 1, 4, 5, 6]


def test_a_dependent_load_takes_its_latency_each_time():
    once, thrice = (sm_model.simulate(LOOP, [sm_model.trace(LOOP, [n])], 1).clocks for n in (1, 3))
    assert 290 < once < 310
    assert 2 * 290 < thrice - once < 2 * 310


def test_warps_hide_latencies_of_each_other_and_programs_wait_for_seats():
    trace = sm_model.trace(LOOP, [4])
    one = sm_model.simulate(LOOP, [trace], 4)
    eight = sm_model.simulate(LOOP, [trace] * 8, 4)
    assert eight.issued == 8 * one.issued
    assert eight.clocks < 1.2 * one.clocks
    large = LOOP._replace(registers=255)
    assert sm_model.seats(large, 4) == 2
    assert sm_model.simulate(large, [trace] * 8, 4).clocks > 3.5 * one.clocks


def test_seats_are_those_of_registers_shared_memory_and_warps():
    some = code(instruction("EXIT"))
    assert sm_model.seats(some, 4) == 16
    assert sm_model.seats(some._replace(registers=97), 4) == 4
    assert sm_model.seats(some._replace(registers=96), 4) == 5
    assert sm_model.seats(some._replace(shared=73_728), 4) == 3


def test_help_says_what_it_is():
    command = [sys.executable, predict_fused.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no chip has calibrated" in done.stdout
    assert "--operands" in done.stdout
