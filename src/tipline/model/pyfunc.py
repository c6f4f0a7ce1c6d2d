"""The model as MLflow carries it: prepared trips in, probabilities of a tip out.

This one file, estimator.skops and model.json are the whole model. MLflow logs the file as code and runs it where the
model is loaded, with or without tipline there; tipline itself imports it, so there is one copy of the features. It
must import nothing of tipline.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sklearn.pipeline import Pipeline

# MLflow reads the annotations of `predict`. Scoring has no use for pandas, and need not wait for its import.
if TYPE_CHECKING or "mlflow" in sys.modules:
    import pandas as pd  # noqa: TC002 (read at run time, see above)

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
# The step from 1 to the double below it, half of it: what a probability is kept from 0 and 1 for its log-odds.
EDGE = 2.0**-53

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Codes = np.ndarray[tuple[int], np.dtype[np.int32]]
Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Values = np.ndarray[tuple[int], Any]
VIEWS: dict[pa.DataType, np.dtype[Any]] = {
    pa.int32(): np.dtype(np.int32),
    pa.int64(): np.dtype(np.int64),
    pa.float64(): np.dtype(np.float64),
}
if TYPE_CHECKING:
    # Writes what a feature adds to the log-odds of some rows.
    Term = Callable[[slice, Floats], None]


def view_values(column: pa.Array) -> Values:
    """The values of a column without nulls, not copied."""
    dtype = VIEWS.get(column.type)
    if dtype is None or not len(column):
        values: Values = column.to_numpy(zero_copy_only=False)
        return values
    # Not `to_numpy`: it imports pandas first, half a second in every worker.
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def fill_nulls(column: pa.Array, value: int) -> Values:
    """A column's values, `value` for missing ones."""
    return view_values(column.fill_null(value) if column.null_count else column)


def hours(column: pa.Array) -> Codes:
    """Hour of the day, 24 for a missing time."""
    times = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    codes = hour_of_day(fill_nulls(times, 0))
    if column.null_count:
        codes[column.is_null().to_numpy(zero_copy_only=False)] = 24
    return codes


