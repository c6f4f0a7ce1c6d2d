"""The taxis of another city need another schema file and nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests import workbench
from tipline import cluster

if TYPE_CHECKING:
    from pathlib import Path

    from tipline.paths import Paths

SCHEMA = """
version: 1
eras: {"2020-01": CSV, "2021-01": "Parquet, other names for money"}
columns:
  company:
    type: category
    meaning: who runs the cab
    names: {"2020-01": Taxi Company}
    aliases: {Flash: [Flash Cab, FC], Sun: [Sun Taxi], Blue: [Blue Diamond]}
    required: true
  began: {type: timestamp, meaning: start of the trip, names: {"2020-01": Trip Start Timestamp}, required: true}
  miles: {type: number, meaning: distance, names: {"2020-01": Trip Miles}, range: [0, 60], required: true}
  paid_by:
    type: category
    meaning: how the passenger paid
    names: {"2020-01": Payment Method}
    aliases: {plastic: [Credit Card, Mobile], coins: [Cash], promise: [Unknown, "No Charge"]}
    fill: promise
    required: true
  fare: {type: number, meaning: fare, names: {"2020-01": Fare, "2021-01": Fare USD}, range: [0, 300], required: true}
  extras: {type: number, meaning: extras, names: {"2020-01": Extras}, fill: 0}
  tips: {type: number, meaning: tips, names: {"2020-01": Tips, "2021-01": Tips USD}, known_after_outcome: true}
ignored: [Trip ID]
"""
MONTHS = ("2020-11", "2020-12", "2021-01", "2021-02")
ROWS = 4000
COMPANIES = {"Flash Cab": "Flash", "FC": "Flash", "sun taxi": "Sun", "Blue Diamond": "Blue", "Medallion": "Medallion"}
WORDS = {"Credit Card": "plastic", "Mobile": "plastic", "CASH": "coins", "Unknown": "promise", "Dispute": "Dispute"}
SECTIONS: dict[str, Any] = {
    "schema": "city.yaml",
    "source": "published/trips-{month}.data",
    "months": list(MONTHS),
    "sample": {"months": {"2020-11": "train", "2020-12": "validation", "2021-01": "test"}},
    "model": {
        "target": "tips > 0",
        "columns": ["company", "began", "miles", "paid_by", "fare", "extras"],
        "categories": {"company": ["Flash", "Sun", "Blue"], "paid_by": ["plastic", "coins", "promise"]},
    },
    "evaluate": {"baseline": ["paid_by"], "segments": ["paid_by", "company"]},
}


def create_trips(month: str) -> pd.DataFrame:
    """A month of that city: passengers who pay with plastic tip more often on longer trips."""
    dice = np.random.default_rng(int(month.replace("-", "")))
    began = pd.Timestamp(f"{month}-01") + pd.to_timedelta(dice.integers(0, 27 * 86_400, ROWS), unit="s")
    miles = dice.gamma(2, 3, ROWS).round(1)
    paid = np.array([*WORDS, None], dtype=object)[dice.choice(6, ROWS, p=[0.4, 0.2, 0.25, 0.1, 0.03, 0.02])]
    is_plastic = np.isin(paid.astype(str), ["Credit Card", "Mobile"])
    labels = dice.random(ROWS) < np.where(is_plastic, 1 / (1 + np.exp(3 - miles)), 0.02)
    fares = (3.25 + 2.25 * miles).round(2)
    return pd.DataFrame(
        {
            "Trip ID": np.arange(ROWS),
            "Taxi Company": dice.choice(list(COMPANIES), ROWS),
            "Trip Start Timestamp": began,
            "Trip Miles": miles,
            "Payment Method": pd.Series(paid, dtype="str"),
            "Fare": fares,
            "Tips": np.where(labels, (fares / 5).round(2), 0.0),
            "Extras": pd.Series(dice.choice([0.0, 1.0, 4.0], ROWS)).where(dice.random(ROWS) < 0.9),
        }
    )


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, dask_address: str) -> Paths:
    """The other city's project after all stages: two months are CSV, two are Parquet with other names."""
    paths = workbench.write_project(tmp_path_factory.mktemp("city") / "project", **SECTIONS)
    (paths.root / "city.yaml").write_text(SCHEMA)
    (paths.root / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    (paths.root / "published").mkdir()
    for month in MONTHS:
        path, frame = paths.root / "published" / f"trips-{month}.data", create_trips(month)
        if month < "2021":
            frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S.000")
        else:
            frame = frame.rename(columns={"Fare": "Fare USD", "Tips": "Tips USD"}).assign(Community=7)
            path.write_bytes(frame.to_parquet())
    # MLflow writes the address of the store that it used last into the environment.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(cluster.ADDRESS, dask_address)
        workbench.run_to(paths, "monitor")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return paths


@pytest.mark.parametrize("month", MONTHS)
def test_the_months_come_out_in_the_citys_schema(city: Paths, month: str) -> None:
    made, published = pq.read_table(city.prepared_file(month)).to_pandas(), create_trips(month)
    assert list(made) == ["row", "company", "began", "miles", "paid_by", "fare", "extras", "tips"]
    assert made["row"].tolist() == list(range(ROWS))
    assert made["company"].astype("str").tolist() == published["Taxi Company"].map(COMPANIES).tolist()
    assert made["paid_by"].astype("str").tolist() == published["Payment Method"].map(WORDS).fillna("promise").tolist()
    assert (made["began"].to_numpy() == published["Trip Start Timestamp"].to_numpy()).all()
    for name, column in {"miles": "Trip Miles", "fare": "Fare", "tips": "Tips"}.items():
        assert made[name].tolist() == published[column].tolist()
    assert made["extras"].tolist() == published["Extras"].fillna(0).tolist()
    manifest = workbench.read_json(city.prepared(month) / "_manifest.json")
    assert manifest["era"] == ("2020-01" if month < "2021" else "2021-01")
    assert manifest["unknown_columns"] == ([] if month < "2021" else ["Community"])
    unknown = {"company: Medallion": ("Taxi Company", "Medallion"), "paid_by: Dispute": ("Payment Method", "Dispute")}
    counts = {alias: int((published[column] == word).sum()) for alias, (column, word) in unknown.items()}
    assert manifest["unknown_aliases"] == counts
    missing = {"extras": "Extras", "paid_by": "Payment Method"}
    assert manifest["filled"] == {name: int(published[column].isna().sum()) for name, column in missing.items()}
    assert (manifest["rows_in"], manifest["rows_out"], manifest["outside_month"]) == (ROWS, ROWS, 0)


def test_the_model_of_the_city_has_skill_and_its_predictions_join_back(city: Paths) -> None:
    months = pd.read_csv(city.monitoring / "months.csv", index_col="month")
    assert list(months.index) == list(MONTHS)
    # The distance decides among those who pay with plastic; the tip rate by payment does not know it.
    assert months["skill"].between(0.25, 0.8).all()
    assert months["auc"].between(0.9, 0.99).all()
    rows = pd.read_parquet(city.root / "data/trips", columns=["month", "row", "paid_by", "miles"])
    joined = rows.merge(pd.read_parquet(city.predictions), on=["month", "row"], validate="one_to_one")
    assert len(joined) == len(rows) == ROWS * len(MONTHS)
    plastic = joined[joined["paid_by"] == "plastic"]
    means = plastic.groupby(plastic["miles"] > 6)["tip_probability"].mean()
    assert means[True] > means[False] + 0.3
    assert joined.loc[joined["paid_by"] == "coins", "tip_probability"].mean() < 0.1
