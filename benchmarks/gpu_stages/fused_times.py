"""How fast the fused engine is: launches, steps, kernels, stages of their loops, and members beside each other."""

from typing import Any

import torch

import bench_train
from gpu_stages import predictions
from gpu_stages.cases import Cases, Values
from gpu_stages.clock import Clock
from gpu_stages.fused_run import (
    ALL,
    OPERANDS,
    STAGES,
    STATE,
    VARIED,
    Run,
    Varied,
    Way,
    has_pdl,
    plan_of,
    store_of,
    timed,
    unequal,
)
from gpu_stages.rates import settle_for
from pyvae.engine.fused.launch import Operands
from pyvae.engine.stepper import BURST

_NODES = 80
_CALLS = 50
_SECONDS = 0.5
_BURSTS = 8
_LIMIT_SECONDS = 20.0
"""Of a case."""
_LIMIT_OF_TORCH = 30.0
"""It took 15 on an H100."""
MEMBERS = (1, 2, 4, 8, 16, 32, 64)


def early_launches(case: Cases) -> None:
    """Kernels that do nothing, one after another and early: what decides whether early launches pay."""
    clock = Clock(case)
    ways = {"one after another": False} | ({"early (PDL)": True} if has_pdl(case.device) else {})
    us: dict[str, float] = {}

    def call(name: str, early: bool) -> Values:
        us[name] = _null_us(clock, early)
        return {"us": us[name], "predicted_us": predictions.LAUNCH_US[name]}

    for name, early in ways.items():
        case(f"{_NODES} null kernels, {name}", lambda n=name, e=early: call(n, e))
    if len(us) == len(predictions.LAUNCH_US):
        case("rule", lambda: _rule(us["one after another"] - us["early (PDL)"]))


def _null_us(clock: Clock, early: bool) -> float:
    from gpu_stages.barriers import null

    x = torch.zeros(32, device=clock.device)

    def run() -> None:
        for _ in range(_NODES):
            null(x, early=early)

    return round(clock.microseconds(clock.graph(run)) / _NODES, 3)


def _rule(saved: float) -> Values:
    least = predictions.LEAST_SAVED_US
    said = f"early launches save {saved:.2f} us each, " + (
        f"{least} or more: they pay"
        if saved >= least
        else f"less than {least}: leave them, and the side branch"
    )
    return {"saved_us": round(saved, 3), "least_us": least, "rule": said}


def fused_rates(case: Cases) -> None:
    """Steps a second of one member, by operands and by how they are launched; torch's captured graph beside it."""
    settle_for(case)

    def fused(*ways: Way) -> None:
        for way in ways:
            case(f"fused, {way}", lambda w=way: _rate(case, w), _LIMIT_SECONDS)

    early = has_pdl(case.device)
    if case.dry:
        fused(Way())
    else:
        fused(*(Way(operands) for operands in OPERANDS))
    if early:
        fused(*(Way(operands, descriptors=True) for operands in OPERANDS))
    for precision in ("fp32",) if case.dry else ("tf32", "bf16"):

        def torch_engine(precision: str = precision) -> Values:
            steps = 1 if case.dry else _BURSTS * BURST
            call = bench_train.ours(steps, capture=True, precision=precision)
            return {"steps_per_second": timed(call, steps, _seconds(case))}

        case(f"torch engine, {precision}", torch_engine, _LIMIT_OF_TORCH)
    if early:
        fused(*(Way(o, pdl=True, side_branch=branch) for branch in (False, True) for o in OPERANDS), ALL)


def _rate(case: Cases, way: Way, members: int = 1) -> Values:
    clock = Clock(case)
    store = store_of(case.device, case.dry)
    # of what the members have; the images are there for all
    before = clock.bytes()
    run = Run(plan_of(way, dry=case.dry), store, range(members), whole=not case.dry)
    steps = 1 if case.dry else _BURSTS * BURST
    of_each = timed(lambda: run.advance(steps), steps, _seconds(case))
    flags = run.members.buffers["flags"]
    return {
        "members": members,
        "steps_per_second": [float(f"{members * x:.5g}") for x in of_each],
        "predicted": predictions.rate(way, members),
        "launches": len(run.launches),
        "mib": round((clock.bytes() - before) / 2**20, 1),
        "ok": not bool(flags.any()),
    }


def count_of(members: int) -> str:
    """In words."""
    return f"{members} {'member' if members == 1 else 'members'}"


