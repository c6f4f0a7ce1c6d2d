"""The figures of monitoring, counted while scoring, are those of the predictions joined back to the trips."""

from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import factory, workbench
from tipline import cluster, files
from tipline.errors import TiplineError
from tipline.evaluation import baseline
from tipline.evaluation.intervals import Ratio
from tipline.monitoring import drift, verdict
from tipline.monitoring.counts import BANDS, Counts, Sums, assign_band
from tipline.stages import monitor

if TYPE_CHECKING:
    from pathlib import Path

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
JUDGED = ("tip_rate", "log_loss", "baseline_log_loss", "skill", "auc")


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Paths:
    return workbench.copy_project(workbench.scored(request), tmp_path)


def months_of(paths: Paths) -> dict[str, Any]:
    return {month["month"]: month for month in workbench.read_json(paths.monitoring / "months.json")}


@pytest.mark.parametrize("month", workbench.MONTHS)
def test_figures_are_those_of_the_predictions_joined_to_the_trips(request: pytest.FixtureRequest, month: str) -> None:
    paths = workbench.scored(request)
    told = months_of(paths)[month]
    trips = workbench.read_prepared(paths, month).to_pandas()
    joined = pq.read_table(paths.predictions / f"month={month}").to_pandas().merge(trips, on="row", validate="1:1")
    labels = joined["tip_amount"] > 0
    rule = workbench.read_json(paths.champion / "model.json")["baseline"]
    batch = workbench.as_batch(workbench.read_prepared(paths, month))
    of_baseline = log_loss(labels, baseline.predict_baseline(batch, rule))
    outside = joined["pickup_datetime"].dt.strftime("%Y-%m") != month
    days = joined["pickup_datetime"].dt.day.where(~outside, 0).to_numpy()
    own = np.empty(len(joined))
    for day in np.unique(days):
        others = baseline.fit_baseline(batch.filter(pa.array(days != day)), "tip_amount", rule["by"], rule["smoothing"])
        own[days == day] = baseline.predict_baseline(batch.filter(pa.array(days == day)), others)
    loss = log_loss(labels, joined["tip_probability"].astype(float))
    assert told["rows"] == told["labelled_rows"] == len(joined)
    assert told["mean_probability"] == pytest.approx(joined["tip_probability"].mean(), rel=1e-5)
    assert told["tip_rate"] == pytest.approx(labels.mean())
    assert told["log_loss"] == pytest.approx(loss, rel=1e-5)
    assert told["baseline_log_loss"] == pytest.approx(of_baseline, rel=1e-5)
    assert told["skill"] == pytest.approx(1 - loss / of_baseline, abs=1e-4)
    assert told["auc"] == pytest.approx(roc_auc_score(labels, joined["tip_probability"]), abs=1e-3)
    assert told["refitted_log_loss"] == pytest.approx(log_loss(labels, own), rel=1e-5)
    assert (told["tips"], told["expected_tips"]) == (labels.sum(), pytest.approx(joined["tip_probability"].sum()))
    assert told["excess_tips_low"] < told["tips"] - told["expected_tips"] < told["excess_tips_high"]
    assert sum(group["rows"] for group in told["groups"].values()) == len(joined)


def test_the_bounds_of_the_skill_are_those_of_the_days_losses(request: pytest.FixtureRequest) -> None:
    paths, month = workbench.scored(request), "2009-03"
    told = months_of(paths)[month]
    trips = workbench.read_prepared(paths, month).to_pandas()
    joined = pq.read_table(paths.predictions / f"month={month}").to_pandas().merge(trips, on="row", validate="1:1")
    rule = workbench.read_json(paths.champion / "model.json")["baseline"]
    labels = joined["tip_amount"].to_numpy() > 0
    frame = joined[["pickup_datetime"]].assign(
        loss=-np.log(np.where(labels, joined["tip_probability"], 1 - joined["tip_probability"])),
        rule=-np.log(
            np.abs(
                1 - labels - baseline.predict_baseline(workbench.as_batch(workbench.read_prepared(paths, month)), rule)
            ),
        ),
    )
    inside = frame["pickup_datetime"].dt.strftime("%Y-%m") == month
    days = frame.groupby(frame["pickup_datetime"].dt.day.where(inside, 0))[["loss", "rule"]].sum()
    expected = Ratio.estimate((days["rule"] - days["loss"]).to_numpy(), days["rule"].to_numpy())
    assert told["days"] == 31
    assert told["skill_low"] == pytest.approx(expected.lower(), abs=1e-4)
    assert told["skill_high"] == pytest.approx(expected.upper(), abs=1e-4)
    assert told["skill_low"] < told["skill"] < told["skill_high"]


