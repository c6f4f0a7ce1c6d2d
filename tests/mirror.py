"""A small project after its first `dvc repro`, and what MLflow's store of a project has to hold."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from tests import workbench
from tests.story import Story, start
from tipline.model import artifact
from tipline.registry import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

NAME = "tip-probability"
COPIES = itertools.count()
MONTHS = ["2009-01", "2009-02", "2009-03"]
# A month for each role, and as little work as the stages can do.
SMALL: dict[str, Any] = {
    "months": MONTHS,
    "demo": {"rows": 2000},
    "sample": {"rows": 1000},
    "learning_curve": {"smallest": 100, "sizes": 3, "repeats": 2},
    "cluster": {"n_workers": 1},
}


def copy_lived_project(factory: pytest.TempPathFactory, to: Path) -> Story:
    """Copy a project after its first `dvc repro`, committed; the original is created once per session."""

    def create(folder: Path) -> None:
        story = start(folder / "project", **SMALL)
        story.warm = False  # once, all stages run as they are installed
        story.repro("first")
        assert story.repros["first"].code == 0, story.repros["first"].output
        commit(story, "first")
        (folder / "first").write_text(story.repros["first"].output)

    folder = workbench.create_once(factory, "lived", create)
    shutil.copytree(folder / "project", to, symlinks=True)
    story = Story(to)
    story.keep("first", 0, (folder / "first").read_text())
    return story


def run_git(story: Story, *arguments: str) -> str:
    """Run git, which has to succeed; return what it prints."""
    done = story.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(story: Story, message: str) -> None:
    """Commit all that git sees."""
    run_git(story, "add", "--all")
    run_git(story, "commit", "--quiet", "-m", message)


def run_dvc(story: Story, *arguments: str) -> str:
    """Run DVC, which has to succeed; return what it prints."""
    done = story.run("dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_ref(root: Path) -> dict[str, Any]:
    """Read models/champion/ref.json."""
    ref: dict[str, Any] = workbench.read_json(root / "models/champion/ref.json")
    return ref


def hash_predictions(root: Path) -> dict[str, str]:
    """Return the digests of the predictions' bytes, by file."""
    parts = sorted((root / "data/predictions").rglob("*.parquet"))
    return {str(part.relative_to(root)): hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}


def connect_copy(root: Path) -> MlflowClient:
    """Connect to a copy of a project's database: MLflow would go on with one that was deleted since."""
    copy = root.with_name(f"{root.name}-{next(COPIES)}.db")
    shutil.copyfile(root / "mlflow.db", copy)
    mlflow.set_tracking_uri(f"sqlite:///{copy}")
    mlflow.set_registry_uri(f"sqlite:///{copy}")
    return mlflow.MlflowClient()


def list_changes(root: Path) -> list[history.Change]:
    """Return the history of champions."""
    return history.list_changes(connect_copy(root), NAME)


def list_runs(client: MlflowClient, name: str) -> list[Run]:
    """Return all runs of an experiment, oldest first."""
    found = client.get_experiment_by_name(f"tipline/{name}")
    return list(client.search_runs([found.experiment_id], order_by=["start_time"])) if found else []


def list_experiments(tags: Mapping[str, str]) -> list[str]:
    """Return the DVC experiments that led to a run or a version."""
    return [name for name in tags.get("dvc.exp", "").split(", ") if name]


def map_versions(client: MlflowClient) -> dict[str, Any]:
    """Return the registered versions by the digest of their model."""
    found = client.search_model_versions(f"name = '{NAME}'")
    by_digest = {version.tags["tipline.digest"]: version for version in found}
    assert len(by_digest) == len(found), "equal models have more than one version"
    return by_digest


def assert_complete(root: Path) -> None:
    """Assert that MLflow's store has all that the project's files show, each once, and nothing unfinished."""
    client = connect_copy(root)
    versions, champion = map_versions(client), client.get_model_version_by_alias(NAME, "champion")
    digest = champion.tags["tipline.digest"]
    number, run_id = int(champion.version), champion.run_id
    assert read_ref(root) == {"name": NAME, "version": number, "run": run_id, "digest": digest, "months": None}
    assert artifact.read_digest(root / "models/champion") == digest
    assert artifact.read_digest(root / "models/challenger") in versions
    assert history.list_changes(client, NAME)[-1].after == history.describe_champion(champion)
    for digest, version in versions.items():
        assert_version(root, client, digest, version)
    runs = {name: list_runs(client, name) for name in ("train", "learning_curve", "evaluate", "monitor")}
    for run in itertools.chain(*runs.values()):
        assert run.info.status == "FINISHED", run.info.run_name
        assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    for name, found in runs.items():
        digests = [run.data.tags["tipline.digest"] for run in found]
        assert len(digests) == len(set(digests)), f"{name}: something has more than one run"
    report = (root / "reports/evaluation.json").read_bytes()
    evaluated = [Path(client.download_artifacts(run.info.run_id, "evaluation.json")) for run in runs["evaluate"]]
    assert report in [path.read_bytes() for path in evaluated]
    months = [(run.data.params["month"], run.data.params["model_digest"]) for run in runs["monitor"]]
    assert len(months) == len(set(months))
    assert {(month, read_ref(root)["digest"][:12]) for month in MONTHS} <= set(months)


def assert_version(root: Path, client: MlflowClient, digest: str, version: Any) -> None:
    """Assert that a version has its run, and files in this project that load."""
    assert client.get_run(version.run_id).data.tags["tipline.digest"] == digest
    location = client.get_model_version_download_uri(NAME, str(version.version))
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=location))
    assert folder.is_relative_to(root / "mlartifacts")
    columns = [feature["name"] for feature in workbench.read_json(folder / "artifacts" / "model.json")["features"]]
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/{version.version}")
    assert model.metadata.get_input_schema().input_names() == columns
