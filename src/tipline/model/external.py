"""Models that tipline did not make: any MLflow pyfunc that takes columns of the schema and returns probabilities.

An external model is scored through its own `predict` on pandas frames. Its files are what MLflow logged, below
`mlflow/`, and a model.json that tipline adds: the columns that the model takes and the baseline of its counts.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline.arrays import Probabilities
from tipline.errors import TiplineError, UsageError, join_lines
from tipline.model import loader, pyfunc

if TYPE_CHECKING:
    from tipline.ingest.schema import Schema

FOLDER = "mlflow"
BATCH_ROWS = 2**17
# MLflow's types of columns. Whole numbers are doubles, because an integer cannot be missing in pandas.
TYPES = {"string": pa.string(), "datetime": pa.timestamp("ns"), "double": pa.float64(), "float": pa.float32()}
NUMBERS = ("double", "float")
SCHEMA_TYPES = {"category": ("string",), "timestamp": ("datetime",), "number": NUMBERS}
SCHEMA_TYPES |= {"integer": NUMBERS, "boolean": NUMBERS}
TODO = "Log it with a signature of schema columns as string, datetime or double and probabilities as its output."
# Errors that the code of a model may raise when it does not fit the rows or this machine.
FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


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
    """Read the columns that the model in a folder takes, already inspected by `loader`, from its signature.

    Raises UsageError with every reason if there is no signature, or one that prepared rows cannot fill.
    """
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
    accepted = SCHEMA_TYPES[column.type]
    return None if type_ in accepted else f"{name} is declared {type_}, it has to be {accepted[0]}"


class ExternalModel:
    """A loaded model, with the interface of `artifact.Model`, from what MLflow logged and model.json.

    Raises TiplineError if it must not be loaded (see `loader`; nothing of it has run) or MLflow cannot load it here.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        from mlflow.pyfunc import load_model  # noqa: PLC0415 (see above)

        self.spec: dict[str, Any] = json.loads(files[pyfunc.SPEC])
        if self.spec.get("trusted") != hash_model(files):
            check_files(files, self.spec["name"])
        # Kept as long as the model, which may read files of its own later.
        folder = Path(tempfile.mkdtemp(prefix="tipline-model-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        todo = "Install its requirements.txt here and on all workers, or promote another version."
        with report_failures("MLflow cannot load this model here", self.spec["name"], todo):
            self._model = load_model(str(folder / FOLDER))

    def score_rows(self, batch: pa.RecordBatch) -> tuple[Probabilities, pa.RecordBatch]:
        """Return the probabilities and the columns that monitoring sees: those of the batch."""
        return self.probabilities(batch), batch

    def probabilities(self, batch: pa.RecordBatch) -> Probabilities:
        """Return the probability of each prepared row, shape (rows,), float32.

        Raises TiplineError if `predict` fails or does not return one probability per row.
        """
        table = pa.Table.from_batches([batch])
        parts = [self._predict(table.slice(start, BATCH_ROWS)) for start in range(0, len(table), BATCH_ROWS)]
        return np.concatenate([*parts, np.empty(0, np.float32)])

    def _predict(self, table: pa.Table) -> Probabilities:
        schema = pa.schema([(column["name"], TYPES[column["declared"]]) for column in self.spec["inputs"]])
        with report_failures("Its predict fails", self.spec["name"], "Promote another version."):
            given = self._model.predict(table.select(schema.names).cast(schema, safe=False).to_pandas())
        scores = extract_scores(given)
        if scores is None or len(scores) != len(table):
            returned = f"an array of {np.asarray(given).dtype} of shape {np.shape(given)}"
            what = f"Its predict returns {returned} for {len(table):,} rows, not one probability per row."
            raise TiplineError(what, self.spec["name"], TODO)
        wrong = scores[~((scores >= 0) & (scores <= 1))]  # NaN is wrong, too
        if wrong.size:
            raise TiplineError(f"Its predict returns {wrong[0]}, which is not a probability.", self.spec["name"], TODO)
        return scores


@contextlib.contextmanager
def report_failures(what: str, where: str, todo: str) -> Iterator[None]:
    """Turn the errors that such a model, or MLflow, may raise into TiplineError."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (see above)

    try:
        yield
    except (MlflowException, OSError, *FAILURES) as error:
        raise TiplineError(f"{what}: {type(error).__name__}: {join_lines(error)}.", where, todo) from error


def extract_scores(given: Any) -> Probabilities | None:  # noqa: ANN401 (whatever the model gives)
    """Return one float per row: a single column, or the second of two as predict_proba returns them.

    Return None for anything else. Whole numbers and booleans are classes, not probabilities.
    """
    values = np.asarray(given)
    if values.shape[1:] in {(1,), (2,)}:
        values = values[:, -1]
    if values.ndim != 1 or values.dtype.kind != "f":
        return None
    scores: Probabilities = values.astype(np.float32)
    return scores
