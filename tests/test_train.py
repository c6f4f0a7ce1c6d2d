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

from tests import pipeline
from tipline import files
from tipline.errors import TiplineError, UsageError
from tipline.models import modelfiles, sampling
from tipline.statistics import baseline, metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.layout import Layout


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return pipeline.copy(pipeline.trained(request), tmp_path)


def digest(layout: Layout) -> str:
    return modelfiles.digest(modelfiles.read(layout.challenger))


def rows(layout: Layout) -> int:
    return int(pipeline.read_json(layout.challenger / modelfiles.TRAINING)["params"]["rows"])


def test_auto_takes_the_learning_curves_size(project: Layout) -> None:
    files.write_json(project.sample_size, {"rows": 777})
    pipeline.run(project, "train")
    assert rows(project) == 777


def test_a_number_overrules_the_learning_curve(project: Layout) -> None:
    files.write_json(project.sample_size, {"rows": 777})
    pipeline.change(project, train={"rows": 2999})
    pipeline.run(project, "train")
    assert rows(project) == 2999


def test_a_number_needs_no_learning_curve(project: Layout) -> None:
    project.sample_size.unlink()
    pipeline.change(project, train={"rows": 500})
    pipeline.run(project, "train")
    assert rows(project) == 500


def test_auto_without_a_learning_curve_says_what_to_run(project: Layout) -> None:
    project.sample_size.unlink()
    with pytest.raises(TiplineError) as caught:
        pipeline.run(project, "train")
    assert caught.value.parts[2] == "Run: dvc repro learning_curve"


@pytest.mark.parametrize("told_by", ["params", "learning curve"])
def test_more_rows_than_the_sample_has_is_a_usage_error(
    project: Layout, run_cli: Callable[..., tuple[int, str]], told_by: str
) -> None:
    before = pipeline.tree(project.challenger)
    if told_by == "params":
        pipeline.change(project, train={"rows": 3001})
    else:
        files.write_json(project.sample_size, {"rows": 3001})
    code, printed = run_cli(project.root, "train")
    assert code == UsageError.exit_code == 2
    assert "asks for 3,001 rows, the sample has 3,000" in printed
    assert "train.rows" in printed
    assert pipeline.tree(project.challenger) == before
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
    project: Layout, run_cli: Callable[..., tuple[int, str]], train: dict[str, object], code: int
) -> None:
    before = pipeline.tree(project.challenger)
    pipeline.change(project, train=train)
    found, printed = run_cli(project.root, "train")
    assert found == code, printed
    assert "params.yaml, train" in printed
    assert "defect" not in printed
    assert pipeline.tree(project.challenger) == before
    assert not list((project.staging / "models").glob("*"))


def test_the_same_inputs_make_the_same_files_in_another_process(project: Layout) -> None:
    here = pipeline.tree(project.challenger)
    assert set(here) == {*modelfiles.FILES, modelfiles.TRAINING}
    command = Path(sys.executable).with_name("tipline")
    subprocess.run([str(command), "train"], cwd=project.root, capture_output=True, check=True)
    assert pipeline.tree(project.challenger) == here


def test_boosting_makes_the_same_files_again(project: Layout) -> None:
    before = pipeline.tree(project.challenger)
    pipeline.change(project, train={"estimator": "hist_gradient_boosting", "params": {}})
    pipeline.run(project, "train")
    first = pipeline.tree(project.challenger)
    assert first["estimator.skops"] != before["estimator.skops"]
    pipeline.run(project, "train")
    assert pipeline.tree(project.challenger) == first


def test_only_the_first_rows_of_the_sample_are_used(project: Layout) -> None:
    pipeline.change(project, train={"rows": 1000})
    pipeline.run(project, "train")
    before = modelfiles.read(project.challenger)
    path = project.sample("fit", "2009-01")
    sample = pq.read_table(path)
    tips = [*sample["tip_amount"].to_pylist()[:1000], *([5.0] * (len(sample) - 1000))]
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.array(tips, pa.float64())), path)
    pipeline.run(project, "train")
    assert modelfiles.read(project.challenger) == before
    pipeline.change(project, train={"rows": 1001})
    pipeline.run(project, "train")
    assert modelfiles.read(project.challenger) != before


def test_rows_without_a_target_are_not_trained_on(project: Layout) -> None:
    path = project.sample("fit", "2009-01")
    sample = pq.read_table(path)
    tips = [None if place % 3 == 0 else tip for place, tip in enumerate(sample["tip_amount"].to_pylist())]
    place = sample.schema.get_field_index("tip_amount")
    pq.write_table(sample.set_column(place, "tip_amount", pa.array(tips, pa.float64())), path)
    pipeline.change(project, train={"rows": 2001})
    with pytest.raises(UsageError, match="the sample has 2,000 with a known target"):
        pipeline.run(project, "train")
    pipeline.change(project, train={"rows": 2000})
    pipeline.run(project, "train")
    assert rows(project) == 2000


def test_the_training_is_told_beside_the_model(project: Layout) -> None:
    training = pipeline.read_json(project.challenger / modelfiles.TRAINING)
    count = rows(project)
    trips = pipeline.batch(sampling.read_pool([project.sample("fit", "2009-01")]).slice(0, count))
    contents = modelfiles.read(project.challenger)
    loaded = modelfiles.load(contents, digest(project))
    tipped, _ = metrics.labels(trips, "tip_amount")
    loss = log_loss(tipped, loaded.probabilities(trips).astype(float))
    assert training["name"] == f"{count:,}x7 C=1.0 logistic_regression"
    assert training["metrics"]["train.log_loss"] == pytest.approx(loss, rel=1e-5)
    assert training["params"]["months"] == "2009-01"
    assert training["params"]["estimator.C"] == 1.0
    assert len(training["example"]) == 5
    assert list(training["example"][0]) == [feature["name"] for feature in loaded.features]
    spec = pipeline.read_json(project.challenger / "model.json")
    assert spec["baseline"] == baseline.fit(trips, "tip_amount", ["payment_type"], 10)


def test_the_data_digest_follows_sample_and_rows(project: Layout) -> None:
    seen = {pipeline.read_json(project.challenger / modelfiles.TRAINING)["data"]}
    pipeline.change(project, train={"rows": 1234})
    pipeline.run(project, "train")
    seen.add(pipeline.read_json(project.challenger / modelfiles.TRAINING)["data"])
    pipeline.change(project, sample={"seed": 2})
    pipeline.run(project, "sample", "train")
    seen.add(pipeline.read_json(project.challenger / modelfiles.TRAINING)["data"])
    assert len(seen) == 3


def test_a_challenger_holds_no_time_path_or_machine(project: Layout) -> None:
    held = b"".join(pipeline.tree(project.challenger).values())
    for told in (str(project.root), str(Path.home()), sys.prefix):
        if told != "/":
            assert told.encode() not in held, told
