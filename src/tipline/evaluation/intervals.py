"""How sure a ratio of sums is: rows of one day go together, so days (or months) are what is counted as independent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import nct
from scipy.stats import t as student

if TYPE_CHECKING:
    from tipline.model.pyfunc import Floats

CONFIDENCE = 0.95
# Of fewer days nothing is judged, and of a group with fewer rows neither.
MIN_DAYS, MIN_ROWS = 14, 1000


@dataclass(frozen=True)
class Ratio:
    """The sum of numerators by the sum of denominators, over blocks that are taken as independent.

    Attributes
    ----------
    value
        The ratio; NaN where the denominators sum up to nothing.
    error
        Its standard error, NaN of fewer than two blocks.
    blocks
        How many there are; the bounds use Student's t with one degree of freedom less.
    """

    value: float
    error: float
    blocks: int

    @classmethod
    def estimate(cls, numerators: Floats, denominators: Floats) -> Ratio:
        """Estimate from one sum a block.

        The error is that of the ratio estimator (Cochran 1977, "Sampling Techniques", 2.11), with blocks / (blocks - 1)
        for the estimated ratio.
        """
        blocks, total = len(numerators), float(np.sum(denominators))
        if total == 0:
            return cls(math.nan, math.nan, blocks)
        value = float(np.sum(numerators)) / total
        if blocks < 2:  # noqa: PLR2004 (one block has no spread)
            return cls(value, math.nan, blocks)
        residuals = np.asarray(numerators) - value * np.asarray(denominators)
        return cls(value, math.sqrt(blocks / (blocks - 1) * float(residuals @ residuals)) / total, blocks)

    def lower(self, confidence: float = CONFIDENCE) -> float:
        """The one-sided lower bound; NaN where there is none."""
        return self.value - self._quantile(confidence) * self.error

    def upper(self, confidence: float = CONFIDENCE) -> float:
        """The one-sided upper bound; NaN where there is none."""
        return self.value + self._quantile(confidence) * self.error

    def power(self, margin: float, confidence: float = CONFIDENCE) -> float:
        """How often the lower bound would be above -margin if the true ratio were 0, with this error."""
        if math.isnan(self.error):
            return 0.0
        if self.error == 0:
            return float(margin > 0)
        freedom = self.blocks - 1
        return float(nct.sf(student.ppf(confidence, freedom), freedom, margin / self.error))

    def _quantile(self, confidence: float) -> float:
        return float(student.ppf(confidence, self.blocks - 1)) if self.blocks > 1 else math.nan
