"""Pieces of a page that needs no other file."""

import base64
import html
from collections.abc import Collection, Sequence
from pathlib import Path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
p.note, li, figcaption { color: #555; font-size: .9rem; }
p.notice { background: #fff4d6; padding: .5rem .8rem; border-radius: 4px; font-weight: 600; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.strongest { background: #d7ead9; font-weight: 600; }
tr.inactive { color: #707070; }
.columns { display: flex; flex-wrap: wrap; gap: 2rem 4rem; }
.columns th { white-space: nowrap; }
.scroll { overflow-x: auto; }
figure { margin: 0 0 1.2rem; }
img { max-width: 100%; height: auto; }
/* labels stay legible on a phone: the picture scrolls instead of shrinking */
.wide img { max-width: max(100%, 46rem); }
"""


def document(title: str, body: str) -> str:
    """A whole page, its title above its body."""
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n<h1>{title}</h1>\n{body}</html>\n"
    )


def figure(path: Path, caption: str) -> str:
    """An image with its caption, the file's content in the page."""
    return picture(path.suffix[1:], path.read_bytes(), caption)


def picture(form: str, content: bytes, caption: str) -> str:
    """An image with its caption, from the content of a file in the format "png", "jpeg" or "gif"."""
    encoded = base64.b64encode(content).decode()
    text = html.escape(caption)
    source = f"data:image/{form};base64,{encoded}"
    kind = "scroll" if form == "gif" else "scroll wide"
    return (
        f'<figure><div class="{kind}"><img alt="{text}" src="{source}"></div>'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def row(cells: Sequence[str], *, numbers: Collection[int] = (), cell: str = "td") -> str:
    """A row of a table, of which some columns hold numbers."""
    kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
    return (
        "<tr>"
        + "".join(f"<{cell}{k}>{html.escape(c)}</{cell}>" for k, c in zip(kinds, cells, strict=True))
        + "</tr>"
    )


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: the two that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
