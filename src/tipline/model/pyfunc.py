"""The model as MLflow logs it: prepared rows in, probabilities out.

This file, estimator.skops and model.json are the whole model. MLflow logs this file as code and runs it wherever the
model is loaded, with or without tipline; tipline imports the same file, so features are computed in one place. It must
not import anything of tipline.
"""

from __future__ import annotations

import functools
import importlib
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

# MLflow reads the annotations of `predict`. Scoring does not use pandas and does not wait for its import.
if TYPE_CHECKING or "mlflow" in sys.modules:
    import pandas as pd  # noqa: TC002 (read at run time, see above)

ESTIMATOR = "estimator.skops"
SPEC = "model.json"
OUTPUT = "probability"

# What a skops file may hold beside what skops itself trusts: classes of these packages, and these functions. A list in
# the model would be no guard (https://github.com/mlflow/mlflow/issues/25686).
PACKAGES = {"sklearn", "numpy", "scipy", "pandas", "lightgbm", "xgboost", "catboost"}
FUNCTIONS = {
    "collections.OrderedDict",
    "functools.partial",  # its function has to be trusted, too
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    "sklearn.utils.validation.check_array",
}

# Rows per step of the arithmetic: few enough that the columns stay in the cache of a core.
CHUNK_ROWS = 2**15
BATCH_ROWS = 2**20
HOUR_MICROSECONDS = 3_600_000_000
# How far a probability is kept from 0 and 1, so that its log-odds are finite.
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
    # Writes what a feature adds to the log-odds of a slice of rows.
    Term = Callable[[slice, Floats], None]


def is_trusted(name: str) -> bool:
    """Whether a type in a skops file may be loaded: a class of a trusted package, or a listed function."""
    module, _, attribute = name.rpartition(".")
    if name in FUNCTIONS:
        return True
    if name.partition(".")[0] not in PACKAGES:
        return False
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False


def load_estimator(dump: bytes) -> Pipeline:
    """Load a skops file; skops refuses what is not trusted."""
    import skops.io  # noqa: PLC0415 (imports all of scikit-learn and scipy, which takes seconds)

    return skops.io.loads(dump, trusted=[name for name in skops.io.get_untrusted_types(data=dump) if is_trusted(name)])


def view_values(column: pa.Array) -> Values:
    """Return the values of a column without nulls, without a copy."""
    dtype = VIEWS.get(column.type)
    if dtype is None or not len(column):
        values: Values = column.to_numpy(zero_copy_only=False)
        return values
    # Not `to_numpy`: it imports pandas first, half a second in every worker.
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def fill_nulls(column: pa.Array, value: int) -> Values:
    """Return a column's values with `value` for nulls."""
    return view_values(column.fill_null(value) if column.null_count else column)


def encode_hours(column: pa.Array) -> Codes:
    """Return the hour of the day, 24 for a missing timestamp."""
    times = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    codes = hour_of_day(fill_nulls(times, 0))
    if column.null_count:
        codes[column.is_null().to_numpy(zero_copy_only=False)] = 24
    return codes


