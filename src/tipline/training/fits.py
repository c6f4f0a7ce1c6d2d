"""Fits on samples of several sizes: nested prefixes of the rows, several repeats, scored on all validation rows."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_validate
from threadpoolctl import threadpool_limits

from tipline.errors import UsageError
from tipline.evaluation import metrics
from tipline.model import pipeline as model_pipeline
from tipline.training.learning_curve import WHERE, Study

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sklearn.pipeline import Pipeline

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Codes, Floats, Matrix, Probabilities

    Order = np.ndarray[tuple[int], np.dtype[np.int64]]

FIGURES = ("log_loss", "auc", "brier")


@dataclass(frozen=True)
class Examples:
    """Rows to fit on or to score.

    Attributes
    ----------
    days
        Each row's day, as codes from 0.
    segment
        Whether each row is in the segment that is also scored by itself.
    baseline
        The baseline's probabilities.
    """

    inputs: Matrix
    labels: Labels
    days: Codes
    segment: Labels
    baseline: Floats

    def blocks(self) -> tuple[Examples, tuple[int, ...]]:
        """The rows sorted, those of the segment last, each by day; and the ends of these blocks."""
        days = int(self.days.max()) + 1
        block = self.segment * days + self.days
        ends = np.cumsum(np.bincount(block, minlength=2 * days))
        order = np.argsort(block, kind="stable")
        return Examples(*(array[order] for array in vars(self).values())), tuple(ends.tolist())


@dataclass(frozen=True)
class Scorer:
    """Figures of a fitted model on all sets of validation rows at once, as plain numbers.

    Attributes
    ----------
    blocks
        By set, where its blocks begin and where the last ends: of each day, first outside the segment, then in it.
        Few numbers, because they travel with each fit; nothing large travels back.
    """

    blocks: Mapping[str, tuple[int, ...]]

    def __call__(self, estimator: Pipeline, inputs: Matrix, labels: Labels) -> dict[str, float]:
        """The figures of an estimator, as scikit-learn asks for them."""
        return self.figures(estimator.predict_proba(inputs)[:, 1], labels)

    def figures(self, scores: Floats, labels: Labels) -> dict[str, float]:
        """Figures by set, in its segment too, NaN where they are not defined; sums of log-losses by day."""
        losses = metrics.compute_log_loss(scores, labels)
        found: dict[str, float] = {}
        for name, ends in self.blocks.items():
            middle = ends[len(ends) // 2]
            for part, rows in ((name, slice(ends[0], ends[-1])), (f"{name}.segment", slice(middle, ends[-1]))):
                values = of_rows(scores[rows], labels[rows], losses[rows])
                found |= {f"{part}.{figure}": value for figure, value in zip(FIGURES, values, strict=True)}
            sums = np.diff(np.concatenate([[0.0], np.cumsum(losses, dtype=float)])[list(ends)])
            days = sums.reshape(2, -1).sum(axis=0)
            found |= {f"{name}.day{day}": float(total) for day, total in enumerate(days)}
        return found


def of_rows(scores: Floats, labels: Labels, losses: Probabilities | Floats) -> tuple[float, float, float]:
    """Log-loss, AUC and Brier score of some rows, NaN where they are not defined."""
    if not len(scores):
        return math.nan, math.nan, math.nan
    area = float(roc_auc_score(labels, scores)) if labels.any() and not labels.all() else math.nan
    return float(losses.mean(dtype=float)), area, float(np.square(scores - labels).mean())


def choose_sizes(smallest: int, largest: int, count: int) -> tuple[int, ...]:
    """At most `count` different sizes, evenly spaced on a log scale, both ends among them."""
    return tuple(int(size) for size in np.unique(np.geomspace(smallest, largest, count).round()))


def shuffle_rows(labels: Labels, repeats: int, smallest: int, seed: int) -> list[Order]:
    """Random orders of the rows; the first n of each are a sample of size n, so that samples nest.

    Raises
    ------
    UsageError
        Where the smallest sample of one has only tips, or none: nothing can be fitted on it.
    """
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(labels)) for _ in range(repeats)]
    for order in orders:
        if len(set(labels[order[:smallest]].tolist())) < 2:  # noqa: PLR2004 (one class)
            tips = "All" if labels[order[0]] else "None"
            what = f"{tips} of the {smallest:,} rows of a sample tipped: no model can be fitted on it."
            raise UsageError(what, f"{WHERE}.smallest", "Raise it, or take another target.")
    return orders


def run_study(
    pipeline: Pipeline,
    pool: Examples,
    validation: Mapping[str, Examples],
    of_sizes: Sequence[int],
    orders: Sequence[Order],
) -> Study:
    """Fit the pipeline on prefixes of these orders of the pool and score it on all validation rows.

    Runs on joblib's current backend.
    """
    scored, scorer = joined(validation)
    inputs, labels = (np.concatenate([getattr(part, name) for part in (pool, scored)]) for name in ("inputs", "labels"))
    behind = np.arange(len(pool.labels), len(labels))
    # Of dask's workers the nannies see to one thread each; this is for fits in this process.
    with threadpool_limits(1):
        result = cross_validate(
            pipeline,
            inputs,
            labels,
            cv=[(order[:rows], behind) for rows in of_sizes for order in orders],
            scoring=scorer,
            error_score="raise",
            n_jobs=-1,
        )
    del result["score_time"]
    result["fit_seconds"] = result.pop("fit_time")
    found = {name.removeprefix("test_"): values.reshape(len(of_sizes), -1) for name, values in result.items()}
    sums, figures = parted(found)
    baseline, of_baseline = parted(scorer.figures(scored.baseline, scored.labels))
    return Study(tuple(of_sizes), sums, baseline, figures, of_baseline)


def joined(validation: Mapping[str, Examples]) -> tuple[Examples, Scorer]:
    """All sets of validation rows one behind the other, and their scorer."""
    parts, blocks, begin = [], {}, 0
    for name, examples in validation.items():
        part, ends = examples.blocks()
        blocks[name] = (begin, *(begin + end for end in ends))
        begin = blocks[name][-1]
        parts.append(part)
    together = zip(*(vars(part).values() for part in parts), strict=True)
    return Examples(*map(np.concatenate, together)), Scorer(blocks)


def parted(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By set, the sums by day, on an axis of their own behind the others; and the figures."""
    days: dict[str, list[Any]] = {}
    for name, values in found.items():
        if ".day" in name:
            days.setdefault(name.partition(".day")[0], []).append(values)
    sums = {name: np.stack(values, axis=-1) for name, values in days.items()}
    return sums, {name: values for name, values in found.items() if ".day" not in name}


