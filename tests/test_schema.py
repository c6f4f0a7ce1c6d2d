"""The schema finds its columns under all their published names; an invalid schema file is refused with one message."""

import json
from collections.abc import Callable, Iterable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from tests.conftest import ROOT
from tests.factory import SCHEMA
from tipline.errors import TiplineError, UsageError
from tipline.ingest.schema import Match, Schema, load_schema
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

SMALL = """
version: 1
eras: {"1": first, "2": second, "3": third}
columns:
  when: {type: timestamp, meaning: start, names: {"1": [Begin, start]}, required: true}
  kind: {type: category, meaning: kind, names: {"1": Kind, "3": Sort}, aliases: {a: [A, "1"], b: [B b]}, fill: a}
  price: {type: number, meaning: dollars, names: {"2": Price}, required: true, known_after_outcome: true}
  seats: {type: integer, meaning: seats, names: {"2": [Seats]}, range: [0, 9], fill: 1}
ignored: [colour]
"""


@pytest.fixture
def small(tmp_path: Path) -> Schema:
    (tmp_path / "small.yaml").write_text(SMALL)
    return load_schema(tmp_path / "small.yaml")


def match(schema: Schema, names: Iterable[str]) -> Match:
    return schema.match(pa.schema([(name, pa.string()) for name in names]), "here")


def test_names_match_whatever_their_case_blanks_and_era(small: Schema) -> None:
    found = match(small, [" START", "sort ", "pRiCe", " COLOUR ", "weather", "weather"])
    assert found.names == {"when": " START", "kind": "sort ", "price": "pRiCe"}
    assert (found.era, found.unknown) == ("3", ["weather", "weather"])


def test_ambiguous_and_missing_columns_are_refused(small: Schema) -> None:
    for names, message in (
        (["Begin", "START", "Price"], "are both when"),
        (["Begin", "Price", "Price"], "are both price"),
        (["Price", "Seats"], r"needs: when \(as Begin or start\)\. It has: Price, Seats"),
    ):
        with pytest.raises(TiplineError, match=message) as raised:
            match(small, names)
        assert raised.value.parts[1] == "here"


def test_aliases_stand_for_values_and_unknown_ones_for_themselves(small: Schema) -> None:
    values = {"A": "a", "1": "a", " a ": "a", "B B": "b", "new ": "new", "New": "New", "  ": None}
    assert {alias: small.columns["kind"].canonical(alias) for alias in values} == values


def test_features_are_columns_that_are_known_before_the_outcome(small: Schema) -> None:
    small.check_features(["kind", "seats", "when"], "here")
    with pytest.raises(UsageError, match="no column 'seat'") as raised:
        small.check_features(["kind", "seat"], "here")
    assert raised.value.parts[2] == "Did you mean seats?"
    with pytest.raises(UsageError, match="price is known only after the outcome"):
        small.check_features(["kind", "price"], "here")
    late = {name for name, column in SCHEMA.columns.items() if column.known_after_outcome}
    assert late == {"tip_amount", "total_amount"}


# The keys to the value, the value (None: no such key), words of the message.
INVALID: dict[str, tuple[str, Any, str]] = {
    "unknown key": ("columns.price.requird", True, "unknown key columns.price.requird, did you mean required?"),
    "missing key": ("columns.price.meaning", None, "the key columns.price.meaning is missing"),
    "unknown type": ("columns.price.type", "money", "columns.price.type has to be 'category'"),
    "unknown era": ("columns.price.names.1999", "price", "columns.price.names: 1999 is not one of the eras"),
    "repeated name": ("columns.seats.names.3", " PRICE ", "columns.seats.names: price already belongs to price"),
    "no names": ("columns.price.names", {}, "columns.price.names must not be empty"),
    "fill is no value": ("columns.kind.fill", "c", "columns.kind.fill: c is not one of the values in aliases"),
    "fill of a time": ("columns.when.fill", "2020", "columns.when: fill: 2020 does not suit the type timestamp"),
    "fraction of an integer": ("columns.seats.fill", 0.5, "columns.seats: fill: 0.5 does not suit the type integer"),
    "repeated alias": ("columns.kind.aliases.b", ["B", "a "], "columns.kind: aliases: a is listed twice"),
    "range of a category": ("columns.kind.range", [0, 1], "columns.kind: range: only a number or an integer has one"),
    "range backwards": ("columns.seats.range", [9, 0], "columns.seats: range: 9 is not below 0"),
    "aliases of a number": ("columns.price.aliases", {"a": ["b"]}, "columns.price: aliases: only a category has them"),
    "an open number": ("columns.price.open", True, "columns.price: open: only a category can be"),
    "no timestamp": ("columns.when.type", "category", "columns: one of them has to be a timestamp"),
    "a column called row": ("columns.row", {"type": "number", "meaning": "x", "names": {"1": "x"}}, "row is taken"),
    "version": ("version", 0, "version has to be greater than or equal to 1"),
}
UNREADABLE: dict[str, tuple[bytes | None, str]] = {
    "cut off": (b"columns: [", "not valid YAML"),
    "not text": (b"\xff\xfe\x00", "not valid YAML"),
    "empty": (b"", "not a mapping"),
    "repeated key": (SMALL.replace("  seats:", "  kind:").encode(), 'found duplicate key "kind"'),
    "missing": (None, "There is no own.yaml"),
}


def change_values(keys: str, value: Any) -> bytes:
    values = yaml.safe_load(SMALL)
    *sections, last = keys.split(".")
    section = reduce(getitem, sections, values)
    section[last] = value
    if value is None:
        del section[last]
    return yaml.safe_dump(values).encode()


CASES = UNREADABLE | {name: (change_values(keys, value), words) for name, (keys, value, words) in INVALID.items()}


@pytest.mark.parametrize(("data", "words"), CASES.values(), ids=CASES)
def test_an_invalid_schema_file_is_refused_with_one_message(
    run_cli: Run, make_project: MakeProject, data: bytes | None, words: str
) -> None:
    paths = make_project(schema="own.yaml")
    if data is not None:
        (paths.root / "own.yaml").write_bytes(data)
    code, printed = run_cli(paths.root, "prepare", "2009-01")
    assert (code, words in printed) == (2, True), printed
    assert ("own.yaml" in printed, "Traceback" in printed, printed.count("to do:")) == (True, False, 1)


def test_a_schema_file_may_be_json(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "src/tipline/ingest/schema.yaml").read_text())
    (tmp_path / "schema.json").write_text(json.dumps(values))
    assert load_schema(tmp_path / "schema.json") == SCHEMA
