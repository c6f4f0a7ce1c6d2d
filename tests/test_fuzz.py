"""Untrusted months: whatever the bytes are, a command ends in a month or in a message, in bounded memory and time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from tests import factory, fuzzing
from tests.factory import MONTH
from tests.fuzzing import HOSTILE, ROWS, UNFORESEEN, Child, Result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.in_order  # one process runs them all, and its memory is counted


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    running = Child(tmp_path_factory.mktemp("fuzz") / "project")
    yield running
    running.stop()


def prepare(child: Child, data: bytes) -> tuple[list[Any], list[str]]:
    """The row numbers of a month that can be prepared, and the texts of its quarantine."""
    assert child.find_all_faults(data) == {}
    folder = child.paths.prepared(MONTH)
    trips, quarantine = (pq.read_table(folder / name) for name in ("trips.parquet", "_quarantine.parquet"))
    return trips["row"].to_pylist(), quarantine["raw"].to_pylist()


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=fuzzing.months())
def test_a_random_month_is_prepared_or_refused(child: Child, data: bytes) -> None:
    assert child.find_all_faults(data) == {}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_month_is_prepared_or_refused(child: Child, name: str) -> None:
    assert child.find_all_faults(HOSTILE[name]()) == {}


@pytest.mark.parametrize("name", UNFORESEEN)
def test_a_month_that_needs_more_memory_than_there_is_ends_in_a_message(child: Child, name: str) -> None:
    child.put(UNFORESEEN[name]())
    result = child.run("prepare", MONTH, room=150)
    assert child.find_faults(result) + child.find_prepared_faults(result) == []
    assert result.code == 1


def test_honest_months_lose_no_rows(child: Child) -> None:
    for data in (fuzzing.write_csv(), fuzzing.write_csv().replace(b"\r\n", b"\r"), fuzzing.write_csv_2016()):
        assert prepare(child, data) == (list(range(ROWS)), [])
    for today in (False, True):
        assert prepare(child, fuzzing.write_bytes(fuzzing.create_table(today=today))) == (list(range(ROWS)), [])


@pytest.mark.parametrize("value", [-1, 0, 2**31 - 1, 2**62])
def test_any_number_of_a_footer_may_be_wrong(child: Child, value: int) -> None:
    data = fuzzing.write_bytes(fuzzing.create_table(today=True), row_group_size=25, store_schema=False)
    start = fuzzing.find_footer(data)
    for place in [*range(start, len(data) - 8)][:: max((len(data) - start) // 150, 1)]:
        child.put(fuzzing.replace_number(data, place, value))
        result = child.run("prepare", MONTH)
        assert child.find_faults(result) + child.find_prepared_faults(result) == []


# ---- what fuzzing has found ----


def test_a_malformed_line_that_is_not_utf8_is_quarantined(child: Child) -> None:
    assert prepare(child, fuzzing.write_csv() + b"\xe9,1\r\n") == (list(range(ROWS)), ["\\xe9,1"])


@pytest.mark.parametrize("column", ["vendor_name", "Trip_Pickup_DateTime", "Fare_Amt"])
def test_text_of_parquet_that_is_not_utf8_is_quarantined(child: Child, column: str) -> None:
    good = {"vendor_name": b"CMT", "Trip_Pickup_DateTime": b"2009-01-01 00:00:00", "Fare_Amt": b"7"}[column]
    values = pa.Array.from_buffers(pa.string(), 2, pa.array([good, b"\xff\xfe"]).buffers())
    rows, (raw,) = prepare(child, fuzzing.replace_column(column, values))
    assert rows == [0]
    assert "\\\\xff\\\\xfe" in raw


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("passenger_count", pa.array([1, 2**64 - 1], pa.uint64())),
        ("passenger_count", pa.array([1.0, float("inf")])),
        ("passenger_count", pa.array([1, 2**40])),
        ("tpep_pickup_datetime", pa.array([1, 2**62], pa.int64()).cast(pa.timestamp("ms"))),
        ("tpep_pickup_datetime", pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32())),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_quarantined(child: Child, column: str, values: pa.Array) -> None:
    table = fuzzing.create_table(today=True, rows=2)
    place = table.column_names.index(column)
    rows, raw = prepare(child, fuzzing.write_bytes(table.set_column(place, column, values)))
    assert (rows, len(raw)) == ([0], 1)


def test_a_time_that_python_cannot_hold_is_kept_and_can_be_quarantined(child: Child) -> None:
    table = fuzzing.create_table(today=True, rows=2)
    table = table.set_column(1, "tpep_pickup_datetime", pa.array([2**62, 2**62], pa.int64()).cast(pa.timestamp("us")))
    table = table.set_column(3, "passenger_count", pa.array([1.5, 1.0]))
    rows, raw = prepare(child, fuzzing.write_bytes(table))
    assert (rows, len(raw)) == ([1], 1)


def test_a_crash_a_hang_and_a_bad_message_are_noticed(tmp_path: Path) -> None:
    child = Child(tmp_path / "project", seconds=0.0)
    child.put(factory.line().encode())
    assert child.find_faults(child.run("prepare", MONTH)) == ["exit code None: hangs: prepare 2009-01"]
    child.seconds = 20.0
    child._process.kill()
    assert child.find_faults(child.run("prepare", MONTH)) == ["exit code None: crashed: prepare 2009-01"]
    assert child.find_faults(child.run("prepare", MONTH)) == []
    assert child.find_faults(Result(1, "Traceback\x1b", 601.0))[::2] != []
    child.stop()
