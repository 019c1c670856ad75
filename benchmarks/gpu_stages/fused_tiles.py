"""How each launch of the fused step is best cut: rows of its tiles, warps, and how far ahead its loads are."""

import copy
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import fields, replace
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

from gpu_stages.beside import end_with_the_parent
from gpu_stages.cases import Cases, Values
from gpu_stages.clock import Clock
from gpu_stages.fused_run import DRY_TILES, Run, Way, has_pdl, plan_of, store_of
from pyvae.engine.fused.launch import Launch, Operands, Pointer, Tiles, tiles_of
from pyvae.engine.fused.members import Members
from pyvae.engine.fused.plan import Plan

_COUNTS = (1, 16)
_CALLS = {1: 50, 16: 10}
_PROCESSES = 15
"""Which compile, beside the one that measures."""
_FAR = 3e-3
"""Of a norm: what sums in another order may differ by, rounded to operands of 16 bits."""
_SIDES = (4, 8, 16)
_ADAM = "Adam, next batch"
_WEIGHTS = "weight gradients"

_DOWN_16 = (
    "down16=32,128 warps=2,8 stages=1,2,4 | down16=128 warps=8 | down16=128 stages=1,2 | warps=8 stages=1,2 | "
    "down16=128 warps=8 stages=1,2"
)
_DOWN_8 = "down8=32,128 warps=2,8 stages=1,2,4 | down8=32 warps=2 | down8=128 warps=8 | down8=128 stages=2"
_DOWN_4 = (
    "down4=32,64 warps=1,4 stages=1,2,4 | down4=64 warps=4 | down4=32 warps=4 | down4=64 warps=4 stages=2"
)
_UP_16 = "up16=128,512 warps=4 | up16=128 warps=4 | up16=64 warps=2,4 | registers=64"
_UP_8 = "up8=64,256 warps=2,8 | up8=64 warps=2 | up8=256 warps=8"
_UP_4 = "up4=16,32,128 warps=1,2,8 | up4=32 warps=2"
_DENSE = (
    "dense=16,32 dense_columns=16,64 dense_k=64,256 warps=2,8 stages=1,2,4 | dense=32 warps=2 | dense=16 warps=1,2 | "
    "dense_columns=16 warps=2,8 | dense_columns=64 warps=8 | dense_k=256 stages=1,2 | dense_k=64 stages=4"
)
_LATENTS = "latents=32,64 latents_k=64,128 latents_columns=64,128 stages=2,3 | warps=1"
CUTS: dict[Operands, dict[str, str]] = {
    "tf32": {
        _WEIGHTS: "positions_k=32,128 warps=2,8 stages=2,3 positions=512 products=2 | positions_k=32 stages=2 | "
        "positions_k=32 warps=8 | positions_k=128 warps=8 | positions_k=32 products=2 | warps=8 products=2 | "
        "positions_k=128 warps=8 products=2 | positions_k=32 warps=8 products=2",
        "weight gradients, descriptors": "box_stages=1,3 boxes_k=32 warps=8 | boxes_k=32 box_stages=4",
        "encoder.trunk.2 forward": "down16=32,128 warps=2,8 stages=1,3 products=2 | down16=128 warps=8 | "
        "warps=8 stages=1 | down16=128 warps=8 stages=1 | products=2 stages=1 | products=2 warps=8 | "
        "products=2 warps=8 stages=1 | products=2 down16=128 warps=8",
        "decoder.11 data gradient": "down16=32,128 warps=2,8 stages=1,3 products=2 | down16=128 warps=8 | "
        "warps=8 stages=1 | products=2 stages=1 | products=2 warps=8 stages=1",
        "encoder.trunk.2 data gradient, encoder.trunk.0 weight gradient": "up_first_conv=32,128 warps=2,8 stages=2",
        "decoder.13 forward, loss": "loss=32,128 warps=2,8 stages=1,3 products=2 | loss=128 warps=8 | "
        "warps=8 stages=1 | products=2 stages=1",
        "decoder.11 forward": "up16=32,64 warps=2,8 products=2 | up16=256 warps=8 | up16=64 warps=2 | "
        "up16=64 products=2",
        "decoder.13 backward": "loss_backward=64,256 warps=2,8 | loss_backward=256 warps=8",
        "encoder.trunk.0 forward": "first_conv=64,256 warps=2,8 products=2",
        "encoder.trunk.9 forward": "warps=2,8 stages=1,3 dense_k=64 dense_columns=16 products=2 | products=2 stages=1",
    },
    "fp16": {
        _ADAM: "parts=64,128,512 columns=16,64 wide=512,2048 warps=2,8 up_first_conv=128,256 loss_backward=128,512 "
        "positions=2048 | columns=16 warps=8 | columns=64 warps=8 | up_first_conv=256 positions=2048 | "
        "columns=16 loss_backward=512",
        "weight gradients, descriptors": "boxes_k=32,128 warps=8 box_stages=2,3,5 stages=1,3 positions=512,2048 | "
        "boxes_k=128 box_stages=2,3",
        _WEIGHTS: "stages=1,2,4 positions_k=32,128 warps=2,8 positions=256,512,2048 | positions_k=128 warps=8 | "
        "positions=512 positions_k=128",
        "encoder.trunk.2 data gradient, encoder.trunk.0 weight gradient": "up_first_conv=32,128 warps=2,8 "
        "stages=1,3 | up_first_conv=128 stages=1 | up_first_conv=128 warps=8",
        "decoder.13 forward, loss": "loss=32,128 warps=2,8 stages=2,3 | loss=128 warps=8 | loss=32 warps=2",
        "decoder.13 backward": "loss_backward=64,128,512 warps=2,8 | loss_backward=128 warps=2 | "
        "loss_backward=512 warps=8 | registers=64",
        "encoder.trunk.2 forward": _DOWN_16,
        "decoder.11 data gradient": _DOWN_16,
        "decoder.11 forward": _UP_16,
        "encoder.trunk.0 forward": "first_conv=32,128,256 warps=1,2,8 | first_conv=256 warps=8",
        "decoder.9 data gradient": _DOWN_8,
        "encoder.trunk.4 data gradient": _UP_8,
        "decoder.9 forward": _UP_8,
        "encoder.trunk.4 forward": _DOWN_8,
        "decoder.0 data gradient, latents backward, encoder.head data gradient": f"{_LATENTS},4",
        "encoder.head forward, latents, decoder.0 forward": f"{_LATENTS},2",
        "decoder.4 data gradient": _DENSE,
        "encoder.trunk.9 forward": _DENSE,
        "decoder.2 forward": _DENSE,
        "decoder.7 data gradient": _DOWN_4,
        "encoder.trunk.6 forward": _DOWN_4,
        "decoder.7 forward": _UP_4,
        "row, step counter": "warps=1,2,8",
    },
}
"""By the label of a launch: what is tried, one factor after another, or several at once where they stand alone. TF32's
first: of those nothing is known."""


