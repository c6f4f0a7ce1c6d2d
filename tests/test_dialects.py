"""Data as people have them: quotes, dialects, compression, zones, identifiers, several files, a drafted schema."""

import bz2
import csv
import datetime as dt
import decimal
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import factory
from tests.workbench import change_settings
from tipline.errors import TiplineError, UsageError
from tipline.ingest import draft, losses, prepare, readers
from tipline.ingest.schema import Csv, Schema
from tipline.paths import Paths, month_folder
from tipline.storage import Storage

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]
MONTH = "2025-01"


def create_schema(columns: dict[str, Any], **csv_: Any) -> Schema:
    """Create a schema whose columns have their keys as names; `sent` is the time unless there is another."""
    columns = {"sent": {"type": "timestamp"}} | columns
    described = {key: {"meaning": key, "names": {MONTH: key}, **keys} for key, keys in columns.items()}
    return Schema.model_validate({"version": 1, "eras": {MONTH: "all"}, "csv": csv_, "columns": described})


def prepare_data(folder: Path, data: bytes | pa.Table, schema: Schema) -> factory.Prepared:
    """Prepare a file, or the files that are below `folder` already."""
    path = folder / "published"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        pq.write_table(data, path)
    (folder / "prepared").mkdir()
    return factory.Prepared(folder / "prepared", prepare.prepare_month(path, folder / "prepared", schema, MONTH))


TEXTS = ["plain", 'with "quotes"', "a, b", "two\nlines", "", '"', "é"]
FRAME = pd.DataFrame({"sent": "2025-01-02 03:04:05", "note": TEXTS, "weight": np.arange(len(TEXTS)) + 0.5})
NOTES = {"note": {"type": "identifier"}, "weight": {"type": "number"}}


