"""Whether ``import pyvae`` means this project.

It is installed as pyvae-engine: another project's distribution is called pyvae, and has a folder ``pyvae`` as well, so
that each overwrites files of the other. This stands beside that folder and imports nothing of it.
"""

from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec

_MARK = 'DISTRIBUTION = "pyvae-engine"'
"""A line of pyvae/__init__.py."""
_AGAIN = "install pyvae-engine again, with --force-reinstall --no-deps"


def overwritten() -> str | None:
    """What stands where ``pyvae`` should be, and what to do about it; None where that is ours."""
    spec = find_spec("pyvae")
    if spec is None:
        return f"the folder pyvae is gone: {_AGAIN}"
    if spec.origin is None:  # the folder is there, as one without code
        folder = next(iter(spec.submodule_search_locations or ()), "pyvae")
        return f"{folder}/__init__.py is gone, as it is after pip uninstall pyvae: {_AGAIN}"
    source = getattr(spec.loader, "get_source", lambda name: None)("pyvae")
    if source is None or _MARK in source:
        return None
    return f"{spec.origin} is another project's: pip uninstall pyvae, then {_AGAIN}"


def beside() -> list[str]:
    """A line for each distribution called pyvae: another project's, or this one under its former name."""
    return [
        f"{_whose(found)} is installed too, and they share files: pip uninstall pyvae, then {_AGAIN}"
        for found in _called_pyvae()
    ]


def _called_pyvae() -> Iterator[Distribution]:
    # what a build leaves in a checkout has no record of what it installed
    return (found for found in distributions(name="pyvae") if found.read_text("RECORD") is not None)


def _whose(found: Distribution) -> str:
    ours = {"pyvae.__main__:main", "pyvae.cli:main"}
    if any(script.value in ours for script in found.entry_points):
        return f"pyvae {found.version}, an earlier version of pyvae-engine under its former name,"
    return f"another project's pyvae {found.version}"
