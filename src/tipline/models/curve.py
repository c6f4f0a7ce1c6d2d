"""How much a larger sample still gains: nested prefixes, several repeats, paired differences to the largest size."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_validate
from threadpoolctl import threadpool_limits

from tipline.errors import UsageError
from tipline.models import model
from tipline.statistics import metrics
from tipline.statistics.intervals import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sklearn.pipeline import Pipeline

    from tipline.params import Budget
    from tipline.pyfunc import Codes, Floats, Matrix, Probabilities
    from tipline.statistics.metrics import Labels

    Cube = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]

DRAWS = 2000
SEED = 2009
BAND = (0.05, 0.95)
EXPONENTS = np.linspace(0.3, 1.5, 49)
POINTS = 40
FEWEST_SIZES = 4  # a power law has three parameters
FIGURES = ("log_loss", "auc", "brier")
MEGABYTE = 1e6
WHERE = "params.yaml, learning_curve"


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
    tipped: Labels
    days: Codes
    segment: Labels
    baseline: Floats

    def take(self, rows: Any) -> Examples:  # noqa: ANN401 (a slice or row numbers)
        """Some of the rows, in this order."""
        parts = (self.inputs, self.tipped, self.days, self.segment, self.baseline)
        return Examples(*(part[rows] for part in parts))

    def blocks(self) -> tuple[Examples, tuple[int, ...]]:
        """The rows sorted, those of the segment last, each by day; and the ends of these blocks."""
        days = int(self.days.max()) + 1
        block = self.segment * days + self.days
        ends = np.cumsum(np.bincount(block, minlength=2 * days))
        return self.take(np.argsort(block, kind="stable")), tuple(int(end) for end in ends)


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

    def __call__(self, estimator: Pipeline, inputs: Matrix, tipped: Labels) -> dict[str, float]:
        """The figures of an estimator, as scikit-learn asks for them."""
        return self.figures(estimator.predict_proba(inputs)[:, 1], tipped)

    def figures(self, scores: Floats, tipped: Labels) -> dict[str, float]:
        """Figures by set, in its segment too, NaN where they are not defined; sums of log-losses by day."""
        losses = metrics.losses(scores, tipped)
        found: dict[str, float] = {}
        for name, ends in self.blocks.items():
            middle = ends[len(ends) // 2]
            for part, rows in ((name, slice(ends[0], ends[-1])), (f"{name}.segment", slice(middle, ends[-1]))):
                values = of_rows(scores[rows], tipped[rows], losses[rows])
                found |= {f"{part}.{figure}": value for figure, value in zip(FIGURES, values, strict=True)}
            sums = np.diff(np.concatenate([[0.0], np.cumsum(losses, dtype=float)])[list(ends)])
            days = sums.reshape(2, -1).sum(axis=0)
            found |= {f"{name}.day{day}": float(total) for day, total in enumerate(days)}
        return found


def of_rows(scores: Floats, tipped: Labels, losses: Probabilities | Floats) -> tuple[float, float, float]:
    """Log-loss, AUC and Brier score of some rows, NaN where they are not defined."""
    if not len(scores):
        return math.nan, math.nan, math.nan
    area = float(roc_auc_score(tipped, scores)) if tipped.any() and not tipped.all() else math.nan
    return float(losses.mean(dtype=float)), area, float(np.square(scores - tipped).mean())


@dataclass(frozen=True)
class Study:
    """What was measured on each set of validation rows, `held_out` and `size`.

    Attributes
    ----------
    sizes
        Rows of the samples studied, ascending.
    sums
        By set, shape (sizes, repeats, days): sum of the log-losses, in nats.
    baseline
        By set, shape (days,): that of the baseline.
    figures
        By name, shape (sizes, repeats): the figures of `Scorer`, and `fit_seconds`.
    of_baseline
        By name: the figures of the baseline.
    """

    sizes: tuple[int, ...]
    sums: Mapping[str, Cube]
    baseline: Mapping[str, Floats]
    figures: Mapping[str, Matrix]
    of_baseline: Mapping[str, float]


def sizes(smallest: int, largest: int, count: int) -> tuple[int, ...]:
    """At most `count` different sizes, evenly spaced on a log scale, both ends among them."""
    return tuple(int(size) for size in np.unique(np.geomspace(smallest, largest, count).round()))


def shuffles(tipped: Labels, repeats: int, smallest: int, seed: int) -> list[np.ndarray[tuple[int], Any]]:
    """Random orders of the rows; the first n of each are a sample of size n, so that samples nest.

    Raises
    ------
    UsageError
        Where the smallest sample of one has only tips, or none: nothing can be fitted on it.
    """
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(tipped)) for _ in range(repeats)]
    for order in orders:
        if len(set(tipped[order[:smallest]].tolist())) < 2:  # noqa: PLR2004 (one class)
            known = "with" if tipped[order[0]] else "without"
            what = f"All rows of a sample of {smallest:,} are {known} a tip: no model can be fitted on it."
            raise UsageError(what, f"{WHERE}.smallest", "Raise it, or take another target.")
    return orders


def study(
    pipeline: Pipeline,
    pool: Examples,
    validation: Mapping[str, Examples],
    of_sizes: Sequence[int],
    orders: Sequence[np.ndarray[tuple[int], Any]],
) -> Study:
    """Fit the pipeline on prefixes of these orders of the pool and score it on all validation rows.

    Runs on joblib's current backend.
    """
    places, parts, start = {}, [pool], len(pool.tipped)
    for name, examples in validation.items():
        part, ends = examples.blocks()
        begin = sum(len(before.tipped) for before in parts[1:])
        places[name] = (begin, *(begin + end for end in ends))
        parts.append(part)
    inputs, tipped = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "tipped"))
    scorer, scored = Scorer(places), np.arange(start, len(tipped))
    # Of dask's workers the nannies see to one thread each; this is for fits in this process.
    with threadpool_limits(1):
        result = cross_validate(
            pipeline,
            inputs,
            tipped,
            cv=[(order[:rows], scored) for rows in of_sizes for order in orders],
            scoring=scorer,
            error_score="raise",
            n_jobs=-1,
        )
    of_baseline = scorer.figures(np.concatenate([part.baseline for part in parts[1:]]), tipped[start:])
    result["fit_seconds"] = result.pop("fit_time")
    found = {name.removeprefix("test_"): values.reshape(len(of_sizes), -1) for name, values in result.items()}
    days = {name: [f"{name}.day{day}" for day in range(len(places[name]) // 2)] for name in validation}
    return Study(
        tuple(of_sizes),
        {name: np.stack([found[day] for day in days[name]], axis=2) for name in validation},
        {name: np.array([of_baseline[day] for day in days[name]]) for name in validation},
        {name: values for name, values in found.items() if ".day" not in name and name != "score_time"},
        {name: value for name, value in of_baseline.items() if ".day" not in name},
    )


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
    def of(cls, pipeline: Pipeline, make: Callable[[], Matrix], tipped: Labels) -> Cost:
        """Measure it on a sample, whose matrix `make` makes."""
        # What the first fit of a process imports is not the sample's.
        model.fit(clone(pipeline), make(), tipped)
        tracemalloc.start()
        try:
            inputs = make()
            fitted = model.fit(clone(pipeline), inputs, tipped)
            each = tracemalloc.get_traced_memory()[1] / len(tipped)
        finally:
            tracemalloc.stop()
        return cls(int(round(each, 1 - int(math.log10(each)))), parameters(fitted, inputs))


def parameters(fitted: Pipeline, inputs: Matrix) -> int | None:
    """How many parameters of a logistic regression the rows tell apart; None for other models."""
    if not isinstance(fitted[-1], LogisticRegression):
        return None
    design = np.column_stack([np.ones(len(inputs)), fitted[:-1].transform(inputs)])
    return int(np.linalg.matrix_rank(design.T @ design, hermitian=True))


def against(study: Study, name: str) -> Floats:
    """The baseline's sums by day, which make skill of sums of losses; NaN where they leave nothing to gain."""
    worth = study.of_baseline[f"{name}.log_loss"] >= metrics.NEXT_TO_NOTHING
    return study.baseline[name] if worth else np.full_like(study.baseline[name], np.nan)


