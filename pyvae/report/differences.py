"""Numbers of several runs, their differences to the first, and which is best."""

from __future__ import annotations

import html
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from pyvae.report.glossary import TERMS, scores_in, term
from pyvae.report.latents import active_latents
from pyvae.report.members import Member, name_of

_DIGITS = {"recon": 2, "kl": 2, "elbo": 2, "log_p": 2, "iwae_64": 2, "effective_sample_size": 1, "speed": 1}
_COUNTS = ("active_units", "active_latents", "steps")


class Number(NamedTuple):
    """A number of a run."""

    value: float
    basis: Hashable
    """What it is of: two numbers are compared where this is the same."""
    error: float = 0.0


def numbers_of(member: Member) -> dict[str, Number]:
    """By the names of ``TERMS``."""
    metrics, trained = member.metrics, member.trained
    found = {"steps": Number(trained.steps, None)}
    if trained.steps_per_second:
        found["speed"] = Number(trained.steps_per_second, trained.metadata.get("device"))
    if "recon" in metrics:
        nats = (member.data, member.run.recipe.likelihood)
        found |= {key: Number(metrics[key], nats) for key in ("recon", "elbo")}
        found["kl"] = Number(metrics["kl"], member.data)
        kl = metrics["kl_of_latents"]
        found["active_latents"] = Number(active_latents(kl), len(kl))
    if (known := metrics.get("marginal_likelihood")) is not None:
        of = tuple(known[part] for part in ("data", "images", "samples", "seed"))
        for key in ("log_p", "iwae_64", "effective_sample_size", "active_units"):
            error = known["log_p_error"] or 0.0 if key == "log_p" else 0.0
            found[key] = Number(known[key], of, error)
    scores = metrics.get("scores", {})
    for key, value in scores_in(scores):
        parts = scores[key.partition(".")[0]]
        apart = (tuple(parts.get("factors", ())), parts.get("images"), parts.get("seed"))
        found[key] = Number(value, (member.data, apart))
    if "information" in metrics:
        found["information"] = Number(metrics["information"], len(metrics["information_of_codes"]))
    return found


NOTE = (
    '<p class="note">In brackets the difference to the first run, where both numbers are of the same data, factors, '
    "likelihood of pixels or device, so that they can be compared. The best of a row is marked where a direction is "
    "known to be good, and where all of it can be compared. These are single runs: another seed may move a number by "
    "as much. Scores that a run lacks are computed by <code>pyvae evaluate</code>.</p>"
)


def table(members: Sequence[Member], numbers: Sequence[Mapping[str, Number]], keys: Sequence[str]) -> str:
    """A row for each of the keys, a column for each run."""
    head = "".join(f'<th scope="col" class="number">{name_of(members, i)}</th>' for i in range(len(members)))
    rows = [f'<tr><th scope="col">number</th>{head}</tr>']
    for key in keys:
        found = [own.get(key) for own in numbers]
        best = _best(key, found)
        cells = []
        for i, number in enumerate(found):
            if number is None:
                cells.append('<td class="number">\u2013</td>')
                continue
            said = '<span class="said"> (best)</span>' if i in best else ""
            kind = "number strongest" if i in best else "number"
            shown = html.escape(show(key, number.value)) + _difference(key, found[0] if i else None, number)
            cells.append(f'<td class="{kind}">{shown}{said}</td>')
        called = term(key)
        if unit := TERMS[key].unit:
            called = f'<span class="named">{called}, {unit}</span>'
        rows.append(f'<tr><th scope="row">{called}</th>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def show(key: str, value: float) -> str:
    """A number with as many digits as it deserves."""
    return f"{value:,.0f}" if key in _COUNTS else f"{value:.{_DIGITS.get(key, 3)}f}"


def _difference(key: str, first: Number | None, number: Number) -> str:
    if first is None or first.basis != number.basis or not math.isfinite(number.value - first.value):
        return ""
    shown = show(key, number.value - first.value).lstrip("-")
    if float(shown.replace(",", "")) == 0:
        return " <small>(same)</small>"
    sign = "+" if number.value > first.value else "\u2212"
    return f" <small>({sign}{shown})</small>"


def _best(key: str, found: Sequence[Number | None]) -> set[int]:
    """The places of the best number; none where nothing is known to be good, or they do not differ."""
    better = TERMS[key].better
    known = [number for number in found if number is not None]
    if better is None or len(known) < 2 or len({number.basis for number in known}) > 1:
        return set()
    if not all(math.isfinite(number.value) for number in known):
        return set()
    values = [number.value for number in known]
    top = max(values) if better == "higher" else min(values)
    worst = min(values) if better == "higher" else max(values)
    error = max(number.error for number in known)
    if show(key, top) == show(key, worst) or abs(top - worst) <= 2 * error:
        return set()
    return {i for i, n in enumerate(found) if n is not None and show(key, n.value) == show(key, top)}
