"""Whatever becomes of clones and stores: one champion, the same predictions, nothing scored anew, all in MLflow."""

import concurrent.futures
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import stories, workbench
from tests.stories import Story
from tipline import cluster

pytestmark = [*workbench.MLFLOW_WARNINGS, pytest.mark.timeout(1500)]
MIRRORS = (["register"], ["register", "record"])  # `record` where it has not run yet


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
    steps: dict[str, Step] = field(default_factory=dict)
    kept: set[Path] = field(default_factory=set)

    def repro(self, name: str, story: Story | None = None, *, complete: bool = True) -> None:
        """Run `dvc repro`, keep what is to be seen then; `complete`: MLflow's store has everything."""
        story = story or self.story
        story.repro(name)
        done = story.repros[name]
        digest = stories.ref(story.root)["digest"] if (story.root / "models/champion/ref.json").is_file() else None
        changes = [str(change.how) for change in stories.changes(story.root)]
        seen = (done.code, done.stages, done.output, digest, stories.scores(story.root), changes)
        self.steps[name] = Step(story.root, *seen)
        if complete:
            stories.assert_complete(story.root)


@pytest.fixture(scope="module")
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A promotion and its rollback, after which the champion is not the challenger, and all that may follow."""
    folder = tmp_path_factory.mktemp("clones")
    story = stories.copy_first(tmp_path_factory, folder / "project")
    story.environment = {cluster.ADDRESS: request.getfixturevalue("dask_address")}
    life = Life(story)
    stories.dvc(story, "remote", "add", "--default", "store", str(folder / "remote"))
    story.settings(**(stories.SMALL | {"train": {"rows": 500}}))
    stories.dvc(story, "repro", "register")
    for name, command in (("promoted", ("promote", "2", "--force", "test")), ("rolled back", ("rollback",))):
        assert story.run("tipline", *command).returncode == 0
        life.repro(name, complete=False)
        stories.commit(story, name)
    stories.dvc(story, "push")
    bring_back(life)
    go_to_an_older_commit(life)
    life.kept = list_artifacts(story.root)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for way in [threads.submit(way, life, folder) for way in (make_again, pull, copy)]:
            way.result()
    return life


def bring_back(life: Life) -> None:
    """Bring the first training's outputs back from the run cache; then the second's, with no database."""
    story = life.story
    story.settings(**stories.SMALL)
    life.repro("run cache")
    stories.git(story, "checkout", "--", ".")
    (story.root / "mlflow.db").unlink()
    shutil.rmtree(story.root / "models/challenger")
    stories.dvc(story, "checkout")
    life.repro("no database")


def go_to_an_older_commit(life: Life) -> None:
    """Go to an older commit and back."""
    for name, commit in (("older", "HEAD~1"), ("back", "-")):
        stories.git(life.story, "checkout", "--", "dvc.lock")  # in which a new registry's numbers stand
        stories.git(life.story, "checkout", "--quiet", commit)
        stories.dvc(life.story, "checkout")
        life.repro(name, complete=name == "back")


def list_artifacts(root: Path) -> set[Path]:
    """What MLflow has kept of a project beside its database."""
    return {path for path in (root / "mlartifacts").rglob("*") if path.name != "registered_model_meta"}


def clone(life: Life, to: Path) -> Story:
    """A clone of the project: what git has."""
    stories.git(life.story, "clone", "--quiet", ".", str(to))
    return Story(to, environment=life.story.environment)


def pull(life: Life, folder: Path) -> None:
    """A clone with DVC's files and no registry."""
    story = clone(life, folder / "cloned")
    stories.dvc(story, "pull")
    life.repro("pulled", story)


def copy(life: Life, folder: Path) -> None:
    """A copy of the folder with its store, as it is after a move, too."""
    story = Story(folder / "copied", environment=life.story.environment)
    shutil.copytree(life.story.root, story.root, symlinks=True)
    life.repro("copied", story)


def make_again(life: Life, folder: Path) -> None:
    """Clones that have to make all again: where the champion is what is trained, and where it is not."""
    story = clone(life, folder / "alone")
    stories.git(story, "checkout", "--quiet", "HEAD~2")
    life.repro("made again", story, complete=False)
    (story.root / "mlflow.db").unlink()
    shutil.rmtree(story.root / "models/champion")
    stories.git(story, "checkout", "--quiet", "--force", "-")
    life.repro("alone", story, complete=False)


def test_a_rollback_scores_again_what_the_withdrawn_version_had_scored_and_names_the_months(life: Life) -> None:
    step, months = life.steps["rolled back"], ", ".join(stories.MONTHS)
    assert step.stages == ["register", "evaluate", "score", "monitor", "record"]
    assert re.search(rf"the champion moved from version 2 \(\w+\) to version 1 \(\w+\); {months}, scored", step.output)
    assert step.changes == ["first", "promote", "rollback"]
    assert step.digest != life.steps["promoted"].digest
    assert step.scores != life.steps["promoted"].scores


def test_what_the_run_cache_brings_back_is_in_the_registry(life: Life) -> None:
    step = life.steps["run cache"]
    assert not {"train", "score"} & set(step.stages)
    assert "'train' is cached" in step.output


def test_a_lost_database_is_filled_again_and_an_older_commit_follows_todays_champion(life: Life) -> None:
    assert "MLflow had no champion; version 2, the last one, is champion again." in life.steps["no database"].output
    assert "the champion moved from version" in life.steps["older"].output


@pytest.mark.parametrize("name", ["no database", "back", "pulled", "copied"])
def test_only_the_mirrors_run(life: Life, name: str) -> None:
    assert life.steps[name].stages in MIRRORS


def test_no_clone_or_copy_writes_into_the_original(life: Life) -> None:
    assert list_artifacts(life.story.root) == life.kept


@pytest.mark.parametrize("name", ["run cache", "no database", "older", "back", "pulled", "copied", "made again"])
def test_champion_and_predictions_are_the_same_wherever_it_is(life: Life, name: str) -> None:
    step, wanted = life.steps[name], life.steps["rolled back"]
    assert step.code == 0, step.output
    assert (step.digest, step.scores) == (wanted.digest, wanted.scores)
    # The history is lost with the database.
    assert step.changes == (["first", "promote", "rollback"] if name == "run cache" else ["first"])


def test_a_clone_that_cannot_have_the_champion_stops_and_says_what_to_do(life: Life) -> None:
    step = life.steps["alone"]
    assert (bool(step.code), step.stages[-1], "Traceback" in step.output) == (True, "register", False)
    assert "MLflow has no champion of tip-probability, but there was one" in step.output
    assert "or run `dvc pull`, then `dvc repro`" in step.output
    assert "tipline promote --force" in step.output
