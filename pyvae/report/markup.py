"""Pieces of a page that needs no other file."""

import base64
import html
from pathlib import Path


def figure(path: Path, caption: str) -> str:
    """An image with its caption, the file's content in the page."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    source = f"data:image/{path.suffix[1:]};base64,{encoded}"
    kind = "scroll wide" if path.suffix == ".png" else "scroll"
    return (
        f'<figure><div class="{kind}"><img alt="{text}" src="{source}"></div>'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: the two that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