def bootstrap(sums: Cube, baseline: Floats) -> tuple[Floats, Matrix]:
    """Sums by the baseline's, shape (sizes,), and the same of resampled repeats and days, shape (draws, sizes).

    Both are resampled, each by itself. Deviations are widened by sqrt(k / (k - 1)), k the smaller number of repeats or
    days, as a resample varies less than what it is drawn from, and by Student's t with k - 1 degrees of freedom over
    the normal quantile. Of a single repeat or day there is no telling: NaN.
    """
    count, repeats, days = sums.shape
    centre: Floats = sums.mean(axis=1).sum(axis=1) / baseline.sum()
    fewest = min(repeats, days)
    if fewest < 2:  # noqa: PLR2004 (one has no spread)
        return centre, np.full((DRAWS, count), np.nan)
    generator = np.random.default_rng(SEED)
    of_repeats = generator.multinomial(repeats, np.full(repeats, 1 / repeats), DRAWS) / repeats
    of_days = generator.multinomial(days, np.full(days, 1 / days), DRAWS)
    totals = np.einsum("skb,bk->bs", sums @ of_days.T, of_repeats)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = totals / (of_days @ baseline)[:, None]
    return centre, centre + (draws - centre) * widening(fewest)


def widening(count: int) -> float:
    """How much farther than a bootstrap of so many independent parts says its 95% quantile has to be."""
    return math.sqrt(count / (count - 1)) * float(student.ppf(CONFIDENCE, count - 1) / norm.ppf(CONFIDENCE))


