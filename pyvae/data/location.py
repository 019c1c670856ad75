"""Where data lies."""

import os
from pathlib import Path

NAMES = ("dsprites", "shapes3d")
"""Names that are no paths, whatever lies there."""


def absolute(name: str) -> str:
    """The name of data as it is understood from any folder: the whole path of what lies there, other names as they are.

    >>> absolute("dsprites")
    'dsprites'
    """
    if name in NAMES:
        return name
    try:
        path = Path(name).expanduser()
        return os.fspath(path.resolve()) if path.exists() else name
    except (OSError, RuntimeError, ValueError):  # no such user, or no name of a file: told when it is opened
        return name
