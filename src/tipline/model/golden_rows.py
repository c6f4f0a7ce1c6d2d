"""The canary: rows that model.json keeps with their scores, which each worker has to score alike before all else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from tipline.errors import TiplineError
from tipline.ingest.columns import list_feature_columns
from tipline.model import pyfunc
from tipline.model.external import ExternalModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.model.artifact import Model

ROWS = 32


def add_golden_rows(model: Model, trips: pa.RecordBatch) -> dict[str, Any]:
    """The model's model.json, with the first of these prepared trips and their scores in it."""
    rows = trips.slice(0, ROWS)
    values = {
        name: rows[name].cast(in_json(type_)).to_pylist()
        for name, type_ in list_feature_columns(model.features).items()
    }
    scores = model.probabilities(read_rows(values, model)).tolist()
    return {**model.spec, "canary": {**values, pyfunc.OUTPUT: scores}}


def with_golden_rows(files: Mapping[str, bytes], trips: pa.RecordBatch) -> dict[str, bytes]:
    """The files of a model that tipline did not make, and so has no canary, with one of these rows, scored here.

    This is also where a model that gives no probabilities is found out, before anything is scored.

    Raises
    ------
    TiplineError
        Where it does not load here or gives no probabilities.
    """
    return {**files, pyfunc.SPEC: json.dumps(add_golden_rows(ExternalModel(files), trips)).encode()}


def check_golden_rows(model: Model, where: str) -> int:
    """Score the canary; return by how many float32 steps the scores differ from those kept, 0 or 1.

    Parameters
    ----------
    where
        Who is asked, for the message.

    Raises
    ------
    TiplineError
        Where they differ by more: this machine's arithmetic is not that of the machine that trained.
    """
    values = model.spec.get("canary")
    if values is None:
        return 0
    scores = model.probabilities(read_rows(values, model))
    steps = float32_steps(scores, np.array(values[pyfunc.OUTPUT], dtype=np.float32))
    if steps > 1:
        what = f"This worker scores the model's canary rows differently from where it was trained, by {steps} steps."
        todo = "Give it the processor and library versions of the training, or train again where it scores."
        raise TiplineError(what, where, todo)
    return steps


def read_rows(values: Mapping[str, Any], model: Model) -> pa.RecordBatch:
    """Values of json, by feature, as prepared trips."""
    types = list_feature_columns(model.features)
    schema = pa.schema([(name, in_json(type_)) for name, type_ in types.items()])
    rows = zip(*(values[name] for name in types), strict=True)
    lines = "\n".join(json.dumps(dict(zip(types, row, strict=True))) for row in rows)
    # Not `pa.array`: that imports pandas, half a second in every worker.
    options = pyarrow.json.ParseOptions(explicit_schema=schema)
    table = pyarrow.json.read_json(pa.BufferReader(lines.encode()), parse_options=options).combine_chunks()
    columns = [as_prepared(table[name].chunk(0), type_) for name, type_ in types.items()]
    return pa.RecordBatch.from_arrays(columns, list(types))


def in_json(type_: pa.DataType) -> pa.DataType:
    """The type of a column's values in json; times are microseconds since 1970."""
    return pa.string() if pa.types.is_dictionary(type_) else pa.int64() if pa.types.is_timestamp(type_) else type_


def as_prepared(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """A column read from json as prepared trips have it."""
    return column.dictionary_encode() if pa.types.is_dictionary(type_) else column.cast(type_)


def float32_steps(one: pyfunc.Probabilities, other: pyfunc.Probabilities) -> int:
    """The largest difference in representable numbers; probabilities are not negative, so their bits are in order."""
    if not np.isfinite(one).all():
        return int(np.iinfo(np.int32).max)
    difference = one.view(np.int32).astype(np.int64) - other.view(np.int32)
    return int(np.abs(difference).max(initial=0))
