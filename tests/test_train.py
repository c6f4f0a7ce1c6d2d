"""Training takes the rows that it is told to, and the same inputs make the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss

from tests import workbench
from tipline import files
from tipline.errors import TiplineError, UsageError
from tipline.evaluation import baseline, metrics
from tipline.model import artifact
from tipline.training import sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.paths import Paths


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Paths:
    return workbench.copy_project(workbench.trained(request), tmp_path)


def digest(paths: Paths) -> str:
    return artifact.hash_artifact(artifact.read_artifact(paths.challenger))


def rows(paths: Paths) -> int:
    return int(workbench.read_json(paths.challenger / artifact.TRAINING)["params"]["rows"])


def test_auto_takes_the_learning_curves_size(project: Paths) -> None:
    files.write_json(project.sample_size, {"rows": 777})
    workbench.run(project, "train")
    assert rows(project) == 777


def test_a_number_overrules_the_learning_curve(project: Paths) -> None:
    files.write_json(project.sample_size, {"rows": 777})
    workbench.change_settings(project, train={"rows": 2999})
    workbench.run(project, "train")
    assert rows(project) == 2999


def test_a_number_needs_no_learning_curve(project: Paths) -> None:
    project.sample_size.unlink()
    workbench.change_settings(project, train={"rows": 500})
    workbench.run(project, "train")
    assert rows(project) == 500


def test_auto_without_a_learning_curve_says_what_to_run(project: Paths) -> None:
    project.sample_size.unlink()
    with pytest.raises(TiplineError) as caught:
        workbench.run(project, "train")
    assert caught.value.parts[2] == "Run: dvc repro learning_curve"


@pytest.mark.parametrize("told_by", ["params", "learning curve"])
def test_more_rows_than_the_sample_has_is_a_usage_error(
    project: Paths, run_cli: Callable[..., tuple[int, str]], told_by: str
) -> None:
    before = workbench.read_tree(project.challenger)
    if told_by == "params":
        workbench.change_settings(project, train={"rows": 3001})
    else:
        files.write_json(project.sample_size, {"rows": 3001})
    code, printed = run_cli(project.root, "train")
    assert code == UsageError.exit_code == 2
    assert "asks for 3,001 rows, the sample has 3,000" in printed
    assert "train.rows" in printed
    assert workbench.read_tree(project.challenger) == before
    assert not list((project.staging / "models").glob("*"))


@pytest.mark.parametrize(
    ("train", "code"),
    [
        ({"params": {"max_iter": 1}}, 1),
        ({"params": {"C": -1}}, 1),
        ({"params": {"D": 1}}, 2),
        ({"estimator": "random_forest"}, 2),
    ],
)
def test_a_failed_training_leaves_the_earlier_challenger(
    project: Paths, run_cli: Callable[..., tuple[int, str]], train: dict[str, object], code: int
) -> None:
    before = workbench.read_tree(project.challenger)
    workbench.change_settings(project, train=train)
    found, printed = run_cli(project.root, "train")
    assert found == code, printed
    assert "params.yaml, train" in printed
    assert "defect" not in printed
    assert workbench.read_tree(project.challenger) == before
    assert not list((project.staging / "models").glob("*"))


def test_the_same_inputs_make_the_same_files_in_another_process(project: Paths) -> None:
    here = workbench.read_tree(project.challenger)
    assert set(here) == {*artifact.FILES, artifact.TRAINING}
    command = Path(sys.executable).with_name("tipline")
    subprocess.run([str(command), "train"], cwd=project.root, capture_output=True, check=True)
    assert workbench.read_tree(project.challenger) == here


def test_boosting_makes_the_same_files_again(project: Paths) -> None:
    before = workbench.read_tree(project.challenger)
    workbench.change_settings(project, train={"estimator": "hist_gradient_boosting", "params": {}})
    workbench.run(project, "train")
    first = workbench.read_tree(project.challenger)
    assert first["estimator.skops"] != before["estimator.skops"]
    workbench.run(project, "train")
    assert workbench.read_tree(project.challenger) == first


def test_only_the_first_rows_of_the_sample_are_used(project: Paths) -> None:
    workbench.change_settings(project, train={"rows": 1000})
    workbench.run(project, "train")
    before = artifact.read_artifact(project.challenger)
    path = project.sample("train", "2009-01")
    sample = pq.read_table(path)
    tips = [*sample["tip_amount"].to_pylist()[:1000], *([5.0] * (len(sample) - 1000))]
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.array(tips, pa.float64())), path)
    workbench.run(project, "train")
    assert artifact.read_artifact(project.challenger) == before
    workbench.change_settings(project, train={"rows": 1001})
    workbench.run(project, "train")
    assert artifact.read_artifact(project.challenger) != before


def test_rows_without_a_target_are_not_trained_on(project: Paths) -> None:
    path = project.sample("train", "2009-01")
    sample = pq.read_table(path)
    tips = [None if place % 3 == 0 else tip for place, tip in enumerate(sample["tip_amount"].to_pylist())]
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.array(tips, pa.float64())), path)
    workbench.change_settings(project, train={"rows": 2001})
    with pytest.raises(UsageError, match="the sample has 2,000 with a known target"):
        workbench.run(project, "train")
    workbench.change_settings(project, train={"rows": 2000})
    workbench.run(project, "train")
    assert rows(project) == 2000


def test_the_training_is_told_beside_the_model(project: Paths) -> None:
    training = workbench.read_json(project.challenger / artifact.TRAINING)
    count = rows(project)
    trips = workbench.as_batch(sampling.read_pool([project.sample("train", "2009-01")]).slice(0, count))
    contents = artifact.read_artifact(project.challenger)
    loaded = artifact.load_model(contents, digest(project))
    labels, _ = metrics.read_labels(trips, "tip_amount")
    loss = log_loss(labels, loaded.probabilities(trips).astype(float))
    assert training["name"] == f"{count:,}x7 C=1.0 logistic_regression"
    assert training["metrics"]["train.log_loss"] == pytest.approx(loss, rel=1e-5)
    assert training["params"]["months"] == "2009-01"
    assert training["params"]["estimator.C"] == 1.0
    assert len(training["example"]) == 5
    assert list(training["example"][0]) == [feature["name"] for feature in loaded.features]
    spec = workbench.read_json(project.challenger / "model.json")
    assert spec["baseline"] == baseline.fit_baseline(trips, "tip_amount", ["payment_type"], 10)


def test_the_data_digest_follows_sample_and_rows(project: Paths) -> None:
    seen = {workbench.read_json(project.challenger / artifact.TRAINING)["data"]}
    workbench.change_settings(project, train={"rows": 1234})
    workbench.run(project, "train")
    seen.add(workbench.read_json(project.challenger / artifact.TRAINING)["data"])
    workbench.change_settings(project, sample={"seed": 2})
    workbench.run(project, "sample", "train")
    seen.add(workbench.read_json(project.challenger / artifact.TRAINING)["data"])
    assert len(seen) == 3


def test_a_challenger_holds_no_time_path_or_machine(project: Paths) -> None:
    held = b"".join(workbench.read_tree(project.challenger).values())
    for told in (str(project.root), str(Path.home()), sys.prefix):
        if told != "/":
            assert told.encode() not in held, told
