"""`tipline promote` asks the gate, and a version that it refuses becomes champion only with a reason on record."""

from __future__ import annotations

import getpass
import json
import os
import shutil
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests import test_foreign, workbench
from tests.test_registry import NAME, champion, client, train_another
from tipline import files
from tipline.commands import promote
from tipline.errors import UsageError
from tipline.model import artifact
from tipline.registry import model_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = [
    *workbench.MLFLOW_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*pickle.*"),
    pytest.mark.filterwarnings("ignore:.*Saving scikit-learn models.*"),
]


@pytest.fixture(scope="module")
def registered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path
) -> Paths:
    """A project whose champion is version 1, and whose challenger, version 2, is much worse."""
    paths = workbench.copy_project(workbench.scored(request), tmp_path_factory.mktemp("registered"))
    shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
    workbench.run(paths, "register")
    train_another(paths, 0.0001)
    workbench.run(paths, "register", "evaluate")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return paths


@pytest.fixture
def project(registered: Paths) -> Iterator[Paths]:
    """That project, as it was before what an earlier test did to it."""
    before = {path: path.read_bytes() for path in kept(registered)}
    client(registered).set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    for number in (1, 2):
        for name in {promote.FORCED, promote.BY, model_versions.VERDICT} & set(tags(registered, number)):
            client(registered).delete_model_version_tag(NAME, str(number), name)
    yield registered
    for path, data in before.items():
        path.write_bytes(data)


def kept(paths: Paths) -> list[Path]:
    """The files that a test may damage."""
    estimators = (paths.root / "mlartifacts").rglob("estimator.skops")
    return [paths.sample("test", "2009-03"), paths.evaluation, paths.champion_ref, paths.promotions, *estimators]


def tags(paths: Paths, number: int = 2) -> dict[str, str]:
    return dict(client(paths).get_model_version(NAME, str(number)).tags)


def test_a_worse_version_is_refused_with_the_reasons_and_what_overrules_them(project: Paths, run_cli: Run) -> None:
    code, printed = run_cli(project.root, "promote", "2")
    assert code == 3, printed
    assert "The gate refuses it: its gain over the champion may be as low as -" in printed
    assert "Judged on 2009-03; says nothing about months to come." in printed
    assert f"{NAME} version 2 against the champion, version 1" in printed
    assert 'tipline promote 2 --force "reason"' in printed
    assert champion(project) == 1
    assert not {promote.FORCED, promote.BY} & set(tags(project))


def test_force_is_recorded_with_who_and_what_the_gate_said(project: Paths, run_cli: Run) -> None:
    code, printed = run_cli(project.root, "promote", "2", "--force", "the owner wants it")
    assert code == 0, printed
    assert champion(project) == 2
    told = tags(project)
    assert told[promote.FORCED] == "the owner wants it"
    assert told[promote.BY] == getpass.getuser()
    assert told[model_versions.VERDICT].startswith("The gate refuses it: ")
    # Back again it passes: what was forced is the champion now, and the note of that stays with its version.
    code, printed = run_cli(project.root, "promote", "1")
    assert code == 0, printed
    assert champion(project) == 1
    assert tags(project, 1)[model_versions.VERDICT].startswith("The gate lets it pass. ")
    assert promote.FORCED not in tags(project, 1)
    assert promote.FORCED in tags(project)


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_empty_reason_is_a_usage_error(project: Paths, run_cli: Run, reason: str) -> None:
    code, printed = run_cli(project.root, "promote", "2", "--force", reason)
    assert code == 2
    assert "--force has no reason" in printed
    assert champion(project) == 1


def test_the_champion_needs_no_gate(project: Paths, run_cli: Run, caplog: pytest.LogCaptureFixture) -> None:
    code, printed = run_cli(project.root, "promote", "1")
    assert code == 0, printed
    assert "version 1 of tip-probability is the champion already" in caplog.text
    assert promote.BY not in tags(project, 1)


def test_without_a_champion_there_is_nothing_to_hold_it_against(project: Paths) -> None:
    client(project).delete_registered_model_alias(NAME, model_versions.CHAMPION)
    project.champion_ref.unlink()
    project.promotions.unlink()
    promote.run(workbench.load_settings(project), project, "2")
    assert champion(project) == 2
    assert tags(project)[model_versions.VERDICT] == "There was no other champion."


def test_without_the_alias_it_is_held_against_what_scores(project: Paths, run_cli: Run) -> None:
    client(project).delete_registered_model_alias(NAME, model_versions.CHAMPION)
    code, printed = run_cli(project.root, "promote", "2")
    assert code == 3, printed
    assert f"{NAME} version 2 against the champion, version 1" in printed


def test_a_champion_that_the_registry_has_lost_is_to_come_back_first(project: Paths, run_cli: Run) -> None:
    client(project).delete_registered_model_alias(NAME, model_versions.CHAMPION)
    digest = workbench.read_json(project.champion_ref)["digest"]
    project.promotions.write_text(project.promotions.read_text().replace(digest, "0" * 64))
    code, printed = run_cli(project.root, "promote", "2")
    assert code == 1, printed
    assert "Run: dvc repro register" in printed


