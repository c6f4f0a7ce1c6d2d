"""The trip schema of contract.yaml, and how a published month's columns map to it."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict

from tipline.errors import TiplineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROW = pa.field("row", pa.int64(), nullable=False)

ARROW_TYPES: dict[str, pa.DataType] = {
    "category": pa.dictionary(pa.int32(), pa.string()),
    "timestamp": pa.timestamp("us"),
    "number": pa.float64(),
    "integer": pa.int32(),
}


def normal(text: str) -> str:
    """The form in which names and spellings are compared: the TLC changes case and adds blanks at will."""
    return text.strip().casefold()


class Column(BaseModel):
    """One canonical column; the keys are explained at the top of contract.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["category", "timestamp", "number", "integer"]
    meaning: str
    names: tuple[str, ...]
    spellings: dict[str, tuple[str, ...]] = {}
    fill: str | float | None = None
    range: tuple[float, float] | None = None
    required: bool = False
    after_payment: bool = False

    def canonical(self, value: str) -> str | None:
        """The canonical value of a published spelling; an unknown one stays as it is, a blank one is missing."""
        known = {normal(spelling): value for value, spellings in self.spellings.items() for spelling in spellings}
        return known.get(normal(value), value.strip() or None)


class Contract(BaseModel):
    """The schema that `prepare` brings every month to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, Column]
    ignored: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of a prepared month: `row`, its number in the published file from 0, then the columns."""
        return pa.schema([ROW, *(pa.field(name, ARROW_TYPES[c.type]) for name, c in self.columns.items())])

    @property
    def time(self) -> str:
        """The column that says when a trip began: the first timestamp."""
        return next(name for name, column in self.columns.items() if column.type == "timestamp")

    def match(self, published: Iterable[str], where: str) -> dict[str, str]:
        """Map canonical to published names, for the columns that a published month has.

        Raises
        ------
        TiplineError
            Where a required column is missing, or two columns claim one place.
        """
        canonical = {normal(name): key for key, column in self.columns.items() for name in column.names}
        found: dict[str, str] = {}
        for name in published:
            key = canonical.get(normal(name))
            if key in found:
                raise TiplineError(f"Two columns, {found[key]!r} and {name!r}, are both {key}.", where, "Drop one.")
            if key is not None:
                found[key] = name
        self._require(found, list(published), where)
        return found

    def _require(self, found: Mapping[str, str], published: Sequence[str], where: str) -> None:
        missing = [key for key, column in self.columns.items() if column.required and key not in found]
        if missing:
            expected = "; ".join(f"{key} (as {' or '.join(self.columns[key].names)})" for key in missing)
            raise TiplineError(
                f"The month lacks columns that the contract needs: {expected}. It has: {', '.join(published)}.",
                where,
                "Check that this is a yellow-taxi month; a new name for a column goes into contract.yaml.",
            )

    def unknown(self, published: Iterable[str]) -> list[str]:
        """Published columns that the contract does not speak of."""
        known = {normal(name) for column in self.columns.values() for name in column.names}
        known |= {normal(name) for name in self.ignored}
        return [name for name in published if normal(name) not in known]

    def check_features(self, features: Iterable[str], where: str) -> None:
        """Refuse features that the contract does not have, or that are known only after payment.

        Raises
        ------
        UsageError
            Naming the first such feature, and the nearest column of the contract.
        """
        usable = [name for name, column in self.columns.items() if not column.after_payment]
        for name in features:
            if name not in self.columns:
                near = difflib.get_close_matches(name, usable, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(usable)}."
                raise UsageError(f"The contract has no column {name!r}.", where, hint)
            if name not in usable:
                raise UsageError(
                    f"{name} is known only after payment: as a feature it would give the answer away.",
                    where,
                    "Take it off the list.",
                )


@cache
def load() -> Contract:
    """The contract that the package carries."""
    return Contract.model_validate(yaml.safe_load(resources.files("tipline").joinpath("contract.yaml").read_text()))
