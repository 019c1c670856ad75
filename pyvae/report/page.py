"""``report.html``: everything about a run on one page that needs nothing else."""

import html
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyvae.data.dataset import Dataset
from pyvae.engine.files import write_atomically
from pyvae.engine.recipe import Recipe, objective_label
from pyvae.engine.run import RunDirectory
from pyvae.errors import printable
from pyvae.evaluation import read_likelihood, read_scores, write_metrics
from pyvae.evaluation.averages import Evaluation, evaluate
from pyvae.evaluation.dead import dead_units
from pyvae.metrics.factor_vae import CONSTANT
from pyvae.nets import Autoencoder
from pyvae.report import curves, generated, markup, reconstructions, snapshots, traversal
from pyvae.report.charts import SCRIPT
from pyvae.report.explorer import pair_section, section
from pyvae.report.glossary import TERMS, explained, glossary, scores_in, term
from pyvae.report.latents import active_latents, codes_table, latents_table
from pyvae.report.markup import Section, document, duration, figure
from pyvae.report.panels import Trace
from pyvae.report.settings import meanings
from pyvae.report.trained import Trained, TrainedPair, load_trained, load_trained_pair

MOSTLY = 0.5
"""A layer with more than this share of dead units is told of."""
WASTED = 0.1
"""Latents that say nothing of an image are told of where they cost more than this share of the KL."""


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
    rows = min(net.latents, traversal.MOST_ROWS)
    few = f": {rows} of {net.latents:,}" if rows < net.latents else ""
    moved = [
        figure(
            path,
            f"From image {seed:,}: each row sets one latent from {-span:g} to {span:g}, highest KL first{few}.",
            alt=f"Decoded images in a row for each of {rows} latents, from image {seed:,}",
        )
        if path.suffix == ".png"
        else figure(
            path,
            "The same in motion: one square per latent, highest KL first, in rows of five.",
            alt="The traversals above as an animation",
        )
        for path, seed in traversals
    ]
    pictures = [
        Section(
            "Reconstructions",
            figure(reconstructions.draw(run, net, dataset), reconstructions.CAPTION, alt=reconstructions.ALT),
        ),
        Section("Latent traversals", "".join(moved)),
        Section("Traversals on the way", snapshots.figures(run, dataset, trace, span=span)),
    ]
    scores = read_scores(run, steps, dataset)
    likelihood = read_likelihood(run, steps, dataset)
    return _write(
        run,
        dataset,
        trained,
        tiles=[
            *_averages(metrics),
            *((key, f"{value:.3f}", "") for key, value in scores_in(scores) if key == "mig"),
            ("active_latents", str(active_latents(evaluation.kl)), f"of {len(evaluation.kl)}"),
        ],
        results=[*_averages(metrics), *_likelihood(likelihood), *_scores(scores)],
        latents=latents_table(metrics, traversal.names_of(net, dataset)),
        keys=["eta_squared"] if evaluation.dependence else [],
        caption=_caption(evaluation) + _constant(evaluation) + _dead(net, dataset),
        trace=trace,
        explorer=section(net, dataset, evaluation) if explorer else "",
        pictures=pictures,
    )


def report_pair(run: RunDirectory, dataset: Dataset, *, explorer: bool = True) -> Path:
    """The page of a generator and its critic: samples, what each code does, and scores of the information head."""
    trained = load_trained_pair(run, dataset)
    trace = curves.trace_of(run)
    bounds = generated.information(run, trained.net)
    total = sum(bounds)
    write_metrics(run, trained.steps, dataset, {"information": total, "information_of_codes": bounds})
    samples = generated.draw_samples(run, trained.net)
    codes = generated.draw_codes(run, trained.net)
    pictures = [
        Section(
            "Generated images",
            figure(samples, generated.SAMPLES_CAPTION, alt=generated.SAMPLES_ALT),
        ),
        Section(
            "Codes",
            "".join(figure(path, generated.CODES_CAPTION, alt=generated.CODES_ALT) for path in codes),
        ),
        Section("Codes on the way", snapshots.codes_figures(run)),
    ]
    return _write(
        run,
        dataset,
        trained,
        tiles=[("information", f"{total:.3f}", "nats")],
        results=[
            ("information", f"{total:.3f}", "nats"),
            *_scores(read_scores(run, trained.steps, dataset)),
        ],
        latents=codes_table(bounds, generated.names_of(generated.objective_of(run))),
        keys=["information_of_code"],
        caption=generated.BOUND_CAPTION,
        trace=trace,
        explorer=pair_section(generated.objective_of(run), trained.net) if explorer else "",
        pictures=pictures,
    )


