"""The explorer's part of a page, complete: markup, style, script, and the weights that it draws with."""

from __future__ import annotations

import base64
import html
import json
from importlib.resources import files
from typing import Any

from pyvae.data.dataset import Dataset
from pyvae.evaluation.averages import Evaluation
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import InfoGAN
from pyvae.report.explorer.content import Choice, Content, Slider, Start, of_autoencoder, of_pair
from pyvae.report.explorer.held import Held, hold
from pyvae.report.explorer.lowering import CannotRunError

_FOLDED = 3
"""Inactive latents that are worth folding away."""
_AXES = 2
_RADIOS = 20
"""Classes that a page shows at once; more are chosen from a list."""
_WORDS = {
    "normal": ("latent", "input", "reconstruction"),
    "uniform": ("code", "drawn by the network", "drawn in this page"),
}
"""What a slider sets, and what the two images beside the decoded one are."""


def section(net: Autoencoder, dataset: Dataset, evaluation: Evaluation) -> str:
    """Sliders for the latents of a network, and what its decoder draws; a sentence where a page cannot compute it.
    It goes below a heading of its own.

    Args:
        net: in evaluation, on the CPU.
        dataset: of which there are images to start from.
        evaluation: of that network on that data.
    """
    try:
        content = of_autoencoder(net, dataset, evaluation)
        held = hold(net.decoder, content.measured())
    except CannotRunError as error:
        return _none("decoder", error)
    return _section(content, held)


def pair_section(objective: InfoGAN, pair: AdversarialPair) -> str:
    """The same for the codes of a generator.

    Args:
        objective: says which of the generator's inputs are codes.
        pair: in evaluation, on the CPU.
    """
    try:
        content = of_pair(objective, pair)
        held = hold(pair.generator, content.measured())
    except CannotRunError as error:
        return _none("generator", error)
    return _section(content, held)


def _none(part: str, error: CannotRunError) -> str:
    text = html.escape(f"This page has still pictures alone: it cannot run the {part}, because {error}.")
    return f'<p class="note">{text}</p>\n'


def _section(content: Content, held: Held) -> str:
    data = {
        "shape": content.shape,
        "prior": content.prior,
        "sliders": [
            {"index": s.index, "name": s.name, "follows": s.follows, "span": s.span} for s in content.sliders
        ],
        "starts": [
            {"name": s.name, "code": [float(f"{v:.7g}") for v in s.code.tolist()]} for s in content.starts
        ],
        "choice": None if content.choice is None else content.choice.__dict__,
        "layers": [stage.to_json() for stage in held.stages],
    }
    own = files("pyvae.report.explorer")
    style, network, explorer = (
        (own / name).read_text(encoding="utf-8") for name in ("explorer.css", "network.js", "explorer.js")
    )
    return (
        f"<style>{style}</style>\n"
        '<p class="note explorer-wait">The explorer draws in this page, and needs JavaScript for it.</p>\n'
        f'<div class="explorer" hidden>\n{_panel(content, held)}</div>\n'
        f'<script type="application/json" id="explorer-data">{_json(data)}</script>\n'
        f"<script>{network}</script>\n<script>{explorer}</script>\n"
    )


def _json(data: dict[str, Any]) -> str:
    # a name of a factor must not end the script
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _panel(content: Content, held: Held) -> str:
    what, *captions = _WORDS[content.prior]
    sides = "".join(
        f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
        for shown, caption in zip(
            (
                f'<img class="explorer-input" alt="the image to start from" src="{_source(content.starts[0])}">',
                '<canvas class="explorer-reconstruction" role="img"></canvas>',
            ),
            captions,
            strict=True,
        )
    )
    return (
        f'<p class="note">Drag a slider: the network draws the image here, in the page, as you go. Double-click a '
        f"slider to set its {what} to 0.</p>\n"
        '<div class="explorer-columns">\n<div class="explorer-stage">'
        '<figure class="explorer-main"><canvas class="explorer-image" role="img"></canvas>'
        f'<figcaption>decoded</figcaption></figure><div class="explorer-sides">{sides}</div></div>\n'
        f'<div class="explorer-controls">\n{_starts(content.starts)}{_buttons()}'
        f"{_choice(content.choice)}{_sliders(content.sliders)}{_map(content.sliders)}</div>\n</div>\n"
        f'<p class="note">{html.escape(held.accuracy())}</p>\n'
        '<p class="explorer-said" role="status" aria-live="polite"></p>\n'
    )


