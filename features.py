"""Columns that a model derives from the prepared ones, transformers and estimators of your own.

`model.features` in params.yaml names a function that gets the DataFrame of `model.columns` and returns the one that the
preprocessing sees, row by row. `train.estimator` may name a function that returns a whole estimator. The file is part
of each model that uses it, so it may import installed packages alone. docs/own-model.md starts here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def add_features(trips: pd.DataFrame) -> pd.DataFrame:
    """Add the trip's duration in minutes, its average speed in miles per hour, and the weekday (0 is Monday)."""
    minutes = (trips["dropoff_datetime"] - trips["pickup_datetime"]).dt.total_seconds() / 60
    return trips.drop(columns="dropoff_datetime").assign(
        duration=minutes,
        speed=(trips["trip_distance"] / (minutes / 60)).where(minutes > 0),
        weekday=trips["pickup_datetime"].dt.day_of_week.astype("float64"),
    )
