"""Simulated months look like the published ones of their time, and are the same on each run."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tipline.errors import NotPublishedError
from tipline.ingest import simulate


def simulate_table(folder: Path, month: str, rows: int, seed: int = 1) -> pa.Table:
    simulate.simulate_month(folder / "month.parquet", month, rows, seed)
    return pq.read_table(folder / "month.parquet")


@pytest.mark.parametrize(
    ("month", "rows", "digest"),
    [
        ("2009-11", 3000, "fac3b2ad1d116c71"),
        ("2025-03", 60_000, "f1296036303a0247"),  # enough rows for each kind of wrong value
    ],
)
def test_the_values_of_a_month_never_change(tmp_path: Path, month: str, rows: int, digest: str) -> None:
    table = simulate_table(tmp_path, month, rows)
    assert hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()[:16] == digest
    first = (tmp_path / "month.parquet").read_bytes()
    simulate_table(tmp_path, month, rows)
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
    for month, more in (("2009-01", []), ("2019-06", ["Airport_fee"])):
        header = (tlc / "heads" / f"yellow_tripdata_{month}.csv").read_text().splitlines()[0]
        assert simulate_table(tmp_path, month, 1).column_names == [*header.split(","), *more]
    texts = ["vendor_name", "Trip_Pickup_DateTime", "Trip_Dropoff_DateTime", "Payment_Type"]
    schema = simulate.get_published_schema("2009-01")
    expected = dict.fromkeys(schema.names, pa.float64()) | dict.fromkeys(texts, pa.string())
    assert dict(zip(schema.names, schema.types, strict=True)) == expected | {"Passenger_Count": pa.int64()}


@pytest.mark.parametrize("month", ["2010-12", "2008-12"])
def test_months_without_a_simulation_are_refused(tmp_path: Path, month: str) -> None:
    with pytest.raises(NotPublishedError, match=month):
        simulate.simulate_month(tmp_path / "trips.parquet", month, 1, 1)
    assert not (tmp_path / "trips.parquet").exists()
