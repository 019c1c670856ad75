"""Several runs in one page: their numbers, curves, reconstructions and traversals side by side."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.data.subset import subset
from pyvae.engine.files import cause_of, check_writable, make_directory, write_atomically
from pyvae.engine.models import GeneratorModel
from pyvae.engine.recipe import flat, objective_label
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.evaluation.averages import posterior
from pyvae.nets import Autoencoder
from pyvae.objectives import InfoGAN
from pyvae.random import make_key
from pyvae.report import curves, generated, traversal
from pyvae.report.charts import SCRIPT, charts
from pyvae.report.differences import NOTE, numbers_of, table
from pyvae.report.glossary import TERMS, glossary
from pyvae.report.latents import codes_table, latents_table
from pyvae.report.markup import Section, document, kind_of
from pyvae.report.members import Member, member_of, name_of
from pyvae.report.panels import shared_panels
from pyvae.report.strips import strip, strips

NAME = "comparison.html"
KIND = "comparison"
_IMAGES = 12
_COLUMNS = 9
_ROWS = 10
_NOISE = 2


def write_beside(
    runs: Sequence[tuple[RunDirectory, Dataset]], out: Path | None = None, *, span: float = 2.0
) -> Path:
    """Write a page with runs side by side, and nothing else: no file of a run is touched.

    What ``metrics.json`` holds of a run's newest weights is taken from there; averages that it lacks are computed.

    Args:
        runs: two or more, with a checkpoint and their data each. The first is what the others are compared with.
        out: the page; by default ``comparison.html`` in the folder that holds all of the runs.
        span: traversals go from ``-span`` to ``span``.

    Returns:
        its path.

    Raises:
        RunError: fewer than two runs or one of them twice, ``out`` is something else, no checkpoint, or a file that
            cannot be read or written.
    """
    folder = _folder([run.path for run, _ in runs])
    out = folder / NAME if out is None else out
    _check(out)
    traversal.check(span, _COLUMNS)
    labels = [os.path.relpath(os.path.abspath(run.path), folder) for run, _ in runs]
    members = [member_of(label, run, dataset) for label, (run, dataset) in zip(labels, runs, strict=True)]
    numbers = [numbers_of(member) for member in members]
    keys = [key for key in TERMS if any(key in own for own in numbers)]
    traces = {member.label: curves.trace_of(member.run) for member in members}
    overlaid = charts(
        shared_panels(traces),
        "Running means over minibatches against the step, a line for each run; C as it is. Terms that one objective "
        "alone has stand there for the runs that have it.",
    )
    sections = [
        Section("Runs", _runs(members, out)),
        Section("Numbers", f"{table(members, numbers, keys)}{NOTE}{glossary(keys)}"),
        Section("What was set otherwise", _settings(members)),
        Section("Training", overlaid if any(trace is not None for trace in traces.values()) else ""),
        Section("The same images reconstructed", _reconstructions(members)),
        Section("What each latent does", _traversals(members, span)),
        Section("Which latent follows which factor", _beside(members, _latents)),
    ]
    title = f"{members[0].label} and {_others(members[1:])}"
    lead = "".join(f'<p class="notice">{html.escape(text)}</p>' for text in _notices(members))
    page = document(title, lead, sections, scripts=[SCRIPT], kind=KIND)
    make_directory(out.parent)
    write_atomically(out, page.encode(errors="backslashreplace"))
    return out


def _folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of the runs."""
    if len(paths) < 2:
        raise RunError("a comparison needs two runs or more")
    whole = [os.path.abspath(path) for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise RunError(f"{path} is named twice: name two different runs")
    return Path(os.path.commonpath([os.path.dirname(path) for path in whole]))


def _check(out: Path) -> None:
    """Refuse to write over what is no such page."""
    try:
        if out.is_dir():
            raise RunError(f"--out {out} is a directory: name a file, as {out / NAME}")
        if os.path.lexists(out) and kind_of(out) != KIND:
            raise RunError(f"{out} is there already and no comparison of runs: name another --out")
    except OSError as error:
        raise RunError(f"cannot read {out}: {cause_of(error)}") from error
    check_writable(out.parent)


def _runs(members: Sequence[Member], out: Path) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("run", "objective", "network", "data", "seed", "device")
    )
    rows = []
    for i, member in enumerate(members):
        recipe, metadata = member.run.recipe, member.trained.metadata
        cells = (
            objective_label(recipe.objective),
            str(recipe.architecture),
            str(metadata.get("data", member.dataset.fingerprint)),
            str(recipe.seed),
            str(metadata.get("device", "")),
        )
        rest = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{_link(members, i, out)}</th>{rest}</tr>')
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _link(members: Sequence[Member], i: int, out: Path) -> str:
    page = members[i].run.path / "report.html"
    if not page.is_file():
        return name_of(members, i)
    # bytes: a name may be none that is text
    place = quote(os.fsencode(os.path.relpath(os.path.abspath(page), os.path.abspath(out.parent))))
    return f'<a href="{html.escape(place)}">{name_of(members, i)}</a>'


def _others(members: Sequence[Member]) -> str:
    return members[0].label if len(members) == 1 else f"{len(members):,} others"


