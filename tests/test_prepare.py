"""Published months are converted to the schema: no row is lost, and what cannot be read is quarantined."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory
from tests.factory import MONTH, SCHEMA, Prepared, line, prepare_csv, prepare_file, prepare_tpep
from tipline import formats
from tipline.errors import TiplineError
from tipline.ingest import prepare, readers, simulate
from tipline.ingest.conform import Conformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

BAD_LINE = "VTS,2009-01-15 12:00:00"
# By hand from the TLC's column descriptions.
WORDS = {"CASH": "cash", "CREDIT": "credit", "NO CHARGE": "no charge", "DISPUTE": "dispute"}
NUMBERS = {0: "flex fare", 1: "credit", 2: "cash", 3: "no charge", 4: "dispute", 5: "unknown", 6: "voided"}
VENDORS = {1: "CMT", 2: "VTS", 6: "Myle", 7: "Helix"} | {name: name for name in ("CMT", "VTS", "DDS")}
FILES = {"trips.parquet", "_quarantine.parquet", "_manifest.json"}


def simulate_file(folder: Path, rows: int, month: str = MONTH) -> Path:
    simulate.simulate_month(folder / "demo.parquet", month, rows, 1)
    return folder / "demo.parquet"


def list_row_groups(path: Path) -> list[int]:
    found = pq.read_metadata(path)
    return [found.row_group(group).num_rows for group in range(found.num_row_groups)]


# ---- real and simulated files ----


@pytest.fixture(scope="module")
def hour(tlc: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """A published hour, and what `prepare` has made of it."""
    path, folder = tlc / "hour" / "yellow_tripdata_2009-01.csv", tmp_path_factory.mktemp("hour")
    return path, Prepared(folder, prepare.prepare_month(path, folder, SCHEMA, MONTH))


def test_a_published_hour_is_what_its_lines_say(hour: tuple[Path, Prepared]) -> None:
    path, made = hour
    with path.open(newline="") as file:
        published = [row for row in csv.DictReader(file) if row]
    assert made.counts == (21_242, 21_242, 0)
    assert made.values("row") == list(range(21_242))
    for name, column in {"fare_amount": "Fare_Amt", "tip_amount": "Tip_Amt", "mta_tax": "mta_tax"}.items():
        assert made.values(name) == [float(row[column]) if row[column] else None for row in published]
    assert made.values("vendor") == [row["vendor_name"] for row in published]
    assert made.values("payment_type") == [WORDS[row["Payment_Type"].upper()] for row in published]
    times = [dt.datetime.fromisoformat(row["Trip_Pickup_DateTime"]) for row in published]
    assert made.values("pickup_datetime") == times
    assert (made.manifest["unknown_columns"], made.manifest["unknown_aliases"]) == ([], {})


def test_small_blocks_of_csv_give_the_same_rows(
    hour: tuple[Path, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 50_000)
    prepare.prepare_month(hour[0], tmp_path, SCHEMA, MONTH)
    assert Prepared(tmp_path, {}).trips.equals(hour[1].trips)


@pytest.mark.parametrize("month", [f"2009-{number:02}" for number in range(1, 13)])
def test_the_sampled_months_of_2009_go_through(tlc: Path, tmp_path: Path, month: str) -> None:
    path = tlc / "tiny2009" / f"yellow_{month}.parquet"
    made, published = Prepared(tmp_path, prepare.prepare_month(path, tmp_path, SCHEMA, month)), pq.read_table(path)
    assert made.counts == (len(published), len(published), 0)
    for name in ("fare_amount", "trip_distance", "tip_amount", "total_amount", "mta_tax"):
        assert made.values(name) == published[name].to_pylist()
    assert made.values("payment_type") == [
        word.lower().split(" card")[0] for word in published["payment_type"].to_pylist()
    ]
    assert made.trips["pickup_datetime"].equals(published["pickup_datetime"].cast(pa.timestamp("us")))
    assert (made.manifest["unknown_columns"], made.manifest["unknown_aliases"]) == ([], {})


@pytest.mark.parametrize("month", ["2009-12", "2024-01", "2025-01"])
def test_simulated_months_are_downloaded_and_prepared(run_cli: Run, make_project: MakeProject, month: str) -> None:
    paths = make_project(demo={"rows": 3000})
    for command in ("download", "prepare"):
        code, printed = run_cli(paths.root, command, month)
        assert code == 0, printed
    published, trips = pq.read_table(next(paths.raw(month).iterdir())), pq.read_table(paths.prepared_file(month))
    assert trips.schema.equals(SCHEMA.arrow_schema)
    assert trips["row"].to_pylist() == list(range(3000))
    vendor, payment, fare = ("vendor_name", "Payment_Type", "Fare_Amt")
    if month > "2010":
        vendor, payment, fare = ("VendorID", "payment_type", "fare_amount")
    assert trips["vendor"].to_pylist() == [VENDORS[value] for value in published[vendor].to_pylist()]
    words = [NUMBERS.get(value) or WORDS[value.upper()] for value in published[payment].to_pylist()]
    assert trips["payment_type"].to_pylist() == words
    assert trips["fare_amount"].equals(published[fare])
    assert (trips["cbd_congestion_fee"].null_count == 0) == (month >= "2025")


# ---- columns and aliases ----


def test_rows_of_each_format_become_the_same_columns(tmp_path: Path) -> None:
    parquet = prepare_file(factory.write_2009(tmp_path / "p" / "month.parquet", {}, {"Fare_Amt": 8.0})).trips
    trips = [{"row": 0} | factory.TRIP_2009, {"row": 1} | factory.TRIP_2009 | {"fare_amount": 8.0}]
    assert parquet.to_pylist() == trips
    assert prepare_csv(tmp_path / "c", line(), line(Fare_Amt=8)).trips.equals(parquet)
    today = prepare_tpep(tmp_path / "t", {}).trips
    assert today.to_pylist() == [{"row": 0} | factory.TRIP_TPEP]
    assert today.schema.equals(parquet.schema)


def test_new_columns_and_aliases_are_kept_counted_and_logged(
    run_cli: Run, make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_project()
    rows: list[dict[str, Any]] = [{"weather": "rain", "payment_type": 9}, {"payment_type": 9}, {}]
    factory.write_tpep(paths.raw(MONTH) / "m.parquet", *rows, weather=pa.string())
    with caplog.at_level(logging.INFO):
        assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    assert "unknown columns: weather" in caplog.text
    assert "unknown aliases: payment_type: 9" in caplog.text
    assert "IS THIS THE FILE OF ANOTHER MONTH?" in caplog.text
    manifest = factory.manifest_of(paths.prepared(MONTH))
    assert (manifest["unknown_aliases"], manifest["unknown_columns"]) == ({"payment_type: 9": 2}, ["weather"])
    assert pq.read_table(paths.prepared_file(MONTH))["payment_type"].to_pylist() == ["9", "9", "credit"]


@pytest.mark.parametrize(
    ("vendor", "word", "payment"),
    [
        ("CMT", "Cash", "cash"),
        ("CMT", "No Charge", "no charge"),
        ("DDS", "CREDIT", "credit"),
        (" vts ", "no charge ", "no charge"),
        ("VTS", " Prepaid", "Prepaid"),
    ],
)
def test_aliases_become_values_and_unknown_ones_stay(tmp_path: Path, vendor: str, word: str, payment: str) -> None:
    made = prepare_csv(tmp_path, line(vendor_name=vendor, Payment_Type=word), line(Payment_Type="CASH"))
    assert (made.values("vendor")[0], made.values("payment_type")) == (vendor.strip().upper(), [payment, "cash"])
    assert made.manifest["unknown_aliases"] == ({f"payment_type: {payment}": 1} if payment == "Prepaid" else {})


def test_codes_of_today_become_the_words_of_2009(tmp_path: Path) -> None:
    made = prepare_tpep(tmp_path, *[{"payment_type": code, "VendorID": 1 + code % 2} for code in NUMBERS])
    assert made.values("payment_type") == list(NUMBERS.values())
    assert made.values("vendor") == ["CMT", "VTS"] * 3 + ["CMT"]


def test_values_of_a_category_keep_their_codes_between_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 2)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 2)
    words = ["Barter", "Cash", "Voucher", None, "Cash", "Barter"]
    made = prepare_file(factory.write_2009(tmp_path / "m.parquet", *[{"Payment_Type": word} for word in words]))
    assert made.values("payment_type") == ["Barter", "cash", "Voucher", "unknown", "cash", "Barter"]
    assert made.manifest["filled"] == {"payment_type": 1}
    assert made.manifest["unknown_aliases"] == {"payment_type: Barter": 2, "payment_type: Voucher": 1}


# ---- missing and unusual values ----


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.float64()])
@pytest.mark.parametrize("unreadable", [[], ["x"]])
def test_nan_counts_as_missing(tmp_path: Path, kind: pa.DataType, unreadable: list[str]) -> None:
    texts = ["NaN", "2.0", *(unreadable if kind != pa.float64() else []), None]
    read = float if kind == pa.float64() else str
    columns = ("fare_amount", "passenger_count", "extra", "RatecodeID")
    rows = [dict.fromkeys(columns, None if text is None else read(text)) for text in texts]
    made = prepare_tpep(tmp_path, *rows, **dict.fromkeys(columns, kind))
    assert made.values("fare_amount") == [None, 2.0, None]
    assert made.values("passenger_count") == [None, 2, None]
    assert made.values("extra") == [0.0, 2.0, 0.0]
    if kind == pa.float64():
        assert made.values("rate_code") == [None, "JFK", None]
    assert [row["row"] for row in made.quarantine] == [2] * (len(texts) - 3)
    assert made.manifest["out_of_range"] == {}


def test_missing_values_are_filled_and_counted_where_the_schema_says(tmp_path: Path) -> None:
    made = prepare_csv(tmp_path, line(Payment_Type=None), line(Payment_Type="  "), line(surcharge=None), line())
    assert made.values("payment_type") == ["unknown", "unknown", "credit", "credit"]
    assert made.values("extra") == [0.5, 0.5, 0.0, 0.5]
    assert made.values("mta_tax") == [None] * 4
    assert (made.manifest["filled"], made.manifest["unknown_aliases"]) == ({"extra": 1, "payment_type": 2}, {})


def test_values_out_of_range_are_kept_and_counted(tmp_path: Path) -> None:
    rows = [
        {"Fare_Amt": 500.0, "Passenger_Count": 0},
        {"Fare_Amt": -5.0},
        {"Fare_Amt": 429_490.2, "Passenger_Count": 208},
    ]
    made = prepare_file(factory.write_2009(tmp_path / "month.parquet", *rows))
    assert made.values("fare_amount") == [500.0, -5.0, 429_490.2]
    assert made.values("passenger_count") == [0, 2, 208]
    assert made.manifest["out_of_range"] == {"fare_amount": 2, "passenger_count": 1}


def test_times_outside_the_month_are_counted(tmp_path: Path) -> None:
    times = ["2008-12-31 23:59:59", "2009-01-01 00:00:00", "2009-01-31 23:59:59", "2009-02-01 00:00:00"]
    assert prepare_csv(tmp_path, *[line(Trip_Pickup_DateTime=time) for time in times]).manifest["outside_month"] == 2


# ---- quarantine ----


@pytest.mark.parametrize(
    ("published", "text", "reason"),
    [
        ("Trip_Pickup_DateTime", "2009-01-32 12:00:00", "pickup_datetime is not a time"),
        ("Trip_Dropoff_DateTime", "12:09:30", "dropoff_datetime is not a time"),
        ("Fare_Amt", "7.7.7", "fare_amount is not a number"),
        ("Fare_Amt", "$7", "fare_amount is not a number"),
        ("Passenger_Count", "1.5", "passenger_count is not a whole number"),
        ("Passenger_Count", "9999999999", "passenger_count is not a whole number"),
        ("Passenger_Count", "two", "passenger_count is not a whole number"),
        ("Payment_Type", "x" * 201, "payment_type is not a word of at most 200 letters"),
    ],
)
def test_an_unreadable_value_quarantines_its_row(tmp_path: Path, published: str, text: str, reason: str) -> None:
    odd = line(**{published: text, "Tip_Amt": 0.25})
    made = prepare_csv(tmp_path, line(), odd, line(Fare_Amt=9.5))
    assert made.values("row") == [0, 2]
    assert made.values("fare_amount") == [7.7, 9.5]
    assert made.quarantine == [{"row": 1, "reason": reason, "raw": odd}]
    assert made.manifest["quarantined_by_reason"] == {reason: 1}
    assert made.counts == (3, 2, 1)


def test_a_quarantined_row_of_parquet_is_kept_as_json(tmp_path: Path) -> None:
    rows = [{"Trip_Pickup_DateTime": time} for time in ("never", None, " 2009-01-01 00:00:01 ")]
    made = prepare_file(factory.write_2009(tmp_path / "month.parquet", *rows))
    assert made.values("pickup_datetime") == [None, dt.datetime.fromisoformat("2009-01-01 00:00:01")]
    (row,) = made.quarantine
    assert row["row"] == 0
    assert '"Trip_Pickup_DateTime": "never"' in row["raw"]


def test_a_row_with_two_unreadable_values_is_quarantined_once_and_counted_nowhere_else(tmp_path: Path) -> None:
    made = prepare_csv(tmp_path, line(Fare_Amt="x", Trip_Pickup_DateTime="y", Trip_Distance=-5, surcharge=None), line())
    assert [(row["row"], row["reason"]) for row in made.quarantine] == [(0, "pickup_datetime is not a time")]
    assert (made.manifest["out_of_range"], made.manifest["filled"]) == ({}, {})


@pytest.mark.parametrize("block_bytes", [300, 7777, 2**24])
def test_row_numbers_hold_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    kinds = np.random.default_rng(1).choice(["good", "ragged", "long", "blank", "unreadable", "surplus"], 400).tolist()
    lines: list[str] = []
    rows: dict[str, list[int]] = {kind: [] for kind in kinds}
    for kind in kinds:
        row = sum(len(found) for name, found in rows.items() if name != "blank")
        rows[kind].append(row)
        good = line(Fare_Amt=row)
        texts = {"ragged": f"row,{row}", "long": f"{good},,x", "blank": "", "surplus": f"{good},,"}
        lines.append(texts.get(kind, line(Fare_Amt=f"{row}x") if kind == "unreadable" else good))
    made = prepare_csv(tmp_path, *lines)
    good_rows = sorted(rows["good"] + rows["surplus"])
    assert (made.values("row"), made.values("fare_amount")) == (good_rows, good_rows)
    assert [row["row"] for row in made.quarantine] == sorted(rows["ragged"] + rows["long"] + rows["unreadable"])
    assert all(str(row["row"]) in row["raw"] for row in made.quarantine)
    assert made.manifest["quarantined_by_reason"][readers.RAGGED] == len(rows["ragged"] + rows["long"])


def test_a_stray_quote_swallows_no_lines(tmp_path: Path) -> None:
    lines = [line(Fare_Amt=row, **({"vendor_name": '"x'} if row in {1, 4} else {})) for row in range(6)]
    assert prepare_csv(tmp_path, *lines).values("fare_amount") == [0, 1, 2, 3, 4, 5]


def test_unusual_csv_is_read(tmp_path: Path) -> None:
    header = "\ufeff" + ", ".join(name.upper() for name in factory.RAW_2009)
    spaced = line(Fare_Amt=" 7.7 ", Passenger_Count=" 2", Trip_Pickup_DateTime="2009-01-15 12:00:00 ")
    path = factory.write_csv(tmp_path / "month.csv", [spaced], header)
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))  # the last line has no end
    assert prepare_file(path).trips.to_pylist() == [{"row": 0} | factory.TRIP_2009]
    empty = prepare_csv(tmp_path / "empty")
    assert (empty.counts, len(empty.trips), empty.quarantine) == ((0, 0, 0), 0, [])
    assert empty.trips.schema.equals(SCHEMA.arrow_schema)


# ---- streaming ----


def test_row_groups_depend_on_neither_batches_nor_published_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (prepare.ROW_GROUP_ROWS, prepare.ROW_GROUP_ROWS % readers.BATCH_ROWS) == (2**20, 0)
    path, many = simulate_file(tmp_path, 5000), tmp_path / "many.parquet"
    pq.write_table(pq.read_table(path), many, row_group_size=700)
    whole = prepare_file(path, name="whole")
    monkeypatch.setattr(readers, "BATCH_ROWS", 100)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 2000)
    made = [prepare_file(file, name=f"{file.stem} made") for file in (path, many)]
    for one in made:
        assert list_row_groups(one.folder / "trips.parquet") == [2000, 2000, 1000]
        assert one.trips.equals(whole.trips)


def test_one_huge_row_group_is_streamed_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "CHUNK", 2**20)
    path = simulate_file(tmp_path, 300_000)
    assert list_row_groups(path) == [300_000]
    decoded = pq.read_table(path).nbytes
    monkeypatch.setattr(readers, "BATCH_ROWS", 4096)
    month = readers.open_month(path, MONTH)
    names = SCHEMA.match(month.schema, "here").names
    conformer, rows = Conformer(SCHEMA, names, MONTH), 0
    before = peak = pa.total_allocated_bytes()
    for batch in month.batches(list(names.values()), [names["vendor"], names["payment_type"]]):
        rows += len(conformer.conform(batch)[0])
        peak = max(peak, pa.total_allocated_bytes())
    assert rows == 300_000
    # The compressed columns of a row group are held; the decoded rows, twice as large, never are.
    assert peak - before < decoded / 2


def test_texts_of_many_row_groups_are_looked_at_one_row_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 1000)
    path = simulate_file(tmp_path, 20_000)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(20):
            writer.write_table(table)
    month, pool, default = (
        readers.open_month(path, MONTH),
        pa.proxy_memory_pool(pa.default_memory_pool()),
        pa.default_memory_pool(),
    )
    pa.set_memory_pool(pool)
    try:
        next(iter(month.batches(month.schema.names, [])))
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 3 * table.nbytes


def test_text_that_arrow_cannot_read_dictionary_encoded_is_read(tmp_path: Path) -> None:
    path = factory.write_2009(tmp_path / "delta.parquet", {}, {"vendor_name": "VTS"})
    encodings = dict.fromkeys(factory.TEXT_2009, "DELTA_BYTE_ARRAY")
    pq.write_table(pq.read_table(path), path, use_dictionary=False, column_encoding=encodings)
    assert prepare_file(path).values("vendor") == ["CMT", "VTS"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_same_month_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    path = simulate_file(tmp_path, 4000)
    if kind == "csv":
        path = factory.write_csv(
            tmp_path / "m.csv", [line(Payment_Type=f"kind {n % 7}") for n in range(200)] + [BAD_LINE]
        )
    first, second = (factory.contents(prepare_file(path, name=name).folder) for name in ("first", "second"))
    assert first == second
    assert set(first) == FILES


# ---- the manifest, and failures ----


def test_the_manifest_describes_the_files(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    lines = [line(Payment_Type="Barter"), BAD_LINE, line(Fare_Amt=-1)]
    path = factory.write_csv(paths.raw(MONTH) / "yellow.csv", lines)
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    manifest, folder = factory.manifest_of(paths.prepared(MONTH)), paths.prepared(MONTH)
    columns = manifest.pop("mapping")["columns"]
    assert columns["fare_amount"] == {"name": "Fare_Amt", "type": "string"}
    assert len(columns) == 13
    files = {"published": path, "trips": paths.prepared_file(MONTH), "quarantine": folder / "_quarantine.parquet"}
    assert manifest == {
        "month": MONTH,
        "rows_in": 3,
        "rows_out": 2,
        "quarantined": 1,
        "quarantined_by_reason": {readers.RAGGED: 1},
        "filled": {},
        "out_of_range": {"fare_amount": 1},
        "outside_month": 0,
        "unknown_aliases": {"payment_type: Barter": 1},
        "unknown_columns": [],
        "format": formats.PREPARED,
        "schema": SCHEMA.version,
        "era": "2009-01",
        "aliases": {
            "vendor": {"CMT": "CMT"},
            "rate_code": {},
            "payment_type": {"Barter": "Barter", "Credit": "credit"},
        },
    } | {
        key: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for key, file in files.items()
    }


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "damaged page": (lambda data: data[:4] + b"\xff" * 1996 + data[2000:], "cannot be read"),
    "cut off": (lambda data: data[: len(data) // 2], "cannot be read"),
    "not text": (lambda _: b"\xff\xfe\x00", "its header is not UTF-8"),
    "empty": (lambda _: b"", "lacks columns"),
    "another table": (lambda _: b"a,b\n1,2\n", "vendor (as vendor_name or vendor_id or VendorID)"),
}


@pytest.mark.parametrize(("break_file", "what"), BROKEN.values(), ids=BROKEN)
def test_a_month_that_cannot_be_prepared_leaves_the_earlier_one(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, break_file: Callable[[bytes], bytes], what: str
) -> None:
    paths = make_project()
    path = factory.write_2009(paths.raw(MONTH) / "yellow.parquet", {}, {})
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    before = factory.contents(paths.prepared(MONTH))
    path.write_bytes(break_file(simulate_file(tmp_path, 5000).read_bytes()))
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1
    assert what in printed
    assert f"yellow.parquet, month {MONTH}" in printed
    assert "Traceback" not in printed
    assert factory.contents(paths.root / "data" / "trips") == {
        f"month={MONTH}/{name}": data for name, data in before.items()
    }
    assert set(factory.contents(paths.staging)) <= {"trips/.swap.lock"}


@pytest.mark.parametrize("count", [0, 2])
def test_a_month_is_one_published_file(run_cli: Run, make_project: MakeProject, count: int) -> None:
    paths = make_project()
    for number in range(count):
        factory.write_2009(paths.raw(MONTH) / f"{number}.parquet", {})
    code, printed = run_cli(paths.root, "prepare", MONTH)
    assert code == 1
    assert f"found {count}" in printed
    assert f"dvc repro -f download@{MONTH}" in printed


def test_a_month_that_is_prepared_again_replaces_the_old_one(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    paths.prepared(MONTH).mkdir(parents=True)
    (paths.prepared(MONTH) / "stray").touch()
    for rows in (3, 1):
        factory.write_2009(paths.raw(MONTH) / "yellow.parquet", *[{}] * rows)
        assert run_cli(paths.root, "prepare", MONTH)[0] == 0
        assert pq.read_metadata(paths.prepared_file(MONTH)).num_rows == rows
    assert set(factory.contents(paths.prepared(MONTH))) == FILES


def test_a_lost_row_is_noticed(tmp_path: Path) -> None:
    class LossyMonth(readers.ParquetMonth):
        def batches(self, *arguments: Any) -> Any:
            for batch in super().batches(*arguments):
                yield readers.Batch(batch.rows[:-1], batch.values.slice(0, len(batch.rows) - 1))

    month = LossyMonth(factory.write_2009(tmp_path / "month.parquet", {}, {}, {}))
    conformer = Conformer(SCHEMA, SCHEMA.match(month.schema, "here").names, MONTH)
    with pytest.raises(TiplineError, match="3 rows were published, 2 prepared and 0 quarantined"):
        prepare.write_month(conformer, month, tmp_path)
