"""Fixtures: the real TLC files, projects in which stages have run, an empty MLflow store, a dask cluster."""

from __future__ import annotations

import contextlib
import logging
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

    from playwright.sync_api import Browser

    from tipline.paths import Paths

ROOT = Path(__file__).parent.parent
# The tests decide what these hold; MLflow writes the first two when a store is used.
ENVIRONMENT = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "DASK_SCHEDULER_ADDRESS",
    "TIPLINE_CLUSTER",
    "DVC_ROOT",
    "DVC_STAGE",
    "DVC_EXP_NAME",
)
# The files that take longest start first, so that the run does not end with one worker waiting for them.
LONGEST = (
    "test_faults",
    "test_many_machines",
    "test_end_to_end",
    "test_clones",
    "test_experiments",
    "test_team_server",
    "test_docs",
    "test_month",
    "test_mlflow_page",
    "test_trees",
    "test_secrets",
    "test_registry",
    "test_loader",
    "test_pipeline",
    "test_estimators",
    "test_promote",
    "test_learning_curve",
    "test_score",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Start the longest files first, and keep the order of tests in files marked `in_order`."""
    written = {item: index for index, item in enumerate(items)}
    yield
    for path in {item.path for item in items if item.get_closest_marker("in_order")}:
        ordered = iter(sorted((item for item in items if item.path == path), key=written.__getitem__))
        items[:] = [next(ordered) if item.path == path else item for item in items]
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers that commands of end-to-end tests fork from (tests/warm.py)."""
    # As the command line does, whichever test comes first.
    logging.getLogger("tipline").setLevel(logging.INFO)
    # As on a user's machine, Python writes compiled code beside the source, in a model's folder, too.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # OpenMP's threads would wait for each other in loops that take the cores from the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not hasattr(config, "workerinput"):
        warm.start_servers()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        warm.stop_servers()


def missing(what: str) -> None:
    """Skip a test whose part is missing; fail if TIPLINE_REQUIRE_ALL=1."""
    if os.environ.get("TIPLINE_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and TIPLINE_REQUIRE_ALL=1")
    pytest.skip(what)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat failed requests at once."""
    from tipline.ingest import transfer

    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def tlc() -> Path:
    """The folder of real TLC records beside the project."""
    folder = ROOT.parent / "shared" / "tlc"
    if not folder.is_dir():
        missing(f"no real TLC records in {folder}")
    return folder


def settings_values(**sections: Any) -> dict[str, Any]:
    """The project's params.yaml made small: 5,000 demo rows per month, samples of 3,000; sections are updated."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["schema"] = str(ROOT / values["schema"])
    values["demo"]["rows"] = 5000
    values["sample"]["rows"] = 3000
    values["learning_curve"] |= {"smallest": 200, "sizes": 3, "repeats": 2}
    values["cluster"]["n_workers"] = 1
    for name, section in sections.items():
        values[name] = values[name] | section if isinstance(section, dict) else section
    return values


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Paths]:
    """A function that creates a project folder with small settings (see `settings_values`)."""
    from tests import workbench

    return lambda **sections: workbench.write_project(tmp_path / "project", **sections)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; creating one takes four seconds, copying it none."""
    from tests import workbench
    from tipline.paths import Paths
    from tipline.registry import store

    def create(folder: Path) -> None:
        with forget_store(), store.connect_store(Paths(folder)):
            pass

    return workbench.create_once(tmp_path_factory, "mlflow", create) / "mlflow.db"


@contextlib.contextmanager
def forget_store() -> Iterator[None]:
    """Keep the store's address, which MLflow writes into the environment, from leaking out of or into the block."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def mlflow_store(mlflow_template: Path, tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir(exist_ok=True)
    return Path(shutil.copyfile(mlflow_template, tmp_path / "project" / "mlflow.db"))


@pytest.fixture(scope="session")
def dask_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the session's dask cluster: a scheduler and two workers."""
    from tests import workbench

    folder = tmp_path_factory.getbasetemp() / "dask"
    folder.mkdir()
    with workbench.scheduler(folder) as address, workbench.workers(address, 2, "--nthreads", "1"):
        yield address


@pytest.fixture
def _on_cluster(dask_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the session's cluster, which outlives the tests as a team's does."""
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask_address)


@pytest.fixture(scope="session")
def trained_template(tmp_path_factory: pytest.TempPathFactory, dask_address: str) -> Paths:
    """A project in which the stages up to `train` have run; read it, do not change it."""
    from tests import workbench
    from tipline.paths import Paths

    def create(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            workbench.small_row_groups(monkeypatch)
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask_address)
            workbench.run_to(workbench.write_project(folder / "project"), "train")

    return Paths(workbench.create_once(tmp_path_factory, "trained", create) / "project")


@pytest.fixture(scope="session")
def scored_template(
    tmp_path_factory: pytest.TempPathFactory, trained_template: Paths, mlflow_template: Path, dask_address: str
) -> Paths:
    """A project in which the stages up to `monitor` have run, with its MLflow store; read it, do not change it."""
    from tests import workbench
    from tipline.paths import Paths

    def create(folder: Path) -> None:
        paths = workbench.copy_project(trained_template, folder)
        shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask_address)
            workbench.run(paths, "register", "evaluate", "score", "monitor")

    with forget_store():
        return Paths(workbench.create_once(tmp_path_factory, "scored", create) / "project")


@pytest.fixture
def trained_project(trained_template: Paths, mlflow_store: Path) -> Paths:
    """A copy of `trained_template` with an empty MLflow store."""
    from tests import workbench

    return workbench.copy_project(trained_template, mlflow_store.parent.parent)


@pytest.fixture
def scored_project(scored_template: Paths, mlflow_store: Path) -> Paths:
    """A copy of `scored_template` with an empty MLflow store; `register` fills it from models/champion."""
    from tests import workbench

    return workbench.copy_project(scored_template, mlflow_store.parent.parent)


@pytest.fixture
def registered_project(scored_template: Paths, tmp_path: Path) -> Paths:
    """A copy of `scored_template` with its MLflow store, in which version 1 is champion."""
    from tests import workbench

    return workbench.copy_with_store(scored_template, tmp_path)


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that runs a `tipline` command in a folder and returns its exit code and output."""

    def run(folder: Path, *arguments: str) -> tuple[int, str]:
        from tipline import cli

        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = cli.main(arguments)
        return code, "".join(capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        missing("no chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright")
    flags = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", *flags])
        yield started
        started.close()
