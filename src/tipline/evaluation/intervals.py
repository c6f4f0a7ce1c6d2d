"""Confidence intervals of ratios of sums by day, which allow for days that resemble the day before, or by month."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import nctdtr, stdtrit

from tipline.arrays import Floats
from tipline.errors import format_count

CONFIDENCE = 0.95
# Nothing is judged on fewer days, and no group on fewer rows.
MIN_DAYS, MIN_ROWS = 14, 1000
# Surprises are rows whose outcome the baseline finds less likely. They have most of the loss.
MIN_SURPRISES = 25
# A block does not scatter around its own mean, so the error would be far too small if one had nearly all the weight.
MAX_WEIGHT = 0.25
WEEK = 7


def find_shortage(weights: Floats, days: int, surprises: int, by: str = "day") -> str | None:
    """Return why rows are not enough to give bounds, or None; `weights` are the denominators of the blocks."""
    if days < MIN_DAYS:
        return f"only {format_count(days, 'day')} to judge on, {MIN_DAYS} are needed"
    if surprises < MIN_SURPRISES:
        return f"only {format_count(surprises, 'row')} went against the baseline's odds, {MIN_SURPRISES} are needed"
    share = weights.max() / weights.sum()
    if share > MAX_WEIGHT:
        return f"one {by} has {share:.0%} of the weight, so the scatter between {by}s is not known"
    return None


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums over blocks, such as days."""

    value: float  # NaN if the denominators sum to zero
    error: float  # standard error; NaN with fewer than two blocks
    freedom: int  # degrees of freedom of Student's t

    @classmethod
    def estimate(cls, numerators: Floats, denominators: Floats, *, are_days: bool = True) -> Self:
        """Estimate from one numerator and one denominator per block; days have to be in order of time.

        Blocks that are not days count as independent: the error is that of the ratio estimator (Cochran 1977,
        "Sampling Techniques", 2.11), with blocks / (blocks - 1) because the ratio itself is estimated. Days may
        resemble their neighbours: the long-run variance of the residuals is the mean square of their slowest cosines,
        one per full week (EWC: Lazarus, Lewis, Stock & Watson 2018, "HAR inference").
        """
        blocks, total = len(numerators), float(np.sum(denominators))
        freedom = max(blocks // WEEK, 1) if are_days else blocks - 1
        if total == 0:
            return cls(math.nan, math.nan, freedom)
        value = float(np.sum(numerators)) / total
        if blocks < 2:  # noqa: PLR2004 (one block has no spread)
            return cls(value, math.nan, freedom)
        residuals = np.asarray(numerators) - value * np.asarray(denominators)
        if are_days:
            waves = np.cos(np.pi * np.outer(np.arange(1, freedom + 1), np.arange(blocks) + 0.5) / blocks)
            residuals = math.sqrt(2) * waves @ residuals
        else:
            residuals = math.sqrt(blocks) * residuals
        return cls(value, float(np.linalg.norm(residuals)) / math.sqrt(freedom) / total, freedom)

    def bounds(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the one-sided lower bound and the one-sided upper bound, or NaN."""
        width = float(stdtrit(self.freedom, confidence)) * self.error
        return self.value - width, self.value + width

    def power(self, margin: float) -> float:
        """Return how often the lower bound would exceed -margin if the true ratio were 0, given this error."""
        if self.error == 0:
            return float(margin > 0)
        critical = stdtrit(self.freedom, CONFIDENCE)
        return 1 - float(nctdtr(self.freedom, margin / self.error, critical))
