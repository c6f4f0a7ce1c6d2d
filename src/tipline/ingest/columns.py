"""The files of a prepared month, and the columns that models read from them."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

PREPARED_FILE = "trips.parquet"
QUARANTINE_FILE = "_quarantine.parquet"  # Parquet readers skip names that begin with an underscore

CATEGORY = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("us")
# By the type of a schema's column.
TYPES = {"category": CATEGORY, "timestamp": TIME, "number": pa.float64(), "integer": pa.int32(), "boolean": pa.bool_()}
TYPES |= {"identifier": pa.string()}
KIND_TYPES = {"hour": TIME, "number": pa.float64()}  # of columns after the user's function that are not text


def list_needed_columns(spec: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Return the columns that scoring and counting with a model.json read, and their types."""
    return list_input_columns(spec) | list_counted_columns(spec)


def list_counted_columns(spec: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Return the columns that are counted beside the scores of a model.json: the target's, groups and time."""
    target = {name: TYPES[type_] for name, type_ in spec["target_columns"].items()}
    groups = dict.fromkeys(spec["baseline"]["by"], CATEGORY)
    return target | groups | ({spec["time"]: TIME} if "time" in spec else {})


def list_input_columns(spec: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Return the columns that the model of a model.json takes, and their types."""
    return {column["name"]: TYPES[column["type"]] for column in spec["inputs"]}


def encode_categories(table: pa.Table) -> pa.Table:
    """Return a table read from a prepared file, whose categories are text, with a dictionary for each category."""
    for index, field in enumerate(table.schema):
        if field.type == pa.string():
            table = table.set_column(index, field.name, table[field.name].dictionary_encode())
    return table.unify_dictionaries()


def add_missing_columns(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Add columns of nulls, because months are not prepared again for a column that only later ones have."""
    for name, type_ in types.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), type_))
    return table
