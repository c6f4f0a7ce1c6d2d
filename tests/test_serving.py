"""The registered version, served by MLflow in an environment of its own, gives the scores of bulk scoring."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import workbench
from tests.conftest import forget_store, missing
from tests.servers import free_port
from tipline.registry import model_versions, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
NAME = "tip-probability"
MONTH = "2024-01"
ROWS = 500


@pytest.fixture(scope="module")
def project(scored_template: Paths, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A scored project with its champion registered."""
    paths = workbench.copy_project(scored_template, tmp_path_factory.mktemp("serving"))
    shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
    with forget_store():
        workbench.run(paths, "register")
    return paths


@pytest.fixture(scope="module")
def model(project: Paths) -> Path:
    """The registered version's files, fetched with MLflow alone."""
    with forget_store(), store.connect_store(project) as client:
        version = model_versions.get_champion(client, NAME)
        assert version is not None
        folder = project.root / "fetched"
        mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{NAME}/{version.version}", dst_path=str(folder))
    return folder


@pytest.fixture(scope="module")
def python(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing in it but what the version's requirements.txt names."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        missing("no program `uv` (pip install uv)")
    folder = tmp_path_factory.mktemp("own") / "environment"
    subprocess.run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [str(uv), "pip", "install", "--quiet", "--python", str(python), "-r", str(model / "requirements.txt")]
    subprocess.run(command, check=True)
    return python


def environment() -> dict[str, str]:
    """Without this project's paths."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL", "MLFLOW_"))}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def frame(paths: Paths, names: list[str]) -> pd.DataFrame:
    """The first rows of a month as text and numbers, times as ISO text; some values are missing."""
    trips = workbench.read_prepared(paths, MONTH).slice(0, ROWS).select(names).to_pandas()
    times = [name for name in names if trips[name].dtype.kind == "M"]
    for name in times:
        trips[name] = trips[name].dt.strftime("%Y-%m-%dT%H:%M:%S")
    given: pd.DataFrame = trips.astype({name: "object" for name in names if trips[name].dtype.kind not in "fi"})
    return given


def columns(model: Path) -> list[str]:
    spec: dict[str, Any] = json.loads((model / "artifacts" / "model.json").read_text())
    return [feature["name"] for feature in spec["features"]]


def split(given: pd.DataFrame) -> bytes:
    """Rows as MLflow takes them in json; a missing value is null."""
    return json.dumps({"dataframe_split": json.loads(given.to_json(orient="split", index=False))}).encode()


def scored(paths: Paths) -> np.ndarray[Any, Any]:
    """What bulk scoring has written."""
    written = pq.read_table(paths.predictions / f"month={MONTH}").sort_by("row").slice(0, ROWS)
    probabilities: np.ndarray[Any, Any] = written["tip_probability"].to_numpy()
    return probabilities


def probabilities(answer: Any) -> bytes:
    """What MLflow answered, as float32."""
    return np.array([row["tip_probability"] for row in answer["predictions"]], dtype=np.float32).tobytes()


def test_the_environment_has_neither_tipline_nor_dask(python: Path) -> None:
    code = "from importlib.util import find_spec as f; print([n for n in ('tipline', 'dask', 'dvc', 's3fs') if f(n)])"
    done = subprocess.run([str(python), "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_served_version_gives_what_bulk_scoring_gave(
    project: Paths, model: Path, python: Path, tmp_path: Path
) -> None:
    given, port = frame(project, columns(model)), free_port()
    assert given.isna().to_numpy().any()
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with running([*command, *options], tmp_path / "log") as process:
        workbench.wait_for(lambda: process.poll() is not None or answers(port), 120)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", split(given), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (the address above)
            told = json.load(answer)
    assert probabilities(told) == scored(project).tobytes()


@contextlib.contextmanager
def running(command: list[str], printed: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of another environment while the block runs; its process group ends with it."""
    with printed.open("wb") as out:
        process = subprocess.Popen(command, env=environment(), stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    """Whether the server is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_predict_gives_what_bulk_scoring_gave(project: Paths, model: Path, python: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.json", tmp_path / "out.json"
    rows.write_bytes(split(frame(project, columns(model))))
    command = [str(python), "-m", "mlflow", "models", "predict", "-m", str(model), "--env-manager", "local"]
    options = ["-i", str(rows), "-t", "json", "-o", str(out)]
    done = subprocess.run([*command, *options], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert probabilities(json.loads(out.read_text())) == scored(project).tobytes()
