"""Read values by their text, whatever type they were published with."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tipline.arrays import Floats, Values
from tipline.ingest.columns import TIME
from tipline.ingest.schema import EPOCHS, is_text_type

BOOLEANS = dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True)
BOOLEANS |= dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False)

ISO = "ISO8601"
IS_ISO = r"\s*\d{4}-\d\d-\d\d(?!\d)"  # pandas would also take 2009 for a time
HAS_ZONE = r":\d\d(?:\.\d+)? ?(?:Z|[-+]\d\d(?::?\d\d)?)\s*$"


def list_texts(values: pa.Array) -> list[str | None]:
    """Return values as text: "" for a missing one, None for bytes that are not UTF-8; 2.0 is "2"."""
    if is_text_type(values.type):
        values = values.cast(pa.large_binary())
    elif pa.types.is_temporal(values.type):  # Arrow's times reach further than Python's
        values = values.cast(pa.string())
    texts: list[str | None] = []
    for value in values.to_pylist():
        if isinstance(value, bytes):
            texts.append(value.decode() if is_utf8(value) else None)
        elif isinstance(value, float) and math.isfinite(value):
            texts.append(str(int(value) if value.is_integer() else value))
        else:
            texts.append("" if value is None or value != value else str(value))  # noqa: PLR0124 (NaN)
    return texts


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_numbers(texts: Sequence[str]) -> Floats:
    """Return texts as doubles, NaN for what is no number."""
    import pandas as pd  # noqa: PLC0415 (half a second, and most months do without)

    numbers: Floats = pd.to_numeric(pd.Series([*texts], dtype="str").str.strip(), errors="coerce").to_numpy(np.float64)
    return numbers


def read_times(texts: Sequence[str], forms: Sequence[str], zone: str | None) -> tuple[pa.Array, Values]:
    """Return the local times of `zone` that texts stand for, and which of the texts could be read.

    In ISO 8601 or one of `forms`. Without a zone, times with one and seconds since 1970, in UTC, cannot be read.
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
