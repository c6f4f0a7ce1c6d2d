"""The demo's months look like the published ones, and are the same on every run."""

from __future__ import annotations

import json
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

IN_2009 = {
    "payment_type": "Payment_Type",
    "tip_amount": "Tip_Amt",
    "fare_amount": "Fare_Amt",
    "extra": "surcharge",
    "passenger_count": "Passenger_Count",
    "trip_distance": "Trip_Distance",
    "tpep_pickup_datetime": "Trip_Pickup_DateTime",
}
AMOUNTS = ["fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge"]


def month(folder: Path, name: str, rows: int, seed: int = 1) -> pa.Table:
    path = folder / f"{name}-{rows}-{seed}.parquet"
    simulate.simulate_month(path, name, rows, seed)
    return pq.read_table(path)


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Find a column of either format by the name it has since 2011."""
    return table[IN_2009.get(name, name) if "vendor_name" in table.column_names else name]


def numbers(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Give a column as numpy has it; nulls are nan."""
    values: np.ndarray[Any, np.dtype[Any]] = column(table, name).to_numpy()
    return values


def shares(table: pa.Table, name: str) -> dict[str | int, float]:
    counts = column(table, name).value_counts().to_pylist()
    return {count["values"]: count["counts"] / len(table) for count in counts}


