"""Every kernel compiles for every architecture, within the registers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aot import kernels

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("aot.py")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(["--briefly"], id="briefly"),
        pytest.param([], id="all", marks=pytest.mark.slow),
    ],
)
def figures(request):
    # a process of its own: this one interprets kernels
    command = [sys.executable, str(SCRIPT), "--json", *request.param]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def named(row):
    return f"{row['kernel']} ({row['label']}) on sm_{row['arch']}"


def test_every_kernel_is_compiled_for_every_architecture(figures):
    names = {name for _, name in kernels()}
    assert len(names) >= 4
    assert {(row["kernel"], row["arch"]) for row in figures} == {
        (name, arch) for name in names for arch in (80, 90, 100, 120)
    }


SPILLS = {("aggregate_log_density_bwd_pairs_kernel", 100): 6}
"""Instructions that spill, where some are known to: within the 128 registers that the launch allows."""


def test_nothing_else_spills_and_nothing_else_has_a_stack_frame(figures):
    spilling = [
        named(row)
        for row in figures
        if row["spilled"] > SPILLS.get((row["kernel"], row["arch"]), 0)
        or (row["stack"] and not row["spilled"])
    ]
    assert spilling == []


def test_a_program_leaves_registers_for_others(figures):
    """Up to 128 registers a thread, four programs of four warps share a multiprocessor."""
    assert [f"{named(row)}: {row['registers']}" for row in figures if row["registers"] > 128] == []


def test_rows_of_a_multiple_of_sixteen_are_read_in_128_bits(figures):
    # aggregate_log_density reads columns of tables that stay in the cache: arithmetic bounds it, not memory;
    # gather_bits reads a byte where it writes 32; draw reads a key, two have scalars; Adam's and maps are below
    others = (
        "aggregate_log_density",
        "bias_activation",
        "gather_bits",
        "draw",
        "controller",
        "ledger",
        "adam",
        "norm",
    )
    streaming = [row for row in figures if not row["kernel"].startswith(others)]
    wide = [row for row in streaming if row["label"].startswith(("64 128 float32 dense", "64 4096 float32"))]
    assert {row["kernel"] for row in wide} == {row["kernel"] for row in streaming}
    assert [named(row) for row in wide if row["wide_loads"] == 0] == []


def test_gathered_images_of_floats_are_written_in_128_bits(figures):
    images = [row for row in figures if row["kernel"] == "gather_bits_fwd_kernel" and "4096" in row["label"]]
    assert {row["arch"] for row in images} == {80, 90, 100, 120}
    assert [named(row) for row in images if "float" in row["label"] and row["wide_stores"] == 0] == []


def test_maps_are_read_and_written_in_128_bits(figures):
    maps = [row for row in figures if row["kernel"].startswith("bias_activation")]
    wide = [row for row in maps if "(64, 32, 32, 32) float32" in row["label"]]
    assert {row["kernel"] for row in wide} == {"bias_activation_fwd_kernel", "bias_activation_bwd_kernel"}
    assert [named(row) for row in wide if not (row["wide_loads"] and row["wide_stores"])] == []


def test_whole_blocks_of_parameters_are_read_and_written_in_128_bits(figures):
    nets = [row for row in figures if row["label"].startswith(("burgess", "discriminator"))]
    assert {row["kernel"] for row in nets} == {"norm_kernel", "adam_kernel"}
    for row in nets:
        # a thread has eight elements of a gradient, and of its weight and moments
        assert row["wide_loads"] >= (2 if row["kernel"] == "norm_kernel" else 8), named(row)
        if row["kernel"] == "adam_kernel":
            assert row["wide_stores"] >= 6, named(row)
            assert row["shared"] == 0, named(row)  # through which layouts are converted


def test_a_partial_sum_is_stored_and_read_around_an_acquire_and_release(figures):
    handed = [row for row in figures if row["hands_over"] is not None]
    assert {(row["kernel"], row["arch"]) for row in handed} == {
        (kernel, arch)
        for kernel in ("norm_kernel", "bias_activation_bwd_kernel")
        for arch in (80, 90, 100, 120)
    }
    assert [named(row) for row in handed if not row["hands_over"]] == []
    assert all(row["hands_over"] for row in figures if row["kernel"] == "norm_kernel")
