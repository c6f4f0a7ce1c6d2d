"""Golden rows: rows kept in model.json with their scores, which every worker has to reproduce before it scores."""

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
KEY = "golden_rows"


def add_golden_rows(model: Model, trips: pa.RecordBatch) -> dict[str, Any]:
    """Return the model's model.json with the first of these prepared rows and their scores added."""
    rows = trips.slice(0, ROWS)
    values = {
        name: rows[name].cast(get_json_type(type_)).to_pylist()
        for name, type_ in list_feature_columns(model.features).items()
    }
    scores = model.probabilities(read_rows(values, model)).tolist()
    return {**model.spec, KEY: {**values, pyfunc.OUTPUT: scores}}


def score_golden_rows(files: Mapping[str, bytes], trips: pa.RecordBatch) -> dict[str, bytes]:
    """Return the files of an external model, which has no golden rows, with some that are scored here and now.

    Raises
    ------
    TiplineError
        The model cannot be loaded here, or does not give probabilities.
    """
    return {**files, pyfunc.SPEC: json.dumps(add_golden_rows(ExternalModel(files), trips)).encode()}


def check_golden_rows(model: Model, where: str) -> int:
    """Score the golden rows and compare.

    Parameters
    ----------
    where
        The worker, for the message.

    Returns
    -------
    int
        The largest difference in float32 steps, 0 or 1.

    Raises
    ------
    TiplineError
        A score differs by more, so this machine computes differently from the one that trained.
    """
    values = model.spec.get(KEY)
    if values is None:
        return 0
    scores = model.probabilities(read_rows(values, model))
    steps = count_float32_steps(scores, np.array(values[pyfunc.OUTPUT], dtype=np.float32))
    if steps > 1:
        what = (
            f"This worker scores the model's golden rows differently from the machine that trained it ({steps} steps)."
        )
        todo = "Use the same processor type and library versions as in training, or train again where you score."
        raise TiplineError(what, where, todo)
    return steps


def read_rows(values: Mapping[str, Any], model: Model) -> pa.RecordBatch:
    """Convert JSON values, by feature, to prepared rows."""
    types = list_feature_columns(model.features)
    schema = pa.schema([(name, get_json_type(type_)) for name, type_ in types.items()])
    rows = zip(*(values[name] for name in types), strict=True)
    lines = "\n".join(json.dumps(dict(zip(types, row, strict=True))) for row in rows)
    # Not `pa.array`, which imports pandas: half a second in every worker.
    options = pyarrow.json.ParseOptions(explicit_schema=schema)
    table = pyarrow.json.read_json(pa.BufferReader(lines.encode()), parse_options=options).combine_chunks()
    columns = [convert_column(table[name].chunk(0), type_) for name, type_ in types.items()]
    return pa.RecordBatch.from_arrays(columns, list(types))


def get_json_type(type_: pa.DataType) -> pa.DataType:
    """Return the type of a column in JSON; timestamps are microseconds since 1970."""
    return pa.string() if pa.types.is_dictionary(type_) else pa.int64() if pa.types.is_timestamp(type_) else type_


def convert_column(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """Convert a column read from JSON to its prepared type."""
    return column.dictionary_encode() if pa.types.is_dictionary(type_) else column.cast(type_)


def count_float32_steps(scores: pyfunc.Probabilities, expected: pyfunc.Probabilities) -> int:
    """Return the largest difference in representable float32 numbers.

    Probabilities are not negative, so their bit patterns are in the same order as their values.
    """
    if not np.isfinite(scores).all():
        return int(np.iinfo(np.int32).max)
    difference = scores.view(np.int32).astype(np.int64) - expected.view(np.int32)
    return int(np.abs(difference).max(initial=0))
