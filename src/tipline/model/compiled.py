"""Faster forms of pipelines with the built-in preprocessing. The pipeline stays the model.

A logistic regression is folded into one table or one slope per column; it needs neither scikit-learn nor pandas. For
trees, Arrow encodes the columns and, where many rows are to be scored, kernels that numba compiles add up the leaves.
Scoring uses these forms only if they give the pipeline's scores of the golden rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline.arrays import CHUNK_ROWS, Floats, Matrix, Values, fill_nulls, hour_of_day, view_values
from tipline.model import trees
from tipline.model.pyfunc import apply_logistic

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    # Writes, for a slice of rows, what a column adds to the log-odds, or the code or number that trees get for it.
    Term = Callable[[slice, Floats], object]
    Scorer = Callable[[pa.RecordBatch], Floats]

# A worker takes longer to add up this many leaves (rows times trees) without kernels than to load numba and these.
KERNEL_LEAVES = 50_000_000
# The parts of the built-in preprocessing for trees, and their classes.
TREE_STEPS = {"categories": "OrdinalEncoder", "hours": "FunctionTransformer", "numbers": "FunctionTransformer"}


def fold_pipeline(pipeline: Pipeline, *, is_derived: bool = False) -> dict[str, Any] | None:
    """Fold a fitted logistic regression behind the built-in preprocessing; return None for anything else.

    The log-odds are `intercept` plus, for each of `terms`, the value in a table, by category or hour (the last one for
    values that are missing or unknown), or a slope times the clipped number, with the median for a missing one.
    Categories that are numbers are folded only if the model is given derived columns, which have them as text.
    """
    if [*pipeline.named_steps] != ["preprocess", "classifier"] or type(pipeline[-1]).__name__ != "LogisticRegression":
        return None
    weights, intercept = iter(pipeline[-1].coef_[0].tolist()), float(pipeline[-1].intercept_[0])
    terms: list[dict[str, Any]] = []
    for kind, transformer, columns in pipeline["preprocess"].transformers_:
        if kind == "numbers":
            scaler, medians = transformer["scale"], transformer["impute"].statistics_.tolist()
            bounds = transformer["clip"].kw_args
            for i, name in enumerate(columns):
                slope = next(weights) / float(scaler.scale_[i])
                intercept -= slope * float(scaler.mean_[i])
                limits = {end: value[i] if np.isfinite(value[i]) else None for end, value in bounds.items()}
                terms.append({"name": name, "kind": kind, "slope": slope, "median": medians[i], **limits})
        else:
            encoder = transformer if kind == "categories" else transformer["encode"]
            for name, values in zip(columns, encoder.categories_, strict=True):
                if kind == "categories" and values.dtype != object and not is_derived:
                    return None
                term = {"name": name, "kind": kind, "table": [*(next(weights) for _ in values), 0.0]}
                terms.append(term | ({"values": list_names(values)} if kind == "categories" else {}))
    return {"intercept": intercept, "terms": terms}


def list_names(values: Values) -> list[str]:
    """Return categories as text; a number has one name, whether pandas holds it as an integer or not."""
    plain = values if values.dtype in {np.dtype(object), np.dtype(bool)} else values.astype(np.float64) + 0.0  # no -0.0
    return list(map(str, plain.tolist()))


def compute_probabilities(batch: pa.RecordBatch, linear: Mapping[str, Any]) -> Iterator[tuple[slice, Floats]]:
    """Yield the probabilities of slices of a batch, in a buffer that the next one overwrites; rows are independent."""
    terms = [create_term(batch[term["name"]], term) for term in linear["terms"]]
    odds_buffer, term_buffer = np.empty(CHUNK_ROWS), np.empty(CHUNK_ROWS)
    for start in range(0, len(batch), CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, len(batch)))
        odds, value = odds_buffer[: rows.stop - start], term_buffer[: rows.stop - start]
        odds[:] = linear["intercept"]
        for term in terms:
            term(rows, value)
            odds += value
        yield rows, apply_logistic(odds)


def create_term(column: pa.Array, term: Mapping[str, Any]) -> Term:
    if term["kind"] == "numbers":
        return create_number_term(column, term)
    table, missing = np.array(term["table"]), len(term["table"]) - 1
    if term["kind"] == "categories":
        places = {value: place for place, value in enumerate(term["values"])}
        names = column.dictionary.to_pylist()
        table = table[[*(places.get(name, missing) for name in names), missing]]
        codes = fill_nulls(column.indices, len(names))
        return lambda rows, out: np.take(table, codes[rows], out=out, mode="clip")
    microseconds = fill_nulls(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), 0)
    if not column.null_count:
        return lambda rows, out: np.take(table, hour_of_day(microseconds[rows]), out=out, mode="clip")
    hours = hour_of_day(microseconds)
    hours[column.is_null().to_numpy(zero_copy_only=False)] = missing
    return lambda rows, out: np.take(table, hours[rows], out=out, mode="clip")


def create_number_term(column: pa.Array, term: Mapping[str, Any]) -> Term:
    doubles, missing = column.cast(pa.float64()), column.null_count > 0
    values = doubles.to_numpy(zero_copy_only=False) if missing else view_values(doubles)
    low, high = (end if term[name] is None else term[name] for name, end in (("low", -np.inf), ("high", np.inf)))

    def compute(rows: slice, out: Floats) -> None:
        np.clip(values[rows], low, high, out=out)
        if missing:
            np.copyto(out, term["median"], where=np.isnan(out))
        np.multiply(out, term["slope"], out=out)

    return compute


def list_tree_terms(pipeline: Pipeline) -> list[dict[str, Any]] | None:
    """Return the terms that encode columns as the built-in preprocessing for trees does; None for anything else."""
    steps = getattr(pipeline.named_steps.get("preprocess"), "transformers_", [])
    if not steps or any(type(step).__name__ != TREE_STEPS[kind] for kind, step, _ in steps):
        return None
    terms: list[dict[str, Any]] = []
    for kind, step, columns in steps:
        for index, name in enumerate(columns):
            if kind == "numbers":
                terms.append({"name": name, "kind": kind, "slope": 1.0, "median": np.nan, "low": None, "high": None})
            else:
                values = list_names(step.categories_[index]) if kind == "categories" else range(24)
                terms.append({"name": name, "kind": kind, "table": [*range(len(values)), np.nan], "values": values})
    return terms


def encode_matrix(batch: pa.RecordBatch, terms: Sequence[Mapping[str, Any]]) -> Matrix:
    """Return the terms of each row, shape (rows, terms)."""
    matrix: Matrix = np.empty((len(batch), len(terms)))
    for index, term in enumerate(terms):
        create_term(batch[term["name"]], term)(slice(None), matrix[:, index])
    return matrix


def create_scorer(classifier: Any, terms: Sequence[Mapping[str, Any]], rows: int) -> Scorer | None:  # noqa: ANN401
    """Return a function from a batch to probabilities for a classifier behind `terms`, if numba's start pays.

    It is worth it for many `rows`, on one worker, and ensembles of trees in a known form; None for anything else.
    """
    ensemble = trees.convert_classifier(classifier) if rows else None
    if ensemble is None or rows * len(ensemble.trees) < KERNEL_LEAVES:
        return None
    try:
        scorer = trees.TreeScorer(ensemble)
    except trees.TooLargeError:
        return None
    return lambda batch: scorer.score_columns([create_term(batch[term["name"]], term) for term in terms], len(batch))