def excess(study: Study) -> tuple[Floats, Floats]:
    """Skill of the largest size above that of each on the `size` rows, and its one-sided 95% upper bound.

    Paired: same rows, same repeat. Given the pool, repeats are independent; that they share rows moves the loss of all
    sizes alike, so it is not in the difference (docs/learning-curve.md).
    """
    mean, draws = bootstrap(study.sums["size"] - study.sums["size"][-1], against(study, "size"))
    return mean, np.quantile(draws, CONFIDENCE, axis=0)


def power_law(of_sizes: Sequence[int], losses: Matrix, spread: Floats) -> tuple[Floats, Floats, Floats]:
    """The inverse power laws a + b * rows ** -c closest to some curves, c in 0.3..1.5 and b not negative.

    Parameters
    ----------
    losses
        Shape (curves, sizes).
    spread
        Shape (sizes,): standard errors, for the weights.

    Returns
    -------
    tuple
        a, b and c of each curve. Linear least squares of a and b for each c on a grid: the same result each time.
    """
    # Next to no spread would let one size alone decide.
    weights = 1 / np.maximum(spread, max(spread.max(), np.finfo(float).tiny) / 100) ** 2
    weights /= weights.sum()
    powers = np.asarray(of_sizes, float) ** -EXPONENTS[:, None]
    centred, level = powers - (powers @ weights)[:, None], losses @ weights
    variance = centred**2 @ weights
    covariance = ((losses - level[:, None]) * weights) @ centred.T
    slopes = np.maximum(covariance / variance, 0)
    best = np.argmin(slopes * (slopes * variance - 2 * covariance), axis=1)
    slope = slopes[np.arange(len(best)), best]
    return level - slope * (powers @ weights)[best], slope, EXPONENTS[best]


def extrapolation(study: Study, available: int) -> dict[str, Any] | None:
    """A power law through the skill on the `size` rows, with its 90% interval, up to the rows available.

    Returns
    -------
    dict or None
        limit (skill of endless rows), exponent, misses (sizes whose own interval the law is not in: it is no law
        then), and lists rows, skill, low, high. None of fewer than four sizes, of a single repeat or day, or without a
        baseline to gain on.
    """
    mean, draws = bootstrap(study.sums["size"], against(study, "size"))
    if len(study.sizes) < FEWEST_SIZES or not np.isfinite(draws).all():
        return None
    spread = study.sums["size"].sum(axis=2).std(axis=1)
    limits, slopes, exponents = power_law(study.sizes, np.vstack([mean, draws]), spread)
    rows = np.geomspace(study.sizes[0], max(available, study.sizes[-1]), POINTS).round()
    laws = 1 - limits[:, None] - slopes[:, None] * rows ** -exponents[:, None]
    low, high = np.quantile(laws[1:], BAND, axis=0)
    drawn = limits[0] + slopes[0] * np.asarray(study.sizes, float) ** -exponents[0]
    ends = np.quantile(draws, BAND, axis=0)
    misses = int(((drawn < ends[0]) | (drawn > ends[1])).sum())
    values = {"rows": rows.astype(int), "skill": laws[0], "low": low, "high": high}
    lists = {name: value.tolist() for name, value in values.items()}
    return {"limit": 1 - float(limits[0]), "exponent": float(exponents[0]), "misses": misses, **lists}


