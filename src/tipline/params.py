"""params.yaml as frozen, validated settings; an unknown key is an error."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator

from tipline import yamlfiles
from tipline.errors import UsageError
from tipline.layout import ROLES
from tipline.months import contract

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tipline.months.contract import Contract

# What `source` may begin with; a plain path has no scheme.
SCHEMES = ("", "file", "http", "https", "s3")

Role = Literal["fit", "size", "evaluate"]


def check_month(month: str) -> str:
    """Return a month written YYYY-MM, raise ValueError for anything else."""
    if not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", month):
        message = f"{month!r} is not a month written YYYY-MM"
        raise ValueError(message)
    return month


def check_address(address: str, *, one_month: bool = False) -> None:
    """Raise ValueError for an address that months cannot be fetched from; one month's need not have {month} in it."""
    scheme = urlsplit(address).scheme
    if scheme not in SCHEMES:
        message = f"source: tipline does not fetch from {scheme}://; use a path, https or s3"
        raise ValueError(message)
    if address == "demo" or not (one_month or "{month}" in address):
        message = "source: the address has no {month} in it"
        raise ValueError(message)


def number_or(word: str) -> PlainValidator:
    """Accept a positive whole number or one word; a plain union would answer with one message for each of its parts."""

    def check(value: object) -> object:
        if value == word or (type(value) is int and value >= 1):
            return value
        message = f"{value!r} is neither {word!r} nor a positive whole number"
        raise ValueError(message)

    return PlainValidator(check)


def check_distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list without repetitions, raise ValueError for another."""
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        message = f"{twice[0]} is listed twice"
        raise ValueError(message)
    return values


Month = Annotated[str, AfterValidator(check_month)]
Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_distinct)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Demo(Section):
    """Simulated months."""

    rows: Annotated[int, Field(ge=1, le=50_000_000)]
    seed: Annotated[int, Field(ge=0)]


class Sample(Section):
    """Which months have a role, and how many rows of each are kept."""

    months: dict[Month, Role]
    rows: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _roles_in_order(self) -> Sample:
        missing = [role for role in ROLES if not self.of(role)]
        if missing:
            message = f"no month has the role {missing[0]}"
            raise ValueError(message)
        for early, late in itertools.pairwise(ROLES):
            last, first = self.of(early)[-1], self.of(late)[0]
            if last >= first:
                message = f"{early} ({last}) has to end before {late} ({first}) begins: fit, size, evaluate"
                raise ValueError(message)
        return self

    def of(self, role: str) -> list[str]:
        """The months of a role, in order of time."""
        return sorted(month for month, its_role in self.months.items() if its_role == role)


class Budget(Section):
    """The most that the learning curve may choose; None: no bound."""

    rows: Annotated[int, Field(ge=1)] | None
    megabytes: Annotated[Finite, Field(gt=0)] | None


class LearningCurve(Section):
    """The study of the sample's size."""

    smallest: Annotated[int, Field(ge=50)]
    sizes: Annotated[int, Field(ge=1, le=30)]
    repeats: Annotated[int, Field(ge=2, le=50)]
    min_gain: Annotated[Finite, Field(gt=0, lt=1)]
    budget: Budget

    @model_validator(mode="after")
    def _budget_holds_a_sample(self) -> LearningCurve:
        if self.budget.rows is not None and self.budget.rows < self.smallest:
            message = f"budget.rows: {self.budget.rows:,} are fewer than the smallest sample, {self.smallest:,} rows"
            raise ValueError(message)
        return self


class Model(Section):
    """Target and features."""

    target: str
    columns: Names
    categories: dict[str, Names]


class Baseline(Section):
    """The one-line rule that a model has to beat."""

    by: Names
    smoothing: Annotated[Finite, Field(ge=0)]


