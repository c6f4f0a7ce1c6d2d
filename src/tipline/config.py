"""Read params.yaml into frozen settings. The comments in that file say what each key means."""

import ast
import contextlib
import difflib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from tipline import remote, validation
from tipline.errors import UsageError, hide_secrets, shorten_text, summarize_exception
from tipline.ingest.schema import Schema, load_schema
from tipline.ingest.target import check_target
from tipline.paths import ROLES
from tipline.validation import Section

# Schemes that `source` may begin with; a plain path has none.
SCHEMES = ("", "file", "http", "https", *remote.STORES)

Role = Literal["train", "validation", "test"]
# Short names of estimators; anything else is the import path of a class, or a function of the user's code file.
ESTIMATORS = ("logistic_regression", "hist_gradient_boosting")
ESTIMATOR_FORMS = f"{', '.join(ESTIMATORS)}, the import path of a class, or a function of model.code"
RESERVED = ("transformers.py", "pyfunc.py")  # tipline's own files beside the user's in a model

CREDENTIALS_IN_SOURCE = (
    "has a password or token in it, which DVC would write into dvc.lock; put it into ~/.netrc, or into "
    'the environment: FSSPEC_HTTP=\'{"headers": {"Authorization": "..."}}\' or \'{"params": {"token": "..."}}\''
)


def check_month(month: object) -> str:
    """Return a month written YYYY-MM; raise ValueError for anything else."""
    if isinstance(month, str) and re.fullmatch(r"20[0-9][0-9]-(0[1-9]|1[0-2])", month):
        return month
    raise ValueError(f"{shorten_text(repr(month))} is not a month written YYYY-MM, from 2000-01 on")


def check_source(source: str, key: str = "source", *, needs_month: bool = True) -> None:
    """Raise ValueError for an address that months cannot be fetched from."""
    scheme = urlsplit(source).scheme
    if scheme not in SCHEMES:
        raise ValueError(f"{key}: tipline does not fetch from {scheme}://; use a path, https, s3, gs or abfs")
    if source == "demo" or (
        needs_month and "{month}" not in source and not {"{year}", "{mm}"} <= {*re.findall(r"{\w+}", source)}
    ):
        raise ValueError(f"{key}: {hide_secrets(source)!r} is not an address with {{month}} in it")


def accept_number_or(word: str) -> PlainValidator:
    """Accept a positive whole number or one word; pydantic's union would report one problem per alternative."""

    def check(value: object) -> object:
        if value == word or (type(value) is int and value >= 1):
            return value
        raise ValueError(f"{shorten_text(repr(value))} is neither {word!r} nor a positive whole number")

    return PlainValidator(check)


def check_distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is listed twice")
    return values


def check_roles(months: dict[str, Role]) -> dict[str, Role]:
    by_role = {role: [month for month, its_role in months.items() if its_role == role] for role in ROLES}
    for role in ROLES:
        if not by_role[role]:
            raise ValueError(f"no month has the role {role}; each of train, validation and test needs one")
    for early, late in itertools.pairwise(ROLES):
        last, first = max(by_role[early]), min(by_role[late])
        if last >= first:
            order = f"the order is {', '.join(ROLES)}"
            raise ValueError(f"{early} ({last}) has to end before {late} ({first}) begins; {order}")
    return months


def check_factory(name: str) -> str:
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise ValueError(f"{shorten_text(repr(name))} is not written module:function")
    return name


def check_model_name(name: str) -> str:
    """Return a name that MLflow can register and find again; raise ValueError otherwise."""
    if not name.strip() or set("/:'\"`") & set(name):
        raise ValueError(f"{name!r} is empty or has one of / : ' \" ` in it, which MLflow cannot register")
    return name


