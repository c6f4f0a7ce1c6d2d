"""The taxis of another city are another schema file: nothing else changes. A schema that makes no sense says so."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from tests import factory, workbench
from tests.conftest import ROOT
from tipline import cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

CONTRACT = """
version: 1
eras:
  "2020-01": CSV
  "2021-01": Parquet, other names for money
columns:
  company:
    type: category
    meaning: who runs the cab
    names: {"2020-01": Taxi Company}
    aliases:
      Flash: [Flash Cab, FC]
      Sun: [Sun Taxi]
      Blue: [Blue Diamond]
    required: true
  began:
    type: timestamp
    meaning: start of the trip
    names: {"2020-01": Trip Start Timestamp}
    required: true
  ended:
    type: timestamp
    meaning: end of the trip
    names: {"2020-01": Trip End Timestamp}
  miles:
    type: number
    meaning: distance
    unit: miles
    names: {"2020-01": Trip Miles}
    range: [0, 60]
    required: true
  paid_by:
    type: category
    meaning: how the passenger paid
    names: {"2020-01": Payment Method}
    aliases:
      plastic: [Credit Card, Mobile]
      coins: [Cash]
      promise: [Unknown, "No Charge"]
    fill: promise
    required: true
  fare:
    type: number
    meaning: fare
    names: {"2020-01": Fare, "2021-01": Fare USD}
    range: [0, 300]
    required: true
  extras:
    type: number
    meaning: extras
    names: {"2020-01": Extras}
    fill: 0
  tolls:
    type: number
    meaning: tolls
    names: {"2020-01": Tolls}
  tips:
    type: number
    meaning: tips
    names: {"2020-01": Tips, "2021-01": Tips USD}
    known_after_outcome: true
    required: true
ignored: [Trip ID]
"""
MONTHS = ("2020-11", "2020-12", "2021-01", "2021-02")
ROLES = {"2020-11": "train", "2020-12": "validation", "2021-01": "test"}
ROWS = 4000
SECTIONS = {
    "schema": "city.yaml",
    "source": "published/trips-{month}.data",
    "months": list(MONTHS),
    "sample": {"months": ROLES},
    "model": {
        "target": "tips",
        "columns": ["company", "began", "miles", "paid_by", "fare", "extras"],
        "categories": {"company": ["Flash", "Sun", "Blue"], "paid_by": ["plastic", "coins", "promise"]},
    },
    "baseline": {"by": ["paid_by"], "smoothing": 10},
    "evaluate": {"segments": ["paid_by", "company"]},
}


def trips(month: str) -> pd.DataFrame:
    """A month of that city: who pays with plastic tips the more often the further he goes."""
    dice = np.random.default_rng(int(month.replace("-", "")))
    began = pd.Timestamp(f"{month}-01") + pd.to_timedelta(dice.integers(0, 27 * 86_400, ROWS), unit="s")
    miles = dice.gamma(2, 3, ROWS).round(1)
    words = np.array(["Credit Card", "CASH", "Mobile", "Unknown", "Dispute", None], dtype=object)
    paid = words[dice.choice(6, ROWS, p=[0.4, 0.25, 0.2, 0.1, 0.03, 0.02])]
    plastic = np.isin(paid.astype(str), ["Credit Card", "Mobile"])
    labels = dice.random(ROWS) < np.where(plastic, 1 / (1 + np.exp(3 - miles)), 0.02)
    fares = (3.25 + 2.25 * miles).round(2)
    return pd.DataFrame(
        {
            "Trip ID": np.arange(ROWS),
            "Taxi Company": dice.choice(["Flash Cab", "FC", "sun taxi", "Blue Diamond", "Medallion"], ROWS),
            "Trip Start Timestamp": began,
            "Trip End Timestamp": began + pd.to_timedelta(miles * 180, unit="s"),
            "Trip Miles": miles,
            "Payment Method": pd.Series(paid, dtype="str"),
            "Fare": fares,
            "Tips": np.where(labels, (fares / 5).round(2), 0.0),
            "Tolls": 0.0,
            "Extras": pd.Series(dice.choice([0.0, 1.0, 4.0], ROWS)).where(dice.random(ROWS) < 0.9),
        }
    )


def publish(folder: Path) -> None:
    """Publish the months: two as CSV with ISO times, two as Parquet under later names and with a new column."""
    folder.mkdir()
    for month in MONTHS:
        path, frame = folder / f"trips-{month}.data", trips(month)
        if month < "2021":
            frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S.000")
        else:
            frame = frame.rename(columns={"Fare": "Fare USD", "Tips": "Tips USD"})
            buffer = io.BytesIO()
            frame.assign(Community=7).to_parquet(buffer)
            path.write_bytes(buffer.getvalue())


@pytest.fixture(scope="module")
def city(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The other city's project, everything run."""
    paths = workbench.write_project(tmp_path_factory.mktemp("city") / "project", **SECTIONS)
    values = yaml.safe_load(paths.params.read_text())
    values["model"]["categories"] = SECTIONS["model"]["categories"]  # type: ignore[index]
    paths.params.write_text(yaml.safe_dump(values, sort_keys=False))
    (paths.root / "city.yaml").write_text(CONTRACT)
    publish(paths.root / "published")
    template = request.getfixturevalue("mlflow_template")
    (paths.root / "mlflow.db").write_bytes(template.read_bytes())
    # MLflow puts the address of the store that it used last into the environment, where tipline looks first.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
        workbench.run(paths, "params")
        workbench.run_to(paths, "monitor")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return paths


