"""The ops against eager torch and torch.compile, in CUDA graphs and outside; both MIGs."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import bench_metrics
import bench_ops
import interleaved
from gpu_stages.cases import Cases, Values, refuse_reference
from interleaved import Case
from pyvae import code_histogram, posterior_entropy

_SMALL = 1 << 20
"""Bytes that an op moves at a small size."""
_LIMIT_SECONDS = 1.0


def _bytes(case: Case) -> int:
    return max(case.bytes_of(name) for name in case.functions)


def small_ops(case: Cases) -> None:
    """The smallest size of every op, then the other small ones."""
    smallest, small, _ = _sizes(case)
    _time(case, smallest[:4] if case.dry else [*smallest, *small])


def large_ops(case: Cases) -> None:
    """Sizes that leave the cache, the smaller first."""
    _, small, large = _sizes(case)
    _time(case, small[:1] if case.dry else large)


def tuned_ops(case: Cases) -> None:
    """torch.compile's max-autotune, at one size an op: half a minute each to compile."""
    _time(case, [c for c in bench_ops.cases() if c.autotuned][: 1 if case.dry else None], tuned=True)


def _sizes(case: Cases) -> tuple[list[Case], list[Case], list[Case]]:
    """Each op's smallest size, the other small ones, and the large ones, by the bytes that they move."""
    found = sorted(
        (replace(c, autotuned=False) for c in bench_ops.cases() if case.device.type in c.devices), key=_bytes
    )
    smallest = [next(c for c in found if c.op == op) for op in bench_ops.OPS]
    rest = [c for c in found if c not in smallest]
    return smallest, [c for c in rest if _bytes(c) <= _SMALL], [c for c in rest if _bytes(c) > _SMALL]


def _time(case: Cases, cases: list[Case], *, tuned: bool = False) -> None:
    # a profile of every function takes longer than all the rest
    timing = {"rounds": 9, "block_seconds": 0.01, "limit_seconds": _LIMIT_SECONDS, "profiled": False}
    if case.dry:
        os.environ["PYVAE_BACKEND"] = "native"
        timing |= {"rounds": 3, "block_seconds": 0.0, "limit_seconds": 0.0}
    for one in cases:

        def call(one: Case = one) -> Values:
            refuse_reference(one.op, case.device)
            rows, wrong = interleaved.measure(one, case.device, **timing)
            return {"rows": rows, **({"ok": False, "error": "; ".join(wrong)} if wrong else {})}

        case(f"{one.op}, {one.what}, {one.label}", call, 200 if tuned else 60)


def both_migs(case: Cases) -> None:
    """Counts, entropies, and both from weights, of all of dSprites."""
    device = case.device
    if case.dry:
        case("counts", lambda: _seconds(lambda: code_histogram(torch.randn(144, 4), None, (3, 6, 8)), device))
        return
    refuse_reference("code_histogram", device)
    refuse_reference("posterior_entropy", device)
    codes = bench_metrics.codes()
    mu, logvar = codes.mu.to(device), codes.logvar.to(device)
    sizes = bench_metrics.SIZES
    case("counts", lambda: _seconds(lambda: code_histogram(mu, None, sizes), device))
    case("entropies", lambda: _seconds(lambda: posterior_entropy(mu, logvar, sizes), device))
    case(
        "from weights", lambda: _seconds(bench_metrics.whole_ways(device)["pyvae, from weights"].call, device)
    )

    def agree() -> dict[str, Any]:
        there = posterior_entropy(mu, logvar, sizes).marginal.cpu()
        worst = float((there - posterior_entropy(codes.mu, codes.logvar, sizes).marginal).abs().max())
        return {"ok": worst < 1e-5, "worst_nats": worst}

    case("entropies as on a CPU", agree, 90)


def _seconds(call: Callable[[], object], device: torch.device, times: int = 5) -> dict[str, Any]:
    """Of a call, the first left out."""
    call()
    found = []
    for _ in range(times):
        interleaved.synchronise(device)
        start = time.perf_counter()
        call()
        interleaved.synchronise(device)
        found.append(round(time.perf_counter() - start, 6))
    return {"s": sorted(found)}
