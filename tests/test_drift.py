"""Drift: the reference, PSI and its bound; features that give the target away."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.test_baseline import TARGET, coded
from tipline.evaluation import metrics
from tipline.monitoring import counts, drift
from tipline.monitoring.counts import Counts

KINDS = {"vendor": "category", "pickup_datetime": "hour", "fare_amount": "number", "extra": "number", "fee": "number"}
SPEC: dict[str, Any] = {
    "time": "pickup_datetime",
    "target": TARGET,
    "features": [{"name": name, "kind": kind} for name, kind in KINDS.items()],
    "baseline": {"by": ["vendor"], "overall": 0.3, "rates": {}},
}
VENDORS = ["CMT", "VTS", "Helix"]
ROWS = 20_000


def trips(rows: int = ROWS, days: int = 28, seed: int = 1, **changed: Any) -> pa.RecordBatch:
    """Rows of a month; `fee` is the same in all of them."""
    generator = np.random.default_rng(seed)
    seconds = generator.integers(0, days * 86400, rows).astype("timedelta64[s]")
    columns = {
        "vendor": coded([VENDORS[place] for place in (generator.random(rows) < 0.4).astype(int)], VENDORS),
        "pickup_datetime": pa.array(np.datetime64("2009-01-01", "us") + seconds),
        "fare_amount": pa.array(generator.lognormal(2, 0.5, rows)),
        "extra": pa.array(generator.choice([0.0, 0.5, 1.0], rows, p=[0.5, 0.3, 0.2])),
        "fee": pa.array(np.full(rows, 0.5)),
        "tip_amount": pa.array(np.where(generator.random(rows) < 0.3, 2.0, 0.0)),
        **changed,
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def build_reference(rows: pa.RecordBatch) -> dict[str, Any]:
    return drift.build_reference(rows, SPEC, np.linspace(0, 1, len(rows)).astype(np.float32), rows)


def measure_drift(reference: dict[str, Any], month: pa.RecordBatch) -> dict[str, Any]:
    """Return the drift of each feature of a month."""
    counted = {name: counts.count_column(month[name], bins) for name, bins in reference["features"].items()}
    measured = drift.measure_drift(Counts(rows=len(month), histograms=counted), reference)
    assert measured is not None
    return dict(measured["features"])


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return build_reference(trips())


def test_bins_hold_about_a_tenth_of_the_rows_and_frequent_values_alone(reference: dict[str, Any]) -> None:
    assert reference == build_reference(trips())
    features = reference["features"]
    assert (reference["rows"], reference["days"], sum(reference["score"]["counts"])) == (ROWS, 28, ROWS)
    assert features["vendor"]["values"] == ["CMT", "VTS"]
    assert len(features["pickup_datetime"]["counts"]) == 24 + 1
    assert 9 <= len(features["fare_amount"]["edges"]) <= 11
    assert np.ptp(features["fare_amount"]["counts"][:-1]) < 800
    # Each of its values has a bin, and so have the gaps between and beyond them.
    rows = np.unique(trips()["extra"].to_numpy(), return_counts=True)[1].tolist()
    assert [count for count in features["extra"]["counts"] if count] == rows
    assert sum(features["fee"]["counts"]) == max(features["fee"]["counts"]) == ROWS


def test_a_month_like_the_reference_has_not_drifted(reference: dict[str, Any]) -> None:
    measured = measure_drift(reference, trips(seed=2))
    assert all(one["psi"] < 0.01 and one["flagged"] is False for one in measured.values())
    assert {one["psi"] for one in measure_drift(reference, trips().slice(0, 0)).values()} == {None}
    # A feature may have no value in the reference, and in under fourteen days no feature has a bound.
    missing = trips(fee=pa.nulls(ROWS, pa.float64()))
    without = build_reference(missing)
    assert measure_drift(without, missing)["fee"]["psi"] == pytest.approx(0)
    assert measure_drift(without, trips())["fee"]["flagged"] is True
    measured = measure_drift(build_reference(trips(days=13)), trips(seed=2, fee=pa.array(np.full(ROWS, 0.8))))
    assert {(one["psi_bound"], one["flagged"]) for one in measured.values()} == {(None, None)}
    assert measured["fee"]["psi"] > 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vendor", coded(["VTS", "Helix"] * 10_000, VENDORS)),
        ("fare_amount", pa.array([8.0, 9.0, None, 30.0] * 5000)),
        ("extra", pa.array([0.0, 0.5, 1.0, 1.5] * 5000)),
        ("fee", pa.array(np.full(ROWS, 0.8))),
        ("pickup_datetime", pa.array(np.full(ROWS, np.datetime64("2009-02-01T12", "us")))),
    ],
    ids=["new category", "missing", "beyond the ends", "another constant", "one hour"],
)
def test_what_has_drifted_is_flagged_alone(reference: dict[str, Any], name: str, values: pa.Array) -> None:
    measured = measure_drift(reference, trips(seed=2, **{name: values}))
    assert [one for one in measured if measured[one]["flagged"]] == [name]
    assert np.isfinite(measured[name]["psi"])
    assert measured[name]["missing_rate"] == values.null_count / ROWS
    assert measured[name]["reference_missing_rate"] == 0


def test_values_that_a_month_rounds_otherwise_stay_in_their_bins() -> None:
    values = np.random.default_rng(1).choice([0.1, 0.7, 2.3], ROWS)
    measured = measure_drift(build_reference(trips(fee=pa.array(values))), trips(fee=pa.array(values.astype("f4"))))
    assert measured["fee"]["psi"] == 0


def test_differences_that_are_usual_between_days_are_not_flagged() -> None:
    # All rows of a day have one vendor: days drawn again differ by far more than 0.1.
    days = np.arange(14_000) % 14
    times = pa.array(np.datetime64("2009-01-01", "us") + days.astype("timedelta64[D]"))
    by_day = trips(14_000, vendor=coded([VENDORS[day % 2] for day in days], VENDORS), pickup_datetime=times)
    month = trips(14_000, vendor=coded((["CMT"] * 7 + ["VTS"] * 3) * 1400, VENDORS))
    vendor = measure_drift(build_reference(by_day), month)["vendor"]
    assert 0.1 < vendor["psi"] < vendor["psi_bound"]
    assert vendor["flagged"] is False


def test_psi_is_the_sum_over_bins() -> None:
    expected = (0.6 - 0.5) * np.log(0.6 / 0.5) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    np.testing.assert_allclose(drift.compute_psi([5e9, 5e9], [[6, 4], [5, 5]]), [expected, 0], atol=1e-9)
    assert drift.compute_psi([50, 50, 0], [5000, 5000, 0]) == pytest.approx(0)
    assert 0.1 < drift.compute_psi([50, 50, 0], [4000, 4000, 2000]) < 2


@pytest.mark.parametrize(
    ("column", "probability", "found"),
    [
        ("extra", 0.99, ["extra alone reaches 10"]),
        ("extra", 0.5, []),  # a model that gains nothing is not probed
        ("vendor", 0.99, []),  # a column of the baseline may do as well as the model
    ],
)
def test_a_feature_that_gives_the_target_away_is_named(column: str, probability: float, found: list[str]) -> None:
    labels, _ = metrics.read_labels(trips(), TARGET)
    vendors = coded([VENDORS[int(yes)] for yes in labels], VENDORS)
    given_away = {"extra": pa.array(labels.astype(float)), "vendor": vendors}
    rows = trips(**{column: given_away[column]})
    losses = metrics.compute_log_loss(np.where(labels, probability, 1 - probability), labels)
    warnings = drift.find_leaks(rows, SPEC | {"reference": build_reference(rows)}, losses, rows)
    assert [warning[: len("extra alone reaches 10")] for warning in warnings] == found
