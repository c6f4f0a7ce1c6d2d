"""The trip schema of a schema file, and how a published month's columns map to it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tipline import validation
from tipline.errors import TiplineError, UsageError, shorten_text
from tipline.ingest import columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROW = pa.field("row", pa.int64(), nullable=False)

MOST_COLUMNS, LONGEST_NAME = 1000, 1000  # published months have two dozen columns
SHOWN_NAMES = 40  # of the columns that a refused month has; a hostile header has millions


def normal(text: str) -> str:
    """The form in which names and aliases are compared: the TLC changes case and adds blanks at will."""
    return text.strip().casefold()


def is_text_type(type_: pa.DataType) -> bool:
    """Whether a type is one of Arrow's text types."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def plain(type_: pa.DataType) -> pa.DataType:
    """The type of the values, where they are dictionary-coded."""
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def as_list(value: object) -> object:
    """One name as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Readable(NamedTuple):
    """How a type is published at its best, what else can be read as it (text and nulls always can), both in words."""

    natural: Callable[[pa.DataType], bool]
    also: tuple[Callable[[pa.DataType], bool], ...]
    words: str


READABLE = {
    "category": Readable(is_text_type, (pa.types.is_integer, pa.types.is_floating), "text or numbers"),
    "timestamp": Readable(pa.types.is_timestamp, (pa.types.is_date,), "timestamps, dates or text"),
    "number": Readable(pa.types.is_floating, (pa.types.is_integer, pa.types.is_decimal), "numbers or text"),
    "integer": Readable(pa.types.is_integer, (pa.types.is_floating, pa.types.is_decimal), "numbers or text"),
}


class Column(BaseModel):
    """One canonical column; the keys are explained at the top of schema.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["category", "timestamp", "number", "integer"]
    meaning: str
    unit: str | None = None
    names: dict[str, Annotated[tuple[str, ...], BeforeValidator(as_list)]]
    aliases: dict[str, tuple[str, ...]] = {}
    fill: str | float | None = None
    range: tuple[float, float] | None = None
    required: bool = False
    known_after_outcome: bool = False

    @model_validator(mode="after")
    def _is_of_its_type(self) -> Column:
        """What means nothing for the type would be passed over in silence, or fail in the middle of a month."""
        aliased = [normal(alias) for aliases in self.aliases.values() for alias in aliases]
        twice = next((alias for alias in aliased if aliased.count(alias) > 1), None)
        low, high = self.range or (0, 0)
        wrong = {
            "names: it has none": not self.eras,
            f"aliases: a {self.type} has none": bool(aliased) and self.type != "category",
            f"aliases: {twice} stands for two values, or twice for one": twice is not None,
            f"range: a {self.type} has none": self.range is not None and self.type in {"category", "timestamp"},
            f"range: {low:g} is not below {high:g}": self.range is not None and not low < high,
            f"fill: {self.fill} is not a {self.type}": not self._holds(self.fill),
        }
        message = next((message for message, is_so in wrong.items() if is_so), None)
        if message:
            raise ValueError(message)
        return self

    def _holds(self, fill: str | float | None) -> bool:
        """Whether a missing value can be filled so; a category's is held against its values by the schema."""
        if fill is None or self.type in {"category", "timestamp"}:
            return fill is None or self.type == "category"
        return isinstance(fill, float) and math.isfinite(fill) and (self.type == "number" or fill.is_integer())

    @property
    def eras(self) -> dict[str, str]:
        """The era of each name, in the form in which names are compared."""
        return {normal(name): era for era, names in self.names.items() for name in names}

    @property
    def known(self) -> dict[str, str]:
        """The canonical value of each alias, in the form in which aliases are compared."""
        return {normal(alias): value for value, aliases in self.aliases.items() for alias in aliases}

    def canonical(self, value: str) -> str | None:
        """The canonical value of a published alias; an unknown one stays as it is, a blank one is missing."""
        return self.known.get(normal(value), value.strip() or None)

    def is_natural(self, type_: pa.DataType) -> bool:
        """Whether a published type is what one would expect of this column."""
        return bool(READABLE[self.type].natural(plain(type_)))

    def reads(self, type_: pa.DataType) -> bool:
        """Whether values of a published type can be read as this column's."""
        type_ = plain(type_)
        natural, also, _ = READABLE[self.type]
        return any(test(type_) for test in (is_text_type, pa.types.is_null, natural, *also))


@dataclass(frozen=True)
class Match:
    """How a published month's columns map to the schema's."""

    era: str  # the latest whose names the month has
    names: dict[str, str]  # published name and type of each of the schema's columns that the month has
    types: dict[str, pa.DataType]
    absent: list[str]  # the schema's columns that the month has not
    unknown: list[str]  # the month's columns that the schema does not speak of


