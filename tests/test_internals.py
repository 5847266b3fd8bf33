"""Private names of other packages are used in one file only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import ofqctl

PACKAGE = Path(ofqctl.__file__).parent
FENCE = "internals.py"
LEFT = {"training/optimization.py"}  # timm's factory of optimizers


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_privates(tree: ast.Module) -> Iterator[str]:
    """Imports of private modules or names, and private attributes of what was imported, from other packages."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            yield from (alias.name for alias in node.names if any(map(private, alias.name.split("."))))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("ofqctl"):
            names = [alias.name for alias in node.names]
            imported |= {alias.asname or alias.name for alias in node.names}
            yield from (f"{node.module}.{n}" for n in names if any(map(private, [*node.module.split("."), n])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in imported:
                yield ast.unparse(node)


def test_private_names_of_other_packages_stand_in_one_file():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := list(foreign_privates(ast.parse(path.read_text()))))
    }
    assert found.pop(FENCE)
    assert {path: names for path, names in found.items() if path not in LEFT} == {}