@dataclass(frozen=True)
class Bound:
    """The most rows to train on, and what sets this bound, in words."""

    rows: int
    words: str

    @classmethod
    def of(cls, there: int, budget: Budget, bytes_a_row: int) -> Bound:
        """The least of the sample's rows and what the budget allows."""
        bounds = [cls(there, f"all {there:,} rows of the sample")]
        if budget.rows is not None:
            bounds.append(cls(budget.rows, f"the {budget.rows:,} rows of the budget"))
        if budget.megabytes is not None:
            rows = int(budget.megabytes * MEGABYTE / bytes_a_row)
            words = f"the {rows:,} rows that the budget of {budget.megabytes:g} MB holds at {bytes_a_row:,} bytes a row"
            bounds.append(cls(rows, words))
        return min(bounds, key=lambda bound: bound.rows)


def decide(study: Study, min_gain: float, most: Bound, parameters: int | None) -> dict[str, Any]:
    """Choose the smallest size that the largest studied does not beat by `min_gain` skill points, with 95% confidence.

    Parameters
    ----------
    most
        What is used where no smaller size will do.
    parameters
        Of a well-specified model, for the sanity line p / (2n); None: no such line.

    Returns
    -------
    dict
        rows, levelled_off, reason (one sentence), sanity (one more, or None), figures of the baseline, and a list
        `sizes` with the figures of each size, None where they are not defined.
    """
    mean, upper = excess(study)
    if one_class(study):
        upper = np.full_like(upper, np.nan)
    enough = [index for index in range(len(study.sizes) - 1) if upper[index] < min_gain]
    rows = study.sizes[enough[0]] if enough else most.rows
    bands = {name: bootstrap(study.sums[name], against(study, name)) for name in study.sums}
    table = [
        {"rows": size}
        | {name: float(values[index].mean()) for name, values in study.figures.items()}
        | {f"{name}.{figure}": value for name, band in bands.items() for figure, value in of_band(band, index).items()}
        | {"behind_largest": float(mean[index]), "behind_largest_upper": float(upper[index])}
        | {"well_specified_nats": parameters / (2 * size) if parameters else math.nan}
        for index, size in enumerate(study.sizes)
    ]
    return {
        "rows": rows,
        "levelled_off": bool(enough),
        "reason": reason(study, min_gain, float(upper[enough[0]]) if enough else math.nan, most, rows),
        "sanity": parameters and sanity(study, parameters, rows),
        "min_gain": min_gain,
        "baseline": defined(study.of_baseline),
        "sizes": [defined(figures) for figures in table],
    }


def of_band(band: tuple[Floats, Matrix], index: int) -> dict[str, float]:
    """Skill of one size, with the ends of its 90% interval."""
    losses, draws = band
    low, high = np.quantile(1 - draws[:, index], BAND)
    return {"skill": float(1 - losses[index]), "skill_low": float(low), "skill_high": float(high)}


def defined(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures with None for NaN, as json has no other word for it."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def reason(study: Study, min_gain: float, upper: float, most: Bound, rows: int) -> str:
    """Why so many rows, in one sentence; `upper` is NaN where no size below the largest is enough."""
    largest, (_, repeats, days) = study.sizes[-1], study.sums["size"].shape
    used = f"{most.words} are used"
    if np.isnan(against(study, "size")).any():
        return f"The baseline leaves nothing to gain on the `size` rows, so {used}."
    if one_class(study):
        return f"All of the `size` rows tipped, or none: they cannot tell a good model from a bold one, so {used}."
    if len(study.sizes) == 1:
        return f"One size alone says nothing about smaller ones, so {used}."
    if min(repeats, days) < 2:  # noqa: PLR2004 (one has no spread)
        return f"Of {repeats} repeats and {days} days there is no telling how sure the curve is, so {used}."
    if math.isnan(upper):
        return (
            f"The curve has not levelled off: no smaller size is shown to be within {min_gain:g} skill points of "
            f"{largest:,} rows, so {used}, and a larger sample would help."
        )
    return (
        f"{rows:,} rows: with 95% confidence, {largest:,} rows add less than {min_gain:g} skill points "
        f"(at most {max(upper, 0):.5f})."
    )


def one_class(study: Study) -> bool:
    """Whether the `size` rows all tipped, or none: then nothing has an AUC on them, the baseline neither."""
    return math.isnan(study.of_baseline["size.auc"])


def sanity(study: Study, parameters: int, rows: int) -> str:
    """What theory says of so many rows: a well-specified model loses p / (2n) nats (Akaike 1974)."""
    nats = parameters / (2 * rows)
    points = nats / study.of_baseline["size.log_loss"] if not np.isnan(against(study, "size")).any() else math.nan
    of_skill = "" if math.isnan(points) else f", {points:.5f} skill points"
    return f"To compare: a well-specified model of {parameters} parameters loses p/(2n) = {nats:.6f} nats{of_skill}."