def _notices(members: Sequence[Member]) -> Iterator[str]:
    if len({member.data for member in members}) > 1:
        yield (
            "These runs are of different data: numbers that depend on it have no differences, and the same images "
            "cannot be reconstructed by all of them."
        )
    steps = {member.label: member.trained.steps for member in members}
    if len(set(steps.values())) > 1:
        made = ", ".join(f"{label} {made:,}" for label, made in steps.items())
        yield f"They have made different numbers of steps: {made}."
    for member in members:
        if member.trained.steps < member.run.recipe.steps:
            yield (
                f"{member.label} has made {member.trained.steps:,} of its {member.run.recipe.steps:,} steps."
            )
        trained_on = member.trained.metadata.get("data")
        if trained_on not in (None, member.dataset.fingerprint):
            yield (
                f"The images and results of {member.label} are of other data than it was trained on: "
                f"{member.dataset.fingerprint}."
            )


def _settings(members: Sequence[Member]) -> str:
    """A row for each setting that is not the same in all."""
    values = []
    for member in members:
        recipe = member.run.recipe
        hashes = {f"SHA-256 of {source.file}": source.sha256 for source in recipe.sources}
        values.append(
            {name: str(value) for name, value in {**flat(recipe), **hashes}.items()} | {"format": ""}
        )
    if len({member.data for member in members}) == 1:
        for own in values:
            own.pop("data")  # which is the same wherever it lies
    head = "".join(f'<th scope="col">{name_of(members, i)}</th>' for i in range(len(members)))
    rows = []
    for name in dict.fromkeys(name for own in values for name in own):
        found = [own.get(name, "\u2013") for own in values]
        if len(set(found)) > 1:
            cells = "".join(f"<td>{html.escape(value)}</td>" for value in found)
            rows.append(f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th>{cells}</tr>')
    if not rows:
        return '<p class="note">Nothing: they are of one recipe.</p>'
    return (
        f'<div class="scroll"><table><tr><th scope="col">setting</th>{head}</tr>{"".join(rows)}</table></div>\n'
        '<p class="note">All other settings are the same.</p>'
    )


@torch.inference_mode()
def _reconstructions(members: Sequence[Member]) -> str:
    if len({(m.dataset.fingerprint, m.dataset.image_shape) for m in members}) > 1:
        return ""
    first = members[0].dataset
    index = subset(first, _IMAGES)
    rows = [strip("input", first.images(index), "Images of the data")]
    for i, member in enumerate(members):
        alt = f"The same images, as {member.label} reconstructs them"
        rows.append(strip(name_of(members, i), _reconstructed(member, index), alt))
    note = "Each image is decoded from the mean of its posterior."
    if any(member.run.adversarial for member in members):
        note += (
            " A generator makes it from the codes that its critic reads in the image, and noise that has nothing to do "
            "with it."
        )
    return strips(rows) + f'<p class="note">{html.escape(note)}</p>'


def _reconstructed(member: Member, index: Tensor) -> Tensor:
    net, objective = member.trained.net, member.run.recipe.objective
    if isinstance(net, Autoencoder):
        mu, _ = posterior(net, member.dataset, index)
        return torch.sigmoid(net.decoder(mu))
    assert isinstance(objective, InfoGAN)
    model = GeneratorModel(net, member.dataset.image_shape, objective)
    mu, _ = model.encode(member.dataset.images(index))
    return torch.sigmoid(model.decode(mu, objective.draw(make_key(_NOISE), len(index)).noise))


def _traversals(members: Sequence[Member], span: float) -> str:
    note = (
        f"Each row sets one latent from {-span:g} to {span:g}, highest KL first, with its KL in nats; at most {_ROWS} "
        "rows. All runs of the same data start from the same image. Of a generator, each row moves one code from -1 to "
        "1, or the class through its values, with its bound in nats."
    )
    return _beside(members, lambda member: _traversal(member, span)) + f'<p class="note">{note}</p>'


@torch.inference_mode()
def _traversal(member: Member, span: float) -> str:
    net = member.trained.net
    if not isinstance(net, Autoencoder):
        objective = member.run.recipe.objective
        assert isinstance(objective, InfoGAN)
        moved = generated.moved(objective, net, objective.draw(make_key(_NOISE), 1), _COLUMNS)
        bounds = member.metrics["information_of_codes"]
        rows = [
            strip(f"{name}<br><small>{bounds[j]:.2f}</small>", moved[j], f"Images as {name} moves")
            for j, name in enumerate(generated.names_of(objective)[:_ROWS])
        ]
        return strips(rows)
    seed = traversal.default_seeds(member.dataset)[-1]
    mu, _ = posterior(net, member.dataset, torch.tensor([seed]))
    kl = member.metrics["kl_of_latents"]
    found = traversal.compute(net, member.dataset.images(seed), mu, kl, span, _COLUMNS)
    names = traversal.names_of(net, member.dataset)
    rows = [
        strip(
            f"{html.escape(names[j])}<br><small>{kl[j]:.2f}</small>",
            found.decoded[place],
            f"Images as latent {names[j]} moves",
        )
        for place, j in enumerate(found.order[:_ROWS])
    ]
    return strips(rows)


def _latents(member: Member) -> str:
    if isinstance(member.trained.net, Autoencoder):
        table = latents_table(member.metrics, traversal.names_of(member.trained.net, member.dataset))
    else:
        objective = member.run.recipe.objective
        assert isinstance(objective, InfoGAN)
        table = codes_table(member.metrics["information_of_codes"], generated.names_of(objective))
    return f'<div class="scroll">{table}</div>'


def _beside(members: Sequence[Member], part: Callable[[Member], str]) -> str:
    parts = "".join(f"<div><h3>{name_of(members, i)}</h3>{part(m)}</div>" for i, m in enumerate(members))
    return f'<div class="beside">{parts}</div>'
