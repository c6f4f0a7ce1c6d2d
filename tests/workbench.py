"""Run stages in this process, start dask schedulers and workers, copy projects."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from distributed import Client

from tests.conftest import ROOT, forget_store, settings_values
from tipline import cluster, config
from tipline.config import Settings
from tipline.ingest.columns import encode_categories
from tipline.model import artifact, pyfunc
from tipline.paths import Paths

# What MLflow's own code brings about when its store and its pyfunc are first used.
MLFLOW_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
]
CODE = artifact.TRANSFORMERS.name
MODEL_FILES = (pyfunc.ESTIMATOR, pyfunc.SPEC, CODE)  # of a model that does not use the user's code
ORDER = (
    "download",
    "prepare",
    "sample",
    "learning_curve",
    "train",
    "register",
    "evaluate",
    "score",
    "monitor",
    "record",
)
# One month for each role, and one of another era that is only scored.
MONTHS = ("2009-01", "2009-02", "2009-03", "2024-01")
# Small batches and row groups, so that 5,000 rows are several blocks: see `small_row_groups`.
GROUP_ROWS = 1700


def load_settings(paths: Paths) -> Settings:
    return config.load_settings(paths.params)


def change_settings(paths: Paths, **sections: Any) -> None:
    values = yaml.safe_load(paths.params.read_text())
    for name, section in sections.items():
        values[name] = values[name] | section if isinstance(section, dict) else section
    paths.params.write_text(yaml.safe_dump(values, sort_keys=False))


def run(paths: Paths, *stages: str) -> None:
    """Run stages in this process, `sample` for each of its months, as their commands would."""
    for stage in stages:
        now = load_settings(paths)
        if stage == "sample":
            for month in now.sample.months:
                run_month(paths, stage, month)
        else:
            importlib.import_module(f"tipline.stages.{stage}").run(now, paths)


def run_month(paths: Paths, stage: str, month: str) -> None:
    """Run `sample` for a month, or `download` or `prepare` for this month again."""
    named = month if stage == "sample" else [month]
    importlib.import_module(f"tipline.stages.{stage}").run(load_settings(paths), paths, named)


def prepare_again(paths: Paths, *months: str) -> None:
    """Prepare months again although nothing that `prepare` looks at has changed."""
    for month in months:
        run_month(paths, "prepare", month)


def prepare_small_blocks(paths: Paths, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Prepare blocks of 500 rows, so that there is time to do something in the middle of scoring on a cluster."""
    small_row_groups(monkeypatch, 500)
    prepare_again(paths, *MONTHS)
    monkeypatch.setenv(cluster.ADDRESS, address)


def copy_unscored(source: Paths, folder: Path) -> Paths:
    """Copy a project whose months are prepared and scored, without the predictions."""
    paths = copy_project(source, folder)
    shutil.rmtree(paths.predictions)
    return paths


def run_to(paths: Paths, last: str) -> Paths:
    run(paths, *ORDER[: ORDER.index(last) + 1])
    return paths


def small_row_groups(monkeypatch: pytest.MonkeyPatch, rows: int = GROUP_ROWS) -> None:
    """Make `prepare` write small row groups; a row group is what one task scores."""
    from tipline.ingest import prepare, readers

    monkeypatch.setattr(readers, "BATCH_ROWS", rows)
    monkeypatch.setattr(prepare, "ROW_GROUP_ROWS", rows)


def write_project(root: Path, **sections: Any) -> Paths:
    root.mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", "features.py"):
        shutil.copyfile(ROOT / name, root / name)
    values = settings_values(**{"months": list(MONTHS), "cluster": {"n_workers": 2}} | sections)
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return Paths(root)


# A cluster that is idle while other tests run would take a seventh of a core to look at itself.
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "60s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
}


@contextlib.contextmanager
def running(
    *command: str,
    folder: Path | None = None,
    printed: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of the environment while the block runs; its process group ends with it.

    What it prints is added to the file `printed`.
    """
    arguments = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    variables = {**os.environ, **QUIET, **(environment or {})}
    with (printed or Path(os.devnull)).open("ab") as out:
        process = subprocess.Popen(arguments, cwd=folder, start_new_session=True, stdout=out, stderr=out, env=variables)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


LOCAL = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")


@contextlib.contextmanager
def scheduler_process(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    with running("dask", "scheduler", *LOCAL, "--port", "0", "--scheduler-file", str(file)) as process:
        wait_for(lambda: file.exists() and file.stat().st_size)
        yield str(read_json(file)["address"]), process


@contextlib.contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    with scheduler_process(folder) as (address, _):
        yield address


@contextlib.contextmanager
def workers(address: str, count: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dask worker` with so many worker processes, each with its nanny, until they are there."""
    with running("dask", "worker", address, *LOCAL, "--nworkers", str(count), *options) as process:
        with Client(address) as client:
            client.wait_for_workers(count, timeout=60)
        yield process


def create_once(factory: pytest.TempPathFactory, name: str, create: Callable[[Path], None]) -> Path:
    """Return a folder that the first test needing it creates, also when tests run in several processes."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():  # not renamed into place, because MLflow's store holds its path
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            create(folder)
            (folder / "done").touch()
    return folder


def copy_project(source: Paths, folder: Path) -> Paths:
    """Copy a project to `folder`/project, but for MLflow's store: the paths in it would be the old ones."""
    ignored = shutil.ignore_patterns("mlflow.db", "mlartifacts", ".mlflow*.lock")
    shutil.copytree(source.root, folder / "project", ignore=ignored, dirs_exist_ok=True)
    return Paths(folder / "project")


def copy_with_store(source: Paths, folder: Path) -> Paths:
    """Copy a project to `folder`/project with MLflow's store, whose paths follow; registering again takes seconds."""
    from tipline.registry import store

    ignored = shutil.ignore_patterns(".mlflow*.lock")
    paths = Paths(shutil.copytree(source.root, folder / "project", ignore=ignored, dirs_exist_ok=True))
    with forget_store(), store.connect_store(paths):
        return paths


def read_prepared(paths: Paths, month: str) -> pa.Table:
    return pq.read_table(paths.prepared_file(month))


def as_batch(table: pa.Table) -> pa.RecordBatch:
    return encode_categories(table).combine_chunks().to_batches()[0]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
