"""Functions of the built-in pipeline. Each model carries this file, so that it loads without tipline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]

OTHER, MISSING = "(other)", "(missing)"


class OtherLevel(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Replace categories that training does not have by a level `(other)`, whose effect is learned from hidden values.

    `fit_transform` hides a share of the values of each column, at least one, behind `(other)`; `seed` and the position
    of a row decide which. `transform` replaces the values that the others do not have. Missing values are a level
    `(missing)` if the others have some, otherwise `(other)`. The result is categorical, with numbers as text.

    `levels` lists the values of each column that may be kept; by default all may. After the fit, `levels_` lists the
    levels of each column.
    """

    def __init__(self, share: float = 0.01, seed: int = 0, levels: Sequence[Sequence[Any]] | None = None) -> None:
        self.share, self.seed, self.levels = share, seed, levels

    def fit(self, X: pd.DataFrame, y: object = None) -> OtherLevel:  # noqa: N803 (scikit-learn's name)
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: pd.DataFrame, y: object = None) -> pd.DataFrame:  # noqa: ARG002, N803
        draws = [np.random.default_rng([self.seed, index]).random(len(X)) for index in range(X.shape[1])]
        hidden = [draw <= max(self.share, draw.min(initial=1)) for draw in draws]
        self.levels_ = []
        for index, is_hidden in enumerate(hidden):
            rest = X.iloc[~is_hidden, index]
            found = rest.dropna().unique().tolist()
            kept = sorted(found) if self.levels is None else [v for v in self.levels[index] if v in set(found)]
            names = [*name_values(kept), OTHER, *[MISSING] * rest.hasnans]
            self.levels_.append(list(dict.fromkeys(names)))
        return self._replace(X, hidden)

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:  # noqa: N803
        return self._replace(X, [False] * X.shape[1])

    def _replace(self, frame: pd.DataFrame, hidden: Sequence[Any]) -> pd.DataFrame:
        columns = {}
        for (name, values), levels, is_hidden in zip(frame.items(), self.levels_, hidden, strict=True):
            codes, found = pd.factorize(values)  # -1 for missing ones, the last one of the places below
            places = {level: place for place, level in enumerate(levels)}
            other = places[OTHER]
            of_found = [places.get(level, other) for level in name_values(found.tolist())]
            new = np.where(is_hidden, other, np.array([*of_found, places.get(MISSING, other)])[codes])
            columns[name] = pd.Categorical.from_codes(new, pd.Index(levels))
        return pd.DataFrame(columns, index=frame.index)


def name_values(values: Sequence[Any]) -> list[str]:
    """Return categories as text; a number has one name, whether pandas holds it as an integer or not."""
    return [str(value if isinstance(value, str | bool) else float(value) + 0.0) for value in values]  # no -0.0


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
