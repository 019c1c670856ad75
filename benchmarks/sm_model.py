"""How long a streaming multiprocessor of an H100 takes for programs, from their machine code, without having one.

Warps issue in order, when the stall counts and scoreboards that the assembler wrote into each instruction say so;
units take what they take; four schedulers issue one instruction a clock each. Memory always answers from the L2,
instructions are always there, and L2 and memory have no limit: a lower bound. No chip has calibrated any of it:
believe it to +-40 %, and differences between variants of one kernel more than that.
"""

import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple

from machine_code import Code, Instruction

CLOCK_GHZ = 1.98
MULTIPROCESSORS = 132
_REGISTERS, _SHARED, _WARPS, _PROGRAMS = 65_536, 233_472, 64, 32
_RESERVED_SHARED = 1024
_BEHIND_WGMMA, _BARRIER, _READ, _FENCE = 30, 15, 14, 8
"""Clocks: until a sum may be read, for a barrier, until a source may be overwritten, for what orders memory."""


class Timing(NamedTuple):
    """What the model knows of an instruction, in clocks."""

    unit: str
    busy: float
    """For which its unit takes no other."""
    latency: float
    """After which its scoreboard is free."""
    stall: int
    """Before the warp's next instruction."""
    writes: int
    reads: int
    waits: int
    """Scoreboards: of its result, of its sources, 7 for none; a bit for each that it waits for."""
    role: str = ""
    keeps: int = 0
    """Of a wait for groups: so many may be unfinished."""
    signals: bool = False


class Loop(NamedTuple):
    """Between two indices of instructions, both included."""

    first: int
    last: int


class Time(NamedTuple):
    clocks: float
    issued: int


_NO_UNIT = (
    *("U", "BAR", "WARPGROUP", "DEPBAR", "BRA", "EXIT", "NOP", "MEMBAR", "FENCE", "ACQBULK", "PREEXIT"),
    *("WARPSYNC", "ELECT", "VOTE", "BSYNC", "BSSY", "ERRBAR", "PLOP", "P2R", "R2P"),
)
# operations that begin so; unit; clocks for a unit of 4 bytes a thread ("wide") or at all; latency
_UNITS: tuple[tuple[tuple[str, ...], str, str | float, float], ...] = (
    (("LDGSTS",), "memory", "wide", 20),
    (("LDG", "LD."), "memory", "wide", 290),
    (("LDSM",), "memory", "matrices", 33),
    (("LDS",), "memory", "wide", 30),
    (("STSM",), "memory", "matrices", 12),
    (("STS", "STG"), "memory", "wide", 12),
    (("SHFL",), "memory", 1, 24),
    (("ATOM", "RED"), "memory", 2, 700),
    (("MUFU", "I2F.", "F2I."), "special", 8, 24),
    (("LDC",), "", 0, 60),
    (("S2R", "S2UR"), "", 0, 30),
    (("R2UR",), "", 0, 12),
    (("CCTL",), "", 0, 20),
    (("DADD", "DMUL", "DFMA", "DSETP"), "double", 2, 16),
    (("FADD", "FMUL", "FFMA", "FMNMX", "IMAD", "HFMA", "HADD", "CS2R", "MOV", "FSEL", "FSETP"), "fma", 1, 5),
    (_NO_UNIT, "", 0, 20),
)
_COPY = 310  # from memory into shared memory