Month = Annotated[str, PlainValidator(check_month)]
Names = Annotated[tuple[str, ...], AfterValidator(check_distinct)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Labels(Section):
    """Labels that come in files of their own."""

    source: str | None
    on: Names


class Storage(Section):
    """Where prepared months and predictions are, if not in data/: folders or addresses that all machines reach."""

    prepared: str | None = None
    predictions: str | None = None

    @model_validator(mode="after")
    def _places_differ(self) -> Self:
        if self.prepared is not None and self.prepared == self.predictions:
            raise ValueError("prepared and predictions are one place, so predictions would replace the prepared months")
        return self


class Demo(Section):
    """Simulated months."""

    rows: int = Field(ge=1, le=50_000_000)
    seed: int = Field(ge=0)


class Prepare(Section):
    """How many rows of a month may be quarantined before it stops."""

    max_quarantined: Finite = Field(ge=0, le=1)
    accept: dict[Month, Annotated[str, Field(min_length=1)]]


class Sample(Section):
    """Which months have a role, and how many rows of each are sampled."""

    rows: int = Field(ge=100)
    seed: int = Field(ge=0)
    months: Annotated[dict[Month, Role], AfterValidator(check_roles)]

    def get_months(self, role: str) -> list[str]:
        return sorted(month for month, its_role in self.months.items() if its_role == role)


class LearningCurve(Section):
    """The study that chooses the number of training rows."""

    min_gain: Finite = Field(gt=0, lt=1)
    smallest: int = Field(ge=50)
    sizes: int = Field(ge=1, le=30)
    repeats: int = Field(ge=2, le=50)
    max_rows: int | None = Field(ge=1)

    @model_validator(mode="after")
    def _max_rows_hold_a_sample(self) -> Self:
        if self.max_rows is not None and self.max_rows < self.smallest:
            raise ValueError(f"max_rows: {self.max_rows:,} is less than `smallest`, {self.smallest:,}")
        return self


class Model(Section):
    """Target and features."""

    name: Annotated[str, AfterValidator(check_model_name)]
    target: str
    columns: Names = Field(min_length=1)
    hidden: Names
    code: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*\.py$")]
    features: str | None
    categorical: Names | None
    categories: dict[str, Annotated[Names, Field(min_length=1)]]
    other_share: Finite = Field(ge=0, lt=0.5)
    requirements: Names


class Train(Section):
    """The estimator and how it is fitted."""

    estimator: str
    params: dict[str, Any]
    rows: Annotated[int | Literal["auto"], accept_number_or("auto")]
    calibration: Literal["sigmoid", "isotonic"] | None
    seed: int = Field(ge=0)


class Evaluate(Section):
    """The gate. Tolerances are in skill points (shares of the baseline's log-loss)."""

    baseline: Names = Field(min_length=1)
    segments: Names
    tolerance: Finite = Field(ge=0, lt=1)
    segment_tolerance: Finite = Field(ge=0, lt=1)


class Score(Section):
    """Bulk scoring."""

    model: Annotated[int | Literal["champion"], accept_number_or("champion")]
    id_columns: Names


class Cluster(Section):
    """The dask cluster. TIPLINE_CLUSTER or DASK_SCHEDULER_ADDRESS in the environment names another one instead."""

    n_workers: int | None = Field(ge=1, le=1024)
    factory: Annotated[str, AfterValidator(check_factory)] | None


class Settings(Section):
    """All of params.yaml."""

    months: Annotated[tuple[Month, ...], AfterValidator(check_distinct)] = Field(min_length=1)
    source: str
    schema_: str = Field(alias="schema", min_length=1)
    labels: Labels
    storage: Storage
    demo: Demo
    prepare: Prepare
    sample: Sample
    learning_curve: LearningCurve
    model: Model
    train: Train
    evaluate: Evaluate
    score: Score
    cluster: Cluster
    notify: str | None

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        unlisted = sorted(set(self.sample.months) - set(self.months))
        if unlisted:
            raise ValueError(f"sample.months: {unlisted[0]} is not in the list `months`")
        rows, most = self.train.rows, self.sample.rows * len(self.sample.get_months("train"))
        if isinstance(rows, int) and rows > most:
            raise ValueError(f"train.rows: {rows:,} rows are requested, the sample has at most {most:,}")
        if (self.labels.source is None) != (not self.labels.on):
            raise ValueError("labels: source and `on` belong together: give both, or null and []")
        sources = {"source": None if self.source == "demo" else self.source, "labels.source": self.labels.source}
        for key, source in sources.items():
            if source is not None:
                check_source(source, key)
                if hide_secrets(source) != source:
                    raise ValueError(f"{key}: {CREDENTIALS_IN_SOURCE}")
        return self


@dataclass(frozen=True)
class PartialSettings:
    """What `status`, `verify` and `rollback` need, as far as an invalid params.yaml has it."""

    settings: Settings | None  # None for an invalid file
    problem: UsageError | None  # what is wrong with it
    months: tuple[str, ...]  # the valid months of the list `months`
    model_name: str | None

    @property
    def storage(self) -> Storage:
        return self.settings.storage if self.settings else Storage()


def load_settings(path: Path) -> Settings:
    """Read and check the settings; raise a UsageError that names every mistake."""
    values = validation.read_mapping(path, "Change to the project's folder.")
    settings = validation.validate_values(values, Settings, path)
    check_columns(settings, load_schema(path.parent / settings.schema_), str(path))
    check_code(settings, path)
    return settings


def load_partial_settings(path: Path) -> PartialSettings:
    """Read the settings, or months and model name if the file is invalid."""
    try:
        settings = load_settings(path)
        return PartialSettings(settings, None, settings.months, settings.model.name)
    except UsageError as error:
        problem = error
    try:
        values = validation.read_mapping(path, "")
    except UsageError:
        values = {}
    months, model = values.get("months"), values.get("model")
    valid = dict[str, None]()  # in order, each once
    for month in months if isinstance(months, list) else ():
        with contextlib.suppress(ValueError):
            valid[check_month(month)] = None
    name = model.get("name") if isinstance(model, dict) else None
    return PartialSettings(None, problem, tuple(valid), name if isinstance(name, str) else None)


def parse_month(text: str) -> str:
    """Return a month given on the command line; raise UsageError unless it is written YYYY-MM."""
    try:
        return check_month(text)
    except ValueError as error:
        raise UsageError(f"{error}.", "command line", "Write the month like this: 2009-01.") from None


def check_columns(settings: Settings, schema: Schema, where: str) -> None:
    """Refuse columns, target, categories and baseline that do not suit the schema or would give the answer away."""
    model = settings.model
    schema.check_features(model.columns, f"{where}, model.columns")
    schema.check_features(settings.evaluate.baseline, f"{where}, evaluate.baseline")
    try:
        target = check_target(model.target, {field.name: field.type for field in schema.arrow_schema})
    except ValueError as error:
        todo = "Write a yes/no expression over columns of the schema, for example: tip_amount > 0"
        raise UsageError(f"{error}.".replace("?.", "?"), f"{where}, model.target", todo) from None
    filled = [name for name in target.columns if schema.columns[name].fill is not None]
    if settings.labels.source and filled:
        what = f"The schema fills missing values of {filled[0]}, so trips without a label would seem to have one."
        raise UsageError(what, f"{where}, labels", f"Remove `fill` of {filled[0]} from the schema.")
    schema.check_features([name for name in model.hidden if name not in schema.columns], f"{where}, model.hidden")
    reasons = dict.fromkeys(model.hidden, "hidden")
    reasons |= dict.fromkeys(target.columns, "part of the target; as a feature it would give the answer away")
    for name in model.columns:
        if name in reasons:
            raise UsageError(f"{name} is {reasons[name]}.", f"{where}, model.columns", "Remove it from the list.")
    for key, kind, names in (
        ("score.id_columns", "identifier", settings.score.id_columns),
        ("labels.on", "identifier", settings.labels.on),
        ("evaluate.baseline", "category", settings.evaluate.baseline),
        ("evaluate.segments", "category", settings.evaluate.segments),
    ):
        known = [name for name, column in schema.columns.items() if column.type == kind]
        if wrong := [name for name in names if name not in known]:
            todo = f"Use one of: {', '.join(known)}." if known else f"Give a column the type {kind}."
            raise UsageError(f"The schema has no {kind} {wrong[0]!r}.", f"{where}, {key}", todo)


def check_code(settings: Settings, path: Path) -> None:
    """Refuse a code file that cannot be parsed, and functions that it does not define; nothing of it runs."""
    code = path.with_name(settings.model.code)
    if code.name in RESERVED:
        what = f"{code.name} is the name of a file of tipline's own in each model."
        raise UsageError(what, f"{path}, model.code", "Name the file differently.")
    try:
        body = ast.parse(code.read_bytes()).body
    except FileNotFoundError:
        what = f"There is no file {code.name} beside params.yaml."
        raise UsageError(what, f"{path}, model.code", "Create it; an empty one will do.") from None
    except (SyntaxError, ValueError) as error:
        what = f"{code.name} is not Python: {summarize_exception(error)}."
        raise UsageError(what, f"{path}, model.code", "Correct the file.") from None
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = {"model.features": (settings.model.features, defined)}
    if "." not in settings.train.estimator:
        names["train.estimator"] = (settings.train.estimator, [*ESTIMATORS, *defined])
    for key, (name, known) in names.items():
        if name is not None and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            todo = f"Use {ESTIMATOR_FORMS}." if key == "train.estimator" else f"Define it in {code.name}."
            raise UsageError(f"There is no {name!r}.", f"{path}, {key}", f"Did you mean {near[0]}?" if near else todo)
