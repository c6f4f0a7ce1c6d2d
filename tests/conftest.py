"""What the tests share: the real TLC files, a project to run stages in, an MLflow store that is ready to use."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tipline.paths import Paths

ROOT = Path(__file__).parent.parent
# The tests decide what these say; MLflow itself writes the first two when a store is used.
ENVIRONMENT = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "DASK_SCHEDULER_ADDRESS",
    "DVC_ROOT",
    "DVC_STAGE",
    "DVC_EXP_NAME",
)


# The files that take longest, longest first: begun last, one of them would be waited for alone (see Makefile).
LONGEST = (
    "test_docs",
    "test_end_to_end",
    "test_faults",
    "test_clones",
    "test_experiments",
    "test_team_server",
    "test_registry",
    "test_month",
    "test_secrets",
    "test_mlflow_page",
    "test_many_machines",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Let the longest files begin first; tests come in random order, but for those of a file that tells one story."""
    written = {item: index for index, item in enumerate(items)}
    yield
    for path in {item.path for item in items if item.get_closest_marker("in_order")}:
        places = [index for index, item in enumerate(items) if item.path == path]
        told = sorted((items[index] for index in places), key=written.__getitem__)
        for index, item in zip(places, told, strict=True):
            items[index] = item
    longest = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: longest.get(item.path.stem, len(LONGEST)))


def pytest_configure(config: pytest.Config) -> None:
    """Say where processes that stories fork from are to be found; the workers of pytest-xdist inherit it."""
    # As users have it: what Python compiles lies beside the code, in a model's folder, too.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if not hasattr(config, "workerinput"):
        warm.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Clean up after them."""
    if not hasattr(config, "workerinput"):
        warm.end()


def missing(what: str) -> None:
    """Skip, saying so; a failure where TIPLINE_REQUIRE_ALL says that every part has to be there."""
    if os.environ.get("TIPLINE_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and TIPLINE_REQUIRE_ALL=1")
    pytest.skip(what)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tlc() -> Path:
    """The folder of real TLC records beside the project."""
    folder = ROOT.parent / "shared" / "tlc"
    if not folder.is_dir():
        missing(f"no real TLC records in {folder}")
    return folder


def settings_values(**sections: Any) -> dict[str, Any]:
    """The project's own params.yaml, small: 5,000 demo rows a month, samples of 3,000; sections are updated."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["schema"] = str(ROOT / values["schema"])
    values["demo"]["rows"] = 5000
    values["sample"]["rows"] = 3000
    values["learning_curve"] |= {"smallest": 200, "sizes": 3, "repeats": 2}
    values["score"]["workers"] = 1
    for name, section in sections.items():
        values[name] = values[name] | section if isinstance(section, dict) else section
    return values


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Paths]:
    """Give a function that makes a project folder with these settings (see `settings_values`) and its layout."""

    def make(**sections: Any) -> Paths:
        from tipline.paths import Paths

        root = tmp_path / "project"
        root.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
        (root / "params.yaml").write_text(yaml.safe_dump(settings_values(**sections), sort_keys=False))
        return Paths(root)

    return make


@pytest.fixture(scope="session")
def _mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making one takes four seconds, copying it none."""
    from tipline.paths import Paths
    from tipline.registry import store

    paths = Paths(tmp_path_factory.mktemp("mlflow"))
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # of a test before, in another module
    with store.connect_store(paths):
        pass
    # MLflow writes the address there, for its own subprocesses.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return paths.root / "mlflow.db"


@pytest.fixture
def mlflow_store(_mlflow_template: Path, tmp_path: Path) -> Path:
    """A fresh database for the project of `make_project`; returns its path."""
    (tmp_path / "project").mkdir(exist_ok=True)
    target = tmp_path / "project" / "mlflow.db"
    shutil.copyfile(_mlflow_template, target)
    return target


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Give a function that runs a `tipline` command in a folder; it returns the exit code and what was printed."""

    def run(folder: Path, *arguments: str) -> tuple[int, str]:
        from tipline import cli

        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = cli.main(arguments)
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return run
