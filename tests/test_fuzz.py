"""Untrusted months: whatever the bytes are, a command ends in a month or in a message, in bounded memory and time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import factory, fuzzing
from tests.fuzzing import FORMAT, HOSTILE, MONTH, MUTATIONS, SEEDS, UNFORESEEN, Case, Child, faults, suits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.in_order  # one process runs them all, and what it holds of memory is counted
COMMANDS = [FORMAT, "prepare", "check"]
# As the long run draws them, and none that takes seconds: benchmarks/fuzz.py has those.
CHEAP = sorted(set(MUTATIONS) - {"csv_field", "csv_long"})
NUMBERS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with Child(tmp_path_factory.mktemp("fuzz") / "project") as running:
        yield running


def arguments(command: str, path: Path) -> tuple[str, ...]:
    return {FORMAT: (FORMAT, str(path)), "prepare": ("prepare", MONTH), "check": ("check", str(path), MONTH)}[command]


def wrong(child: Child, name: str, data: bytes, commands: list[str] = COMMANDS) -> dict[str, list[str]]:
    """What is wrong with what each command makes of a file."""
    path = child.put(name, data)
    found = {command: faults(child, command, child.run(*arguments(command, path))) for command in commands}
    return {command: said for command, said in found.items() if said}


def prepared(child: Child, name: str, data: bytes) -> tuple[list[Any], list[str]]:
    """The row numbers of a month that can be prepared, and the texts of its quarantine."""
    assert wrong(child, name, data, ["prepare"]) == {}
    folder = child.paths.prepared(MONTH)
    apart = pq.read_table(folder / "_quarantine.parquet")
    return pq.read_table(folder / "trips.parquet")["row"].to_pylist(), apart["raw"].to_pylist()


# ---- at random ----


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed = draw(st.sampled_from(sorted(SEEDS)))
    names = st.sampled_from([name for name in CHEAP if suits(name, seed)])
    mutations = draw(st.lists(st.tuples(names, NUMBERS), max_size=3))
    return Case(seed, draw(st.integers(0, 2**16)), tuple(mutations))


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=cases())
def test_a_hostile_month_is_prepared_or_refused(child: Child, case: Case) -> None:
    assert wrong(child, case.name, case.data()) == {}


@pytest.mark.parametrize("seed", ["csv_2009", "csv_2016", "parquet_2009", "parquet_today"])
def test_an_honest_month_is_prepared_however_it_was_written(child: Child, seed: str) -> None:
    for number in range(5):
        case = Case(seed, number)
        assert prepared(child, case.name, case.data()) == (list(range(fuzzing.ROWS)), [])


def test_a_case_is_the_same_bytes_every_time() -> None:
    drawn = [fuzzing.draw(fuzzing.dice_of(number)) for number in range(20)]
    assert [case.data() for case in drawn] == [case.data() for case in drawn]
    assert len({case.data() for case in drawn}) == 20


# ---- by name ----


@pytest.mark.parametrize("name", HOSTILE)
def test_a_named_hostile_month_is_prepared_or_refused(child: Child, name: str) -> None:
    file, make = HOSTILE[name]
    assert wrong(child, file, make()) == {}


@pytest.mark.parametrize("name", UNFORESEEN)
def test_what_takes_more_memory_than_there_is_ends_in_a_message(child: Child, name: str) -> None:
    file, make = UNFORESEEN[name]
    child.put(file, make())
    result = child.run("prepare", MONTH, room=150)
    assert faults(child, "prepare", result) == []
    assert result.code == 1


# ---- what fuzzing found ----


def test_months_whose_lines_end_in_cr_lose_no_rows(child: Child) -> None:
    data = fuzzing.csv_2009(fuzzing.dice_of(1))
    assert prepared(child, "m.csv", data.replace(b"\r\n", b"\r")) == (list(range(fuzzing.ROWS)), [])


def test_a_ragged_line_that_is_not_utf8_is_set_apart_without_a_word_of_pythons(child: Child) -> None:
    rows, apart = prepared(child, "m.csv", fuzzing.csv_2009(fuzzing.dice_of(1)) + b"\xe9,1\r\n")
    assert (rows, apart) == (list(range(fuzzing.ROWS)), ["\\xe9,1"])


@pytest.mark.parametrize("column", ["vendor_name", "Trip_Pickup_DateTime", "Fare_Amt"])
def test_text_of_parquet_that_is_not_utf8_is_set_apart(child: Child, column: str) -> None:
    good = {"vendor_name": "CMT", "Trip_Pickup_DateTime": "2009-01-01 00:00:00", "Fare_Amt": "7"}[column]
    texts = pa.array([good.encode(), b"\xff\xfe"]).buffers()
    data = fuzzing.with_column(column, pa.Array.from_buffers(pa.string(), 2, texts))
    rows, (apart,) = prepared(child, "m.parquet", data)
    assert rows == [0]
    assert "\\\\xff\\\\xfe" in apart


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
def test_what_a_column_cannot_hold_is_set_apart(child: Child, column: str, values: pa.Array) -> None:
    table = pa.Table.from_pylist([factory.RAW_TPEP] * 2, schema=pa.schema(list(factory.TYPES_TPEP.items())))
    place = table.column_names.index(column)
    rows, apart = prepared(child, "m.parquet", fuzzing.parquet_bytes(table.set_column(place, column, values)))
    assert (rows, len(apart)) == ([0], 1)


def test_a_time_beyond_pythons_is_kept_and_can_be_set_apart(child: Child) -> None:
    table = pa.Table.from_pylist([factory.RAW_TPEP] * 2, schema=pa.schema(list(factory.TYPES_TPEP.items())))
    times = pa.array([2**62, 2**62], pa.int64()).cast(pa.timestamp("us"))
    table = table.set_column(1, "tpep_pickup_datetime", times)
    table = table.set_column(3, "passenger_count", pa.array([1.5, 1.0]))
    rows, apart = prepared(child, "m.parquet", fuzzing.parquet_bytes(table))
    assert (rows, len(apart)) == ([1], 1)


def test_a_long_text_at_the_end_of_a_dictionary_is_not_repeated_in_memory(child: Child) -> None:
    words = pa.array([f"{number}.0" for number in range(999)] + ["7" * 1_000_000])
    values = pa.DictionaryArray.from_arrays(pa.array([*range(999), *[999] * 20_000], pa.int32()), words)
    options = {"dictionary_pagesize_limit": 2**30, "compression": "zstd"}
    child.put("m.parquet", fuzzing.with_column("Fare_Amt", values, **options))
    assert faults(child, "prepare", child.run("prepare", MONTH), 300) == []


@pytest.mark.parametrize("value", [-1, 0, 2**31 - 1, 2**62])
@pytest.mark.parametrize("seed", ["parquet_today", "parquet_2009"])
def test_every_number_of_a_footer_may_lie(child: Child, seed: str, value: int) -> None:
    data = Case(seed, 4).data()
    start = fuzzing.footer_start(data)
    footer = data[start:-8]
    lie = fuzzing.varint((value << 1) ^ (value >> 63))
    numbers = fuzzing.thrift_numbers(footer)
    # Those of the schema and of the first columns, and of the end; the long run has the others.
    for begin, end in (numbers[:60] + numbers[-30:])[:: 1 if seed == "parquet_today" else 4]:
        changed = footer[:begin] + lie + footer[end:]
        hostile = data[:start] + changed + len(changed).to_bytes(4, "little") + b"PAR1"
        assert wrong(child, "m.parquet", hostile, ["prepare"]) == {}


# ---- the harness itself ----


def test_a_process_that_dies_or_hangs_is_noticed_and_replaced(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    path = child.put("m.csv", b"a,b\n")
    monkeypatch.setattr(fuzzing, "HANG", 0.0)
    child.stop()
    hung = child.run(FORMAT, str(path))
    monkeypatch.undo()
    died = child.run(FORMAT, str(path / "no file"))
    assert [faults(child, FORMAT, result) for result in (hung, died)] == [[hung.printed], [died.printed]]
    assert ("hangs" in hung.printed, "NotADirectoryError" in died.printed) == (True, True)
    assert child.run(FORMAT, str(path)).code == 0
