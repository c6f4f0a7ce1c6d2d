"""A mistake in params.yaml is one clear message, before anything runs."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError
from ruamel.yaml import YAML

from tests.conftest import ROOT, settings_values
from tipline import config
from tipline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

ABSENT = object()
FIRST = ["2009-01", "2009-02", "2009-03"]

# What is written where (ABSENT: the key is taken out), and what the message says, to the letter.
MISTAKES: dict[str, tuple[str, Any, str]] = {
    "unknown key at the top": ("sauce", "demo", "unknown key sauce, did you mean source?"),
    "unknown key in a section": ("demo.row", 1, "unknown key demo.row, did you mean rows?"),
    "unknown key in the section with another name inside": (
        "register.nam",
        "x",
        "unknown key register.nam, did you mean name?",
    ),
    "unknown key near none": ("zzz", 1, "unknown key zzz"),
    "missing key": ("sample.seed", ABSENT, "the key sample.seed is missing"),
    "missing section": ("train", ABSENT, "the key train is missing"),
    "month 13": ("months", [*FIRST, "2009-13"], "months: '2009-13' is not a month written YYYY-MM, from 2000-01 on"),
    "month with a day": (
        "months",
        [*FIRST, "2009-04-01"],
        "months: '2009-04-01' is not a month written YYYY-MM, from 2000-01 on",
    ),
    "day without quotes, a date to YAML": (
        "months",
        [*FIRST, dt.date(2009, 4, 1)],
        "months: '2009-04-01' is not a month written YYYY-MM, from 2000-01 on",
    ),
    "month of another century": (
        "months",
        [*FIRST, "1909-01"],
        "months: '1909-01' is not a month written YYYY-MM, from 2000-01 on",
    ),
    "month twice": ("months", [*FIRST, "2009-01"], "months: 2009-01 is listed twice"),
    "role for a month that is not listed": (
        "sample.months",
        {"2009-01": "train", "2009-02": "validation", "2009-12": "test"},
        "sample.months: 2009-12 is not in the list `months`",
    ),
    "role for what is no month": (
        "sample.months",
        {"2009-01": "train", "2009-02": "validation", "2009-13": "test"},
        "sample.months.2009-13: '2009-13' is not a month written YYYY-MM, from 2000-01 on",
    ),
    "size before fit": (
        "sample.months",
        {"2009-02": "train", "2009-01": "validation", "2009-03": "test"},
        "sample.months: fit (2009-02) has to end before size (2009-01) begins; in time: fit, size, evaluate",
    ),
    "evaluate before size": (
        "sample.months",
        {"2009-01": "train", "2009-03": "validation", "2009-02": "test"},
        "sample.months: size (2009-03) has to end before evaluate (2009-02) begins; in time: fit, size, evaluate",
    ),
    "fit around size": (
        "sample.months",
        {"2009-01": "train", "2009-02": "validation", "2009-03": "train", "2009-04": "test"},
        "sample.months: fit (2009-03) has to end before size (2009-02) begins; in time: fit, size, evaluate",
    ),
    "no month to evaluate on": (
        "sample.months",
        {"2009-01": "train", "2009-02": "validation"},
        "sample.months: no month has the role evaluate; each of fit, size and evaluate needs one",
    ),
    "no month to fit on": (
        "sample.months",
        {"2009-01": "validation", "2009-02": "test"},
        "sample.months: no month has the role fit; each of fit, size and evaluate needs one",
    ),
    "neither auto nor a number": (
        "train.rows",
        "all",
        "train.rows: 'all' is neither 'auto' nor a positive whole number",
    ),
    "no rows to train on": ("train.rows", 0, "train.rows: 0 is neither 'auto' nor a positive whole number"),
    "bool for a number of rows": (
        "train.rows",
        True,
        "train.rows: True is neither 'auto' nor a positive whole number",
    ),
    "version is a word": (
        "score.version",
        "latest",
        "score.version: 'latest' is neither 'champion' nor a positive whole number",
    ),
    "version zero": ("score.version", 0, "score.version: 0 is neither 'champion' nor a positive whole number"),
    "version is a fraction": (
        "score.version",
        1.5,
        "score.version: 1.5 is neither 'champion' nor a positive whole number",
    ),
    "source without a month": (
        "source",
        "https://example.org/trips.parquet",
        "source: 'https://example.org/trips.parquet' is no address with {month} in it",
    ),
    "feature not in the schema": (
        "model.columns",
        ["vendor", "payment_type", "fare"],
        "The schema has no column 'fare'.",
    ),
    "feature known only after payment": (
        "model.columns",
        ["vendor", "payment_type", "total_amount"],
        "total_amount is known only after payment: as a feature it would give the answer away.",
    ),
    "the target as a feature": (
        "model.columns",
        ["vendor", "payment_type", "tip_amount"],
        "tip_amount is known only after payment: as a feature it would give the answer away.",
    ),
    "target is a category": (
        "model.target",
        "payment_type",
        "payment_type is not a number of the schema.",
    ),
    "target is not there": ("model.target", "tip", "tip is not a number of the schema."),
    "category without values": (
        "model.categories",
        {"vendor": ["CMT"]},
        "payment_type is a category in model.columns, and its values are not listed.",
    ),
    "values of what is no feature": (
        "model.categories",
        {"vendor": ["CMT"], "payment_type": ["cash"], "rate_code": ["JFK"]},
        "rate_code has values here, and is no category in model.columns.",
    ),
    "baseline by a number": ("baseline.by", ["fare_amount"], "fare_amount is not a category of the schema."),
    "segments of a number": (
        "evaluate.segments",
        ["vendor", "fare_amount"],
        "fare_amount is not a category of the schema.",
    ),
    "segments of nothing known": ("evaluate.segments", ["payment"], "payment is not a category of the schema."),
    "a segment twice": ("evaluate.segments", ["vendor", "vendor"], "evaluate.segments: vendor is listed twice"),
    "baseline by nothing known": ("baseline.by", ["payment"], "The schema has no column 'payment'."),
    "baseline by the answer": (
        "baseline.by",
        ["tip_amount"],
        "tip_amount is known only after payment: as a feature it would give the answer away.",
    ),
}

# A value of the wrong kind, or out of bounds: of each kind one.
MISTAKES |= {
    "text for a number": ("demo.rows", "many", "demo.rows has to be a whole number, not 'many'"),
    "number in quotes": (
        "demo.rows",
        "5000",
        "demo.rows has to be a whole number, not the text '5000': take the quotes off",
    ),
    "bool for a number": ("demo.rows", True, "demo.rows has to be a whole number, not true"),
    "fraction for a whole number": ("sample.seed", 1.5, "sample.seed has to be a whole number, not 1.5"),
    "nothing for a number": ("learning_curve.min_gain", None, "learning_curve.min_gain has to be a number, not empty"),
    "no number": ("baseline.smoothing", float("inf"), "baseline.smoothing has to be a finite number, not Infinity"),
    "number for text": ("source", 5, "source has to be text, not 5: put it in quotes"),
    "no, unquoted": (
        "model.categories.payment_type",
        ["cash", False],
        "model.categories.payment_type has to be text, not false: put it in quotes",
    ),
    "month that is a number to YAML": (
        "months",
        [*FIRST, 2009.04],
        "months: 2009.04 is not a month written YYYY-MM, from 2000-01 on",
    ),
    "no rows": ("demo.rows", 0, "demo.rows has to be 1 or more, not 0"),
    "rows without end": ("demo.rows", 10**9, "demo.rows has to be 50,000,000 at most, not 1000000000"),
    "gain of nothing": ("learning_curve.min_gain", 0, "learning_curve.min_gain has to be above 0, not 0"),
    "gain of everything": ("learning_curve.min_gain", 1, "learning_curve.min_gain has to be below 1, not 1"),
    "text for a list": ("months", "2009-01", "months has to be a list, not '2009-01'"),
    "number for a section": ("demo", 5, "demo has to be a mapping of keys to values, not 5"),
    "list for a section": ("train.params", [1], "train.params has to be a mapping of keys to values, not a list"),
    "nothing in a section": ("demo", None, "demo has to be a mapping of keys to values, not empty"),
    "no months": ("months", [], "months must not be empty"),
    "no features": ("model.columns", [], "model.columns must not be empty"),
    "no schema": ("schema", "", "schema must not be empty"),
    "unknown role": (
        "sample.months",
        {"2009-01": "train", "2009-02": "test", "2009-03": "test"},
        "sample.months.2009-02 has to be 'fit', 'size' or 'evaluate', not 'test'",
    ),
    "unknown calibration": (
        "train.calibration",
        "isotinic",
        "train.calibration has to be 'none', 'sigmoid' or 'isotonic', not 'isotinic'",
    ),
    "name with a slash": (
        "register.name",
        "team/tips",
        "register.name: 'team/tips' is empty or has a / or a : in it, which MLflow's registry does not take",
    ),
    "budget below the smallest sample": (
        "learning_curve.budget.rows",
        20,
        "learning_curve: budget.rows: 20 are fewer than the smallest sample, 200 rows",
    ),
    "more rows than there are": (
        "train.rows",
        99_999,
        "train.rows: asks for 99,999 rows, the sample has 3,000 at most",
    ),
}


def with_value(key: str, value: Any) -> dict[str, Any]:
    """Give good settings with one value changed, added or taken out."""
    values = settings_values()
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place[section]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return values


def write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.mark.parametrize(("key", "value", "what"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_one_clear_message(tmp_path: Path, key: str, value: Any, what: str) -> None:
    path = write(tmp_path / "params.yaml", with_value(key, value))
    with pytest.raises(UsageError) as raised:
        config.load_settings(path)
    said, where, todo = raised.value.parts
    assert said.removesuffix(".") == what.removesuffix(".")
    assert not said.endswith(("?.", ".."))
    assert where.startswith(str(path))
    assert todo


@pytest.mark.parametrize(
    ("key", "value", "what"), [MISTAKES["unknown key at the top"], MISTAKES["category without values"]]
)
def test_the_command_says_so_and_writes_nothing(
    run_cli: Run, make_project: MakeProject, key: str, value: Any, what: str
) -> None:
    paths = make_project()
    write(paths.params, with_value(key, value))
    code, printed = run_cli(paths.root, "params")
    assert code == 2
    assert what in printed
    assert "params.yaml" in printed
    assert "Traceback" not in printed
    assert not (paths.root / "data").exists()


def test_each_of_several_mistakes_is_named(tmp_path: Path) -> None:
    values = with_value("demo.row", 1)
    values["score"]["version"] = "latest"
    with pytest.raises(UsageError, match=r"demo\.row, did you mean rows\?; score\.version: 'latest'"):
        config.load_settings(write(tmp_path / "params.yaml", values))


def test_the_message_points_at_the_columns_that_could_be_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", with_value("model.columns", ["vendor", "payment_type", "fare_amout"]))
    with pytest.raises(UsageError) as raised:
        config.load_settings(path)
    assert raised.value.parts[1:] == (f"{path}, model.columns", "Did you mean fare_amount?")


@pytest.mark.parametrize(
    ("key", "value", "todo"),
    [
        ("model.target", "tip", "Name one of: trip_distance, "),
        ("evaluate.segments", ["payment"], "Name one of: vendor, rate_code, "),
        ("baseline.by", ["fare_amount"], "Name one of: vendor, rate_code, "),
        (
            "model.categories",
            {"vendor": ["CMT"]},
            "Add those that the model is to tell apart: payment_type: [cash, credit, no charge, dispute, ",
        ),
        ("model.categories", {"vendor": ["CMT"], "payment_typ": ["cash"]}, "Add those"),
    ],
)
def test_the_message_says_what_could_be_written_instead(tmp_path: Path, key: str, value: Any, todo: str) -> None:
    with pytest.raises(UsageError) as raised:
        config.load_settings(write(tmp_path / "params.yaml", with_value(key, value)))
    assert raised.value.parts[2].startswith(todo)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("2E+1", 20.0), (".5e-2", 0.005), ("1.e1", 10.0)])
def test_a_power_of_ten_is_a_number_as_it_is_to_dvc(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path / "params.yaml", settings_values())
    path.write_text(path.read_text().replace("C: 1.0", f"C: {text}"))
    assert config.load_settings(path).train.params == {"C": value}
    with (tmp_path / "params.yaml").open() as file:
        assert YAML(typ="safe").load(file)["train"]["params"] == {"C": value}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"estimator": "logistic_regresion"}, "Did you mean logistic_regression?"),
        ({"estimator": "mine:make"}, "There is no estimator 'mine:make'"),
        ({"params": {"c": 1.0}}, "LogisticRegression has no parameter 'c'"),
        ({"estimator": "hist_gradient_boosting"}, "has no parameter 'C'"),
    ],
)
def test_an_estimator_that_cannot_be_made_stops_before_anything_is_fetched(
    run_cli: Run, make_project: MakeProject, train: dict[str, Any], words: str
) -> None:
    paths = make_project(train=train)
    code, printed = run_cli(paths.root, "params")
    assert code == 2
    assert words in printed
    assert not paths.params_checked.exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("months: [\n", "params.yaml, line 2, column 1"),
        ("months:\n\t- x\n", "not valid YAML: found character '\\t' that cannot start any token.\n"),
        ("months: [a]\nsource: x\nmonths: [b]\n", "params.yaml, line 3, column 1"),
        ("", "not a mapping of sections"),
        ("- 2009-01\n", "not a mapping of sections"),
    ],
)
def test_what_is_no_settings_file_is_refused(run_cli: Run, make_project: MakeProject, text: str, what: str) -> None:
    paths = make_project()
    paths.params.write_text(text)
    code, printed = run_cli(paths.root, "params")
    assert code == 2
    assert what in printed
    assert str(paths.params) in printed


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"source: \xff\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        config.load_settings(path)


def test_no_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no params\.yaml") as raised:
        config.load_settings(tmp_path / "params.yaml")
    assert raised.value.parts[1] == str(tmp_path / "params.yaml")


def test_right_settings_leave_the_same_bytes_each_time(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    code, _ = run_cli(paths.root, "params")
    assert code == 0
    before = paths.params_checked.read_bytes()
    make_project(months=["2009-01", "2009-02", "2009-03"], source="../elsewhere/{month}.csv")
    code, _ = run_cli(paths.root, "params")
    assert code == 0
    assert paths.params_checked.read_bytes() == before


def test_the_check_runs_in_folders_below_the_project(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    below = paths.root / "notebooks" / "old"
    below.mkdir(parents=True)
    code, _ = run_cli(below, "params")
    assert code == 0
    assert paths.params_checked.is_file()


def test_the_projects_own_settings_are_right() -> None:
    settings = config.load_settings(ROOT / "params.yaml")
    assert settings.source == "demo"
    assert set(settings.sample.months) <= set(settings.months)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.rows", 2000),
        ("score.version", 3),
        ("source", "https://example.org/yellow_{month}.parquet"),
        ("sample.months", {"2009-01": "train", "2009-02": "train", "2009-03": "validation", "2009-05": "test"}),
        ("train.params", {"C": 0.1, "max_iter": 50}),
        ("months", ["2009-03", "2009-01", "2009-02"]),
    ],
)
def test_what_is_allowed_is_kept_as_it_is_written(tmp_path: Path, key: str, value: Any) -> None:
    settings = config.load_settings(write(tmp_path / "params.yaml", with_value(key, value)))
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    assert (list(found) if isinstance(value, list) else found) == value


def test_months_of_a_role_are_in_order_of_time(tmp_path: Path) -> None:
    roles = {"2009-02": "train", "2009-05": "test", "2009-01": "train", "2009-03": "validation"}
    settings = config.load_settings(write(tmp_path / "params.yaml", with_value("sample.months", roles)))
    assert settings.sample.get_months("train") == ["2009-01", "2009-02"]


@pytest.mark.parametrize("section", [None, "demo", "train"])
def test_settings_are_frozen(section: str | None) -> None:
    settings = config.load_settings(ROOT / "params.yaml")
    part = settings if section is None else getattr(settings, section)
    for name in type(part).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  - extra\n", "  - extra\n  - extra\n", "extra is listed twice"),
        ("    - VTS\n", "    - CMT\n", "CMT is listed twice"),
        ("  target: tip_amount", "  target: fare_amount", "fare_amount is the target: as a feature"),
        ("  seed: 2009", "  seed: 2009\n  seed: 2010", "the key 'seed' stands twice"),
        ("source: demo", "source: ftp://127.0.0.1/{month}.csv", "does not fetch from ftp://"),
    ],
)
def test_what_yaml_or_a_type_would_let_pass_is_refused(
    run_cli: Run, make_project: MakeProject, old: str, new: str, words: str
) -> None:
    paths = make_project()
    text = (ROOT / "params.yaml").read_text().replace("schema: ", f"schema: {ROOT}/")
    assert old in text
    paths.params.write_text(text.replace(old, new, 1))
    code, printed = run_cli(paths.root, "params")
    assert code == 2
    assert words in printed