class Cut(NamedTuple):
    """A launch, cut another way than today."""

    way: Way
    label: str
    changes: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.changes) or "today"

    def plan(self, *, dry: bool) -> Plan:
        """That of a step cut so."""
        return _plan(self.way, tuple(x for x in self.changes if x[0] not in _OF_LAUNCH), dry)

    def launch(self, plan: Plan) -> Launch:
        launches = [*plan.forward, *plan.weigh, *plan.backward, *plan.settle]
        found = next(launch for launch in launches if launch.label == self.label)
        for name, value in self.changes:
            if name in ("warps", "stages"):
                found = found._replace(**{name: value})
            elif name in _CONSTANTS:
                constants = {**dict(found.constants), _CONSTANTS[name]: value}
                found = found._replace(constants=tuple(constants.items()))
        return found


_CONSTANTS = {"box_stages": "STAGES", "products": "TF32", "registers": "maxnreg"}
"""Of kernels, or of the compiler. Products 2: of TF32, by tensor cores for bf16."""
_OF_LAUNCH = ("warps", "stages", *_CONSTANTS)


@cache
def _plan(way: Way, changes: tuple[tuple[str, int], ...], dry: bool) -> Plan:
    return plan_of(way, dry=dry, tiles=_tiles(DRY_TILES if dry else tiles_of(way.operands), dict(changes)))


def _tiles(tiles: Tiles, changes: dict[str, int]) -> Tiles:
    names = {field.name for field in fields(Tiles)}
    for name, value in changes.items():
        if name in names:
            tiles = replace(tiles, **{name: value})
            continue
        which = name.rstrip("0123456789")
        of_sides = list(getattr(tiles, which))
        of_sides[_SIDES.index(int(name.removeprefix(which)))] = value
        tiles = replace(tiles, **{which: tuple(of_sides)})
    return tiles


def cuts_of(text: str) -> list[tuple[tuple[str, int], ...]]:
    """``rows=32,64 warps=8 | rows=32 warps=2,8``: a group that begins with several values is of one change after
    another, here three; in the others all is changed at once, and the last has a value each time."""
    found: list[tuple[tuple[str, int], ...]] = []
    for group in text.split("|"):
        factors = [
            (name, [int(value) for value in values.split(",")])
            for name, values in (factor.split("=") for factor in group.split())
        ]
        *rest, (name, values) = factors
        if len(factors[0][1]) > 1:
            found += [((name, value),) for name, values in factors for value in values]
        else:
            held = tuple((other, one) for other, (one,) in rest)
            found += [(*held, (name, value)) for value in values]
    return list(dict.fromkeys(found))