def _seconds(case: Cases) -> float:
    return 0.01 if case.dry else _SECONDS


def fused_members(case: Cases) -> None:
    """Steps a second of all members together."""
    # the number of members first: early launches are for few of them, and could be wrong
    runs = [(members, Way("fp16")) for members in MEMBERS] + [(16, Way("tf32"))]
    if has_pdl(case.device):
        runs += [(members, Way("fp16", pdl=True, side_branch=True)) for members in (2, 4, 16)]
        runs += [(16, Way("fp16", descriptors=True))]
    for members, way in runs[1:2] if case.dry else runs:
        case(f"{count_of(members)}, {way}", lambda m=members, w=way: _rate(case, w, m), _LIMIT_SECONDS)


def fused_kernels(case: Cases) -> None:
    """Every kernel by itself, 50 in a graph, for one member and for many, beside its prediction."""
    runs: tuple[tuple[int, Operands], ...] = ((1, "fp16"), (16, "fp16"), (1, "tf32"), (16, "tf32"))
    for members, operands in runs[:1] if case.dry else runs:
        case(f"{count_of(members)}, {operands}", lambda m=members, o=operands: kernel_times(case, m, o))


def kernel_times(case: Cases, members: int, operands: Operands) -> Values:
    """Of each launch: label, microseconds in the graph, those of a member without its launch, those predicted, and
    whether it is slow. A step has run before, so that operands are those of training."""
    clock = Clock(case, _CALLS)
    launch_us = _null_us(clock, early=False)
    run = Run(
        plan_of(Way(operands), dry=case.dry),
        store_of(case.device, case.dry),
        range(members),
        whole=not case.dry,
    )
    run.advance(1)
    predicted = predictions.kernels(operands)
    rows = []
    for launch in run.launches[1:3] if case.dry else run.launches:
        us = clock.in_a_graph(lambda one=launch: run.members.launch([one]))
        rows.append(kernel_row(launch.label, us, launch_us, members, predicted.get(launch.label)))
    slow = [row[0] for row in rows if row[-1]]
    return {
        "launch_us": launch_us,
        "us": round(sum(row[1] for row in rows), 1),
        "kernels": rows,
        "slow": slow,
        "ok": not bool(run.members.buffers["flags"].any()),
    }


def kernel_row(
    label: str, us: float, launch_us: float, members: int, predicted: predictions.Predicted | None
) -> list[Any]:
    """What stands of a kernel in the results."""
    own = max(us - launch_us, 0.0) / members
    said = predicted and (predicted.one if members == 1 else predicted.many)
    return [label, us, round(own, 3), said, bool(said and own > predictions.SLOW * said)]


def fused_num_stages(case: Cases) -> None:
    """How far ahead the loads of a loop are: to the same result, and which is the fastest."""
    for members in (1,) if case.dry else (1, 16):
        for one in VARIED[1:2] if case.dry else VARIED:
            case(f"{one.name}, {count_of(members)}", lambda o=one, m=members: stages_of(case, o, m))


def stages_of(case: Cases, one: Varied, members: int) -> Values:
    """Microseconds by number of stages; None where a chip has no room for so many."""
    clock = Clock(case, _CALLS)
    us: dict[int, float | None] = {}
    first, wrong = None, []
    for stages in STAGES[:2] if case.dry else STAGES:
        plan = plan_of(Way(), dry=case.dry, varied=one._replace(stages=stages))
        run = Run(plan, store_of(case.device, case.dry), range(members), whole=not case.dry)
        try:
            run.advance(1 if case.dry else 3)
        except Exception as error:
            if type(error).__name__ != "OutOfResources":
                raise
            us[stages] = None
            continue
        state = {name: run.members.buffers[name].clone() for name in STATE}
        first = first or state
        wrong += [f"{stages} stages: {name}" for name in unequal(first, state)]
        mine = [launch for launch in run.launches if one.takes(launch)]
        us[stages] = clock.in_a_graph(lambda e=run, m=mine: e.members.launch(m))
    as_planned = plan_of(Way(), dry=case.dry)
    planned = next(x.stages for x in (*as_planned.forward, *as_planned.backward) if one.takes(x))
    fastest = min((u, s) for s, u in us.items() if u is not None)[1]
    return {
        "us": us,
        "fastest": fastest,
        "planned": planned,
        "ok": not wrong,
        **({"error": f"results differ: {', '.join(wrong)}"} if wrong else {}),
    }