def test_only_params_and_the_contract_are_the_other_citys(city: Paths) -> None:
    assert (city.root / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    own = [path for path in city.root.rglob("*.py") if "mlartifacts" not in path.parts and path.name != "pyfunc.py"]
    assert own == []


@pytest.mark.parametrize("month", MONTHS)
def test_the_other_citys_months_come_out_in_its_schema(city: Paths, month: str) -> None:
    made, published = pq.read_table(city.prepared_file(month)).to_pandas(), trips(month)
    words = {"Credit Card": "plastic", "Mobile": "plastic", "CASH": "coins", "Unknown": "promise", "Dispute": "Dispute"}
    companies = {
        "Flash Cab": "Flash",
        "FC": "Flash",
        "sun taxi": "Sun",
        "Blue Diamond": "Blue",
        "Medallion": "Medallion",
    }
    assert list(made) == ["row", "company", "began", "ended", "miles", "paid_by", "fare", "extras", "tolls", "tips"]
    assert made["row"].tolist() == list(range(ROWS))
    assert made["company"].astype("str").tolist() == published["Taxi Company"].map(companies).tolist()
    paid = published["Payment Method"].map(words).fillna("promise")
    assert made["paid_by"].astype("str").tolist() == paid.tolist()
    assert (made["began"].to_numpy() == published["Trip Start Timestamp"].to_numpy()).all()
    for name, column in {"miles": "Trip Miles", "fare": "Fare", "tips": "Tips", "tolls": "Tolls"}.items():
        assert made[name].tolist() == published[column].tolist()
    assert made["extras"].tolist() == published["Extras"].fillna(0).tolist()


@pytest.mark.parametrize("month", MONTHS)
def test_the_other_citys_receipts_say_what_was_met(city: Paths, month: str) -> None:
    manifest, published = workbench.read_json(city.trips(month) / "_manifest.json"), trips(month)
    assert manifest["era"] == ("2020-01" if month < "2021" else "2021-01")
    assert manifest["unknown_columns"] == ([] if month < "2021" else ["Community"])
    assert manifest["unknown_aliases"] == {
        "company: Medallion": int((published["Taxi Company"] == "Medallion").sum()),
        "paid_by: Dispute": int((published["Payment Method"] == "Dispute").sum()),
    }
    assert manifest["filled"] == {
        "extras": int(published["Extras"].isna().sum()),
        "paid_by": int(published["Payment Method"].isna().sum()),
    }
    assert (manifest["rows_in"], manifest["rows_out"], manifest["outside_month"]) == (ROWS, ROWS, 0)


def test_the_model_of_the_other_city_is_worth_something(city: Paths) -> None:
    months = pd.read_csv(city.monitoring / "months.csv", index_col="month")
    assert list(months.index) == list(MONTHS)
    assert (months["rows"] == ROWS).all()
    # Among those who pay with plastic, the distance decides: the tip rate by payment knows nothing of it.
    assert months["skill"].between(0.25, 0.8).all()
    assert months["auc"].between(0.9, 0.99).all()
    assert workbench.read_json(city.learning_curve.with_suffix(".json"))


def test_every_score_of_the_other_city_joins_back(city: Paths) -> None:
    rows = pd.read_parquet(city.root / "data/trips", columns=["month", "row", "paid_by", "miles"])
    scores = pd.read_parquet(city.predictions)
    joined = rows.merge(scores, on=["month", "row"], validate="one_to_one")
    assert len(joined) == len(rows) == len(scores) == ROWS * len(MONTHS)
    far = joined[joined["paid_by"] == "plastic"].groupby(joined["miles"] > 6)["tip_probability"].mean()
    assert far[True] > far[False] + 0.3
    assert joined.loc[joined["paid_by"] == "coins", "tip_probability"].mean() < 0.1


def test_the_other_citys_contract_is_all_that_its_features_are_held_against(run_cli: Run, city: Paths) -> None:
    values = yaml.safe_load(city.params.read_text())
    values["model"]["columns"] = ["trip_miles"]
    folder = city.root.parent / "other"
    folder.mkdir()
    for name in ("dvc.yaml", "city.yaml"):
        (folder / name).write_bytes((city.root / name).read_bytes())
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    code, printed = run_cli(folder, "params")
    assert code == 2
    assert "no column 'trip_miles'" in printed
    assert "Did you mean miles?" in printed


# ---- contracts that make no sense ----


def without_time(values: dict[str, Any]) -> None:
    for name in ("began", "ended"):
        values["columns"][name]["type"] = "category"


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "unknown key": (
        lambda values: values["columns"]["fare"].update(requird=True),
        ("unknown key columns.fare.requird", "did you mean required?"),
    ),
    "unknown section": (lambda values: values.update(column={}), ("unknown key column", "did you mean columns?")),
    "missing key": (
        lambda values: values["columns"]["fare"].pop("meaning"),
        ("the key columns.fare.meaning is missing",),
    ),
    "missing section": (lambda values: values.pop("columns"), ("the key columns is missing",)),
    "unknown type": (lambda values: values["columns"]["fare"].update(type="money"), ("columns.fare.type", "'number'")),
    "unknown era": (
        lambda values: values["columns"]["fare"]["names"].update({"1999": "price"}),
        ("columns.fare.names: 1999 is not one of the eras",),
    ),
    "same name twice": (
        lambda values: values["columns"]["tolls"]["names"].update({"2021-01": " FARE "}),
        ("columns.tolls.names: fare belongs to fare already",),
    ),
    "ignored and claimed": (
        lambda values: values["ignored"].append("tips"),
        ("columns.tips.names: tips belongs to ignored already",),
    ),
    "fill is no alias": (
        lambda values: values["columns"]["paid_by"].update(fill="nothing"),
        ("columns.paid_by.fill: nothing is not one of the aliases' values",),
    ),
    "fill is no number": (lambda values: values["columns"]["extras"].update(fill="none"), ("columns.extras",)),
    "fill of a time": (lambda values: values["columns"]["began"].update(fill="2020"), ("columns.began",)),
    "fraction of a whole number": (
        lambda values: values["columns"].update(
            seats={"type": "integer", "meaning": "seats", "names": {"2020-01": "Seats"}, "fill": 0.5}
        ),
        ("columns.seats",),
    ),
    "same alias twice": (
        lambda values: values["columns"]["company"]["aliases"]["Sun"].append("flash cab"),
        ("columns.company: aliases", "flash cab"),
    ),
    "range of words": (lambda values: values["columns"]["company"].update(range=[0, 1]), ("columns.company",)),
    "range backwards": (lambda values: values["columns"]["fare"].update(range=[300, 0]), ("columns.fare",)),
    "aliases of a number": (
        lambda values: values["columns"]["fare"].update(aliases={"a": ["b"]}),
        ("columns.fare",),
    ),
    "no timestamp": (without_time, ("one has to be a timestamp",)),
    "a column called row": (lambda values: values["columns"].update(row=values["columns"].pop("fare")), ("row",)),
    "no version": (lambda values: values.update(version=0), ("version",)),
    "a list of columns": (lambda values: values.update(columns=[1]), ("columns",)),
    "names without an era": (lambda values: values["columns"]["fare"].update(names="Fare"), ("columns.fare.names",)),
    "no names": (lambda values: values["columns"]["fare"].update(names={}), ("columns.fare",)),
}


