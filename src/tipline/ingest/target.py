"""The target: a yes/no expression over columns of the schema, in the syntax of `DataFrame.eval`.

It may compare, add, subtract, multiply and divide columns and constants, test them with `in`, and join yes/no values
with `and`, `or` and `not`: `tip_amount > 0.2 * fare_amount`, `payment_type == 'credit'`, `is_late`.
"""

import ast
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.errors import shorten_text
from tipline.ingest.columns import TYPES

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {ast.Eq: pc.equal, ast.NotEq: pc.not_equal}
OPERATORS |= {ast.Gt: pc.greater, ast.GtE: pc.greater_equal, ast.Lt: pc.less, ast.LtE: pc.less_equal}
OPERATORS |= {ast.Add: pc.add, ast.Sub: pc.subtract, ast.Mult: pc.multiply, ast.Div: pc.divide, ast.USub: pc.negate}
OPERATORS |= {ast.And: pc.and_, ast.BitAnd: pc.and_, ast.Or: pc.or_, ast.BitOr: pc.or_}
OPERATORS |= {ast.Not: pc.invert, ast.Invert: pc.invert}


@dataclass(frozen=True)
class Target:
    tree: ast.expr
    columns: tuple[str, ...]  # in the order of their appearance

    def evaluate(self, rows: pa.RecordBatch | pa.Table) -> pa.BooleanArray:
        """Return yes or no for each row; null for a row in which one of the columns is missing."""
        columns = {name: unpack_column(rows[name]) for name in self.columns}
        answers = evaluate_node(self.tree, columns)
        if not any(column.null_count for column in columns.values()):
            return answers
        return pc.if_else(reduce(pc.and_, (column.is_valid() for column in columns.values())), answers, None)


@lru_cache(maxsize=16)
def parse_target(text: str) -> Target:
    """Parse an expression; raise ValueError, with what is wrong, for anything else."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it cannot be parsed"
        raise ValueError(f"{shorten_text(repr(text))} is not an expression: {reason}") from None
    names = dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Target(tree, tuple(names))


def check_target(text: str, types: Mapping[str, pa.DataType]) -> Target:
    """Return the target if it is a yes/no value over columns of these types; raise ValueError otherwise."""
    target = parse_target(text)
    unknown = next((name for name in target.columns if name not in types), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, types, 1)
        raise ValueError(f"{unknown} is not a column of the schema{f', did you mean {near[0]}?' if near else ''}")
    if not target.columns:
        raise ValueError(f"{text!r} names no column of the schema")
    try:
        answers = target.evaluate(pa.table({name: pa.nulls(0, types[name]) for name in target.columns}))
    except (pa.ArrowException, TypeError) as error:
        words = {type_: word for word, type_ in TYPES.items()}
        shown = ", ".join(f"{name} is a {words.get(types[name], types[name])}" for name in target.columns)
        raise ValueError(f"{text!r} cannot be computed ({shown})") from error
    if not (isinstance(answers, pa.Array) and pa.types.is_boolean(answers.type)):
        raise ValueError(f"{text!r} is not a yes/no value")
    return target


def unpack_column(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; whole numbers as doubles, because their division would be whole."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(pa.float64()) if pa.types.is_integer(array.type) else array


def evaluate_node(node: ast.AST, columns: Mapping[str, pa.Array]) -> Any:  # noqa: ANN401 (an array or a constant)
    """Evaluate a part of an expression; raise ValueError for what is not part of the syntax."""
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return create_scalar(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](evaluate_node(node.operand, columns))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](evaluate_node(node.left, columns), evaluate_node(node.right, columns))
    if isinstance(node, ast.BoolOp):
        return reduce(OPERATORS[type(node.op)], (evaluate_node(value, columns) for value in node.values))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return reduce(pc.and_, (compare_nodes(left, operator, right, columns) for left, operator, right in pairs))
    raise ValueError(f"{ast.unparse(node)!r} is not part of the syntax of a target: columns, constants and operators")


def create_scalar(value: bool | float | str) -> pa.Scalar:  # noqa: FBT001 (a constant)
    """Return a constant; `pa.scalar` would import pandas, which takes half a second in every worker."""
    if isinstance(value, str):
        data = value.encode()
        offsets = np.array([0, len(data)], np.int32)
        return pa.StringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data))[0]
    number = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.array([float(value)]))])
    return (number.cast(pa.bool_()) if isinstance(value, bool) else number)[0]


def compare_nodes(left: ast.expr, operator: ast.cmpop, right: ast.expr, columns: Mapping[str, pa.Array]) -> Any:  # noqa: ANN401
    """Evaluate one comparison; `in` takes a list of constants."""
    value = evaluate_node(left, columns)
    if isinstance(operator, ast.In | ast.NotIn) and isinstance(right, ast.List | ast.Tuple):
        found = reduce(pc.or_, (pc.equal(value, evaluate_node(item, columns)) for item in right.elts))
        return pc.invert(found) if isinstance(operator, ast.NotIn) else found
    if type(operator) not in OPERATORS:
        raise ValueError(f"{ast.unparse(right)!r} is compared by an operator that a target cannot have")
    return OPERATORS[type(operator)](value, evaluate_node(right, columns))
