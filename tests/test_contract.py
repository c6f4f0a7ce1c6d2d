"""The schema finds its columns under all their published names, and says what it misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from tests import factory
from tipline.errors import TiplineError, UsageError
from tipline.ingest.schema import Match, Schema, load_schema, normal

if TYPE_CHECKING:
    from collections.abc import Iterable

REQUIRED = [name for name, column in load_schema().columns.items() if column.required]


def small() -> Schema:
    columns = {
        "when": {"type": "timestamp", "meaning": "start", "names": {"1": ["Begin", "start"]}, "required": True},
        "kind": {
            "type": "category",
            "meaning": "kind",
            "names": {"1": "Kind", "3": "Sort"},
            "aliases": {"a": ["A", "1"], "b": ["B b"]},
        },
        "price": {
            "type": "number",
            "meaning": "dollars",
            "names": {"2": "Price"},
            "required": True,
            "known_after_outcome": True,
        },
        "seats": {"type": "integer", "meaning": "seats", "names": {"2": ["Seats"]}},
    }
    eras = {"1": "the first", "2": "the second", "3": "the third"}
    return Schema.model_validate({"version": 1, "eras": eras, "columns": columns, "ignored": ["colour"]})


def match(known: Schema, names: Iterable[str], **types: pa.DataType) -> Match:
    """Match columns of these names, text where no type is given."""
    return known.match(pa.schema([(name, types.get(name, pa.string())) for name in names]), "here")


def test_names_match_whatever_their_case_and_blanks() -> None:
    found = match(small(), [" BEGIN", "kind ", "pRiCe"])
    assert found.names == {"when": " BEGIN", "kind": "kind ", "price": "pRiCe"}


def test_any_of_a_columns_names_will_do() -> None:
    assert match(small(), ["start", "price"]).names["when"] == "start"


@pytest.mark.parametrize("published", [factory.RAW_2009, factory.RAW_TPEP])
def test_the_formats_of_2009_and_of_today_have_all_that_is_required(published: dict[str, object]) -> None:
    found = match(load_schema(), published)
    assert set(REQUIRED) <= set(found.names)
    assert found.unknown == []


def test_the_airport_fee_is_found_under_both_its_names() -> None:
    for name in ("airport_fee", "Airport_fee"):
        assert match(load_schema(), [*factory.RAW_2009, name]).names["airport_fee"] == name


def test_two_columns_for_one_place_are_refused() -> None:
    with pytest.raises(TiplineError, match=r"'Begin' and 'START', are both when") as raised:
        match(small(), ["Begin", "START", "Price"])
    assert raised.value.parts[1] == "here"


def test_two_columns_of_the_very_same_name_are_refused() -> None:
    with pytest.raises(TiplineError, match="both price"):
        match(small(), ["Begin", "Price", "Price"])


def test_two_unknown_columns_of_one_name_do_no_harm() -> None:
    assert match(small(), ["Begin", "Price", "x", "x"]).names == {"when": "Begin", "price": "Price"}


def test_a_missing_required_column_is_named_with_the_names_it_may_have() -> None:
    with pytest.raises(TiplineError) as raised:
        match(small(), ["Price", "Seats"])
    what, where, todo = raised.value.parts
    assert "when (as Begin or start)" in what
    assert "It has: Price, Seats" in what
    assert "price" not in what.partition("It has")[0]
    assert where == "here"
    assert "the schema" in todo


@pytest.mark.parametrize("name", REQUIRED)
def test_no_required_column_can_go_unnoticed(name: str) -> None:
    known = load_schema()
    published = [raw for raw in factory.RAW_2009 if raw != match(known, factory.RAW_2009).names[name]]
    with pytest.raises(TiplineError, match=rf"needs: {name} \(as"):
        match(known, published)


def test_unknown_columns_are_reported_and_ignored_ones_are_not() -> None:
    assert match(small(), ["Begin", " COLOUR ", "price", "weather", "Colour2"]).unknown == ["weather", "Colour2"]


def test_the_schema_is_the_row_number_and_the_columns_in_their_order() -> None:
    assert small().schema == pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            ("when", pa.timestamp("us")),
            ("kind", pa.dictionary(pa.int32(), pa.string())),
            ("price", pa.float64()),
            ("seats", pa.int32()),
        ]
    )
    assert load_schema().schema.names == ["row", *factory.TRIP_2009]


def test_the_first_timestamp_says_when_a_trip_began() -> None:
    assert small().time == "when"
    assert load_schema().time == "pickup_datetime"


@pytest.mark.parametrize(
    ("alias", "value"),
    [("A", "a"), ("1", "a"), (" a ", "a"), ("B B", "b"), ("new ", "new"), ("New", "New"), ("", None), ("  ", None)],
)
def test_spellings_become_their_canonical_value_and_unknown_ones_stay(alias: str, value: str | None) -> None:
    assert small().columns["kind"].canonical(alias) == value


@pytest.mark.parametrize("name", ["vendor", "payment_type", "rate_code"])
def test_no_spelling_stands_for_two_values(name: str) -> None:
    column = load_schema().columns[name]
    aliases = [normal(alias) for published in column.aliases.values() for alias in published]
    assert len(aliases) == len(set(aliases))


def test_a_feature_that_is_not_there_is_refused_with_the_nearest_column() -> None:
    with pytest.raises(UsageError, match="no column 'seat'") as raised:
        small().check_features(["kind", "seat"], "here")
    assert raised.value.parts[2] == "Did you mean seats?"


def test_a_feature_known_only_after_payment_is_refused() -> None:
    with pytest.raises(UsageError, match="price is known only after payment"):
        small().check_features(["kind", "price"], "here")


def test_what_contains_the_tip_is_known_only_after_payment() -> None:
    late = {name for name, column in load_schema().columns.items() if column.known_after_outcome}
    assert late == {"tip_amount", "total_amount"}


def test_other_columns_may_be_features() -> None:
    small().check_features(["kind", "seats", "when"], "here")
