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

from tipline.arrays import CHUNK_ROWS, Floats, Matrix, fill_nulls, hour_of_day, view_values
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
    missing values), or a slope times the clipped number, with the median for a missing one. Categories that are numbers
    are folded only if the model is given derived columns, which have them as text.
    """
    if [*pipeline.named_steps] != ["preprocess", "classifier"] or type(pipeline[-1]).__name__ != "LogisticRegression":
        return None
    weights, intercept = iter(pipeline[-1].coef_[0].tolist()), float(pipeline[-1].intercept_[0])
    terms: list[dict[str, Any]] = []
    for kind, step, columns in pipeline["preprocess"].transformers_:
        if kind == "numbers":
            scaler, medians = step["scale"], step["impute"].statistics_.tolist()
            bounds = step["clip"].kw_args
            for i, name in enumerate(columns):
                slope = next(weights) / float(scaler.scale_[i])
                intercept -= slope * float(scaler.mean_[i])
                limits = {end: value[i] if np.isfinite(value[i]) else None for end, value in bounds.items()}
                terms.append({"name": name, "kind": kind, "slope": slope, "median": medians[i], **limits})
        else:
            if kind == "categories" and not is_derived and has_numbers(step):
                return None
            for index, name in enumerate(columns):
                of_column = [next(weights) for _ in find_encoder(step).categories_[index]]
                terms.append({"name": name, "kind": kind, **build_table(step, index, of_column, 0.0)})
    return {"intercept": intercept, "terms": terms}


def find_encoder(step: Any) -> Any:  # noqa: ANN401 (a transformer or a pipeline of several)
    """Return the encoder of a part of the preprocessing."""
    return getattr(step, "named_steps", {}).get("encode", step)


def has_numbers(step: Any) -> bool:  # noqa: ANN401
    levels = step.categories_ if find_encoder(step) is step else step["unseen"].levels
    return not all(isinstance(value, str) for values in levels for value in values)


def build_table(step: Any, index: int, weights: Sequence[float], fill: float) -> dict[str, Any]:  # noqa: ANN401
    """Return the values of an encoded column and their weights, followed by those of unseen and missing values."""
    from tipline.model.transformers import MISSING, OTHER, name_values  # noqa: PLC0415 (imports scikit-learn)

    names = name_values(find_encoder(step).categories_[index].tolist())
    if "unseen" not in getattr(step, "named_steps", ()):
        return {"values": names, "table": [*weights, fill]}
    of_names, levels = dict(zip(names, weights, strict=True)), step["unseen"].levels_[index]
    last = [OTHER, MISSING if MISSING in levels else OTHER]
    return {"values": levels, "table": [of_names[level] for level in (*levels, *last)]}


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
        doubles, has_nulls = column.cast(pa.float64()), column.null_count > 0
        values = doubles.to_numpy(zero_copy_only=False) if has_nulls else view_values(doubles)
        low, high = (end if term[name] is None else term[name] for name, end in (("low", -np.inf), ("high", np.inf)))

        def compute(rows: slice, out: Floats) -> None:
            np.clip(values[rows], low, high, out=out)
            if has_nulls:
                np.copyto(out, term["median"], where=np.isnan(out))
            np.multiply(out, term["slope"], out=out)

        return compute
    table, missing = np.array(term["table"], np.float64), len(term["table"]) - 1
    if term["kind"] == "categories":
        places, unseen = {value: place for place, value in enumerate(term["values"])}, len(term["values"])
        names = column.dictionary.to_pylist()
        table = table[[*(places.get(name, unseen) for name in names), missing]]
        codes = fill_nulls(column.indices, len(names))
        return lambda rows, out: np.take(table, codes[rows], out=out, mode="clip")
    microseconds = fill_nulls(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), 0)
    if not column.null_count:
        return lambda rows, out: np.take(table, hour_of_day(microseconds[rows]), out=out, mode="clip")
    hours = hour_of_day(microseconds)
    hours[column.is_null().to_numpy(zero_copy_only=False)] = missing
    return lambda rows, out: np.take(table, hours[rows], out=out, mode="clip")


def list_tree_terms(pipeline: Pipeline) -> list[dict[str, Any]] | None:
    """Return the terms that encode columns as the built-in preprocessing for trees does; None for anything else."""
    steps = getattr(pipeline.named_steps.get("preprocess"), "transformers_", [])
    if not steps or any(type(find_encoder(step)).__name__ != TREE_STEPS[kind] for kind, step, _ in steps):
        return None
    terms: list[dict[str, Any]] = []
    for kind, step, columns in steps:
        for index, name in enumerate(columns):
            if kind == "numbers":
                terms.append({"name": name, "kind": kind, "slope": 1.0, "median": np.nan, "low": None, "high": None})
            elif kind == "hours":
                terms.append({"name": name, "kind": kind, "table": [*range(24), np.nan]})
            else:
                codes = range(len(find_encoder(step).categories_[index]))
                terms.append({"name": name, "kind": kind, **build_table(step, index, codes, np.nan)})
    return terms


def encode_matrix(batch: pa.RecordBatch, terms: Sequence[Mapping[str, Any]]) -> Matrix:
    """Return the terms of each row, shape (rows, terms)."""
    matrix: Matrix = np.empty((len(batch), len(terms)))
    for index, term in enumerate(terms):
        create_term(batch[term["name"]], term)(slice(None), matrix[:, index])
    return matrix


def create_scorer(classifier: Any, terms: Sequence[Mapping[str, Any]], rows: int) -> Scorer | None:  # noqa: ANN401
    """Return a function from a batch to probabilities, or None for unknown classifiers and few `rows` per worker."""
    ensemble = trees.convert_classifier(classifier) if rows else None
    if ensemble is None or rows * len(ensemble.trees) < KERNEL_LEAVES:
        return None
    try:
        scorer = trees.TreeScorer(ensemble)
    except trees.TooLargeError:
        return None
    return lambda batch: scorer.score_columns([create_term(batch[term["name"]], term) for term in terms], len(batch))
