"""Models that tipline did not make: any MLflow pyfunc that takes columns of the schema and gives probabilities.

Such a model is scored through its own `predict`, on pandas. As files it is what MLflow logged, below `mlflow/`, and
beside it a model.json of ours that says which columns it takes and by what its scores are counted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline.errors import TiplineError, UsageError, join_lines
from tipline.model import loader, pyfunc

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from tipline.ingest.schema import Schema

FOLDER = "mlflow"
BATCH_ROWS = 2**17
# MLflow's type of a column -> the kinds of feature that it can be given. Whole numbers are doubles in prepared trips,
# because a missing one has to be told.
KINDS = {"string": "category", "datetime": "hour", "double": "number", "float": "number"}
CONTRACT_KINDS = {"category": "category", "timestamp": "hour", "number": "number", "integer": "number"}
TODO = "Log it with a signature of schema columns as string, datetime or double and probabilities as its output."
CLASSES = 2
# What the code of a model that does not fit the rows, or is not fit to be run here, may raise.
FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


def is_external(files: Mapping[str, bytes]) -> bool:
    """Whether the files are those of a model that tipline did not make."""
    return f"{FOLDER}/MLmodel" in files


def read_features(folder: Path, schema: Schema, where: str) -> list[dict[str, Any]]:
    """What a logged model takes, by its signature, as model.json has it.

    Parameters
    ----------
    folder
        The model as MLflow logged it, looked at by `trust`.
    where
        The version's name, for the message.

    Raises
    ------
    UsageError
        Where it has no signature, or one that prepared trips cannot be brought to; all reasons are named.
    """
    from mlflow.models import Model  # noqa: PLC0415 (MLflow takes seconds, and our own models do without)

    signature = Model.load(str(folder)).signature
    if signature is None or signature.inputs is None or signature.inputs.is_tensor_spec():
        what = "This version says not by name which columns it takes: it has no signature, or one of a bare array."
        raise UsageError(what, where, TODO)
    taken = {column.name: getattr(column.type, "name", str(column.type)) for column in signature.inputs}
    reasons = [reason for name, type_ in taken.items() if (reason := objection(name, type_, schema))]
    if reasons:
        raise UsageError(f"This version cannot be given prepared trips: {'; '.join(reasons)}.", where, TODO)
    return [
        {"name": name, "kind": KINDS[type_], "type": type_, "range": None, "categories": []}
        for name, type_ in taken.items()
    ]


def objection(name: str, type_: str, schema: Schema) -> str | None:
    """Why a column cannot be given to a model, None where it can."""
    column = schema.columns.get(name)
    if column is None:
        return f"{name} is no column of the schema"
    if column.known_after_outcome:
        return f"{name} is known only after payment"
    if KINDS.get(type_) != CONTRACT_KINDS[column.type]:
        wanted = {"category": "string", "hour": "datetime", "number": "double"}[CONTRACT_KINDS[column.type]]
        return f"{name} is declared {type_}, it has to be {wanted}"
    return None


class ExternalModel:
    """A loaded model, with the interface of `pyfunc.Model`.

    Parameters
    ----------
    files
        The bytes of what MLflow logged, by path below `mlflow/`, and of model.json. Their digest is to be checked
        before.

    Raises
    ------
    TiplineError
        Where it is not to be loaded (see `trust`; nothing of it has run then), or MLflow cannot load it here.
    """

    linear = None

    def __init__(self, files: Mapping[str, bytes]) -> None:
        from mlflow.pyfunc import load_model  # noqa: PLC0415 (see above)

        self.spec: dict[str, Any] = json.loads(files[pyfunc.SPEC])
        self.features: list[dict[str, Any]] = self.spec["features"]
        logged = {name.removeprefix(f"{FOLDER}/"): data for name, data in files.items() if name != pyfunc.SPEC}
        loader.check_external_model(logged, self.spec["name"])
        # Kept as long as the model: it may read files of its own when it is used first.
        folder = Path(tempfile.mkdtemp(prefix="tipline-model-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        try:
            self._model = load_model(str(folder / FOLDER))
        except failures() as error:
            what = f"MLflow cannot load this model here: {type(error).__name__}: {join_lines(error)}."
            todo = "Install what its requirements.txt names, here and on all workers; or promote another version."
            raise TiplineError(what, self.spec["name"], todo) from error

    def probabilities(self, trips: pa.Table | pa.RecordBatch) -> pyfunc.Probabilities:
        """Probability of a tip, float32, for each row of prepared trips.

        Raises
        ------
        TiplineError
            Where `predict` fails, or gives something else than one probability a row.
        """
        table = trips if isinstance(trips, pa.Table) else pa.Table.from_batches([trips])
        parts = [self._predict(table.slice(start, BATCH_ROWS)) for start in range(0, len(table), BATCH_ROWS)]
        return np.concatenate([*parts, np.empty(0, np.float32)])

    def _predict(self, table: pa.Table) -> pyfunc.Probabilities:
        try:
            given = self._model.predict(frame(table, self.features))
        except failures() as error:
            what = f"Its predict fails: {type(error).__name__}: {join_lines(error)}."
            raise TiplineError(what, self.spec["name"], "Promote another version.") from error
        scores = one_column(given)
        if scores is None or len(scores) != len(table):
            gives = f"an array of {np.asarray(given).dtype} of shape {np.shape(given)}"
            what = f"Its predict gives {gives} for {len(table):,} rows, not one probability a row."
            raise TiplineError(what, self.spec["name"], TODO)
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN is not, either
            worst = scores[~((scores >= 0) & (scores <= 1))][0]
            raise TiplineError(f"Its predict gives {worst}, which is no probability.", self.spec["name"], TODO)
        return scores


def failures() -> tuple[type[Exception], ...]:
    """What such a model may raise here, and MLflow."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (see above)

    return (MlflowException, OSError, *FAILURES)


def frame(table: pa.Table, features: list[dict[str, Any]]) -> pd.DataFrame:
    """The columns that a model takes, in its order and of the types that it declares."""
    types = {"string": pa.string(), "datetime": pa.timestamp("ns"), "double": pa.float64(), "float": pa.float32()}
    columns = {feature["name"]: table[feature["name"]].cast(types[feature["type"]], safe=False) for feature in features}
    given: pd.DataFrame = pa.table(columns).to_pandas()
    return given


def one_column(given: Any) -> pyfunc.Probabilities | None:  # noqa: ANN401 (whatever the model gives)
    """One float a row: a column, or the second of two (as predict_proba gives them); None where it is neither.

    Whole numbers and truth values are classes, no probabilities.
    """
    values = np.asarray(given)
    if values.ndim == CLASSES and values.shape[1] in {1, CLASSES}:
        values = values[:, -1]
    if values.ndim != 1 or values.dtype.kind != "f":
        return None
    scores: pyfunc.Probabilities = values.astype(np.float32)
    return scores
