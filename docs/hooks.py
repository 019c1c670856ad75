"""What `mkdocs build` does beside its plugins: formulas, links out of docs/, pages from outside of docs/."""

import html
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/GPU.md")
"""Pages of the site that lie elsewhere in the repository."""
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out of the navigation what does not exist yet."""
    config.nav = [_there(each) for each in config.nav or ()]
    return config


def _there(entry: Any) -> Any:
    if isinstance(entry, str):
        return entry
    ((title, pages),) = entry.items()
    return {title: [_there(each) for each in pages if not isinstance(each, str) or _place(each).is_file()]}


def _place(uri: str) -> Path:
    """Where the source of a page lies."""
    return ROOT / uri if uri in OUTSIDE else DOCS / uri


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the pages from outside of docs/."""
    for uri in OUTSIDE:
        if _place(uri).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(_place(uri))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ lead to the page that was taken in, or are plain words: a site has no repository."""
    here = _place(page.file.src_uri).parent
    pages = {_place(file.src_uri): file.src_uri for file in files}

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if ":" in target:
            return found[0]
        place = Path(os.path.normpath(here / target))
        if place in pages:
            target = os.path.relpath(pages[place], Path(page.file.src_uri).parent)
            return f"[{words}]({target}{anchor})"
        if place.exists() and not place.is_relative_to(DOCS):
            return words
        return found[0]

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def formula(found: re.Match[str]) -> str:
        drawn = convert(html.unescape(found[3]).strip(), display="block" if found[2] == "[" else "inline")
        return re.sub("<mi>(log|exp)</mi>", r'\g<0><mspace width="0.17em" />', drawn)

    return _FORMULA.sub(formula, content)
