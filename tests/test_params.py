"""A mistake in params.yaml is one clear message, before anything runs."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError

from tests.conftest import ROOT, settings_values
from tipline import params
from tipline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.layout import Layout

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Layout]

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
    "month 13": ("months", [*FIRST, "2009-13"], "months.3: '2009-13' is not a month written YYYY-MM"),
    "month with a day": ("months", [*FIRST, "2009-04-01"], "months.3: '2009-04-01' is not a month written YYYY-MM"),
    "day without quotes, a date to YAML": (
        "months",
        [*FIRST, dt.date(2009, 4, 1)],
        "months.3: '2009-04-01' is not a month written YYYY-MM",
    ),
    "month of another century": ("months", [*FIRST, "1909-01"], "months.3: '1909-01' is not a month written YYYY-MM"),
    "month twice": ("months", [*FIRST, "2009-01"], "months: 2009-01 is listed twice"),
    "role for a month that is not listed": (
        "sample.months",
        {"2009-01": "fit", "2009-02": "size", "2009-12": "evaluate"},
        "sample.months: 2009-12 is not in the list `months`",
    ),
    "role for what is no month": (
        "sample.months",
        {"2009-01": "fit", "2009-02": "size", "2009-13": "evaluate"},
        "sample.months.2009-13: '2009-13' is not a month written YYYY-MM",
    ),
    "size before fit": (
        "sample.months",
        {"2009-02": "fit", "2009-01": "size", "2009-03": "evaluate"},
        "sample: fit (2009-02) has to end before size (2009-01) begins: fit, size, evaluate",
    ),
    "evaluate before size": (
        "sample.months",
        {"2009-01": "fit", "2009-03": "size", "2009-02": "evaluate"},
        "sample: size (2009-03) has to end before evaluate (2009-02) begins: fit, size, evaluate",
    ),
    "fit around size": (
        "sample.months",
        {"2009-01": "fit", "2009-02": "size", "2009-03": "fit", "2009-04": "evaluate"},
        "sample: fit (2009-03) has to end before size (2009-02) begins: fit, size, evaluate",
    ),
    "no month to evaluate on": (
        "sample.months",
        {"2009-01": "fit", "2009-02": "size"},
        "sample: no month has the role evaluate",
    ),
    "no month to fit on": (
        "sample.months",
        {"2009-01": "size", "2009-02": "evaluate"},
        "sample: no month has the role fit",
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
        "source: the address has no {month} in it",
    ),
    "feature not in the contract": (
        "model.columns",
        ["vendor", "payment_type", "fare"],
        "The contract has no column 'fare'.",
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
        "The target 'payment_type' is not a number of the contract.",
    ),
    "target is not there": ("model.target", "tip", "The target 'tip' is not a number of the contract."),
    "category without values": (
        "model.categories",
        {"vendor": ["CMT"]},
        "payment_type: its values and its place in model.columns disagree.",
    ),
    "values of what is no feature": (
        "model.categories",
        {"vendor": ["CMT"], "payment_type": ["cash"], "rate_code": ["JFK"]},
        "rate_code: its values and its place in model.columns disagree.",
    ),
    "baseline by a number": ("baseline.by", ["fare_amount"], "fare_amount is not a category of the contract."),
    "segments of a number": (
        "evaluate.segments",
        ["vendor", "fare_amount"],
        "fare_amount is not a category of the contract.",
    ),
    "segments of nothing known": ("evaluate.segments", ["payment"], "payment is not a category of the contract."),
    "a segment twice": ("evaluate.segments", ["vendor", "vendor"], "evaluate.segments: vendor is listed twice"),
    "baseline by nothing known": ("baseline.by", ["payment"], "The contract has no column 'payment'."),
    "baseline by the answer": (
        "baseline.by",
        ["tip_amount"],
        "tip_amount is known only after payment: as a feature it would give the answer away.",
    ),
}

# Here pydantic words the rest of the message.
WRONG_KINDS: dict[str, tuple[str, Any, str]] = {
    "text for a number": ("demo.rows", "many", "demo.rows: Input should be a valid integer"),
    "number in quotes": ("demo.rows", "5000", "demo.rows: Input should be a valid integer"),
    "bool for a number": ("demo.rows", True, "demo.rows: Input should be a valid integer"),
    "fraction for a whole number": ("sample.seed", 1.5, "sample.seed: Input should be a valid integer"),
    "number for text": ("source", 5, "source: Input should be a valid string"),
    "no rows": ("demo.rows", 0, "demo.rows: Input should be greater than or equal to 1"),
    "text for a list": ("months", "2009-01", "months: Input should be a valid array"),
    "number for a section": ("demo", 5, "demo: Input should be an object"),
    "nothing in a section": ("demo", None, "demo: Input should be an object"),
    "no months": ("months", [], "months: "),
    "no features": ("model.columns", [], "model.columns: "),
    "unknown role": (
        "sample.months",
        {"2009-01": "fit", "2009-02": "test", "2009-03": "evaluate"},
        "sample.months.2009-02: Input should be 'fit', 'size' or 'evaluate'",
    ),
    "gain of everything": ("learning_curve.min_gain", 1, "learning_curve.min_gain: Input should be less than 1"),
    "name with a slash": ("register.name", "team/tips", "register.name: "),
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
        params.load(path)
    said, where, todo = raised.value.parts
    assert said.removesuffix(".") == what.removesuffix(".")
    assert where.startswith(str(path))
    assert todo


@pytest.mark.parametrize(("key", "value", "beginning"), WRONG_KINDS.values(), ids=WRONG_KINDS)
def test_a_value_of_the_wrong_kind_is_named_by_its_key(tmp_path: Path, key: str, value: Any, beginning: str) -> None:
    path = write(tmp_path / "params.yaml", with_value(key, value))
    with pytest.raises(UsageError) as raised:
        params.load(path)
    said, where, _ = raised.value.parts
    assert said.startswith(beginning)
    assert ";" not in said
    assert where == str(path)


@pytest.mark.parametrize(("key", "value", "what"), [*MISTAKES.values(), *WRONG_KINDS.values()])
def test_the_command_says_so_and_writes_nothing(
    run_cli: Run, make_project: MakeProject, key: str, value: Any, what: str
) -> None:
    layout = make_project()
    write(layout.params, with_value(key, value))
    code, printed = run_cli(layout.root, "params")
    assert code == 2
    assert what in printed
    assert "params.yaml" in printed
    assert "Traceback" not in printed
    assert not (layout.root / "data").exists()


def test_each_of_several_mistakes_is_named(tmp_path: Path) -> None:
    values = with_value("demo.row", 1)
    values["score"]["version"] = "latest"
    with pytest.raises(UsageError, match=r"demo\.row, did you mean rows\?; score\.version: 'latest'"):
        params.load(write(tmp_path / "params.yaml", values))


def test_the_message_points_at_the_columns_that_could_be_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", with_value("model.columns", ["vendor", "payment_type", "fare_amout"]))
    with pytest.raises(UsageError) as raised:
        params.load(path)
    assert raised.value.parts[1:] == (f"{path}, model.columns", "Did you mean fare_amount?")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("months: [", "not valid YAML"),
        ("months:\n\t- x\n", "not valid YAML"),
        ("", "not a mapping of sections"),
        ("- 2009-01\n", "not a mapping of sections"),
    ],
)
def test_what_is_no_settings_file_is_refused(run_cli: Run, make_project: MakeProject, text: str, what: str) -> None:
    layout = make_project()
    layout.params.write_text(text)
    code, printed = run_cli(layout.root, "params")
    assert code == 2
    assert what in printed
    assert str(layout.params) in printed


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"source: \xff\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        params.load(path)


def test_no_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no params\.yaml") as raised:
        params.load(tmp_path / "params.yaml")
    assert raised.value.parts[1] == str(tmp_path / "params.yaml")


def test_right_settings_leave_the_same_bytes_each_time(run_cli: Run, make_project: MakeProject) -> None:
    layout = make_project()
    code, _ = run_cli(layout.root, "params")
    assert code == 0
    before = layout.params_checked.read_bytes()
    make_project(months=["2009-01", "2009-02", "2009-03"], source="../elsewhere/{month}.csv")
    code, _ = run_cli(layout.root, "params")
    assert code == 0
    assert layout.params_checked.read_bytes() == before


def test_the_check_runs_in_folders_below_the_project(run_cli: Run, make_project: MakeProject) -> None:
    layout = make_project()
    below = layout.root / "notebooks" / "old"
    below.mkdir(parents=True)
    code, _ = run_cli(below, "params")
    assert code == 0
    assert layout.params_checked.is_file()


def test_the_projects_own_settings_are_right() -> None:
    settings = params.load(ROOT / "params.yaml")
    assert settings.source == "demo"
    assert set(settings.sample.months) <= set(settings.months)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.rows", 2000),
        ("score.version", 3),
        ("source", "https://example.org/yellow_{month}.parquet"),
        ("sample.months", {"2009-01": "fit", "2009-02": "fit", "2009-03": "size", "2009-05": "evaluate"}),
        ("train.params", {"C": 0.1, "max_iter": 50}),
        ("months", ["2009-03", "2009-01", "2009-02"]),
    ],
)
def test_what_is_allowed_is_kept_as_it_is_written(tmp_path: Path, key: str, value: Any) -> None:
    settings = params.load(write(tmp_path / "params.yaml", with_value(key, value)))
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    assert (list(found) if isinstance(value, list) else found) == value


def test_months_of_a_role_are_in_order_of_time(tmp_path: Path) -> None:
    roles = {"2009-02": "fit", "2009-05": "evaluate", "2009-01": "fit", "2009-03": "size"}
    settings = params.load(write(tmp_path / "params.yaml", with_value("sample.months", roles)))
    assert settings.sample.of("fit") == ["2009-01", "2009-02"]


@pytest.mark.parametrize("section", [None, "demo", "train"])
def test_settings_are_frozen(section: str | None) -> None:
    settings = params.load(ROOT / "params.yaml")
    part = settings if section is None else getattr(settings, section)
    for name in type(part).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  - extra\n", "  - extra\n  - extra\n", "extra is listed twice"),
        ("    - VTS\n", "    - CMT\n", "CMT is listed twice"),
        ("smoothing: 10", "smoothing: .inf", "baseline.smoothing"),
        ("  target: tip_amount", "  target: fare_amount", "fare_amount is the target: as a feature"),
        ("  seed: 2009", "  seed: 2009\n  seed: 2010", "the key 'seed' stands twice"),
        ("source: demo", "source: ftp://127.0.0.1/{month}.csv", "does not fetch from ftp://"),
    ],
)
def test_what_yaml_or_a_type_would_let_pass_is_refused(
    run_cli: Run, make_project: MakeProject, old: str, new: str, words: str
) -> None:
    layout = make_project()
    text = (ROOT / "params.yaml").read_text().replace("contract: ", f"contract: {ROOT}/")
    assert old in text
    layout.params.write_text(text.replace(old, new, 1))
    code, printed = run_cli(layout.root, "params")
    assert code == 2
    assert words in printed
