"""The project's tests on the GPU: those that say most, then the rest."""

import json
import os
import subprocess
import sys
import time

from checkout import ROOT
from gpu_stages.cases import Cases, OutOfTimeError

CHOSEN = (
    "((test_captured_steps and bits) or test_captured_stages or test_cpu_and_gpu or test_checks_of_values "
    "or test_a_captured_run or (test_ledger and test_the_kernel) or test_judging or test_the_controllers_kernel "
    "or test_a_trainer_on_kernels or test_known or test_the_same_ or test_counters or test_permutations "
    "or test_adam or test_low_precision or test_draw "
    "or test_layers_of_all_kinds or test_two_steps or test_a_program_goes or test_a_value_that_is_not "
    "or test_histograms or test_entropies or test_two_halves or test_binarised_halves "
    "or (triton and (test_targets_by_reductions or test_half_precision or test_widths or test_layouts "
    "or test_offsets or test_kernel_over or test_densities or test_members or test_small_and_large "
    "or test_confident)) or (triton and mws and test_kernel_against) or test_the_kernels_give) "
    "and not native and not never_waits"
)
FILES = (
    *("cuda_operators", "trainer", "ledger", "philox", "reparameterize_kl", "bernoulli_nll"),
    *("aggregate_log_density", "importance_log_weight", "importance_bounds", "gather_bits", "resume"),
    *("bias_activation", "layers", "adam", "low_precision", "draw"),
)


def chosen_tests(case: Cases) -> None:
    """Some two hundred, of kernels, captures and operators."""
    if case.dry:
        _run(case, ["-k", "test_values or test_cycles", "tests/test_schedules.py"], processes=1)
        return
    _run(case, ["-k", CHOSEN, *(f"tests/test_{name}.py" for name in FILES)])


def all_tests(case: Cases) -> None:
    """Every test that is not slow."""
    if case.dry:
        _run(case, ["tests/test_data_order.py", "-k", "feistel or permutation or epoch"], processes=1)
        return
    _run(case, ["tests"])


def _run(case: Cases, arguments: list[str], processes: int = 8) -> None:
    """Run pytest; each test is a case, written when it ends by gpu_stages.pytest_lines. What is done is left out."""
    lines, skipped = case.out / "tests.tmp.jsonl", case.out / "skipped.tmp.json"
    lines.unlink(missing_ok=True)
    skipped.write_text(json.dumps(sorted(case.skipped)))
    # not those of a pytest that this one may run within
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**own, "PYVAE_GPU_TESTS": str(lines), "PYVAE_GPU_SKIP": str(skipped)}
    environment.pop("PYVAE_BACKEND", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "gpu_stages.pytest_lines",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-m", "not slow", "-n", str(processes), "--dist", "worksteal", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    read = 0
    try:
        while process.poll() is None:
            time.sleep(0.2)
            read = _pass_on(case, lines, read)
            if case.left < 1:
                raise OutOfTimeError
    finally:
        process.kill()
        _pass_on(case, lines, read)
        lines.unlink(missing_ok=True)
        skipped.unlink(missing_ok=True)
    # 5: no tests are left
    if process.returncode not in (0, 1, 5):
        case.emit("pytest", ok=False, error=f"ended with {process.returncode}: see log.txt")
    else:
        case.emit("pytest")


def _pass_on(case: Cases, path: os.PathLike[str], read: int) -> int:
    """Turn the tests' lines from ``read`` on into results."""
    try:
        with open(path, "rb") as file:
            file.seek(read)
            whole, _, _ = file.read().rpartition(b"\n")
    except OSError:
        return read
    for text in whole.splitlines():
        values = json.loads(text)
        case.emit(values.pop("case"), **values)
    return read + len(whole) + (1 if whole else 0)
