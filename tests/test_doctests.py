"""The examples in docstrings say what happens."""

import doctest
import importlib
import pkgutil

import pytest

import pyvae

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(pyvae.__path__, "pyvae.")
    # device code, the compiled operators, what needs a package of its own, and the command line's entry
    if not name.startswith(("pyvae.kernels", "pyvae._C", "pyvae.integrations.", "pyvae.__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


@pytest.mark.parametrize("op", pyvae.__all__)
def test_every_op_has_an_example(op):
    assert doctest.DocTestFinder().find(getattr(pyvae, op), op)[0].examples
