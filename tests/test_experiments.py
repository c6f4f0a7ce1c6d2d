"""DVC's experiments in MLflow's one store: a run and its model for each, versions only in the workspace itself."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests import stories, workbench
from tests.stories import Story
from tipline import cluster

pytestmark = [*workbench.MLFLOW_WARNINGS, pytest.mark.timeout(1500)]
# Rows to train on: a setting that no stage before `train` depends on.
QUEUED = {"cold": 500, "hot": 700}


@dataclass
class Seen:
    """The store after a step: the experiment that each training run names, those with a version, the champion."""

    trained: set[str]
    versions: set[str]
    alias: str | None
    changes: list[str]


def look(root: Path) -> Seen:
    """What is to be seen now."""
    store = stories.client(root)
    named = {run.info.run_id: run.data.tags.get("dvc.exp", "") for run in stories.runs(store, "train")}
    with_version = {named[version.run_id] for version in stories.versions(store).values()}
    models = store.search_registered_models(f"name = '{stories.NAME}'")
    alias = models[0].aliases.get("champion") if models else None
    return Seen(set(named.values()), with_version, alias, [change.how for change in stories.changes(root)])


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The project, whose store is lost before its first experiments."""
    story = stories.copy_first(tmp_path_factory, tmp_path_factory.mktemp("experiments") / "project")
    story.environment = {cluster.ADDRESS: request.getfixturevalue("dask_address")}
    (story.root / "mlflow.db").unlink()
    shutil.rmtree(story.root / "mlartifacts")
    yield story
    story.run("dvc", "queue", "stop", "--kill")


@pytest.fixture(scope="module")
def life(story: Story) -> dict[str, Seen]:
    """Experiments of every kind, one after the other, and the store after each."""
    run_queue(story)
    steps = {"queue": look(story.root)}
    for name, value, *how in (("warm", QUEUED["hot"]), ("cool", QUEUED["cold"], "--temp")):
        stories.dvc(story, "exp", "run", *map(str, how), "--name", str(name), "-S", f"train.rows={value}")
        steps[str(name)] = look(story.root)
    promoted = story.run("tipline", "promote", "cool", "--force", "test")
    assert promoted.returncode == 0, promoted.stderr
    steps["promote"] = look(story.root)
    stories.dvc(story, "exp", "apply", "cold")
    story.repro("applied")
    steps["applied"] = look(story.root)
    return steps


def run_queue(story: Story) -> None:
    """Run two experiments in two workers at once."""
    for name, value in QUEUED.items():
        stories.dvc(story, "exp", "run", "--queue", "--name", name, "-S", f"train.rows={value}")
    stories.dvc(story, "queue", "start", "--jobs", "2")
    end = time.monotonic() + 900
    while (status := stories.dvc(story, "queue", "status")).count("Success") < len(QUEUED):
        assert "Failed" not in status, story.run("dvc", "queue", "logs", "cold").stdout
        assert time.monotonic() < end, status
        time.sleep(1)


def test_two_workers_on_a_store_that_is_not_there_yet_leave_their_runs_and_no_versions(life: dict[str, Seen]) -> None:
    assert life["queue"].trained == {"cold", "hot"}
    assert (life["queue"].versions, life["queue"].alias, life["queue"].changes) == (set(), None, [])


def test_an_experiment_in_the_workspace_registers_and_an_equal_model_carries_its_name(life: dict[str, Seen]) -> None:
    # The lost store has its champion back, from models/champion/; no experiment made that.
    assert life["warm"].trained == {"", "cold", "warm"}
    assert life["warm"].versions == {"warm", ""}
    assert life["warm"].alias is not None


def test_a_temporary_experiment_registers_nothing_and_promoting_it_does(life: dict[str, Seen]) -> None:
    warm, cool, promoted = life["warm"], life["cool"], life["promote"]
    assert cool.trained == {"", "cool", "warm"}
    assert (cool.versions, cool.alias, cool.changes) == (warm.versions, warm.alias, ["first"])
    assert promoted.versions == {*warm.versions, "cool"}
    assert promoted.alias not in {None, warm.alias}
    assert promoted.changes == life["applied"].changes == ["first", "promote"]


def test_an_applied_experiment_is_brought_from_the_cache_and_scored_once(life: dict[str, Seen], story: Story) -> None:
    assert yaml.safe_load((story.root / "params.yaml").read_text())["train"]["rows"] == QUEUED["cold"]
    assert story.repros["applied"].stages == ["register", "evaluate", "score", "monitor", "record"]
    assert life["applied"].versions == life["promote"].versions
    stories.assert_complete(story.root)


def test_nothing_of_mlflow_is_left_where_experiments_ran(life: dict[str, Seen], story: Story) -> None:
    del life
    assert not list((story.root / ".dvc").rglob("mlflow.db"))
    assert not list((story.root / ".dvc").rglob("mlartifacts"))
    git = set(stories.git(story, "status", "--porcelain").split()[1::2])
    assert git == {"dvc.lock", "params.yaml"}