def sweep(device: torch.device) -> dict[str, list[Cut]]:
    """By case, those of one launch, today's first; in order of worth."""
    found: dict[str, list[Cut]] = {}
    for operands, cuts in CUTS.items():
        for said, text in cuts.items():
            label, *boxes = said.split(", descriptors")
            way = Way(operands, descriptors=bool(boxes))
            if boxes and not has_pdl(device):
                continue
            changes: list[tuple[tuple[str, int], ...]] = [(), *cuts_of(text)]
            found[f"{said}, {operands}"] = [Cut(way, label, change) for change in changes]
    return found


_DRY = {"decoder.2 forward, fp16": ["today", "warps=8", "dense_columns=64"]}


def fused_tiles(case: Cases) -> None:
    """Microseconds of every launch, cut in other ways than today, for one member and for 16."""
    cuts = sweep(case.device)
    if case.dry:
        cuts = {name: [cut for cut in cuts[name] if cut.name in kept] for name, kept in _DRY.items()}
    beds = _Beds(case)
    count = 1 if case.dry else min(_PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, get_context("spawn"), end_with_the_parent, (os.getpid(),)) as pool:
        compiled = {cut: pool.submit(_compile, case.dry, cut) for of_one in cuts.values() for cut in of_one}
        try:
            for name, of_one in cuts.items():
                case(name, lambda c=of_one: _measure(case, beds, c, compiled))  # type: ignore[misc]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@cache
def _empty(dry: bool) -> Run:
    """A member in the memory of a CPU, for the types of its arguments."""
    return Run(plan_of(Way(), dry=dry), torch.ones((64, 64), dtype=torch.int64))


def _compile(dry: bool, cut: Cut) -> str:
    """In a process of its own, and without the GPU, whose clock runs: what went wrong, or nothing."""
    torch.set_num_threads(1)
    if dry:
        return ""
    try:
        plan = cut.plan(dry=dry)
        kernel, arguments, named = under(_empty(dry).members, plan).call_of(cut.launch(plan))
        kernel.warmup(*arguments, grid=(1,), **named)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def under(members: Members, plan: Plan) -> Members:
    """The same members, whose step is cut as ``plan`` says: what is of another size, or says where things lie, is made
    anew."""
    found = copy.copy(members)
    found.plan, found.buffers, found._launches = plan, dict(members.buffers), {}
    for name, (size, dtype) in plan.buffers.items():
        if found.buffers[name].shape[1] != size or dtype != found.buffers[name].dtype:
            found.buffers[name] = torch.zeros(
                (len(members.members), size), dtype=dtype, device=members.device
            )
    for name, table in (("tiles", plan.weight_tiles), ("blocks", plan.blocks)):
        found.buffers[name] = torch.tensor(table, dtype=torch.int32, device=members.device).view(1, -1)
    return found


Outcome = dict[str, Tensor]
_COMPARED = ("stats", "master", "exp_avg", "exp_avg_sq", "weights", "row", "batch", "flags")
_SUMMED = ("nll_parts", "kl_parts", "squares")


class _Bed:
    """Members that have made a step, and what they held then."""

    def __init__(self, case: Cases, way: Way, count: int) -> None:
        self.run = Run(
            plan_of(way, dry=case.dry), store_of(case.device, case.dry), range(count), whole=not case.dry
        )
        self.run.advance(1)
        self._held = {name: x.clone() for name, x in self.run.members.buffers.items() if name != "store"}
        plan, held = self.run.plan, self._held["gradients"]
        self._gradients = {name: _whole(plan, held, name) for name in plan.gradients}

    def members(self, plan: Plan) -> Members:
        """As after that step, with the gradients that it has left; each whole in the first of its parts."""
        for name, held in self._held.items():
            self.run.members.buffers[name].copy_(held)
        found = under(self.run.members, plan)
        gradients = found.buffers["gradients"].zero_()
        for name, (offset, _, _) in plan.gradients.items():
            gradients[:, offset : offset + self._gradients[name].shape[1]] = self._gradients[name]
        return found

    def written(self, launch: Launch) -> list[str]:
        """Activations that a launch of today's plan writes: those that are numbers again."""
        places = {at: name for name, at in self.run.plan.activations.items()}
        named = [x.offset for x in launch.arguments if isinstance(x, Pointer) and x.buffer == "activations"]
        found = []
        for name in {places[at] for at in named if at in places}:
            members = self.members(self.run.plan)
            part = segments(members)[name].fill_(float("nan"))
            members.launch([launch])
            if part.isfinite().any():
                found.append(name)
        return found

    def outcome(self, members: Members, launch: Launch, written: list[str]) -> Outcome:
        """What a launch leaves in everything that it may write."""
        plan, buffers, parts = members.plan, members.buffers, segments(members)
        spoilt = [parts[name] for name in written]
        spoilt += [] if launch.label == _ADAM else [buffers["gradients"]]
        spoilt += [] if launch.kernel[1] == "member_rows_kernel" else [buffers[name] for name in _SUMMED]
        for buffer in spoilt:
            buffer.fill_(float("nan"))
        members.launch([launch])
        found = {name: buffers[name].clone() for name in _COMPARED}
        found |= {name: buffers[name].double().sum(1) for name in _SUMMED}
        found |= {f"at {name}": part.clone() for name, part in parts.items()}
        return found | {name: _whole(plan, buffers["gradients"], name) for name in plan.gradients}


