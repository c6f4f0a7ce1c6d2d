"""Real TLC records go through the pipeline: all of 2009 (1 in 1,000 trips), and one whole hour of published CSV."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests import workbench
from tipline.paths import Paths

MONTHS = [f"2009-{month:02d}" for month in range(1, 13)]
ROWS, HOUR_ROWS = 170_891, 21_242


@pytest.mark.usefixtures("mlflow_store")
def test_2009_and_a_published_hour_go_through(make_project: Callable[..., Paths], tlc: Path) -> None:
    curve = {"smallest": 500, "sizes": 4, "repeats": 3}
    source = str(tlc / "tiny2009" / "yellow_{month}.parquet")
    paths = make_project(source=source, months=MONTHS, sample={"rows": 20_000}, learning_curve=curve)
    workbench.run_to(paths, "record")
    months = pd.read_csv(paths.monitoring / "months.csv", index_col="month")
    assert list(months.index) == MONTHS
    assert months["rows"].sum() == months["labelled_rows"].sum() == ROWS
    # A logistic regression that is fitted on January has a skill between -1% and 4%.
    assert months["skill"].between(-0.02, 0.06).all()
    assert months["auc"].between(0.97, 1).all()
    assert (months["mean_probability"] - months["positive_rate"]).abs().max() < 0.02

    workbench.change_settings(paths, source=str(tlc / "hour" / "yellow_tripdata_{month}.csv"), months=MONTHS[:3])
    for stage in ("download", "prepare"):
        workbench.run_month(paths, stage, "2009-01")
    workbench.run(paths, "score")
    manifest = workbench.read_json(paths.predictions / "month=2009-01" / "_manifest.json")
    assert manifest["key"]["model"] == workbench.read_json(paths.champion_ref)["digest"]
    scores = pd.read_parquet(paths.predictions / "month=2009-01")
    trips = pd.read_parquet(paths.prepared_file("2009-01"), columns=["row", "tip_amount"])
    joined = trips.merge(scores, on="row", validate="one_to_one")
    assert len(joined) == manifest["rows"] == HOUR_ROWS
    # "Tip = paid by card" is right for 99.38% of this hour.
    is_right = (joined["probability"] > 0.5) == (joined["tip_amount"] > 0)
    assert is_right.mean() == pytest.approx(0.9938, abs=5e-4)
