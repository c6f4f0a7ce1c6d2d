"""Read times as numbers and days. Rows of one day are not independent, so intervals go by day."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tipline.model.pyfunc import fill_nulls

if TYPE_CHECKING:
    from tipline.model.pyfunc import Codes

    Times = np.ndarray[tuple[int], np.dtype[np.int64]]

DAY_MICROSECONDS = 86_400_000_000


def read_microseconds(column: pa.Array, missing: int = 0) -> Times:
    """Return each time in microseconds since 1970."""
    return fill_nulls(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), missing)


def read_days(column: pa.Array) -> Codes:
    """Return each time in days since 1970; a missing time is 1970-01-01."""
    codes: Codes = (read_microseconds(column) // DAY_MICROSECONDS).astype(np.int32)
    return codes


def rank_values(values: Codes) -> Codes:
    """Return each value's rank among the distinct values, from 0."""
    codes: Codes = np.unique(values, return_inverse=True)[1].astype(np.int32)
    return codes
