"""Which modules of tipline a module needs when it runs, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "tipline"


def path_of(module: str) -> Path | None:
    """The file of a module of tipline, None for a name that is no module."""
    parts = module.split(".")[1:]
    for candidate in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE.joinpath(*parts, "__init__.py")):
        if candidate.is_file():
            return candidate
    return None


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def direct(path: Path) -> set[Path]:
    """The modules of tipline that a file imports, at the top or in a function, types apart; templates that it names."""
    found: set[Path] = set()
    if path.suffix != ".py":
        return found
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if is_type_checking(node):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tipline":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {file for name in names if (file := path_of(name) or path_of(node.module))}
        if isinstance(node, ast.Constant) and str(node.value).endswith(".html"):
            found |= {file for file in (path.parent / str(node.value),) if file.is_file()}
    return found - {PACKAGE / "__init__.py"}


def needed(path: Path) -> set[Path]:
    """`path` and all that it imports, however deep."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(direct(current))
    return seen
