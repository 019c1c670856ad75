"""What `make gpu` does, in order of worth: each stage's limit, and the files whose change makes its results stale."""

from dataclasses import dataclass

DEVICE_CODE = ("kernels/*.py", "csrc/**/*")
OPS = (
    *DEVICE_CODE,
    *("pyvae/ops/*.py", "pyvae/reference.py", "pyvae/random.py", "pyvae/backend.py", "setup.py"),
)
NETS = tuple(
    f"pyvae/{name}.py" for name in ("bias_activation", "product", "layers", "nets", "adversarial_nets")
)
STEP = (*OPS, *NETS, "pyvae/constants.py", "pyvae/engine/*.py", "pyvae/objectives/*.py")
CAPTURED = (*STEP, "tests/test_trainer.py")
TRAINING = (*STEP, "benchmarks/bench_train.py")
TIMED = (*OPS, "benchmarks/bench_*.py", "benchmarks/interleaved.py")
EVERYTHING = (*DEVICE_CODE, "pyvae/**/*.py", "tests/*.py")
TOYS = ("pyvae/signal_to_noise.py", "pyvae/toys.py")


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


STAGES = (
    Stage("build", "gpu_stages.environment", 150, (*DEVICE_CODE, "setup.py"), always=True),
    Stage("data", "gpu_stages.environment", 60, ("pyvae/data/*.py",), beside=True, always=True),
    # right or wrong
    Stage("ops_agree", "gpu_stages.agreement", 100, OPS),
    Stage("steps_agree", "gpu_stages.agreement", 60, CAPTURED),
    Stage("integers", "gpu_stages.agreement", 30, OPS),
    Stage("captured", "gpu_stages.captured", 110, CAPTURED),
    # how fast
    Stage("rates", "gpu_stages.rates", 60, TRAINING, per_card=True),
    Stage("kernels", "gpu_stages.rates", 45, STEP, per_card=True),
    Stage("objectives", "gpu_stages.rates", 100, TRAINING, per_card=True),
    Stage("popular", "gpu_stages.rates", 60, ("benchmarks/bench_train.py",), per_card=True),
    Stage("compiled", "gpu_stages.rates", 60, TRAINING, per_card=True),
    Stage("small_ops", "gpu_stages.timings", 90, TIMED, per_card=True),
    Stage("both_migs", "gpu_stages.timings", 40, (*OPS, "benchmarks/bench_metrics.py"), per_card=True),
    # what decides designs
    Stage("launches", "gpu_stages.constants", 30, ("benchmarks/gpu_stages/barriers.py",), per_card=True),
    Stage("optimizers", "gpu_stages.constants", 20, STEP, per_card=True),
    Stage("convolutions", "gpu_stages.constants", 60, (), per_card=True),
    # the rest, as time allows
    Stage("chosen_tests", "gpu_stages.pytests", 180, EVERYTHING),
    Stage("large_ops", "gpu_stages.timings", 150, TIMED, per_card=True),
    Stage("captured_rest", "gpu_stages.captured", 240, CAPTURED),
    Stage("published_tables", "gpu_stages.tables", 600, STEP),
    Stage("toys", "gpu_stages.tables", 600, TOYS, beside=True),
    Stage("all_tests", "gpu_stages.pytests", 600, EVERYTHING),
    Stage("tuned_ops", "gpu_stages.timings", 240, TIMED, per_card=True),
)
