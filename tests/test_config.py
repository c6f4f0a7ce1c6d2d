"""A mistake in params.yaml is one clear message, before any stage does anything."""

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.conftest import ROOT, settings_values
from tipline import config
from tipline.errors import UsageError
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

REMOVED = "(absent)"
FIRST = ["2009-01", "2009-02", "2009-03"]
NOT_A_MONTH = "is not a month written YYYY-MM, from 2000-01 on"
ORDER = "the order is train, validation, test"


def give_roles(*roles: str) -> dict[str, str]:
    return {f"2009-{number:02d}": role for number, role in enumerate(roles, 1)}


# Key, value (REMOVED: the key is taken out), how the message begins.
MISTAKES: list[tuple[str, Any, str]] = [
    ("sauce", "demo", "unknown key sauce, did you mean source?"),
    ("demo.row", 1, "unknown key demo.row, did you mean rows?"),
    ("zzz", 1, "unknown key zzz"),
    ("sample.seed", REMOVED, "the key sample.seed is missing"),
    ("months", [*FIRST, "2009-13"], f"months: '2009-13' {NOT_A_MONTH}"),
    ("months", [*FIRST, "20٢٤-01"], f"months: '20٢٤-01' {NOT_A_MONTH}"),
    ("months", [*FIRST, dt.date(2009, 4, 1)], f"months: '2009-04-01' {NOT_A_MONTH}"),
    ("months", [*FIRST, "2009-01"], "months: 2009-01 is listed twice"),
    ("months", [], "months must not be empty"),
    ("months", "2009-01", "months has to be a list with one value per line, as `- value`"),
    ("sample.months", give_roles("train", "validation") | {"2009-12": "test"},
     "sample.months: 2009-12 is not in the list `months`"),
    ("sample.months", give_roles("validation", "train", "test"),
     f"sample.months: train (2009-02) has to end before validation (2009-01) begins; {ORDER}"),
    ("sample.months", give_roles("train", "validation"),
     "sample.months: no month has the role test; each of train, validation and test needs one"),
    ("sample.months", give_roles("train", "holdout", "test"),
     "sample.months.2009-02 has to be 'train', 'validation' or 'test', not \"holdout\""),
    ("train.rows", "all", "train.rows: 'all' is neither 'auto' nor a positive whole number"),
    ("train.rows", 99_999, "train.rows: 99,999 rows are requested, the sample has at most 3,000"),
    ("train.estimator", "logistic_regresion", "There is no 'logistic_regresion'. Did you mean logistic_regression?"),
    ("train.estimator", "no estimator", "There is no 'no estimator'. Use logistic_regression"),
    ("model.features", "add_feature", "There is no 'add_feature'. Did you mean add_features?"),
    ("model.code", "missing.py", "There is no file missing.py beside params.yaml. Create it; an empty one will do."),
    ("model.code", "params.yaml", "model.code"),
    ("model.code", "transformers.py", "transformers.py is the name of a file of tipline's own in each model. Name"),
    ("model.code", "broken.py", "broken.py is not Python: "),
    ("model.hidden", ["vendor"], "vendor is hidden. Remove it from the list."),
    ("model.hidden", ["vendr"], "The schema has no column 'vendr'. Did you mean vendor?"),
    ("score.model", "latest", "score.model: 'latest' is neither 'champion' nor a positive whole number"),
    ("source", "https://example.org/trips.parquet",
     "source: 'https://example.org/trips.parquet' is not an address with {month} in it"),
    ("source", "ftp://example.org/{month}.csv", "source: tipline does not fetch from ftp://; use a path, https, s3"),
    ("source", "https://me:secret@example.org/{month}.csv", "source: has a password or token in it, which DVC would"),
    ("source", 5, "source has to be a valid string, not 5: put it in quotes"),
    ("schema", "", "schema must not be empty"),
    ("model.name", "o'brien",
     "model.name: \"o'brien\" is empty or has one of / : ' \" ` in it, which MLflow cannot register"),
    ("model.columns", ["vendor", "vendor"], "model.columns: vendor is listed twice"),
    ("model.columns", ["vendor", "payment_type", "fare_amout"],
     "The schema has no column 'fare_amout'. Did you mean fare_amount?"),
    ("model.target", "payment_type", "'payment_type' is not a yes/no value. Write a yes/no expression over columns "),
    ("model.target", "tip_amount +", "'tip_amount +' is not an expression: "),
    ("model.target", "tip_amount > 0.2 * fare_amount", "fare_amount is part of the target; as a feature it would"),
    ("model.categories.payment_type", ["cash", False],
     "model.categories.payment_type has to be a valid string, not false: put it in quotes"),
    ("evaluate.baseline", ["tip_amount"], "tip_amount is known only after"),
    ("score.id_columns", ["vendor"], "The schema has no identifier 'vendor'. Give a column the type identifier"),
    ("labels.on", ["trip_id"], "labels: source and `on` belong together: give both, or null and []"),
    ("labels", {"source": "labels.csv", "on": ["vendor"]},
     "labels.source: 'labels.csv' is not an address with {month} in it"),
    ("labels", {"source": "{month}", "on": ["vendor"]}, "The schema has no identifier 'vendor'. Give a column"),
    ("labels", {"source": "https://me:secret@example.org/{month}.csv", "on": ["vendor"]},
     "labels.source: has a password or token in it, which DVC would"),
    ("evaluate.segments", ["payment"], "The schema has no category 'payment'. Use one of: vendor, rate_code, "),
    ("evaluate.tolerance", float("inf"), "evaluate.tolerance has to be a finite number, not Infinity"),
    ("demo", None, "demo has to be an object, not empty"),
    ("demo.rows", "5000", 'demo.rows has to be a valid integer, not "5000"'),
    ("demo.rows", True, "demo.rows has to be a valid integer, not true"),
    ("demo.rows", 10**9, "demo.rows has to be less than or equal to 50000000, not 1000000000"),
    ("learning_curve.min_gain", 1, "learning_curve.min_gain has to be less than 1, not 1"),
    ("learning_curve.max_rows", 100, "learning_curve: max_rows: 100 is less than `smallest`, 200"),
    ("cluster.n_workers", 0, "cluster.n_workers has to be greater than or equal to 1, not 0"),
]  # fmt: skip


