"""Functions of the built-in pipeline. Each model carries this file, so that it loads without tipline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def apply_features(frame: pd.DataFrame, function: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Call the user's function on a copy of the frame; infinite numbers become missing, and nullable ones doubles.

    With a missing value among them, scikit-learn would take nullable numbers for objects, and encode them otherwise.
    Raises TypeError unless the function returns a frame of the same rows.
    """
    result: Any = function(frame.copy(deep=False))
    if not isinstance(result, pd.DataFrame) or not result.index.equals(frame.index):
        raise TypeError("it has to return a DataFrame with the rows and the index of the one that it is given")
    numbers = {str(name): values for name, values in result.items() if pd.api.types.is_numeric_dtype(values)}
    doubles = {
        name: values.astype("float64").replace([np.inf, -np.inf], np.nan)
        for name, values in numbers.items()
        if isinstance(values.dtype, pd.api.extensions.ExtensionDtype) or np.isinf(values).any()
    }
    return result.assign(**doubles)


def hour_of_day(frame: pd.DataFrame) -> Matrix:
    """Return the hour of the day of timestamps, NaN for a missing one."""
    return np.column_stack([frame[name].dt.hour.to_numpy(np.float64, na_value=np.nan) for name in frame])


def clip_numbers(frame: pd.DataFrame, low: Sequence[float], high: Sequence[float]) -> Matrix:
    """Return numbers as doubles, each column clipped to its plausible range; missing ones stay NaN."""
    result: Matrix = np.clip(frame.to_numpy(np.float64, na_value=np.nan), low, high)
    return result
