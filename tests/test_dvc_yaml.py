"""dvc.yaml against the code: a stage depends on what it imports, and on no more."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.imports import PACKAGE, needed

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def body(stage: str) -> dict[str, Any]:
    """A stage's definition, without `foreach`."""
    return STAGES[stage].get("do", STAGES[stage])  # type: ignore[no-any-return]


def test_there_is_one_module_a_stage() -> None:
    modules = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"params"}))
def test_a_stage_depends_on_its_file_and_the_modules_it_imports(stage: str) -> None:
    code = {path.relative_to(ROOT).as_posix() for path in needed(PACKAGE / "stages" / f"{stage}.py")}
    deps = body(stage)["deps"]
    assert {dep for dep in deps if dep.startswith("src/")} == code
    assert ("${schema}" in deps) == ("src/tipline/months/schema.py" in code)


def test_only_what_mirrors_into_mlflow_runs_each_time() -> None:
    assert {stage for stage in STAGES if body(stage).get("always_changed")} == {"register", "record"}


def test_only_score_and_what_follows_it_depend_on_the_folder_of_all_months() -> None:
    assert {stage for stage in STAGES if "data/trips" in body(stage)["deps"]} == {"score", "monitor"}


def test_every_param_of_a_stage_is_in_params_yaml() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES:
        for param in body(stage).get("params", []):
            if isinstance(param, str):
                section: Any = values
                for key in param.split("."):
                    section = section[key]
