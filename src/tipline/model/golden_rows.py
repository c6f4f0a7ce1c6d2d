"""Golden rows: rows kept in model.json with their scores, which every worker has to reproduce before it scores."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from tipline.errors import TiplineError, join_lines
from tipline.ingest.columns import CATEGORY, TIME, list_input_columns
from tipline.model import artifact
from tipline.model.artifact import FORMS, KERNELS, PIPELINE, Model

ROWS = 32
KEY = "golden_rows"
UNSEEN_NUMBER, UNSEEN = -(2**31), {CATEGORY: "(unseen)", pa.bool_(): None}


def add_golden_rows(model: Model, trips: pa.RecordBatch) -> dict[str, Any]:
    """Return model.json with the first of these rows, and two with unseen and missing categories, and their scores."""
    schema = create_json_schema(model)
    rows = trips.select(schema.names).slice(0, ROWS).cast(schema).to_pylist()
    if "preprocess" in model.estimator.named_steps:
        coded = {column["name"] for column in model.spec["features"] if column["kind"] == "category"}
        types = {name: type_ for name, type_ in list_input_columns(model.spec).items() if name in coded}
        unseen = {name: UNSEEN.get(type_, UNSEEN_NUMBER) for name, type_ in types.items()}
        for changed in (rows[0] | unseen, rows[0] | dict.fromkeys(types)):
            with contextlib.suppress(TiplineError):
                model.probabilities(read_rows([changed], model))
                rows.append(changed)
    return {**model.spec, KEY: {"rows": rows, "scores": model.probabilities(read_rows(rows, model)).tolist()}}


def load_checked_model(
    files: Mapping[str, bytes], digest: str, where: str, forms: Sequence[str] = FORMS, rows: int = 0
) -> tuple[Model, int, str]:
    """Load a model on the machine `where`, in the first of some forms that works there, to score about `rows` rows.

    Returns it, how many float32 steps its golden rows are off, 0 or 1, and why a faster form is not used. Raises
    TiplineError if this machine computes differently from the one that trained.
    """
    reason = ""
    for form in forms:
        if form == KERNELS and not rows:
            continue
        try:
            count = rows if form == KERNELS else 0
            model = artifact.load_model(files, digest, use_compiled=form != PIPELINE, rows=count)
            steps = count_steps(model)
        except TiplineError as error:
            if form != KERNELS:
                raise
            reason = join_lines(error.parts[0]).rstrip(".")
        else:
            if steps <= 1:
                return model, steps, reason
            reason = reason or f"the {model.form} form of the model does not give its scores"
    what = f"The golden rows get other scores here than where the model was trained ({steps} float32 steps off)."
    todo = "Use the same processor type and library versions as in training, or train again where you score."
    raise TiplineError(what, where, todo)


def count_steps(model: Model) -> int:
    """Return the largest difference between the scores of the golden rows and those stored, in float32 steps."""
    golden = model.spec.get(KEY)
    if golden is None:
        return 0
    scores, expected = model.probabilities(read_rows(golden["rows"], model)), np.array(golden["scores"], np.float32)
    # Probabilities are not negative: their bit patterns are in the order of their values, with that of NaN far away.
    return int(np.abs(scores.view(np.int32).astype(np.int64) - expected.view(np.int32)).max(initial=0))


def read_rows(rows: Sequence[Mapping[str, Any]], model: Model) -> pa.RecordBatch:
    lines = "\n".join(map(json.dumps, rows))
    # Not `pa.array`, which imports pandas: half a second in every worker.
    options = pyarrow.json.ParseOptions(explicit_schema=create_json_schema(model))
    table = pyarrow.json.read_json(pa.BufferReader(lines.encode()), parse_options=options)
    return table.cast(pa.schema(list_input_columns(model.spec))).combine_chunks().to_batches()[0]


def create_json_schema(model: Model) -> pa.Schema:
    """Return the types that the model's columns have in JSON; timestamps are microseconds since 1970."""
    types = list_input_columns(model.spec).items()
    return pa.schema([(name, {CATEGORY: pa.string(), TIME: pa.int64()}.get(type_, type_)) for name, type_ in types])
