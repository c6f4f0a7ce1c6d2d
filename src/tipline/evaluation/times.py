"""Prepared times as numbers, and their days: the blocks that rows are taken together by."""

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
    """Microseconds since 1970 of each time."""
    return fill_nulls(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), missing)


def read_days(column: pa.Array) -> Codes:
    """Days since 1970 of each time; a missing time counts as the first of them."""
    codes: Codes = (read_microseconds(column) // DAY_MICROSECONDS).astype(np.int32)
    return codes


def rank_values(values: Codes) -> Codes:
    """Each value's place among the different ones, in their order."""
    codes: Codes = np.unique(values, return_inverse=True)[1].astype(np.int32)
    return codes
