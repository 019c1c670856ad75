"""The rules of the house: one op, one noun; imports run one way."""

import ast
import re
import sys
from pathlib import Path

import pytest

import pyvae
import pyvae.functional
import pyvae.reference
from aot import kernels

ROOT = Path(__file__).resolve().parents[1]
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
MODULES = sorted(p for p in (ROOT / "pyvae").rglob("*.py") if p.relative_to(ROOT).parts[1] != "kernels")

# lowest first; a wing imports from those below it, and those of a line stand beside each other
WINGS = [
    {"errors"},
    {"base", "kernels"},
    {"random"},
    {"reference"},
    {"backend", "bounds"},
    {"ops"},
    {"functional"},
    {"control", "nets", "schedules"},
    {"data", "metrics", "objectives"},
    {"engine", "modules"},
    {"evaluation", "integrations", "recipes"},
    {"studies"},
    {"report"},
    {"runs"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(WINGS) for name in names}
ENGINE = {"adam", "bias_activation", "binarise", "controller", "draw", "ledger"}
"""Kernels of the engine's own, each in pyvae/engine under the same name, that of networks in pyvae/nets; no ops."""
FUSED = {
    *("conv_ends", "conv_pair", "dense", "descriptor_gradients", "flat_adam", "kl_weight", "latents"),
    *("member_rows", "weight_gradients"),
}
"""Kernels of whole networks, whose launches are those of pyvae/engine/fused/plan.py."""
OPS = sorted({module for module, _ in kernels()} - ENGINE - FUSED)


def imports(path):
    """(line, dotted name) of what a file imports, but for the sake of type checkers; relative imports resolved."""
    package = path.relative_to(ROOT).parts[:-1]
    nodes = list(ast.walk(ast.parse(path.read_text())))
    typed = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(n) for block in typed for n in ast.walk(block)}
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from pyvae import reference" imports pyvae.reference
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "pyvae" else [module]
            yield from ((node.lineno, name) for name in names)


def part(dotted):
    """Which part of pyvae a dotted name belongs to; None for the package itself and for others."""
    head, *rest = dotted.split(".")
    return rest[0] if head == "pyvae" and rest and rest[0] in LEVEL else None


def part_of(path):
    return path.relative_to(ROOT / "pyvae").with_suffix("").parts[0]


def test_there_are_ops():
    assert set(OPS) >= {"bernoulli_nll", "reparameterize_kl"}


@pytest.mark.parametrize("op", OPS)
def test_one_op_one_noun(op):
    homes = (
        f"pyvae/ops/{op}.py",
        f"pyvae/reference/{op}.py",
        f"tests/test_{op}.py",
        f"benchmarks/bench_{op}.py",
    )
    for file in homes:
        assert (ROOT / file).is_file(), file
    for module in (pyvae.reference, pyvae.functional, pyvae):
        assert callable(getattr(module, op)), module
    assert op in pyvae.__all__
    assert op in pyvae.functional.__all__
    assert getattr(pyvae, op) is getattr(pyvae.functional, op)
    assert getattr(pyvae, op).__doc__
    names = {name for module, name in kernels() if module == op}
    assert all(re.fullmatch(rf"{op}_(fwd|bwd)(_\w+)?_kernel", name) for name in names)


def test_every_public_op_has_a_file():
    for op in set(pyvae.__all__) - {"tc_batch"}:  # one with permute_dims, which it is the use of
        for file in (f"pyvae/ops/{op}.py", f"pyvae/reference/{op}.py", f"tests/test_{op}.py"):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_import_triton_and_siblings_alone(path):
    siblings = {p.stem for p in KERNELS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} == {"triton"}, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, node.lineno
            assert node.module in siblings, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] == "triton", node.lineno


def test_kernels_are_one_folder():
    assert (ROOT / "pyvae/kernels").resolve() == (ROOT / "kernels").resolve()
    assert not (ROOT / "kernels/__init__.py").exists()


def test_every_module_has_a_wing():
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = part_of(path)
    if own == "__init__":
        # the package loads its parts on use
        assert not any(name.split(".")[0] in ("pyvae", "torch") for _, name in imports(path))
        return
    for line, name in imports(path):
        used = part(name)
        assert used in (None, own) or LEVEL[used] < LEVEL[own], f"line {line}: {own} imports {name}"


SPECIFICATION = [ROOT / "pyvae/random.py", *sorted((ROOT / "pyvae/reference").glob("*.py"))]


@pytest.mark.parametrize("path", SPECIFICATION, ids=lambda p: p.stem)
def test_the_specification_needs_torch_alone(path):
    outside = {n.split(".")[0] for _, n in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "pyvae"}


def test_kernels_are_imported_where_they_are_launched():
    """At the top of a module, ``import pyvae.functional`` would need triton."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not any(n.startswith(("triton", "pyvae.kernels")) for n in names), path


def test_every_package_is_shipped():
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    held = {".".join(p.parent.relative_to(ROOT).parts) for p in MODULES} | {"pyvae.kernels", "pyvae_engine"}
    assert sorted(listed) == sorted(held)