@pytest.mark.parametrize("block", [100, 2**21])
@pytest.mark.parametrize(
    ("options", "dialect"),
    [
        ({}, {}),
        ({"quoting": csv.QUOTE_ALL}, {}),
        ({"sep": ";", "decimal": ",", "encoding": "cp1252"}, {"delimiter": ";", "decimal": ",", "encoding": "cp1252"}),
        (
            {"sep": "\t", "quotechar": "'", "encoding": "utf-16"},
            {"delimiter": "\t", "quote": "'", "encoding": "utf-16"},
        ),
        ({"encoding": "utf-8-sig", "lineterminator": "\r\n"}, {}),
    ],
)
def test_what_pandas_writes_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dialect: dict[str, Any], block: int
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", block)
    FRAME.to_csv(tmp_path / "written", index=False, **options)
    made = prepare_data(tmp_path, (tmp_path / "written").read_bytes(), create_schema(NOTES, **dialect))
    assert made.counts == (7, 7, 0)
    assert made.values("note") == [text or None for text in TEXTS]
    assert made.values("weight") == FRAME["weight"].tolist()


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lambda data: pa.compress(data, "zstd", asbytes=True)]
)
def test_compressed_files_are_recognized_by_their_bytes(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    data = compress(FRAME.to_csv(index=False).encode())
    assert prepare_data(tmp_path, data, create_schema(NOTES)).counts == (7, 7, 0)


def test_a_stray_quote_harms_its_own_line_alone(tmp_path: Path) -> None:
    lines = ["sent,note,weight", *[f"2025-01-02 03:04:05,line {row},{row}" for row in range(1000)]]
    lines[11], lines[501] = '2025-01-02 03:04:05,"open,10', '2025-01-02 03:04:05,a 5" screw,500'
    lines[701], lines[702] = '2025-01-02 03:04:05,"x,700', '2025-01-02 03:04:05,"y,701'
    lines[801] = '2025-01-02 03:04:05,"z"z,800'
    made = prepare_data(tmp_path, "\n".join(lines).encode(), create_schema(NOTES))
    assert made.counts == (1000, 1000, 0)
    assert made.values("weight") == list(range(1000))
    found = made.values("note")
    assert [found[row] for row in (10, 500, 700, 701, 800)] == ['"open', 'a 5" screw', '"x', '"y', '"z"z']


def test_a_quarantined_row_is_kept_as_it_was_published(tmp_path: Path) -> None:
    rows = ['2025-01-02 03:04:05,"a, b",1', '"no time","two\nlines",2', '2025-01-02 03:04:05,"c",3,4', ",,"]
    made = prepare_data(tmp_path, "\n".join(["sent,note,weight", *rows]).encode(), create_schema(NOTES))
    assert [(row["row"], row["raw"]) for row in made.quarantine] == [(1, rows[1]), (2, rows[2])]
    assert made.manifest["examples"] == {"sent is not a time": "no time"}


NEW_YORK, UTC = {"zone": "America/New_York"}, {"zone": "UTC"}
TIMES: dict[str, tuple[list[Any], dict[str, Any], list[str | None]]] = {
    "ISO": (
        ["2025-01-02T03:04:05", "2025-01-02 03:04", "2025-01-02"],
        {},
        ["02 03:04:05", "02 03:04:00", "02 00:00:00"],
    ),
    "offsets": (
        ["2025-01-02T03:04:05Z", "2025-01-02 03:04:05+01:00", "2025-01-02 03:04:05.5 UTC", "2025-01-02 03:04"],
        NEW_YORK,
        ["01 22:04:05", "01 21:04:05", "01 22:04:05", "02 03:04:00"],
    ),
    "no zone": (["2025-01-02T03:04:05Z", "2025-01-02 03:04:05"], {}, ["02 03:04:05"]),
    "day first": (
        ["2/1/2025 3:04", "31/02/2025 3:04", "02/01/25 3:04"],
        {"formats": ["%d/%m/%Y %H:%M"]},
        ["02 03:04:00"],
    ),
    "AM and PM": (
        ["01/02/2025 12:00:00 AM", "1/2/2025 1:02:03 pm", "1/2/2025 13:00:00 PM"],
        {"formats": ["%m/%d/%Y %I:%M:%S %p"]},
        ["02 00:00:00", "02 13:02:03"],
    ),
    "seconds": (["1735787045", "1735787045.5"], UTC | {"formats": ["seconds"]}, ["02 03:04:05"] * 2),
    "milliseconds": ([1_735_787_045_000, None], NEW_YORK | {"formats": ["milliseconds"]}, ["01 22:04:05", None]),
    "doubles": ([1_735_787_045.0, None], UTC | {"formats": ["seconds"]}, ["02 03:04:05", None]),
    "no zone of seconds": (["1735787045", "2025-01-02"], {"formats": ["seconds"]}, ["02 00:00:00"]),
}


@pytest.mark.parametrize(("values", "keys", "expected"), TIMES.values(), ids=TIMES)
def test_times_come_out_in_the_local_time_of_the_column(
    tmp_path: Path, values: list[Any], keys: dict[str, Any], expected: list[str | None]
) -> None:
    made = prepare_data(tmp_path, pa.table({"sent": values}), create_schema({"sent": {"type": "timestamp"} | keys}))
    assert [time and f"{time:%d %H:%M:%S}" for time in made.values("sent")] == expected
    assert made.counts == (len(values), len(expected), len(values) - len(expected))


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        (pa.timestamp("us", "UTC"), ["which has a time zone", "Add to sent there, zone: UTC, or the zone"]),
        (pa.int64(), ["seconds since 1970", "formats: [seconds]", "It holds '1735787045000000'"]),
    ],
)
def test_a_column_of_instants_without_a_zone_is_refused(tmp_path: Path, type_: pa.DataType, words: list[str]) -> None:
    table = pa.table({"sent": pa.array([1_735_787_045_000_000]).cast(type_)})
    with pytest.raises(TiplineError) as caught:
        prepare_data(tmp_path, table, create_schema({}))
    assert [word for word in words if word not in str(caught.value)] == []


CODES = {"code": {"type": "category", "aliases": {"one": ["1"], "two": ["2"], "half": ["0.5"], "three": ["3.0"]}}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "1.0", "2.00", "0.5", "3.0", " NULL "], ["one", "one", "two", "half", "three", None]),
        (["01.0", "3", "1e0", "1.5", None], ["01.0", "3", "1e0", "1.5", None]),
        ([1.0, 2.0, 0.5, None], ["one", "two", "half", None]),
        ([decimal.Decimal(1), decimal.Decimal(2), None], ["one", "two", None]),
        ([True, False], ["True", "False"]),
    ],
)
def test_a_whole_number_stands_for_a_declared_integer(
    tmp_path: Path, values: list[Any], expected: list[str | None]
) -> None:
    table = pa.table({"sent": pa.nulls(len(values), pa.timestamp("us")), "code": values})
    assert prepare_data(tmp_path, table, create_schema(CODES)).values("code") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([" a-1 ", "b" * 500, "", None, "nan"], ["a-1", "b" * 500, None, None, None]),
        ([2**62 + 1, None], [str(2**62 + 1), None]),
        ([7.0, None, float("nan")], ["7", None, None]),
        ([decimal.Decimal(10**30), None], [str(10**30), None]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
    ],
)
def test_identifiers_are_text_of_any_length(tmp_path: Path, values: Any, expected: list[str | None]) -> None:
    table = pa.table({"sent": pa.nulls(len(values), pa.timestamp("us")), "key": values})
    made = prepare_data(tmp_path, table, create_schema({"key": {"type": "identifier"}}))
    assert (made.values("key"), made.trips.schema.field("key").type) == (expected, pa.string())