def segments(members: Members) -> dict[str, Tensor]:
    """Activations by name, of all members."""
    places = sorted((at, name) for name, at in members.plan.activations.items())
    held = members.buffers["activations"]
    stops = [*(at for at, _ in places[1:]), held.shape[1]]
    return {name: held[:, start:stop] for (start, name), stop in zip(places, stops, strict=True)}


def _whole(plan: Plan, gradients: Tensor, name: str) -> Tensor:
    """The gradient of a parameter, of all members, from its parts."""
    offset, parts, stride = plan.gradients[name]
    size = plan.layout.parameters[name].size
    return gradients[:, offset : offset + parts * stride].view(-1, parts, stride)[..., :size].sum(1)


class _Beds:
    def __init__(self, case: Cases) -> None:
        self._case = case
        self._held: dict[tuple[Way, int], _Bed] = {}

    def of(self, way: Way, count: int) -> _Bed:
        if (way, count) not in self._held:
            # of two ways alone: 16 members take a gigabyte
            self._held = {key: bed for key, bed in self._held.items() if key[0] == way}
            self._held[way, count] = _Bed(self._case, way, count)
        return self._held[way, count]


def _measure(case: Cases, beds: _Beds, cuts: list[Cut], compiled: dict[Cut, "Future[str]"]) -> Values:
    """Of each cut, microseconds for each number of members; None where a chip has no room. And which are wrong."""
    us: dict[str, list[float | None]] = {}
    wrong: list[str] = []
    outcome: Outcome | None = None
    written: list[str] | None = None
    for cut in cuts:
        error = compiled[cut].result(timeout=max(case.left, 1.0))
        us[cut.name] = [None] * len(_COUNTS)
        if error:
            wrong.append(f"{cut.name}: {error}")
            continue
        for at, count in enumerate(_COUNTS[:1] if case.dry else _COUNTS):
            bed = beds.of(cut.way, count)
            plan = cut.plan(dry=case.dry)
            launch = cut.launch(plan)
            try:
                if written is None:
                    written = [] if launch.label == _WEIGHTS else bed.written(launch)
                members = bed.members(plan)
                if count == _COUNTS[0]:
                    found = bed.outcome(members, launch, written)
                    outcome = outcome or found
                    wrong += [f"{cut.name}: {name}" for name in far(outcome, found)]
                call = lambda m=members, one=launch: m.launch([one])  # noqa: E731
                us[cut.name][at] = Clock(case, _CALLS[count]).in_a_graph(call)
            except Exception as error:
                if type(error).__name__ != "OutOfResources":
                    raise
                break
    return {
        "us": us,
        "fastest": [_fastest(us, at) for at in range(len(_COUNTS))],
        "ok": not wrong,
        **({"error": "; ".join(wrong)[:600]} if wrong else {}),
    }


def far(one: Outcome, two: Outcome) -> Iterator[str]:
    """Names of what differs by more than another order of sums explains, or is finite in one of them alone."""
    for name, right in one.items():
        ours = two[name]
        if not right.is_floating_point() or ours.shape != right.shape:
            if not torch.equal(right, ours):
                yield name
            continue
        right, ours = right.double(), ours.double()
        known = right.isfinite()
        if not torch.equal(known, ours.isfinite()):
            yield f"{name} (not finite)"
        elif (
            known.any() and float((ours - right)[known].norm() / right[known].norm().clamp_min(1e-30)) > _FAR
        ):
            yield name


def _fastest(us: dict[str, list[float | None]], at: int) -> str | None:
    known = [(times[at], name) for name, times in us.items() if times[at] is not None]
    return min(known)[1] if known else None  # type: ignore[type-var]
