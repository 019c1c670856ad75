"""The kernels of fused networks compile for every architecture, to code that is meant to be fast: no spills, products
on tensor cores, 16 bytes a load, and nothing of memory touched before the launches in front have ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aot import ARCHITECTURES, kernels
from machine_code import SHARED

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("aot_fused.py")
PRODUCTS = {
    "first_conv_kernel",
    "conv_down_kernel",
    "conv_up_kernel",
    "up_first_conv_kernel",
    "dense_kernel",
    "latents_kernel",
    "latents_backward_kernel",
    "loss_kernel",
    "loss_backward_kernel",
    "weight_gradients_kernel",
}
OTHERS = ["beta-vae-h", "kim", "kim-256", "locatello", "burgess, 3 channels", "burgess, 32 latents"]


def compile_all(networks, operands, *options):
    # a process of its own: this one interprets kernels
    command = [
        sys.executable,
        str(SCRIPT),
        "--json",
        "--networks",
        *networks,
        "--operands",
        *operands,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((["burgess"], ["fp16"], "--briefly"), id="burgess in fp16"),
        pytest.param((["burgess"], ["fp16", "bf16", "tf32"]), id="burgess", marks=pytest.mark.slow),
        *(
            pytest.param(([network], ["fp16", "bf16", "tf32"]), id=network, marks=pytest.mark.slow)
            for network in OTHERS
        ),
    ],
)
def figures(request):
    return compile_all(*request.param)


def named(row):
    return f"{row['label']} ({row['kernel']}) of {row['network']} in {row['operands']} on sm_{row['arch']}"


def products(figures):
    return [row for row in figures if row["kernel"] in PRODUCTS]


def test_every_kernel_is_compiled_for_every_architecture(figures):
    compiled = {(row["kernel"], row["arch"]) for row in figures}
    # that one is an option, and not for all: test_fused_descriptors.py
    names = {name for _, name in kernels(fused=True)} - {"descriptor_gradients_kernel"}
    if figures[0]["network"] != "burgess":  # which has the weight of the KL, too
        names.remove("kl_weight_kernel")
    assert names > PRODUCTS
    assert compiled == {(name, arch) for name in names for arch in ARCHITECTURES}


def test_nothing_spills_and_nothing_has_a_stack_frame(figures):
    # ptxas chose so, of 64 to 96 registers where there are 255
    known = {
        ("fp16", "conv_up_kernel", 80, "decoder.9 forward"): 2,
        ("bf16", "conv_up_kernel", 80, "decoder.9 forward"): 2,
        ("tf32", "dense_kernel", 80, "encoder.trunk.9 data gradient"): 2,
        ("fp16", "conv_down_kernel", 120, "decoder.7 data gradient"): 6,
        ("bf16", "conv_down_kernel", 120, "decoder.7 data gradient"): 6,
    }
    spilling = [
        named(row)
        for row in figures
        if row["spills"] > known.get((row["operands"], row["kernel"], row["arch"], row["label"]), 0)
        or (row["stack"] and not row["spills"])
    ]
    assert spilling == []


def test_shared_memory_fits_the_chip(figures):
    """At half of what there is, two programs are on a multiprocessor, of which one computes while one waits; of those
    between encoder and decoder there are only four."""
    few = ("latents_kernel", "latents_backward_kernel")
    over = [
        f"{named(row)}: {row['shared']}"
        for row in figures
        if row["shared"] * (1 if row["kernel"] in few else 2) > SHARED[row["arch"]]
    ]
    assert over == []


def test_a_program_leaves_registers_for_others(figures):
    """Of 64 Ki a multiprocessor: for two programs and more of four warps; where operands have 16 bits for four of them
    on 9.0 and 10.0, elsewhere for three."""
    channels = 3 if any(word in figures[0]["network"] for word in ("3 channels", "kim", "locatello")) else 1

    def most(row):
        if channels > 1:
            return 255
        of_four = 192 if row["operands"] == "tf32" else 128 if row["arch"] in (90, 100) else 168
        return max(of_four, min(255, 4 * of_four // row["warps"]))

    over = [f"{named(row)}: {row['registers']}" for row in figures if row["registers"] > most(row)]
    assert over == []


def test_products_are_those_of_tensor_cores(figures):
    assert [named(row) for row in products(figures) if not row["tensor_core"]] == []


def test_tiles_of_64_rows_are_multiplied_by_a_warp_group_or_in_tensor_memory(figures):
    rows = [row for row in products(figures) if row["arch"] in (90, 100) and row["rows"] >= 64]
    assert {row["kernel"] for row in rows} == PRODUCTS - {"latents_kernel", "latents_backward_kernel"}
    assert [named(row) for row in rows if not row["grouped"]] == []


def test_activations_are_read_and_written_in_16_bytes(figures):
    rows = [row for row in products(figures) if row["kernel"] != "first_conv_kernel"]
    assert [named(row) for row in rows if not row["wide_loads"]] == []
    # of the smallest maps a thread has 8 bytes; the loss's gradient lies in blocks of 4 pixels
    rows = [row for row in products(figures) if row["rows"] > 16 and row["kernel"] != "loss_kernel"]
    assert [named(row) for row in rows if not row["wide_stores"]] == []
    # weights of 32 bits are turned round on their way, which takes copies of 4 bytes
    rows = [row for row in products(figures) if row["operands"] != "tf32"]
    # and so do the batch's words on 10.0: 4 of them a thread
    words = {("up_first_conv_kernel", 100): 4}
    narrow = [row for row in rows if row["narrow_copies"] > words.get((row["kernel"], row["arch"]), 0)]
    assert [named(row) for row in narrow] == []


def test_adam_reads_and_writes_16_bytes(figures):
    rows = [row for row in figures if row["kernel"] == "flat_adam_kernel"]
    # parts of gradients, both moments and the weights; two of each, for eight elements a thread
    assert [named(row) for row in rows if row["wide_loads"] < 8 or row["wide_stores"] < 6] == []


def test_launches_wait_for_those_before_them_ahead_of_all_traffic(figures):
    programmatic = [row for row in figures if row["programmatic"]]
    assert {row["arch"] for row in programmatic} == {90, 100, 120}
    assert {row["kernel"] for row in programmatic} == {row["kernel"] for row in figures}
    assert [named(row) for row in figures if row["waits_first"] != row["programmatic"]] == []


ROWS = """
import aot_fused, machine_code
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.network import network_of
from pyvae.engine.fused.plan import Plan
from pyvae.nets import build

net = network_of(build("burgess", 1, 64))
plan = Plan(net, Layout(net), 64, "fp16", True)
print(machine_code.compiled(machine_code.planned(plan, plan.settle[0]), 90).asm["ptx"])
"""


def test_no_warp_counts_a_step_that_another_has_yet_to_read():
    """Of 64 latents, two warps have columns of the rows, whose place is by the step."""
    paths = [str(SCRIPT.parent), str(SCRIPT.parents[1] / "benchmarks")]
    script = f"import sys; sys.path[:0] = {paths}\n{ROWS}"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    names = ("ld.global", "bar.sync", "st.global")
    kinds = [name for line in done.stdout.splitlines() for name in names if name in line]
    assert kinds[kinds.index("st.global") - 1] == "bar.sync"
