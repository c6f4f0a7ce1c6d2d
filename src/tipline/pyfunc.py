"""The model as MLflow carries it: prepared trips in, probabilities of a tip out.

This one file, estimator.skops and model.json are the whole model. MLflow logs the file as code and runs it where the
model is loaded, with or without tipline there; tipline itself imports it, so there is one copy of the features. It
must import nothing of tipline.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sklearn.pipeline import Pipeline

ESTIMATOR = "estimator.skops"
SPEC = "model.json"
OUTPUT = "tip_probability"

# Beside what skops trusts by itself. The list that MLflow would use is read from the model it guards
# (https://github.com/mlflow/mlflow/issues/25686); this one is ours.
TRUSTED = (
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils.validation.check_array",
)

# Rows that go through the arithmetic at a time: few enough that the columns stay in a core's cache.
CHUNK_ROWS = 2**15
BATCH_ROWS = 2**20
HOUR_MICROSECONDS = 3_600_000_000

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Codes = np.ndarray[tuple[int], np.dtype[np.int32]]
Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def hours(column: pa.Array) -> Codes:
    """Hour of the day, 24 for a missing time."""
    times = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    since_1970 = times.fill_null(0).to_numpy() // HOUR_MICROSECONDS
    # Not `% 24`: numpy divides with vector instructions and takes remainders without.
    codes: Codes = (since_1970 - since_1970 // 24 * 24).astype(np.int32)
    if column.null_count:
        codes[column.is_null().to_numpy(zero_copy_only=False)] = 24
    return codes


def category_codes(column: pa.Array, categories: list[str]) -> Codes:
    """Position of each value in `categories`, their number for any other value and for a missing one."""
    coded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column.cast(pa.string()))
    position = {value: index for index, value in enumerate(categories)}
    other = len(categories)
    table = np.array([*(position.get(value, other) for value in coded.dictionary.to_pylist()), other], dtype=np.int32)
    codes: Codes = table.take(coded.indices.fill_null(len(table) - 1).to_numpy())
    return codes


def numbers(column: pa.Array, low: float, high: float) -> Floats:
    """Values as doubles, moved into the plausible range, NaN for a missing one."""
    values: Floats = np.clip(column.cast(pa.float64()).to_numpy(zero_copy_only=False), low, high)
    return values


def encode(column: pa.Array, feature: Mapping[str, Any]) -> Codes | Floats:
    """One feature: codes for a category or an hour, doubles for a number."""
    if feature["kind"] == "category":
        return category_codes(column, feature["categories"])
    if feature["kind"] == "hour":
        return hours(column)
    low, high = feature["range"] or (-np.inf, np.inf)
    return numbers(column, low, high)


def levels(feature: Mapping[str, Any]) -> int:
    """How many values a feature tells apart, 0 for a number."""
    return {"category": len(feature.get("categories", ())), "hour": 24}.get(feature["kind"], 0)


def matrix(batch: pa.RecordBatch, features: list[dict[str, Any]]) -> Matrix:
    """The estimator's input, one column a feature: codes and numbers as doubles, NaN for other and missing values."""
    result = np.empty((len(batch), len(features)), order="F")
    for index, feature in enumerate(features):
        values = encode(batch[feature["name"]], feature)
        result[:, index] = values
        if levels(feature):
            result[values == levels(feature), index] = np.nan
    return result


