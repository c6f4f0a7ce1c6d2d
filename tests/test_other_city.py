"""The taxis of another city need another schema file and nothing else (docs/own-data.md has it with DVC)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tests import workbench
from tipline import cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tipline.paths import Paths

SCHEMA = """
version: 1
eras: {"2020-01": CSV, "2021-01": "Parquet, another name for money"}
columns:
  began: {type: timestamp, meaning: start of the trip, names: {"2020-01": Trip Start Timestamp}, required: true}
  miles: {type: number, meaning: distance, names: {"2020-01": Trip Miles}, range: [0, 60], required: true}
  paid_by:
    type: category
    meaning: how the passenger paid
    names: {"2020-01": Payment Method}
    aliases: {plastic: [Credit Card, Mobile], coins: [Cash], promise: [Unknown, "No Charge"]}
    fill: promise
    required: true
  tips: {type: number, meaning: tips, names: {"2020-01": Tips, "2021-01": Tips USD}, known_after_outcome: true}
ignored: [Trip ID]
"""
MONTHS = ("2020-11", "2020-12", "2021-01", "2021-02")
ROWS = 4000
WORDS = {"Credit Card": "plastic", "Mobile": "plastic", "CASH": "coins", "Unknown": "promise", "Dispute": "Dispute"}
SECTIONS: dict[str, Any] = {
    "schema": "city.yaml",
    "source": "published/trips-{month}.data",
    "months": list(MONTHS),
    "sample": {"months": {"2020-11": "train", "2020-12": "validation", "2021-01": "test"}},
    "model": {
        "target": "tips > 0",
        "columns": ["began", "miles", "paid_by"],
        "categories": {"paid_by": ["plastic", "coins", "promise"]},
    },
    "evaluate": {"baseline": ["paid_by"], "segments": ["paid_by"]},
}


def publish(path: Path, month: str) -> pd.DataFrame:
    """A month of that city: passengers who pay with plastic tip more often on longer trips."""
    dice = np.random.default_rng(int(month.replace("-", "")))
    began = pd.Timestamp(f"{month}-01") + pd.to_timedelta(dice.integers(0, 27 * 86_400, ROWS), unit="s")
    miles = dice.gamma(2, 3, ROWS).round(1)
    paid = np.array([*WORDS, None], dtype=object)[dice.choice(6, ROWS, p=[0.4, 0.2, 0.25, 0.1, 0.03, 0.02])]
    is_plastic = np.isin(paid.astype(str), ["Credit Card", "Mobile"])
    tips = 1.5 * (dice.random(ROWS) < np.where(is_plastic, 1 / (1 + np.exp(3 - miles)), 0.02))
    columns = {"Trip ID": np.arange(ROWS), "Trip Start Timestamp": began, "Trip Miles": miles}
    frame = pd.DataFrame(columns | {"Payment Method": pd.Series(paid, dtype="str"), "Tips": tips})
    if month < "2021":
        frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S.000")
    else:
        frame.rename(columns={"Tips": "Tips USD"}).assign(Community=7).to_parquet(path)
    return frame


def test_the_months_come_out_in_the_citys_schema_and_its_model_has_skill(
    make_project: Callable[..., Paths], mlflow_store: Path, dask_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    city = make_project(**SECTIONS)
    assert mlflow_store.parent == city.root
    (city.root / "city.yaml").write_text(SCHEMA)
    (city.root / "published").mkdir()
    frames = {month: publish(city.root / "published" / f"trips-{month}.data", month) for month in MONTHS}
    workbench.run_to(city, "monitor")
    for month, published in frames.items():
        made, words = pq.read_table(city.prepared_file(month)).to_pandas(), published["Payment Method"]
        assert list(made) == ["row", "began", "miles", "paid_by", "tips"]
        assert made["row"].tolist() == list(range(ROWS))
        assert made["paid_by"].astype("str").tolist() == words.map(WORDS).fillna("promise").tolist()
        assert (made["began"].to_numpy() == published["Trip Start Timestamp"].to_numpy()).all()
        assert made[["miles", "tips"]].to_numpy().tolist() == published[["Trip Miles", "Tips"]].to_numpy().tolist()
        manifest = workbench.read_json(city.prepared(month) / "_manifest.json")
        assert manifest["unknown_aliases"] == {"paid_by: Dispute": (words == "Dispute").sum()}
        assert manifest["filled"] == {"paid_by": words.isna().sum()}
        era, unknown = ("2020-01", []) if month < "2021" else ("2021-01", ["Community"])
        assert (manifest["era"], manifest["unknown_columns"], manifest["rows_out"]) == (era, unknown, ROWS)
    skills = pd.read_csv(city.monitoring / "months.csv", index_col="month")["skill"]
    # The distance decides among those who pay with plastic; the positive rate by payment does not know it.
    assert skills.between(0.25, 0.8).all()
    rows = pd.read_parquet(city.root / "data/trips", columns=["month", "row", "paid_by", "miles"])
    joined = rows.merge(pd.read_parquet(city.predictions), on=["month", "row"], validate="one_to_one")
    assert len(joined) == len(rows) == ROWS * len(MONTHS)
    plastic = joined[joined["paid_by"] == "plastic"]
    means = plastic.groupby(plastic["miles"] > 6)["probability"].mean()
    assert means[True] > means[False] + 0.3
