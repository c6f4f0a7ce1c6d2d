"""The four ways in, with the real `dvc repro` on a small project: what runs, what does not, what joins."""

import json
import re
import sys
from typing import Any

import pandas as pd
import pytest

from tests import stories
from tests.conftest import ROOT
from tests.stories import Story

MONTHS = stories.MONTHS
ADDED = "2024-01"  # of another era
RETRAINED = {"params": {"C": 0.01}}


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The whole life, lived once, from the first `dvc repro` of a clone on."""
    story = stories.copy_first(
        request.getfixturevalue("tmp_path_factory"), tmp_path_factory.mktemp("whole") / "project"
    )
    (story.root / "src/tipline/cli.py").write_text((ROOT / "src/tipline/cli.py").read_text() + "\n# an edit\n")
    story.repro("second")
    settings(story, train=RETRAINED)
    story.repro("retrained")
    story.run("tipline", "promote", "2", "--force", "test")
    story.repro("promoted")
    settings(story, train=RETRAINED, months=[*MONTHS, ADDED])
    story.repro("month added")
    settings(story, train=RETRAINED, months=[*MONTHS, ADDED], score={"modle": 2})
    story.repro("mistake")
    settings(story, train=RETRAINED, months=[*MONTHS, ADDED])
    story.repro("mended")
    settings(story, train=RETRAINED)
    story.repro("month removed")
    return story


def settings(story: Story, **sections: Any) -> None:
    merged = {name: stories.SMALL.get(name, {}) | part for name, part in sections.items() if isinstance(part, dict)}
    story.settings(**(stories.SMALL | sections | merged))


def test_every_step_but_the_mistakes_succeeds(story: Story) -> None:
    failed = {name for name, repro in story.repros.items() if repro.code}
    assert failed == {"mistake"}, story.repros["first"].output


def test_the_first_repro_runs_every_stage(story: Story) -> None:
    sampled = [f"sample@{month}" for month in MONTHS]
    single = ["download", "prepare", "learning_curve", "train", "register", "evaluate", "score", "monitor", "record"]
    assert sorted(story.repros["first"].stages) == sorted([*sampled, *single])


@pytest.mark.parametrize("step", ["second", "mended"])
def test_a_repro_with_nothing_to_do_runs_register_only(story: Story, step: str) -> None:
    # Before "second" the module of the command line was edited, on which no stage depends.
    assert story.repros[step].stages == ["register"]


def test_retraining_makes_a_challenger_and_scores_nothing(story: Story) -> None:
    assert story.repros["retrained"].stages == ["learning_curve", "train", "register", "evaluate", "record"]
    assert story.manifests["retrained"] == story.manifests["second"]


def test_promoting_scores_again_and_runs_nothing_upstream_of_register(story: Story) -> None:
    assert story.repros["promoted"].stages == ["register", "evaluate", "score", "monitor", "record"]
    made = [json.loads(manifest)["made"]["version"] for manifest in story.manifests["promoted"].values()]
    assert made == [2] * len(MONTHS)


def test_adding_a_month_fetches_prepares_and_scores_that_month_alone(story: Story) -> None:
    assert story.repros["month added"].stages == [
        "download",
        "prepare",
        "register",
        "score",
        "monitor",
        "record",
    ]
    output = story.repros["month added"].output
    assert f"{ADDED} (5,000 rows)" in output
    assert output.count(f"\n{ADDED}: ") >= 2
    assert output.count("3 months kept") == 2
    after = dict(story.manifests["month added"])
    assert after.pop(f"month={ADDED}")
    assert after == story.manifests["promoted"]


def test_a_month_that_is_removed_from_the_list_disappears_from_all_stages(story: Story) -> None:
    stages = ["download", "prepare", "register", "score", "monitor", "record"]
    assert story.repros["month removed"].stages == stages
    assert story.repros["month removed"].output.count("3 months kept") == 2
    assert "scoring with tip-probability version 2: nothing to do" in story.repros["month removed"].output
    assert story.manifests["month removed"] == story.manifests["promoted"]
    for path in ("raw/2024-01", "raw/2024-01.json", "trips/month=2024-01", "counts/2024-01.json"):
        assert not (story.root / "data" / path).exists()
    shown = json.loads((story.root / "reports/monitoring/months.json").read_text())
    assert [month["month"] for month in shown] == MONTHS


@pytest.mark.parametrize(("step", "words"), [("mistake", "unknown key score.modle, did you mean model?")])
def test_a_mistake_in_params_stops_before_anything_runs_and_leaves_the_results(
    story: Story, step: str, words: str
) -> None:
    assert len(story.repros[step].stages) == 1
    assert words in story.repros[step].output
    assert "Traceback" not in story.repros[step].output
    assert story.manifests[step] == story.manifests["month added"]


def test_no_step_prints_a_warning_or_a_trace(story: Story) -> None:
    for repro in story.repros.values():
        assert not re.search(r"warning|traceback", repro.output, re.IGNORECASE), repro.output


def test_every_prediction_joins_back_to_one_trip(story: Story) -> None:
    trips = pd.read_parquet(story.root / "data/trips", columns=["month", "row", "payment_type"])
    scores = pd.read_parquet(story.root / "data/predictions")
    joined = trips.merge(scores, on=["month", "row"], validate="one_to_one")
    assert len(joined) == len(trips) == len(scores) == 5000 * len(MONTHS)
    by_payment = joined.groupby("payment_type", observed=True)["probability"].mean()
    assert by_payment["credit"] > 3 * by_payment["cash"]


def test_git_sees_nothing_that_a_run_made_but_the_lock(story: Story) -> None:
    changed = story.run("git", "status", "--porcelain").stdout.split()
    assert set(changed[1::2]) == {"dvc.lock", "params.yaml", "src/tipline/cli.py"}


def test_mlflow_has_a_run_for_each_thing_once(story: Story) -> None:
    script = (
        "import mlflow; c = mlflow.MlflowClient('sqlite:///mlflow.db')\n"
        "for e in c.search_experiments(): print(e.name, len(c.search_runs([e.experiment_id])))"
    )
    counted = dict(line.split() for line in story.run(sys.executable, "-c", script).stdout.splitlines())
    # Two models, two learning curves; evaluations of 1:1, 2:1 and 2:2; three months by
    # version 1, four by version 2.
    assert counted == {
        "Default": "0",
        "tipline/train": "2",
        "tipline/learning_curve": "2",
        "tipline/evaluate": "3",
        "tipline/monitor": "7",
    }


def test_register_does_not_import_mlflow_until_the_database_changes(story: Story) -> None:
    register = "import sys; sys.modules['mlflow'] = None; from tipline.cli import main; sys.exit(main(['register']))"
    assert "champion: version 2" in story.run(sys.executable, "-c", register).stderr
    move = "import mlflow; c = mlflow.MlflowClient('sqlite:///mlflow.db')\n"
    move += "c.set_registered_model_alias('tip-probability', 'champion', '{}')"
    story.run(sys.executable, "-c", move.format(1))
    assert "ModuleNotFoundError" in story.run(sys.executable, "-c", register).stderr
    story.run(sys.executable, "-c", move.format(2))
    assert "champion: version 2" in story.run("tipline", "register").stderr
    assert "champion: version 2" in story.run(sys.executable, "-c", register).stderr
