"""The pipeline that tipline grew out of, in its own steps: Tom Augspurger, "Scalable Machine Learning (Part 1)", 2017.

Usage: python benchmarks/the_post.py fit|predict|predict-selected PROJECT FOLDER MONTH...

Its transformers on pandas, its logistic regression, `map_partitions` over row groups, `to_parquet`, on two processes;
the post read CSV files with the same types. `fit` keeps the pipeline, the others print {"seconds": s}, the time
without the workers' start. `predict` reads all columns but the tip, as the post does, `predict-selected` only those
that the pipeline selects.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Self

import joblib
import pandas as pd
import pyarrow.parquet as pq
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

WORKERS = 2
FIT_ROWS = 100_000
TARGET = "Tip_Amt"
TIMES = ["Trip_Pickup_DateTime", "Trip_Dropoff_DateTime"]
CATEGORIES = {"vendor_name": ["CMT", "DDS", "VTS"], "Payment_Type": ["cash", "credit", "dispute", "no charge"]}
SCALED = ["Trip_Distance", "Fare_Amt", "surcharge"]
COLUMNS = ["vendor_name", TIMES[0], "Passenger_Count", "Trip_Distance", "Payment_Type", "Fare_Amt", "surcharge"]


class Step(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer that has nothing to learn, but for the scaler."""

    def __init__(self, of: Any) -> None:  # noqa: ANN401 (columns, or categories by column)
        self.of = of

    def fit(self, X: pd.DataFrame, y: object = None) -> Self:  # noqa: N803
        del X, y
        return self


class Selected(Step):
    def transform(self, X: pd.DataFrame) -> pd.DataFrame:  # noqa: N803
        selected: pd.DataFrame = X[self.of]
        return selected


class HourOfDay(Step):
    def transform(self, X: pd.DataFrame) -> pd.DataFrame:  # noqa: N803
        return X.assign(**{name: X[name].dt.hour for name in self.of})


class Categorical(Step):
    def transform(self, X: pd.DataFrame) -> pd.DataFrame:  # noqa: N803
        X = X.copy()  # noqa: N806
        for name, categories in self.of.items():
            X[name] = X[name].astype("category").cat.set_categories(categories)
        return X


class Scaled(Step):
    def fit(self, X: pd.DataFrame, y: object = None) -> Self:  # noqa: N803
        del y
        self.mean_, self.std_ = X[self.of].mean(), X[self.of].std()
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:  # noqa: N803
        X = X.copy()  # noqa: N806
        X[self.of] = X[self.of].sub(self.mean_).div(self.std_)
        return X


def lower_payments(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(Payment_Type=frame["Payment_Type"].str.lower())


def pipeline() -> Pipeline:
    return make_pipeline(
        Selected(COLUMNS),
        HourOfDay(TIMES[:1]),
        FunctionTransformer(lower_payments),
        Categorical(CATEGORIES),
        FunctionTransformer(pd.get_dummies),
        Scaled(SCALED),
        LogisticRegression(max_iter=1000),  # today's solver does not converge in 100 steps; fitting is not timed
    )


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The types that the post's `read_csv` was told."""
    times = {name: pd.to_datetime(frame[name]) for name in TIMES if name in frame}
    return frame.astype(dict.fromkeys(CATEGORIES, "category")).assign(**times)


def fit(project: Path, path: Path) -> None:
    frame = typed(pq.ParquetFile(path).read_row_group(0).slice(0, FIT_ROWS).to_pandas())
    joblib.dump(pipeline().fit(frame.drop(columns=TARGET), frame[TARGET] > 0), project / "post.joblib")


def of_partition(frame: pd.DataFrame, fitted: Pipeline) -> pd.Series[float]:
    return pd.Series(fitted.predict_proba(typed(frame))[:, 1], name="yhat")


def predict(project: Path, folder: Path, paths: list[Path], columns: list[str] | None) -> float:
    import dask.dataframe as dd  # noqa: PLC0415
    from distributed import Client, LocalCluster  # noqa: PLC0415

    fitted = joblib.load(project / "post.joblib")
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        started = time.perf_counter()
        frame = dd.read_parquet(paths, split_row_groups=True, columns=columns)
        trips = frame if columns else frame.drop(columns=TARGET)
        yhat = trips.map_partitions(of_partition, fitted, meta=("yhat", "f8"))
        yhat.to_frame().to_parquet(folder)
        return time.perf_counter() - started


def main() -> None:
    case, project, folder, *months = sys.argv[1:]
    paths = [next((Path(project) / "data" / "raw" / month).glob("*.parquet")) for month in months]
    if case == "fit":
        fit(Path(project), paths[0])
        return
    columns = COLUMNS if case == "predict-selected" else None
    print(json.dumps({"seconds": predict(Path(project), Path(folder), paths, columns)}))


if __name__ == "__main__":
    # Under its own name: workers import what is here, they are not sent copies.
    importlib.import_module("the_post").main()
