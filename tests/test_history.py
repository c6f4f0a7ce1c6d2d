"""Each change of champion is one tag in MLflow, wherever it was made; a rollback takes one change back."""

import getpass
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import workbench
from tests.test_registry import NAME, client, force_promotion, get_champion, list_changes, read_ref, train_another
from tipline.commands import promote
from tipline.config import load_partial_settings
from tipline.errors import TiplineError, UsageError
from tipline.model import artifact
from tipline.paths import Paths
from tipline.registry import champion, location, model_versions, runs, store
from tipline.registry.champion import Champion, Change

RunCli = Callable[..., tuple[int, str]]
pytestmark = workbench.MLFLOW_WARNINGS


@pytest.fixture
def project(registered_project: Paths) -> Paths:
    """A project whose first version is champion, and whose second is registered."""
    train_another(registered_project, 0.01, "register")
    return registered_project


def list_moves(paths: Paths) -> list[tuple[str, int | None, int]]:
    """How, from which version and to which the champion moved."""
    changes = list_changes(paths)
    return [(change.how, change.before.version if change.before else None, change.after.version) for change in changes]


def set_alias(paths: Paths, number: int) -> None:
    """Move the alias as MLflow's page does."""
    client(paths).set_registered_model_alias(NAME, "champion", str(number))


def roll_back(paths: Paths) -> None:
    promote.roll_back(load_partial_settings(paths.params), paths)


