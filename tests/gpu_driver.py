"""A call of benchmarks/gpu.py whose stages are this file's, for tests: ``python gpu_driver.py OUT STAGE...``."""

import ctypes
import os
import sys
import time
from pathlib import Path

CASES = 12


def _note(text: str) -> None:
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{text}\n")


def naps(case) -> None:
    """Short cases, each noted when it ends."""
    for i in range(CASES):

        def nap(i=i):
            time.sleep(0.15)
            _note(f"nap {i}")
            return {"ok": True}

        case(f"nap {i}", nap)


def hangs(case) -> None:
    """Two cases never end, one of them where Python's interpreter is not asked; one ends its process."""
    case("first", lambda: {"ok": True})
    case("hang in C", lambda: {"ok": ctypes.PyDLL(None).sleep(600)}, seconds=1.0)
    case("between", lambda: {"ok": True})
    case("crash", lambda: os._exit(11))
    case("hang", lambda: time.sleep(600), seconds=1.0)
    case("wrong", lambda: {"ok": False, "error": "is wrong"})
    case("raises", lambda: 1 / 0)
    case("last", lambda: {"ok": True})


def endless(case) -> None:
    """Its last case does not end before the stage does."""
    case("first", lambda: {"ok": True})
    case("second", lambda: time.sleep(600), seconds=600)


def broken(case) -> None:
    """Fails outside of any case."""
    case("first", lambda: {"ok": True})
    raise ValueError("no such thing")


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(root / "benchmarks"), str(root)]
    import gpu
    from gpu_stages.plan import Stage
    from gpu_stages.results import DRY

    out, *names = sys.argv[1:]
    call = gpu.Call(Path(out), float(os.environ.get("MINUTES", "2")), DRY)
    seconds = int(os.environ.get("SECONDS", "60"))
    gpu.end_with_a_summary()
    try:
        call.run([Stage(name, "gpu_driver", seconds, ("tests/gpu_driver.py",)) for name in names])
    finally:
        call.close()


if __name__ == "__main__":
    main()
