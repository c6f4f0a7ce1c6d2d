"""End-to-end stories: a project in which the real `dvc repro` runs, and checks of its MLflow store."""

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests import warm, workbench
from tests.conftest import ENVIRONMENT, ROOT, settings_values
from tipline.registry.champion import Change

NAME = "tip-probability"
SEEN = itertools.count()
MONTHS = ["2009-01", "2009-02", "2009-03"]
# A month for each role, and as little work as the stages can do.
SMALL: dict[str, Any] = {
    "months": MONTHS,
    "demo": {"rows": 5000},
    "sample": {"rows": 4000},
    "learning_curve": {"smallest": 100, "sizes": 3, "repeats": 2},
    "cluster": {"n_workers": 1},
}


@dataclass
class Repro:
    code: int
    output: str
    stages: list[str]


@dataclass
class Story:
    """A project, and what was seen at each step of its life; `warm`: its commands are forks (see tests/warm.py)."""

    root: Path
    repros: dict[str, Repro] = field(default_factory=dict)
    manifests: dict[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    warm: bool = True

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user with an activated environment does."""
        environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
        folders = [*([os.environ[warm.FOLDER]] if self.warm else []), str(Path(sys.executable).parent)]
        environment |= {
            "PATH": os.pathsep.join([*folders, environment["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **self.environment,
        }
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def repro(self, name: str, *targets: str) -> None:
        """Run `dvc repro` and keep what it did under a name."""
        done = self.run("dvc", "repro", *targets)
        self.keep(name, done.returncode, done.stdout + done.stderr)

    def keep(self, name: str, code: int, output: str) -> None:
        self.repros[name] = Repro(code, output, re.findall(r"Running stage '(.+?)'", output))
        self.manifests[name] = {
            path.parent.name: path.read_text() for path in self.root.glob("data/predictions/month=*/_manifest.json")
        }

    def settings(self, **sections: object) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(settings_values(**sections), sort_keys=False))


def start(root: Path, **sections: object) -> Story:
    """The project as a clone has it, with small settings (see `conftest.settings_values`)."""
    kept = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "features.py")
    for name in (*kept, "data/README.md", "models/README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    story = Story(root)
    story.settings(**sections)
    story.run("git", "init", "--quiet")
    story.run("git", "add", "--all")
    story.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "start")
    return story


def copy_first(factory: pytest.TempPathFactory, to: Path) -> Story:
    """Return a copy of a project after its first `dvc repro`, committed; the original is made once per session."""

    def create(folder: Path) -> None:
        story = start(folder / "project", **SMALL)
        story.warm = False  # once, all stages run as they are installed
        story.repro("first")
        assert story.repros["first"].code == 0, story.repros["first"].output
        commit(story, "first")
        (folder / "first").write_text(story.repros["first"].output)

    folder = workbench.create_once(factory, "first_repro", create)
    shutil.copytree(folder / "project", to, symlinks=True)
    story = Story(to)
    story.keep("first", 0, (folder / "first").read_text())
    return story


def git(story: Story, *arguments: str) -> str:
    done = story.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(story: Story, message: str) -> None:
    git(story, "add", "--all")
    git(story, "commit", "--quiet", "-m", message)


def dvc(story: Story, *arguments: str) -> str:
    """What a command of DVC prints; it has to succeed."""
    done = story.run("dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ref(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = workbench.read_json(root / "models/champion/ref.json")
    return found


def scores(root: Path) -> dict[str, str]:
    parts = sorted((root / "data/predictions").rglob("*.parquet"))
    return {str(part.relative_to(root)): hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}


def changes(root: Path) -> list[Change]:
    from tipline.registry import champion

    return champion.list_changes(client(root), NAME)


def client(root: Path) -> MlflowClient:
    """A client of a copy of a project's own database: MLflow would go on with one that was deleted since."""
    import mlflow

    seen = root.with_name(f"{root.name}-{next(SEEN)}.db")
    shutil.copyfile(root / "mlflow.db", seen)
    address = f"sqlite:///{seen}"
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    return mlflow.MlflowClient(address, address)


def runs(store: MlflowClient, name: str) -> list[Run]:
    found = store.get_experiment_by_name(f"tipline/{name}")
    return store.search_runs([found.experiment_id], order_by=["start_time"]) if found else []


def versions(store: MlflowClient) -> dict[str, Any]:
    """The registered versions, by the digest of their model."""
    found = store.search_model_versions(f"name = '{NAME}'")
    by_digest = {version.tags["tipline.digest"]: version for version in found}
    assert len(by_digest) == len(found), "equal models have more than one version"
    return by_digest


def assert_complete(root: Path) -> None:
    """MLflow's store has all that the project's files tell of, each thing once, and nothing that is not finished."""
    store = client(root)
    assert_champion(root, store)
    for digest, version in versions(store).items():
        assert_version(root, store, digest, version)
    kept = {name: runs(store, name) for name in ("train", "learning_curve", "evaluate", "monitor")}
    for run in (run for found in kept.values() for run in found):
        assert run.info.status == "FINISHED", run.info.run_name
        assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    digests = [run.data.tags["tipline.digest"] for run in kept["train"]]
    assert len(digests) == len(set(digests)), "a model has more than one training run"
    # Not its bytes: a study made again is the same run, and its fits took other seconds.
    shown = [artifact.path for run in kept["learning_curve"] for artifact in store.list_artifacts(run.info.run_id)]
    assert "learning_curve.csv" in shown
    assert any(has(store, run, root / "reports/evaluation.json") for run in kept["evaluate"])
    assert_months(root, kept["monitor"])


def assert_champion(root: Path, store: MlflowClient) -> None:
    """Alias, files and log name one model; the challenger has its version, too."""
    found = store.get_model_version_by_alias(NAME, "champion")
    champion = ref(root)
    expected = (NAME, int(found.version), found.run_id, found.tags["tipline.digest"])
    assert (champion["name"], champion["version"], champion["run"], champion["digest"]) == expected
    from tipline.model import artifact

    assert artifact.read_digest(root / "models/champion") == ref(root)["digest"]
    assert artifact.read_digest(root / "models/challenger") in versions(store)


def assert_version(root: Path, store: MlflowClient, digest: str, version: Any) -> None:
    """A version has its run, and files in this project that load."""
    import mlflow

    assert store.get_run(version.run_id).data.tags["tipline.digest"] == digest
    place = store.get_model_version_download_uri(NAME, str(version.version))
    files = Path(mlflow.artifacts.download_artifacts(artifact_uri=place))
    assert files.is_relative_to(root / "mlartifacts")
    spec = workbench.read_json(files / "artifacts" / "model.json")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/{version.version}")
    assert model.metadata.get_input_schema().input_names() == [feature["name"] for feature in spec["features"]]


def has(store: MlflowClient, run: Run, file: Path) -> bool:
    names = [artifact.path for artifact in store.list_artifacts(run.info.run_id)]
    if file.name not in names:
        return False
    return Path(store.download_artifacts(run.info.run_id, file.name)).read_bytes() == file.read_bytes()


def assert_months(root: Path, found: list[Run]) -> None:
    """Each month has one run of each model that scored it, the champion's among them."""
    months = [(run.data.params["month"], run.data.params["model_digest"]) for run in found]
    assert len(months) == len(set(months))
    assert {(month, ref(root)["digest"][:12]) for month in MONTHS} <= set(months)