class Train(Section):
    """The estimator and what it is fitted with."""

    rows: Annotated[int | Literal["auto"], number_or("auto")]
    estimator: str
    params: dict[str, Any]
    calibration: Literal["none", "sigmoid", "isotonic"]
    seed: Annotated[int, Field(ge=0)]

    @property
    def calibrates(self) -> bool:
        """Whether a calibration is asked for."""
        return self.calibration != "none"


class Register(Section):
    """The registry's entry."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/:]+$")]


class Evaluate(Section):
    """The gate."""

    tolerance: Annotated[Finite, Field(ge=0, lt=1)]
    segment_tolerance: Annotated[Finite, Field(ge=0, lt=1)]
    segments: Annotated[tuple[str, ...], AfterValidator(check_distinct)]


class Score(Section):
    """Bulk scoring."""

    version: Annotated[int | Literal["champion"], number_or("champion")]
    workers: Annotated[int, Field(ge=0, le=1024)]


class Settings(Section):
    """All of params.yaml; each section is explained there."""

    months: Annotated[tuple[Month, ...], Field(min_length=1), AfterValidator(check_distinct)]
    source: str
    contract: Annotated[str, Field(min_length=1)]
    demo: Demo
    sample: Sample
    learning_curve: LearningCurve
    model: Model
    baseline: Baseline
    train: Train
    register_: Annotated[Register, Field(alias="register")]  # BaseModel has a method `register`
    evaluate: Evaluate
    score: Score

    @model_validator(mode="after")
    def _months_listed(self) -> Settings:
        strangers = sorted(set(self.sample.months) - set(self.months))
        if strangers:
            message = f"sample.months: {strangers[0]} is not in the list `months`"
            raise ValueError(message)
        at_most = self.sample.rows * len(self.sample.of("fit"))
        if isinstance(self.train.rows, int) and self.train.rows > at_most:
            message = f"train.rows: asks for {self.train.rows:,} rows, the sample has {at_most:,} at most"
            raise ValueError(message)
        if self.source != "demo":
            check_address(self.source)
        return self


def load(path: Path) -> Settings:
    """Read and check the settings.

    Raises
    ------
    UsageError
        With one line for each thing that is wrong.
    """
    settings = yamlfiles.load(path, Settings, "Change to the project's folder.")
    check_columns(settings, contract.load(path.parent / settings.contract), str(path))
    return settings


def month_argument(text: str) -> str:
    """A month given on the command line.

    Raises
    ------
    UsageError
        Where it is not written YYYY-MM.
    """
    try:
        return check_month(text)
    except ValueError as error:
        raise UsageError(f"{error}.", "command line", "Write the month as 2009-01, for one.") from None


def check_columns(settings: Settings, known: Contract, where: str) -> None:
    """Hold features, target, categories and baseline against the contract."""
    model = settings.model
    known.check_features(model.columns, f"{where}, model.columns")
    known.check_features(settings.baseline.by, f"{where}, baseline.by")
    if model.target not in known.columns or known.columns[model.target].type != "number":
        what = f"The target {model.target!r} is not a number of the contract."
        raise UsageError(what, f"{where}, model.target", "Name a column of type number.")
    if model.target in model.columns:
        what = f"{model.target} is the target: as a feature it would give the answer away."
        raise UsageError(what, f"{where}, model.columns", "Take it off the list.")
    categories = {name for name in model.columns if known.columns[name].type == "category"}
    if categories != set(model.categories):
        wrong = min(categories ^ set(model.categories))
        todo = "List the values of each category in model.columns, and of nothing else."
        raise UsageError(
            f"{wrong}: its values and its place in model.columns disagree.", f"{where}, model.categories", todo
        )
    check_categories(settings.baseline.by, known, f"{where}, baseline.by")
    check_categories(settings.evaluate.segments, known, f"{where}, evaluate.segments")


def check_categories(names: Sequence[str], known: Contract, where: str) -> None:
    """Refuse what is no category of the contract."""
    for name in names:
        if name not in known.columns or known.columns[name].type != "category":
            what = f"{name} is not a category of the contract."
            raise UsageError(what, where, "Name a category, payment_type for one.")
