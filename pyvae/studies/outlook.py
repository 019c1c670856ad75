"""What a study will take, before it is begun: groups, steps, bytes and time."""

import heapq
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pyvae.data.dataset import Dataset
from pyvae.data.shapes3d import Shapes3D
from pyvae.engine.fused.network import UnknownNetworkError
from pyvae.engine.recipe import Recipe
from pyvae.engine.together import shape_of
from pyvae.engine.trainer import check_data
from pyvae.errors import RecipeError, printable
from pyvae.studies import card
from pyvae.studies.footprint import Images, disk_bytes, member_bytes
from pyvae.studies.groups import Fit, Group, Shape, each_shape, fits_of, most_members, pack
from pyvae.studies.plan import StudyPlan
from pyvae.studies.rates import rate_of

_COLUMNS = ("method", "models", "groups", "steps", "steps/s", "time", "disk", "device memory")
IN_FILE = "; in a study's file, options are keys of [shared]"
"""After what refuses a recipe, which names options of ``pyvae train``."""
Load = Callable[[Recipe], Dataset]


def describe(
    plan: StudyPlan,
    load: Load,
    device: torch.device,
    out: Path,
    *,
    places: int = 1,
    rate: float | None = None,
    log_every: int = 100,
) -> str:
    """What ``pyvae study --plan`` prints: a line for each method, and one for all.

    Where this machine cannot train the study, it is that of the card in pyvae/studies/card.py, by rates measured there.

    Args:
        plan: the study.
        load: the data of a recipe.
        device: to train on, or one like those that do.
        out: directory of the study, of whose disk the free bytes are looked at.
        places: devices that work at the same time.
        rate: steps a second of all models of a group; default: measured here.
        log_every: steps between rows of the trace.

    Raises:
        RecipeError: a recipe can be trained neither here nor on the card.
        DataError: data cannot be read.
    """
    why_not = None
    try:
        fits = fits_of(plan.models, load, device)
    except RecipeError as error:
        why_not = error
        fits = {
            shape: _fit_on_card(recipe, dataset, error)
            for shape, recipe, dataset in each_shape(plan.models, load)
        }
    groups = pack(plan.models, fits, places=places)
    largest: dict[Shape, int] = {}
    for group in groups:
        shape = shape_of(group[0].recipe)
        largest[shape] = max(largest.get(shape, 0), len(group))
    if rate is not None:
        rates, source = dict.fromkeys(fits, rate), "the rate that was given"
    elif why_not is not None:
        rates = {shape: _rate_on_card(fits[shape], members) for shape, members in largest.items()}
        source = f"rates of beta-VAEs of the burgess network measured on an {card.NAME}: others may be slower"
    else:
        rates = {
            shape: _measured(fits[shape].recipe, dataset, device, largest[shape])
            for shape, _, dataset in each_shape(plan.models, load)
        }
        source = "rates measured on this machine"
    rows, seconds = _rows(groups, fits, rates, log_every)
    total = _Row("all")
    for row in rows:
        total.join(row)
    lines = [plan.title, "", *_table([*rows, total]), ""]
    if why_not is not None:
        lines.append(f"This machine cannot train it: {why_not}{IN_FILE}. The table is for an {card.NAME}.")
    where = "one device" if places == 1 else f"{places} devices"
    lines.append(f"On {where}: {show_seconds(_last_end(seconds, places))} of training, by {source}.")
    if room := _lacking(out, total.disk):
        lines.append(room)
    return "\n".join(printable(line) for line in lines)


@dataclass
class _Row:
    """A line of the table."""

    method: str
    models: int = 0
    groups: int = 0
    steps: int = 0
    seconds: float = 0.0
    disk: int = 0
    memory: int = 0

    def join(self, other: "_Row") -> None:
        """Count in what another row has."""
        self.models += other.models
        self.groups += other.groups
        self.steps += other.steps
        self.seconds += other.seconds
        self.disk += other.disk
        self.memory = max(self.memory, other.memory)

    def cells(self) -> tuple[str, ...]:
        rate = self.steps / self.seconds
        return (
            *(self.method, f"{self.models:,}", f"{self.groups:,}", f"{self.steps:,}"),
            f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
            *(
                show_seconds(self.seconds),
                show_bytes(self.disk),
                show_bytes(self.memory) if self.memory else "-",
            ),
        )


def _rows(
    groups: Sequence[Group], fits: dict[Shape, Fit], rates: dict[Shape, float], log_every: int
) -> tuple[list[_Row], list[float]]:
    """A row for each method in the study's order, and the seconds of each group."""
    rows: dict[str, _Row] = {}
    seconds = []
    for group in groups:
        shape = shape_of(group[0].recipe)
        fit = fits[shape]
        memory = 0
        if fit.recipe.engine == "fused":
            memory = len(group) * member_bytes(fit.recipe, fit.images) + fit.images.bytes
        each = fit.recipe.steps / rates[shape]
        seconds.append(each * len(group))
        for n, model in enumerate(group):
            # a group of several methods counts where its first model is
            row = rows.setdefault(model.method, _Row(model.method))
            disk = disk_bytes(model.recipe, fit.images, log_every)
            row.join(_Row("", 1, n == 0, model.recipe.steps, each, disk, memory))
    return list(rows.values()), seconds


def _table(rows: Iterable[_Row]) -> list[str]:
    lines = [_COLUMNS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _measured(recipe: Recipe, dataset: Dataset, device: torch.device, members: int) -> float:
    if isinstance(dataset, Shapes3D) and dataset.pixels is None:
        dataset.to_memory()
    return rate_of(recipe, dataset, device, members)


def _fit_on_card(recipe: Recipe, dataset: Dataset, error: RecipeError) -> Fit:
    """How the card trains what this machine cannot."""
    check_data(recipe, dataset)
    images = Images.of(dataset)
    try:
        if recipe.precision not in card.SLOWER:
            raise error
        return Fit(replace(recipe, engine="fused"), images, most_members(recipe, images, card.MEMORY))
    except (UnknownNetworkError, AttributeError):
        raise error from None


def _rate_on_card(fit: Fit, members: int) -> float:
    return card.rate(fit.recipe, members, fit.images.channels)


def _last_end(seconds: Sequence[float], places: int) -> float:
    """When the last of some devices is through, each of which takes the next group when it is free."""
    free = [0.0] * max(places, 1)
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _lacking(out: Path, disk: int) -> str | None:
    """A line where the disk has less room than the study takes."""
    there = next((path for path in (out, *out.absolute().parents) if path.exists()), None)
    try:
        free = None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None
    if free is None or free >= disk:
        return None
    return f"{out}: its disk has {show_bytes(free)} free, less than the {show_bytes(disk)} that are needed."


def show_seconds(seconds: float) -> str:
    """A length of time in two digits or so: 40 s, 12 min, 7.5 h, 3.1 days."""
    for unit, length, least in (("days", 86_400, 2), ("h", 3_600, 2), ("min", 60, 2)):
        if seconds >= least * length:
            count = seconds / length
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    return f"{seconds:.0f} s"


def show_bytes(count: int) -> str:
    """A size in two digits or so: 40 kB, 1.2 GB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.0f} TB" if size >= 10 else f"{size:.1f} TB"