def test_table_picture_and_roles_are_written(request: pytest.FixtureRequest) -> None:
    paths = workbench.scored(request)
    written = {path.name for path in paths.monitoring.iterdir()}
    assert written == {"months.json", "months.csv", "prepared.csv", "monitoring.png", "index.html"}
    told = months_of(paths)
    assert {name: month["role"] for name, month in told.items()} == {
        "2009-01": "train",
        "2009-02": "validation",
        "2009-03": "test",
        "2024-01": "",
    }
    with (paths.monitoring / "months.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["month"] for row in table] == sorted(workbench.MONTHS)
    for row in table:
        values = {name: value for name, value in told[row["month"]].items() if name not in verdict.NESTED}
        assert row == {name: "" if value is None else str(value) for name, value in values.items()}


def test_what_preparing_met_is_shown_across_months(
    project: Paths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = factory.manifest_of(project.prepared("2009-02")) | {
        "quarantined": 3,
        "quarantined_by_reason": {"fare_amount is not a number": 2, "not UTF-8": 1},
        "out_of_range": {"fare_amount": 7, "trip_distance": 1},
        "outside_month": 11,
        "unknown_aliases": {"payment_type: Barter": 5},
        "unknown_columns": ["weather", "mood"],
    }
    files.write_json(project.prepared("2009-02") / files.MANIFEST, manifest)
    monkeypatch.setattr(logging.getLogger("tipline"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="tipline"):
        workbench.run(project, "monitor")
    with (project.monitoring / "prepared.csv").open(newline="") as file:
        table = {row["month"]: row for row in csv.DictReader(file)}
    assert sorted(table) == sorted(workbench.MONTHS)
    assert {row["rows_in"] for row in table.values()} == {"5000"}
    assert (table["2009-01"]["era"], table["2024-01"]["era"]) == ("2009-01", "2020-08")
    told = table["2009-02"]
    assert told["quarantined_by_reason"] == "fare_amount is not a number: 2; not UTF-8: 1"
    assert (told["out_of_range"], told["outside_month"]) == ("fare_amount: 7; trip_distance: 1", "11")
    assert "2009-02: rows set apart: fare_amount is not a number: 2; not UTF-8: 1" in caplog.text
    assert "2009-02: aliases that the schema does not know: payment_type: Barter: 5" in caplog.text
    assert "2009-02: columns that the schema does not know: weather; mood" in caplog.text
    assert "2009-01: rows set apart" not in caplog.text


def test_a_month_without_labels_shows_blanks(
    project: Paths, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    trips = workbench.read_prepared(project, "2024-01")
    place = trips.schema.get_field_index("tip_amount")
    pq.write_table(
        trips.set_column(place, "tip_amount", pa.nulls(len(trips), pa.float64())), project.prepared_file("2024-01")
    )
    manifest = workbench.read_json(project.prepared("2024-01") / files.MANIFEST)
    manifest["trips"] = files.describe_file(project.prepared_file("2024-01"))
    files.write_json(project.prepared("2024-01") / files.MANIFEST, manifest)
    workbench.run(project, "score")
    caplog.clear()
    with caplog.at_level(logging.INFO, "tipline"):
        workbench.run(project, "monitor")
    told = months_of(project)["2024-01"]
    assert (told["rows"], told["labelled_rows"]) == (5000, 0)
    assert 0 < told["mean_probability"] < 1
    assert {told[name] for name in JUDGED} == {None}
    assert (told["verdict"], told["groups"], told["calibration"]) == ("no labels", {}, [])
    assert told["drift"]["features"]["fare_amount"]["psi"] > 0
    with (project.monitoring / "months.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert {row[name] for name in JUDGED} == {""}
    line = next(message for message in caplog.messages if message.startswith("2024-01"))
    assert line.split()[1:] == ["5,000", f"{told['mean_probability']:.4f}", "-", "-", "-", "-", "no", "labels"]
    assert f"2024-01: no labels: {told['reason']}" in caplog.messages


# ---- figures and verdicts, from counts ----

RULE = {"by": ["payment_type"], "smoothing": 10, "overall": 0.2, "rates": {"cash": 0.1, "credit": 0.9}}
ROWS = {"cash": 70, "credit": 30}


def month_of(skill: float, days: int = 28, rates: dict[str, float] | None = None) -> Counts:
    """A month whose scores take this share off the losses of tip rates, by default those of the baseline.

    Days differ by a tip, and by two points of skill.
    """
    rates = rates or {"cash": 0.1, "credit": 0.9}
    found = Counts(rows=days * sum(ROWS.values()))
    for day in range(days):
        groups = {}
        for name, rate in rates.items():
            tips = round(ROWS[name] * rate) + ((-1) ** day if rate > 0 else 0)
            own = {"overall": 0, "rates": rates}
            loss = (1 - skill + 0.02 * (-1) ** (day // 2)) * baseline.sum_group_loss(own, name, ROWS[name], tips)
            groups[name] = Sums(ROWS[name], tips, ROWS[name] * rate, loss)
        found.days[str(day + 1)] = groups
    return found


def told_of(counts: Counts, **spec: Any) -> dict[str, Any]:
    return verdict.summarize_month(counts, {"baseline": RULE} | spec)


@pytest.mark.parametrize(
    ("skill", "verdict", "words"),
    [
        (0.1, "keep", "Shown better than the tip rate by payment_type: skill 10"),
        (-0.1, "retrain", "Shown worse than the tip rate by payment_type: skill -10.0% ("),
        (0.0, "keep", "Not shown better or worse than the tip rate by payment_type: skill "),
    ],
)
def test_the_verdict_rests_on_realised_skill(skill: float, verdict: str, words: str) -> None:
    told = told_of(month_of(skill))
    assert told["verdict"] == verdict
    assert told["reason"].startswith(words)
    assert told["skill"] == pytest.approx(skill, abs=1e-3)


def test_a_model_that_a_refitted_rule_beats_is_to_be_trained_again() -> None:
    # Far better than rates that no longer hold, worse than those that do.
    told = told_of(month_of(-0.2, rates={"cash": 0.3, "credit": 0.6}))
    assert told["skill_low"] > 0.05
    assert told["refitted_skill_high"] < 0
    assert told["verdict"] == "retrain"
    assert told["reason"].startswith(
        "Shown worse than the month's own tip rate by payment_type (of its other days): skill -"
    )


@pytest.mark.parametrize("days", [1, 13])
def test_under_fourteen_days_nothing_is_shown(days: int) -> None:
    told = told_of(month_of(-0.5, days=days))
    bounds = [f"{name}_{bound}" for name in ("skill", "refitted_skill", "excess_tips") for bound in ("low", "high")]
    assert {told[name] for name in bounds} == {None}
    assert told["verdict"] == "keep"
    assert told["reason"].startswith("Skill -5")
    assert f"% on {days} day{'s' * (days != 1)}: under 14 days" in told["reason"]
    assert told_of(month_of(-0.5, days=14))["verdict"] == "retrain"


def test_a_month_without_cards_is_judged_by_its_cash() -> None:
    told = told_of(month_of(0.1, rates={"cash": 0.1}))
    assert told["groups"].keys() == {"cash"}
    assert (told["verdict"], told["skill"]) == ("keep", pytest.approx(0.1, abs=1e-3))


def test_a_month_without_a_tip_has_its_figures() -> None:
    told = told_of(month_of(0.0, rates={"cash": 0.0}))
    assert (told["tips"], told["auc"]) == (0, None)
    assert told["refitted_skill"] is None
    assert told["verdict"] in {"keep", "retrain"}


def test_where_the_baseline_leaves_nothing_to_gain_the_model_is_kept() -> None:
    certain = RULE | {"rates": {"cash": 0.0}}
    told = verdict.summarize_month(month_of(0.0, rates={"cash": 0.0}), {"baseline": certain})
    assert (told["skill"], told["skill_low"], told["verdict"]) == (None, None, "keep")
    assert "leaves nothing to gain" in told["reason"]


def test_groups_under_a_thousand_rows_are_not_judged() -> None:
    groups = told_of(month_of(0.1))["groups"]
    assert (groups["cash"]["rows"], groups["cash"]["skill"]) == (1960, pytest.approx(0.1, abs=1e-3))
    assert (groups["credit"]["rows"], groups["credit"]["skill"]) == (840, None)
    assert groups["credit"]["tip_rate"] == pytest.approx(0.9)


def test_reliability_groups_are_by_score_and_hold_all_rows() -> None:
    generator = np.random.default_rng(5)
    scores = generator.beta(0.2, 0.5, 50_000).astype(np.float32)
    labels = generator.random(50_000) < scores
    bands = np.zeros((BANDS, 3), np.int64)
    np.add.at(bands, (assign_band(scores), labels.astype(int)), 1)
    bands[500, 2] = 10**6
    groups = verdict.reliability(bands)
    assert len(groups) == 10
    assert sum(group["rows"] for group in groups) == 50_000
    predicted = [group["predicted"] for group in groups]
    assert predicted == sorted(predicted)
    for group in groups:
        assert group["realised"] == pytest.approx(group["predicted"], abs=0.05)
    assert verdict.reliability(np.zeros((BANDS, 3), np.int64)) == []


def test_drift_is_told_and_does_not_decide() -> None:
    score = {"starts": [0, 500], "counts": [900, 100], "psi_bound": 0.02}
    counts = month_of(0.1)
    counts.bands[800, 2] = counts.rows
    told = told_of(counts, reference={"rows": 1000, "features": {}, "score": score})
    assert told["drift"]["score"]["flagged"] is True
    assert (told["drifted"], told["verdict"]) == ("score", "keep")
    assert told["reason"].endswith("Drift: score; it does not decide.")


def test_a_model_without_a_reference_is_monitored_without_drift() -> None:
    told = told_of(month_of(0.1))
    assert (told["drift"], told["drifted"]) == (None, "")


def test_months_like_the_training_rows_have_not_drifted(request: pytest.FixtureRequest) -> None:
    told = months_of(workbench.scored(request))
    features = workbench.read_json(workbench.scored(request).champion / "model.json")["features"]
    assert told["2009-03"]["drift"]["features"].keys() == {feature["name"] for feature in features}
    assert told["2009-03"]["drifted"] == ""
    psi = {month: of["drift"]["features"]["fare_amount"]["psi"] for month, of in told.items()}
    assert max(psi["2009-02"], psi["2009-03"]) < drift.LARGE / 2 < psi["2024-01"]


def test_a_receipt_of_another_tipline_is_to_be_scored_again(project: Paths) -> None:
    path = project.predictions / "month=2009-02" / files.MANIFEST
    manifest = workbench.read_json(path)
    del manifest["counts"]["days"]
    files.write_json(path, manifest)
    with pytest.raises(TiplineError, match="no counts that this tipline can read") as caught:
        workbench.run(project, "monitor")
    assert caught.value.parts[2] == "Run: dvc repro score"


def test_the_table_is_aligned_text() -> None:
    month = {"month": "2009-01", "role": "fit", "rows": 14_092_413, "mean_probability": 0.20714, "tip_rate": 0.5}
    judged = month | {"log_loss": 0.031, "skill": -0.0123, "auc": 0.99, "verdict": "keep", "reason": "So."}
    blank = month | {"month": "2009-02", "role": "", "tip_rate": None, "log_loss": None, "skill": None, "auc": None}
    lines = monitor.table([judged, blank | {"verdict": "no labels", "reason": "None."}])
    heads = ["month", "role", "rows", "mean", "p", "tip", "rate", "log-loss", "skill", "AUC", "verdict"]
    assert lines[0].split() == heads
    assert lines[1] == "2009-01  fit        14,092,413   0.2071   0.5000   0.0310  -0.0123   0.9900  keep"
    assert lines[2] == "2009-02             14,092,413   0.2071        -        -        -        -  no labels"
    assert lines[3:] == ["2009-02: no labels: None."]


def test_a_month_that_is_not_scored_is_named(project: Paths) -> None:
    before = workbench.read_tree(project.monitoring)
    (project.predictions / "month=2009-02" / files.MANIFEST).unlink()
    with pytest.raises(TiplineError, match="month=2009-02") as caught:
        workbench.run(project, "monitor")
    assert caught.value.parts[2] == "Run: dvc repro score"
    assert workbench.read_tree(project.monitoring) == before
