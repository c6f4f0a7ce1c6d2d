"""The figures of monitoring, counted while scoring, are those of the predictions joined back to the trips."""

from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import factory, pipeline
from tipline import cluster, files, metrics
from tipline.errors import TiplineError
from tipline.stages import monitor

if TYPE_CHECKING:
    from pathlib import Path

    from tipline.layout import Layout

pytestmark = pipeline.MLFLOW_WARNINGS
JUDGED = ("tip_rate", "log_loss", "baseline_log_loss", "skill", "auc")


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return pipeline.copy(pipeline.scored(request), tmp_path)


def months_of(layout: Layout) -> dict[str, Any]:
    return {month["month"]: month for month in pipeline.read_json(layout.monitoring / "months.json")}


@pytest.mark.parametrize("month", pipeline.MONTHS)
def test_figures_are_those_of_the_predictions_joined_to_the_trips(request: pytest.FixtureRequest, month: str) -> None:
    layout = pipeline.scored(request)
    told = months_of(layout)[month]
    trips = pipeline.trips(layout, month).to_pandas()
    joined = pq.read_table(layout.predictions / f"month={month}").to_pandas().merge(trips, on="row", validate="1:1")
    tipped = joined["tip_amount"] > 0
    baseline = pipeline.read_json(layout.champion / "model.json")["baseline"]
    batch = pipeline.batch(pipeline.trips(layout, month))
    of_baseline = log_loss(tipped, metrics.baseline_probabilities(batch, baseline))
    loss = log_loss(tipped, joined["tip_probability"].astype(float))
    assert told["rows"] == told["labelled_rows"] == len(joined)
    assert told["mean_probability"] == pytest.approx(joined["tip_probability"].mean(), rel=1e-5)
    assert told["tip_rate"] == pytest.approx(tipped.mean())
    assert told["log_loss"] == pytest.approx(loss, rel=1e-5)
    assert told["baseline_log_loss"] == pytest.approx(of_baseline, rel=1e-5)
    assert told["skill"] == pytest.approx(1 - loss / of_baseline, abs=1e-4)
    assert told["auc"] == pytest.approx(roc_auc_score(tipped, joined["tip_probability"]), abs=1e-3)


def test_table_picture_and_roles_are_written(request: pytest.FixtureRequest) -> None:
    layout = pipeline.scored(request)
    written = {path.name for path in layout.monitoring.iterdir()}
    assert written == {"months.json", "months.csv", "prepared.csv", "monitoring.png"}
    told = months_of(layout)
    assert {name: month["role"] for name, month in told.items()} == {
        "2009-01": "fit",
        "2009-02": "size",
        "2009-03": "evaluate",
        "2024-01": "",
    }
    with (layout.monitoring / "months.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["month"] for row in table] == sorted(pipeline.MONTHS)
    for row in table:
        assert row == {name: str(value) for name, value in told[row["month"]].items()}


def test_what_preparing_met_is_shown_across_months(
    project: Layout, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = factory.receipt_of(project.trips("2009-02")) | {
        "quarantined": 3,
        "quarantined_by_reason": {"fare_amount is not a number": 2, "not UTF-8": 1},
        "out_of_range": {"fare_amount": 7, "trip_distance": 1},
        "outside_month": 11,
        "new_spellings": {"payment_type: Barter": 5},
        "unknown_columns": ["weather", "mood"],
    }
    files.write_json(project.trips("2009-02") / files.RECEIPT, receipt)
    monkeypatch.setattr(logging.getLogger("tipline"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="tipline"):
        pipeline.run(project, "monitor")
    with (project.monitoring / "prepared.csv").open(newline="") as file:
        table = {row["month"]: row for row in csv.DictReader(file)}
    assert sorted(table) == sorted(pipeline.MONTHS)
    assert {row["rows_in"] for row in table.values()} == {"5000"}
    assert (table["2009-01"]["era"], table["2024-01"]["era"]) == ("2009-01", "2020-08")
    told = table["2009-02"]
    assert told["quarantined_by_reason"] == "fare_amount is not a number: 2; not UTF-8: 1"
    assert (told["out_of_range"], told["outside_month"]) == ("fare_amount: 7; trip_distance: 1", "11")
    assert "2009-02: rows set apart: fare_amount is not a number: 2; not UTF-8: 1" in caplog.text
    assert "2009-02: spellings that the contract does not know: payment_type: Barter: 5" in caplog.text
    assert "2009-02: columns that the contract does not know: weather; mood" in caplog.text
    assert "2009-01: rows set apart" not in caplog.text


def test_a_month_without_labels_shows_blanks(
    project: Layout, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, pipeline.dask_cluster(request))
    trips = pipeline.trips(project, "2024-01")
    place = trips.schema.get_field_index("tip_amount")
    pq.write_table(
        trips.set_column(place, "tip_amount", pa.nulls(len(trips), pa.float64())), project.trips_file("2024-01")
    )
    receipt = pipeline.read_json(project.trips("2024-01") / files.RECEIPT)
    receipt["trips"] = files.stated(project.trips_file("2024-01"))
    files.write_json(project.trips("2024-01") / files.RECEIPT, receipt)
    pipeline.run(project, "score")
    caplog.clear()
    with caplog.at_level(logging.INFO, "tipline"):
        pipeline.run(project, "monitor")
    told = months_of(project)["2024-01"]
    assert (told["rows"], told["labelled_rows"]) == (5000, 0)
    assert 0 < told["mean_probability"] < 1
    assert {told[name] for name in JUDGED} == {None}
    with (project.monitoring / "months.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert {row[name] for name in JUDGED} == {""}
    line = next(message for message in caplog.messages if message.startswith("2024-01"))
    assert line.split()[1:] == ["5,000", f"{told['mean_probability']:.4f}", "-", "-", "-", "-"]


def test_months_with_some_labels_are_judged_by_these() -> None:
    baseline = {"by": "payment_type", "overall": 0.5, "rates": {}}
    counts = metrics.Counts(rows=10, probability=4.0, groups={"cash": (4, 1, 2.0)})
    figures = counts.figures(baseline)
    assert (figures["rows"], figures["labelled_rows"]) == (10, 4)
    assert figures["mean_probability"] == pytest.approx(0.4)
    assert figures["tip_rate"] == pytest.approx(0.25)
    assert figures["log_loss"] == pytest.approx(0.5)


def test_the_table_is_aligned_text() -> None:
    month = {"month": "2009-01", "role": "fit", "rows": 14_092_413, "mean_probability": 0.20714, "tip_rate": 0.5}
    judged = month | {"log_loss": 0.031, "skill": -0.0123, "auc": 0.99}
    blank = month | {"month": "2009-02", "role": "", "tip_rate": None, "log_loss": None, "skill": None, "auc": None}
    lines = monitor.table([judged, blank])
    assert lines[0].split() == ["month", "role", "rows", "mean", "p", "tip", "rate", "log-loss", "skill", "AUC"]
    assert lines[1] == "2009-01  fit        14,092,413   0.2071   0.5000   0.0310  -0.0123   0.9900"
    assert lines[2] == "2009-02             14,092,413   0.2071        -        -        -        -"
    assert len({len(line) for line in lines}) == 1


def test_a_month_that_is_not_scored_is_named(project: Layout) -> None:
    before = pipeline.tree(project.monitoring)
    (project.predictions / "month=2009-02" / files.RECEIPT).unlink()
    with pytest.raises(TiplineError, match="month=2009-02") as caught:
        pipeline.run(project, "monitor")
    assert caught.value.parts[2] == "Run: dvc repro score"
    assert pipeline.tree(project.monitoring) == before
