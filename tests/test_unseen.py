"""A category that training does not have gets about the probability of rows whose value is hidden."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.base import clone

from tests import workbench
from tests.test_pipeline import ALL, CODE, fit_model, rows
from tipline.commands.explain import find_unseen
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.model import artifact, golden_rows, pipeline
from tipline.model.transformers import MISSING, OTHER, OtherLevel
from tipline.paths import Paths

ESTIMATORS = ["logistic_regression", "hist_gradient_boosting", "lightgbm.LGBMClassifier", "xgboost.XGBClassifier"]
COUNT = 20_000


def fit(frame: pd.DataFrame, **params: Any) -> tuple[OtherLevel, pd.DataFrame]:
    step = OtherLevel(**params)
    return step, step.fit_transform(frame)


def test_a_share_of_the_rows_is_hidden_by_seed_and_position() -> None:
    frame = pd.DataFrame({"a": np.arange(COUNT) % 3, "b": ["x", "y"] * (COUNT // 2)})
    step, hidden = fit(frame, share=0.05)
    is_other = hidden == OTHER
    assert is_other.mean().between(0.04, 0.06).all()
    assert (is_other["a"] & is_other["b"]).mean() < 0.01
    known = frame.assign(a=frame["a"].astype(float).astype(str))
    assert hidden.astype(object)[~is_other].equals(known.astype(object)[~is_other])
    assert fit(frame, share=0.05)[1].equals(hidden)
    assert not fit(frame, share=0.05, seed=1)[1].equals(hidden)
    pd.testing.assert_frame_equal(fit(frame[:900], share=0.05)[1], hidden[:900])
    assert (step.transform(frame).astype(object) == known.astype(object)).all().all()
    copies = (pickle.loads(pickle.dumps(step)), clone(step).fit(frame))  # noqa: S301 (our own)
    assert all(copy.transform(frame).equals(step.transform(frame)) for copy in copies)


def test_unseen_and_missing_values_get_levels() -> None:
    frame = pd.DataFrame({"gaps": ["x", "y", None, "x"] * 50, "whole": ["x", "y"] * 100})
    step, _ = fit(frame)
    assert step.levels_ == [["x", "y", OTHER, MISSING], ["x", "y", OTHER]]
    new = pd.DataFrame({name: ["x", "z", None, np.nan, OTHER] for name in frame}, index=[9, 8, 7, 6, 5])
    found = step.transform(new)
    assert found.index.equals(new.index)
    assert found["gaps"].tolist() == ["x", OTHER, MISSING, MISSING, OTHER]
    assert found["whole"].tolist() == ["x", OTHER, OTHER, OTHER, OTHER]
    assert step.transform(new.astype("category")).equals(found)
    listed, _ = fit(frame, levels=[["z", "y"], ["x"]])
    assert listed.levels_ == [["y", OTHER, MISSING], ["x", OTHER]]


def test_numbers_have_one_name_whatever_their_type() -> None:
    step, _ = fit(pd.DataFrame({"n": [0, 1, 2, 10] * 50, "b": [True, False] * 100}))
    assert step.levels_ == [["0.0", "1.0", "2.0", "10.0", OTHER], ["False", "True", OTHER]]
    found = step.transform(pd.DataFrame({"n": [-0.0, 10, 11, np.nan], "b": [True, False, True, True]}))
    assert found["n"].tolist() == ["0.0", "10.0", OTHER, OTHER]
    assert found["b"].tolist() == ["True", "False", "True", "True"]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (["x"] * 200, ["x", OTHER]),  # constant
        ([None] * 5, [OTHER, MISSING]),
        (["x"], [OTHER]),
        ([], [OTHER]),
        (["x"] * 3 + [OTHER] * 197, [OTHER, "x"]),  # a value of that name
    ],
)
def test_each_column_has_a_hidden_value(values: list[str | None], levels: list[str]) -> None:
    step, hidden = fit(pd.DataFrame({"a": pd.Series(values, dtype=object)}))
    assert step.levels_ == [levels]
    assert (hidden["a"] == OTHER).any() == bool(values)
    assert step.transform(pd.DataFrame({"a": ["never seen"]}))["a"].tolist() == [OTHER]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_golden_rows_have_unseen_and_missing_values(tmp_path: Path, estimator: str) -> None:
    model = fit_model(tmp_path, ALL, estimator)
    spec = golden_rows.add_golden_rows(artifact.Model(model._files, use_compiled=False), rows(100, 3))
    unseen, missing = (spec["golden_rows"]["rows"][row] for row in (-2, -1))
    assert unseen["vendor"] == unseen["payment_type"] == "(unseen)"
    assert missing["vendor"] is missing["payment_type"] is None
    for form in (model, artifact.Model(model._files, rows=10**9)):
        form.spec = spec
        assert golden_rows.count_steps(form) <= 1
    assert find_unseen(model, golden_rows.read_rows([unseen], model)) == ["vendor", "payment_type"]
    assert find_unseen(model, golden_rows.read_rows([missing], model)) == []


def test_golden_rows_have_unseen_numbers(tmp_path: Path) -> None:
    model = fit_model(tmp_path, ["fare_amount", "passenger_count"], ESTIMATORS[0], categorical=["passenger_count"])
    spec = golden_rows.add_golden_rows(artifact.Model(model._files, use_compiled=False), rows(100, 3))
    assert [row["passenger_count"] for row in spec["golden_rows"]["rows"][-2:]] == [-(2**31), None]


def test_a_function_that_cannot_take_unseen_values_is_spared_them(tmp_path: Path) -> None:
    code = CODE.replace("def add_ratio", "def strict(trips):\n    assert not trips.isin(['(unseen)']).any(axis=None)")
    code = code.replace("any(axis=None)(trips):", "any(axis=None)\n    return trips\ndef add_ratio(trips):")
    model = fit_model(tmp_path, ["payment_type", "fare_amount"], ESTIMATORS[0], code, features="strict")
    spec = golden_rows.add_golden_rows(artifact.Model(model._files, use_compiled=False), rows(100, 3))
    assert len(spec["golden_rows"]["rows"]) == golden_rows.ROWS + 1
    assert spec["golden_rows"]["rows"][-1]["payment_type"] is None


def test_real_trips_with_an_unseen_payment_get_about_the_rate_of_all(
    make_project: Callable[..., Paths], tlc: Path
) -> None:
    paths = make_project(source=str(tlc / "tiny2009" / "yellow_{month}.parquet"))
    settings, schema = workbench.load_settings(paths), load_schema()
    for stage in ("download", "prepare"):
        workbench.run_month(paths, stage, "2009-01")
    trips = columns.encode_categories(pq.read_table(paths.prepared_file("2009-01"), partitioning=None))
    spec, labels = pipeline.create_spec(settings, schema), trips["tip_amount"].to_numpy() > 0
    frame = artifact.read_frame(trips.combine_chunks().to_batches()[0], spec["inputs"])
    for estimator in ESTIMATORS[:2]:
        train = settings.train.model_copy(update={"estimator": estimator, "params": {}})
        built = pipeline.build_pipeline(settings.model_copy(update={"train": train}), schema, paths.root, frame)
        pipeline.fit_pipeline(built.pipeline, frame[:10_000], labels[:10_000])
        hidden = frame[10_000:].assign(payment_type="never seen")
        assert 0.15 < built.pipeline.predict_proba(hidden)[:, 1].mean() < 0.3
