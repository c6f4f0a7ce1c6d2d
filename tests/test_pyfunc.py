"""The model's wrapper gives the same probability for a row, whichever way the row arrives."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tipline.config import Train
from tipline.model import artifact, pipeline, pyfunc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VENDOR = {"name": "vendor", "kind": "category", "categories": ["CMT", "DDS", "VTS"]}
PAYMENT = {"name": "payment_type", "kind": "category", "categories": ["cash", "credit"]}
TIME = {"name": "pickup_datetime", "kind": "hour"}
PASSENGERS = {"name": "passenger_count", "kind": "number", "range": [0, 9]}
FARE = {"name": "fare_amount", "kind": "number", "range": [0.0, 500.0]}
DISTANCE = {"name": "trip_distance", "kind": "number", "range": None}
EMPTY = {"name": "airport_fee", "kind": "number", "range": [0, 5]}
ALL: list[dict[str, Any]] = [VENDOR, TIME, PASSENGERS, DISTANCE, PAYMENT, FARE]
SELECTIONS: dict[str, list[dict[str, Any]]] = {
    "all kinds": ALL,
    "only categories": [PAYMENT, VENDOR],
    "only numbers": [FARE, DISTANCE],
    "a number that no training row has": [PAYMENT, EMPTY, FARE],
}
BASELINE = {"by": ["payment_type"], "overall": 0.5, "rates": {}}


def rows(count: int, seed: int) -> pa.RecordBatch:
    """Make trips with unknown and missing categories, missing times and numbers, numbers out of range."""
    generator = np.random.default_rng(seed)

    def holes(values: Any, type_: pa.DataType) -> pa.Array:
        return pa.array(values, type_, mask=generator.random(count) < 0.07)

    def category(values: Sequence[str]) -> pa.Array:
        codes = holes(generator.integers(0, len(values), count), pa.int32())
        return pa.DictionaryArray.from_arrays(codes, pa.array(values))

    start = datetime(2008, 12, 31)  # noqa: DTZ001 (the trips' times have no zone)
    times = [start + timedelta(seconds=int(second)) for second in generator.integers(0, 86_400 * 40, count)]
    columns = {
        "vendor": category(["VTS", "CMT", "Helix"]),
        "payment_type": category(["credit", "cash", "voided", "flex fare"]),
        "pickup_datetime": holes(times, pa.timestamp("us")),
        "passenger_count": holes(generator.integers(-3, 13, count), pa.int32()),
        "trip_distance": holes(generator.lognormal(1, 1, count), pa.float64()),
        "fare_amount": holes(generator.normal(100, 400, count), pa.float64()),
        "airport_fee": pa.array(generator.random(count), pa.float64()),
    }
    return pa.RecordBatch.from_pydict(columns)


def fitted(folder: Path, features: list[dict[str, Any]], estimator: str = "logistic_regression") -> pyfunc.Model:
    """Fit on trips whose tips depend on several columns, save, and load what was saved."""
    trips = rows(3000, 1)
    trips = trips.set_column(trips.schema.get_field_index("airport_fee"), "airport_fee", pa.nulls(3000, pa.float64()))
    credit = pyfunc.category_codes(trips["payment_type"], ["credit"]) == 0
    score = (
        credit
        + (pyfunc.encode_hours(trips["pickup_datetime"]) > 12)
        + trips["fare_amount"].fill_null(0).to_numpy() / 500
    )
    labels = score + np.random.default_rng(2).normal(0, 1, 3000) > 1.2
    train = Train(rows="auto", estimator=estimator, params={}, calibration=None, seed=0)
    unfitted, matrix = pipeline.build_pipeline(features, train, folder), pyfunc.build_matrix(trips, features)
    spec = {"format": artifact.FORMAT, "target": "tip_amount > 0", "features": features, "baseline": BASELINE}
    pipeline.save_model(folder, pipeline.fit_pipeline(unfitted, matrix, labels), spec)
    return pyfunc.Model(artifact.read_artifact(folder))


@pytest.fixture(scope="module", params=["logistic_regression", "hist_gradient_boosting"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pyfunc.Model:
    return fitted(tmp_path_factory.mktemp("model"), ALL, request.param)


@pytest.mark.parametrize("name", SELECTIONS)
def test_folded_model_equals_the_pipeline(tmp_path: Path, name: str) -> None:
    features = SELECTIONS[name]
    loaded = fitted(tmp_path, features)
    assert loaded.linear is not None
    trips = rows(2000, 3)
    expected: Any = loaded.estimator.predict_proba(pyfunc.build_matrix(trips, features))[:, 1]
    assert len(np.unique(expected)) > 2
    np.testing.assert_allclose(loaded.uncalibrated(trips), expected, rtol=1e-12)
    np.testing.assert_allclose(loaded.probabilities(trips), expected, rtol=0, atol=2**-25)


def test_row_has_the_same_score_in_any_batch(loaded: pyfunc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = rows(1501, 4)
    whole = loaded.probabilities(trips)
    assert whole.dtype == np.float32
    assert len(np.unique(whole)) > 100
    edges = [0, 1, 2, 9, 500, 501, 1499, 1501]
    slices = [trips.slice(low, high - low) for low, high in itertools.pairwise(edges)]
    assert np.concatenate([loaded.probabilities(part) for part in slices]).tobytes() == whole.tobytes()
    assert loaded.probabilities(pa.Table.from_batches([*slices, trips.slice(0, 0)])).tobytes() == whole.tobytes()
    empty = loaded.probabilities(pa.Table.from_batches([], schema=trips.schema))
    assert empty.shape == (0,)
    assert empty.dtype == np.float32
    # Each call of the trees takes a tenth of a second, whatever the rows.
    for chunk in (601, 1500, 1501, 10_000) if loaded.estimator.steps[0][0] == "classifier" else (1, 7, 64, 1500):
        monkeypatch.setattr(pyfunc, "CHUNK_ROWS", chunk)
        assert loaded.probabilities(trips).tobytes() == whole.tobytes(), chunk


def test_pandas_and_arrow_give_the_same_bytes(loaded: pyfunc.Model) -> None:
    trips = rows(1000, 6)
    assert trips["vendor"].null_count
    assert trips["passenger_count"].null_count
    plain = trips.to_pandas()
    texts, floats = ["vendor", "payment_type"], ["passenger_count", "trip_distance", "fare_amount"]
    floats_and_time = dict.fromkeys(floats, "float64") | {"pickup_datetime": "datetime64[us]"}
    missing = plain.astype(dict.fromkeys(texts, "object")).replace({np.nan: None})
    for frame in (
        plain,
        plain.astype(dict.fromkeys(texts, "str")),
        missing.astype(floats_and_time),
        plain.astype({"pickup_datetime": "datetime64[ns]"}),
        plain.astype({"passenger_count": "Int64", "trip_distance": "Float64"}),
        plain.assign(other=1)[[*reversed(plain.columns), "other"]],
    ):
        frame.index = pd.Index(range(10, 1010))
        predicted = loaded.predict(frame)
        assert predicted.index.equals(frame.index)
        assert predicted.dtypes.to_dict() == {"probability": np.float32}
        assert predicted["probability"].to_numpy().tobytes() == loaded.probabilities(trips).tobytes()
    nothing = pd.DataFrame({name: [None, None] for name in loaded.columns})
    assert loaded.predict(nothing)["probability"].between(0, 1).all()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_hours_are_those_of_the_day(unit: Any) -> None:
    hours = {
        "2009-01-01T00:59:59": 0,
        "2009-01-01T05:59:59.999999999": 5,
        "2009-01-31T23:59:59": 23,
        "1970-01-01T00:00:00": 0,
        "1969-12-31T23:59:59": 23,
        "1900-02-28T13:30:00": 13,
    }
    column = pa.array([*(np.datetime64(time, unit) for time in hours), None], pa.timestamp(unit))
    assert pyfunc.encode_hours(column).tolist() == [*hours.values(), 24]


def test_matrix_has_codes_clipped_numbers_and_nan_for_unlisted_values() -> None:
    trips = pa.RecordBatch.from_pydict(
        {
            "vendor": pa.array(["VTS", "Helix", None]).dictionary_encode(),
            "pickup_datetime": pa.array([datetime(2009, 1, 1, 17), None, None], pa.timestamp("us")),  # noqa: DTZ001
            "fare_amount": pa.array([-1.0, 600.0, None]),
            "trip_distance": pa.array([-5, 208, None], pa.int32()),
        }
    )
    matrix = pyfunc.build_matrix(trips, [VENDOR, TIME, FARE, DISTANCE])
    np.testing.assert_array_equal(matrix, [[2, 17, 0, -5], [np.nan, np.nan, 500, 208], [np.nan] * 4])
