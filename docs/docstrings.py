"""Docstrings as mkdocstrings likes them: roles of Sphinx become links, examples become code."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^(?P<indent> *)>>> (?:.*\n?)(?:(?! *$).*\n?)*", re.MULTILINE)
_RAISES = re.compile(r"(?<=\.) (?=[A-Z]\w*Error: )")


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of a module, a class, a function or a field."""
        if isinstance(obj, griffe.Alias) or obj.docstring is None:
            return
        inside = obj if obj.is_class or obj.is_module else obj.parent
        obj.docstring.value = rewritten(obj.docstring.value, inside.path if inside else "")


def rewritten(text: str, inside: str) -> str:
    """A docstring as Markdown with sections of Google's style.

    Args:
        text: the docstring.
        inside: the module or class that it stands in, which a short name in a role belongs to.
    """

    def link(found: re.Match[str]) -> str:
        name = found[1]
        path = name if name.startswith("pyvae") else f"{inside}.{name}"
        return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'

    def example(found: re.Match[str]) -> str:
        indent = found["indent"]
        return f"{indent}```pycon\n{found[0].rstrip()}\n{indent}```\n"

    text = _EXAMPLE.sub(example, _ROLE.sub(link, text))
    text = re.sub(r"::$(?=\n\n? )", ":", text, flags=re.MULTILINE)
    head, raises, rest = text.partition("Raises:\n")
    return head + raises + _RAISES.sub("\n    ", rest)
