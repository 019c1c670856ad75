"""UDR of a study's models, each against the other seeds of its method and setting; kept in ``udr.json``."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from pyvae.data.dataset import Dataset
from pyvae.engine.files import write_atomically
from pyvae.engine.plain import checked, read_json
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, reason
from pyvae.metrics import CodeTable, udr
from pyvae.report.cohort import Cohort, Column, open_run
from pyvae.studies.analysis import partners
from pyvae.studies.codes import read_codes, write_codes

_LOG = logging.getLogger(__name__)
_FORMAT = 1


class Ranking(NamedTuple):
    """UDR ``[N]`` of each model, NaN where there is none, and in lines why some have none."""

    scores: Column
    reasons: list[str]


class _Kept(TypedDict):
    format: int
    scores: dict[str, tuple[str, float]]


def rank(cohort: Cohort, out: Path, dataset: Callable[[], Dataset]) -> Ranking:
    """Compare models that differ in their seed alone, as Duan et al. 2020 do, by codes of the same thousand images.

    Where there are more than seven seeds, each model has six of them as partners. Codes that the runs do not hold yet
    are encoded and kept there; scores of cells whose codes are what they were are not computed again.

    Args:
        cohort: of the study.
        out: its directory, where the runs lie.
        dataset: gives the images; asked only where codes are missing.

    Raises:
        RunError: a file that cannot be written.
    """
    cells = [at for at in cohort.cells.values() if len(at) > 1]
    scores = np.full(len(cohort.models), np.nan)
    if not cells:
        return Ranking(
            scores, ["UDR compares seeds of one setting, and no setting has two finished models yet."]
        )
    path = out / "udr.json"
    kept = _read(path)
    there, failed = {**kept}, dict[str, list[str]]()
    for at in cells:
        tables: dict[int, CodeTable] = {}
        of: str | None = None
        for i in at:
            name = cohort.models[i].name
            try:
                data, table = _codes(open_run(out, cohort.models[i]), dataset)
            except PyvaeError as error:
                failed.setdefault(reason(error).replace(str(out / name), "the run"), []).append(name)
                continue
            if of not in (None, data) or (tables and len(table) != len(next(iter(tables.values())))):
                failed.setdefault("its codes are of other images than its partners'", []).append(name)
                continue
            of, tables[i] = data, table
        if len(tables) < 2:
            continue
        names = [cohort.models[i].name for i in tables]
        key = f"{_checksum(names, list(tables.values())):08x}"
        if any(there.get(name, ("", 0.0))[0] != key for name in names):
            found = udr(list(tables.values()), points=None, pairs=partners(len(tables))).scores
            there.update({name: (key, float(score)) for name, score in zip(names, found, strict=True)})
        scores[list(tables)] = [there[name][1] for name in names]
    if there != kept:
        content: _Kept = {"format": _FORMAT, "scores": there}
        write_atomically(path, (json.dumps(content) + "\n").encode())
    return Ranking(scores, [_line(why, names) for why, names in failed.items()])


def _codes(run: RunDirectory, dataset: Callable[[], Dataset]) -> tuple[str, CodeTable]:
    kept = read_codes(run)
    if kept is None:
        _LOG.info("encoding a thousand images with %s, for UDR", run.path)
        kept = write_codes(run, dataset())
    return kept.data, kept.table


def _checksum(names: list[str], tables: list[CodeTable]) -> int:
    found = 0
    for name, table in zip(names, tables, strict=True):
        for part in (name.encode(), table.mu.numpy().tobytes(), table.logvar.numpy().tobytes()):
            found = zlib.crc32(part, found)
    return found


def _read(path: Path) -> dict[str, tuple[str, float]]:
    try:
        kept = checked(read_json(path), _Kept)
    except (OSError, ValueError):  # computed again
        return {}
    return dict(kept["scores"]) if kept["format"] == _FORMAT else {}


def _line(why: str, names: list[str]) -> str:
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"No UDR of {names[0]}{more}: {why}"
