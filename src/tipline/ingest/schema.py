"""The schema file, and how the columns of a published month map to it."""

import codecs
import difflib
import itertools
import math
import re
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tipline import validation
from tipline.errors import TiplineError, UsageError, shorten_text
from tipline.ingest import columns
from tipline.validation import Section

ROW = pa.field("row", pa.int64(), nullable=False)
MAX_HEADER_LETTERS = 2**16  # of all names of a month, which has two dozen columns
SHOWN_NAMES = 40
CONVERSION = {"type", "fill", "range", "formats", "zone", "open"}  # keys of a column that prepared values depend on
CHECK_FILE = "Check that this is a month of the schema's data."


def is_text_type(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


# Type of a column: the published types that can be read beside text and nulls, the usual one first, and their names.
NUMBERS = [pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal]
READABLE: dict[str, tuple[list[Callable[[pa.DataType], bool]], str]] = {
    "category": ([is_text_type, pa.types.is_boolean, *NUMBERS], "text or numbers"),
    "identifier": ([is_text_type, pa.types.is_integer, pa.types.is_decimal, pa.types.is_floating], "text or numbers"),
    "timestamp": ([pa.types.is_timestamp, pa.types.is_date], "timestamps, dates or text"),
    "number": (NUMBERS, "numbers or text"),
    "integer": ([pa.types.is_integer, *NUMBERS], "numbers or text"),
    "boolean": ([pa.types.is_boolean, *NUMBERS], "true and false, 0 and 1 or text"),
}
DIRECTIVES = "YymbBdHIMSpf"  # of times in `formats`, as in strptime
EPOCHS: dict[str, Literal["s", "ms"]] = {"seconds": "s", "milliseconds": "ms"}  # since 1970, in UTC; units in pandas


def normalize_name(text: str) -> str:
    """Return the form in which names and aliases are compared: the TLC changes case and adds blanks."""
    return text.strip().casefold()


def wrap_name(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def check_format(text: str) -> str:
    """Return a form of times; raise ValueError unless it is one of EPOCHS or names year, month and day."""
    names = re.findall("%(.?)", text)
    counts = [sum(names.count(name) for name in letters) for letters in ("Yy", "mbB", "d")]
    is_form = counts == [1, 1, 1] and len(names) == len({*names}) and {*names} <= {*DIRECTIVES}
    if text not in EPOCHS and not is_form:
        allowed = ", ".join(f"%{name}" for name in DIRECTIVES)
        what = f"{text!r} is neither seconds nor milliseconds nor a form of {allowed} with year, month and day"
        raise ValueError(what)
    return text


def check_codec(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError(f"Python knows no encoding {name!r}") from None


Format = Annotated[str, AfterValidator(check_format)]
Letter = Annotated[str, Field(min_length=1, max_length=1)]


class Csv(Section):
    """How CSV files of the data are written; schema.yaml explains the keys."""

    delimiter: Letter = ","
    quote: Letter | None = '"'
    decimal: Literal[".", ","] = "."
    encoding: Annotated[str, AfterValidator(check_codec)] = "utf-8"
    timestamp_formats: tuple[Format, ...] = ()
    null_values: tuple[str, ...] = ("null", "nan", r"\N")


class Column(Section):
    """A column of the schema; schema.yaml explains the keys."""

    type: Literal["category", "identifier", "timestamp", "number", "integer", "boolean"]
    meaning: str
    unit: str | None = None
    names: Annotated[dict[str, Annotated[tuple[str, ...], BeforeValidator(wrap_name)]], Field(min_length=1)]
    aliases: dict[str, tuple[str, ...]] = Field(default={})
    open: bool = False
    formats: tuple[Format, ...] = ()
    zone: zoneinfo.ZoneInfo | None = None
    fill: str | float | None = None
    range: tuple[float, float] | None = None
    required: bool = False
    known_after_outcome: bool = False

    @model_validator(mode="after")
    def _suits_its_type(self) -> Self:
        aliases = [normalize_name(alias) for aliases in self.aliases.values() for alias in aliases]
        repeated = next((alias for alias in aliases if aliases.count(alias) > 1), None)
        is_number, is_category = self.type in {"number", "integer"}, self.type == "category"
        fill, (low, high) = self.fill, self.range or (0, 1)
        is_suitable = isinstance(fill, float) and math.isfinite(fill) and (self.type == "number" or fill.is_integer())
        problems = {
            "aliases: only a category has them": aliases and not is_category,
            f"aliases: {repeated} is listed twice": repeated is not None,
            "open: only a category can be": self.open and not is_category,
            "formats, zone: only a timestamp has them": (self.formats or self.zone) and self.type != "timestamp",
            "range: only a number or an integer has one": self.range and not is_number,
            f"range: {low:g} is not below {high:g}": not low < high,
            f"fill: {fill} does not suit the type {self.type}": not (
                fill is None or is_category or (is_number and is_suitable)
            ),
        }
        for problem in (text for text, is_so in problems.items() if is_so):
            raise ValueError(problem)
        return self

    @property
    def eras(self) -> dict[str, str]:
        return {normalize_name(name): era for era, names in self.names.items() for name in names}

    @property
    def known(self) -> dict[str, str]:
        return {normalize_name(alias): value for value, aliases in self.aliases.items() for alias in aliases}

    def canonical(self, alias: str, nulls: Collection[str] = ()) -> str | None:
        """Return the value that an alias stands for: itself if unknown, None if blank or null. 1.0 is 1, too."""
        name = normalize_name(alias)
        whole = re.fullmatch(r"(-?(?:0|[1-9]\d*))\.0+", name)
        value = self.known.get(name) or (self.known.get(whole[1]) if whole else None)
        return value or (None if name in nulls else alias.strip() or None)

    def rank_type(self, type_: pa.DataType) -> int | None:
        """Return 0 for the usual published type of this column, more for others that can be read, None for the rest."""
        type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
        if self.type == "timestamp" and pa.types.is_timestamp(type_) and type_.tz and not self.zone:
            return None
        epochs = NUMBERS if {*self.formats} & {*EPOCHS} else []
        tests = [*READABLE[self.type][0], is_text_type, pa.types.is_null, *epochs]
        return next((rank for rank, test in enumerate(tests) if test(type_)), None)


@dataclass(frozen=True)
class Match:
    """How the columns of a published month map to the schema."""

    era: str  # the latest one that has brought one of the month's names
    names: dict[str, str]  # the published name and type of each column of the schema that the month has
    types: dict[str, pa.DataType]
    unknown: list[str]  # published names that the schema does not have


class Schema(Section):
    """The columns that every prepared month has."""

    version: Annotated[int, Field(ge=1)]
    eras: dict[str, str]
    csv: Csv = Csv()
    columns: dict[str, Column]
    ignored: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        owners = {normalize_name(name): "ignored" for name in self.ignored}
        for key, column in self.columns.items():
            for era in sorted(set(column.names) - set(self.eras)):
                raise ValueError(f"columns.{key}.names: {era} is not one of the eras")
            for name in column.eras:
                if name in owners:
                    raise ValueError(f"columns.{key}.names: {name} already belongs to {owners[name]}")
                owners[name] = key
            if column.type == "category" and column.fill is not None and column.fill not in column.aliases:
                raise ValueError(f"columns.{key}.fill: {column.fill} is not one of the values in aliases")
        if "timestamp" not in {column.type for column in self.columns.values()}:
            raise ValueError("columns: one of them has to be a timestamp")
        if ROW.name in self.columns:
            raise ValueError(f"columns: the name {ROW.name} is taken, by the row's number")
        return self

    @property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of a prepared month: `row`, the number in the published file from 0, then the columns."""
        return pa.schema([ROW, *(pa.field(name, columns.TYPES[c.type]) for name, c in self.columns.items())])

    @property
    def time(self) -> str:
        """The column that says when a trip began: the first timestamp."""
        return next(name for name, column in self.columns.items() if column.type == "timestamp")

    def match(self, published: pa.Schema, where: str, get_example: Callable[[str], object] | None = None) -> Match:
        """Map the columns of a published month to the schema's; `get_example` returns a value of a column for messages.

        Raises TiplineError if a required column is missing, two have the same meaning, or a type cannot be read.
        """
        names = list(published.names)
        if len(names) + sum(map(len, names)) > MAX_HEADER_LETTERS:
            what = f"The month's {len(names):,} columns have names of {sum(map(len, names)):,} letters in all."
            raise TiplineError(what, where, CHECK_FILE)
        keys = {name: key for key, column in self.columns.items() for name in column.eras}
        fields: dict[str, pa.Field] = {}
        for field in published:
            key = keys.get(normalize_name(field.name))
            if key in fields:
                both = f"{shorten_text(fields[key].name)!r} and {shorten_text(field.name)!r}"
                todo = "Remove one from the file, or its name from the schema."
                raise TiplineError(f"Two columns, {both}, are both {key}.", where, todo)
            if key is not None:
                fields[key] = field
        missing = [key for key, column in self.columns.items() if column.required and key not in fields]
        if missing:
            usual = {key: " or ".join(itertools.chain(*self.columns[key].names.values())) for key in missing}
            expected = "; ".join(f"{key} (as {text})" for key, text in usual.items())
            what = f"The month lacks columns that the schema needs: {expected}. It has: {format_names(names)}."
            raise TiplineError(what, where, f"{CHECK_FILE} In the schema, add a new name to the column's `names`.")
        for key, field in fields.items():
            if self.columns[key].rank_type(field.type) is None:
                what, todo = self._explain_type(key, field)
                example = get_example and get_example(field.name)
                what += f" It holds {shorten_text(str(example))!r}, for example." if example is not None else ""
                raise TiplineError(what, where, todo)
        known = {normalize_name(name) for name in self.ignored} | set(keys)
        return Match(
            era=max((self.columns[key].eras[normalize_name(field.name)] for key, field in fields.items()), default=""),
            names={key: field.name for key, field in fields.items()},
            types={key: field.type for key, field in fields.items()},
            unknown=[name for name in names if normalize_name(name) not in known],
        )

    def _explain_type(self, key: str, field: pa.Field) -> tuple[str, str]:
        type_, zones = self.columns[key].type, "zone: UTC, or the zone whose local time it is to have, America/New_York"
        what = f"The column {shorten_text(field.name)!r} is of type {shorten_text(field.type)}"
        if type_ == "timestamp" and pa.types.is_timestamp(field.type):
            what, todo = f"{what}, which has a time zone; the schema's {key} has none.", f"Add to {key} there, {zones}."
            return what, todo
        what += f"; the schema's {key} has the type {type_} and expects {READABLE[type_][1]}."
        if type_ == "timestamp" and any(test(field.type) for test in NUMBERS):
            return what, f"If they are seconds since 1970, add to {key} in the schema, formats: [seconds] and {zones}."
        return what, f"Check the file, and `type` of {key} in the schema."

    def describe_mapping(self, match: Match, aliases: Mapping[str, Iterable[str]]) -> dict[str, Any]:
        """Return the part of the schema that a month with these columns and aliases depends on, and nothing else."""
        return {"csv": self.csv.model_dump(exclude_defaults=True)} | {
            f"columns.{key}": {
                "name": name,
                "type": str(match.types[key]),
                **self.columns[key].model_dump(mode="json", include=CONVERSION, exclude_defaults=True),
                "aliases": {
                    alias: [self.columns[key].canonical(alias), normalize_name(alias) in self.columns[key].known]
                    for alias in sorted(aliases.get(key, ()))
                },
            }
            for key, name in match.names.items()
        }

    def check_features(self, features: Iterable[str], where: str) -> None:
        """Raise UsageError for a feature that the schema does not have or that is known only after the outcome."""
        usable = [name for name, column in self.columns.items() if not column.known_after_outcome]
        for name in features:
            if name not in self.columns:
                near = difflib.get_close_matches(name, usable, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(usable)}."
                raise UsageError(f"The schema has no column {name!r}.", where, hint)
            if self.columns[name].type == "identifier":
                todo = "Remove it from the list; `score.id_columns` writes it beside the predictions."
                raise UsageError(f"{name} is an identifier, never a feature.", where, todo)
            if name not in usable:
                what = f"{name} is known only after the outcome: as a feature, it would give the answer away."
                raise UsageError(what, where, "Remove it from the list.")


def format_names(names: Sequence[str]) -> str:
    """Format names for a message; a hostile header has very many."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(shorten_text(name) for name in names[:SHOWN_NAMES]) + more


def load_schema(path: Path | None = None) -> Schema:
    """Read a schema file; by default, tipline's own for yellow and green taxis."""
    path = path or Path(__file__).with_name("schema.yaml")
    values = validation.read_mapping(path, "Name the schema's file under `schema` in params.yaml.")
    return validation.validate_values(values, Schema, path)