def seats(code: Code, warps: int) -> int:
    """Programs that are on a multiprocessor at a time."""
    registers = -(-max(code.registers, 24) // 8) * 8
    return max(
        1,
        min(
            _REGISTERS // (registers * 32 * warps),
            _SHARED // (code.shared + _RESERVED_SHARED),
            _WARPS // warps,
            _PROGRAMS,
        ),
    )


def loops(code: Code) -> list[Loop]:
    """Those that load or multiply, in their order; not the short ones of who waits for a barrier."""
    found = []
    for at, instruction in enumerate(code.instructions):
        to = _target(code, instruction)
        if to is not None and to < at:
            body = code.instructions[to:at]
            if any(i.operation.startswith(("LDG", "HMMA", "HGMMA")) for i in body):
                found.append(Loop(to, at))
    return found


def trace(code: Code, trips: Sequence[int]) -> list[int]:
    """Indices of the instructions of a program whose loops run so often each, none for 0.

    Of branches the one is taken that leads through all of these loops; else none, but all where counts are negative.
    """
    known = loops(code)
    if len(known) != len(trips):
        raise ValueError(f"{len(trips)} counts for {len(known)} loops")
    back = {loop.last: (loop, count) for loop, count in zip(known, trips, strict=True)}
    heads = {loop.first: count for loop, count in zip(known, trips, strict=True)}
    end = len(code.instructions)
    # loops ahead on the best way from here to the end, of which there is none through a loop that does not run
    ahead = [float("-inf")] * (end + 1)
    for at in reversed(range(end)):
        ahead[at] = max((ahead[to] for to in _next(code, at)), default=0.0)
        if at in heads:
            ahead[at] = ahead[at] + 1 if heads[at] > 0 else float("-inf")
    skips = any(count < 0 for count in trips)
    order, left, at = [], {last: count for last, (_, count) in back.items()}, 0
    while True:
        order.append(at)
        if at in back and left[at] > 1:
            left[at] -= 1
            at = back[at][0].first
            continue
        if at in back:
            left[at] = back[at][1]
        following = _next(code, at)[:: -1 if skips else 1]
        if not following:
            return order
        at = max(following, key=lambda to: ahead[to])


def simulate(code: Code, traces: Sequence[Sequence[int]], warps: int) -> Time:
    """Run programs on one multiprocessor, as many at a time as there are seats, until the last has ended."""
    return _Multiprocessor([_timing(i) for i in code.instructions], traces, warps, seats(code, warps)).run()


def _target(code: Code, instruction: Instruction) -> int | None:
    found = re.search(r"BRA.*\((\.L_x_\d+)\)", instruction.text)
    return code.labels[found[1]] if found else None


def _next(code: Code, at: int) -> list[int]:
    """What may follow an instruction but for going back, first what does if no branch is taken."""
    instruction = code.instructions[at]
    predicated = (
        instruction.text.startswith("@") or "BRA P" in instruction.text or "BRA !P" in instruction.text
    )
    if instruction.operation == "EXIT" and not predicated:
        return []  # predicated, it ends warps that have nothing more to store, while others have
    to = _target(code, instruction)
    if to is None or to <= at:
        return [at + 1] if at + 1 < len(code.instructions) else []
    return [at + 1, to] if predicated else [to]


def _timing(instruction: Instruction) -> Timing:
    control, operation, text = instruction.encoding >> 41, instruction.operation, instruction.text
    stall, writes, reads, waits = control & 15, (control >> 5) & 7, (control >> 8) & 7, (control >> 11) & 63
    unit, busy, latency, role, keeps, signals = "alu", 2.0, 6.0, "", 0, False
    if operation.startswith("HGMMA"):
        columns, depth = map(int, re.search(r"64x(\d+)x(\d+)", text).groups())
        unit, busy, latency = "tensor", 16 * columns * depth / (512 if depth == 16 else 256), 20
        role, signals = "wgmma", "gsb0" in text
    elif operation.startswith("HMMA"):
        unit, busy, latency = "tensor", 8 if "16816" in operation or "TF32" in operation else 4, 20
    else:
        for prefixes, name, clocks, until in _UNITS:
            if operation.startswith(prefixes):
                unit, latency = name, until
                wide = 4 if ".128" in operation else 2 if ".64" in operation else 1
                matrices = 4 if operation.endswith(".4") else 2 if operation.endswith(".2") else 1
                busy = {"wide": wide, "matrices": matrices}.get(clocks, clocks)
                break
    if operation.startswith("LDGSTS"):
        busy, role = busy + 1, "copy"
    elif operation.startswith("LDGDEPBAR"):
        unit, role = "", "copies"
    elif operation.startswith(("WARPGROUP.DEPBAR", "DEPBAR")):
        role = "wait for wgmma" if operation.startswith("W") else "wait for copies"
        last = re.search(r"(?:gsb0|SB0), 0x([0-9a-f]+)", text)
        keeps = int(last[1], 16) if last else 0
    elif operation.startswith(("BAR.SYNC", "BAR.RED")):
        role = "barrier"
    if operation.startswith(("FENCE", "WARPGROUP.ARRIVE")):
        stall = max(stall, 1) + _FENCE
    return Timing(unit, busy, latency, max(stall, 1), writes, reads, waits, role, keeps, signals)


class _Warp:
    def __init__(self, program: int, scheduler: int, order: Sequence[int]) -> None:
        self.program = program
        self.scheduler = scheduler
        self.order = order
        self.at = 0
        self.free = [0.0] * 6
        self.sums: list[float] = []
        self.copies: list[float] = []
        self.sum_at = self.copied_at = 0.0

    def waits_until(self, timing: Timing) -> float:
        until = 0.0
        if timing.waits:
            until = max(self.free[b] for b in range(6) if timing.waits >> b & 1)
        if timing.role.startswith("wait"):
            groups = self.sums if timing.role == "wait for wgmma" else self.copies
            if len(groups) > timing.keeps:
                until = max(until, groups[len(groups) - timing.keeps - 1])
        return until


class _Multiprocessor:
    def __init__(
        self, timings: Sequence[Timing], traces: Sequence[Sequence[int]], warps: int, seats: int
    ) -> None:
        self.timings = timings
        self.traces = traces
        self.of_program = warps
        self.waiting = list(range(seats, len(traces)))[::-1]
        self.warps: list[_Warp] = []
        self.ready: list[tuple[float, int]] = []
        self.issue_at = [0.0] * 4
        self.unit_at: dict[tuple[str, int], float] = {}
        self.at_barrier: dict[int, list[tuple[float, int]]] = {}
        self.running: dict[int, int] = {}
        self.end = 0.0
        for program in range(min(seats, len(traces))):
            self._begin(program, 0.0)

    def _begin(self, program: int, at: float) -> None:
        self.running[program] = self.of_program
        for number in range(self.of_program):
            self.warps.append(_Warp(program, number % 4, self.traces[program]))
            heapq.heappush(self.ready, (at, len(self.warps) - 1))

    def run(self) -> Time:
        issued = 0
        while self.ready:
            now, number = heapq.heappop(self.ready)
            warp = self.warps[number]
            timing = self.timings[warp.order[warp.at]]
            at = max(now, warp.waits_until(timing), self.issue_at[warp.scheduler])
            if at > now and self.ready and self.ready[0][0] < at:
                heapq.heappush(self.ready, (at, number))
                continue
            self.issue_at[warp.scheduler] = at + 1
            issued += 1
            self._issue(warp, number, timing, at)
        return Time(self.end, issued)

    def _issue(self, warp: _Warp, number: int, timing: Timing, at: float) -> None:
        start = at
        if timing.unit:
            # of which there is one a scheduler, but for memory
            key = timing.unit, 0 if timing.unit == "memory" else warp.scheduler
            start = max(at, self.unit_at.get(key, 0.0))
            self.unit_at[key] = start + timing.busy
        if timing.role == "wgmma":
            warp.sum_at = start + timing.busy + _BEHIND_WGMMA
            if timing.signals:
                warp.sums.append(warp.sum_at)
        elif timing.role == "copy":
            warp.copied_at = max(warp.copied_at, start + _COPY)
        elif timing.role == "copies":
            warp.copies.append(warp.copied_at)
        if timing.writes < 6:
            warp.free[timing.writes] = max(warp.free[timing.writes], start + timing.latency)
        if timing.reads < 6:
            warp.free[timing.reads] = max(warp.free[timing.reads], at + _READ)
        after = at + timing.stall
        warp.at += 1
        if warp.at == len(warp.order):
            self._finish(warp.program, after)
        elif timing.role == "barrier":
            here = self.at_barrier.setdefault(warp.program, [])
            here.append((after, number))
            if len(here) == self.of_program:
                released = max(time for time, _ in here) + _BARRIER
                for _, other in here:
                    heapq.heappush(self.ready, (released, other))
                here.clear()
        else:
            heapq.heappush(self.ready, (after, number))

    def _finish(self, program: int, at: float) -> None:
        self.end = max(self.end, at)
        self.running[program] -= 1
        if not self.running[program] and self.waiting:
            self._begin(self.waiting.pop(), at)