def hour_of_day(times: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Codes:
    """Return the hour of the day of microseconds since 1970."""
    codes: Codes = (times // HOUR_MICROSECONDS).astype(np.int32)
    # Not `% 24`: numpy divides with vector instructions and takes remainders without.
    codes -= codes // 24 * 24
    return codes


def index_values(column: pa.Array, categories: list[str]) -> tuple[Codes, Codes]:
    """Return an index per row into a short table, and the table of positions in `categories` (their number: other)."""
    coded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column.cast(pa.string()))
    position = {value: index for index, value in enumerate(categories)}
    other = len(categories)
    table = np.array([*(position.get(value, other) for value in coded.dictionary.to_pylist()), other], dtype=np.int32)
    return fill_nulls(coded.indices, len(table) - 1), table


def category_codes(column: pa.Array, categories: list[str]) -> Codes:
    """Return each value's position in `categories`; other and missing values get the number of categories."""
    places, table = index_values(column, categories)
    codes: Codes = table.take(places)
    return codes


def clip_numbers(column: pa.Array, low: float, high: float) -> Floats:
    """Return values as doubles, clipped to the plausible range, NaN for nulls."""
    values: Floats = np.clip(column.cast(pa.float64()).to_numpy(zero_copy_only=False), low, high)
    return values


def encode_feature(column: pa.Array, feature: Mapping[str, Any]) -> Codes | Floats:
    """Encode one feature: codes for a category or an hour, doubles for a number."""
    if feature["kind"] == "category":
        return category_codes(column, feature["categories"])
    if feature["kind"] == "hour":
        return encode_hours(column)
    low, high = feature["range"] or (-np.inf, np.inf)
    return clip_numbers(column, low, high)


def count_levels(feature: Mapping[str, Any]) -> int:
    """Return the number of values that a feature tells apart, 0 for a number."""
    return {"category": len(feature.get("categories", ())), "hour": 24}.get(feature["kind"], 0)


def build_matrix(batch: pa.RecordBatch, features: list[dict[str, Any]]) -> Matrix:
    """Return the estimator's input, shape (rows, features), as doubles; NaN stands for other and missing values."""
    result = np.empty((len(batch), len(features)), order="F")
    for index, feature in enumerate(features):
        values = encode_feature(batch[feature["name"]], feature)
        result[:, index] = values
        if count_levels(feature):
            result[values == count_levels(feature), index] = np.nan
    return result


def create_lookup_term(codes: Codes, table: Floats) -> Term:
    """Return a term that is looked up by code."""

    def term(rows: slice, out: Floats) -> None:
        np.take(table, codes[rows], out=out, mode="clip")

    return term


def create_category_term(column: pa.Array, categories: list[str], table: Floats) -> Term:
    """Return a term that is looked up by category."""
    places, positions = index_values(column, categories)
    return create_lookup_term(places, table[positions])


def create_hour_term(column: pa.Array, table: Floats) -> Term:
    """Return a term that is looked up by the hour of the day."""
    if column.null_count or column.type != pa.timestamp("us"):
        return create_lookup_term(encode_hours(column), table)
    times = view_values(column.cast(pa.int64()))

    def term(rows: slice, out: Floats) -> None:
        np.take(table, hour_of_day(times[rows]), out=out, mode="clip")

    return term


def create_number_term(column: pa.Array, feature: Mapping[str, Any], slope: float, median: float) -> Term:
    """Return a term that is proportional to the value."""
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
    """A fitted logistic regression and its preprocessing, folded into one table or one slope per feature.

    The log-odds are `intercept` plus, for each feature, `table[code]` or `slope * value`; a missing number counts as
    the median of the training rows. The arithmetic runs in another order than the pipeline's and agrees to about 1e-15.
    """

    intercept: float
    terms: tuple[Floats | tuple[float, float], ...]

    def build_terms(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> list[Term]:
        """Return one term per feature, to be evaluated for slices of the batch."""
        return [
            self._term(batch[feature["name"]], feature, term)
            for term, feature in zip(self.terms, features, strict=True)
        ]

    @staticmethod
    def _term(column: pa.Array, feature: Mapping[str, Any], term: Floats | tuple[float, float]) -> Term:
        if isinstance(term, tuple):
            return create_number_term(column, feature, *term)
        if feature["kind"] == "hour":
            return create_hour_term(column, term)
        return create_category_term(column, feature["categories"], term)

    def contributions(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> list[Floats]:
        """Return what each feature adds to the log-odds of each row."""
        result = [np.empty(len(batch)) for _ in features]
        for term, values in zip(self.build_terms(batch, features), result, strict=True):
            term(slice(0, len(batch)), values)
        return result

    def probabilities(self, batch: pa.RecordBatch, features: list[dict[str, Any]]) -> Iterator[tuple[slice, Floats]]:
        """Yield the probabilities of slices of a batch; each depends on its own row alone.

        They are in a buffer that the next slice overwrites.
        """
        terms = self.build_terms(batch, features)
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
        """Return the form that model.json holds; the numbers are exact."""
        terms = [list(term) if isinstance(term, tuple) else {"table": term.tolist()} for term in self.terms]
        return {"intercept": self.intercept, "terms": terms}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Linear:
        """Read what `to_json` returned."""
        terms = (np.array(term["table"]) if isinstance(term, dict) else tuple(term) for term in value["terms"])
        return cls(value["intercept"], tuple(terms))


def apply_logistic(odds: Floats) -> Floats:
    """Compute 1 / (1 + exp(-odds)) in place."""
    np.negative(odds, out=odds)
    with np.errstate(over="ignore"):
        np.exp(odds, out=odds)
    odds += 1
    return np.reciprocal(odds, out=odds)


def log_odds(probabilities: Floats) -> Floats:
    """Compute log(p / (1 - p)), finite for probabilities of 0 and 1, too."""
    inside: Floats = np.clip(probabilities, EDGE, 1 - EDGE)
    odds: Floats = np.log(inside / (1 - inside))
    return odds


def apply_calibration(probabilities: Floats, calibration: Mapping[str, Any] | None) -> Floats:
    """Correct probabilities by the calibration in model.json, which keeps the order of rows."""
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
        The bytes of estimator.skops and model.json. The caller has checked their digest.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.spec: dict[str, Any] = json.loads(files[SPEC])
        self.features: list[dict[str, Any]] = self.spec["features"]
        self.columns = [feature["name"] for feature in self.features]
        self.calibration: dict[str, Any] | None = self.spec.get("calibration")
        self._dump = files[ESTIMATOR]
        self.linear = Linear.from_json(self.spec["linear"]) if self.spec["linear"] else None
        if self.linear is None:
            self.estimator  # noqa: B018 (loaded now, not with the first rows)

    @functools.cached_property
    def estimator(self) -> Pipeline:
        """The scikit-learn pipeline, which a linear model is scored without."""
        return load_estimator(self._dump)

    def probabilities(self, trips: pa.Table | pa.RecordBatch) -> Probabilities:
        """Return the probability of each prepared row, shape (rows,), float32."""
        batches = trips.to_batches() if isinstance(trips, pa.Table) else [trips]
        parts = [self._score(batch) for batch in batches]
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.float32)])

    def uncalibrated(self, batch: pa.RecordBatch) -> Floats:
        """Return the probabilities before calibration, as doubles."""
        result = np.empty(len(batch))
        for rows, scores in self._scored(batch):
            result[rows] = scores
        return result

    def _score(self, batch: pa.RecordBatch) -> Probabilities:
        result = np.empty(len(batch), np.float32)
        for rows, scores in self._scored(batch):
            # In doubles, because a steep calibration would amplify what float32 rounds off.
            result[rows] = apply_calibration(scores, self.calibration)
        return result

    def _scored(self, batch: pa.RecordBatch) -> Iterator[tuple[slice, Floats]]:
        if self.linear is not None:
            yield from self.linear.probabilities(batch, self.features)
            return
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield slice(start, start + len(part)), self.estimator.predict_proba(build_matrix(part, self.features))[:, 1]

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Score a pandas frame that has the model's columns; return a frame with the column probability."""
        import pandas as pd  # noqa: PLC0415 (see above)

        trips = pa.RecordBatch.from_pandas(frame[self.columns], preserve_index=False)
        return pd.DataFrame({OUTPUT: self.probabilities(trips)}, index=frame.index)


# MLflow runs this file to load the model. A dask worker does not use MLflow and does not wait 3 s for its import.
if "mlflow" in sys.modules:
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel, PythonModelContext

    class LoggedModel(PythonModel):  # type: ignore[misc]
        """The model behind MLflow's interface."""

        def load_context(self, context: PythonModelContext) -> None:
            """Read the model's files."""
            paths = {name: Path(context.artifacts[name]) for name in (ESTIMATOR, SPEC)}
            self.model = Model({name: path.read_bytes() for name, path in paths.items()})

        def predict(
            self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> pd.DataFrame:
            """Score a frame of prepared rows."""
            del context, params
            return self.model.predict(model_input)

    set_model(LoggedModel())
