"""The page of a study of many models: which method, which setting or which seed a score depends on."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyvae.data.dataset import Dataset
from pyvae.engine.files import write_atomically
from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError
from pyvae.report import distributions, extremes, relations
from pyvae.report.cohort import (
    AS_IT_IS,
    Cohort,
    cohorts_of,
    describe,
    enough,
    is_supervised,
    is_through,
    lower_is_better,
    setting_of,
    show,
    title_of,
)
from pyvae.report.figures import save
from pyvae.report.glossary import glossary
from pyvae.report.markup import Section, document, duration, figure, row
from pyvae.report.palette import Palette, palette_of
from pyvae.report.ranking import rank
from pyvae.studies.analysis import Mean, Shares, best_setting, rank_correlation, shares
from pyvae.studies.plan import Model, StudyPlan
from pyvae.studies.results import Row, is_of, read_results
from pyvae.studies.work import Settings, dataset_of

_MOST_FAILURES = 40
_MOST_VALUES = 12
_VIOLINS = (
    "Each violin holds the models of one method, all settings and seeds together; in brackets how many. The dot is the "
    "median, the bar goes from the first to the third quartile; up to ten models are drawn as points instead of the "
    "bar. Look for violins that overlap: there the choice of method says little."
)
_SETTINGS = (
    "The same scores by hyperparameter: a point or a violin for the seeds of each setting, lines through their means. "
    "A row shares its scale. Look for lines that rise or fall by more than the points scatter."
)
_CORRELATIONS = (
    "Spearman's rank correlation of two columns over all models: 1 where both put the models into one order, -1 where "
    "into opposite ones. Of reconstruction and of dependence between latents less is better, so against the other "
    "scores a negative number is agreement. Look for scores that disagree though they are to measure the same."
)
_SHARES = (
    "What a score's variance over all models is made of, in percent. Method: sum of squares of the methods' means "
    "about the mean of all. Setting: of the settings' means about that of their method. Seed: of the models about the "
    "mean of their setting. A mean counts as often as it has models, so the three add up to 100% in unfinished "
    "studies too. Few models per setting favour the first two: beside them stands what each would be if the score were "
    "pure noise. Look for a wide grey part: there a lucky seed outweighs a good choice."
)
_RANKING = (
    "A dot for each model: UDR, which needs no factors, against scores that do. UDR is the median agreement of a "
    "model's latents with those of other seeds of its method and setting. Look for dots that rise to the right: there "
    "UDR would have picked a good model without labels."
)
_TRAVERSALS = (
    f"Each row sets one latent of one image's code from {-extremes.SPAN:g} to {extremes.SPAN:g}; the latents of the "
    "highest KL first, in nats beside them, and grey where next to nothing is coded. Look for rows that change one "
    "thing at a time."
)
_BEST = (
    "The setting with the best mean over its finished seeds, ± the standard error, and the number of seeds in "
    "brackets. It was chosen among all settings by these same seeds, so the true mean is likely a little worse."
)


def write_comparison(
    plan: StudyPlan, out: Path, *, open_data: Callable[[Recipe], Dataset] | None = None
) -> Path:
    """Write ``out/report.html``, which holds all of its images, and ``out/figures/``, of what is there so far.

    It reads ``out/results.csv``, and in the runs themselves the codes that UDR compares and the networks whose
    traversals are shown; no more than one network is in memory.

    Args:
        plan: of the study, finished or not.
        out: its directory.
        open_data: gives the data set of a recipe, in :class:`PyvaeError` why it cannot; by default from where it says.

    Returns:
        the path of the page.

    Raises:
        RunError: no results yet, or a file that cannot be read or written.
    """
    rows = _of_plan(plan, read_results(out / "results.csv"))
    opened = open_data or (lambda recipe: dataset_of(recipe, Settings()))
    colours = palette_of(model.method for model in plan.models)
    cohorts = cohorts_of(plan, rows)
    through = sum(map(is_through, rows))
    failed = [r for r in rows if r.failure]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in plan.notes)
    sections = [
        Section("What was asked", f'<div class="scroll">{_asked(plan, rows)}</div>\n<ul>{notes}</ul>'),
        *(
            _section(cohort, plan.metrics, out, colours, f"-{i + 1}" if len(cohorts) > 1 else "", opened)
            for i, cohort in enumerate(cohorts)
        ),
        Section("What was spent", f'<div class="scroll">{_spent(rows)}</div>\n<p class="note">{_SPENT}</p>'),
        Section("What failed", _failures(failed)),
        Section(
            "What the scores mean", glossary(name for cohort in cohorts for name in (*cohort.columns, "udr"))
        ),
    ]
    notices = _notices(len(plan.models), through, len(failed))
    lead = f'<p class="note">{html.escape(_subtitle(plan, rows))}</p>\n{notices}'
    path = out / "report.html"
    write_atomically(path, document(plan.title, lead, sections).encode(errors="backslashreplace"))
    return path


class _Images:
    """A data set that is opened when it is first asked for, and once: what cannot be opened is not tried again."""

    def __init__(self, opened: Callable[[], Dataset]) -> None:
        self._open = opened
        self._found: Dataset | PyvaeError | None = None

    def __call__(self) -> Dataset:
        if self._found is None:
            try:
                self._found = self._open()
            except PyvaeError as error:
                self._found = error
        if isinstance(self._found, PyvaeError):
            raise self._found
        return self._found


def _of_plan(plan: StudyPlan, rows: Iterable[Row]) -> list[Row]:
    """Rows of the models as the plan has them, without scores that are of other factors or images."""
    models = {model.name: model for model in plan.models}
    known = [r for r in rows if (m := models.get(r.model)) is not None and is_of(r, m.method, m.recipe)]
    asked = (" ".join(plan.without), plan.images)
    return [r if (r.without, r.images) == asked else replace(r, scores={}) for r in known]


def _subtitle(plan: StudyPlan, rows: Sequence[Row]) -> str:
    methods = len({model.method for model in plan.models})
    cells = len({(model.method, setting_of(model)) for model in plan.models})
    seeds = len({model.recipe.seed for model in plan.models})
    data = len({model.recipe.data for model in plan.models})
    parts = [
        _count(methods, "method"),
        _count(cells, "setting"),
        _count(seeds, "seed"),
        _count(data, "data set"),
    ]
    return f"{_count(len(plan.models), 'model')}: {', '.join(parts)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _notices(planned: int, through: int, failed: int) -> str:
    missing = planned - through - failed
    if not missing and not failed:
        return f'<p class="note">All {planned:,} models are finished.</p>'
    parts = [f"{through:,} of {_count(planned, 'model')} finished"]
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{missing:,} still missing"] if missing else []
    rest = "all below is of the finished ones alone"
    more = ", and may change as the others come in" if missing else ""
    return f'<p class="notice">{", ".join(parts)}: {rest}{more}.</p>'


def _asked(plan: StudyPlan, rows: Sequence[Row]) -> str:
    """A row for each method: what of it is swept, how many models that makes, and how far they are."""
    through, failed = ({r.model for r in rows if is_through(r) == well} for well in (True, False))
    groups: dict[str, list[Model]] = {}
    for model in plan.models:
        groups.setdefault(model.method, []).append(model)
    head = [
        "method",
        "hyperparameters",
        "models",
        "finished",
        "failed",
        "missing",
        "steps",
        "engine",
        "precision",
    ]
    numbers = range(2, 7)
    lines = [row(head, numbers=numbers, cell="th")]
    for method, models in groups.items():
        recipes = [model.recipe for model in models]
        done, lost = (sum(model.name in names for model in models) for names in (through, failed))
        cells = [
            method,
            _swept(models),
            *(f"{number:,}" for number in (len(models), done, lost, len(models) - done - lost)),
            _alike(f"{r.steps:,}" for r in recipes),
            _alike(r.engine for r in recipes),
            _alike(r.precision for r in recipes),
        ]
        lines.append(row(cells, numbers=numbers))
    scored = ", ".join(plan.metrics) or "none"
    left = f", without the factor {', '.join(plan.without)}" if plan.without else ""
    data = ", ".join(dict.fromkeys(model.recipe.data for model in plan.models))
    text = f"Data: {data}. Scores: {scored}{left}. results.csv has a row for each model, with all of its numbers."
    return f"<table>{''.join(lines)}</table>{_note(text)}"


def _swept(models: Iterable[Model]) -> str:
    values: dict[str, dict[str, None]] = {}
    for model in models:
        for name, value in model.settings.items():
            values.setdefault(name, {})[show(value)] = None
    return "; ".join(f"{name.replace('_', ' ')}: {_some(list(v))}" for name, v in values.items()) or AS_IT_IS


def _some(values: Sequence[str]) -> str:
    if len(values) <= _MOST_VALUES:
        return ", ".join(values)
    return f"{', '.join(values[: _MOST_VALUES - 1])}, ... {values[-1]} ({len(values):,} values)"


def _alike(values: Iterable[str]) -> str:
    return _some(list(dict.fromkeys(values)))


def _section(
    cohort: Cohort,
    metrics: Sequence[str],
    out: Path,
    colours: Palette,
    suffix: str,
    opened: Callable[[Recipe], Dataset],
) -> Section:
    """Everything about one data set."""
    recipe = cohort.models[0].recipe
    images = _Images(lambda: opened(recipe))
    ranking = rank(cohort, out, images)
    cohort = cohort.with_column("udr", ranking.scores)
    heading = f"{cohort.data}: {_count(len(cohort.models), 'finished model')}"
    parts: list[str] = []
    there = {name.split(".")[0] for name in cohort.scores}
    if lacking := [name for name in metrics if name not in there]:
        how = f"`pyvae evaluate RUN --metrics {' '.join(lacking)}` computes it, or says why not"
        parts.append(_note(f"None of them has a value of {', '.join(lacking)}: {how}."))
    if not cohort.columns:
        return Section(heading, "".join([*parts, _note("None of them has a score yet.")]))
    unseeded = all(len(at) == 1 for at in cohort.cells.values())
    parts += _scores(cohort, out, colours, suffix)
    parts += [f"<h3>Best settings</h3>{_best(cohort)}", _note(_BEST)]
    parts += _agreement(cohort, out, suffix)
    parts += _variance(cohort, out, suffix, unseeded=unseeded)
    parts += _unsupervised(cohort, out, colours, suffix, ranking.reasons)
    parts += _traversals(cohort, out, suffix, images)
    return Section(heading, "".join(parts))


def _scores(cohort: Cohort, out: Path, colours: Palette, suffix: str) -> Iterator[str]:
    figures = out / "figures"
    yield "<h3>Scores by method</h3>"
    yield figure(
        save(distributions.draw_violins(cohort, colours), figures / f"violins{suffix}.png"),
        _VIOLINS,
        alt="A violin of every method for each score",
    )
    drawn: set[str] = set()
    for number, (methods, picture) in enumerate(distributions.draw_settings(cohort, colours), start=1):
        if not drawn:
            yield "<h3>Scores by hyperparameter</h3>"
        caption = "The same for further methods." if drawn else _SETTINGS
        yield figure(
            save(picture, figures / f"settings{suffix}-{number}.png"),
            caption,
            alt=f"Scores by hyperparameter of {', '.join(methods)}",
        )
        drawn |= set(methods)
    swept = {model.method for model in cohort.models if model.settings}
    if drawn and swept - drawn:
        yield _note(f"{len(swept - drawn):,} more methods are in results.csv alone.")


def _best(cohort: Cohort) -> str:
    names = [name for name in cohort.scores if is_supervised(name)]
    # without factors, all but the KL, of which less is not better as such
    names = names or [name for name in cohort.columns if name != "kl"] or list(cohort.columns)
    settings = cohort.settings
    means: dict[str, dict[str, Any]] = {}
    for method, at in cohort.rows.items():
        own = [settings[i] for i in at.tolist()]
        means[method] = {
            name: best_setting(cohort.columns[name][at], own, lowest=lower_is_better(name)) for name in names
        }
    tops = {name: _top((means[m][name] for m in means), lowest=lower_is_better(name)) for name in names}
    lines = [row(["method", *map(title_of, names)], cell="th")]
    for method, found in means.items():
        cells = [f"<td>{html.escape(method)}</td>"]
        for name in names:
            best = found[name]
            if best is None:
                cells.append("<td>\u2013</td>")
                continue
            kind = ' class="strongest"' if len(means) > 1 and best.mean.value == tops[name] else ""
            setting = f"<br><small>{html.escape(describe(best.setting))}</small>" if best.setting else ""
            cells.append(f"<td{kind}>{html.escape(_mean(best.mean))}{setting}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _top(found: Iterable[Any], *, lowest: bool) -> float:
    values = [best.mean.value for best in found if best is not None]
    return (min if lowest else max)(values, default=math.nan)


def _mean(mean: Mean) -> str:
    error = "" if mean.error is None else f" \u00b1 {mean.error:.3f}"
    return f"{mean.value:.3f}{error} ({mean.seeds:,})"


def _agreement(cohort: Cohort, out: Path, suffix: str) -> Iterator[str]:
    names = [name for name, column in cohort.columns.items() if enough(column)]
    yield "<h3>Do the scores agree?</h3>"
    if len(names) < 2:
        yield _note("Rank correlations need two scores that differ between at least three models.")
        return
    picture = relations.draw_correlations(cohort, names)
    yield figure(
        save(picture, out / f"figures/correlations{suffix}.png"),
        _CORRELATIONS,
        alt="Rank correlations of every two scores",
    )
    if constant := [title_of(name) for name in cohort.columns if name not in names]:
        yield _note(
            f"Left out, as they are the same for all models or known of fewer than three: {', '.join(constant)}."
        )


def _variance(cohort: Cohort, out: Path, suffix: str, *, unseeded: bool) -> Iterator[str]:
    yield "<h3>What does a score depend on?</h3>"
    all_shares = {name: shares(c, cohort.methods, cohort.settings) for name, c in cohort.columns.items()}
    found = {name: s for name, s in all_shares.items() if not math.isnan(s.method)}
    if not found:
        yield _note("No score differs between two models, so there is no variance to divide.")
        return
    yield figure(
        save(relations.draw_shares(found), out / f"figures/shares{suffix}.png"),
        _SHARES,
        alt="Shares of method, setting and seed in the variance of each score",
    )
    if unseeded:
        yield _note(
            "No setting has more than one seed: what the seed did stands under setting, and the share of the seed is 0 "
            "because it is not known."
        )
    yield _shares_table(found)


def _shares_table(found: Mapping[str, Shares]) -> str:
    head = ["score", "method", "setting", "seed", "by chance", "models", "settings", "with two seeds or more"]
    numbers = range(1, len(head))
    lines = [row(head, numbers=numbers, cell="th")]
    for name, s in found.items():
        cells = [
            title_of(name),
            *(f"{100 * share:.1f}%" for share in (s.method, s.setting, s.seed)),
            " / ".join(f"{100 * share:.0f}" for share in s.chance) + "%",
            f"{s.models:,}",
            f"{s.settings:,}",
            f"{s.repeated:,}",
        ]
        lines.append(row(cells, numbers=numbers))
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _unsupervised(
    cohort: Cohort, out: Path, colours: Palette, suffix: str, reasons: Sequence[str]
) -> Iterator[str]:
    yield "<h3>Could one choose without labels?</h3>"
    if "udr" in cohort.columns:
        picture = relations.draw_ranking(cohort, colours)
        if picture is None:
            yield _note("There is no score from factors to hold UDR against.")
        else:
            yield figure(
                save(picture, out / f"figures/udr{suffix}.png"),
                _RANKING,
                alt="UDR of each model against its other scores",
            )
            yield _ranking_table(cohort)
    yield from map(_note, reasons)


def _ranking_table(cohort: Cohort) -> str:
    """Rank correlation of UDR and each score, within each method."""
    names = [name for name in cohort.scores if is_supervised(name)]
    lines = [row(["Spearman's rank correlation with UDR", *map(title_of, names)], cell="th")]
    groups = {
        "all models": np.arange(len(cohort.models)),
        **(cohort.rows if len(cohort.rows) > 1 else {}),
    }
    numbers = range(1, len(names) + 1)
    for method, at in groups.items():
        found = [rank_correlation(cohort.columns["udr"][at], cohort.columns[name][at]) for name in names]
        lines.append(
            row([method, *("\u2013" if math.isnan(r) else f"{r:.2f}" for r in found)], numbers=numbers)
        )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _traversals(cohort: Cohort, out: Path, suffix: str, dataset: Callable[[], Dataset]) -> Iterator[str]:
    score = next((name for name in cohort.scores if is_supervised(name)), None)
    if score is None:
        score = "udr" if "udr" in cohort.columns else next(iter(cohort.columns))
    yield f"<h3>Best and worst by {html.escape(title_of(score))}</h3>"
    pictures, reasons = [], dict[str, list[str]]()
    for heading, drawn in extremes.draw(cohort, score, out, f"traversals{suffix}", dataset):
        if drawn.path is None:
            reasons.setdefault(drawn.text, []).append(heading)
        else:
            pictures.append(
                figure(drawn.path, drawn.text, alt="Latent traversals of the models that the caption names")
            )
    yield from [_note(_TRAVERSALS), *pictures] if pictures else []
    for why, headings in reasons.items():
        yield _note(f"No traversals of {', '.join(headings)}: {why}.")


_SPENT = (
    "Training alone, as the checkpoints count it. Models that trained side by side share their time: it is counted "
    "once for the device, and for each of them as time of models."
)


def _spent(rows: Sequence[Row]) -> str:
    groups: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        groups.setdefault((r.device or "not known", r.engine or ""), []).append(r)
    head = [
        "device",
        "engine",
        "models",
        "steps",
        "time",
        "time of models",
        "models per hour",
        "model-steps/s",
    ]
    numbers = range(2, len(head))
    lines = [row(head, numbers=numbers, cell="th")]
    for (device, engine), there in groups.items():
        lines.append(row([device, engine, *_rates(there)], numbers=numbers))
    if len(groups) > 1:
        lines.append(row(["together", "", *_rates(rows)], numbers=numbers))
    return f"<table>{''.join(lines)}</table>"


def _rates(rows: Sequence[Row]) -> list[str]:
    timed = [r for r in rows if r.seconds]
    seconds = sum(s for _, s in {(r.device, r.seconds) for r in timed if r.seconds})
    steps = sum(r.steps_done for r in timed)
    return [
        f"{len(rows):,}",
        f"{sum(r.steps_done for r in rows):,}",
        duration(seconds) if seconds else "",
        duration(sum(r.seconds for r in timed if r.seconds)) if seconds else "",
        f"{3600 * len(timed) / seconds:,.1f}" if seconds else "",
        f"{steps / seconds:,.0f}" if seconds else "",
    ]


def _failures(failed: Sequence[Row]) -> str:
    if not failed:
        return ""
    lines = [row([r.model, r.failure or ""]) for r in failed[:_MOST_FAILURES]]
    more = len(failed) - len(lines)
    rest = _note(f"{more:,} more are in results.csv.") if more else ""
    table = f"<table>{row(['model', 'why'], cell='th')}{''.join(lines)}</table>"
    return f'<div class="scroll">{table}</div>{rest}'


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'
