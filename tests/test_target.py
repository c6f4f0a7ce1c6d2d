"""A target is any yes/no expression over columns; what is not one ends in one message."""

import shutil
from typing import Any

import pyarrow as pa
import pytest

from tests import workbench
from tipline.ingest import conform
from tipline.ingest.schema import Column
from tipline.ingest.target import check_target
from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
on_cluster = pytest.mark.usefixtures("_on_cluster")

ROWS = pa.table(
    {
        "tip": pa.array([0.0, 1.0, None, 3.0]),
        "fare": pa.array([10.0, 0.0, 5.0, 30.0]),
        "passengers": pa.array([1, 2, 3, None], pa.int32()),
        "payment": pa.array(["credit", "cash", None, "credit"]).dictionary_encode(),
        "late": pa.array([True, False, None, True]),
    }
)
TYPES = {field.name: field.type for field in ROWS.schema}


@pytest.mark.parametrize(
    "text",
    [
        "tip > 0",
        "fare > 20",
        "payment == 'credit'",
        "payment in ['cash', 'dispute']",
        "payment not in ['cash']",
        "late",
        "not late",
        "tip > 0.2 * fare",
        "passengers / 2 >= 1",
        "0 < tip < 2",
        "tip > 0 and late",
        "(tip > 0) | (fare == 10)",
        "-tip + fare <= 10 or fare > 20",
        "late == True",
    ],
)
def test_an_expression_gives_what_pandas_gives_and_rows_with_a_missing_value_have_no_label(text: str) -> None:
    target = check_target(text, TYPES)
    found = target.evaluate(ROWS).to_pylist()
    complete = ROWS.to_pandas()[list(target.columns)].notna().all(axis="columns")
    assert [answer is None for answer in found] == (~complete).tolist()
    frame = ROWS.to_pandas()[complete].infer_objects()
    frame = frame.astype({name: bool for name in ("late",) if name in target.columns})
    assert [answer for answer in found if answer is not None] == frame.eval(text).tolist()


def test_whole_numbers_are_divided_as_numbers() -> None:
    assert check_target("passengers / 2 > 0.4", TYPES).evaluate(ROWS)[0].as_py()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tips > 0", "tips is not a column of the schema, did you mean tip?"),
        ("tip", "'tip' is not a yes/no value"),
        ("tip + fare", "'tip + fare' is not a yes/no value"),
        ("payment > 0", "cannot be computed (payment is a category)"),
        ("tip > 'a'", "cannot be computed (tip is a number)"),
        ("tip > 0 & fare > 1", "cannot be computed"),
        ("abs(tip) > 0", "abs is not a column of the schema"),
        ("tip.real > 0", "'tip.real' is not part of the syntax"),
        ("tip[0] > 0", "'tip[0]' is not part of the syntax"),
        ("tip > [0]", "'[0]' is not part of the syntax"),
        ("(lambda: tip)()", "is not part of the syntax"),
        ("tip is None", "is compared by an operator that a target cannot have"),
        ("1 > 0", "names no column of the schema"),
        ("tip >", "is not an expression: invalid syntax"),
        ("", "is not an expression"),
        ("tip > 0; fare", "is not an expression"),
    ],
)
def test_anything_else_is_refused_with_one_message(text: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is compared below)
        check_target(text, TYPES)
    assert message in str(raised.value)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is not an expression|not part of the syntax"):
        check_target("(" * 5000 + "tip" + ")" * 5000, TYPES)


@pytest.mark.parametrize(
    ("values", "expected", "unreadable"),
    [
        (["true", " No", "1", "", None, "F", "maybe"], [True, False, True, None, None, False, None], [6]),
        ([1, 0, None, 2], [True, False, None, None], [3]),
        ([1.0, 0.0, float("nan"), 0.5], [True, False, None, None], [3]),
        ([True, False, None], [True, False, None], []),
    ],
)
def test_a_boolean_column_is_read_from_words_and_numbers(
    values: list[Any], expected: list[bool | None], unreadable: list[int]
) -> None:
    column = Column(type="boolean", meaning="late", names={"first": ("late",)})
    for array in (pa.array(values), pa.array(values).dictionary_encode()):
        found, refused = conform.cast_column(array, column, [], {""})
        assert (found.to_pylist(), refused) == (expected, unreadable)


@on_cluster
@pytest.mark.parametrize(
    ("target", "baseline"),
    [
        ("payment_type == 'credit'", "vendor"),
        ("fare_amount > 8", "vendor"),
        ("tip_amount > 0.2 * fare_amount", "payment_type"),
    ],
)
def test_months_are_scored_and_monitored_for_any_target(scored_project: Paths, target: str, baseline: str) -> None:
    columns = [name for name in ("vendor", "payment_type", "fare_amount", "trip_distance") if name not in target]
    categories = {name: ["CMT", "VTS", "credit", "cash"] for name in ("vendor", "payment_type") if name in columns}
    model = {"target": target, "columns": columns, "categories": categories, "name": "any"}
    workbench.change_settings(scored_project, model=model, evaluate={"baseline": [baseline]})
    for folder in (scored_project.champion, scored_project.predictions):
        shutil.rmtree(folder)
    workbench.run(scored_project, "learning_curve", "train", "register", "evaluate", "score", "monitor", "record")
    (month, *_) = workbench.read_json(scored_project.monitoring / "months.json")
    trips = workbench.read_prepared(scored_project, month["month"]).to_pandas()
    labels = trips.astype({"payment_type": "str", "vendor": "str"}).eval(target)[trips["tip_amount"].notna()]
    assert month["positive_rate"] == pytest.approx(labels.mean())
    assert workbench.read_json(scored_project.evaluation)["challenger"]["skill"] > -0.01
