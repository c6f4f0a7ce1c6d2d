"""Prepared trips as models read them: the columns they need, also of months prepared before these were known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

CATEGORY = pa.dictionary(pa.int32(), pa.string())
TYPES = {"category": CATEGORY, "hour": pa.timestamp("us"), "number": pa.float64()}


def needed(spec: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """The columns that a model and the counts of its scores read, from model.json: features, target, `baseline.by`,
    the time.
    """
    features = {feature["name"]: TYPES[feature["kind"]] for feature in spec["features"]}
    groups = dict.fromkeys(grouped_by(spec["baseline"]), CATEGORY)
    times = {spec["time"]: TYPES["hour"]} if "time" in spec else {}
    return {**features, spec["target"]: pa.float64(), **groups, **times}


def grouped_by(baseline: Mapping[str, Any]) -> list[str]:
    """The categories that a model's baseline goes by; models of an earlier tipline name just one."""
    by = baseline["by"]
    return [by] if isinstance(by, str) else list(by)


def with_columns(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """A table with these columns: one that is not there is nothing but nulls.

    A month is not prepared again for a column that the contract gained later and that the month was published without.
    """
    for name, type_ in types.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), type_))
    return table