def _write(
    run: RunDirectory,
    dataset: Dataset,
    trained: Trained | TrainedPair,
    *,
    tiles: Sequence[tuple[str, str, str]],
    results: Sequence[tuple[str, str, str]],
    latents: str,
    keys: Sequence[str],
    caption: str,
    trace: Trace | None,
    explorer: str,
    pictures: Sequence[Section],
) -> Path:
    steps = trained.steps
    speed = trained.steps_per_second
    tiles = [
        *tiles,
        ("steps", f"{steps:,}", ""),
        *([("speed", f"{speed:,.1f}", "steps/s")] if speed else []),
    ]
    subtitle = f"{steps:,} steps on {_training_data(trained, dataset)}, seed {run.recipe.seed}"
    lead = (
        f'<p class="note">{html.escape(subtitle)}</p>\n'
        + (_shortfall(steps, run.recipe.steps) + _other_data(trained, dataset))
        + markup.tiles((term(key), value, unit) for key, value, unit in tiles)
    )
    shown = "".join(
        f'<tr><th scope="row">{term(key)}</th><td>{html.escape(f"{value} {unit}".strip())}</td></tr>'
        for key, value, unit in results
    )
    columns = (
        f'<div class="columns"><div><table>{shown}</table></div><div class="scroll">{latents}</div></div>'
    )
    explained = glossary([*(key for key, *_ in (*tiles, *results)), *keys])
    recipe = f"<div>{_table(_recipe(run))}</div><div>{_table(_provenance(trained))}</div>"
    body = [
        Section("Results", f'{columns}\n<p class="note">{caption}</p>\n{explained}'),
        Section("Explorer", explorer),
        Section("Training", curves.draw(run, trace)),
        *pictures,
        Section("Recipe", f'<div class="columns">{recipe}</div>'),
        Section("Compare", _compare(run)),
    ]
    title = f"{objective_label(run.recipe.objective)}: {run.path.name}"
    path = run.path / "report.html"
    page = document(title, lead, body, scripts=[SCRIPT], kind="report")
    write_atomically(path, page.encode(errors="backslashreplace"))
    return path


def _compare(run: RunDirectory) -> str:
    command = html.escape(printable(f"pyvae report {shlex.quote(str(run.path))} OTHER_RUN"))
    return (
        '<p class="note">Puts this run beside others in one page: numbers with their differences, curves in one chart, '
        "the same images reconstructed by each. A click selects the line; name the other runs in place of "
        f'OTHER_RUN.</p>\n<code class="command">{command}</code>'
    )


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


def _averages(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, f"{metrics[key]:.2f}", "nats") for key in ("recon", "kl", "elbo")]


def _likelihood(found: dict[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    if found is None:
        return
    error = "" if found["log_p_error"] is None else f" \u00b1 {found['log_p_error']:.2f}"
    held_out = "" if found["data"] == found["trained_on"] else f" of {found['data']}"
    yield "log_p", f"{found['log_p']:.2f}{error}", f"nats, {found['images']:,} images{held_out}"
    yield "iwae_64", f"{found['iwae_64']:.2f}", f"nats, {found['difference']:.2f} from log p(x)"
    yield "effective_sample_size", f"{found['effective_sample_size']:.1f}", f"of {found['samples']:,}"
    yield "active_units", str(found["active_units"]), f"of {found['latents']}"


def _scores(scores: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for key, value in scores_in(scores):
        yield key, f"{value:.3f}", TERMS[key].unit


def _caption(evaluation: Evaluation) -> str:
    text = (
        f"Nats per image, averaged over {evaluation.images:,} images of a fixed random subset, one sampled z each. "
        f"Latents below {traversal.ACTIVE_NATS} nats are grey: their posterior is close to the prior."
    )
    if evaluation.dependence:
        text += (
            f" The factor columns give {term('eta_squared')}, the share of the variance of the latent's mean that the "
            "factor alone explains; the strongest factor of each active latent is marked."
        )
    else:
        text += (
            " The factors of these images are not known, so nothing is said of which latent follows which."
        )
    return text


def _constant(evaluation: Evaluation) -> str:
    """A sentence of latents that cost nats and say nothing; nothing where they cost little, as closed ones do."""
    active = [j for j, kl in enumerate(evaluation.kl) if kl >= traversal.ACTIVE_NATS]
    same = [j for j in active if evaluation.std[j] < CONSTANT]
    if sum(evaluation.kl[j] for j in same) <= WASTED * sum(evaluation.kl):
        return ""
    return (
        f" <strong>{len(same):,} of the {len(active):,} latents above {traversal.ACTIVE_NATS} nats</strong> are "
        f"nearly the same for all images (their means have a standard deviation below {CONSTANT}): what they cost "
        "says nothing of an image. A KL that is asked for before the decoder has a use for it does that: in "
        "capacity-vae a lower --gamma or --init kaiming helps."
    )


def _dead(net: Autoencoder, dataset: Dataset) -> str:
    """A sentence of layers of the encoder that are mostly dead; nothing where none is."""
    if net.reads_factors:
        return ""
    layers = dead_units(net.encoder, dataset)
    worst = max(layers, key=lambda layer: layer.share, default=None)
    if worst is None or worst.share <= MOSTLY:
        return ""
    return (
        f" The encoder has {term('dead_units')}: in its layer {1 + layers.index(worst)}, {worst.dead:,} of "
        f"{worst.units:,}. A lower learning rate, or a KL whose weight rises slowly, keeps them alive."
    )


def _recipe(run: RunDirectory) -> Iterator[tuple[str, str]]:
    """Settings and their values; the name of a setting, with what it means, is HTML."""
    recipe = run.recipe
    texts = meanings(Recipe) | meanings(type(recipe.objective))
    values = recipe.to_json()
    objective = values.pop("objective")
    values.pop("format")
    values.pop("sources", None)
    for name, value in {"objective": objective.pop("name"), **objective, **values}.items():
        called = name.replace("_", " ")
        text = texts.get(name)
        yield explained(called, text) if text else html.escape(called), str(value)
    for source in recipe.sources:
        yield html.escape(f"SHA-256 of {source.file}"), source.sha256


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
    for name, version in metadata.get("versions", {}).items():
        yield html.escape(name), version


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f"<table>{cells}</table>"