def set_value(key: str, value: Any) -> dict[str, Any]:
    """Return valid settings with one value changed, added or removed."""
    values = settings_values()
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[last] = value
    if value is REMOVED:
        del section[last]
    return values


def write(path: Path, values: object) -> Path:
    shutil.copyfile(ROOT / "features.py", path.with_name("features.py"))
    path.with_name("broken.py").write_text("def add(:\n")
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES, ids=lambda part: str(part)[:40])
def test_mistake_has_one_clear_message(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = write(tmp_path / "params.yaml", set_value(key, value))
    with pytest.raises(UsageError) as raised:
        config.load_settings(path)
    what, where, todo = raised.value.parts
    assert f"{what} {todo}".startswith(message.removesuffix("."))
    assert not what.endswith(("?.", ".."))
    assert where.startswith(str(path))
    assert todo


def test_keys_of_tipline_0_1_end_in_one_message_that_names_them_all(tmp_path: Path) -> None:
    values = settings_values() | {"contract": "x.yaml", "baseline": {"by": ["vendor"]}}
    values["score"], values["learning_curve"]["budget"] = {"version": 3, "workers": 2}, {"rows": 1}
    values["sample"]["months"] = give_roles("fit", "size", "evaluate")
    with pytest.raises(UsageError) as raised:
        config.load_settings(write(tmp_path / "params.yaml", values))
    what = raised.value.parts[0]
    for key in ("contract", "baseline", "score.version", "score.workers", "learning_curve.budget"):
        assert f"unknown key {key}" in what
    assert "sample.months.2009-01 has to be 'train', 'validation' or 'test', not \"fit\"" in what


@pytest.mark.parametrize("command", ["download 2009-01", "record"])
def test_every_stage_validates_all_settings_first(run_cli: Run, make_project: MakeProject, command: str) -> None:
    paths, values = make_project(), set_value("evaluate.tolerance", "much")
    values["demo"]["row"] = 1
    write(paths.params, values)
    code, output = run_cli(paths.root, *command.split())
    assert code == 2
    assert "unknown key demo.row, did you mean rows?; evaluate.tolerance has to be a valid number" in output
    assert "Traceback" not in output
    assert not (paths.root / "data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("months: [\n", "params.yaml, line 2, column 1"),
        ("months:\n\t- x\n", "found character '\\t' that cannot start any token"),
        ("months: [a]\nsource: x\nmonths: [b]\n", 'found duplicate key "months"'),
        ("", "not a mapping of sections"),
        ("? [a, b]\n: 1\n", "keys must be str, int"),
        ("train: &loop\n  params: *loop\n", "The file cannot be read: Circular reference detected"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("source: \udcff\n", "not valid YAML"),
        ("<<<<<<< HEAD\nsource: a\n=======\nsource: b\n>>>>>>> b\n", "Does a merge conflict stand there?"),
    ],
)
def test_file_that_is_not_settings_is_refused(run_cli: Run, make_project: MakeProject, text: str, message: str) -> None:
    paths = make_project()
    paths.params.write_text(text, errors="surrogateescape")
    code, output = run_cli(paths.root, "download", "2009-01")
    assert code == 2
    assert message in output
    assert str(paths.params) in output
    assert "defect of tipline" not in output


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3", {"C": 0.001}),  # as DVC reads it
        ("2E+1", {"C": 20.0}),
        (".5e-2", {"C": 0.005}),
        ("1.e1\n    max_iter: 50", {"C": 10.0, "max_iter": 50}),
    ],
)
def test_parameters_of_an_estimator_are_kept(tmp_path: Path, text: str, values: dict[str, float]) -> None:
    path = write(tmp_path / "params.yaml", settings_values())
    path.write_text(path.read_text().replace("C: 1.0", f"C: {text}"))
    assert config.load_settings(path).train.params == values


def test_settings_are_frozen_and_months_of_a_role_in_order_of_time(tmp_path: Path) -> None:
    roles = {"2009-02": "train", "2009-05": "test", "2009-01": "train", "2009-03": "validation"}
    settings = config.load_settings(write(tmp_path / "params.yaml", set_value("sample.months", roles)))
    assert settings.sample.get_months("train") == ["2009-01", "2009-02"]
    for section in (settings, settings.demo, settings.train):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, next(iter(type(section).model_fields)), None)


def test_partial_settings_of_a_valid_file(make_project: MakeProject) -> None:
    found = config.load_partial_settings(make_project(months=FIRST).params)
    assert found.settings is not None
    assert (found.problem, found.months, found.model_name) == (None, tuple(FIRST), "tip-probability")


@pytest.mark.parametrize(
    ("text", "months", "name"),
    [
        ("months: [2009-01, x]\nmodel: {name: m}\n", ("2009-01",), "m"),
        ("months: 2009-01\nmodel: 5\n", (), None),
        ("a: [\n", (), None),
    ],
)
def test_partial_settings_of_an_invalid_file(tmp_path: Path, text: str, months: tuple[str, ...], name: object) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UsageError, match=r"no params\.yaml"):
        config.load_settings(path)
    path.write_text(text)
    found = config.load_partial_settings(path)
    assert found.settings is None
    assert isinstance(found.problem, UsageError)
    assert (found.months, found.model_name) == (months, name)
