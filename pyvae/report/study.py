"""The page of a study: our numbers beside the published ones, and what the arms did on the way."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvae.data.dataset import Dataset
from pyvae.engine.files import write_atomically
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.evaluation import read_metrics
from pyvae.evaluation.averages import evaluate
from pyvae.objectives import ControlVAE
from pyvae.report import curves, generated, reconstructions, snapshots, traversal
from pyvae.report.charts import SCRIPT
from pyvae.report.figures import save
from pyvae.report.glossary import glossary
from pyvae.report.markup import Section, document, duration, figure, row
from pyvae.report.panels import OF_ALL, OF_PAIRS, Trace, says_something, smooth
from pyvae.report.trained import load_trained, load_trained_pair
from pyvae.studies.findings import Findings, Measured, Number, Ours, read_findings
from pyvae.studies.published import CERTAINTIES, LIKELIHOODS, QUANTITIES, Published, Quantity
from pyvae.studies.verdict import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPAN = 2.0


def write_page(out: Path, dataset: Dataset) -> Path:
    """Write ``out/report.html``, which holds all of its images, and ``out/figures/``.

    Args:
        out: directory of the study, with its ``results.json`` and its runs.
        dataset: that they were trained on.

    Returns:
        the path of the page.

    Raises:
        RunError: ``results.json`` is missing or damaged, a run is, or a file cannot be written.
    """
    found = read_findings(out)
    runs = {arm: [_run(out, each) for each in found["runs"] if each["arm"] == arm] for arm in found["arms"]}
    first = found["runs"][0]
    finished = len(runs[found["arms"][0]])
    subtitle = (
        f"{found['study']}: {len(found['arms'])} arms, {finished} of {found['seeds']} seeds, on {found['data']}, "
        f"precision {first['recipe']['precision']}, engine "
        f"{' and '.join(sorted({each['engine'] for each in found['runs']}))}"
    )
    notices = "".join(f'<p class="notice">{html.escape(text)}</p>' for text in found["obstacles"])
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found["notes"])
    traces = figure(
        save(_draw_traces(runs), out / "figures/traces.png"),
        "Running means over minibatches against the step, a line for each seed; C as it is.",
        alt="What training minimised and how it went against the step, for every arm and seed",
    )
    sources = "".join(f"<li>{html.escape(source)}</li>" for source in _sources(found))
    sections = [
        Section(
            "Results",
            f'<div class="scroll">{_results(found)}</div>\n<p class="note">{_caption(found)}</p>\n<ul>{notes}</ul>'
            + glossary(LIKELIHOODS.get(quantity, quantity) for quantity in found["quantities"]),
        ),
        Section("Training", traces),
        Section("Arms", "".join(_arm(arm, of_arm[0], dataset) for arm, of_arm in runs.items())),
        Section("Runs", f'<div class="scroll">{_runs(found)}</div>'),
        Section("Sources", f"<ol>{sources}</ol>"),
    ]
    lead = f'<p class="note">{html.escape(subtitle)}</p>\n{notices}'
    path = out / "report.html"
    write_atomically(
        path, document(found["title"], lead, sections, scripts=[SCRIPT]).encode(errors="backslashreplace")
    )
    return path


def _run(out: Path, measured: Measured) -> RunDirectory:
    return RunDirectory.open(out / measured["arm"] / f"seed-{measured['seed']}")


def _results(found: Findings) -> str:
    sources = _sources(found)
    judged = found["reproduction"]
    published = "published" if judged else "published, of a full-length run"
    head = ["arm", "", "ours", published, *(["verdict"] if judged else []), "source"]
    rows = [row(head, numbers=(2, 3), cell="th")]
    for number in found["numbers"]:
        cells = [
            number["arm"],
            QUANTITIES[number["quantity"]],
            _mean(number["quantity"], number["ours"]),
            _published(number).show(),
            *([verdict["text"]] if (verdict := number["verdict"]) else []),
            str(sources.index(_source(number)) + 1),
        ]
        rows.append(row(cells, numbers=(2, 3)))
    return f"<table>{''.join(rows)}</table>"


def _runs(found: Findings) -> str:
    quantities = found["quantities"]
    head = ["arm", "seed", "steps", *(QUANTITIES[q] for q in quantities), "wall time", "steps/s", "device"]
    numbers = tuple(range(1, len(head) - 1))
    rows = [row(head, numbers=numbers, cell="th")]
    for run in found["runs"]:
        seconds, speed = run["seconds"], run["steps_per_second"]
        cells = [
            run["arm"],
            str(run["seed"]),
            f"{run['steps']:,}",
            *(plain(q, run["values"][q]) if q in run["values"] else "" for q in quantities),
            "" if seconds is None else duration(seconds),
            f"{speed:,.1f}" if speed else "",
            run["device"] or "",
        ]
        rows.append(row(cells, numbers=numbers))
    return f"<table>{''.join(rows)}</table>"


def _mean(quantity: Quantity, ours: Ours) -> str:
    if ours["error"] is None:
        return f"{plain(quantity, ours['value'])} (1 seed)"
    return f"{plain(quantity, ours['value'])} ± {plain(quantity, ours['error'])} ({ours['seeds']} seeds)"


def _published(number: Number) -> Published:
    return Published(number["quantity"], **number["published"])


def _source(number: Number) -> str:
    published = number["published"]
    return f"{published['source']} ({CERTAINTIES[published['certainty']]})"


def _sources(found: Findings) -> list[str]:
    return list(dict.fromkeys(_source(number) for number in found["numbers"]))


def _caption(found: Findings) -> str:
    text = (
        "Ours: mean and standard error over seeds, after the last step. Reconstruction and KL are of one sampled z of "
        "each image of a fixed subset, metrics of the codes of all images."
    )
    if found["reproduction"]:
        text += (
            " Agrees: the difference lies within the 95% interval of Student's t for that many seeds, less what the "
            "source's printing or measuring leaves open; a published number of known runs without an error is taken "
            "to scatter as ours do."
        )
    return text


def _arm(name: str, run: RunDirectory, whole: Dataset) -> str:
    head = f"<h3>{html.escape(name)}, seed {run.recipe.seed}</h3>"
    trace = curves.trace_of(run)
    pictures = _generator(run, whole) if run.adversarial else _autoencoder(run, whole, trace)
    return head + curves.draw(run, trace) + pictures


def _generator(run: RunDirectory, whole: Dataset) -> str:
    pair = load_trained_pair(run, whole).net
    *_, codes = generated.draw_codes(run, pair)
    samples = generated.draw_samples(run, pair)
    return (
        figure(samples, generated.SAMPLES_CAPTION, alt=generated.SAMPLES_ALT)
        + figure(codes, generated.CODES_CAPTION, alt=generated.CODES_ALT)
        + snapshots.codes_figures(run)
    )


def _autoencoder(run: RunDirectory, whole: Dataset, trace: Trace | None) -> str:
    trained = load_trained(run, whole)
    # of what metrics.json holds, the scores may have become those of other factors since, by `pyvae evaluate`
    kl = read_metrics(run, trained.steps, whole).get("kl_of_latents")
    dataset = run.shown(whole)
    if kl is None:
        kl = evaluate(trained.net, dataset, run.recipe.likelihood).kl
    seed = traversal.default_seeds(dataset)[-1]
    traversals = traversal.draw(run, trained.net, dataset, kl, span=_SPAN, seeds=(seed,))
    picture = next(path for path, _ in traversals if path.suffix == ".png")
    return (
        figure(
            reconstructions.draw(run, trained.net, dataset), reconstructions.CAPTION, alt=reconstructions.ALT
        )
        + figure(
            picture,
            f"From image {seed:,}: each row sets one latent from {-_SPAN:g} to {_SPAN:g}, highest KL first.",
            alt=f"Decoded images in a row for each latent, from image {seed:,}",
        )
        + snapshots.figures(run, dataset, trace, span=_SPAN)
    )


def _draw_traces(runs: Mapping[str, Sequence[RunDirectory]]) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    traces = {
        name: [trace for run in found if (trace := curves.trace_of(run)) is not None]
        for name, found in runs.items()
    }
    panels = []
    for column, title in [*OF_ALL.items(), ("information", OF_PAIRS["information"])]:
        of_runs = [trace[column] for found in traces.values() for trace in found if column in trace]
        if of_runs and says_something(title, np.concatenate(of_runs)):
            panels.append((column, title))
    rows = max(-(-len(panels) // 2), 1)
    figure = Figure(figsize=(11, 3.3 * rows), layout="constrained")
    for number, (column, title) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, number + 1)
        for arm, (name, found) in enumerate(traces.items()):
            for i, trace in enumerate(trace for trace in found if column in trace):
                values = trace[column] if column == "capacity" else smooth(trace[column])
                axes.plot(
                    trace["step"], values, lw=1.2, color=colormaps["tab10"](arm), label=None if i else name
                )
        if column == "recon" and axes.has_data():
            axes.set_yscale("log")
        if column == "capacity":
            _draw_law(axes, [found[0].recipe for found in runs.values()])
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.has_data():
            axes.legend(fontsize=8, frameon=False)
    return figure


def _draw_law(axes: Any, recipes: Sequence[Recipe]) -> None:
    """The adaptive capacity that follows where beta rises in half of the steps."""
    for recipe in recipes:
        objective = recipe.objective
        if isinstance(objective, ControlVAE) and objective.schedule == "adaptive":
            step = np.linspace(0, recipe.steps, 500)
            left = np.sqrt(np.clip(1 - step / objective.capacity_steps, 0, None))
            capacity = objective.capacity - (objective.capacity - objective.capacity_start) * left
            axes.plot(step, capacity, "k:", lw=1, label="adaptive, if beta rises in half of the steps")