def _source(start: Start) -> str:
    return f"data:image/png;base64,{base64.b64encode(start.png).decode()}"


def _starts(starts: list[Start]) -> str:
    buttons = "".join(
        f'<button type="button" data-start="{k}" aria-pressed="false" aria-label="start from {start.name}" '
        f'title="{start.name}"><img alt="" src="{_source(start)}"></button>'
        for k, start in enumerate(starts)
    )
    return f'<div class="explorer-starts" role="group" aria-label="what to start from">{buttons}</div>\n'


def _buttons() -> str:
    shown = (
        ("reset", "Reset", "back to the image that you started from"),
        ("origin", "All to 0", "the mean of the prior"),
        ("draw", "Draw at random", "a code from the prior"),
    )
    buttons = "".join(
        f'<button type="button" data-do="{name}" title="{title}">{label}</button>'
        for name, label, title in shown
    )
    return f'<div class="explorer-buttons">{buttons}</div>\n'


def _choice(choice: Choice | None) -> str:
    if choice is None:
        return ""
    if choice.count > _RADIOS:
        options = "".join(f"<option>{k}</option>" for k in range(choice.count))
        return f'<div class="explorer-classes"><label><b>class</b> <select>{options}</select></label></div>\n'
    classes = "".join(
        f'<label><input type="radio" name="explorer-class" value="{k}"> {k}</label>'
        for k in range(choice.count)
    )
    return f'<fieldset class="explorer-classes"><legend>class</legend>{classes}</fieldset>\n'


def _sliders(sliders: list[Slider]) -> str:
    rows = [_slider(k, slider) for k, slider in enumerate(sliders)]
    active = [row for row, slider in zip(rows, sliders, strict=True) if slider.active]
    others = [row for row, slider in zip(rows, sliders, strict=True) if not slider.active]
    if not active or len(others) < _FOLDED:
        return "".join(rows)
    return (
        f"{''.join(active)}<details><summary>show the other {len(others)}, which say next to nothing</summary>\n"
        f"{''.join(others)}</details>\n"
    )


def _map(sliders: list[Slider]) -> str:
    if len(sliders) < _AXES:
        return ""
    options = "".join(
        f'<option value="{k}">{html.escape(" ".join([s.name, *([s.follows] if s.follows else [])]))}</option>'
        for k, s in enumerate(sliders)
    )
    selects = "".join(
        f'<label>{way} <select aria-label="what goes {way}">{options}</select></label>'
        for way in ("across", "up")
    )
    return (
        f'<div class="explorer-map"><div class="explorer-axes"><b>Two at once</b>{selects}</div>'
        '<div class="explorer-plane"><canvas role="img"></canvas><span class="explorer-mark"></span></div></div>\n'
    )


def _slider(k: int, slider: Slider) -> str:
    name = html.escape(slider.name)
    follows = ""
    if slider.follows is not None:
        follows = (
            f' <span class="explorer-follows" title="the share of its variance that {html.escape(slider.follows)} '
            f'explains is {slider.share:.2f}">follows {html.escape(slider.follows)}</span>'
        )
    note = f' <span class="explorer-note">{html.escape(slider.note)}</span>' if slider.note else ""
    return (
        f'<div class="explorer-slider{"" if slider.active else " explorer-inactive"}" data-slider="{k}">'
        f'<label for="explorer-{k}"><b>{name}</b>{follows}{note}</label>'
        f'<span class="explorer-range"><input type="range" id="explorer-{k}" min="{-slider.span:g}" '
        f'max="{slider.span:g}" step="0.01" value="0"></span>'
        '<span class="explorer-value" aria-hidden="true">0.00</span>'
        f'<button type="button" class="explorer-zero" aria-label="set {name} to 0" '
        'title="set to 0 (double-click the slider, or press 0 on it)">0</button>'
        f'<button type="button" class="explorer-sweep" aria-label="sweep {name}" aria-pressed="false" '
        'title="there and back; again, or Escape, to stop">\u25b6\ufe0e</button></div>\n'
    )
