"""What `monitor` reports from counts is true of the predictions joined back to the trips."""

import csv
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import workbench
from tipline import files
from tipline.errors import TiplineError
from tipline.evaluation import baseline
from tipline.evaluation.intervals import Ratio
from tipline.monitoring import drift, verdict
from tipline.monitoring.counts import assign_band
from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS


def read_months(paths: Paths) -> dict[str, Any]:
    return {month["month"]: month for month in workbench.read_json(paths.monitoring / "months.json")}


def read_csv(paths: Paths, name: str) -> dict[str, dict[str, str]]:
    with (paths.monitoring / name).open(newline="") as file:
        return {row["month"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("month", ["2009-03", "2024-01"])
def test_figures_are_those_of_the_predictions_joined_to_the_trips(scored_template: Paths, month: str) -> None:
    check_figures(scored_template, month)


def change_column(paths: Paths, month: str, name: str, values: Any) -> None:
    """Replace a column of a published month, and prepare it again."""
    (path,) = paths.raw(month).iterdir()
    table = pq.read_table(path, partitioning=None)
    table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.float64()))
    path.unlink()
    pq.write_table(table, path)
    workbench.run_month(paths, "prepare", month)


@pytest.mark.usefixtures("_on_cluster")
def test_labels_that_arrive_later_are_counted_and_nothing_is_scored_again(
    scored_project: Paths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.small_row_groups(monkeypatch)
    before, month = workbench.read_tree(scored_project.predictions), "2009-03"
    tips = workbench.read_prepared(scored_project, month)["tip_amount"].to_numpy().copy()
    tips[::3] = 1 - np.minimum(tips[::3], 1)
    change_column(scored_project, month, "Tip_Amt", tips)
    change_column(scored_project, "2009-02", "Tolls_Amt", np.ones(5000))  # nobody reads it
    workbench.run(scored_project, "score", "monitor")
    assert workbench.read_tree(scored_project.predictions) == before
    assert "counting again, because labels, groups or times have changed: 2009-03" in caplog.messages
    check_figures(scored_project, month)
    drift_before = read_months(scored_project)[month]["drift"]
    caplog.clear()
    workbench.run(scored_project, "monitor")
    assert not any("counting again" in message for message in caplog.messages)
    assert read_months(scored_project)[month]["drift"] == drift_before
    change_column(scored_project, month, "Fare_Amt", np.full(5000, 7.5))  # the model reads it
    with pytest.raises(TiplineError, match="prepared again after it was scored"):
        workbench.run(scored_project, "monitor")
    workbench.run(scored_project, "score", "monitor")
    changed = workbench.read_tree(scored_project.predictions)
    assert {name.split("/")[0] for name in before if changed[name] != before[name]} == {"month=2009-03"}
    check_figures(scored_project, month)


def check_figures(paths: Paths, month: str) -> None:
    table = workbench.read_prepared(paths, month)
    predictions = pq.read_table(paths.predictions / f"month={month}").to_pandas()
    joined = predictions.merge(table.to_pandas(), on="row", validate="1:1")
    scores, labels = joined["probability"].astype(float), (joined["tip_amount"] > 0).to_numpy()
    spec, batch = workbench.read_json(paths.champion / "model.json"), workbench.as_batch(table)
    rates = baseline.predict_baseline(batch, spec["baseline"])
    outside = joined["pickup_datetime"].dt.strftime("%Y-%m") != month
    days = joined["pickup_datetime"].dt.day.where(~outside, 0).to_numpy()
    refitted = np.empty(len(joined))
    for day in np.unique(days):
        fitted = baseline.fit_baseline(batch.filter(pa.array(days != day)), "tip_amount > 0", spec["baseline"]["by"])
        refitted[days == day] = baseline.predict_baseline(batch.filter(pa.array(days == day)), fitted)
    loss, baseline_loss = log_loss(labels, scores), log_loss(labels, rates)
    losses, baseline_losses = (
        np.bincount(days, -np.log(np.where(labels, p, 1 - p)))[np.unique(days)] for p in (scores, rates)
    )
    interval = Ratio.estimate(baseline_losses - losses, baseline_losses)
    expected = {
        "rows": len(joined),
        "labelled_rows": len(joined),
        "mean_probability": pytest.approx(scores.mean(), rel=1e-5),
        "positive_rate": pytest.approx(labels.mean()),
        "log_loss": pytest.approx(loss, rel=1e-5),
        "baseline_log_loss": pytest.approx(baseline_loss, rel=1e-5),
        "skill": pytest.approx(1 - loss / baseline_loss, abs=1e-4),
        "skill_low": pytest.approx(interval.bounds()[0], abs=1e-4),
        "skill_high": pytest.approx(interval.bounds()[1], abs=1e-4),
        "auc": pytest.approx(roc_auc_score(labels, assign_band(scores.to_numpy())), abs=1e-4),
        "days": len(np.unique(days[days > 0])),
        "refitted_log_loss": pytest.approx(log_loss(labels, refitted), rel=1e-5),
        "positive": labels.sum(),
        "expected_positive": pytest.approx(scores.sum()),
    }
    reported = read_months(paths)[month]
    assert {name: reported[name] for name in expected} == expected
    assert (
        reported["excess_positive_low"]
        < reported["positive"] - reported["expected_positive"]
        < reported["excess_positive_high"]
    )
    assert sum(group["rows"] for group in reported["groups"].values()) == len(joined)


def test_the_reports_hold_the_same_figures(scored_template: Paths) -> None:
    written = {path.name for path in scored_template.monitoring.iterdir()}
    assert written == {"months.json", "months.csv", "prepared.csv", "monitoring.png", "index.html"}
    months = read_months(scored_template)
    assert [month["role"] for month in months.values()] == ["train", "validation", "test", ""]
    for name, row in read_csv(scored_template, "months.csv").items():
        flat = {key: value for key, value in months[name].items() if key not in verdict.NESTED}
        assert row == {key: "" if value is None else str(value) for key, value in flat.items()}
    features = workbench.read_json(scored_template.champion / "model.json")["features"]
    assert months["2009-03"]["drift"]["features"].keys() == {feature["name"] for feature in features}
    assert months["2009-03"]["drifted"] == ""
    psi = {name: month["drift"]["features"]["fare_amount"]["psi"] for name, month in months.items()}
    assert max(psi["2009-02"], psi["2009-03"]) < drift.LARGE / 2 < psi["2024-01"]


def test_verdicts_are_printed_and_what_prepare_counted_is_written(
    scored_project: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    published = scored_project.monitoring / "months.json"
    files.write_json(published, [])
    path = scored_project.prepared("2009-02") / files.MANIFEST
    reasons = {"fare_amount is not a number": 2, "not UTF-8": 1}
    changed = {"quarantined_by_reason": reasons, "unknown_columns": ["weather", "mood"], "quarantined": 150}
    files.write_json(path, workbench.read_json(path) | changed)
    workbench.run(scored_project, "monitor")
    months = read_months(scored_project)
    all_words = [f"{name}: {one['verdict']}: {one['reason']}" for name, one in months.items()]
    last_line = "4 months: 4 keep. See reports/monitoring/index.html"
    assert caplog.messages == [*all_words, last_line]
    # Later, what is new or has changed.
    files.write_json(published, [{**one, "reason": "x"} if name == "2009-03" else one for name, one in months.items()])
    caplog.clear()
    workbench.run(scored_project, "monitor")
    assert caplog.messages == [all_words[2], last_line]
    table = read_csv(scored_project, "prepared.csv")
    assert [(name, row["rows_in"]) for name, row in table.items()] == [(name, "5000") for name in workbench.MONTHS]
    assert table["2009-02"]["quarantined_by_reason"] == "fare_amount is not a number: 2; not UTF-8: 1"
    assert table["2009-02"]["unknown_columns"] == "weather; mood"
    assert {name: one["unusual"] for name, one in months.items() if one["unusual"]} == {
        "2009-02": ["3.0% quarantined rows"]
    }
    page = (scored_project.monitoring / "index.html").read_text()
    assert (
        "<strong>Unusual: 3.0% quarantined rows.</strong> <code>tipline check data/raw/2009-02 2009-02</code>" in page
    )


def test_months_that_the_champion_did_not_score_are_refused(scored_project: Paths) -> None:
    """The counts of one model are not compared with the reference of another (fault 10 of issue 15)."""
    reports, ref = workbench.read_tree(scored_project.monitoring), workbench.read_json(scored_project.champion_ref)
    manifest = scored_project.predictions / "month=2009-02" / files.MANIFEST
    content = workbench.read_json(manifest)

    for changed in ({"model": "0" * 64}, {"format": 1}):
        files.write_json(manifest, content | {"key": content["key"] | changed})
        with pytest.raises(TiplineError, match=f"not scored by the champion .digest {ref['digest'][:12]}.") as caught:
            workbench.run(scored_project, "monitor")
        assert caught.value.parts[2] == "Run: dvc repro score"
    manifest.unlink()
    with pytest.raises(TiplineError, match="month=2009-02"):
        workbench.run(scored_project, "monitor")
    assert workbench.read_tree(scored_project.monitoring) == reports


def test_a_value_that_prepare_filled_counts_as_missing(scored_project: Paths) -> None:
    for month, rows in {"2009-01": 100, "2009-03": 1000}.items():
        path = scored_project.prepared(month) / files.MANIFEST
        files.write_json(path, workbench.read_json(path) | {"filled": {"extra": rows}})
    workbench.run(scored_project, "monitor")
    extra = {name: month["drift"]["features"]["extra"] for name, month in read_months(scored_project).items()}
    rates = {name: (one["missing_rate"], one["reference_missing_rate"]) for name, one in extra.items()}
    assert rates == {"2009-01": (0.02, 0.02), "2009-02": (0, 0.02), "2009-03": (0.2, 0.02), "2024-01": (0, 0.02)}
    assert "missing (2.0% of the rows in training)" in (scored_project.monitoring / "index.html").read_text()
