"""How much a larger sample still gains, from a study of several sizes: paired differences to the largest size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from tipline.errors import format_count
from tipline.evaluation import metrics
from tipline.evaluation.intervals import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.model.pyfunc import Floats, Matrix

    Cube = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]

DRAWS = 2000
SEED = 2009
BAND = (0.05, 0.95)
EXPONENTS = np.linspace(0.3, 1.5, 49)
POINTS = 40
FEWEST_SIZES = 4  # a power law has three parameters
WHERE = "params.yaml, learning_curve"


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


def nothing_to_gain(study: Study, name: str = "validation") -> bool:
    """Whether the baseline's log-loss is next to nothing: what is divided by it says nothing."""
    return study.of_baseline[f"{name}.log_loss"] < metrics.NEXT_TO_NOTHING


def against(study: Study, name: str) -> Floats:
    """The baseline's sums by day, which make skill of sums of losses; NaN where they leave nothing to gain."""
    return np.full_like(study.baseline[name], np.nan) if nothing_to_gain(study, name) else study.baseline[name]


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
    """Skill of the largest size above that of each on the `validation` rows, and its one-sided 95% upper bound.

    Paired: same rows, same repeat. Given the pool, repeats are independent; that they share rows moves the loss of all
    sizes alike, so it is not in the difference (docs/learning-curve.md).
    """
    mean, draws = bootstrap(study.sums["validation"] - study.sums["validation"][-1], against(study, "validation"))
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


def extrapolate_skill(study: Study, available: int) -> dict[str, Any] | None:
    """A power law through the skill on the `validation` rows, with its 90% interval, up to the rows available.

    Returns
    -------
    dict or None
        limit (skill of endless rows), exponent, misses (sizes whose own interval the law is not in: it is no law
        then), and lists rows, skill, low, high. None of fewer than four sizes, of a single repeat or day, or without a
        baseline to gain on.
    """
    mean, draws = bootstrap(study.sums["validation"], against(study, "validation"))
    if len(study.sizes) < FEWEST_SIZES or not np.isfinite(draws).all():
        return None
    spread = study.sums["validation"].sum(axis=2).std(axis=1)
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
    def of(cls, there: int, max_rows: int | None) -> Bound:
        """The least of the sample's rows and what the budget allows."""
        bounds = [cls(there, f"all {there:,} rows of the sample")]
        if max_rows is not None:
            bounds.append(cls(max_rows, f"the {max_rows:,} rows that learning_curve.max_rows allows"))
        return min(bounds, key=lambda bound: bound.rows)


def choose_size(study: Study, min_gain: float, most: Bound, parameters: int | None) -> dict[str, Any]:
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
    if unknown(study):
        upper = np.full_like(upper, np.nan)
    enough = [index for index in range(len(study.sizes) - 1) if upper[index] < min_gain]
    rows = study.sizes[enough[0]] if enough else most.rows
    table = [
        figures
        | {"behind_largest": float(behind), "behind_largest_upper": float(at_most)}
        | {"well_specified_nats": parameters / (2 * size) if parameters else math.nan}
        for size, figures, behind, at_most in zip(study.sizes, of_sizes(study), mean, upper, strict=True)
    ]
    return {
        "rows": rows,
        "levelled_off": bool(enough),
        "reason": reason(study, min_gain, float(upper[enough[0]]) if enough else None, most, rows),
        "sanity": parameters and sanity(study, parameters, rows),
        "min_gain": min_gain,
        "baseline": defined(study.of_baseline),
        "sizes": [defined(figures) for figures in table],
    }


def of_sizes(study: Study) -> list[dict[str, float]]:
    """Of each size its rows, the means of its figures, and skill with its interval on both sets."""
    bands = {name: bootstrap(study.sums[name], against(study, name)) for name in study.sums}
    return [
        {"rows": size}
        | {name: float(values[index].mean()) for name, values in study.figures.items()}
        | {f"{name}.{figure}": value for name, band in bands.items() for figure, value in of_band(band, index).items()}
        for index, size in enumerate(study.sizes)
    ]


def of_band(band: tuple[Floats, Matrix], index: int) -> dict[str, float]:
    """Skill of one size, with the ends of its 90% interval."""
    losses, draws = band
    low, high = np.quantile(1 - draws[:, index], BAND)
    return {"skill": float(1 - losses[index]), "skill_low": float(low), "skill_high": float(high)}


def defined(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures with None for NaN, as json has no other word for it."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def unknown(study: Study) -> str | None:
    """Why nothing can be said of smaller sizes; None where something can."""
    _, repeats, days = study.sums["validation"].shape
    if nothing_to_gain(study):
        return "The baseline leaves nothing to gain on the `validation` rows"
    if math.isnan(study.of_baseline["validation.auc"]):  # of one class, nothing has an AUC
        return "All of the `validation` rows tipped, or none: they cannot tell a good model from a bold one"
    if len(study.sizes) == 1:
        return "One size alone says nothing about smaller ones"
    if min(repeats, days) < 2:  # noqa: PLR2004 (one has no spread)
        return f"Of {format_count(repeats, 'repeat')} and {format_count(days, 'day')} there is no telling how sure the curve is"
    return None


def reason(study: Study, min_gain: float, upper: float | None, most: Bound, rows: int) -> str:
    """Why so many rows, in one sentence; `upper` is None where no size below the largest is enough."""
    largest, untold = study.sizes[-1], unknown(study)
    if untold:
        return f"{untold}, so {most.words} are used."
    if upper is None:
        return (
            f"The curve has not levelled off: no smaller size is shown to be within {min_gain:g} skill points of "
            f"{largest:,} rows, so {most.words} are used, and a larger sample would help."
        )
    return (
        f"{rows:,} rows: with 95% confidence, {largest:,} rows add less than {min_gain:g} skill points "
        f"(at most {max(upper, 0):.5f})."
    )


def sanity(study: Study, parameters: int, rows: int) -> str:
    """What theory says of so many rows: a well-specified model loses p / (2n) nats (Akaike 1974)."""
    nats = parameters / (2 * rows)
    of_skill = "" if nothing_to_gain(study) else f", {nats / study.of_baseline['validation.log_loss']:.5f} skill points"
    return f"To compare: a well-specified model of {parameters} parameters loses p/(2n) = {nats:.6f} nats{of_skill}."
