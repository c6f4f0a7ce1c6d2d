"""Days of prepared times: the blocks that rows are taken together by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tipline.pyfunc import filled

if TYPE_CHECKING:
    from tipline.pyfunc import Codes

DAY_MICROSECONDS = 86_400_000_000


def days(column: pa.Array) -> Codes:
    """Days since 1970 of each time; a missing time counts as the first of them."""
    microseconds = filled(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), 0)
    codes: Codes = (microseconds // DAY_MICROSECONDS).astype(np.int32)
    return codes
