"""Errors that a user can act on: one line naming the cause and the fix, printed as it is by the command line."""

_LONGEST_REASON = 200


class PyvaeError(Exception):
    """Base of the errors that the command line prints in one line, with exit status 1.

    It stays one line whatever is named in it: a file may have a newline in its name, or bytes that are no text.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class DataError(PyvaeError, ValueError):
    """A data file is missing, truncated, or not what it says it is."""


class RunError(PyvaeError, RuntimeError):
    """A run directory cannot be used: foreign, of another recipe, or without a checkpoint."""


class RecipeError(PyvaeError, ValueError):
    """A recipe asks for what cannot be."""


class SourceError(RecipeError):
    """Code of a user's own cannot be loaded, or failed, or gives what cannot be trained."""


class PlanError(PyvaeError, ValueError):
    """A study's file cannot be read, or asks for what cannot be."""


class ExportError(PyvaeError, ValueError, RuntimeError):
    """A network cannot be written for other programs."""


class SeedError(PyvaeError, ValueError):
    """A seed or a step has more than 64 bits."""


class BackendError(PyvaeError, ValueError, RuntimeError):
    """PYVAE_BACKEND names no backend, or one that cannot run here."""


def printable(text: object) -> str:
    r"""The text of something in one line of characters that any terminal shows: ``\n`` for a newline, and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def reason(error: BaseException) -> str:
    """The first line of what an error says, cut where nobody reads on; its name, if it says nothing."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= _LONGEST_REASON else f"{lines[0][:_LONGEST_REASON]}..."
