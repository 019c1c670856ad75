"""What `make gpu` does, in order of worth: each stage's limit, and the files whose change makes its results stale."""

from dataclasses import dataclass


def _files(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names.split())


DEVICE_CODE = ("kernels/*.py", "csrc/**/*")
OPS = (
    *DEVICE_CODE,
    *("pyvae/base/*.py", "pyvae/ops/*.py", "pyvae/reference/*.py", "setup.py"),
    *_files("pyvae", "random backend functional"),
)
STEP = (
    *OPS,
    *_files("pyvae", "control schedules bounds"),
    *(
        "pyvae/nets/*.py",
        "pyvae/engine/*.py",
        "pyvae/engine/fused/*.py",
        "pyvae/objectives/*.py",
        "pyvae/data/*.py",
    ),
)
SMALL_DATA = ("tests/tiny.py",)
STEPS_OF_TESTS = (*STEP, *_files("tests", "test_trainer train_own"), "examples/own/*.py", *SMALL_DATA)
RATES = _files("benchmarks", "bench_train step_rate")
TRAINING = (*STEP, *RATES, "pyvae/recipes.py")
FUSED = (
    *(*TRAINING, *SMALL_DATA),
    *_files("benchmarks/gpu_stages", "beside fused_reference fused_run"),
)
FUSED_TIMES = (*FUSED, *_files("benchmarks/gpu_stages", "barriers clock rates"), "benchmarks/**/predict*")
CONSTANTS = _files("benchmarks/gpu_stages", "barriers clock")
TIMED = (*OPS, "benchmarks/bench_*.py", "benchmarks/interleaved.py")
TABLES = (
    *(*STEP, "pyvae/metrics/*.py", "pyvae/studies/*.py", "pyvae/evaluation/*.py"),
    "pyvae/recipes.py",
)
TOYS = (*_files("pyvae/evaluation", "signal_to_noise"), *_files("pyvae/studies", "toys"))
EVERYTHING = (*DEVICE_CODE, "setup.py", "pyvae/**/*.py", "tests/*.py")


@dataclass(frozen=True)
class Stage:
    """A part of the work, in a process of its own."""

    name: str
    """Also a function, in the module of ``where``."""
    where: str
    """Its module, whose change makes results stale too."""
    seconds: int
    """After which it is ended; what it has written by then counts."""
    reads: tuple[str, ...]
    """Files, from the root of the repository, whose change makes its results stale."""
    per_card: bool = False
    """Whether results of another card are none: times."""
    beside: bool = False
    """Whether it runs beside the stage before it."""
    always: bool = False
    """Whether it prepares the machine, which every call must."""
    includes: str = ""
    """A stage whose cases are among its own, and need not be run twice."""


STAGES = (
    Stage("build", "gpu_stages.environment", 90, (*DEVICE_CODE, "setup.py"), always=True),
    Stage("data", "gpu_stages.environment", 60, ("pyvae/data/*.py",), beside=True, always=True),
    Stage("fused_compile", "gpu_stages.fused_agree", 120, FUSED, beside=True, always=True),
    # the engine of our own kernels: integers, on which every comparison stands, is it right, do early launches pay, how
    # fast is it, which kernels are slower than predicted
    Stage("integers", "gpu_stages.agreement", 15, STEP),
    Stage("fused_agree", "gpu_stages.fused_agree", 40, FUSED),
    Stage("early_launches", "gpu_stages.fused_times", 10, FUSED_TIMES, per_card=True),
    Stage("fused_rates", "gpu_stages.fused_times", 60, FUSED_TIMES, per_card=True),
    Stage("fused_kernels", "gpu_stages.fused_times", 20, FUSED_TIMES, per_card=True),
    Stage("fused_members", "gpu_stages.fused_times", 40, FUSED_TIMES, per_card=True),
    Stage("ensembles", "gpu_stages.ensembles", 90, FUSED, per_card=True),
    Stage("fused_training", "gpu_stages.fused_training", 55, FUSED, per_card=True),
    Stage("fused_sanitized", "gpu_stages.fused_sanitized", 60, FUSED),
    Stage("fused_num_stages", "gpu_stages.fused_times", 40, FUSED_TIMES, per_card=True),
    # torch's engine: how fast, then what is right
    Stage("rates", "gpu_stages.rates", 40, TRAINING, per_card=True),
    Stage("ops_agree", "gpu_stages.agreement", 130, OPS),
    Stage("steps_agree", "gpu_stages.agreement", 90, STEPS_OF_TESTS),
    Stage("captured", "gpu_stages.captured", 90, STEPS_OF_TESTS),
    # how fast, and what decides designs: what takes seconds first
    Stage("kernels", "gpu_stages.rates", 45, TRAINING, per_card=True),
    Stage("popular", "gpu_stages.rates", 40, RATES, per_card=True),
    Stage("launches", "gpu_stages.constants", 30, CONSTANTS, per_card=True),
    Stage("optimizers", "gpu_stages.constants", 20, (*TRAINING, *CONSTANTS), per_card=True),
    Stage("convolutions", "gpu_stages.constants", 60, CONSTANTS, per_card=True),
    Stage("both_migs", "gpu_stages.timings", 40, (*OPS, "benchmarks/bench_metrics.py"), per_card=True),
    Stage("objectives", "gpu_stages.rates", 90, TRAINING, per_card=True),
    Stage("small_ops", "gpu_stages.timings", 120, TIMED, per_card=True),
    Stage("compiled", "gpu_stages.rates", 150, TRAINING, per_card=True),
    Stage("popular_compiled", "gpu_stages.rates", 150, RATES, per_card=True),
    # the rest, as time allows
    Stage("fused_tiles", "gpu_stages.fused_tiles", 120, FUSED_TIMES, per_card=True),
    Stage("chosen_tests", "gpu_stages.pytests", 180, EVERYTHING),
    Stage("captured_rest", "gpu_stages.captured", 240, STEPS_OF_TESTS),
    Stage("large_ops", "gpu_stages.timings", 150, TIMED, per_card=True),
    Stage("counted", "gpu_stages.rates", 90, TRAINING, per_card=True),
    Stage("all_tests", "gpu_stages.pytests", 400, EVERYTHING, includes="chosen_tests"),
    Stage("published_tables", "gpu_stages.tables", 600, TABLES),
    Stage("toys", "gpu_stages.tables", 600, TOYS, beside=True),
    Stage("tuned_ops", "gpu_stages.timings", 240, TIMED, per_card=True),
)