def by_card(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    payment = column(table, "payment_type")
    return np.isin(payment.to_numpy(), [1] if payment.type == pa.int64() else ["Credit", "CREDIT"])


def tip_rates(table: pa.Table) -> tuple[float, float]:
    """Share of tipped trips among those paid by card, and among the others."""
    labels, card = numbers(table, "tip_amount") > 0, by_card(table)
    return float(labels[card].mean()), float(labels[~card].mean())


def features(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Build what a plain model of 2009 sees, within plausible ranges."""
    hour = pc.hour(table["Trip_Pickup_DateTime"].cast(pa.timestamp("s"))).to_numpy()
    vendors = [pc.equal(table["vendor_name"], vendor).to_numpy() for vendor in ("CMT", "DDS")]
    limits = {"passenger_count": 9, "trip_distance": 100, "fare_amount": 500, "extra": 1}
    amounts = [numbers(table, name).clip(0, limit) for name, limit in limits.items()]
    scaled = [values / values.std() for values in (hour, *amounts)]
    return np.column_stack([by_card(table), *vendors, *scaled])


@pytest.fixture(scope="module")
def january_2009(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return month(tmp_path_factory.mktemp("2009"), "2009-01", 500_000)


@pytest.fixture(scope="module")
def january_2024(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return month(tmp_path_factory.mktemp("2024"), "2024-01", 500_000)


@pytest.mark.parametrize("name", ["2009-11", "2021-03"])
def test_same_arguments_give_same_bytes(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        simulate.simulate_month(path, name, 3000, 1)
    assert first.read_bytes() == second.read_bytes()


def test_another_month_or_seed_gives_other_trips(tmp_path: Path) -> None:
    tables = [month(tmp_path, name, 1000, seed) for name, seed in (("2009-01", 1), ("2009-02", 1), ("2009-01", 2))]
    fares = {tuple(table["Fare_Amt"].to_pylist()) for table in tables}
    assert len(fares) == len(tables)


@pytest.mark.parametrize("name", ["2009-11", "2025-01"])
def test_a_smaller_month_is_the_start_of_a_larger_one(tmp_path: Path, name: str) -> None:
    larger = month(tmp_path, name, 10_007)
    for rows in (1, 2, 1003):
        assert month(tmp_path, name, rows).equals(larger.slice(0, rows))


def test_chunks_are_row_groups_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "CHUNK", 1000)
    month(tmp_path, "2009-01", 2500)
    file = pq.ParquetFile(tmp_path / "2009-01-2500-1.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1000, 1000, 500]
    first, second = (file.read_row_group(i)["Fare_Amt"] for i in range(2))
    assert not first.equals(second)


def test_row_groups_are_at_most_a_million_rows() -> None:
    assert simulate.CHUNK <= 2**20


def test_2009_has_the_names_that_were_published(tmp_path: Path, tlc: Path) -> None:
    header = (tlc / "heads" / "yellow_tripdata_2009-01.csv").read_text().splitlines()[0]
    assert month(tmp_path, "2009-01", 1).column_names == header.split(",")


def test_2019_has_the_names_that_were_published(tmp_path: Path, tlc: Path) -> None:
    header = (tlc / "heads" / "yellow_tripdata_2019-06.csv").read_text().splitlines()[0]
    assert month(tmp_path, "2019-06", 1).column_names == [*header.split(","), "airport_fee"]


def test_2009_has_the_types_that_were_published(january_2009: pa.Table) -> None:
    texts = {"vendor_name", "Trip_Pickup_DateTime", "Trip_Dropoff_DateTime", "Payment_Type"}
    for field in january_2009.schema:
        expected = {"Passenger_Count": pa.int64()} | dict.fromkeys(texts, pa.string())
        assert field.type == expected.get(field.name, pa.float64()), field.name
    assert january_2009.schema.metadata is None


@pytest.mark.parametrize(
    ("name", "ids", "counts", "unused"),
    [
        ("2011-01", "int64", "int64", {"congestion_surcharge", "airport_fee"}),
        ("2018-06", "int64", "int64", {"congestion_surcharge", "airport_fee"}),
        ("2018-07", "int64", "double", {"congestion_surcharge", "airport_fee"}),
        ("2019-01", "int64", "double", {"airport_fee"}),
        ("2020-11", "int64", "double", set()),
        ("2023-01", "int64", "double", set()),
        ("2023-02", "int32", "int64", set()),
        ("2025-01", "int32", "int64", set()),
    ],
)
def test_types_change_when_the_published_ones_did(
    tmp_path: Path, name: str, ids: str, counts: str, unused: set[str]
) -> None:
    schema = month(tmp_path, name, 1).schema
    fee = "Airport_fee" if name >= "2023-02" else "airport_fee"
    types = {field.name: str(field.type) for field in schema}
    assert {types[name] for name in ("VendorID", "PULocationID", "DOLocationID")} == {ids}
    assert {types[name] for name in ("passenger_count", "RatecodeID")} == {counts}
    assert {name for name, type_ in types.items() if type_ == "null"} == unused
    assert {types["tpep_pickup_datetime"], types["tpep_dropoff_datetime"]} == {"timestamp[us]"}
    assert (types["payment_type"], types["store_and_fwd_flag"]) == ("int64", "string")
    assert {types[name] for name in (*AMOUNTS, "trip_distance", "total_amount")} == {"double"}
    assert {types[name] for name in ("congestion_surcharge", fee)} <= {"double", "null"}
    assert schema.names[18:] == ([fee, "cbd_congestion_fee"] if name >= "2025" else [fee])


def test_payments_are_spelt_by_vendor_in_2009(january_2009: pa.Table) -> None:
    pairs = january_2009.group_by(["vendor_name", "Payment_Type"]).aggregate([])
    seen = set(zip(*(pairs[column].to_pylist() for column in ("vendor_name", "Payment_Type")), strict=True))
    assert seen == {
        *(("CMT", word) for word in ("Cash", "Credit", "No Charge", "Dispute")),
        *(("DDS", word) for word in ("CASH", "CREDIT")),
        *(("VTS", word) for word in ("CASH", "Credit")),
    }
    assert shares(january_2009, "vendor_name") == pytest.approx({"CMT": 0.45, "DDS": 0.06, "VTS": 0.49}, abs=0.02)


@pytest.mark.parametrize(("name", "taxed"), [("2009-10", 0.0), ("2009-11", 0.94)])
def test_2009_knows_no_rate_codes_and_the_tax_from_november(tmp_path: Path, name: str, taxed: float) -> None:
    table = month(tmp_path, name, 10_000)
    assert table["Rate_Code"].null_count == len(table)
    assert pc.is_in(table["mta_tax"], pa.array([0.5])).to_numpy().mean() == pytest.approx(taxed, abs=0.01)
    assert 0.5 < table["store_and_forward"].null_count / len(table) < 1
    assert table["Total_Amt"].null_count == 0


def test_datetimes_of_2009_read_as_times_of_the_month(january_2009: pa.Table) -> None:
    ride = [january_2009[f"Trip_{end}_DateTime"].cast(pa.timestamp("s")).to_numpy() for end in ("Pickup", "Dropoff")]
    assert pc.min(pc.utf8_length(january_2009["Trip_Pickup_DateTime"])).as_py() == len("2009-01-01 00:00:00")
    assert (ride[0].astype("M8[M]") == np.datetime64("2009-01")).mean() > 0.9999
    assert (ride[0] <= ride[1]).all()
    assert (np.diff(ride[0]) < np.timedelta64(0, "s")).mean() == pytest.approx(0.5, abs=0.01)  # in no order


def test_flex_fares_are_blank_where_published_ones_are(january_2024: pa.Table, tmp_path: Path) -> None:
    flex = january_2024.filter(pc.equal(january_2024["payment_type"], 0))
    blank = {name for name in flex.column_names if flex[name].null_count}
    assert blank == {"passenger_count", "RatecodeID", "store_and_fwd_flag", "congestion_surcharge", "Airport_fee"}
    assert all(flex[name].null_count == len(flex) for name in blank)
    assert january_2024["passenger_count"].null_count == len(flex) > 0
    assert 0 not in shares(month(tmp_path, "2020-12", 1000), "payment_type")


def test_card_trips_are_tipped_and_others_are_not(january_2009: pa.Table, january_2024: pa.Table) -> None:
    for table in (january_2009, january_2024):
        card, other = tip_rates(table)
        assert card == pytest.approx(0.965, abs=0.01)
        assert 0 < other < 0.001


def test_a_plain_model_learns_a_little_more_than_the_card(tmp_path: Path, january_2009: pa.Table) -> None:
    fit, later = january_2009.slice(0, 100_000), month(tmp_path, "2009-02", 100_000)
    model = LogisticRegression(max_iter=1000).fit(features(fit), numbers(fit, "tip_amount") > 0)
    labels = numbers(later, "tip_amount") > 0
    baseline = log_loss(labels, np.where(by_card(later), *tip_rates(fit)))
    skill = 1 - log_loss(labels, model.predict_proba(features(later))[:, 1]) / baseline
    assert 0.03 < skill < 0.08


def test_totals_add_up(january_2009: pa.Table, january_2024: pa.Table) -> None:
    parts = ["Fare_Amt", "surcharge", "Tip_Amt", "Tolls_Amt"]
    total = sum(numbers(january_2009, part) for part in parts)
    assert np.abs(numbers(january_2009, "Total_Amt") - total).max() < 0.006
    known = january_2024.filter(pc.not_equal(january_2024["payment_type"], 0))
    total = sum(numbers(known, part) for part in (*AMOUNTS, "congestion_surcharge", "Airport_fee"))
    assert np.abs(numbers(known, "total_amount") - total).max() < 0.006


def test_a_few_values_are_as_wrong_as_the_published_ones(january_2009: pa.Table, january_2024: pa.Table) -> None:
    for table, name in ((january_2009, "2009"), (january_2024, "2024")):
        year = column(table, "tpep_pickup_datetime").cast(pa.timestamp("us")).to_numpy().astype("M8[Y]")
        wrong = {
            "wrapped fare": numbers(table, "fare_amount") > 400_000,
            "negative fare": numbers(table, "fare_amount") < 0,
            "far": numbers(table, "trip_distance") == 259_777,
            "nobody": numbers(table, "passenger_count") == 0,
            "a crowd": numbers(table, "passenger_count") == 208,
            "past": year < np.datetime64(name) - np.timedelta64(1, "Y"),
            "future": year > np.datetime64(name) + np.timedelta64(1, "Y"),
        }
        for kind, rows in wrong.items():
            assert 1 <= rows.sum() <= len(table) / 5000, kind
    for place in ("Start_Lon", "Start_Lat", "End_Lon", "End_Lat"):
        assert 1 <= (numbers(january_2009, place) == 0).sum() <= len(january_2009) / 5000


def test_the_card_share_grows_as_it_did(tmp_path: Path, january_2009: pa.Table, january_2024: pa.Table) -> None:
    assert by_card(january_2009).mean() == pytest.approx(0.21, abs=0.01)
    assert by_card(month(tmp_path, "2009-12", 20_000)).mean() == pytest.approx(0.29, abs=0.02)
    assert by_card(january_2024).mean() == pytest.approx(0.78, abs=0.03)


def test_drift_is_slow_and_bounded(tmp_path: Path) -> None:
    halves = [f"{year}-{half}" for year in (2009, *range(2011, 2036)) for half in ("01", "07")]
    tables = [month(tmp_path, name, 5000) for name in (*halves, "2999-12")]
    cards = [by_card(table).mean() for table in tables]
    tips = [tip_rates(table)[0] for table in tables]
    assert 0.18 < min(cards) < 0.25
    assert 0.75 < max(cards) < 0.86
    assert np.abs(np.diff(cards[2:])).max() < 0.06
    assert 0.94 < min(tips) < max(tips) < 0.99


def test_peaks_and_nights_cost_extra(january_2009: pa.Table) -> None:
    hour = pc.hour(january_2009["Trip_Pickup_DateTime"].cast(pa.timestamp("s"))).to_numpy()
    extra = numbers(january_2009, "surcharge")
    assert set(extra[(hour >= 20) | (hour < 6)]) == {0.5}
    assert set(extra[(hour >= 6) & (hour < 16)]) == {0.0}
    assert set(extra[(hour >= 16) & (hour < 20)]) == {0.0, 1.0}
    assert (hour == 19).sum() > 5 * (hour == 4).sum()


def test_a_reader_sees_neither_pandas_nor_dictionaries(tmp_path: Path) -> None:
    month(tmp_path, "2024-01", 10)
    file = pq.ParquetFile(tmp_path / "2024-01-10-1.parquet")
    assert "pandas" not in json.dumps([key.decode() for key in file.metadata.metadata])
    assert not any(pa.types.is_dictionary(type_) for type_ in file.schema_arrow.types)


@pytest.mark.parametrize("name", ["2010-01", "2010-12", "2008-12", "1999-01"])
def test_months_without_a_simulation_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "trips.parquet"
    with pytest.raises(NotPublishedError, match=name):
        simulate.simulate_month(path, name, 1, 1)
    assert not path.exists()


@pytest.mark.parametrize("name", ["2009", "2009-13", "2009-1", "2009-01-01", "January", ""])
def test_what_is_not_a_month_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TiplineError, match="not a month"):
        simulate.simulate_month(tmp_path / "trips.parquet", name, 1, 1)


@pytest.mark.parametrize("name", ["2009-01", "2011-01", "2019-01", "2024-01", "2025-12"])
def test_one_row_works(tmp_path: Path, name: str) -> None:
    assert month(tmp_path, name, 1).num_rows == 1
