"""Challenger and champion are compared on the same rows, and the verdict says so."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import samples, workbench
from tipline import files
from tipline.errors import TiplineError
from tipline.evaluation import baseline, comparison, metrics
from tipline.evaluation.comparison import ROLES
from tipline.model import artifact
from tipline.paths import Paths
from tipline.training import sampling


@pytest.fixture
def project(trained_project: Paths) -> Paths:
    """A project whose champion is its challenger."""
    shutil.copytree(trained_project.challenger, trained_project.champion)
    return trained_project


def evaluate(paths: Paths) -> Any:
    workbench.run(paths, "evaluate")
    return workbench.read_json(paths.evaluation)


def edit_spec(folder: Path, **values: Any) -> None:
    """Change model.json; None takes a key out."""
    spec = workbench.read_json(folder / "model.json") | values
    removed = [name for name, value in values.items() if value is None]
    files.write_json(folder / "model.json", {name: value for name, value in spec.items() if name not in removed})


# ---- figures ----


def test_figures_are_those_of_scikit_learn(project: Paths) -> None:
    found = evaluate(project)
    assert found["challenger"] == found["champion"]
    assert found["verdict"].endswith("; it scores as the champion does.")
    assert found["gate"]["words"] == "The challenger is the champion: there is nothing to promote."
    assert not found["gate"]["promote"]
    assert (found["months"], found["rows"]) == (["2009-03"], 3000)
    assert project.evaluation.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    trips = workbench.as_batch(sampling.read_pool([project.sample("test", "2009-03")]))
    labels, _ = metrics.read_labels(trips, "tip_amount > 0")
    contents = artifact.read_artifact(project.challenger)
    model = artifact.load_model(contents, artifact.hash_artifact(contents))
    rule = model.spec["baseline"]
    baseline_loss = log_loss(labels, baseline.predict_baseline(trips, rule))
    rates = baseline.predict_baseline(trips, rule)
    scores = {"challenger": model.probabilities(trips).astype(float), "baseline": rates}
    for name, probabilities in scores.items():
        loss = log_loss(labels, probabilities)
        assert found[name] == {
            "log_loss": pytest.approx(loss, rel=1e-5),
            "skill": pytest.approx(1 - loss / baseline_loss, abs=1e-4),
            "auc": pytest.approx(roc_auc_score(labels, probabilities)),
        }
    # Skill is over the champion's baseline, whatever the challenger's is: this one would flatter any model.
    edit_spec(project.challenger, baseline=rule | {"rates": dict.fromkeys(rule["rates"], 0.5)})
    again = evaluate(project)
    assert [again[name] for name in (*ROLES, "baseline")] == [found[name] for name in (*ROLES, "baseline")]


def test_hours_are_in_bands_of_six() -> None:
    hours = [0, 5, 6, 11, 12, 17, 18, 23]
    names, codes = comparison.group_hours(pa.array([*(hour * 3600 for hour in hours), None], pa.timestamp("s")))
    assert codes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert names[4] == baseline.MISSING


def test_values_that_a_model_never_saw_are_named_with_their_share_of_the_loss() -> None:
    codes = np.array([0] * 96 + [1] * 4, np.int32)
    groups: comparison.Groups = {"payment_type": (["cash", "unknown", baseline.MISSING], codes)}
    loss = np.where(codes == 0, 0.1, 2.4)
    losses = {"challenger": np.where(codes == 0, 0.08, 4.8), "champion": loss, "baseline": loss}
    feature = {"kind": "category", "values": ["cash"], "counts": [100, 0, 0]}
    bins = {"challenger": feature, "champion": feature | {"values": ["cash", "unknown"]}}
    specs = {role: {"reference": {"features": {"payment_type": bins[role]}}} for role in ROLES}
    shares = comparison.share_losses(groups, {role: losses[role] for role in ROLES}, specs)
    cash, unknown = shares
    assert (cash["unseen_by"], unknown["unseen_by"], unknown["rows"], unknown["row_share"]) == (
        [],
        ["challenger"],
        4,
        0.04,
    )
    assert (unknown["champion_loss_share"], unknown["challenger_loss_share"]) == (
        pytest.approx(0.5),
        pytest.approx(19.2 / (19.2 + 7.68)),
    )
    assert comparison.describe_unseen(shares, groups, losses) == (
        " 4.0% of the rows have payment_type unknown, which the challenger never saw in training; they carry 71% of "
        "its loss. Without these rows the challenger's gain over the champion is +0.2000 skill points."
    )
    missing = {"payment_type": (["cash", baseline.MISSING], codes)}
    assert comparison.share_losses(missing, losses, specs)[1]["unseen_by"] == [*ROLES]
    seen = {role: {"reference": {"features": {"payment_type": feature | {"counts": [90, 0, 10]}}}} for role in ROLES}
    assert comparison.share_losses(missing, {role: losses[role] for role in ROLES}, seen)[1]["unseen_by"] == []


# ---- the stage ----


def test_a_worse_challenger_is_refused_and_a_better_one_passes(project: Paths) -> None:
    good, weak = project.champion, project.challenger
    columns = {"columns": ["payment_type", "fare_amount"], "categories": {"payment_type": ["cash"]}}
    workbench.change_settings(project, train={"rows": 100, "params": {"C": 0.0001}}, model=columns)
    workbench.run(project, "train")
    found = evaluate(project)
    challenger, champion, verdict = found["challenger"]["skill"], found["champion"]["skill"], found["gate"]
    assert "adds nothing" in found["verdict"]
    assert "below the champion's" in found["verdict"]
    assert "its gain over the champion may be as low as" in verdict["reasons"][0]
    assert (verdict["promote"], verdict["gain"]["upper"] < 0) == (False, True)
    assert verdict["gain"]["value"] == pytest.approx(challenger - champion, abs=1e-4)
    assert {segment["column"] for segment in verdict["segments"]} == {"payment_type", "vendor", "hour"}
    shares = [group["challenger_loss_share"] for group in found["groups"] if group["column"] == "payment_type"]
    assert sum(shares) == pytest.approx(1)
    good.rename(project.root / "good")
    weak.rename(project.champion)
    (project.root / "good").rename(project.challenger)
    found = evaluate(project)
    assert "off the log-loss of the rate by payment_type; its skill is " in found["verdict"]
    assert found["verdict"].endswith(" above the champion's.")
    assert found["gate"]["promote"]
    assert found["gate"]["words"].startswith("The gate lets it pass. Its gain over the champion is +")
    assert found["gate"]["words"].endswith("and not adjusted for how often these months were used before.")
    assert [found["made"][role] for role in ROLES] == [artifact.read_digest(getattr(project, role)) for role in ROLES]
    assert workbench.read_json(project.metrics) == {
        **{name: found["challenger"][name] for name in ("log_loss", "skill", "auc")},
        "baseline_log_loss": found["baseline"]["log_loss"],
        "gain_over_champion": found["gate"]["gain"]["value"],
    }


def test_without_known_targets_or_a_sample_there_is_nothing_to_compare(project: Paths) -> None:
    samples.change_targets(project.sample("test", "2009-03"), lambda tips: [None] * len(tips))
    with pytest.raises(TiplineError, match="No sampled row of the `test` months has a label"):
        workbench.run(project, "evaluate")
    project.sample("test", "2009-03").unlink()
    with pytest.raises(TiplineError, match="2009-03 has the role test, but its sample is missing") as caught:
        workbench.run(project, "evaluate")
    assert caught.value.parts[2] == "Run: dvc repro sample@2009-03"
    assert not project.evaluation.exists()


def test_a_report_without_skill_is_still_written(project: Paths) -> None:
    samples.change_targets(project.sample("test", "2009-03"), lambda tips: [0.0] * len(tips))
    for folder in (project.challenger, project.champion):
        edit_spec(folder, baseline={"by": ["payment_type"], "overall": 0.0, "rates": {}})
    found = evaluate(project)
    assert (found["challenger"]["skill"], found["challenger"]["auc"]) == (None, None)
    assert found["verdict"].endswith("leaves nothing to gain on these months; skill is not defined.")


@pytest.mark.parametrize(("month", "reasons"), [("2009-01", []), ("2009-03", ["no month is left to judge on"])])
def test_months_of_a_champion_that_tipline_did_not_make_come_from_its_ref(
    project: Paths, month: str, reasons: list[str]
) -> None:
    edit_spec(project.champion, months=None)
    assert "which months the champion was made on" in evaluate(project)["gate"]["words"]
    digest = artifact.read_digest(project.champion)
    files.write_json(project.champion_ref, {"digest": digest, "months": {"train": [month], "validation": []}})
    assert evaluate(project)["gate"]["reasons"] == reasons


WEATHER = {"intercept": 0.0, "terms": [{"name": "weather", "kind": "hours", "table": [0.0]}]}
NOT_FINITE = {"intercept": float("nan"), "terms": []}


@pytest.mark.parametrize(
    ("role", "values", "reason"),
    [
        ("champion", {"target": "tolls_amount > 0"}, "the champion predicts tolls_amount > 0, not tip_amount > 0"),
        ("champion", {"linear": WEATHER}, "the champion cannot score these rows"),
        ("challenger", {"linear": WEATHER}, "the challenger cannot score these rows: "),
        ("challenger", {"linear": NOT_FINITE, "golden_rows": None}, "its scores are not finite"),
    ],
)
def test_a_model_that_cannot_be_compared_is_a_reason_to_refuse(
    project: Paths, role: str, values: dict[str, Any], reason: str
) -> None:
    edit_spec(getattr(project, role), **values)
    found = evaluate(project)
    assert not found["gate"]["promote"]
    assert reason in found["gate"]["reasons"][0]
    assert {one for one in ROLES if found[one]["log_loss"] is None} == ({role} if "linear" in values else set())
    assert (found["verdict"] == "The challenger cannot score these rows.") is (role == "challenger")
    assert project.evaluation.with_suffix(".png").is_file()


def test_a_segment_column_that_no_month_has_is_not_judged(project: Paths) -> None:
    edit_spec(project.champion, note="another digest")
    path = project.sample("test", "2009-03")
    pq.write_table(pq.read_table(path).drop_columns("vendor"), path)
    verdict = evaluate(project)["gate"]
    assert verdict["promote"]
    vendors = [segment for segment in verdict["segments"] if segment["column"] == "vendor"]
    assert [(segment["value"], segment["why"]) for segment in vendors] == [("(missing)", "all rows are in it")]
