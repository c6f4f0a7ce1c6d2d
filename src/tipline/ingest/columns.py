"""The files of a prepared month, and the columns that models read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREPARED_FILE = "trips.parquet"
QUARANTINE_FILE = "_quarantine.parquet"  # Parquet readers skip names that begin with an underscore

CATEGORY = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("us")
# By the type of a schema's column, and by the kind of a model's feature.
TYPES = {"category": CATEGORY, "timestamp": TIME, "hour": TIME, "number": pa.float64(), "integer": pa.int32()}
TYPES |= {"boolean": pa.bool_()}


def list_needed_columns(spec: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Return the columns that scoring and counting with a model.json read, and their types."""
    groups = dict.fromkeys(get_baseline_columns(spec["baseline"]), CATEGORY)
    times = {spec["time"]: TIME} if "time" in spec else {}
    target = {name: TYPES[type_] for name, type_ in spec["target_columns"].items()}
    return {**list_feature_columns(spec["features"]), **target, **groups, **times}


def list_feature_columns(features: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """Return the columns that features are made of, and their types."""
    return {feature["name"]: TYPES[feature["kind"]] for feature in features}


def get_baseline_columns(baseline: Mapping[str, Any]) -> list[str]:
    """Return the categories by which a model's baseline has rates."""
    return list(baseline["by"])


def add_missing_columns(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Add columns of nulls, because months are not prepared again for a column that only later ones have."""
    for name, type_ in types.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), type_))
    return table