@dataclass(frozen=True)
class Cost:
    """What a sample takes.

    Attributes
    ----------
    bytes_a_row
        Peak of what matrix and fit allocate, by row, in two digits so that the same sample gives the same number.
    parameters
        How many parameters of a logistic regression the rows tell apart; None for other models.
    """

    bytes_a_row: int
    parameters: int | None

    @classmethod
    def of(cls, pipeline: Pipeline, make: Callable[[], Matrix], labels: Labels) -> Cost:
        """Measure it on a sample, whose matrix `make` makes."""
        # What the first fit of a process imports is not the sample's.
        model_pipeline.fit_pipeline(clone(pipeline), make(), labels)
        tracemalloc.start()
        try:
            inputs = make()
            fitted = model_pipeline.fit_pipeline(clone(pipeline), inputs, labels)
            each = tracemalloc.get_traced_memory()[1] / len(labels)
        finally:
            tracemalloc.stop()
        return cls(int(round(each, 1 - int(math.log10(each)))), parameters(fitted, inputs))


def parameters(fitted: Pipeline, inputs: Matrix) -> int | None:
    """How many parameters of a logistic regression the rows tell apart; None for other models."""
    if not isinstance(fitted[-1], LogisticRegression):
        return None
    design = np.column_stack([np.ones(len(inputs)), fitted[:-1].transform(inputs)])
    return int(np.linalg.matrix_rank(design.T @ design, hermitian=True))