def hour_of_day(times: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Codes:
    """Hour of the day of microseconds since 1970."""
    codes: Codes = (times // HOUR_MICROSECONDS).astype(np.int32)
    # Not `% 24`: numpy divides with vector instructions and takes remainders without.
    codes -= codes // 24 * 24
    return codes


def indexed(column: pa.Array, categories: list[str]) -> tuple[Codes, Codes]:
    """Each row's place in a short table, and the table: positions in `categories`, their number for any other value."""
    coded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column.cast(pa.string()))
    position = {value: index for index, value in enumerate(categories)}
    other = len(categories)
    table = np.array([*(position.get(value, other) for value in coded.dictionary.to_pylist()), other], dtype=np.int32)
    return fill_nulls(coded.indices, len(table) - 1), table


def category_codes(column: pa.Array, categories: list[str]) -> Codes:
    """Position of each value in `categories`, their number for any other value and for a missing one."""
    places, table = indexed(column, categories)
    codes: Codes = table.take(places)
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


def count_levels(feature: Mapping[str, Any]) -> int:
    """How many values a feature tells apart, 0 for a number."""
    return {"category": len(feature.get("categories", ())), "hour": 24}.get(feature["kind"], 0)


def build_matrix(batch: pa.RecordBatch, features: list[dict[str, Any]]) -> Matrix:
    """The estimator's input, one column a feature: codes and numbers as doubles, NaN for other and missing values."""
    result = np.empty((len(batch), len(features)), order="F")
    for index, feature in enumerate(features):
        values = encode(batch[feature["name"]], feature)
        result[:, index] = values
        if count_levels(feature):
            result[values == count_levels(feature), index] = np.nan
    return result


def of_codes(codes: Codes, table: Floats) -> Term:
    """A term that is looked up."""

    def term(rows: slice, out: Floats) -> None:
        np.take(table, codes[rows], out=out, mode="clip")

    return term


def of_categories(column: pa.Array, categories: list[str], table: Floats) -> Term:
    """A term that is looked up by category."""
    places, positions = indexed(column, categories)
    return of_codes(places, table[positions])


def of_hours(column: pa.Array, table: Floats) -> Term:
    """A term that is looked up by the hour of the day."""
    if column.null_count or column.type != pa.timestamp("us"):
        return of_codes(hours(column), table)
    times = view_values(column.cast(pa.int64()))

    def term(rows: slice, out: Floats) -> None:
        np.take(table, hour_of_day(times[rows]), out=out, mode="clip")

    return term


def of_numbers(column: pa.Array, feature: Mapping[str, Any], slope: float, median: float) -> Term:
    """A term that is proportional to the value."""
    low, high = feature["range"] or (-np.inf, np.inf)
    doubles, missing = column.cast(pa.float64()), column.null_count > 0
    values = doubles.to_numpy(zero_copy_only=False) if missing else view_values(doubles)

    def term(rows: slice, out: Floats) -> None:
        np.clip(values[rows], low, high, out=out)
        if missing:
            np.copyto(out, median, where=np.isnan(out))
        np.multiply(out, slope, out=out)

    return term


@dataclass(frozen=True)
class Linear:
    """A fitted logistic regression and its preprocessing, folded into one table or one slope a feature.

    The log-odds are `intercept` plus, for each feature, `tables[code]` or `slope * value`; a missing number counts as
    the training rows' median. It does the pipeline's arithmetic in another order: equal to about 1e-15.
    """

    intercept: float
    terms: tuple[Floats | tuple[float, float], ...]

    def of(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> list[Term]:
        """The terms of the rows of a batch, one a feature, still to be computed."""
        return [
            self._term(batch[feature["name"]], feature, term)
            for term, feature in zip(self.terms, features, strict=True)
        ]

    @staticmethod
    def _term(column: pa.Array, feature: Mapping[str, Any], term: Floats | tuple[float, float]) -> Term:
        if isinstance(term, tuple):
            return of_numbers(column, feature, *term)
        if feature["kind"] == "hour":
            return of_hours(column, term)
        return of_categories(column, feature["categories"], term)

    def contributions(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> list[Floats]:
        """What each feature adds to the log-odds of each row."""
        result = [np.empty(len(batch)) for _ in features]
        for term, values in zip(self.of(batch, features), result, strict=True):
            term(slice(0, len(batch)), values)
        return result

    def probabilities(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> Iterator[tuple[slice, Floats]]:
        """Probabilities of the rows of a batch, some rows at a time; each depends on its own row alone.

        They come in a buffer that the next ones overwrite.
        """
        terms = self.of(batch, features)
        odds_buffer, term_buffer = np.empty(CHUNK_ROWS), np.empty(CHUNK_ROWS)
        for start in range(0, len(batch), CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, len(batch)))
            odds, value = odds_buffer[: rows.stop - start], term_buffer[: rows.stop - start]
            odds[:] = self.intercept
            for term in terms:
                term(rows, value)
                odds += value
            yield rows, apply_logistic(odds)

    def to_json(self) -> dict[str, Any]:
        """As model.json has it: a list is a table, the numbers are exact."""
        terms = [list(term) if isinstance(term, tuple) else {"table": term.tolist()} for term in self.terms]
        return {"intercept": self.intercept, "terms": terms}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Linear:
        """The model that `to_json` wrote."""
        terms = (np.array(term["table"]) if isinstance(term, dict) else tuple(term) for term in value["terms"])
        return cls(value["intercept"], tuple(terms))


def apply_logistic(odds: Floats) -> Floats:
    """1 / (1 + exp(-odds)), in place."""
    np.negative(odds, out=odds)
    with np.errstate(over="ignore"):
        np.exp(odds, out=odds)
    odds += 1
    return np.reciprocal(odds, out=odds)


def log_odds(probabilities: Floats) -> Floats:
    """log(p / (1 - p)), finite for probabilities of 0 and 1, too."""
    inside: Floats = np.clip(probabilities, EDGE, 1 - EDGE)
    odds: Floats = np.log(inside / (1 - inside))
    return odds


def calibrated(probabilities: Floats, calibration: Mapping[str, Any] | None) -> Floats:
    """Probabilities as the calibration in model.json corrects them; no two rows change places."""
    if calibration is None:
        return probabilities
    if calibration["method"] == "sigmoid":
        return apply_logistic(calibration["slope"] * log_odds(probabilities) + calibration["intercept"])
    result: Floats = np.interp(probabilities, calibration["x"], calibration["y"])
    return result


class Model:
    """A loaded model.

    Parameters
    ----------
    files
        The bytes of estimator.skops and model.json. Their digest is to be checked before.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.spec: dict[str, Any] = json.loads(files[SPEC])
        self.features: list[dict[str, Any]] = self.spec["features"]
        self.columns = [feature["name"] for feature in self.features]
        self.calibration: dict[str, Any] | None = self.spec.get("calibration")  # models of an earlier tipline have none
        self._dump = files[ESTIMATOR]
        self.linear = Linear.from_json(self.spec["linear"]) if self.spec["linear"] else None
        if self.linear is None:
            self.estimator  # noqa: B018 (loaded now, not under the first rows)

    @functools.cached_property
    def estimator(self) -> Pipeline:
        """The scikit-learn pipeline; a linear model is scored without it."""
        import skops.io  # noqa: PLC0415 (it looks at all of scikit-learn and scipy, which takes seconds)

        return skops.io.loads(self._dump, trusted=list(TRUSTED))

    def probabilities(self, trips: pa.Table | pa.RecordBatch) -> Probabilities:
        """Probability of a tip, float32, for each row of prepared trips."""
        batches = trips.to_batches() if isinstance(trips, pa.Table) else [trips]
        parts = [self._score(batch) for batch in batches]
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.float32)])

    def uncalibrated(self, batch: pa.RecordBatch) -> Floats:
        """Probabilities as the estimator gives them, in doubles."""
        result = np.empty(len(batch))
        for rows, scores in self._scored(batch):
            result[rows] = scores
        return result

    def _score(self, batch: pa.RecordBatch) -> Probabilities:
        result = np.empty(len(batch), np.float32)
        for rows, scores in self._scored(batch):
            # In doubles: where a calibration is steep, it would make more of what float32 has rounded off.
            result[rows] = calibrated(scores, self.calibration)
        return result

    def _scored(self, batch: pa.RecordBatch) -> Iterator[tuple[slice, Floats]]:
        if self.linear is not None:
            yield from self.linear.probabilities(batch, self.features)
            return
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield slice(start, start + len(part)), self.estimator.predict_proba(build_matrix(part, self.features))[:, 1]

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """`probabilities` for a pandas frame with at least the model's columns; one column, tip_probability."""
        import pandas as pd  # noqa: PLC0415 (see above)

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
