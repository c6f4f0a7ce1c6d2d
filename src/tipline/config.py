"""params.yaml as frozen, validated settings; what is said of each key here is also what docs/reference.md says."""

from __future__ import annotations

import difflib
import itertools
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator

from tipline import validation
from tipline.errors import UsageError, hide_secrets
from tipline.ingest import schema
from tipline.paths import ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tipline.ingest.schema import Schema

# What `source` may begin with; a plain path has no scheme.
SCHEMES = ("", "file", "http", "https", "s3")

Role = Literal["fit", "size", "evaluate"]


def check_month(month: object) -> str:
    """Return a month written YYYY-MM, raise ValueError for anything else."""
    if not isinstance(month, str) or not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", month):
        message = f"{month!r} is not a month written YYYY-MM, from 2000-01 on"
        raise ValueError(message)
    return month


def check_source(address: str, *, one_month: bool = False) -> None:
    """Raise ValueError for an address that months cannot be fetched from; one month's need not have {month} in it."""
    scheme = urlsplit(address).scheme
    if scheme not in SCHEMES:
        message = f"source: tipline does not fetch from {scheme}://; use a path, https or s3"
        raise ValueError(message)
    if address == "demo" or not (one_month or "{month}" in address):
        message = f"source: {hide_secrets(address)!r} is no address with {{month}} in it"
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


def list_role_months(months: Mapping[str, str], role: str) -> list[str]:
    """The months of a role, in order of time."""
    return sorted(month for month, its_role in months.items() if its_role == role)


def check_roles(months: dict[str, Role]) -> dict[str, Role]:
    """Return months in which each role comes after the one before, raise ValueError for others."""
    missing = [role for role in ROLES if role not in months.values()]
    if missing:
        message = f"no month has the role {missing[0]}; each of fit, size and evaluate needs one"
        raise ValueError(message)
    for early, late in itertools.pairwise(ROLES):
        last, first = list_role_months(months, early)[-1], list_role_months(months, late)[0]
        if last >= first:
            message = f"{early} ({last}) has to end before {late} ({first}) begins; in time: fit, size, evaluate"
            raise ValueError(message)
    return months


def check_name(name: str) -> str:
    """Return a name that MLflow's registry takes, raise ValueError for another."""
    if not name or set("/:") & set(name):
        message = f"{name!r} is empty or has a / or a : in it, which MLflow's registry does not take"
        raise ValueError(message)
    return name


