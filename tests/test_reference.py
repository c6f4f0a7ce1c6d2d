"""docs/reference.md matches the code."""

import ast
import re
import runpy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT
from tipline.config import Settings
from tipline.ingest.schema import Column, Csv, Schema

PACKAGE = ROOT / "src" / "tipline"
ENVIRON = "os.environ"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "reference.py"))


def test_page_is_current(reference: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == reference["format_page"](), "run: python docs/reference.py"


def test_every_key_has_a_row(reference: dict[str, Any]) -> None:
    def keys(model: Any, prefix: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            key = prefix + (field.alias or name)
            below = hasattr(field.annotation, "model_fields")
            yield from keys(field.annotation, f"{key}.") if below else [key]

    text = "\n".join(reference["format_settings"]())
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert sorted(row[0] for row in rows) == sorted(keys(Settings))
    assert "None" not in {cell for row in rows for cell in row}


def test_every_key_of_a_schema_has_a_row(reference: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `(?:csv\.)?(\w+)` \| (.+?) \|", "\n".join(reference["format_schema"]()), re.MULTILINE)
    assert [key for key, _ in rows] == [*Schema.model_fields, *Column.model_fields, *Csv.model_fields]
    assert all(meaning for _, meaning in rows)


def find_variables(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == ENVIRON:
            yield node.slice
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{ENVIRON}.get":
            yield node.args[0]
        if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == ENVIRON:
            yield node.left


def test_every_variable_has_a_row(reference: dict[str, Any]) -> None:
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    assigned = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    constants = {ast.unparse(node.targets[0]): node.value for node in assigned}
    found = [expression for tree in trees for expression in find_variables(tree)]
    # The name is a literal or a constant of a module.
    values = [constants.get(ast.unparse(expression).split(".")[-1], expression) for expression in found]
    assert {value.value for value in values if isinstance(value, ast.Constant)} == set(reference["VARIABLES"])
