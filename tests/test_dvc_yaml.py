"""dvc.yaml: one stage per file in stages/, dependencies by the rules of its header, at most two screens."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = "src/tipline"


def get_body(stage: str) -> dict[str, Any]:
    return STAGES[stage].get("do", STAGES[stage])  # type: ignore[no-any-return]


def test_every_stage_has_its_file_and_dvc_yaml_fits_two_screens() -> None:
    files = {path.stem for path in (ROOT / CODE / "stages").glob("*.py")} - {"__init__"}
    assert files == set(STAGES)
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 160


@pytest.mark.parametrize("stage", ["download", "prepare", "score"])
def test_stages_with_manifests_depend_on_their_file_and_formats(stage: str) -> None:
    code = {dep for dep in get_body(stage)["deps"] if dep.startswith(CODE)}
    assert code == {f"{CODE}/stages/{stage}.py", f"{CODE}/formats.py"}


def test_plots_loaders_and_fast_paths_are_nobodys_dependency() -> None:
    deps = {dep for stage in STAGES for dep in get_body(stage).get("deps", []) if dep.startswith(CODE)}
    assert all((ROOT / dep).exists() for dep in deps)
    assert not {
        dep for dep in deps if Path(dep).stem in {"plots", "page", "loader", "pyfunc", "external", "monitoring"}
    }


def test_only_the_stage_that_looks_into_mlflow_always_runs() -> None:
    assert {stage for stage in STAGES if get_body(stage).get("always_changed")} == {"register"}


def test_params_of_stages_exist() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES:
        for param in get_body(stage).get("params", []):
            if isinstance(param, str):
                section: Any = values
                for key in param.split("."):
                    section = section[key]


def test_stage_finds_tipline_in_the_projects_environment(tmp_path: Path) -> None:
    """`.venv/bin/dvc repro` works although the environment is not activated."""
    for name in ("dvc.yaml", "features.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values |= {"schema": str(ROOT / values["schema"]), "demo": {"rows": 200, "seed": 1}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for name in ("stages/download.py", "formats.py"):
        (tmp_path / CODE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / CODE / name, tmp_path / CODE / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    dvc = [sys.executable, "-m", "dvc"]
    environment = {"PATH": "/usr/bin:/bin", "DVC_NO_ANALYTICS": "1", "HOME": str(tmp_path)}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    for command in ([*dvc, "init", "--no-scm", "--quiet"], [*dvc, "repro", "download"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data" / "raw" / "2009-01.json").is_file()
