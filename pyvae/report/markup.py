"""Pieces of a page that needs no other file."""

import base64
import html
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Whatever a page holds, a browser asks nobody for anything."""
_ABOUT = re.compile(r'aria-describedby="about-\?".*?id="about-\?"', re.DOTALL)
"""A term and its explanation, which find each other by an id that is one of the page."""


class Section(NamedTuple):
    """A part of a page that its contents name."""

    heading: str
    content: str
    """HTML."""


def document(
    title: str,
    lead: str,
    sections: Iterable[Section] = (),
    *,
    scripts: Sequence[str] = (),
    kind: str = "page",
) -> str:
    """A whole page: its title, what stands above everything, and sections with links to each at the top.

    Args:
        title: plain text.
        lead: HTML.
        sections: those without content are left out.
        scripts: names of further files of this folder that it runs.
        kind: by which a program knows its own pages again; see :func:`kind_of`.
    """
    title = html.escape(title)
    shown = [each for each in sections if each.content]
    anchors = _anchors([each.heading for each in shown])
    parts = "".join(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{html.escape(each.heading)}</h2>\n{each.content}\n'
        "</section>\n"
        for anchor, each in zip(anchors, shown, strict=True)
    )
    links = "".join(
        f'<li><a href="#{anchor}">{html.escape(each.heading)}</a></li>'
        for anchor, each in zip(anchors, shown, strict=True)
    )
    contents = f'<nav class="contents" aria-label="Contents"><ul>{links}</ul></nav>\n' if links else ""
    numbers = count(1)
    lead, parts = (
        _ABOUT.sub(lambda found: found[0].replace("about-?", f"about-{next(numbers)}"), each)
        for each in (lead, parts)
    )
    code = "".join(f"<script>\n{_file(name)}</script>\n" for name in ("page.js", *scripts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="generator" content="pyvae {kind}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_file('style.css')}</style>\n</head>\n<body>\n{contents}"
        f'<div class="page">\n<header>\n<h1>{title}</h1>\n{lead}</header>\n<main>\n{parts}</main>\n</div>\n'
        f"{code}</body>\n</html>\n"
    )


def kind_of(path: Path) -> str | None:
    """What kind of a page of :func:`document` a file holds; None for any other file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(1024).decode(errors="replace")
    found = re.search(r'<meta name="generator" content="pyvae ([a-z]+)">', begin)
    return found and found[1]


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _anchors(headings: Sequence[str]) -> list[str]:
    found: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        again = sum(each == plain or each.startswith(f"{plain}--") for each in found)
        found.append(f"{plain}--{again + 1}" if again else plain)
    return found


def tiles(numbers: Iterable[tuple[str, str, str]]) -> str:
    """The numbers that one looks for first.

    Args:
        numbers: of each what it is (HTML), its value, and its unit or what else is small beside it.
    """
    cells = []
    for name, value, unit in numbers:
        small = f" <small>{html.escape(unit)}</small>" if unit else ""
        cells.append(f"<div><dt>{name}</dt><dd>{html.escape(value)}{small}</dd></div>")
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def figure(path: Path, caption: str, *, alt: str) -> str:
    """An image with its caption, the file's content in the page; ``alt``: what is to be seen, for who does not see."""
    return picture(path.suffix[1:], path.read_bytes(), caption, alt=alt)


def picture(form: str, content: bytes, caption: str, *, alt: str) -> str:
    """An image with its caption, from the content of a file in the format "png", "jpeg" or "gif"."""
    # paper does not move
    place, kind = (' class="screen"', "scroll") if form == "gif" else ("", "scroll wide")
    return (
        f'<figure{place}><div class="{kind}">{image(form, content, alt)}</div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def image(form: str, content: bytes, alt: str, *, width: int | None = None) -> str:
    """An image alone, as wide as it is or as so many pixels."""
    encoded = base64.b64encode(content).decode()
    wide = f' width="{width}"' if width else ""
    return f'<img alt="{html.escape(alt)}"{wide} src="data:image/{form};base64,{encoded}">'


def row(cells: Sequence[str], *, numbers: Collection[int] = (), cell: str = "td") -> str:
    """A row of a table, of which some columns hold numbers; of ``cell="th"`` it heads the columns."""
    kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
    scope = ' scope="col"' if cell == "th" else ""
    return (
        "<tr>"
        + "".join(f"<{cell}{scope}{k}>{html.escape(c)}</{cell}>" for k, c in zip(kinds, cells, strict=True))
        + "</tr>"
    )


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: the two that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
