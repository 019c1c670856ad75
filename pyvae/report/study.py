"""The page of a study: our numbers beside the published ones, and what the arms did on the way."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyvae.data.dataset import Dataset
from pyvae.data.mnist import is_test_set, is_training_set
from pyvae.engine.checkpoint import engine_of
from pyvae.engine.files import write_atomically
from pyvae.engine.run import RunDirectory
from pyvae.objectives import ControlVAE
from pyvae.report import curves, reconstructions, snapshots, traversal
from pyvae.report.figures import save, smooth
from pyvae.report.markup import document, duration, figure, row
from pyvae.report.trained import Trained
from pyvae.report.verdict import Verdict, judge, plain
from pyvae.studies.analysis import average
from pyvae.studies.published import CERTAINTIES, QUANTITIES, Published, Quantity, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPAN = 2.0
_DSPRITES = 737_280
_BODY = Template("""<p class="note">$subtitle</p>
$notices
<h2>Results</h2>
<div class="scroll">$results</div>
<p class="note">$caption</p>
<ul>$notes</ul>
<h2>Training</h2>
$traces
<h2>Arms</h2>
$arms
<h2>Runs</h2>
<div class="scroll">$runs</div>
<h2>Sources</h2>
<ol>$sources</ol>
""")


class Measured(NamedTuple):
    """A finished run and what was measured of it."""

    run: RunDirectory
    trained: Trained
    kl: list[float]
    """Of each latent, in nats."""
    values: dict[Quantity, float]


class Findings(NamedTuple):
    """What a study has found so far."""

    name: str
    study: Study
    scale: Fraction
    dataset: Dataset
    seeds: int
    """That were asked for."""
    measured: dict[str, list[Measured]]
    """Finished runs of each arm."""
    held_out: Dataset | None = None
    """Images of the marginal likelihood, where they are not those of ``dataset``."""

    @property
    def obstacles(self) -> list[str]:
        """Why these numbers reproduce nothing."""
        found = []
        if self.scale != 1:
            found.append(
                f"Scaled run: every length is {float(self.scale):.4g} of the published one, rates are not changed. "
                "These numbers are no reproduction and are not judged."
            )
        if not self._published_data:
            found.append(
                f"Other data than the published: {self.dataset.fingerprint}. These numbers are no reproduction and "
                "are not judged."
            )
        if self.study.likelihoods and self.held_out is None:
            found.append(
                "The marginal likelihood is that of training images, the published one of a test set."
            )
        elif self.held_out is not None and self._published_data and not is_test_set(self.held_out):
            found.append(
                f"The marginal likelihood is of {self.held_out.fingerprint}, which is not MNIST's test set. These "
                "numbers are no reproduction and are not judged."
            )
        return found

    @property
    def _published_data(self) -> bool:
        if self.study.data == "mnist":
            return is_training_set(self.dataset)
        return (self.dataset.name, len(self.dataset)) == ("dsprites", _DSPRITES)

    def judgements(self) -> Iterator[tuple[str, Published, list[float], Verdict | None]]:
        """(arm, published number, ours of each seed, verdict); no verdict where something stands in the way."""
        judged = not self.obstacles
        for arm, number in self.study.numbers():
            ours = [m.values[number.quantity] for m in self.measured[arm.name]]
            yield arm.name, number, ours, judge(ours, number) if judged else None


def write_report(findings: Findings, out: Path) -> Path:
    """Write ``out/report.html``, which holds all of its images, ``out/results.json`` and ``out/figures/``.

    Args:
        findings: at least one run of every arm.
        out: directory of the study.

    Returns:
        the path of the page.

    Raises:
        RunError: a file that cannot be written.
    """
    study = findings.study
    runs = [m for arm in study.arms for m in findings.measured[arm.name]]
    finished = len(findings.measured[study.arms[0].name])
    title = study.title
    body = _BODY.substitute(
        subtitle=html.escape(
            f"{findings.name}: {len(study.arms)} arms, {finished} of {findings.seeds} seeds, on "
            f"{findings.dataset.fingerprint}, precision {runs[0].run.recipe.precision}, engine "
            f"{' and '.join(sorted({engine_of(m.trained.metadata) for m in runs}))}"
        ),
        notices="".join(f'<p class="notice">{html.escape(text)}</p>' for text in findings.obstacles),
        results=_results(findings),
        caption=_caption(findings),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in study.notes),
        traces=figure(
            save(_draw_traces(findings), out / "figures/traces.png"),
            "Running means over minibatches against the step, a line for each seed; C as it is.",
        ),
        arms="".join(_arm(arm.name, findings, out) for arm in study.arms),
        runs=_runs(study, findings.measured),
        sources="".join(f"<li>{html.escape(source)}</li>" for source in _sources(study)),
    )
    content = json.dumps(_to_json(findings), indent=2) + "\n"
    write_atomically(out / "results.json", content.encode())
    path = out / "report.html"
    write_atomically(path, document(title, body).encode(errors="backslashreplace"))
    return path


def _to_json(findings: Findings) -> dict[str, Any]:
    study = findings.study
    return {
        "study": findings.name,
        "scale": float(findings.scale),
        "scaled": findings.scale != 1,
        "reproduction": not findings.obstacles,
        "data": findings.dataset.fingerprint,
        "without": list(study.without),
        "numbers": [
            {
                "arm": arm,
                "quantity": number.quantity,
                "ours": average(ours)._asdict(),
                "published": {
                    "value": number.value,
                    "high": number.high,
                    "error": number.error,
                    "runs": number.runs,
                    "source": number.source,
                    "certainty": number.certainty,
                },
                "verdict": verdict and verdict.to_json(),
            }
            for arm, number, ours, verdict in findings.judgements()
        ],
        "runs": [
            {
                "arm": arm.name,
                "seed": m.run.recipe.seed,
                "steps": m.trained.steps,
                "engine": engine_of(m.trained.metadata),
                "values": m.values,
                "seconds": m.trained.metadata.get("seconds"),
                "steps_per_second": m.trained.steps_per_second,
                "device": m.trained.metadata.get("device"),
                "versions": m.trained.metadata.get("versions"),
                "recipe": m.run.recipe.to_json(),
            }
            for arm in study.arms
            for m in findings.measured[arm.name]
        ],
    }


def _results(findings: Findings) -> str:
    sources = _sources(findings.study)
    judged = not findings.obstacles
    published = "published" if judged else "published, of a full-length run"
    head = ["arm", "", "ours", published, *(["verdict"] if judged else []), "source"]
    rows = [row(head, numbers=(2, 3), cell="th")]
    for arm, number, ours, verdict in findings.judgements():
        cells = [
            arm,
            QUANTITIES[number.quantity],
            _mean(number.quantity, ours),
            number.show(),
            *([verdict.text] if verdict else []),
            str(sources.index(_source(number)) + 1),
        ]
        rows.append(row(cells, numbers=(2, 3)))
    return f"<table>{''.join(rows)}</table>"


def _runs(study: Study, measured: dict[str, list[Measured]]) -> str:
    quantities: list[Quantity] = ["recon", "kl", *study.metrics, *study.likelihoods]
    head = ["arm", "seed", "steps", *(QUANTITIES[q] for q in quantities), "wall time", "steps/s", "device"]
    numbers = tuple(range(1, len(head) - 1))
    rows = [row(head, numbers=numbers, cell="th")]
    for arm in study.arms:
        for m in measured[arm.name]:
            speed, metadata = m.trained.steps_per_second, m.trained.metadata
            cells = [
                arm.name,
                str(m.run.recipe.seed),
                f"{m.trained.steps:,}",
                *(plain(q, m.values[q]) for q in quantities),
                duration(metadata["seconds"]) if "seconds" in metadata else "",
                f"{speed:,.1f}" if speed else "",
                metadata.get("device", ""),
            ]
            rows.append(row(cells, numbers=numbers))
    return f"<table>{''.join(rows)}</table>"


def _mean(quantity: Quantity, values: list[float]) -> str:
    mean = average(values)
    if mean.error is None:
        return f"{plain(quantity, mean.value)} (1 seed)"
    return f"{plain(quantity, mean.value)} ± {plain(quantity, mean.error)} ({mean.seeds} seeds)"


def _source(number: Published) -> str:
    return f"{number.source} ({CERTAINTIES[number.certainty]})"


def _sources(study: Study) -> list[str]:
    return list(dict.fromkeys(_source(number) for _, number in study.numbers()))


def _caption(findings: Findings) -> str:
    text = (
        "Ours: mean and standard error over seeds, after the last step. Reconstruction and KL are of one sampled z of "
        "each image of a fixed subset, metrics of the codes of all images."
    )
    if not findings.obstacles:
        text += (
            " Agrees: the difference lies within the 95% interval of Student's t for that many seeds, less what the "
            "source's printing or measuring leaves open; a published number of known runs without an error is taken "
            "to scatter as ours do."
        )
    return text


def _arm(name: str, findings: Findings, out: Path) -> str:
    measured = findings.measured[name][0]
    run = measured.run
    dataset = run.shown(findings.dataset)
    trace = curves.trace_of(run)
    seed = traversal.default_seeds(dataset)[-1]
    traversals = traversal.draw(run, measured.trained.net, dataset, measured.kl, span=_SPAN, seeds=(seed,))
    picture = next(path for path, _ in traversals if path.suffix == ".png")
    return (
        f"<h3>{html.escape(name)}, seed {run.recipe.seed}</h3>"
        + curves.draw(run, trace)
        + figure(reconstructions.draw(run, measured.trained.net, dataset), reconstructions.CAPTION)
        + figure(
            picture,
            f"From image {seed:,}: each row sets one latent from {-_SPAN:g} to {_SPAN:g}, highest KL first.",
        )
        + "".join(figure(*drawn) for drawn in snapshots.draw(run, dataset, trace, span=_SPAN))
    )


def _draw_traces(findings: Findings) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    traces = {
        name: [trace for m in found if (trace := curves.trace_of(m.run)) is not None]
        for name, found in findings.measured.items()
    }
    panels = [
        ("recon", "reconstruction, nats per image"),
        ("kl", "KL, nats per image"),
        ("beta", "weight of the KL in the gradient"),
        ("capacity", "capacity C, nats"),
    ]
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    for number, (column, title) in enumerate(panels):
        axes = figure.add_subplot(2, 2, number + 1)
        for arm, (name, found) in enumerate(traces.items()):
            for i, trace in enumerate(found):
                values = trace[column] if column == "capacity" else smooth(trace[column])
                axes.plot(
                    trace["step"], values, lw=1.2, color=colormaps["tab10"](arm), label=None if i else name
                )
        if column == "recon" and axes.has_data():
            axes.set_yscale("log")
        if column == "capacity":
            _draw_law(axes, findings)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.has_data():
            axes.legend(fontsize=8, frameon=False)
    return figure


def _draw_law(axes: Any, findings: Findings) -> None:
    """The adaptive capacity that follows where beta rises in half of the steps."""
    recipes = [found[0].run.recipe for found in findings.measured.values()]
    for recipe in recipes:
        objective = recipe.objective
        if isinstance(objective, ControlVAE) and objective.schedule == "adaptive":
            step = np.linspace(0, recipe.steps, 500)
            left = np.sqrt(np.clip(1 - step / objective.capacity_steps, 0, None))
            capacity = objective.capacity - (objective.capacity - objective.capacity_start) * left
            axes.plot(step, capacity, "k:", lw=1, label="adaptive, if beta rises in half of the steps")
