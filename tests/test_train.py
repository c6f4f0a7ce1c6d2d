"""Training takes the rows that the settings ask for, and equal inputs make equal files."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import log_loss

from tests import samples, workbench
from tipline import files
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import baseline, metrics
from tipline.model import artifact
from tipline.paths import Paths
from tipline.training import sampling


def read_training(paths: Paths) -> Any:
    return workbench.read_json(paths.challenger / artifact.TRAINING)


def train(paths: Paths, **settings: object) -> None:
    workbench.change_settings(paths, train=settings)
    workbench.run(paths, "train")


def test_auto_takes_the_learning_curves_size_and_a_number_needs_none(trained_project: Paths) -> None:
    files.write_json(trained_project.sample_size, {"rows": 777})
    train(trained_project)
    assert read_training(trained_project)["params"]["rows"] == 777
    trained_project.sample_size.unlink()
    train(trained_project, rows=2999)
    assert read_training(trained_project)["params"]["rows"] == 2999
    with pytest.raises(TiplineError) as caught:
        train(trained_project, rows="auto")
    assert caught.value.parts[2] == "Run: dvc repro learning_curve"
    # Rows without a target are not trained on.
    samples.change_targets(trained_project.sample("train", "2009-01"), lambda tips: [*([None] * 1000), *tips[1000:]])
    with pytest.raises(UsageError, match="2,001 training rows are requested, but the sample has 2,000 with a known"):
        train(trained_project, rows=2001)
    train(trained_project, rows=2000)


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"params": {"max_iter": 1}}, 1, "did not converge"),
        ({"params": {"C": -1}}, 2, "'C' parameter"),
        ({"estimator": "random_forest"}, 2, "train.estimator"),
        ({"rows": 3001}, 2, "3,001 rows are requested"),
        ({"calibration": "sigmoid"}, 2, "All 3,000 rows to calibrate on have the label False."),
    ],
)
def test_a_failed_training_leaves_the_earlier_challenger(
    trained_project: Paths,
    run_cli: Callable[..., tuple[int, str]],
    settings: dict[str, object],
    code: int,
    message: str,
) -> None:
    samples.change_targets(trained_project.sample("validation", "2009-02"), lambda tips: [0.0] * len(tips))
    before = workbench.read_tree(trained_project.challenger)
    workbench.change_settings(trained_project, train=settings)
    found, printed = run_cli(trained_project.root, "train")
    assert found == code, printed
    assert message in printed
    assert "params.yaml" in printed
    assert "defect" not in printed
    assert workbench.read_tree(trained_project.challenger) == before
    assert not list((trained_project.staging / "models").glob("challenger*"))


@pytest.mark.parametrize("estimator", ["logistic_regression", "hist_gradient_boosting"])
def test_the_same_inputs_make_the_same_files_in_another_process(trained_project: Paths, estimator: str) -> None:
    train(trained_project, estimator=estimator, params={})
    here = workbench.read_tree(trained_project.challenger)
    assert set(here) == {*workbench.MODEL_FILES, artifact.TRAINING}
    command = Path(sys.executable).with_name("tipline")
    subprocess.run([str(command), "train"], cwd=trained_project.root, capture_output=True, check=True)
    assert workbench.read_tree(trained_project.challenger) == here


def test_only_the_first_rows_of_the_sample_are_used_and_the_data_digest_follows_them(trained_project: Paths) -> None:
    train(trained_project, rows=1000)
    before, seen = artifact.read_artifact(trained_project.challenger), {read_training(trained_project)["data"]}
    path = trained_project.sample("train", "2009-01")
    samples.change_targets(path, lambda tips: [*tips[:1000], *([5.0] * (len(tips) - 1000))])
    train(trained_project)
    assert artifact.read_artifact(trained_project.challenger) == before
    train(trained_project, rows=1001)
    assert artifact.read_artifact(trained_project.challenger) != before
    seen.add(read_training(trained_project)["data"])
    workbench.change_settings(trained_project, sample={"seed": 2})
    workbench.run(trained_project, "sample", "train")
    assert len({*seen, read_training(trained_project)["data"]}) == 3


def test_the_training_is_described_beside_the_model(trained_template: Paths) -> None:
    training, settings = read_training(trained_template), workbench.load_settings(trained_template)
    count = training["params"]["rows"]
    trips = workbench.as_batch(sampling.read_pool([trained_template.sample("train", "2009-01")]).slice(0, count))
    contents = artifact.read_artifact(trained_template.challenger)
    model = artifact.load_model(contents, artifact.hash_artifact(contents))
    labels, _ = metrics.read_labels(trips, "tip_amount > 0")
    loss = log_loss(labels, model.probabilities(trips).astype(float))
    assert training["name"] == f"{count:,}x7 C=1.0 logistic_regression"
    assert training["metrics"]["train.log_loss"] == pytest.approx(loss, rel=1e-5)
    assert (training["params"]["months"], training["params"]["estimator.C"]) == ("2009-01", 1.0)
    assert [list(row) for row in training["example"]] == [list(settings.model.columns)] * 5
    assert training["warnings"] == []
    spec = workbench.read_json(trained_template.challenger / "model.json")
    assert spec["baseline"] == baseline.fit_baseline(trips, "tip_amount > 0", ["payment_type"])
    content = b"".join(workbench.read_tree(trained_template.challenger).values())
    for path in {str(trained_template.root), str(Path.home()), sys.prefix} - {"/"}:
        assert path.encode() not in content, path
