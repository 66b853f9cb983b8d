"""Forms for CPUs are called only by the operations that choose between platforms."""

import ast
from pathlib import Path

import rpn_jax

PACKAGE = Path(rpn_jax.__file__).parent


def imported_modules(path: Path) -> set[str]:
    """Full names of everything that a file imports, modules and the names in them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_ops_import_the_forms_for_cpus():
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("rpn_jax.ops.cpu") for name in imported_modules(path))
    }
    assert importers == {"ops"}