def check_wrong(run_cli: Run, paths: Paths, *words: str) -> None:
    """Every command ends with one message that names the file, and says these words."""
    factory.write_2009(paths.raw("2020-11") / "month.parquet", {})
    for command in (("params",), ("prepare", "2020-11")):
        code, printed = run_cli(paths.root, *command)
        assert code == 2, printed
        for word in ("city.yaml", *words):
            assert word in printed
        assert "Traceback" not in printed
        assert printed.count("to do:") == 1
    assert not paths.prepared("2020-11").exists()


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_contract_that_makes_no_sense_is_refused(
    run_cli: Run, make_project: MakeProject, change: Callable[[dict[str, Any]], Any], words: tuple[str, ...]
) -> None:
    paths = make_project(schema="city.yaml")
    values = yaml.safe_load(CONTRACT)
    change(values)
    (paths.root / "city.yaml").write_text(yaml.safe_dump(values))
    check_wrong(run_cli, paths, *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"columns: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a\n- b\n", "not a mapping"),
        (b"", "not a mapping"),
        (CONTRACT.replace("  tolls:", "  fare:").encode(), "the key 'fare' stands twice"),
        (b"PAR1\x00\x00", "not valid YAML"),
    ],
    ids=["cut off", "no text", "a list", "empty", "key twice", "binary"],
)
def test_a_file_that_is_no_contract_is_refused(
    run_cli: Run, make_project: MakeProject, data: bytes, words: str
) -> None:
    paths = make_project(schema="city.yaml")
    (paths.root / "city.yaml").write_bytes(data)
    check_wrong(run_cli, paths, words)


def test_a_contract_that_is_not_there_is_named(run_cli: Run, make_project: MakeProject) -> None:
    check_wrong(run_cli, make_project(schema="city.yaml"), "There is no city.yaml", "`schema` in params.yaml")


def test_a_folder_is_no_schema(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project(schema="city.yaml")
    (paths.root / "city.yaml").mkdir()
    check_wrong(run_cli, paths, "city.yaml", "`schema` in params.yaml")


def test_a_contract_is_read_as_json_too(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project(schema="city.yaml")
    (paths.root / "city.yaml").write_text(
        json.dumps(yaml.safe_load((ROOT / "src/tipline/months/schema.yaml").read_text()))
    )
    assert run_cli(paths.root, "params")[0] == 0