def test_an_identifier_is_never_a_feature() -> None:
    schema = create_schema({"key": {"type": "identifier"}})
    with pytest.raises(UsageError, match="key is an identifier, never a feature"):
        schema.check_features(["key"], "params.yaml")


@pytest.mark.parametrize(
    ("columns", "csv_", "words"),
    [
        ({"sent": {"type": "timestamp", "zone": "New York"}}, {}, "invalid timezone: New York"),
        ({"sent": {"type": "timestamp", "formats": ["%d/%m %H:%M"]}}, {}, "with year, month and day"),
        (
            {"sent": {"type": "timestamp", "formats": ["%d/%m/%Y %Q"]}},
            {},
            "neither seconds nor milliseconds nor a form",
        ),
        ({"weight": {"type": "number", "zone": "UTC"}}, {}, "only a timestamp has them"),
        ({}, {"encoding": "utf-9"}, "no encoding 'utf-9'"),
        ({}, {"delimiter": ";;"}, "at most 1 character"),
    ],
)
def test_a_mistake_in_the_schema_is_named(columns: dict[str, Any], csv_: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_schema(columns, **csv_)


# ---- several files ----


def test_the_files_of_a_month_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    for day, region in ((1, "north"), (2, "south")):
        path = folder / f"region={region}" / f"day-{day}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(f"sent,weight\n2025-01-0{day},{day}\nno time,7\n2025-01-0{day},{day + 10}\n")
    schema = create_schema({"weight": {"type": "number"}, "region": {"type": "category"}})
    prepared = month_folder(tmp_path, MONTH)
    prepared.mkdir()
    made = factory.Prepared(prepared, prepare.prepare_month(folder, prepared, schema, MONTH))
    assert (made.values("row"), made.values("weight")) == ([0, 2, 3, 5], [1, 11, 2, 12])
    assert made.values("region") == ["north", "north", "south", "south"]
    assert [(row["row"], row["raw"]) for row in made.quarantine] == [(1, "no time,7"), (4, "no time,7")]
    assert readers.read_row(readers.open_month(folder, MONTH, Csv()), 5) == "2025-01-02,12"
    assert prepare.find_prepared(Storage(str(tmp_path)), folder, schema, MONTH) == made.manifest
    (folder / "region=south" / "day-3.csv").write_text("sent,heaviness\n2025-01-03,1\n")
    with pytest.raises(TiplineError, match="differ: heaviness, weight"):
        prepare.find_prepared(Storage(str(tmp_path)), folder, schema, MONTH)


def test_files_whose_types_differ_are_one_month(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    for day, values in enumerate(([1, 2], [1.5, None]), 1):
        table = pa.table({"sent": [dt.datetime(2025, 1, day)] * 2, "weight": values})  # noqa: DTZ001 (local)
        pq.write_table(table, tmp_path / "published" / f"{day}.parquet")
    (tmp_path / "prepared").mkdir()
    schema = create_schema({"weight": {"type": "number"}})
    prepare.prepare_month(tmp_path / "published", tmp_path / "prepared", schema, MONTH)
    assert factory.Prepared(tmp_path / "prepared", {}).values("weight") == [1, 2, 1.5, None]


@pytest.mark.parametrize("source", ["days/{month}-*.csv", "days/{month}", "days/{year}/{mm}/"])
def test_the_days_of_a_month_are_gathered(run_cli: Run, make_project: MakeProject, source: str) -> None:
    paths = make_project(source=source)
    for day in (1, 2):
        name = {"days/{month}-*.csv": f"2009-01-{day}.csv", "days/{month}": f"2009-01/{day}.csv"}.get(
            source, f"2009/01/{day}.csv"
        )
        factory.write_csv(paths.root / "days" / name, [factory.line(Fare_Amt=day)])
    (paths.root / "days" / "_SUCCESS").write_text("")
    assert run_cli(paths.root, "download", "2009-01")[0] == 0
    assert run_cli(paths.root, "prepare", "2009-01")[0] == 0
    assert pq.read_table(paths.prepared_file("2009-01"))["fare_amount"].to_pylist() == [1, 2]
    manifest = json.loads(paths.raw_manifest("2009-01").read_text())
    assert [len(manifest["files"]), manifest["bytes"]] == [2, sum(one["bytes"] for one in manifest["files"])]
    assert run_cli(paths.root, "download", "2009-02")[0] == 5


# ---- what a month may lose ----


@pytest.mark.parametrize(
    ("good", "bad", "code"), [(9_950, 99, 0), (9_950, 100, 0), (5_000, 99, 0), (5_000, 100, 1), (0, 1, 1)]
)
def test_a_month_that_loses_too_much_stops(
    run_cli: Run, make_project: MakeProject, good: int, bad: int, code: int
) -> None:
    paths = make_project()
    lines = [factory.line()] * good + [factory.line(Fare_Amt="7.7 $")] * bad
    factory.write_csv(paths.raw("2009-01") / "m.csv", lines)
    found, printed = run_cli(paths.root, "prepare", "2009-01")
    assert found == code, printed
    assert paths.prepared_file("2009-01").is_file() == (code == 0)
    if code:
        assert f"{bad:,} of {good + bad:,} row" in printed
        assert "fare_amount is not a number" in printed
        assert "for example '7.7 $'; accepted: 12.5, -3, 1e3" in printed
        assert f"row {good:,}: CMT,2009-01-15 12:00:00" in printed
        change_settings(paths, prepare={"accept": {"2009-01": "the meter was broken"}})
        assert run_cli(paths.root, "prepare", "2009-01")[0] == 0
        change_settings(paths, prepare={"accept": {}})
        assert run_cli(paths.root, "prepare", "2009-01")[0] == 1
        assert paths.prepared_file("2009-01").is_file()


def test_a_month_of_unknown_words_stops(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    for count, code in ((2, 0), (3, 1)):
        lines = [factory.line(vendor_name="Juno" if row < count else "CMT") for row in range(4)]
        factory.write_csv(paths.raw("2009-01") / "m.csv", lines)
        found, printed = run_cli(paths.root, "prepare", "2009-01")
        assert found == code
    assert "3 values of vendor stand for none of CMT, DDS, VTS, Myle, Helix, such as 'Juno'" in printed
    assert "vendor: {aliases: {VALUE: ['Juno']}}" in printed


def test_shares_that_other_months_do_not_have_are_unusual() -> None:
    usual = {"rows_in": 100, "rows_out": 100, "quarantined": 0, "unknown_aliases": {}, "filled": {"extra": 40}}
    months = [usual | {"month": f"2009-0{number}"} for number in range(1, 6)]
    months[1] |= {"quarantined": 2, "filled": {"extra": 44}}
    months[2] |= {"unknown_aliases": {"vendor: Juno": 4, "vendor: Via: X": 3}, "filled": {"extra": 46}}
    assert losses.find_unusual(months) == {
        "2009-02": ["2.0% quarantined rows"],
        "2009-03": ["46.0% filled values of extra", "7.0% unknown values of vendor"],
    }


# ---- a drafted schema ----


def create_frame(rows: int = 500) -> pd.DataFrame:
    random = np.random.default_rng(1)
    times = pd.Timestamp(MONTH) + pd.to_timedelta(random.integers(0, 31 * 86_400, rows), unit="s")
    return pd.DataFrame(
        {
            "OrderID": np.arange(rows) + 10**12,
            "Sent at": times.strftime("%d/%m/%Y %H:%M"),
            "arrived": times.tz_localize("UTC").strftime("%Y-%m-%dT%H:%M:%SZ"),
            "epoch": times.astype("datetime64[s]").astype("int64"),
            "carrier": random.choice(["Swift, Ltd.", "steady", "Steady"], rows),
            "weight": random.gamma(2, 1.5, rows).round(2),
            "pieces": random.integers(1, 4, rows),
            "late": random.choice(["yes", "no"], rows),
            "note": [f"text {number}" for number in range(rows)],
            "row": 1,
        }
    )


TYPES = {
    "order_id": "identifier",
    "sent_at": "timestamp",
    "arrived": "timestamp",
    "epoch": "timestamp",
    "carrier": "category",
    "weight": "number",
    "pieces": "integer",
    "late": "boolean",
    "note": "identifier",
    "column_row": "integer",
}


@pytest.mark.parametrize("kind", ["csv", "semicolons", "parquet"])
def test_a_drafted_schema_reads_what_it_was_drafted_from(
    run_cli: Run, make_project: MakeProject, tmp_path: Path, kind: str
) -> None:
    paths, frame = make_project(), create_frame()
    if kind == "parquet":
        frame.to_parquet(tmp_path / MONTH)
    else:
        options: dict[str, Any] = {"sep": ";", "decimal": ","} if kind == "semicolons" else {}
        frame.to_csv(tmp_path / MONTH, index=False, **options)
    (paths.root / "params.yaml").write_text("schema: not_yet.yaml\n")
    arguments = ("check", "--write", "draft.yaml", f"{tmp_path}/{{month}}", MONTH)
    code, printed = run_cli(paths.root, *arguments)
    assert code == 0, printed
    assert f"quarantined  0 of the first {len(frame)} rows" in printed
    schema = Schema.model_validate(yaml.safe_load((paths.root / "draft.yaml").read_text()))
    assert {key: column.type for key, column in schema.columns.items()} == TYPES
    assert [{*schema.columns["carrier"].known}, len(schema.columns["carrier"].aliases)] == [
        {"swift, ltd.", "steady"},
        2,
    ]
    assert schema.columns["pieces"].range == (0, 10)
    made = prepare_data(paths.root, (tmp_path / MONTH).read_bytes(), schema)
    assert made.counts == (len(frame), len(frame), 0)
    assert made.values("weight") == frame["weight"].tolist()
    assert made.values("sent_at") == pd.to_datetime(frame["Sent at"], dayfirst=True).dt.to_pydatetime().tolist()
    code, printed = run_cli(paths.root, *arguments)
    assert (code, "exists already" in printed) == (2, True)


def test_a_draft_knows_words_for_missing_values_codes_long_numbers_and_folders(tmp_path: Path) -> None:
    """Otherwise a number with NA becomes text, a code loses its zero, and two numbers become one."""
    numbers = [decimal.Decimal(12345678901234567890), decimal.Decimal(12345678901234567891)]
    columns = {"at": ["2025-01-01"] * 2, "price": ["1.5", "NA"], "zip": ["01234", "10115"], "order": numbers}
    columns["note"] = [None, None]
    names = [f"region={region}/part.parquet" for region in ("north%20west", "south")]
    for name in names:
        (tmp_path / "month" / name).parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), tmp_path / "month" / name)
    month = readers.open_month(tmp_path / "month", MONTH, Csv())
    schema = Schema.model_validate(yaml.safe_load(draft.draft_schema(month, MONTH, names)))
    types = ["timestamp", "number", "category", "identifier", "category", "category"]
    assert [column.type for column in schema.columns.values()] == types
    assert [*schema.columns["zip"].aliases] == ["01234", "10115"]
    assert [*schema.columns["region"].aliases] == ["north west", "south"]
    assert [key for key, column in schema.columns.items() if not column.required] == ["price", "note"]
    manifest = prepare.prepare_month(tmp_path / "month", tmp_path, schema, MONTH)
    prepared = pq.read_table(tmp_path / "trips.parquet", partitioning=None).to_pydict()
    assert (manifest["quarantined"], prepared["price"]) == (0, [1.5, None] * 2)
    assert prepared["order"] == [str(number) for number in numbers] * 2


def test_a_category_of_many_values_is_drafted_as_open(tmp_path: Path) -> None:
    areas = [f"area {number % 60}" for number in range(300)]
    pd.DataFrame({"at": "2025-01-01", "area": areas, "kind": "x"}).to_csv(tmp_path / "month.csv", index=False)
    month = readers.open_month(tmp_path / "month.csv", MONTH, Csv())
    drafted = yaml.safe_load(draft.draft_schema(month, MONTH, ["month.csv"]))
    columns = Schema.model_validate(drafted).columns
    assert [(column.open, [*column.aliases]) for column in columns.values()] == [
        (False, []),
        (True, []),
        (False, ["x"]),
    ]
    manifest = prepare.prepare_month(tmp_path / "month.csv", tmp_path, Schema.model_validate(drafted), MONTH)
    assert manifest["unknown_aliases"] == {}


def test_three_hundred_columns_are_drafted(tmp_path: Path) -> None:
    frame = pd.DataFrame({f"measure {number}": [1.5, 2.5] for number in range(299)} | {"at": "2025-01-01"})
    frame.to_csv(tmp_path / "month.csv", index=False)
    month = readers.open_month(tmp_path / "month.csv", MONTH, Csv())
    drafted = yaml.safe_load(draft.draft_schema(month, MONTH, ["month.csv"]))
    assert len(Schema.model_validate(drafted).columns) == 300
