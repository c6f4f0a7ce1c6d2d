"""Read times that are written as text or as numbers, in ISO 8601 or in forms that the schema names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tipline.arrays import Values
from tipline.ingest.columns import TIME
from tipline.ingest.schema import EPOCHS

ISO = "ISO8601"
IS_ISO = r"\s*\d{4}-\d\d-\d\d(?!\d)"  # pandas would also take 2009 for a time
HAS_ZONE = r":\d\d(?:\.\d+)? ?(?:Z|[-+]\d\d(?::?\d\d)?)\s*$"


def read_times(texts: Sequence[str], forms: Sequence[str], zone: str | None) -> tuple[pa.Array, Values]:
    """Return the local times of `zone` that texts stand for, and which of the texts could be read.

    They are in ISO 8601 or one of `forms`. Without a zone, times with one cannot be read, nor seconds since 1970, which
    are of UTC.
    """
    import pandas as pd  # noqa: PLC0415 (half a second, and most months do without)

    given: Any = pd.Series([*texts], dtype="str").str.replace(r" UTC\s*$", "Z", regex=True)
    has_zone = given.str.contains(HAS_ZONE, regex=True, na=False).to_numpy()
    times: Any = pd.Series(pd.NaT, given.index, dtype="datetime64[us]")
    is_read = np.zeros(len(given), np.bool_)
    for form in (ISO, *forms):
        if form in EPOCHS:
            found = pd.to_datetime(pd.to_numeric(given, errors="coerce"), unit=EPOCHS[form], errors="coerce", utc=True)
        else:
            fits = given.str.match(IS_ISO) if form == ISO else ~has_zone
            found = pd.to_datetime(given.str.strip().where(fits), format=form, errors="coerce", utc=True)
        is_zoned = has_zone | (form in EPOCHS)
        local = found.dt.tz_convert(zone or "UTC").dt.tz_localize(None)
        found = local.where(is_zoned, found.dt.tz_localize(None))
        fits = found.notna().to_numpy() & ~is_read & ((zone is not None) | ~is_zoned)
        times, is_read = times.where(~fits, found.dt.as_unit("us")), is_read | fits
    return pa.array(times, from_pandas=True).cast(TIME), is_read
