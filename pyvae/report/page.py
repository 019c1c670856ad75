"""``report.html``: everything about a run on one page that needs nothing else."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine.files import write_atomically
from pyvae.engine.recipe import objective_label
from pyvae.engine.run import RunDirectory
from pyvae.evaluation import read_likelihood, read_scores, write_metrics
from pyvae.evaluation.averages import Evaluation, evaluate
from pyvae.report import curves, generated, reconstructions, snapshots, traversal
from pyvae.report.explorer import pair_section, section
from pyvae.report.figures import Trace
from pyvae.report.markup import document, duration, figure
from pyvae.report.trained import Trained, TrainedPair, load_trained, load_trained_pair

_BODY = Template("""<p class="note">$subtitle</p>
$notices
<h2>Results</h2>
<div class="columns"><div>$results</div><div class="scroll">$latents</div></div>
<p class="note">$caption</p>
<h2>Training</h2>
$trace
$pictures
<h2>Recipe</h2>
<div class="columns"><div>$recipe</div><div>$provenance</div></div>
""")


def report(run: RunDirectory, dataset: Dataset, *, span: float = 2.0, explorer: bool = True) -> Path:
    """Evaluate the run's newest weights and write ``metrics.json``, ``figures/`` and ``report.html``.

    Args:
        run: with a checkpoint; without a trace there are no curves.
        dataset: that of its recipe.
        span: traversals go from ``-span`` to ``span``.
        explorer: whether the page has sliders, and the decoder's weights to draw with.

    Returns:
        the path of the page, which holds all of its images.

    Raises:
        RunError: no checkpoint yet, images of another shape than the run was trained on, a span that
            cannot be, or a file that cannot be written.
    """
    if run.adversarial:
        return report_pair(run, dataset, explorer=explorer)
    dataset = run.shown(dataset)
    trained = load_trained(run, dataset)
    trace = curves.trace_of(run)
    net, steps = trained.net, trained.steps
    evaluation = evaluate(net, dataset, run.recipe.likelihood)
    metrics = evaluation.to_json(dataset)
    write_metrics(run, steps, dataset, metrics)
    traversals = traversal.draw(run, net, dataset, evaluation.kl, span=span)
    pictures = [
        "<h2>Reconstructions</h2>",
        figure(reconstructions.draw(run, net, dataset), reconstructions.CAPTION),
        section(net, dataset, evaluation) if explorer else "",
        "<h2>Latent traversals</h2>",
        *(
            figure(
                path,
                f"From image {seed:,}: each row sets one latent from {-span:g} to {span:g}, highest KL first.",
            )
            if path.suffix == ".png"
            else figure(path, "The same in motion: one square per latent, highest KL first, in rows of five.")
            for path, seed in traversals
        ),
        _snapshots(run, dataset, trace, span),
    ]
    return _write(
        run,
        dataset,
        trained,
        results=[
            *_results(metrics),
            *_likelihood(read_likelihood(run, steps, dataset)),
            *_scores(read_scores(run, steps, dataset)),
        ],
        latents=_latents(evaluation, dataset),
        caption=_caption(evaluation),
        trace=trace,
        pictures=pictures,
    )


def report_pair(run: RunDirectory, dataset: Dataset, *, explorer: bool = True) -> Path:
    """The page of a generator and its critic: samples, what each code does, and scores of the information head."""
    trained = load_trained_pair(run, dataset)
    trace = curves.trace_of(run)
    bounds = generated.information(run, trained.net)
    total = sum(bounds)
    write_metrics(run, trained.steps, dataset, {"information": total, "information_of_codes": bounds})
    pictures = [
        "<h2>Generated images</h2>",
        figure(generated.draw_samples(run, trained.net), generated.SAMPLES_CAPTION),
        pair_section(generated.objective_of(run), trained.net) if explorer else "",
        "<h2>Codes</h2>",
        *(figure(path, generated.CODES_CAPTION) for path in generated.draw_codes(run, trained.net)),
    ]
    rows = "".join(
        f'<tr><td>c{j}</td><td class="number">{bound:.3f}</td></tr>' for j, bound in enumerate(bounds)
    )
    return _write(
        run,
        dataset,
        trained,
        results=[
            ("information bound", f"{total:.3f} nats"),
            *_scores(read_scores(run, trained.steps, dataset)),
        ],
        latents=f'<table><tr><th>code</th><th class="number">bound, nats</th></tr>{rows}</table>',
        caption=generated.BOUND_CAPTION,
        trace=trace,
        pictures=pictures,
    )


def _write(
    run: RunDirectory,
    dataset: Dataset,
    trained: Trained | TrainedPair,
    *,
    results: Iterable[Sequence[str]],
    latents: str,
    caption: str,
    trace: Trace | None,
    pictures: Iterable[str],
) -> Path:
    steps = trained.steps
    title = f"{objective_label(run.recipe.objective)}: {run.path.name}"
    body = _BODY.substitute(
        subtitle=html.escape(
            f"{steps:,} steps on {_training_data(trained, dataset)}, seed {run.recipe.seed}"
        ),
        notices=_shortfall(steps, run.recipe.steps) + _other_data(trained, dataset),
        results=_table(results),
        latents=latents,
        caption=caption,
        trace=curves.draw(run, trace),
        pictures="\n".join(pictures),
        recipe=_table(_recipe(run)),
        provenance=_table(_provenance(trained)),
    )
    path = run.path / "report.html"
    write_atomically(path, document(title, body).encode(errors="backslashreplace"))
    return path


def _snapshots(run: RunDirectory, dataset: Dataset, trace: Trace | None, span: float) -> str:
    pictures = "".join(figure(*drawn) for drawn in snapshots.draw(run, dataset, trace, span=span))
    return f"<h2>Traversals on the way</h2>\n{pictures}" if pictures else ""


def _shortfall(steps: int, planned: int) -> str:
    if steps >= planned:
        return ""
    return f'<p class="notice">This run has made {steps:,} of its {planned:,} steps.</p>'


def _training_data(trained: Trained | TrainedPair, dataset: Dataset) -> str:
    return str(trained.metadata.get("data", dataset.fingerprint))


def _other_data(trained: Trained | TrainedPair, dataset: Dataset) -> str:
    if _training_data(trained, dataset) == dataset.fingerprint:
        return ""
    shown = html.escape(dataset.fingerprint)
    return f'<p class="notice">The images and results below are of other data than it was trained on: {shown}.</p>'


def _results(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("reconstruction", f"{metrics['recon']:.2f} nats"),
        ("KL", f"{metrics['kl']:.2f} nats"),
        ("ELBO", f"{metrics['elbo']:.2f} nats"),
    ]


def _likelihood(found: dict[str, Any] | None) -> Iterable[tuple[str, str]]:
    if found is None:
        return
    error = "" if found["log_p_error"] is None else f" \u00b1 {found['log_p_error']:.2f}"
    held_out = "" if found["data"] == found["trained_on"] else f" of {found['data']}"
    yield "log p(x)", f"{found['log_p']:.2f}{error} nats, {found['images']:,} images{held_out}"
    yield "IWAE-64", f"{found['iwae_64']:.2f} nats, {found['difference']:.2f} from log p(x)"
    yield "effective samples", f"{found['effective_sample_size']:.1f} of {found['samples']:,}"
    yield "active units", f"{found['active_units']} of {found['latents']}"


def _scores(scores: dict[str, dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for name, parts in scores.items():
        if isinstance(parts.get("score"), float):
            yield name, f"{parts['score']:.3f}"


def _latents(evaluation: Evaluation, dataset: Dataset) -> str:
    names = dataset.factor_names if isinstance(dataset, FactorDataset) else ()
    head = "".join(f'<th class="number">{html.escape(name)}</th>' for name in ("KL, nats", *names))
    rows = [f"<tr><th>latent</th>{head}</tr>"]
    for j in sorted(range(len(evaluation.kl)), key=lambda j: -evaluation.kl[j]):
        active = evaluation.kl[j] >= traversal.ACTIVE_NATS
        cells = [f'<td class="number">{evaluation.kl[j]:.3f}</td>']
        shares = evaluation.dependence[j] if evaluation.dependence else []
        for share in shares:
            strongest = active and share == max(shares)
            kind = "number strongest" if strongest else "number"
            cells.append(f'<td class="{kind}">{share:.2f}</td>')
        kind = "active" if active else "inactive"
        rows.append(f'<tr class="{kind}"><td>z{j}</td>{"".join(cells)}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _caption(evaluation: Evaluation) -> str:
    text = (
        f"Nats per image, averaged over {evaluation.images:,} images of a fixed random subset, one sampled z each. "
        f"Latents below {traversal.ACTIVE_NATS} nats are grey: their posterior is close to the prior."
    )
    if evaluation.dependence:
        text += (
            " The factor columns give &eta;&sup2;, the share of the variance of the latent's mean that the factor "
            "alone explains; the strongest factor of each active latent is marked."
        )
    else:
        text += (
            " The factors of these images are not known, so nothing is said of which latent follows which."
        )
    return text


def _recipe(run: RunDirectory) -> Iterable[tuple[str, str]]:
    values = run.recipe.to_json()
    objective = values.pop("objective")
    values.pop("format")
    values.pop("sources", None)
    for name, value in {"objective": objective.pop("name"), **objective, **values}.items():
        yield name.replace("_", " "), str(value)
    for source in run.recipe.sources:
        yield f"SHA-256 of {source.file}", source.sha256


def _provenance(trained: Trained | TrainedPair) -> Iterable[tuple[str, str]]:
    metadata = trained.metadata
    if "device" in metadata:
        yield "device", metadata["device"]
    if metadata.get("seconds"):
        yield "wall time", duration(metadata["seconds"])
    if trained.steps_per_second:
        yield "speed", f"{trained.steps_per_second:,.1f} steps/s"
    if (taken := metadata.get("convolutions", "none")) != "none":
        before = [f"{name} until step {step:,}" for name, step in metadata.get("convolutions_before", [])]
        yield "convolutions", f"{taken} ({', '.join(before)})" if before else taken
    yield from metadata.get("versions", {}).items()


def _table(rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{cells}</table>"