def test_a_verdict_on_paper_does_not_promote_files_that_were_changed(project: Paths, run_cli: Run) -> None:
    write_report(project)
    for path in (project.root / "mlartifacts").rglob("estimator.skops"):
        path.write_bytes(path.read_bytes() + b"x")
    for command in (("promote", "2"), ("promote", "2", "--force", "whatever is in it")):
        code, printed = run_cli(project.root, *command)
        assert code == 1, printed
        assert "not those that were registered" in printed
    assert champion(project) == 1


def write_report(paths: Paths, **made: str) -> None:
    """Let the report say that the gate lets the challenger pass, and change what it was made of."""
    report = workbench.read_json(paths.evaluation)
    report["gate"] |= {"promote": True, "words": "As written."}
    files.write_json(paths.evaluation, report | {"made": report["made"] | made})


def test_the_verdict_of_evaluate_is_used_where_it_is_of_the_same_things(project: Paths) -> None:
    write_report(project)
    promote.run(workbench.load_settings(project), project, "2")
    assert champion(project) == 2
    assert tags(project)[model_versions.VERDICT] == "As written."


@pytest.mark.parametrize("what", ["challenger", "champion", "rows", "settings"])
def test_a_verdict_of_other_things_is_not_used(project: Paths, run_cli: Run, what: str) -> None:
    write_report(project, **{what: "0" * 64})
    code, printed = run_cli(project.root, "promote", "2")
    assert code == 3, printed
    assert "As written." not in printed


@pytest.mark.parametrize("damage", ["missing", "cut off", "of another schema", "report is no json"])
def test_what_cannot_be_read_fails_closed_and_can_be_overruled(project: Paths, run_cli: Run, damage: str) -> None:
    sample = project.sample("test", "2009-03")
    if damage == "missing":
        sample.unlink()
    elif damage == "cut off":
        sample.write_bytes(sample.read_bytes()[:5000])
    elif damage == "of another schema":
        pq.write_table(pq.read_table(sample).drop_columns("tip_amount"), sample)
    else:
        project.evaluation.write_text("{")
    code, printed = run_cli(project.root, "promote", "2")
    assert code == 3, printed
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert champion(project) == 1
    if damage == "missing":
        assert "dvc repro sample@2009-03" in printed
    code, printed = run_cli(project.root, "promote", "2", "--force", "we know")
    assert code == 0, printed
    assert champion(project) == 2
    assert tags(project)[model_versions.VERDICT].startswith("The gate refuses it: ")


def test_files_that_are_not_the_registered_ones_fail_closed(project: Paths, run_cli: Run) -> None:
    project.evaluation.write_text("{}")
    for path in kept(project)[4:]:
        path.write_bytes(path.read_bytes() + b" ")
    for command in (("promote", "2"), ("promote", "2", "--force", "whatever is in it")):
        code, printed = run_cli(project.root, *command)
        assert code == 1, printed
        assert "not those that were registered" in printed
    assert champion(project) == 1


def test_the_verdict_stands_where_models_are_compared(project: Paths) -> None:
    workbench.run(project, "evaluate", "record")
    report = workbench.read_json(project.evaluation)
    version = client(project).get_model_version(NAME, "2")
    run = client(project).get_run(version.run_id).data
    assert version.tags[model_versions.VERDICT] == report["gate"]["words"]
    for words in (version.description, run.tags["mlflow.note.content"]):
        assert report["gate"]["words"] in words
    assert run.metrics["gate.gain"] == pytest.approx(report["gate"]["gain"]["value"])
    assert run.metrics["gate.promote"] == 0
    assert report["made"]["challenger"] == artifact.read_digest(project.challenger)


def test_no_version_yet_is_a_usage_error(project: Paths) -> None:
    settings = workbench.load_settings(project)
    other = settings.model_copy(update={"register_": settings.register_.model_copy(update={"name": "other"})})
    with pytest.raises(UsageError, match="other has no versions yet"):
        promote.run(other, project, None)
    assert json.loads(project.champion_ref.read_text())["version"] == 1


def test_a_version_of_somebody_elses_passes_once_its_months_are_known(project: Paths, run_cli: Run) -> None:
    model = test_foreign.fitted(project)
    number = test_foreign.add_version(project, model, test_foreign.SIGNATURE, pyfunc_predict_fn="predict_proba")
    # The champion is the one that is much worse.
    promote.run(workbench.load_settings(project), project, "2", "test")
    code, printed = run_cli(project.root, "promote", str(number))
    assert code == 3, printed
    assert "which months the challenger was made on" in printed
    for months, words in (("2009-13", "'2009-13' is not a month"), ("2009-03", "no month is left to judge on")):
        client(project).set_model_version_tag(NAME, str(number), "tipline.months", months)
        code, printed = run_cli(project.root, "promote", str(number))
        assert code == 3, printed
        assert words in printed
    client(project).set_model_version_tag(NAME, str(number), "tipline.months", "2009-01, 2009-02")
    code, printed = run_cli(project.root, "promote", str(number))
    assert code == 0, printed
    assert champion(project) == number
