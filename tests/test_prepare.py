"""Published months are converted to the schema: no row is lost, and what cannot be read is quarantined."""

import datetime as dt
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import factory
from tests.factory import MONTH, SCHEMA, line, prepare_csv, prepare_file, prepare_tpep
from tipline import formats
from tipline.errors import TiplineError
from tipline.ingest import losses, prepare, readers, simulate
from tipline.ingest.columns import QUARANTINE_FILE
from tipline.ingest.conform import Conformer
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

# By hand from the TLC's column descriptions.
CODES = ["flex fare", "credit", "cash", "no charge", "dispute", "unknown", "voided"]


def simulate_file(folder: Path, rows: int) -> Path:
    simulate.simulate_month(folder / "demo.parquet", MONTH, rows, 1)
    return folder / "demo.parquet"


def test_new_columns_and_aliases_are_kept_counted_and_logged(
    run_cli: Run, make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_project()
    rows: list[dict[str, Any]] = [{"weather": "rain", "payment_type": 9}, {"payment_type": 9}, {}, {}]
    factory.write_tpep(paths.raw(MONTH) / "m.parquet", *rows, weather=pa.string())
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    assert "unknown columns: weather" in caplog.text
    assert "unknown aliases: payment_type: 9" in caplog.text
    assert "IS THIS THE FILE OF ANOTHER MONTH?" in caplog.text
    manifest = factory.manifest_of(paths.prepared(MONTH))
    assert (manifest["unknown_aliases"], manifest["unknown_columns"]) == ({"payment_type: 9": 2}, ["weather"])


def test_aliases_become_values_and_unknown_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 2)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 2)
    words = [" Barter", "Cash", "Voucher", None, "no charge ", "Barter", "  "]
    made = prepare_file(factory.write_2009(tmp_path / "m.parquet", *[{"Payment_Type": word} for word in words]))
    assert made.values("payment_type") == ["Barter", "cash", "Voucher", "unknown", "no charge", "Barter", "unknown"]
    assert made.manifest["filled"] == {"payment_type": 2}
    assert made.manifest["unknown_aliases"] == {"payment_type: Barter": 2, "payment_type: Voucher": 1}
    made = prepare_tpep(tmp_path / "today", *[{"payment_type": code, "VendorID": 1 + code % 2} for code in range(7)])
    assert made.values("payment_type") == CODES
    assert made.values("vendor") == ["CMT", "VTS"] * 3 + ["CMT"]
    assert prepare_csv(tmp_path / "csv", line(vendor_name=" vts ")).values("vendor") == ["VTS"]


def test_words_of_rate_codes_are_known(tmp_path: Path) -> None:
    words = ["Standard rate", "JFK", "newark", "Nassau or Westchester", "Negotiated fare", "Group ride", "Free"]
    made = prepare_tpep(tmp_path, *[{"RatecodeID": word} for word in words], RatecodeID=pa.string())
    values = ["standard", "JFK", "Newark", "Nassau or Westchester", "negotiated", "group", "Free"]
    assert (made.values("rate_code"), made.manifest["unknown_aliases"]) == (values, {"rate_code: Free": 1})


def test_values_of_an_open_category_are_kept_and_not_unknown(tmp_path: Path) -> None:
    source = factory.write_tpep(tmp_path / "m.parquet", *[{"payment_type": code} for code in (1, 77, 78)])
    payment = SCHEMA.columns["payment_type"].model_copy(update={"open": True})
    schema = SCHEMA.model_copy(update={"columns": {**SCHEMA.columns, "payment_type": payment}})
    for folder, one, unknown in (("closed", SCHEMA, 2), ("open", schema, 0)):
        (tmp_path / folder).mkdir()
        manifest = prepare.prepare_month(source, tmp_path / folder, one, MONTH)
        assert len(manifest["unknown_aliases"]) == unknown
        values = pq.read_table(tmp_path / folder / "trips.parquet")["payment_type"].to_pylist()
        assert values == ["credit", "77", "78"]
        read = functools.partial(pq.read_table, tmp_path / folder / QUARANTINE_FILE)
        losses.check_losses(manifest, read, one, 0.1, {} if unknown == 0 else {MONTH: "two codes"})


# ---- missing and unusual values ----


