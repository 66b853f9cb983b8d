"""The layout of the package: how many parts it has, and who may import whom."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rpn_jax"

LAYERS = (
    ("structures", "errors", "console"),
    ("files", "devices", "runtime", "hosts"),
    ("config",),
    ("ops",),
    ("models", "data"),
    ("weights",),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("benchmark", "commands", "suggestions"),
    ("verbs",),
    ("cli",),
)
"""Parts of the package. A part may import from its own layer and from those above it."""

ABOUT_PYTORCH = r"rpn_jax\.benchmark\.(peer|torch)"
"""Pattern of the modules that need PyTorch."""

LAYER_OF = {part: number for number, layer in enumerate(LAYERS) for part in layer}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Yield the modules of this project that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = name if name in modules else name.rpartition(".")[0]
            if found in modules:
                yield found


def imports_of(name: str) -> set[str]:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    return set(imported_modules(tree, set(MODULES)))


def part_of(module: str) -> str:
    """Return the part of the package that a module belongs to; "" for the package itself."""
    return ".".join(module.split(".")[1:2])


def test_finds_every_form_of_import() -> None:
    tree = ast.parse(
        "import rpn_jax.files\n"
        "from rpn_jax import errors\n"
        "def f():\n    from rpn_jax.ops.boxes import box_iou\n    import numpy\n"
    )
    assert set(imported_modules(tree, set(MODULES))) == {
        "rpn_jax.files",
        "rpn_jax.errors",
        "rpn_jax.ops.boxes",
    }


def packages_imported_first(tree: ast.Module) -> set[str]:
    """Return the top-level names of what is imported when a module is imported."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"rpn_jax"}


def test_modules_import_only_what_an_installation_without_extras_has() -> None:
    """Modules of the benchmark about PyTorch are imported only where PyTorch is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {re.split("[><=;]", requirement)[0] for requirement in project["dependencies"]}
    distributions = packages_distributions()
    for module, path in MODULES.items():
        allowed = {"torch", "torchvision"} if re.match(ABOUT_PYTORCH, module) else set()
        for package in packages_imported_first(ast.parse(path.read_text())) - allowed:
            names = {name.lower().replace("_", "-") for name in distributions[package]}
            assert names & installed, f"{module} imports {package}, which no dependency brings"


def test_every_part_belongs_to_one_layer() -> None:
    parts = {part_of(name) for name in MODULES if name != "rpn_jax"}
    assert sorted(parts) == sorted(LAYER_OF)
    assert len(LAYER_OF) == sum(len(layer) for layer in LAYERS)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "rpn_jax"])
def test_imports_go_one_way(name: str) -> None:
    for imported in imports_of(name) - {"rpn_jax"}:
        assert LAYER_OF[part_of(imported)] <= LAYER_OF[part_of(name)], imported


def test_no_import_cycles() -> None:
    # The package's own __init__ imports each public name when it is first used.
    graph = {name: imports_of(name) - {name, "rpn_jax"} for name in MODULES if name != "rpn_jax"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_part_imports_another_in_a_cycle() -> None:
    graph: dict[str, set[str]] = {part: set() for part in LAYER_OF}
    for name in MODULES:
        if name != "rpn_jax":
            graph[part_of(name)] |= {part_of(m) for m in imports_of(name)} - {part_of(name), ""}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_package_imports_no_developer_tools_or_tests() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots = {(node.module or "").split(".")[0]}
            else:
                continue
            assert not roots & {"tools", "tests", "configs"}, name


def test_no_module_imports_jaxtyping_when_it_runs() -> None:
    # It is no dependency of the package. Only type checkers and tests read the annotations.
    for name, path in MODULES.items():
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        imports = [s for s in statements if isinstance(s, ast.Import | ast.ImportFrom)]
        assert "jaxtyping" not in " ".join(map(ast.unparse, imports)), name


def test_only_ops_import_the_cpu_forms() -> None:
    importers = {
        part_of(name)
        for name in MODULES
        if any(imported.startswith("rpn_jax.ops.cpu") for imported in imports_of(name))
    }
    assert importers == {"ops"}


def test_at_most_ten_packages_and_ten_modules_at_the_top() -> None:
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    modules = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(packages) <= 10
    assert len(modules) <= 10
