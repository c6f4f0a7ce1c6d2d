"""Simulated months look like the published ones of their time, and are the same on each run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tipline.errors import NotPublishedError, TiplineError
from tipline.ingest import simulate

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]

NAMES_2009 = {
    "payment_type": "Payment_Type",
    "tip_amount": "Tip_Amt",
    "fare_amount": "Fare_Amt",
    "extra": "surcharge",
    "passenger_count": "Passenger_Count",
    "trip_distance": "Trip_Distance",
    "tpep_pickup_datetime": "Trip_Pickup_DateTime",
}
AMOUNTS = ["fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge"]


def simulate_table(folder: Path, month: str, rows: int, seed: int = 1) -> pa.Table:
    simulate.simulate_month(folder / "month.parquet", month, rows, seed)
    return pq.read_table(folder / "month.parquet")


def read_column(table: pa.Table, name: str) -> Array:
    """A column of either format by its name since 2011."""
    values: Array = table[NAMES_2009.get(name, name) if "vendor_name" in table.column_names else name].to_numpy()
    return values


def is_card(table: pa.Table) -> Array:
    return np.isin(
        read_column(table, "payment_type"), [1] if "VendorID" in table.column_names else ["Credit", "CREDIT"]
    )


def measure_tip_rates(table: pa.Table) -> tuple[float, float]:
    """The share of tipped trips among those paid by card, and among the others."""
    labels, card = read_column(table, "tip_amount") > 0, is_card(table)
    return float(labels[card].mean()), float(labels[~card].mean())


@pytest.fixture(scope="module")
def january_2009(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return simulate_table(tmp_path_factory.mktemp("2009"), "2009-01", 500_000)


@pytest.fixture(scope="module")
def january_2024(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return simulate_table(tmp_path_factory.mktemp("2024"), "2024-01", 500_000)


@pytest.mark.parametrize(("month", "digest"), [("2009-11", "990f32c3a1cb020e"), ("2025-03", "f61a62e5ae5d6844")])
def test_the_values_of_a_month_never_change(tmp_path: Path, month: str, digest: str) -> None:
    table = simulate_table(tmp_path, month, 3000)
    assert hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()[:16] == digest
    first = (tmp_path / "month.parquet").read_bytes()
    simulate_table(tmp_path, month, 3000)
    assert (tmp_path / "month.parquet").read_bytes() == first


def test_another_month_or_seed_gives_other_trips(tmp_path: Path) -> None:
    cases = (("2009-01", 1), ("2009-02", 1), ("2009-01", 2))
    assert len({tuple(simulate_table(tmp_path, name, 1000, seed)["Fare_Amt"].to_pylist()) for name, seed in cases}) == 3


@pytest.mark.parametrize("month", ["2009-11", "2025-01"])
def test_a_smaller_month_is_the_start_of_a_larger_one(tmp_path: Path, month: str) -> None:
    larger = simulate_table(tmp_path, month, 10_007)
    assert all(simulate_table(tmp_path, month, rows).equals(larger.slice(0, rows)) for rows in (1, 2, 1003))


def test_chunks_are_row_groups_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulate.CHUNK <= 2**20
    monkeypatch.setattr(simulate, "CHUNK", 1000)
    simulate_table(tmp_path, "2009-01", 2500)
    file = pq.ParquetFile(tmp_path / "month.parquet")
    groups = [file.read_row_group(group)["Fare_Amt"] for group in range(file.num_row_groups)]
    assert [len(group) for group in groups] == [1000, 1000, 500]
    assert not groups[0].equals(groups[1])
    assert file.schema_arrow.metadata is None


def test_the_names_and_types_are_those_that_were_published(tmp_path: Path, tlc: Path) -> None:
    for month, more in (("2009-01", []), ("2019-06", ["airport_fee"])):
        header = (tlc / "heads" / f"yellow_tripdata_{month}.csv").read_text().splitlines()[0]
        assert simulate_table(tmp_path, month, 1).column_names == [*header.split(","), *more]
    texts = ["vendor_name", "Trip_Pickup_DateTime", "Trip_Dropoff_DateTime", "Payment_Type"]
    schema = simulate.get_published_schema("2009-01")
    expected = dict.fromkeys(schema.names, pa.float64()) | dict.fromkeys(texts, pa.string())
    assert dict(zip(schema.names, schema.types, strict=True)) == expected | {"Passenger_Count": pa.int64()}


@pytest.mark.parametrize(
    ("month", "ids", "counts", "unused"),
    [
        ("2018-06", "int64", "int64", {"congestion_surcharge", "airport_fee"}),
        ("2018-07", "int64", "double", {"congestion_surcharge", "airport_fee"}),
        ("2019-01", "int64", "double", {"airport_fee"}),
        ("2020-11", "int64", "double", set()),
        ("2023-02", "int32", "int64", set()),
        ("2025-01", "int32", "int64", set()),
    ],
)
def test_types_change_when_the_published_ones_did(month: str, ids: str, counts: str, unused: set[str]) -> None:
    schema = simulate.get_published_schema(month)
    types = {field.name: str(field.type) for field in schema}
    assert {types[name] for name in ("VendorID", "PULocationID", "DOLocationID")} == {ids}
    assert {types[name] for name in ("passenger_count", "RatecodeID")} == {counts}
    assert {name for name, type_ in types.items() if type_ == "null"} == unused
    assert (types["tpep_pickup_datetime"], types["payment_type"], types["total_amount"]) == (
        "timestamp[us]",
        "int64",
        "double",
    )
    fee = "Airport_fee" if month >= "2023-02" else "airport_fee"
    assert schema.names[18:] == ([fee, "cbd_congestion_fee"] if month >= "2025" else [fee])


def test_2009_looks_as_it_did(tmp_path: Path, january_2009: pa.Table) -> None:
    pairs = january_2009.group_by(["vendor_name", "Payment_Type"]).aggregate([]).to_pylist()
    words = {"CMT": ("Cash", "Credit", "No Charge", "Dispute"), "DDS": ("CASH", "CREDIT"), "VTS": ("CASH", "Credit")}
    expected = {(vendor, word) for vendor, written in words.items() for word in written}
    assert {(pair["vendor_name"], pair["Payment_Type"]) for pair in pairs} == expected
    times = [january_2009[f"Trip_{end}_DateTime"].cast(pa.timestamp("s")).to_numpy() for end in ("Pickup", "Dropoff")]
    assert (times[0].astype("M8[M]") == np.datetime64("2009-01")).mean() > 0.9999
    assert (times[0] <= times[1]).all()
    assert (np.diff(times[0]) < np.timedelta64(0, "s")).mean() == pytest.approx(0.5, abs=0.01)  # in no order
    assert january_2009["Rate_Code"].null_count == len(january_2009)
    hour, extra = times[0].astype("M8[h]").astype(int) % 24, read_column(january_2009, "extra")
    assert set(extra[(hour >= 20) | (hour < 6)]) == {0.5}
    assert set(extra[(hour >= 6) & (hour < 16)]) == {0.0}
    assert set(extra[(hour >= 16) & (hour < 20)]) == {0.0, 1.0}
    for month, share in (("2009-10", 0.0), ("2009-11", 0.94)):
        tax = simulate_table(tmp_path, month, 10_000)["mta_tax"]
        assert pc.is_in(tax, pa.array([0.5])).to_numpy().mean() == pytest.approx(share, abs=0.01)


def test_flex_fares_are_blank_where_published_ones_are(tmp_path: Path, january_2024: pa.Table) -> None:
    flex = january_2024.filter(pc.equal(january_2024["payment_type"], 0))
    blank = {"passenger_count", "RatecodeID", "store_and_fwd_flag", "congestion_surcharge", "Airport_fee"}
    assert {name: flex[name].null_count for name in flex.column_names if flex[name].null_count} == dict.fromkeys(
        blank, len(flex)
    )
    assert january_2024["passenger_count"].null_count == len(flex) > 0
    assert 0 not in simulate_table(tmp_path, "2020-12", 1000)["payment_type"].to_pylist()


def test_totals_add_up(january_2009: pa.Table, january_2024: pa.Table) -> None:
    total = sum(january_2009[name].to_numpy() for name in ("Fare_Amt", "surcharge", "Tip_Amt", "Tolls_Amt"))
    assert np.abs(january_2009["Total_Amt"].to_numpy() - total).max() < 0.006
    known = january_2024.filter(pc.not_equal(january_2024["payment_type"], 0))
    total = sum(known[name].to_numpy() for name in (*AMOUNTS, "congestion_surcharge", "Airport_fee"))
    assert np.abs(known["total_amount"].to_numpy() - total).max() < 0.006


def test_a_few_values_are_as_wrong_as_published_ones(january_2009: pa.Table, january_2024: pa.Table) -> None:
    for table, year in ((january_2009, 2009), (january_2024, 2024)):
        fares, passengers = read_column(table, "fare_amount"), read_column(table, "passenger_count")
        times = table["Trip_Pickup_DateTime" if year == 2009 else "tpep_pickup_datetime"]
        years = times.cast(pa.timestamp("us")).to_numpy().astype("M8[Y]").astype(int) + 1970
        far = read_column(table, "trip_distance") == 259_777
        kinds = [
            fares > 400_000,
            fares < 0,
            far,
            passengers == 0,
            passengers == 208,
            years < year - 1,
            years > year + 1,
        ]
        assert all(1 <= rows.sum() <= len(table) / 5000 for rows in kinds)


def test_tips_and_cards_are_as_real_ones_and_drift_slowly(
    tmp_path: Path, january_2009: pa.Table, january_2024: pa.Table
) -> None:
    for table, share in ((january_2009, 0.21), (january_2024, 0.78)):
        assert list(measure_tip_rates(table)) == pytest.approx([0.965, 0.0003], abs=0.01)
        assert 0 < measure_tip_rates(table)[1] < 0.001
        assert is_card(table).mean() == pytest.approx(share, abs=0.03)
    months = [f"{year}-{half}" for year in (2009, *range(2011, 2036)) for half in ("01", "07")]
    tables = [simulate_table(tmp_path, month, 5000) for month in (*months, "2999-12")]
    cards, tips = [is_card(table).mean() for table in tables], [measure_tip_rates(table)[0] for table in tables]
    assert 0.18 < min(cards) < 0.25
    assert 0.75 < max(cards) < 0.86
    assert np.abs(np.diff(cards[2:])).max() < 0.06
    assert 0.94 < min(tips) < max(tips) < 0.99


def test_a_plain_model_learns_a_little_more_than_the_card(tmp_path: Path, january_2009: pa.Table) -> None:
    def build_features(table: pa.Table) -> Array:
        hour = pc.hour(table["Trip_Pickup_DateTime"].cast(pa.timestamp("s"))).to_numpy()
        vendors = [pc.equal(table["vendor_name"], vendor).to_numpy() for vendor in ("CMT", "DDS")]
        limits = {"passenger_count": 9, "trip_distance": 100, "fare_amount": 500, "extra": 1}
        amounts = [read_column(table, name).clip(0, limit) for name, limit in limits.items()]
        return np.column_stack([is_card(table), *vendors, *(values / values.std() for values in (hour, *amounts))])

    train, later = january_2009.slice(0, 100_000), simulate_table(tmp_path, "2009-02", 100_000)
    model = LogisticRegression(max_iter=1000).fit(build_features(train), read_column(train, "tip_amount") > 0)
    labels = read_column(later, "tip_amount") > 0
    baseline = log_loss(labels, np.where(is_card(later), *measure_tip_rates(train)))
    skill = 1 - log_loss(labels, model.predict_proba(build_features(later))[:, 1]) / baseline
    assert 0.03 < skill < 0.08


@pytest.mark.parametrize("month", ["2010-01", "2010-12", "2008-12"])
def test_months_without_a_simulation_are_refused(tmp_path: Path, month: str) -> None:
    with pytest.raises(NotPublishedError, match=month):
        simulate.simulate_month(tmp_path / "trips.parquet", month, 1, 1)
    assert not (tmp_path / "trips.parquet").exists()


@pytest.mark.parametrize("month", ["2009", "2009-13", "2009-1", "2009-01-01", "January", ""])
def test_what_is_not_a_month_is_refused(tmp_path: Path, month: str) -> None:
    with pytest.raises(TiplineError, match="not a month"):
        simulate.simulate_month(tmp_path / "trips.parquet", month, 1, 1)
