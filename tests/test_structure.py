"""The structure of the source: layers, one door to each library, short functions, a picture that is current."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import structure
from tests.conftest import ROOT
from tests.imports import PACKAGE
from tipline import cli

MODULES = structure.modules()
# What a module of statistics may import: numbers in, numbers out.
PURE = {"__future__", "typing", "collections", "dataclasses", "itertools", "functools", "math"}
NUMBERS = {"numpy", "pyarrow", "scipy", "sklearn"}


def catches_all(path: Path) -> list[int]:
    """The lines on which a module catches whatever is raised and does not raise it again."""
    handlers = [node for node in ast.walk(structure.parsed(path)) if isinstance(node, ast.ExceptHandler)]
    return [node.lineno for node in handlers if names_all(node.type) and not is_reraise(node.body[-1])]


def names_all(type_: ast.expr | None) -> bool:
    """Whether `except` with this after it catches everything."""
    return type_ is None or bool({ast.unparse(node) for node in ast.walk(type_)} & {"Exception", "BaseException"})


def is_reraise(node: ast.stmt) -> bool:
    """Whether a statement is `raise` alone."""
    return isinstance(node, ast.Raise) and node.exc is None


def test_every_module_has_a_layer() -> None:
    known = {unit for layer in structure.LAYERS for unit in layer}
    assert {structure.unit(path) for path in MODULES} == known


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert structure.cycle() == []


def test_nothing_imports_from_a_layer_above_its_own() -> None:
    pairs = [(path, other) for path in MODULES for other in structure.uses(path)]
    assert [
        f"{structure.short(path)} imports {structure.short(other)}"
        for path, other in pairs
        if structure.rank(other) > structure.rank(path)
    ] == []


@pytest.mark.parametrize("library", structure.DOORS)
def test_a_library_has_its_doors_and_no_others(library: str) -> None:
    found = {path for path in MODULES if library in structure.libraries(path)}
    assert sorted(map(structure.short, found - structure.doors(library))) == []
    for pattern in structure.DOORS[library]:  # a door that nobody uses any more is to be walled up
        assert found & set(PACKAGE.glob(pattern)), pattern


def test_statistics_read_and_write_nothing() -> None:
    inside = [path for path in MODULES if structure.unit(path) == "statistics"]
    names = {name for path in inside for name in structure.imported(path)}
    assert {name.split(".")[0] for name in names} <= PURE | NUMBERS | {"tipline"}
    assert {name for name in names if name.startswith(("pyarrow.parquet", "pyarrow.fs", "numpy.load"))} == set()
    used = {structure.unit(other) for path in inside for other in structure.uses(path)}
    assert used <= {"errors", "pyfunc", "months", "params", "statistics"}


def test_whatever_is_raised_is_caught_in_cli_alone() -> None:
    found = {structure.short(path): lines for path in MODULES if (lines := catches_all(path))}
    assert set(found) == {"cli.py"}, found


def test_every_module_and_command_is_reached_from_the_command_line() -> None:
    reached, waiting = set[Path](), [PACKAGE / "cli.py"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        waiting += structure.uses(path) - reached
    assert sorted(structure.short(path) for path in set(MODULES) - reached) == []
    for name, command in cli.COMMANDS.items():
        module, _, function = command.function.partition(":")
        found = structure.parsed(PACKAGE / f"{module.replace('.', '/')}.py")
        assert function in {node.name for node in found.body if isinstance(node, ast.FunctionDef)}, name


def test_functions_are_short() -> None:
    assert structure.share(10) >= 0.5
    assert structure.share(25) >= 0.9
    assert [function for function in structure.functions() if function.lines > 60] == []


def test_the_picture_is_current() -> None:
    assert structure.PICTURE.read_text(encoding="utf-8") == structure.picture(), "run: python -m tests.structure"


@pytest.mark.parametrize("page", ["structure.md", "how-it-works.md"])
def test_files_and_names_that_a_page_sends_a_reader_to_are_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|yaml|html))(?:::\w+)?`", text))
    files -= {"stages/NAME.py", "commands/NAME.py"}
    assert files
    assert {file for file in files if not any((top / file).is_file() for top in (ROOT, PACKAGE))} == set()
    for file, names in re.findall(r"`([\w/]+\.py)`\s\(((?:`\w+`[^()]*?)+)\)", text):
        code = next(path for path in (PACKAGE / file, ROOT / file) if path.is_file()).read_text(encoding="utf-8")
        assert [name for name in re.findall(r"`(\w+)`", names) if not re.search(rf"\b{name}\b", code)] == [], file
    for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_page_is_in_the_index_of_the_docs() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()