@dataclass(frozen=True)
class Linear:
    """A fitted logistic regression and its preprocessing, folded into one table or one slope a feature.

    The log-odds are `intercept` plus, for each feature, `tables[code]` or `slope * value`; a missing number counts as
    the training rows' median. It does the pipeline's arithmetic in another order: equal to about 1e-15.
    """

    intercept: float
    terms: tuple[Floats | tuple[float, float], ...]

    def probabilities(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> Floats:
        """Probabilities of the rows of a batch; each depends on its own row alone, whatever the batch."""
        odds: Floats = np.full(len(batch), self.intercept)
        for term, feature in zip(self.terms, features, strict=True):
            values = encode(batch[feature["name"]], feature)
            if isinstance(term, tuple):
                slope, median = term
                if batch[feature["name"]].null_count:
                    values = np.where(np.isnan(values), median, values)
                odds += slope * values
            else:
                odds += term.take(values.astype(np.int32, copy=False))
        expit(odds, out=odds)
        return odds


def fold(estimator: Pipeline, features: list[dict[str, Any]]) -> Linear | None:
    """The estimator as a `Linear`, None where it is no logistic regression behind tipline's own preprocessing."""
    classifier = estimator[-1]
    if type(classifier).__name__ != "LogisticRegression" or "columns" not in estimator.named_steps:
        return None
    steps = estimator["columns"].named_transformers_
    weights = iter(classifier.coef_[0])
    terms: dict[int, Floats | tuple[float, float]] = {}
    intercept = float(classifier.intercept_[0])
    coded = [index for index, feature in enumerate(features) if levels(feature)]
    for index in coded:
        terms[index] = np.array([next(weights) for _ in range(levels(features[index]))] + [0.0])
    plain = [index for index in range(len(features)) if index not in coded]
    for place, index in enumerate(plain):
        scaler, median = steps["numbers"]["scale"], steps["numbers"]["impute"].statistics_[place]
        slope = next(weights) / scaler.scale_[place]
        intercept -= slope * scaler.mean_[place]
        terms[index] = (float(slope), float(median))
    return Linear(intercept, tuple(terms[index] for index in range(len(features))))


class Model:
    """A loaded model.

    Parameters
    ----------
    files
        The bytes of estimator.skops and model.json. Their digest is to be checked before.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        import skops.io  # noqa: PLC0415 (it looks at all of scikit-learn and scipy, which takes seconds)

        self.spec: dict[str, Any] = json.loads(files[SPEC])
        self.features: list[dict[str, Any]] = self.spec["features"]
        self.columns = [feature["name"] for feature in self.features]
        self.estimator = skops.io.loads(files[ESTIMATOR], trusted=list(TRUSTED))
        self._linear = fold(self.estimator, self.features)

    def probabilities(self, trips: pa.Table | pa.RecordBatch) -> Probabilities:
        """Probability of a tip, float32, for each row of prepared trips."""
        # Estimators of other kinds take a tenth of a second a call, however few the rows.
        step = CHUNK_ROWS if self._linear is not None else BATCH_ROWS
        parts = [
            self._score(batch.slice(start, step)).astype(np.float32)
            for batch in (trips.to_batches() if isinstance(trips, pa.Table) else [trips])
            for start in range(0, len(batch), step)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _score(self, batch: pa.RecordBatch) -> Floats:
        if self._linear is not None:
            return self._linear.probabilities(batch, self.features)
        scores: Matrix = self.estimator.predict_proba(matrix(batch, self.features))
        return scores[:, 1]

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """`probabilities` for a pandas frame with at least the model's columns; one column, tip_probability."""
        trips = pa.RecordBatch.from_pandas(frame[self.columns], preserve_index=False)
        return pd.DataFrame({OUTPUT: self.probabilities(trips)}, index=frame.index)


# MLflow runs this file to load the model. A dask worker, which has no MLflow in it, need not wait 3 s for the import.
if "mlflow" in sys.modules:
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel, PythonModelContext

    class TipProbability(PythonModel):  # type: ignore[misc]
        """The model behind MLflow's interface."""

        def load_context(self, context: PythonModelContext) -> None:
            """Read the model's files."""
            paths = {name: Path(context.artifacts[name]) for name in (ESTIMATOR, SPEC)}
            self.model = Model({name: path.read_bytes() for name, path in paths.items()})

        def predict(
            self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> pd.DataFrame:
            """Score a frame of prepared trips."""
            del context, params
            return self.model.predict(model_input)

    set_model(TipProbability())
