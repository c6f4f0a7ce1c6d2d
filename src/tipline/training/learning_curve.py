"""Study how skill grows with the number of training rows, and choose that number. docs/statistics.md has the rule.

The pipeline is fitted on nested samples of several sizes, several times each, and scored on the same validation rows.
"""

import math
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from scipy.special import ndtri, stdtrit
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from tipline.arrays import Codes, Floats, Labels, Matrix, Rows
from tipline.config import LearningCurve
from tipline.errors import UsageError
from tipline.evaluation.intervals import CONFIDENCE
from tipline.evaluation.metrics import NEXT_TO_NOTHING, compute_log_loss
from tipline.model.pipeline import BuiltPipeline, fit_pipeline
from tipline.model.pyfunc import install_code

Cube = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]

DRAWS = 2000
SEED = 2009
BAND = (0.05, 0.95)
EXPONENTS = np.linspace(0.3, 1.2, 37)
HALVES = 40  # points of the grid
POINTS = 40
MIN_SIZES = 5  # a curve has four parameters
FARTHEST = 10  # times the largest sample studied
WHERE = "params.yaml, learning_curve"
INSTALLING = threading.Lock()  # a worker may have several threads


@dataclass(frozen=True)
class Examples:
    frame: pd.DataFrame  # the model's columns
    labels: Labels
    days: Codes  # codes from 0
    baseline: Floats  # the baseline's probabilities


@dataclass(frozen=True)
class Study:
    """The scores of all fits, and of the baseline, on the validation rows."""

    sizes: tuple[int, ...]  # rows of the samples, ascending
    losses: Cube  # shape (sizes, repeats, days): sums of log-losses, in nats
    baseline_losses: Floats  # shape (days,)
    figures: Mapping[str, Matrix]  # log_loss, auc, fit_seconds; shape (sizes, repeats)
    baseline: Mapping[str, float]  # log_loss, auc


@dataclass(frozen=True)
class Curves:
    """Losses limit + height / (1 + (rows / half) ** exponent), the MMF family; each parameter has shape (curves,)."""

    limit: Floats
    height: Floats
    half: Floats
    exponent: Floats

    def predict(self, rows: Floats) -> Matrix:
        return self.limit[:, None] + self.height[:, None] / (1 + (rows / self.half[:, None]) ** self.exponent[:, None])

    def find_rows(self, rows: int, gain: float) -> Floats:
        """Return how many rows lose `gain` less than `rows`; infinity where the curve levels off before."""
        excess = self.predict(np.array([rows], float))[:, 0] - self.limit - gain
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(excess > 0, self.half * (self.height / excess - 1) ** (1 / self.exponent), np.inf)