class Schema(BaseModel):
    """The schema that `prepare` brings every month to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=1)]
    eras: dict[str, str]
    columns: dict[str, Column]
    ignored: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> Schema:
        claimed: dict[str, str] = {normal(name): "ignored" for name in self.ignored}
        for key, column in self.columns.items():
            strangers = sorted(set(column.names) - set(self.eras))
            if strangers:
                message = f"columns.{key}.names: {strangers[0]} is not one of the eras"
                raise ValueError(message)
            for name in column.eras:
                if name in claimed:
                    message = f"columns.{key}.names: {name} belongs to {claimed[name]} already"
                    raise ValueError(message)
                claimed[name] = key
            if column.type == "category" and column.fill is not None and column.fill not in column.aliases:
                message = f"columns.{key}.fill: {column.fill} is not one of the aliases' values"
                raise ValueError(message)
        if "timestamp" not in {column.type for column in self.columns.values()} or ROW.name in self.columns:
            message = f"columns: one has to be a timestamp, and none is called {ROW.name}, which is the row's number"
            raise ValueError(message)
        return self

    @property
    def arrow_schema(self) -> pa.Schema:
        """Arrow schema of a prepared month: `row`, its number in the published file from 0, then the columns."""
        return pa.schema([ROW, *(pa.field(name, columns.TYPES[c.type]) for name, c in self.columns.items())])

    @property
    def time(self) -> str:
        """The column that says when a trip began: the first timestamp."""
        return next(name for name, column in self.columns.items() if column.type == "timestamp")

    def match(self, published: pa.Schema, where: str) -> Match:
        """Map the schema's columns to those of a published month.

        Raises
        ------
        TiplineError
            Where a required column is missing, two columns claim one place, or a type cannot be read.
        """
        check_names(published, where)
        keys = {name: key for key, column in self.columns.items() for name in column.eras}
        found: dict[str, pa.Field] = {}
        for field in published:
            key = keys.get(normal(field.name))
            if key in found:
                what = (
                    f"Two columns, {shorten_text(found[key].name)!r} and {shorten_text(field.name)!r}, are both {key}."
                )
                raise TiplineError(what, where, "Take one out of the file, or its name out of the schema.")
            if key is not None:
                found[key] = field
        self._require(found, published.names, where)
        for key, field in found.items():
            if not self.columns[key].reads(field.type):
                type_, name = self.columns[key].type, shorten_text(field.name)
                what = f"The column {name!r} is of type {shorten_text(field.type)}; the schema's {key} is a "
                todo = "Check the file; to read this type, add it to READABLE in src/tipline/months/schema.py."
                raise TiplineError(what + f"{type_} and expects {READABLE[type_].words}.", where, todo)
        left = {normal(name) for name in self.ignored} | set(keys)
        return Match(
            max((self.columns[key].eras[normal(field.name)] for key, field in found.items()), default=""),
            {key: field.name for key, field in found.items()},
            {key: field.type for key, field in found.items()},
            [key for key in self.columns if key not in found],
            [name for name in published.names if normal(name) not in left],
        )

    def _require(self, found: Mapping[str, object], published: Sequence[str], where: str) -> None:
        missing = [key for key, column in self.columns.items() if column.required and key not in found]
        if missing:
            expected = "; ".join(f"{key} (as {' or '.join(self.names_of(key))})" for key in missing)
            raise TiplineError(
                f"The month lacks columns that the schema needs: {expected}. It has: {format_names(published)}.",
                where,
                "Check that this is a month of the schema's data; a new name belongs to the column's `names` there.",
            )

    def names_of(self, key: str) -> list[str]:
        """All names that published files have for a column."""
        return [name for names in self.columns[key].names.values() for name in names]

    def mapping(self, match: Match, aliases: Mapping[str, Iterable[str]]) -> dict[str, Any]:
        """All of the schema that bears on the columns and the aliases that a month has.

        Its digest is what makes a prepared month out of date: what is written into the schema for another month
        changes none of it. Columns that the month has not are no part of it either.
        """
        return {
            key: {
                "name": name,
                "type": str(match.types[key]),
                **self.columns[key].model_dump(include={"type", "fill", "range"}),
                "aliases": {
                    alias: [self.columns[key].canonical(alias), normal(alias) in self.columns[key].known]
                    for alias in sorted(aliases.get(key, ()))
                },
            }
            for key, name in match.names.items()
        }

    def check_features(self, features: Iterable[str], where: str) -> None:
        """Refuse features that the schema does not have, or that are known only after payment."""
        usable = [name for name, column in self.columns.items() if not column.known_after_outcome]
        for name in features:
            if name not in self.columns:
                near = difflib.get_close_matches(name, usable, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(usable)}."
                raise UsageError(f"The schema has no column {name!r}.", where, hint)
            if name not in usable:
                raise UsageError(
                    f"{name} is known only after payment: as a feature it would give the answer away.",
                    where,
                    "Take it off the list.",
                )


def check_names(published: pa.Schema, where: str) -> None:
    """Refuse a month whose columns are so many, or so named, that it is no month."""
    todo = "Check that this is a month of the schema's data."
    if len(published) > MOST_COLUMNS:
        raise TiplineError(f"The month has {len(published):,} columns.", where, todo)
    try:
        longest = max(map(len, published.names), default=0)
    except UnicodeDecodeError as error:
        raise TiplineError("The name of a column is not UTF-8.", where, todo) from error
    if longest > LONGEST_NAME:
        raise TiplineError(f"The name of a column has {longest:,} letters.", where, todo)


def format_names(names: Sequence[str]) -> str:
    """Names as part of a message, the first of very many."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(shorten_text(name) for name in names[:SHOWN_NAMES]) + more


def load_schema(path: Path | None = None) -> Schema:
    """Read a schema file; without a path, the one of yellow and green taxis that tipline comes with.

    Raises
    ------
    UsageError
        Where it is not there or makes no sense.
    """
    path = path or Path(__file__).with_name("schema.yaml")
    values = validation.read_mapping(path, "Name the schema's file under `schema` in params.yaml.")
    return validation.validate_values(values, Schema, path)
