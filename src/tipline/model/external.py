"""Models that tipline did not make: any MLflow pyfunc that takes columns of the schema and returns probabilities.

An external model is scored through its own `predict` on pandas frames. Its files are what MLflow logged, below
`mlflow/`, and a model.json that tipline adds: the columns that the model takes and the baseline of its counts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.arrays import Floats
from tipline.errors import ReportedCode, TiplineError, UsageError
from tipline.model import loader, pyfunc

if TYPE_CHECKING:
    import pandas as pd

    from tipline.ingest.schema import Schema

FOLDER = "mlflow"
# MLflow's types by those of the schema. Whole numbers are doubles, because an integer cannot be missing in pandas.
SCHEMA_TYPES = {"category": ("string",), "timestamp": ("datetime",)}
NUMBERS = ("double", "float")
TODO = "Log it with a signature of schema columns as string, datetime or double and probabilities as its output."


def is_external(files: Mapping[str, bytes]) -> bool:
    """Whether the files are those of a model that tipline did not make."""
    return f"{FOLDER}/MLmodel" in files


def hash_model(files: Mapping[str, bytes]) -> str:
    """Return the digest of what MLflow logged; model.json, which tipline adds, is no part of it."""
    return loader.hash_files({name: data for name, data in files.items() if name != pyfunc.SPEC})


def check_files(files: Mapping[str, bytes], where: str) -> None:
    """Refuse files of an external model whose loading could run what nobody has read; see `loader`."""
    logged = {name.removeprefix(f"{FOLDER}/"): data for name, data in files.items() if name != pyfunc.SPEC}
    loader.check_external_model(logged, where)


def read_inputs(folder: Path, schema: Schema, hidden: Collection[str], where: str) -> list[dict[str, str]]:
    """Read from its signature which columns a model takes; refuse a signature that prepared rows cannot fill."""
    from mlflow.models import Model  # noqa: PLC0415 (MLflow takes seconds, and our own models do without)

    signature = Model.load(str(folder)).signature
    if signature is None or signature.inputs is None or signature.inputs.is_tensor_spec():
        what = "This version does not name the columns that it takes: it has no signature, or one for a plain array."
        raise UsageError(what, where, TODO)
    taken = {column.name: getattr(column.type, "name", str(column.type)) for column in signature.inputs}
    reasons = [reason for name, type_ in taken.items() if (reason := find_objection(name, type_, schema, hidden))]
    if reasons:
        raise UsageError(f"This version cannot take prepared rows: {'; '.join(reasons)}.", where, TODO)
    return [{"name": name, "type": schema.columns[name].type, "declared": type_} for name, type_ in taken.items()]


def find_objection(name: str, type_: str, schema: Schema, hidden: Collection[str]) -> str | None:
    """Say why a column cannot be passed to a model, or return None."""
    column = schema.columns.get(name)
    if column is None:
        return f"{name} is not a column of the schema"
    if column.known_after_outcome:
        return f"{name} is known only after the outcome"
    if name in hidden:
        return f"{name} is part of the target or hidden"
    accepted = SCHEMA_TYPES.get(column.type, NUMBERS)
    return None if type_ in accepted else f"{name} is declared {type_}, it has to be {accepted[0]}"


def load_predict(files: Mapping[str, bytes], spec: Mapping[str, Any]) -> Callable[[pd.DataFrame], Floats]:
    """Load a model, whose files were checked, through MLflow; return the function from a frame to the probabilities."""
    from mlflow.pyfunc import load_model  # noqa: PLC0415 (see above)

    where, folder = spec["name"], Path(tempfile.mkdtemp(prefix="tipline-model-"))
    floats = {column["name"]: "float32" for column in spec["inputs"] if column["declared"] == "float"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    # MLflow's own switch also refuses skops, whose types `loader` has checked.
    may_unpickle = spec.get("trusted") == hash_model(files) or any(name.endswith(".skops") for name in files)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = str(may_unpickle)
    todo = "Install its requirements.txt here and on all workers, or promote another version."
    with ReportedCode("MLflow's loader of this model", where, todo, TiplineError):
        model = load_model(str(folder / FOLDER))

    def predict(frame: pd.DataFrame) -> Floats:
        given = model.predict(frame.astype(floats))
        scores = extract_scores(given)
        if scores is None or len(scores) != len(frame):
            returned = f"an array of {np.asarray(given).dtype} of shape {np.shape(given)}"
            what = f"Its predict returns {returned} for {len(frame):,} rows, not one probability per row."
            raise TiplineError(what, where, TODO)
        wrong = scores[~((scores >= 0) & (scores <= 1))]  # NaN is wrong, too
        if wrong.size:
            raise TiplineError(f"Its predict returns {wrong[0]}, which is not a probability.", where, TODO)
        return scores

    # The model may read files of its own as long as it lives.
    weakref.finalize(predict, shutil.rmtree, folder, ignore_errors=True)
    return predict


def extract_scores(given: Any) -> Floats | None:  # noqa: ANN401 (whatever the model gives)
    """Return one float per row, of one column or the second of two; None for anything else, such as classes."""
    values = np.asarray(given)
    if values.shape[1:] in {(1,), (2,)}:
        values = values[:, -1]
    return values.astype(np.float64) if values.ndim == 1 and values.dtype.kind == "f" else None
