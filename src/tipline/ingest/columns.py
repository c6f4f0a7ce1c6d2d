"""Prepared trips as models read them: the columns they need, also of months prepared before these were known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREPARED_FILE = "trips.parquet"
QUARANTINE_FILE = "_quarantine.parquet"  # readers of the folder pass over the underscore

CATEGORY = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("us")
# By the type of a schema's column and by the kind of a model's feature.
TYPES = {"category": CATEGORY, "timestamp": TIME, "hour": TIME, "number": pa.float64(), "integer": pa.int32()}


def list_needed_columns(spec: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """The columns that a model and the counts of its scores read, from model.json: features, target, `baseline.by`,
    the time.
    """
    groups = dict.fromkeys(get_baseline_columns(spec["baseline"]), CATEGORY)
    times = {spec["time"]: TIME} if "time" in spec else {}
    return {**list_feature_columns(spec["features"]), spec["target"]: pa.float64(), **groups, **times}


def list_feature_columns(features: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The columns that features are made of."""
    return {feature["name"]: TYPES[feature["kind"]] for feature in features}


def get_baseline_columns(baseline: Mapping[str, Any]) -> list[str]:
    """The categories that a model's baseline goes by; models of an earlier tipline name just one."""
    by = baseline["by"]
    return [by] if isinstance(by, str) else list(by)


def add_missing_columns(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """A table with these columns: one that is not there is nothing but nulls.

    A month is not prepared again for a column that the schema gained later and that the month was published without.
    """
    for name, type_ in types.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), type_))
    return table
