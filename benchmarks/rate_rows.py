"""Rows of a result file of rates, for what reads it: nothing here needs torch."""

from typing import Any


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a file of rates: a name, ``threads``, ``steps_per_second`` and, where it was measured, ``cpu_ms``.

    Older files have one number of threads, that of their machine, and no CPU time.
    """
    if "steps_per_second" in result:
        return [
            {
                "variant": name,
                "threads": result["machine"]["threads"],
                "steps_per_second": result["quartiles"][name],
            }
            for name in result["steps_per_second"]
        ]
    return [{"threads": result["machine"]["threads"], **row} for row in result["rates"]]


def words(threads: int | list[int]) -> str:
    """Such as "1 and 2 threads"."""
    counts = [threads] if isinstance(threads, int) else threads
    return f"{' and '.join(map(str, counts))} thread{'' if counts == [1] else 's'}"
