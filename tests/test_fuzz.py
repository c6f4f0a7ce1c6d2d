"""Untrusted months: whatever the bytes are, a command ends in a month or in a message, in bounded memory and time."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from tests import fuzzing
from tests.fuzzing import HOSTILE, ROWS, Project

pytestmark = pytest.mark.in_order  # one process runs them all, and its memory is counted


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("fuzz") / "project")
    yield made
    made.process.kill()


def prepare(project: Project, data: bytes) -> tuple[list[Any], list[str]]:
    """The row numbers of a month that can be prepared, and the texts of its quarantine."""
    assert project.find_all_faults(data) == []
    trips, quarantine = project.read()
    return trips["row"].to_pylist(), quarantine["raw"].to_pylist()


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=fuzzing.months())
def test_a_random_month_is_prepared_or_refused(project: Project, data: bytes) -> None:
    assert project.find_all_faults(data) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_month_is_prepared_or_refused(project: Project, name: str) -> None:
    assert project.find_all_faults(HOSTILE[name]()) == []


def test_honest_months_lose_no_rows(project: Project) -> None:
    csv, tables = fuzzing.write_csv(), (fuzzing.create_table(), fuzzing.create_table(today=True))
    for data in (csv, csv.replace(b"\r\n", b"\r"), *map(fuzzing.write_bytes, tables)):
        assert prepare(project, data) == (list(range(ROWS)), [])


# ---- what fuzzing has found ----


def test_a_malformed_line_that_is_not_utf8_is_quarantined(project: Project) -> None:
    assert prepare(project, fuzzing.write_csv() + b"\xe9,1\r\n") == (list(range(ROWS)), ["\\xe9,1"])


@pytest.mark.parametrize(
    ("column", "good"), [("vendor_name", b"CMT"), ("Trip_Pickup_DateTime", b"2009-01-01 00:00:00"), ("Fare_Amt", b"7")]
)
def test_text_of_parquet_that_is_not_utf8_is_quarantined(project: Project, column: str, good: bytes) -> None:
    values = pa.Array.from_buffers(pa.string(), 2, pa.array([good, b"\xff\xfe"]).buffers())
    rows, (raw,) = prepare(project, fuzzing.replace_column(column, values))
    assert (rows, "\\\\xff\\\\xfe" in raw) == ([0], True)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("passenger_count", pa.array([1, 2**64 - 1], pa.uint64())),
        ("passenger_count", pa.array([1.0, float("inf")])),
        ("tpep_pickup_datetime", pa.array([1, 2**62], pa.int64()).cast(pa.timestamp("ms"))),
        ("tpep_pickup_datetime", pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32())),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_quarantined(project: Project, column: str, values: pa.Array) -> None:
    table = fuzzing.create_table(today=True, rows=2)
    place = table.column_names.index(column)
    rows, raw = prepare(project, fuzzing.write_bytes(table.set_column(place, column, values)))
    assert (rows, len(raw)) == ([0], 1)


def test_a_time_that_python_cannot_hold_is_kept_and_can_be_quarantined(project: Project) -> None:
    table = fuzzing.create_table(today=True, rows=2).set_column(3, "passenger_count", pa.array([1.5, 1.0]))
    times = pa.array([2**62, 2**62]).cast(pa.timestamp("us"))
    rows, raw = prepare(project, fuzzing.write_bytes(table.set_column(1, "tpep_pickup_datetime", times)))
    assert (rows, len(raw)) == ([1], 1)
