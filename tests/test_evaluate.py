"""Challenger and champion are compared on the same rows, and the verdict says it in words."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import pipeline
from tipline import files, metrics, modelfiles, sampling
from tipline.errors import TiplineError
from tipline.stages import evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from tipline.layout import Layout


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    """A project whose champion is its challenger."""
    layout = pipeline.copy(pipeline.trained(request), tmp_path)
    shutil.copytree(layout.challenger, layout.champion)
    return layout


def report_of(layout: Layout) -> Any:
    pipeline.run(layout, "evaluate")
    return pipeline.read_json(layout.evaluation)


def test_equal_models_have_equal_figures_and_the_verdict_says_so(project: Layout) -> None:
    report = report_of(project)
    assert report["challenger"] == report["champion"]
    assert report["verdict"].endswith("; it scores as the champion does.")
    assert report["months"] == ["2009-03"]
    assert report["rows"] == 3000
    assert project.evaluation.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_figures_are_those_of_scikit_learn(project: Layout) -> None:
    report = report_of(project)
    trips = pipeline.batch(sampling.read_pool([project.sample("evaluate", "2009-03")]))
    tipped, _ = metrics.labels(trips, "tip_amount")
    contents = modelfiles.read(project.challenger)
    loaded = modelfiles.load(contents, modelfiles.digest(contents))
    scores = loaded.probabilities(trips)
    of_baseline = log_loss(tipped, metrics.baseline_probabilities(trips, loaded.spec["baseline"]))
    loss = log_loss(tipped, scores.astype(float))
    assert report["tip_rate"] == pytest.approx(tipped.mean())
    assert report["challenger"] == {
        "log_loss": pytest.approx(loss, rel=1e-5),
        "skill": pytest.approx(1 - loss / of_baseline, abs=1e-4),
        "auc": pytest.approx(roc_auc_score(tipped, scores)),
        "accuracy": pytest.approx(((scores > 0.5) == tipped).mean()),
    }
    assert report["baseline"]["log_loss"] == pytest.approx(of_baseline, rel=1e-6)
    assert report["baseline"]["skill"] == 0


def constant(probability: float) -> Any:
    """Make a model that gives every row the same probability, by a rule of two categories."""

    class Constant:
        def __init__(self) -> None:
            rates = {"cash": 0.2, "credit": 0.8}
            self.spec = {"baseline": {"by": "payment_type", "overall": 0.4, "rates": rates}}

        def probabilities(self, trips: pa.RecordBatch) -> Any:
            return np.full(len(trips), probability, np.float32)

    return Constant()


def test_majority_and_baseline_are_those_by_hand() -> None:
    payments = pa.array(["cash", "cash", "credit", "credit", "other"]).dictionary_encode()
    trips = pa.RecordBatch.from_pydict({"payment_type": payments, "tip_amount": pa.array([0.0, 0, 3, 0, 2])})
    report, scores = evaluate.evaluate(trips, "tip_amount", constant(0.5), constant(0.3))
    # Of the rules' 0.4, overall, no row is above one half: right where there was no tip.
    assert report["majority"]["accuracy"] == pytest.approx(3 / 5)
    assert report["majority"]["log_loss"] == pytest.approx(-(3 * np.log(0.6) + 2 * np.log(0.4)) / 5)
    assert report["majority"]["auc"] == pytest.approx(0.5)
    # By payment: 0.2 0.2 0.8 0.8, and the overall 0.4 for what was not seen.
    baseline = -(2 * np.log(0.8) + np.log(0.8) + np.log(0.2) + np.log(0.4)) / 5
    assert report["baseline"]["log_loss"] == pytest.approx(baseline)
    assert report["baseline"]["accuracy"] == pytest.approx(3 / 5)
    assert report["baseline"]["auc"] == pytest.approx((2 + 0.5 + 2) / 6)
    assert report["challenger"]["log_loss"] == pytest.approx(np.log(2))
    assert report["challenger"]["skill"] == pytest.approx(1 - np.log(2) / baseline)
    assert {name: float(values[0]) for name, values in scores.items()} == pytest.approx(
        {"challenger": 0.5, "champion": 0.3}
    )


def test_one_class_has_no_auc() -> None:
    payments = pa.array(["cash", "credit"]).dictionary_encode()
    trips = pa.RecordBatch.from_pydict({"payment_type": payments, "tip_amount": pa.array([0.0, 0.0])})
    report, _ = evaluate.evaluate(trips, "tip_amount", constant(0.5), constant(0.5))
    assert {report[name]["auc"] for name in ("challenger", "champion", "baseline", "majority")} == {None}
    assert report["challenger"]["log_loss"] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("challenger", "champion", "words"),
    [
        (0.031, 0.011, "takes 3.1% off the log-loss of the tip rate by vendor; its skill is 0.0200 above the"),
        (0.011, 0.031, "takes 1.1% off the log-loss of the tip rate by vendor; its skill is 0.0200 below the"),
        (-0.01, -0.02, "adds nothing to the tip rate by vendor; its skill is 0.0100 above the champion's"),
        (0.0, 0.0, "adds nothing to the tip rate by vendor; it scores as the champion does"),
        (-0.5, 0.1, "adds nothing to the tip rate by vendor; its skill is 0.6000 below the champion's"),
        (None, 0.1, "leaves nothing to gain on these months; skill is not defined"),
        (None, None, "leaves nothing to gain on these months; skill is not defined"),
    ],
)
def test_the_verdict_is_in_words(challenger: float | None, champion: float | None, words: str) -> None:
    figures = {"challenger": {"skill": challenger}, "champion": {"skill": champion}}
    assert words in evaluate.worth(challenger, "vendor") + evaluate.against(figures)


def test_a_worse_challenger_is_called_worse(project: Layout) -> None:
    pipeline.change(project, train={"rows": 100, "params": {"C": 0.0001}})
    pipeline.run(project, "train")
    report = report_of(project)
    assert report["challenger"]["skill"] < report["champion"]["skill"]
    assert "below the champion's" in report["verdict"]
    assert "adds nothing" in report["verdict"]


def test_a_better_challenger_is_called_better(project: Layout) -> None:
    pipeline.change(project, train={"rows": 100, "params": {"C": 0.0001}})
    pipeline.run(project, "train")
    shutil.rmtree(project.champion)
    shutil.copytree(project.challenger, project.champion)
    pipeline.change(project, train={"rows": 3000, "params": {"C": 1.0}})
    pipeline.run(project, "train")
    report = report_of(project)
    assert report["challenger"]["skill"] > report["champion"]["skill"]
    assert "above the champion's" in report["verdict"]


def test_models_of_different_columns_are_compared(project: Layout) -> None:
    pipeline.change(
        project, model={"columns": ["payment_type", "fare_amount"], "categories": {"payment_type": ["cash"]}}
    )
    pipeline.run(project, "train")
    report = report_of(project)
    assert report["challenger"] != report["champion"]
    assert report["challenger"]["auc"] > 0.5


def test_without_known_targets_there_is_nothing_to_compare(project: Layout) -> None:
    path = project.sample("evaluate", "2009-03")
    sample = pq.read_table(path)
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.nulls(len(sample), pa.float64())), path)
    with pytest.raises(TiplineError, match="None of the sampled rows has a known tip_amount"):
        pipeline.run(project, "evaluate")
    assert not project.evaluation.exists()


def test_a_report_without_skill_is_still_written(project: Layout) -> None:
    path = project.sample("evaluate", "2009-03")
    sample = pq.read_table(path)
    # Only trips that never tip, by a rule that knows it.
    spec = pipeline.read_json(project.challenger / "model.json")
    spec["baseline"] |= {"overall": 0.0, "rates": {}}
    for folder in (project.challenger, project.champion):
        files.write_json(folder / "model.json", spec)
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.array([0.0] * len(sample))), path)
    report = report_of(project)
    assert report["challenger"]["skill"] is None
    assert "leaves nothing to gain" in report["verdict"]