Month = Annotated[str, PlainValidator(check_month)]
Names = Annotated[tuple[str, ...], AfterValidator(check_distinct)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Demo(Section):
    """Simulated months."""

    rows: int = Field(ge=1, le=50_000_000, description="rows of a simulated month")
    seed: int = Field(ge=0, description="another seed simulates other trips")


class Sample(Section):
    """Which months have a role, and how many rows of each are kept."""

    months: Annotated[dict[Month, Role], AfterValidator(check_roles)] = Field(
        description="the role of a month: the model is fitted on `fit`, the size of the training sample is chosen on "
        "`size`, challenger and champion are compared on `evaluate`; each role has a month, in this order in time"
    )
    rows: int = Field(ge=100, description="rows kept of each of these months")
    seed: int = Field(ge=0, description="another seed draws other rows")

    def of(self, role: str) -> list[str]:
        """The months of a role, in order of time."""
        return list_role_months(self.months, role)


class Budget(Section):
    """What the learning curve's choice may not go beyond; empty: no bound."""

    rows: int | None = Field(ge=1, description="the most rows")
    megabytes: Finite | None = Field(gt=0, description="the most memory of matrix and fit, by measured bytes a row")


class LearningCurve(Section):
    """The study of how many rows to train on."""

    smallest: int = Field(ge=50, description="rows of the smallest sample studied")
    sizes: int = Field(ge=1, le=30, description="how many sizes, evenly spaced on a log scale")
    repeats: int = Field(
        ge=2, le=50, description="samples drawn of each size; more take longer and make the bound sharper"
    )
    min_gain: Finite = Field(gt=0, lt=1, description="skill points that a larger sample has to add to be worth it")
    budget: Budget

    @model_validator(mode="after")
    def _budget_holds_a_sample(self) -> LearningCurve:
        if self.budget.rows is not None and self.budget.rows < self.smallest:
            message = f"budget.rows: {self.budget.rows:,} are fewer than the smallest sample, {self.smallest:,} rows"
            raise ValueError(message)
        return self


class Model(Section):
    """What is predicted from what."""

    target: str = Field(description="number of the contract; what is predicted is whether it is above zero")
    columns: Names = Field(
        min_length=1,
        description="the features, by their names in the contract; a datetime enters as its hour of the day",
    )
    categories: dict[str, Annotated[Names, Field(min_length=1)]] = Field(
        description="of each category among the features the values that are told apart; all others count as one more"
    )


class Baseline(Section):
    """The one-line rule that a model has to beat; skill is measured from it."""

    by: Names = Field(min_length=1, description="categories of the contract; the rule is the tip rate by these")
    smoothing: Finite = Field(ge=0, description="rows of the overall rate that each group's own rate is mixed with")


class Train(Section):
    """The estimator, and what it is fitted with."""

    rows: Annotated[int | Literal["auto"], number_or("auto")] = Field(
        description="`auto` trains on as many rows as the learning curve chose; a number overrules it"
    )
    estimator: str = Field(
        description="`logistic_regression`, `hist_gradient_boosting`, or `module:function`, in a file beside "
        "params.yaml or installed, that returns a scikit-learn classifier"
    )
    params: dict[str, Any] = Field(description="passed straight to the estimator")
    calibration: Literal["none", "sigmoid", "isotonic"] = Field(
        description="a correction of the probabilities, fitted on the rows of the `size` months, part of the model"
    )
    seed: int = Field(ge=0, description="`random_state` of estimators that have one")

    @property
    def calibrates(self) -> bool:
        """Whether a calibration is asked for."""
        return self.calibration != "none"


class Register(Section):
    """The registry's entry."""

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the registered model's name in MLflow")


class Evaluate(Section):
    """The gate, in skill points (parts of the baseline's log-loss)."""

    segments: Names = Field(description="categories whose values are segments; the hour of day is one anyway")
    tolerance: Finite = Field(
        ge=0, lt=1, description="a challenger passes if 95% sure not to be worse than the champion by more than this"
    )
    segment_tolerance: Finite = Field(ge=0, lt=1, description="and if no segment is shown worse by more than this")


class Score(Section):
    """Bulk scoring."""

    version: Annotated[int | Literal["champion"], number_or("champion")] = Field(
        description="the version to score with: the registry's alias `champion`, or a number that pins one"
    )
    workers: int = Field(
        ge=0,
        le=1024,
        description="processes of the local cluster, 0: one a core; not where DASK_SCHEDULER_ADDRESS names a cluster",
    )


class Settings(Section):
    """All of params.yaml."""

    months: Annotated[tuple[Month, ...], AfterValidator(check_distinct)] = Field(
        min_length=1, description="what is fetched, prepared and scored"
    )
    source: str = Field(
        description="`demo` simulates the months, offline; anything else is an address with {month} in it: a path "
        "(relative ones start at params.yaml), https or s3, CSV or Parquet"
    )
    contract: str = Field(
        min_length=1,
        description="file that says what the months' columns are called, mean and may hold; relative to params.yaml",
    )
    demo: Demo
    sample: Sample
    learning_curve: LearningCurve
    model: Model
    baseline: Baseline
    train: Train
    register_: Register = Field(alias="register")  # BaseModel has a method `register`
    evaluate: Evaluate
    score: Score

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        strangers = sorted(set(self.sample.months) - set(self.months))
        if strangers:
            message = f"sample.months: {strangers[0]} is not in the list `months`"
            raise ValueError(message)
        at_most = self.sample.rows * len(self.sample.of("fit"))
        if isinstance(self.train.rows, int) and self.train.rows > at_most:
            message = f"train.rows: asks for {self.train.rows:,} rows, the sample has {at_most:,} at most"
            raise ValueError(message)
        if self.source != "demo":
            check_source(self.source)
        return self


def load_settings(path: Path) -> Settings:
    """Read and check the settings.

    Raises
    ------
    UsageError
        With one line for each thing that is wrong.
    """
    settings = validation.load_yaml(path, Settings, "Change to the project's folder.")
    check_columns(settings, schema.load_schema(path.parent / settings.contract), str(path))
    return settings


def parse_month(text: str) -> str:
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


def check_columns(settings: Settings, known: Schema, where: str) -> None:
    """Hold features, target, categories and baseline against the contract."""
    model = settings.model
    known.check_features(model.columns, f"{where}, model.columns")
    known.check_features(settings.baseline.by, f"{where}, baseline.by")
    check_type("number", [model.target], known, f"{where}, model.target")
    if model.target in model.columns:
        what = f"{model.target} is the target: as a feature it would give the answer away."
        raise UsageError(what, f"{where}, model.columns", "Take it off the list.")
    check_values(model, known, f"{where}, model.categories")
    check_type("category", settings.baseline.by, known, f"{where}, baseline.by")
    check_type("category", settings.evaluate.segments, known, f"{where}, evaluate.segments")


def check_type(wanted: str, names: Sequence[str], known: Schema, where: str) -> None:
    """Refuse what is no column of a type."""
    there = [name for name, column in known.columns.items() if column.type == wanted]
    for name in names:
        if name not in there:
            raise UsageError(f"{name} is not a {wanted} of the contract.", where, f"Name one of: {', '.join(there)}.")


def check_values(model: Model, known: Schema, where: str) -> None:
    """Refuse a category among the features whose values are not listed, and values of anything else."""
    categories = [name for name in model.columns if known.columns[name].type == "category"]
    for name in categories:
        if name not in model.categories:
            values = ", ".join(known.columns[name].spellings) or "its values"
            what = f"{name} is a category in model.columns, and its values are not listed."
            raise UsageError(what, where, f"Add those that the model is to tell apart: {name}: [{values}]")
    for name in model.categories:
        if name not in categories:
            near = difflib.get_close_matches(name, categories, 1, 0.4)
            todo = f"Did you mean {near[0]}?" if near else "Take it away here, or add a category to model.columns."
            raise UsageError(f"{name} has values here, and is no category in model.columns.", where, todo)
