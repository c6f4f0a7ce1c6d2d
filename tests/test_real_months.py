"""Real TLC records through the pipeline: all of 2009 (1 in 1,000 trips), and one whole hour in the published CSV."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]
    MakeProject = Callable[..., Paths]

MONTHS = [f"2009-{month:02d}" for month in range(1, 13)]
ROWS = 170_891
HOUR_ROWS = 21_242


@pytest.mark.usefixtures("mlflow_store")
def test_2009_and_a_published_hour_go_through(run_cli: Run, make_project: MakeProject, tlc: Path) -> None:
    def stage(*arguments: str) -> str:
        code, printed = run_cli(paths.root, *arguments)
        assert code == 0, printed
        return printed

    source = str(tlc / "tiny2009" / "yellow_{month}.parquet")
    sizes = {"smallest": 500, "sizes": 4, "repeats": 3}
    paths = make_project(source=source, months=MONTHS, sample={"rows": 20_000}, learning_curve=sizes)
    for month in MONTHS:
        stage("download", month)
        stage("prepare", month)
    for month in MONTHS[:3]:
        stage("sample", month)
    for name in ("learning_curve", "train", "register", "evaluate", "score", "monitor", "record"):
        stage(name)
    months = pd.read_csv(paths.monitoring / "months.csv", index_col="month")
    assert list(months.index) == MONTHS
    assert months["rows"].sum() == months["labelled_rows"].sum() == ROWS
    # The design's figures for a logistic regression fitted on January: between -1% and 4%, about 1% on average.
    assert months["skill"].between(-0.02, 0.06).all()
    assert months["auc"].between(0.97, 1).all()
    assert (months["mean_probability"] - months["tip_rate"]).abs().max() < 0.02

    digest = json.loads(paths.champion_ref.read_text())["digest"]
    values = yaml.safe_load(paths.params.read_text())
    values |= {"source": str(tlc / "hour" / "yellow_tripdata_{month}.csv"), "months": MONTHS[:3]}
    paths.params.write_text(yaml.safe_dump(values, sort_keys=False))
    for arguments in (("download", "2009-01"), ("prepare", "2009-01"), ("score",)):
        stage(*arguments)
    manifest = json.loads((paths.predictions / "month=2009-01" / "_manifest.json").read_text())
    assert manifest["rows"] == HOUR_ROWS
    assert manifest["key"]["model"] == digest
    scores = pd.read_parquet(paths.predictions / "month=2009-01")
    trips = pd.read_parquet(paths.prepared_file("2009-01"), columns=["row", "tip_amount"])
    joined = trips.merge(scores, on="row", validate="one_to_one")
    right = (joined["tip_probability"] > 0.5) == (joined["tip_amount"] > 0)
    # "Tip = paid by card" is right for 99.38% of this hour.
    assert len(joined) == HOUR_ROWS
    assert right.mean() == pytest.approx(0.9938, abs=5e-4)
