"""How much a larger sample still gains: nested prefixes, several repeats, paired differences to the largest size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student
from sklearn.model_selection import cross_validate
from threadpoolctl import threadpool_limits

from tipline import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sklearn.pipeline import Pipeline

    from tipline.metrics import Labels
    from tipline.pyfunc import Floats, Matrix

    Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Data:
    """What a study is made on: matrix and labels of the `fit` rows and of the `size` rows.

    Attributes
    ----------
    days
        Day of each `size` row, as codes from 0.
    baseline
        Log-loss of the baseline on the `size` rows.
    """

    fit: tuple[Matrix, Labels]
    size: tuple[Matrix, Labels]
    days: Rows
    baseline: float


@dataclass(frozen=True)
class Study:
    """What was measured.

    Attributes
    ----------
    sizes
        Rows of the samples studied, ascending.
    losses
        Shape (sizes, repeats, rows of the `size` months): log-loss of each row, in nats.
    aucs, seconds
        Shape (sizes, repeats): area under the ROC curve, time of the fit.
    """

    data: Data
    sizes: tuple[int, ...]
    losses: np.ndarray[tuple[int, int, int], np.dtype[np.float32]]
    aucs: Matrix
    seconds: Matrix


def sizes(smallest: int, largest: int, count: int) -> tuple[int, ...]:
    """At most `count` different sizes, evenly spaced on a log scale, both ends among them."""
    return tuple(int(size) for size in np.unique(np.geomspace(smallest, largest, count).round()))


def study(pipeline: Pipeline, data: Data, of_sizes: Sequence[int], repeats: int, seed: int) -> Study:
    """Fit the pipeline on prefixes of `repeats` shuffles of the `fit` rows and score it on the `size` rows.

    Runs on joblib's current backend.
    """
    generator = np.random.default_rng(seed)
    shuffles = [generator.permutation(len(data.fit[1])) for _ in range(repeats)]
    validation = np.arange(len(data.fit[1]), len(data.fit[1]) + len(data.size[1]))
    with threadpool_limits(1):
        result = cross_validate(
            pipeline,
            np.concatenate([data.fit[0], data.size[0]]),
            np.concatenate([data.fit[1], data.size[1]]),
            cv=[(shuffle[:rows], validation) for rows in of_sizes for shuffle in shuffles],
            scoring="roc_auc",
            return_estimator=True,
            error_score="raise",
            n_jobs=-1,
        )
    shape = (len(of_sizes), repeats)
    losses = [metrics.losses(model.predict_proba(data.size[0])[:, 1], data.size[1]) for model in result["estimator"]]
    return Study(
        data,
        tuple(of_sizes),
        np.asarray(losses, np.float32).reshape(*shape, -1),
        result["test_score"].reshape(shape),
        result["fit_time"].reshape(shape),
    )


def excess(study: Study) -> tuple[Floats, Floats]:
    """Mean loss of each size above the largest size's, and its one-sided 95% upper bound, both as skill.

    Losses are paired: same shuffle, same validation rows. The standard error adds the spread between repeats and the
    spread between days (each day's rows are one block), both of the mean; Student's t with the smaller number of
    either, less one. Wider than need be where the two overlap; a bootstrap of both at once would be sharper.
    """
    paired = study.losses - study.losses[-1]
    by_day = np.stack([paired[:, :, study.data.days == day].sum(axis=2) for day in np.unique(study.data.days)], axis=2)
    mean = paired.mean(axis=(1, 2), dtype=float)
    counts = np.bincount(study.data.days)
    blocks, repeats = len(counts), study.losses.shape[1]
    of_repeats = paired.mean(axis=2, dtype=float).var(axis=1, ddof=1) / repeats
    residuals = by_day.mean(axis=1) - mean[:, None] * counts
    of_days = (residuals**2).sum(axis=1) * blocks / max(blocks - 1, 1) / counts.sum() ** 2
    quantile = student.ppf(CONFIDENCE, max(min(blocks, repeats) - 1, 1))
    upper = mean + quantile * np.sqrt(of_repeats + of_days)
    return mean / unit(study), upper / unit(study)


def unit(study: Study) -> float:
    """What makes skill of a loss: the baseline's, NaN where that leaves nothing to gain."""
    return study.data.baseline if study.data.baseline >= metrics.NEXT_TO_NOTHING else math.nan


def decide(study: Study, min_gain: float, available: int) -> dict[str, Any]:
    """Choose the smallest size that no larger one studied beats by `min_gain` skill, with 95% confidence.

    Returns
    -------
    dict
        rows, levelled_off, reason (one sentence), and a list `sizes` with the figures of each size.
    """
    mean, upper = excess(study)
    enough = [index for index in range(len(study.sizes) - 1) if upper[index] < min_gain]
    rows = study.sizes[enough[0]] if enough else available
    if math.isnan(unit(study)):
        rows, reason = available, "The baseline leaves nothing to gain here, so all rows are used."
    elif enough:
        reason = (
            f"{rows:,} rows: with 95% confidence, {study.sizes[-1]:,} rows add less than {min_gain:g} skill "
            f"(at most {max(upper[enough[0]], 0):.5f})."
        )
    else:
        reason = (
            f"The curve has not levelled off: no smaller size comes within {min_gain:g} skill of {study.sizes[-1]:,} "
            f"rows. All {available:,} rows are used; a larger sample would help."
        )
    return {
        "rows": rows,
        "levelled_off": bool(enough),
        "reason": reason,
        "min_gain": min_gain,
        "baseline_log_loss": study.data.baseline,
        "sizes": [of_size(study, index, float(mean[index]), float(upper[index])) for index in range(len(study.sizes))],
    }


def of_size(study: Study, index: int, mean: float, upper: float) -> dict[str, Any]:
    """The figures of one size, over its repeats; those in units of skill are None where skill is not defined."""
    skills = 1 - study.losses[index].mean(axis=1, dtype=float) / unit(study)
    figures = {
        "rows": study.sizes[index],
        "log_loss": float(study.losses[index].mean(dtype=float)),
        "skill": float(skills.mean()),
        "skill_low": float(skills.min()),
        "skill_high": float(skills.max()),
        "auc": float(study.aucs[index].mean()),
        "behind_largest": mean,
        "behind_largest_upper": upper,
        "fit_seconds": float(study.seconds[index].mean()),
    }
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