def test_a_change_is_a_tag_with_who_why_and_the_verdict_and_is_never_overwritten(
    project: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(client(project).get_registered_model(NAME).tags)
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert run_cli(project.root, "promote", "2", "--force", "asked for")[0] == 0
    workbench.run(project, "register")
    tags = dict(client(project).get_registered_model(NAME).tags)
    assert before.items() < tags.items()
    (key,) = {key for key in set(tags) - set(before) if not key.startswith(champion.DECISION)}
    assert re.fullmatch(r"tipline\.champion\.\d{4}-\d\d-\d\dT\d{6}\.\d{6}Z-[0-9a-f]{8}", key)
    value = json.loads(tags[key])
    digests = {n: client(project).get_model_version(NAME, str(n)).tags[store.DIGEST] for n in (1, 2)}
    assert [value["from"], value["to"]] == [{"version": number, "digest": digests[number]} for number in (1, 2)]
    assert (value["by"], value["reason"], value["how"]) == ("ann", "asked for", "promote")
    assert "refuses" in value["verdict"]
    assert list_moves(project) == [("first", None, 1), ("promote", 1, 2)]


def test_former_champions_are_those_that_no_rollback_took_back() -> None:
    a, b, c = (Champion(version=number, digest=str(number)) for number in (1, 2, 3))
    changes = [Change(before=None, after=a, how="first"), Change(before=a, after=b, how="promote")]
    changes += [Change(before=b, after=a, how="rollback"), Change(before=a, after=c, how="external")]
    assert champion.list_former_champions(changes) == [a, c]
    assert champion.list_former_champions([*changes, Change(before=c, after=b, how="promote")]) == [a, c, b]
    assert champion.list_former_champions([]) == []


def test_a_long_reason_fits_into_a_tag_and_an_edited_tag_is_passed_over(project: Paths) -> None:
    client(project).set_model_version_tag(NAME, "2", model_versions.VERDICT, "\\" * 5000)
    version = client(project).get_model_version(NAME, "2")
    champion.record_change(client(project), version, "promote", "é" * 9000)
    assert len(list_changes(project)[-1].reason or "") == champion.TEXT_LETTERS + 1
    assert max(map(len, client(project).get_registered_model(NAME).tags.values())) <= 5000
    for index, value in enumerate(("", "[]", "{}", '{"from": null, "to": null, "how": "first"}')):
        client(project).set_registered_model_tag(NAME, f"{champion.TAG}2020-{index}", value)
    assert list_moves(project) == [("first", None, 1), ("promote", 1, 2)]


def test_an_alias_moved_elsewhere_is_recorded_once_for_all_clones(project: Paths, tmp_path: Path) -> None:
    set_alias(project, 2)
    workbench.run(project, "register", "register")
    clone = workbench.copy_project(project, tmp_path / "clone")
    os.environ["MLFLOW_TRACKING_URI"] = location.get_store_address(project)
    workbench.run(clone, "register")
    assert list_moves(project) == [("first", None, 1), ("external", 1, 2)]
    assert list_changes(project)[-1].by is None
    set_alias(project, 1)
    workbench.run(clone, "register")
    assert list_moves(project)[-1] == ("external", 2, 1)


def test_a_change_that_could_not_be_recorded_is_recorded_by_the_next_register(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(champion, "record_change", fail)
        with pytest.raises(OSError, match="killed"):
            force_promotion(project, 2)
    workbench.run(project, "register")
    assert list_moves(project) == [("first", None, 1), ("external", 1, 2)]
    assert "refuses" in str(list_changes(project)[-1].verdict)


@pytest.mark.parametrize(
    ("steps", "digest", "previous"),
    [
        ("first a", "a", None),
        ("first a, promote b", "b", "a"),
        ("first a, promote b, rollback a", "a", None),
        ("first a, promote b, rollback a, promote b", "b", "a"),
        ("first a, promote b, rollback a, promote b, rollback a, promote b", "b", "a"),
        ("first a, promote b, promote c, rollback b", "b", "a"),
        ("first a, promote b, promote c, rollback b, rollback a", "a", None),
        ("first a, promote b, promote a", "a", "b"),
        ("first a, promote b", None, "b"),
    ],
)
def test_the_previous_champion(steps: str, digest: str | None, previous: str | None) -> None:
    pairs = [step.split() for step in steps.split(", ") if step]
    changes = [Change(before=None, after=Champion(version=1, digest=after), how=how) for how, after in pairs]
    found = champion.find_previous_champion(changes, digest)
    assert (found and found.digest) == previous


def test_each_rollback_takes_one_change_back_from_any_clone(project: Paths, tmp_path: Path) -> None:
    train_another(project, 0.1, "register")
    for number in (2, 3):
        force_promotion(project, number)
    clone = workbench.copy_project(project, tmp_path / "clone")
    os.environ["MLFLOW_TRACKING_URI"] = location.get_store_address(project)
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
    set_alias(project, 2)
    workbench.change_settings(project, train={"seed": "x"})
    assert run_cli(project.root, "rollback", "--reason", "worse")[0] == 0
    assert list_moves(project) == [("first", None, 1), ("external", 1, 2), ("rollback", 2, 1)]
    assert list_changes(project)[-1].reason == "worse"
    project.params.write_text("{")
    assert run_cli(project.root, "rollback")[0] == 2


def test_a_champion_that_is_no_model_can_be_rolled_back(project: Paths) -> None:
    client(project).create_model_version(NAME, source=(project.root / "data").as_uri())
    set_alias(project, 3)
    with pytest.raises(TiplineError):
        workbench.run(project, "register")
    roll_back(project)
    assert get_champion(project) == 1
    workbench.run(project, "register")


def test_a_previous_champion_that_the_registry_has_lost_is_reported(project: Paths) -> None:
    force_promotion(project, 2)
    client(project).delete_model_version(NAME, "1")
    with pytest.raises(TiplineError, match="has lost the champion before version 2: version 1"):
        roll_back(project)


def test_a_version_made_in_mlflows_page_of_a_run_is_adopted(
    project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = workbench.copy_project(project, tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    digest = train_another(copy, 0.1, "register")
    monkeypatch.delenv("DVC_ROOT")
    experiment = client(project).get_experiment_by_name("tipline/train").experiment_id
    run = store.find_runs(experiment)[digest]
    uri = run.data.tags[runs.MODEL_URI]
    client(project).create_model_version(NAME, uri, run.info.run_id, model_id=uri.removeprefix("models:/"))
    set_alias(project, 3)
    workbench.run(project, "register")
    assert read_ref(project)["digest"] == artifact.read_digest(project.champion) == digest
    assert list_moves(project)[-1] == ("external", 1, 3)
