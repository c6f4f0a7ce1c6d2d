"""Whatever becomes of clones and stores: one champion, the same predictions, nothing scored anew, all in MLflow."""

from __future__ import annotations

import concurrent.futures
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests import stories, workbench
from tests.stories import Story
from tipline import cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [*workbench.MLFLOW_WARNINGS, pytest.mark.timeout(1500)]
MIRRORS = ["register", "record"]
TRAIN = {"train": {"rows": 500}}
LOST = "MLflow had no champion; version 1, the last one, is champion again."


@dataclass
class Step:
    """What is to be seen after a `dvc repro`."""

    root: Path
    code: int
    stages: list[str]
    output: str
    digest: str | None
    scores: dict[str, str]
    changes: list[str]


@dataclass
class Life:
    """A project whose champion has changed and was rolled back, and what was seen at each step."""

    story: Story
    steps: dict[str, Step]
    kept: set[Path] = field(default_factory=set)

    def repro(self, name: str, story: Story | None = None) -> None:
        """Run `dvc repro` and keep what is to be seen then."""
        story = story or self.story
        story.repro(name)
        done = story.repros[name]
        there = (story.root / "models/champion/ref.json").is_file()
        digest = stories.ref(story.root)["digest"] if there else None
        changes = [str(change.how) for change in stories.changes(story.root)]
        self.steps[name] = Step(
            story.root, done.code, done.stages, done.output, digest, stories.scores(story.root), changes
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the project and its clones."""
    return tmp_path_factory.mktemp("clones")


@pytest.fixture(scope="module")
def life(request: pytest.FixtureRequest, folder: Path) -> Life:
    """A promotion and its rollback: the champion is not the challenger."""
    story = stories.copy_first(request.getfixturevalue("tmp_path_factory"), folder / "project")
    story.environment = {cluster.ADDRESS: request.getfixturevalue("dask_address")}
    life = Life(story, {})
    stories.dvc(story, "remote", "add", "--default", "store", str(folder / "remote"))
    story.settings(**(stories.SMALL | TRAIN))
    stories.dvc(story, "repro", "register")
    assert story.run("tipline", "promote", "2", "--force", "test").returncode == 0
    life.repro("promoted")
    stories.commit(story, "promoted")
    done = story.run("tipline", "rollback", "--reason", "test")
    assert done.returncode == 0, done.stderr
    life.repro("rolled back")
    life.steps["rolled back"].output += done.stderr
    stories.commit(story, "rolled back")
    stories.dvc(story, "push")
    return life


@pytest.fixture(scope="module")
def restored(life: Life) -> Life:
    """The first training's outputs brought back from the run cache; then the second's, with no database."""
    story = life.story
    story.settings(**stories.SMALL)
    life.repro("run cache")
    stories.assert_complete(story.root)
    stories.git(story, "checkout", "--", ".")
    (story.root / "mlflow.db").unlink()
    shutil.rmtree(story.root / "models/challenger")
    stories.dvc(story, "checkout")
    life.repro("no database")
    stories.assert_complete(story.root)
    return life


@pytest.fixture(scope="module")
def returned(restored: Life) -> Life:
    """An older commit and back."""
    story = restored.story
    stories.git(story, "checkout", "--", "dvc.lock")  # in which a new registry's numbers stand
    stories.git(story, "checkout", "--quiet", "HEAD~1")
    stories.dvc(story, "checkout")
    restored.repro("older")
    stories.git(story, "checkout", "--", "dvc.lock")
    stories.git(story, "checkout", "--quiet", "-")
    stories.dvc(story, "checkout")
    restored.repro("back")
    stories.assert_complete(story.root)
    return restored


@pytest.fixture(scope="module")
def elsewhere(returned: Life, folder: Path) -> Life:
    """Clones and copies of it, two at a time."""
    returned.kept = files(returned.story.root)
    ways: list[Callable[[Life, Path], None]] = [without_a_remote, pulled, copied]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for way in [threads.submit(way, returned, folder) for way in ways]:
            way.result()
    for name in ("pulled", "copied"):
        stories.assert_complete(returned.steps[name].root)
    return returned


def files(root: Path) -> set[Path]:
    """What MLflow has kept of a project beside its database."""
    return {path for path in (root / "mlartifacts").rglob("*") if path.name != "registered_model_meta"}


def clone(life: Life, to: Path) -> Story:
    """A clone of the project: what git has."""
    stories.git(life.story, "clone", "--quiet", ".", str(to))
    return Story(to, environment=life.story.environment)


def pulled(life: Life, folder: Path) -> None:
    """A clone with DVC's files and no registry."""
    story = clone(life, folder / "cloned")
    stories.dvc(story, "pull")
    life.repro("pulled", story)


def copied(life: Life, folder: Path) -> None:
    """A copy of the folder with its store, as it is after a move, too."""
    story = Story(folder / "copied", environment=life.story.environment)
    shutil.copytree(life.story.root, story.root, symlinks=True)
    life.repro("copied", story)


def without_a_remote(life: Life, folder: Path) -> None:
    """Clones that have to make all again: where the champion is what is trained, and where it is not."""
    story = clone(life, folder / "alone")
    stories.git(story, "checkout", "--quiet", "HEAD~2")
    life.repro("made again", story)
    (story.root / "mlflow.db").unlink()
    shutil.rmtree(story.root / "models/champion")
    stories.git(story, "checkout", "--quiet", "--force", "-")
    life.repro("alone", story)


def test_a_rollback_scores_again_what_the_withdrawn_version_had_scored_and_names_the_months(life: Life) -> None:
    step = life.steps["rolled back"]
    assert step.stages == ["register", "evaluate", "score", "monitor", "record"]
    months = ", ".join(stories.MONTHS)
    assert f"version 2 had scored {months}\n" in step.output
    assert re.search(rf"the champion moved from version 2 \(\w+\) to version 1 \(\w+\); {months}, scored", step.output)
    assert step.changes == ["first", "promote", "rollback"]
    assert step.digest != life.steps["promoted"].digest
    assert step.scores != life.steps["promoted"].scores


def test_what_the_run_cache_brings_back_is_in_the_registry(restored: Life) -> None:
    step = restored.steps["run cache"]
    assert "train" not in step.stages
    assert "'train' is cached" in step.output
    assert "score" not in step.stages


def test_a_lost_database_is_filled_again(restored: Life) -> None:
    step = restored.steps["no database"]
    assert step.stages == MIRRORS
    assert LOST in step.output


def test_an_older_commit_follows_todays_champion(returned: Life) -> None:
    step = returned.steps["older"]
    assert "the champion moved from version" in step.output
    assert step.digest == returned.steps["rolled back"].digest
    assert step.scores == returned.steps["rolled back"].scores
    assert returned.steps["back"].stages == MIRRORS


@pytest.mark.parametrize("name", ["pulled", "copied"])
def test_a_clone_or_a_copy_runs_the_mirrors_alone(elsewhere: Life, name: str) -> None:
    assert elsewhere.steps[name].stages == MIRRORS


def test_no_clone_or_copy_writes_into_the_original(elsewhere: Life) -> None:
    assert files(elsewhere.story.root) == elsewhere.kept


@pytest.mark.parametrize(
    "name",
    ["run cache", "no database", "older", "back", "pulled", "copied", "made again"],
)
def test_champion_and_predictions_are_the_same_wherever_it_is(elsewhere: Life, name: str) -> None:
    step, wanted = elsewhere.steps[name], elsewhere.steps["rolled back"]
    assert step.code == 0, step.output
    assert step.digest == wanted.digest
    assert step.scores == wanted.scores
    # The history is lost with the database.
    assert step.changes == (["first", "promote", "rollback"] if name == "run cache" else ["first"])


def test_a_clone_that_cannot_have_the_champion_stops_and_says_what_to_do(elsewhere: Life) -> None:
    step = elsewhere.steps["alone"]
    assert step.code
    assert step.stages[-1] == "register"
    assert "MLflow has no champion of tip-probability, but there was one" in step.output
    assert "or run `dvc pull`, then `dvc repro`" in step.output
    assert "tipline promote --force" in step.output
    assert "Traceback" not in step.output
    assert "score" not in step.stages
