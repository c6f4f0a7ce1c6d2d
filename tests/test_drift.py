"""Drift: what the reference holds, PSI and its bound, and features that give the target away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from tests import workbench
from tests.test_baseline import TARGET, coded
from tipline.evaluation import histograms, metrics
from tipline.model import artifact
from tipline.model.pyfunc import OUTPUT
from tipline.monitoring import drift
from tipline.training import leaks

if TYPE_CHECKING:
    from tipline.model.pyfunc import Probabilities

FEATURES = [
    {"name": "vendor", "kind": "category"},
    {"name": "pickup_datetime", "kind": "hour"},
    {"name": "fare_amount", "kind": "number"},
    {"name": "extra", "kind": "number"},
    {"name": "fee", "kind": "number"},
]
SPEC: dict[str, Any] = {
    "target": TARGET,
    "time": "pickup_datetime",
    "features": FEATURES,
    "baseline": {"by": ["vendor"], "overall": 0.3, "rates": {}},
}
VENDORS = ["CMT", "VTS", "Helix"]


def trips(rows: int = 20_000, days: int = 28, seed: int = 1, **changed: Any) -> pa.RecordBatch:
    """Rows of a month; `fee` is the same in all of them."""
    generator = np.random.default_rng(seed)
    first = np.datetime64("2009-01-01", "us")
    labels = generator.random(rows) < 0.3
    columns = {
        "vendor": coded([VENDORS[place] for place in (generator.random(rows) < 0.4).astype(int)], VENDORS),
        "pickup_datetime": pa.array(first + generator.integers(0, days * 86400, rows).astype("timedelta64[s]")),
        "fare_amount": pa.array(generator.lognormal(2, 0.5, rows)),
        "extra": pa.array(generator.choice([0.0, 0.5, 1.0], rows, p=[0.5, 0.3, 0.2])),
        "fee": pa.array(np.full(rows, 0.5)),
        TARGET: pa.array(np.where(labels, 2.0, 0.0)),
        **changed,
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def scores(rows: pa.RecordBatch) -> Probabilities:
    return np.linspace(0, 1, len(rows)).astype(np.float32)


def reference(rows: pa.RecordBatch) -> dict[str, Any]:
    return drift.build_reference(rows, SPEC, scores(rows))


def judged(of_reference: dict[str, Any], month: pa.RecordBatch) -> dict[str, Any]:
    """PSI of each feature of a month."""
    bins = of_reference["features"]
    found = {name: histograms.count_column(month[name], bins[name]) for name in bins}
    return {name: drift.judge_drift(bins[name], drift.scale_histogram(found[name], len(month))) for name in bins}


def test_bins_hold_about_a_tenth_of_the_rows_and_frequent_values_alone() -> None:
    of_reference = reference(trips())
    features = of_reference["features"]
    assert (of_reference["rows"], of_reference["days"]) == (20_000, 28)
    assert features["vendor"]["values"] == ["CMT", "VTS"]
    assert len(features["pickup_datetime"]["counts"]) == 24 + 1
    assert 9 <= len(features["fare_amount"]["starts"]) <= 11
    assert np.ptp(features["fare_amount"]["counts"][:-1]) < 800
    # Each of its values, and what lies between and beyond them.
    rows = np.unique(trips()["extra"].to_numpy(), return_counts=True)[1].tolist()
    assert [count for count in features["extra"]["counts"] if count] == rows
    assert sum(features["fee"]["counts"]) == max(features["fee"]["counts"]) == 20_000
    assert sum(of_reference["score"]["counts"]) == 20_000


def test_the_reference_is_the_same_each_time() -> None:
    assert reference(trips()) == reference(trips())


def test_a_month_like_the_reference_has_not_drifted() -> None:
    found = judged(reference(trips()), trips(seed=2))
    assert all(one["psi"] < 0.01 and one["flagged"] is False for one in found.values())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vendor", coded(["VTS", "Helix"] * 10_000, VENDORS)),
        ("vendor", pa.DictionaryArray.from_arrays(pa.array([None] * 20_000, pa.int32()), pa.array(VENDORS))),
        ("fare_amount", pa.array(np.random.default_rng(3).lognormal(2.4, 0.5, 20_000))),
        ("fare_amount", pa.array([8.0, 9.0, None, 30.0] * 5000)),
        ("extra", pa.array([0.0, 0.5, 1.0, 1.5] * 5000)),
        ("fee", pa.array(np.full(20_000, 0.8))),
        ("pickup_datetime", pa.array(np.full(20_000, np.datetime64("2009-02-01T12", "us")))),
    ],
    ids=["new category", "no category", "higher", "missing", "beyond the ends", "another constant", "one hour"],
)
def test_what_has_drifted_is_flagged_alone(name: str, values: pa.Array) -> None:
    found = judged(reference(trips()), trips(seed=2, **{name: values}))
    assert [one for one in found if found[one]["flagged"]] == [name]
    assert np.isfinite(found[name]["psi"])


def test_what_days_of_the_reference_differ_by_is_not_flagged() -> None:
    # All rows of a day have one vendor: days drawn again differ by far more than 0.1.
    days = np.arange(14_000) % 14
    times = pa.array(np.datetime64("2009-01-01", "us") + days.astype("timedelta64[D]"))
    rows = trips(14_000, vendor=coded([VENDORS[day % 2] for day in days], VENDORS), pickup_datetime=times)
    of_reference = reference(rows)
    found = judged(of_reference, trips(14_000, vendor=coded((["CMT"] * 7 + ["VTS"] * 3) * 1400, VENDORS)))
    assert 0.1 < found["vendor"]["psi"] < of_reference["features"]["vendor"]["psi_bound"]
    assert found["vendor"]["flagged"] is False


def test_under_fourteen_days_there_is_no_bound_and_no_flag() -> None:
    of_reference = reference(trips(days=13))
    found = judged(of_reference, trips(seed=2, fee=pa.array(np.full(20_000, 0.8))))
    assert {one["psi_bound"] for one in of_reference["features"].values()} == {None}
    assert found["fee"]["psi"] > 1
    assert found["fee"]["flagged"] is None


def test_psi_is_the_sum_over_bins() -> None:
    expected = (0.6 - 0.5) * np.log(0.6 / 0.5) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    assert drift.compute_psi([5e9, 5e9], [6, 4]) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(drift.compute_psi([5e9, 5e9], [[6, 4], [5, 5]]), [expected, 0], atol=1e-9)


def test_bins_that_are_empty_on_both_sides_add_nothing() -> None:
    assert drift.compute_psi([50, 50, 0], [5000, 5000, 0]) == pytest.approx(0)
    assert 0.1 < drift.compute_psi([50, 50, 0], [4000, 4000, 2000]) < 2


def test_a_month_without_rows_has_no_psi() -> None:
    of_reference = reference(trips())
    assert {one["psi"] for one in judged(of_reference, trips().slice(0, 0)).values()} == {None}


def test_a_feature_without_any_value_in_the_reference_can_be_compared() -> None:
    of_reference = reference(trips(fee=pa.nulls(20_000, pa.float64())))
    assert judged(of_reference, trips(fee=pa.nulls(20_000, pa.float64())))["fee"]["psi"] == pytest.approx(0)
    assert judged(of_reference, trips())["fee"]["flagged"] is True


# ---- leaks ----


def probed(rows: pa.RecordBatch, rate: float) -> list[dict[str, Any]]:
    """The probe of a model that knows the tip with this probability."""
    labels, _ = metrics.read_labels(rows, TARGET)
    probabilities = np.where(labels, rate, 1 - rate)
    return leaks.measure_columns_alone(
        rows, SPEC | {"reference": reference(rows)}, metrics.compute_log_loss(probabilities, labels)
    )


def test_a_feature_that_gives_the_target_away_is_named() -> None:
    rows = trips()
    planted = trips(extra=pa.array((rows[TARGET].to_numpy() > 0).astype(float)))
    found = probed(planted, 0.99)
    assert found[0]["feature"] == "extra"
    assert found[0]["share"] > 0.99
    (warning,) = leaks.format_warnings(found, SPEC)
    assert warning.startswith("extra alone reaches 10")
    assert not leaks.format_warnings(probed(rows, 0.9), SPEC)


@pytest.mark.parametrize(("share", "warned"), [(0.89, 0), (0.91, 1)])
def test_nine_tenths_of_the_gain_are_suspicious(share: float, warned: int) -> None:
    assert len(leaks.format_warnings([{"feature": "extra", "share": share}], SPEC)) == warned


def test_the_baselines_own_columns_may_do_as_well_as_the_model() -> None:
    rows = trips()
    labels = rows[TARGET].to_numpy() > 0
    planted = trips(vendor=coded([VENDORS[int(yes)] for yes in labels], VENDORS))
    found = probed(planted, 0.99)
    assert found[0]["feature"] == "vendor"
    assert not leaks.format_warnings(found, SPEC)


def test_a_model_that_gains_nothing_is_not_probed() -> None:
    assert probed(trips(), 0.5) == []


def test_the_simulated_months_give_no_warning(request: pytest.FixtureRequest) -> None:
    paths = workbench.trained(request)
    contents = artifact.read_artifact(paths.challenger)
    model = artifact.load_model(contents, artifact.hash_artifact(contents))
    rows = workbench.as_batch(workbench.read_prepared(paths, "2009-01"))
    labels, _ = metrics.read_labels(rows, TARGET)
    found = leaks.measure_columns_alone(rows, model.spec, metrics.compute_log_loss(model.probabilities(rows), labels))
    assert found[0]["feature"] == "payment_type"
    columns = {feature["name"] for feature in model.spec["features"]}
    assert {one["feature"] for one in found} == columns
    assert not leaks.format_warnings(found, model.spec)
    assert model.spec["reference"]["features"].keys() == columns == model.spec["canary"].keys() - {OUTPUT}
