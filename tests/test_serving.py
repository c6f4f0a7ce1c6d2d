"""The registered version, served by MLflow in an environment of its own, gives the scores of bulk scoring."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import requests

from tests import workbench
from tests.conftest import forget_store, missing
from tests.servers import Program
from tipline.paths import Paths
from tipline.registry import store

pytestmark = workbench.MLFLOW_WARNINGS
NAME = "tip-probability"
MONTH = "2024-01"
ROWS = 500


@pytest.fixture(scope="module")
def project(scored_template: Paths, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A scored project with its champion registered."""
    return workbench.copy_with_store(scored_template, tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def model(project: Paths) -> Path:
    """The registered version's files, fetched with MLflow alone."""
    folder = project.root / "fetched"
    with forget_store(), store.connect_store(project):
        mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{NAME}@champion", dst_path=str(folder))
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


def build_request(paths: Paths, model: Path) -> bytes:
    """The first rows of a month as MLflow takes them in json: times as ISO text, a missing value as null."""
    spec: dict[str, Any] = json.loads((model / "artifacts" / "model.json").read_text())
    trips = workbench.read_prepared(paths, MONTH).slice(0, ROWS).select([part["name"] for part in spec["inputs"]])
    given = trips.to_pandas()
    for name in given.select_dtypes("datetime"):
        given[name] = given[name].dt.strftime("%Y-%m-%dT%H:%M:%S")
    assert given.isna().to_numpy().any()
    return json.dumps({"dataframe_split": json.loads(given.to_json(orient="split", index=False))}).encode()


def test_the_served_version_gives_what_bulk_scoring_gave_without_tipline(
    project: Paths, model: Path, python: Path
) -> None:
    code = "from importlib.util import find_spec as f; print([n for n in ('tipline', 'dask', 'dvc', 's3fs') if f(n)])"
    assert subprocess.check_output([str(python), "-c", code], env=environment(), text=True).strip() == "[]"
    server = Program(model.parent)
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    server.run([*command, "--host", "127.0.0.1", "--port", str(server.port), "--workers", "1"], environment())
    try:
        asked, headers = build_request(project, model), {"Content-Type": "application/json"}
        answer = requests.post(f"http://{server.place}/invocations", asked, headers=headers, timeout=60)
    finally:
        server.kill()
    found = np.array([row["probability"] for row in answer.json()["predictions"]], dtype=np.float32)
    written = pq.read_table(project.predictions / f"month={MONTH}").sort_by("row").slice(0, ROWS)
    assert found.tobytes() == written["probability"].to_numpy().tobytes()
