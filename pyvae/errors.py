"""Errors that a user can act on: one line naming the cause and the fix, printed as it is by the command line."""


class PyvaeError(Exception):
    """Base of the errors that the command line prints in one line, with exit status 1."""


class DataError(PyvaeError, ValueError):
    """A data file is missing, truncated, or not what it says it is."""


class RunError(PyvaeError, RuntimeError):
    """A run directory cannot be used: foreign, of another recipe, or without a checkpoint."""


class RecipeError(PyvaeError):
    """A recipe asks for what cannot be."""


class SeedError(PyvaeError, ValueError):
    """A seed or a step has more than 64 bits."""


class BackendError(PyvaeError, ValueError, RuntimeError):
    """PYVAE_BACKEND names no backend, or one that cannot run here."""