@pytest.mark.parametrize("kind", [pa.large_string(), pa.float64()])
def test_nan_counts_as_missing(tmp_path: Path, kind: pa.DataType) -> None:
    values: list[Any] = [float("nan"), 2.0, None] if kind == pa.float64() else ["NaN", "2.0", None, "x"]
    columns = ("fare_amount", "passenger_count", "extra")
    rows = [dict.fromkeys(columns, value) for value in values]
    made = prepare_tpep(tmp_path, *rows, **dict.fromkeys(columns, kind))
    assert made.values("fare_amount") == [None, 2.0, None]
    assert made.values("passenger_count") == [None, 2, None]
    assert made.values("extra") == [0.0, 2.0, 0.0]
    assert [row["row"] for row in made.quarantine] == [3] * (len(values) - 3)
    assert (made.manifest["out_of_range"], made.manifest["filled"]) == ({}, {"extra": 2})


def test_values_out_of_range_are_kept_and_counted(tmp_path: Path) -> None:
    times = ["2008-12-31 23:59:59", "2009-01-01 00:00:00", "2009-01-31 23:59:59", "2009-02-01 00:00:00"]
    fares, passengers = [500, -5, 429_490.2, 0], [0, 2, 208, 1]
    rows = [
        {"Trip_Pickup_DateTime": time, "Fare_Amt": fare, "Passenger_Count": count}
        for time, fare, count in zip(times, fares, passengers, strict=True)
    ]
    made = prepare_csv(tmp_path, *[line(**row) for row in rows])
    assert (made.values("fare_amount"), made.values("passenger_count")) == (fares, passengers)
    assert made.manifest["out_of_range"] == {"fare_amount": 2, "passenger_count": 1}
    assert made.manifest["outside_month"] == 2


# ---- quarantine ----


@pytest.mark.parametrize(
    ("published", "text", "reason"),
    [
        ("Trip_Pickup_DateTime", "2009-01-32 12:00:00", "pickup_datetime is not a time"),
        ("Trip_Dropoff_DateTime", "12:09:30", "dropoff_datetime is not a time"),
        ("Fare_Amt", "7.7.7", "fare_amount is not a number"),
        ("Passenger_Count", "1.5", "passenger_count is not a whole number"),
        ("Passenger_Count", "9999999999", "passenger_count is not a whole number"),
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


def test_a_row_of_parquet_with_two_unreadable_values_is_kept_as_json_and_counted_nowhere_else(tmp_path: Path) -> None:
    never = {"Trip_Pickup_DateTime": "never", "Trip_Dropoff_DateTime": "x", "Trip_Distance": -5.0, "surcharge": None}
    rows: list[dict[str, Any]] = [never, *[{"Trip_Pickup_DateTime": time} for time in (None, " 2009-01-01 00:00:01 ")]]
    made = prepare_file(factory.write_2009(tmp_path / "month.parquet", *rows))
    assert made.values("pickup_datetime") == [None, dt.datetime.fromisoformat("2009-01-01 00:00:01")]
    (row,) = made.quarantine
    assert (row["row"], row["reason"]) == (0, "pickup_datetime is not a time")
    assert '"Trip_Pickup_DateTime": "never"' in row["raw"]
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
    again = prepare_file(tmp_path / "month.csv", name="again")
    assert factory.contents(again.folder) == factory.contents(made.folder)


def test_unusual_csv_is_read(tmp_path: Path) -> None:
    stray = [line(Fare_Amt=row, **({"vendor_name": '"x'} if row in {1, 4} else {})) for row in range(6)]
    assert prepare_csv(tmp_path / "stray", *stray).values("fare_amount") == [0, 1, 2, 3, 4, 5]
    header = "\ufeff" + ", ".join(name.upper() for name in factory.RAW_2009)
    spaced = line(Fare_Amt=" 7.7 ", Passenger_Count=" 2", Trip_Pickup_DateTime="2009-01-15 12:00:00 ")
    path = factory.write_csv(tmp_path / "month.csv", [spaced], header)
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))  # the last line has no end
    assert prepare_file(path).trips.to_pylist() == [{"row": 0} | factory.TRIP_2009]
    empty = prepare_csv(tmp_path / "empty")
    assert (empty.counts, len(empty.trips), empty.quarantine) == ((0, 0, 0), 0, [])
    assert empty.trips.schema.equals(factory.STORED)


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
    one, other, again = (prepare_file(file, name=name) for file, name in ((path, "1"), (many, "2"), (path, "3")))
    found = pq.read_metadata(one.folder / "trips.parquet")
    assert [found.row_group(group).num_rows for group in range(found.num_row_groups)] == [2000, 2000, 1000]
    assert one.trips.equals(whole.trips)
    assert factory.contents(one.folder)["trips.parquet"] == factory.contents(other.folder)["trips.parquet"]
    assert factory.contents(one.folder) == factory.contents(again.folder)
    assert set(factory.contents(one.folder)) == {"trips.parquet", "_quarantine.parquet", "_manifest.json"}


