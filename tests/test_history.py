"""Each change of champion is one tag in MLflow, wherever it was made; a rollback takes one change back."""

from __future__ import annotations

import getpass
import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from tests import workbench
from tests.test_registry import NAME, client, force_promotion, get_champion, read_ref, train_another
from tipline.commands import rollback
from tipline.config import load_partial_settings
from tipline.errors import TiplineError, UsageError
from tipline.model import artifact
from tipline.registry import history, model_versions, runs, store
from tipline.registry.history import Champion, Change

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

    RunCli = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS


@pytest.fixture
def project(trained_project: Paths) -> Paths:
    """A project whose first version is champion."""
    workbench.run(trained_project, "register")
    return trained_project


def register_another(paths: Paths, c: float) -> str:
    """Train and register a version with another C; return its digest."""
    digest = train_another(paths, c)
    workbench.run(paths, "register")
    return digest


def list_moves(paths: Paths) -> list[tuple[str, int | None, int]]:
    """How, from which version and to which the champion moved."""
    changes = history.list_changes(client(paths), NAME)
    return [(change.how, change.before.version if change.before else None, change.after.version) for change in changes]


def roll_back(paths: Paths) -> None:
    rollback.run(load_partial_settings(paths.params), paths)


def test_a_change_is_a_tag_with_who_why_and_the_verdict_and_is_never_overwritten(
    project: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = read_ref(project)["digest"], dict(client(project).get_registered_model(NAME).tags)
    second = register_another(project, 0.01)
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert run_cli(project.root, "promote", "2", "--force", "asked for")[0] == 0
    workbench.run(project, "register")
    tags = dict(client(project).get_registered_model(NAME).tags)
    assert before.items() < tags.items()
    (key,) = set(tags) - set(before)
    assert re.fullmatch(r"tipline\.champion\.\d{4}-\d\d-\d\dT\d{6}\.\d{6}Z-[0-9a-f]{8}", key)
    value = json.loads(tags[key])
    assert (value["from"], value["to"]) == ({"version": 1, "digest": first}, {"version": 2, "digest": second})
    assert (value["by"], value["reason"], value["how"]) == ("ann", "asked for", "promote")
    assert "refuses" in value["verdict"]
    assert list_moves(project) == [("first", None, 1), ("promote", 1, 2)]


def test_a_long_reason_fits_into_a_tag(project: Paths) -> None:
    version = model_versions.get_champion(client(project), NAME)
    assert version is not None
    history.record_change(client(project), None, version, "promote", reason="é" * 9000, verdict="\\" * 9000)
    tags = client(project).get_registered_model(NAME).tags
    assert max(len(json.loads(value)["reason"] or "") for value in tags.values()) == history.TEXT_LETTERS + 1
    assert max(map(len, tags.values())) <= 5000


def test_an_edited_tag_is_passed_over(project: Paths) -> None:
    for index, value in enumerate(("", "[]", "{}", '{"from": null, "to": null, "how": "first"}')):
        client(project).set_registered_model_tag(NAME, f"{history.PREFIX}2020-{index}", value)
    assert list_moves(project) == [("first", None, 1)]


def test_an_alias_moved_elsewhere_is_recorded_once_for_all_clones(project: Paths, tmp_path: Path) -> None:
    register_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(project, "register")
    workbench.run(project, "register")
    clone = workbench.copy_project(project, tmp_path / "clone")
    os.environ["MLFLOW_TRACKING_URI"] = store.get_store_address(project)
    workbench.run(clone, "register")
    assert list_moves(project) == [("first", None, 1), ("external", 1, 2)]
    assert history.list_changes(client(project), NAME)[-1].by is None
    client(project).set_registered_model_alias(NAME, "champion", "1")
    workbench.run(clone, "register")
    assert list_moves(project)[-1] == ("external", 2, 1)


def test_a_change_that_could_not_be_recorded_is_recorded_by_the_next_register(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_another(project, 0.01)

    def fail(*_: object, **__: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(history, "record_change", fail)
        with pytest.raises(OSError, match="killed"):
            force_promotion(project, 2)
    workbench.run(project, "register")
    assert list_moves(project) == [("first", None, 1), ("external", 1, 2)]
    assert "refuses" in str(history.list_changes(client(project), NAME)[-1].verdict)


def test_a_user_who_may_only_read_records_nothing_and_scores_with_the_champion(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = register_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")

    def forbid(*_: object) -> None:
        raise MlflowException("no", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as reader:
        reader.setattr(store.Client, "set_registered_model_tag", forbid)
        workbench.run(project, "register")
    assert read_ref(project)["digest"] == second
    assert list_moves(project) == [("first", None, 1)]


def list_sample_changes(*steps: tuple[str, str]) -> list[Change]:
    """Changes to the champions of these digests."""
    return [Change(str(index), None, Champion(1, digest), how) for index, (how, digest) in enumerate(steps)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "digest", "previous"),
    [
        ("", "a", None),
        ("first a", "a", None),
        ("first a, promote b", "b", "a"),
        ("first a, promote b", "a", None),
        ("first a, promote b, rollback a", "a", None),
        ("first a, promote b, rollback a, promote b", "b", "a"),
        ("first a, promote b, rollback a, promote b, rollback a, promote b", "b", "a"),
        ("first a, promote b, promote c, rollback b", "b", "a"),
        ("first a, promote b, promote c, rollback b, rollback a", "a", None),
        ("first a, promote b, promote a", "a", "b"),
        ("first a, external b, promote b", "b", "a"),
        ("first a, promote b, rollback x", "x", "b"),
        ("first a, promote b", None, "b"),
    ],
)
def test_the_previous_champion(steps: str, digest: str | None, previous: str | None) -> None:
    changes = list_sample_changes(*(tuple(step.split()) for step in steps.split(", ") if step))  # type: ignore[arg-type]
    found = history.find_previous_champion(changes, digest)
    assert (found and found.digest) == previous


def test_each_rollback_takes_one_change_back_from_any_clone(project: Paths, tmp_path: Path) -> None:
    for number, c in ((2, 0.1), (3, 0.01)):
        register_another(project, c)
        force_promotion(project, number)
    clone = workbench.copy_project(project, tmp_path / "clone")
    os.environ["MLFLOW_TRACKING_URI"] = store.get_store_address(project)
    for paths, number in ((project, 2), (clone, 1)):
        roll_back(paths)
        assert get_champion(project) == number
    with pytest.raises(UsageError, match="no champion before version 1"):
        roll_back(clone)
    expected = [("first", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 1)]
    assert list_moves(project) == expected
    for _ in range(2):  # A -> B -> rollback -> B -> rollback
        force_promotion(project, 3)
        roll_back(clone)
        assert get_champion(project) == 1


def test_a_rollback_of_a_change_made_in_mlflow_with_an_invalid_params_yaml(project: Paths, run_cli: RunCli) -> None:
    register_another(project, 0.01)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.change_settings(project, train={"seed": "x"})
    assert run_cli(project.root, "rollback", "--reason", "worse")[0] == 0
    assert list_moves(project) == [("first", None, 1), ("external", 1, 2), ("rollback", 2, 1)]
    assert history.list_changes(client(project), NAME)[-1].reason == "worse"
    project.params.write_text("{")
    assert run_cli(project.root, "rollback")[0] == 2


def test_a_champion_that_is_no_model_can_be_rolled_back(project: Paths) -> None:
    client(project).create_model_version(NAME, source=(project.root / "data").as_uri())
    client(project).set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(TiplineError):
        workbench.run(project, "register")
    roll_back(project)
    assert get_champion(project) == 1
    workbench.run(project, "register")


def test_a_previous_champion_that_the_registry_has_lost_is_reported(project: Paths) -> None:
    register_another(project, 0.01)
    force_promotion(project, 2)
    client(project).delete_model_version(NAME, "1")
    with pytest.raises(TiplineError, match="has lost the champion before version 2: version 1"):
        roll_back(project)


def test_a_version_made_in_mlflows_page_of_a_run_is_adopted(
    project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = workbench.copy_project(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    digest = register_another(copy, 0.01)
    monkeypatch.delenv("DVC_ROOT")
    experiment = client(project).get_experiment_by_name("tipline/train").experiment_id
    run = store.find_runs(client(project), experiment)[digest]
    uri = run.data.tags[runs.MODEL_URI]
    client(project).create_model_version(NAME, uri, run.info.run_id, model_id=uri.removeprefix("models:/"))
    client(project).set_registered_model_alias(NAME, "champion", "2")
    workbench.run(project, "register")
    assert read_ref(project)["digest"] == artifact.read_digest(project.champion) == digest
    assert list_moves(project)[-1] == ("external", 1, 2)


def test_after_a_rollback_the_months_of_the_withdrawn_version_are_named_and_scored_again(
    scored_project: Paths,
    run_cli: RunCli,
    dask_address: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project = scored_project
    workbench.run(project, "register")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask_address)
    before = workbench.read_tree(project.predictions)
    register_another(project, 0.01)
    force_promotion(project, 2)
    workbench.run(project, "register")
    workbench.change_settings(project, months=list(workbench.MONTHS[:3]))
    assert run_cli(project.root, "score")[0] == 0
    caplog.clear()
    assert run_cli(project.root, "rollback")[0] == 0
    assert run_cli(project.root, "register")[0] == 0
    months = ", ".join(workbench.MONTHS[:3])
    assert f"version 2 had scored {months}\n" in caplog.text
    assert re.search(rf"from version 2 \(\w{{8}}\) to version 1 \(\w{{8}}\); {months}, scored by the old", caplog.text)
    workbench.change_settings(project, months=list(workbench.MONTHS))
    assert run_cli(project.root, "score")[0] == 0
    after = workbench.read_tree(project.predictions)
    assert {name: after[name] for name in before if name.endswith(".parquet")} == {
        name: data for name, data in before.items() if name.endswith(".parquet")
    }