def choose_sizes(settings: LearningCurve, pool: int) -> tuple[int, ...]:
    """Return sizes evenly spaced on a log scale. The largest is half the pool, so that the repeats differ."""
    largest = min(pool // 2, settings.max_rows or pool)
    if largest < settings.smallest:
        what = f"The largest sample to study has {largest:,} rows, fewer than `smallest`, {settings.smallest:,}."
        todo = "Lower it, or raise sample.rows or max_rows; the largest sample studied is half of the sampled rows."
        raise UsageError(what, f"{WHERE}.smallest", todo)
    return tuple(int(size) for size in np.unique(np.geomspace(settings.smallest, largest, settings.sizes).round()))


def shuffle_rows(labels: Labels, repeats: int, smallest: int, seed: int) -> list[Rows]:
    """Return a random order of the rows for each repeat. Its first n rows are a sample of size n, so samples nest."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(labels)) for _ in range(repeats)]
    for order in orders:
        sample = labels[order[:smallest]]
        if sample.all() or not sample.any():
            what = f"All {smallest:,} rows of a sample have the label {bool(sample[0])}, so no model can be fitted."
            raise UsageError(what, f"{WHERE}.smallest", "Raise it, or choose another target.")
    return orders


def run_study(
    built: BuiltPipeline,
    frame: pd.DataFrame,
    labels: Labels,
    validation: Examples,
    sizes: Sequence[int],
    orders: Sequence[Rows],
) -> Study:
    """Fit a pipeline on the first rows of each order of the pool, for each size, on joblib's current backend."""
    # As bytes, because the scheduler, which does not have the user's code, would unpickle a pipeline.
    fit = partial(fit_and_score, pickle.dumps(built.pipeline), built.code)
    results = Parallel(n_jobs=-1)(
        delayed(fit)(frame, labels, validation, order[:rows]) for rows in sizes for order in orders
    )
    shape, (baseline, baseline_losses) = (len(sizes), len(orders)), measure_scores(validation.baseline, validation)
    figures = {name: np.reshape([one[name] for one, _ in results], shape) for name in results[0][0]}
    losses = np.reshape([one for _, one in results], (*shape, -1))
    return Study(tuple(sizes), losses, baseline_losses, figures, baseline)


def fit_and_score(
    pickled: bytes, code: Mapping[str, bytes], frame: pd.DataFrame, labels: Labels, validation: Examples, rows: Rows
) -> tuple[dict[str, float], Floats]:
    """Fit a pickled pipeline on some rows of the pool; return its figures, with `fit_seconds`, and losses by day."""
    with INSTALLING:
        for name, data in code.items():
            install_code(name, data)
    # The parts of an estimator are not tasks of their own: the cluster is busy with whole fits.
    with threadpool_limits(1), parallel_config("sequential"):
        started = time.perf_counter()
        pipeline = pickle.loads(pickled)  # noqa: S301 (from the driver)
        fitted = fit_pipeline(pipeline, frame.iloc[rows], labels[rows])
        seconds = time.perf_counter() - started
        scores = fitted.predict_proba(validation.frame)[:, 1]
    figures, losses = measure_scores(scores, validation)
    return figures | {"fit_seconds": seconds}, losses


def measure_scores(scores: Floats, validation: Examples) -> tuple[dict[str, float], Floats]:
    """Return log-loss and AUC, which is NaN for rows of one class, and the sums of log-losses by day."""
    losses, labels = compute_log_loss(scores, validation.labels), validation.labels
    auc = math.nan if labels.all() or not labels.any() else float(roc_auc_score(labels, scores))
    by_day = np.bincount(validation.days, losses).astype(float)
    return {"log_loss": float(losses.mean(dtype=float)), "auc": auc}, by_day


def choose_rows(study: Study, min_gain: float, available: int, max_rows: int | None = None) -> dict[str, Any]:
    """Choose the smallest size that the largest one beats by less than `min_gain` skill points, with 95% confidence.

    If no smaller size is enough, all `available` rows are chosen, up to `max_rows`. Undefined figures are None.
    """
    mean, upper = bound_excess(study)
    if problem := find_problem(study):
        upper = np.full_like(upper, np.nan)
    smaller = zip(study.sizes[:-1], upper[:-1].tolist(), strict=True)
    size, bound = next(((size, bound) for size, bound in smaller if bound < min_gain), (None, math.nan))
    limit = min(available, max_rows or available)
    used = "all {:,} rows of the sample" if limit == available else "the {:,} rows that learning_curve.max_rows allows"
    words = f"so {used.format(limit)} are used"
    if problem:
        reason = f"{problem}, {words}."
    elif size is None:
        reason = (
            f"The curve has not levelled off: no smaller size is shown to be within {min_gain:g} skill points of "
            f"{study.sizes[-1]:,} rows, {words}. A larger sample would help."
        )
    else:
        reason = (
            f"{size:,} rows: with 95% confidence, {study.sizes[-1]:,} rows add less than {min_gain:g} skill points "
            f"(at most {max(bound, 0):.5f})."
        )
    return {
        "rows": size or limit,
        "levelled_off": size is not None,
        "reason": reason,
        "min_gain": min_gain,
        "baseline": replace_nan(study.baseline),
        "sizes": summarize_sizes(study, mean, upper),
    }


def find_problem(study: Study) -> str | None:
    if study.baseline["log_loss"] < NEXT_TO_NOTHING:
        return "The baseline leaves nothing to gain on the `validation` rows"
    if math.isnan(study.baseline["auc"]):
        return "All `validation` rows have the same label, so they cannot tell a good model from an overconfident one"
    return "One day is too few to bound the gain" if len(study.baseline_losses) == 1 else None


def bound_excess(study: Study) -> tuple[Floats, Floats]:
    """Return the skill of the largest size above each size on the `validation` rows, and its 95% upper bound.

    Differences are paired: same rows, same repeat. Given the pool, the repeats are independent. They share rows, but
    that shifts the loss of all sizes alike and cancels in the difference.
    """
    mean, draws = bootstrap_skill(study, study.losses - study.losses[-1])
    return mean, np.quantile(draws, CONFIDENCE, axis=0)


def bootstrap_skill(study: Study, losses: Cube, confidence: float = CONFIDENCE) -> tuple[Floats, Matrix]:
    """Return losses in units of the baseline's, shape (sizes,), and resampled, shape (draws, sizes).

    Repeats and days are resampled independently. A resample varies less than its sample, so deviations are widened by
    sqrt(k / (k - 1)), with k the smaller number of repeats or days, and by the ratio of the quantiles at `confidence`
    of Student's t with k - 1 degrees of freedom and the normal distribution. NaN with nothing to gain, or for k = 1.
    """
    unit: Floats = np.where(study.baseline["log_loss"] < NEXT_TO_NOTHING, np.nan, study.baseline_losses)
    count, repeats, days = losses.shape
    center: Floats = losses.mean(axis=1).sum(axis=1) / unit.sum()
    smaller = min(repeats, days)
    if smaller < 2:  # noqa: PLR2004 (one has no spread)
        return center, np.full((DRAWS, count), np.nan)
    generator = np.random.default_rng(SEED)
    repeat_weights = generator.multinomial(repeats, np.full(repeats, 1 / repeats), DRAWS) / repeats
    day_weights = generator.multinomial(days, np.full(days, 1 / days), DRAWS)
    totals = np.einsum("skb,bk->bs", losses @ day_weights.T, repeat_weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = totals / (day_weights @ unit)[:, None]
    quantiles = float(stdtrit(smaller - 1, confidence) / ndtri(confidence))
    return center, center + (draws - center) * math.sqrt(smaller / (smaller - 1)) * quantiles


def summarize_sizes(study: Study, behind: Floats, upper: Floats) -> list[dict[str, float | None]]:
    """Return rows, mean figures, skill with its 90% interval, and what `bound_excess` found, for each size."""
    mean, draws = bootstrap_skill(study, study.losses)
    low, high = np.quantile(1 - draws, BAND, axis=0)
    columns = {name: values.mean(axis=1) for name, values in study.figures.items()}
    columns |= {"skill": 1 - mean, "skill_low": low, "skill_high": high}
    columns |= {"behind_largest": behind, "behind_largest_upper": upper}
    return [
        {"rows": size, **replace_nan({name: float(values[index]) for name, values in columns.items()})}
        for index, size in enumerate(study.sizes)
    ]


def replace_nan(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have, by None."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def extend_decision(study: Study, decision: Mapping[str, Any], available: int) -> dict[str, Any]:
    """Add the fitted curve, the rows that another `min_gain` needs and a dip, in figures and words of the reason."""
    curves, needed, dip, reason = fit_curves(study), None, find_dip(study), decision["reason"]
    if not find_problem(study):
        needed, words = predict_rows(curves, decision["rows"], decision["min_gain"], FARTHEST * study.sizes[-1])
        reason += f" {words}"
    if dip:
        reason += (
            f" The curve dips: with 95% confidence, {dip['rows']:,} rows have at least {dip['behind_lower']:.5f} skill "
            f"points less than {dip['smaller']:,} rows. A stronger penalty in train.params may help."
        )
    fitted = curves and describe_curves(curves, decision["sizes"], available)
    return {**decision, "reason": reason, "available": available, "fitted_curve": fitted, "needed": needed, "dip": dip}


def predict_rows(curves: Curves | None, rows: int, gain: float, farthest: int) -> tuple[dict[str, float] | None, str]:
    """Return how many rows have `gain` more skill than `rows`, with a 90% interval, and a sentence that says it."""
    more = f"another {gain:g} skill points"
    if curves is None:
        return None, f"How many rows {more} need cannot be said from fewer than {MIN_SIZES} sizes."
    found = curves.find_rows(rows, gain)
    low, high = np.quantile(found[1:], BAND, method="inverted_cdf")
    if math.isinf(found[0]):
        return None, f"The fitted curve levels off before {more}."
    if max(high, found[0]) > farthest:
        what = f"How many rows {more} need cannot be said: the interval reaches further than {farthest:,} rows"
        return None, f"{what}, {FARTHEST} times the largest sample studied."
    about, low, high = (float(f"{value:.3g}") for value in (found[0], low, high))
    words = f"To gain {more} over {rows:,} rows, about {about:,.0f} rows ({low:,.0f} to {high:,.0f}) would be needed."
    return {"rows": about, "low": low, "high": high}, words


def find_dip(study: Study) -> dict[str, float] | None:
    """Return the size most surely worse than the best smaller one, with 95% confidence for all sizes, or None."""
    losses = study.losses.sum(axis=2).mean(axis=1)
    best = [int(losses[:size].argmin()) for size in range(1, len(losses))]
    if not best:
        return None
    doubt = (1 - CONFIDENCE) / len(best)
    behind, draws = bootstrap_skill(study, study.losses[1:] - study.losses[best], 1 - doubt)
    lower = np.quantile(draws, doubt, axis=0)
    worst = int(lower.argmax())
    if not lower[worst] > 0:
        return None
    rows, smaller = study.sizes[worst + 1], study.sizes[best[worst]]
    return {"rows": rows, "smaller": smaller, "behind": float(behind[worst]), "behind_lower": float(lower[worst])}


def describe_curves(curves: Curves, sizes: Sequence[Mapping[str, Any]], available: int) -> dict[str, Any]:
    """Return the fitted skill up to `available` rows with its 90% interval; `misses` counts sizes that it misses."""
    studied = np.array([size["rows"] for size in sizes], float)
    rows = np.geomspace(studied[0], max(available, studied[-1]), POINTS).round()
    skill, fitted = 1 - curves.predict(rows), 1 - curves.predict(studied)[0]
    low, high = np.quantile(skill[1:], BAND, axis=0)
    pairs = zip(sizes, fitted.tolist(), strict=True)
    return {
        "limit": 1 - float(curves.limit[0]),
        "misses": sum(not size["skill_low"] <= value <= size["skill_high"] for size, value in pairs),
        "rows": rows.astype(int).tolist(),
        "skill": skill[0].tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def fit_curves(study: Study) -> Curves | None:
    """Fit a curve to the losses in units of the baseline's, and to each resample; None with too little to fit."""
    mean, draws = bootstrap_skill(study, study.losses)
    if len(study.sizes) < MIN_SIZES or not np.isfinite(draws).all():
        return None
    return fit_mmf(study.sizes, np.vstack([mean, draws]), study.losses.sum(axis=2).std(axis=1))


def fit_mmf(sizes: Sequence[int], losses: Matrix, spread: Floats) -> Curves:
    """Fit curves to losses, shape (curves, sizes), with `height` >= 0 and standard errors `spread`, shape (sizes,).

    Least squares for limit and height at each point of a grid of half and exponent: the result is always the same.
    """
    # Without a floor, one size with almost no spread would decide alone.
    weights = 1 / np.maximum(spread, max(spread.max(), np.finfo(float).tiny) / 100) ** 2
    weights /= weights.sum()
    halves = np.geomspace(sizes[0] / 1000, sizes[-1], HALVES)
    half, exponent = (part.ravel() for part in np.meshgrid(halves, EXPONENTS))
    falls = Curves(np.zeros_like(half), np.ones_like(half), half, exponent).predict(np.asarray(sizes, float))
    centered, level = falls - (falls @ weights)[:, None], losses @ weights
    variance = centered**2 @ weights
    covariance = ((losses - level[:, None]) * weights) @ centered.T
    heights = np.maximum(covariance / variance, 0)
    best = np.argmin(heights * (heights * variance - 2 * covariance), axis=1)
    height = heights[np.arange(len(best)), best]
    return Curves(level - height * (falls @ weights)[best], height, half[best], exponent[best])
