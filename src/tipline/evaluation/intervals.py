"""Confidence intervals of ratios of sums. Rows of one day go together; days (or months) count as independent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import nct
from scipy.stats import t as student

from tipline.arrays import Floats

CONFIDENCE = 0.95
# Nothing is judged on fewer days, and no group on fewer rows.
MIN_DAYS, MIN_ROWS = 14, 1000


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums over blocks that are taken as independent, such as days."""

    value: float  # NaN if the denominators sum to zero
    error: float  # standard error; NaN with fewer than two blocks
    blocks: int  # the bounds use Student's t with blocks - 1 degrees of freedom

    @classmethod
    def estimate(cls, numerators: Floats, denominators: Floats) -> Ratio:
        """Estimate from one numerator and one denominator per block.

        The error is that of the ratio estimator (Cochran 1977, "Sampling Techniques", 2.11), with blocks / (blocks - 1)
        because the ratio itself is estimated.
        """
        blocks, total = len(numerators), float(np.sum(denominators))
        if total == 0:
            return cls(math.nan, math.nan, blocks)
        value = float(np.sum(numerators)) / total
        if blocks < 2:  # noqa: PLR2004 (one block has no spread)
            return cls(value, math.nan, blocks)
        residuals = np.asarray(numerators) - value * np.asarray(denominators)
        return cls(value, math.sqrt(blocks / (blocks - 1) * float(residuals @ residuals)) / total, blocks)

    def bounds(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the one-sided lower bound and the one-sided upper bound, or NaN."""
        width = float(student.ppf(confidence, self.blocks - 1)) * self.error
        return self.value - width, self.value + width

    def power(self, margin: float) -> float:
        """Return how often the lower bound would exceed -margin if the true ratio were 0, given this error."""
        if self.error == 0:
            return float(margin > 0)
        freedom = self.blocks - 1
        return float(nct.sf(student.ppf(CONFIDENCE, freedom), freedom, margin / self.error))