def test_wide_months_have_smaller_row_groups() -> None:
    """A worker holds a row group; at a million rows, one of 200 columns would take 1.6 GB."""
    wide = pa.schema([(f"number {index}", pa.float64()) for index in range(200)])
    rows = [prepare.count_group_rows(schema) for schema in (SCHEMA.arrow_schema, wide, pa.schema([*wide] * 100))]
    assert rows == [2**20, readers.BATCH_ROWS, readers.BATCH_ROWS]


@pytest.mark.parametrize("copies", [1, 20], ids=["a huge row group", "many row groups"])
def test_a_month_is_streamed_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    monkeypatch.setattr(simulate, "CHUNK", 2**20)
    monkeypatch.setattr(readers, "BATCH_ROWS", 1000)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", 5000)
    path = simulate_file(tmp_path, 300_000 // copies)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(copies):
            writer.write_table(table)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        made = prepare_file(path)
    finally:
        pa.set_memory_pool(default)
    assert made.counts[1] == table.num_rows * copies
    # The compressed columns of a row group are held; the decoded rows, twice as large, never are.
    assert pool.max_memory() < (table.nbytes / 2 if copies == 1 else 3 * table.nbytes)


def test_text_that_arrow_cannot_read_dictionary_encoded_is_read(tmp_path: Path) -> None:
    path = factory.write_2009(tmp_path / "delta.parquet", {}, {"vendor_name": "VTS"})
    encodings = dict.fromkeys(factory.TEXT_2009, "DELTA_BYTE_ARRAY")
    pq.write_table(pq.read_table(path), path, use_dictionary=False, column_encoding=encodings)
    assert prepare_file(path).values("vendor") == ["CMT", "VTS"]


# ---- the manifest, and failures ----


def test_the_manifest_describes_the_files(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    lines = [line(Payment_Type="Barter"), "VTS,2009-01-15 12:00:00", line(Fare_Amt=-1)]
    path = factory.write_csv(paths.raw(MONTH) / "yellow.csv", lines)
    assert run_cli(paths.root, "prepare", MONTH)[0] == 0
    manifest, folder = factory.manifest_of(paths.prepared(MONTH)), paths.prepared(MONTH)
    columns = manifest.pop("mapping")["columns"]
    assert columns["fare_amount"] == {"name": "Fare_Amt", "type": "string"}
    assert len(columns) == 13
    assert manifest.pop("columns").keys() == {*SCHEMA.arrow_schema.names}
    files = {"published": path, "trips": paths.prepared_file(MONTH), "quarantine": folder / "_quarantine.parquet"}
    assert manifest == {
        "month": MONTH,
        "rows_in": 3,
        "rows_out": 2,
        "quarantined": 1,
        "quarantined_by_reason": {readers.RAGGED: 1},
        "examples": {},
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
    "empty": (lambda _: b"", "its first line is blank"),
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


def test_a_lost_row_is_noticed(tmp_path: Path) -> None:
    class LossyMonth(readers.ParquetMonth):
        def batches(self, *arguments: Any) -> Any:
            for batch in super().batches(*arguments):
                yield readers.Batch(batch.rows[:-1], batch.values.slice(0, len(batch.rows) - 1))

    path = factory.write_2009(tmp_path / "month.parquet", {}, {}, {})
    month = readers.Month(path, [LossyMonth(path)])
    conformer = Conformer(SCHEMA, SCHEMA.match(month.schema, "here").names, MONTH)
    with pytest.raises(TiplineError, match="3 rows were published, 2 prepared and 0 quarantined"):
        prepare.write_month(conformer, month, tmp_path)
