"""`tipline promote` asks the gate; a version that it refuses becomes champion only with a recorded reason."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import workbench
from tests.conftest import forget_store
from tests.test_external import SIGNATURE, add_version, fitted
from tests.test_registry import NAME, client, get_champion, list_changes, train_another
from tipline.commands import promote
from tipline.errors import UsageError
from tipline.paths import Paths
from tipline.registry import champion, model_versions

RunCli = Callable[..., tuple[int, str]]
pytestmark = [
    *workbench.MLFLOW_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*pickle.*"),
    pytest.mark.filterwarnings("ignore:.*Saving scikit-learn models.*"),
]

CODE = "def doubled(trips):\n    return trips.assign(extra=trips['extra'] * 2)\n"


@pytest.fixture(scope="module")
def registered(scored_template: Paths, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project whose champion is version 1, and whose challenger, version 2, is much worse."""
    paths = workbench.copy_with_store(scored_template, tmp_path_factory.mktemp("registered"))
    with forget_store():
        train_another(paths, 0.0001, "register", "evaluate")
    return paths


@pytest.fixture
def project(registered: Paths) -> Iterator[Paths]:
    """That project, put back afterwards."""
    connected = client(registered)
    before = {path: path.read_bytes() for path in list_files(registered)}
    kept = dict(connected.get_registered_model(NAME).tags)
    yield registered
    connected.set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    for version in model_versions.list_versions(connected, NAME)[:-2]:
        connected.delete_model_version(NAME, str(version.version))
    for key in set(connected.get_registered_model(NAME).tags) - set(kept):
        connected.delete_registered_model_tag(NAME, key)
    for path, data in before.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def list_files(paths: Paths) -> list[Path]:
    """The files that a test may damage."""
    estimators = sorted((paths.root / "mlartifacts").rglob("estimator.skops"))
    models = [path for folder in (paths.challenger, paths.champion) for path in folder.iterdir()]
    return [paths.params, paths.sample("test", "2009-03"), paths.evaluation, *models, *estimators]


def list_decisions(paths: Paths) -> list[champion.Decision]:
    return champion.list_records(client(paths), NAME, champion.DECISION, champion.Decision)


@pytest.mark.parametrize("arguments", [(), ("2",)])
def test_a_worse_version_is_refused_with_reasons_and_the_way_to_overrule(
    project: Paths, run_cli: RunCli, arguments: tuple[str, ...]
) -> None:
    code, printed = run_cli(project.root, "promote", *arguments)
    assert (code, get_champion(project)) == (3, 1)
    for words in ("refuses", "2009-03", f"{NAME} version 2 against the champion, version 1"):
        assert words in printed
    assert 'tipline promote 2 --force "reason"' in printed
    assert [change.how for change in list_changes(project)] == ["first"]


def test_force_is_recorded_and_the_way_back_passes_the_gate(project: Paths, run_cli: RunCli) -> None:
    assert run_cli(project.root, "promote", "2", "--force", "the owner wants it")[0] == 0
    assert get_champion(project) == 2
    assert "refuses" in client(project).get_model_version(NAME, "2").tags[model_versions.VERDICT]
    code, printed = run_cli(project.root, "promote", "1")
    assert (code, get_champion(project)) == (0, 1), printed
    changes = list_changes(project)
    assert [change.reason for change in changes[1:]] == ["the owner wants it", None]
    words = client(project).get_model_version(NAME, "1").tags[model_versions.VERDICT]
    assert changes[-1].verdict == words
    assert "These test months have been used for 1 decision before (1 refused). After 2 decisions the chance" in words
    assert words.endswith("worse by the tolerance passes is up to 10%.")


def test_a_decision_is_counted_once_however_often_it_is_asked_for(project: Paths, run_cli: RunCli) -> None:
    for arguments in ((), (), ("--force", "test")):
        _, printed = run_cli(project.root, "promote", "2", *arguments)
        assert "These test months have been used" not in printed
    first, second = (model_versions.get_digest(client(project).get_model_version(NAME, one)) for one in "12")
    refused = champion.Decision(months=("2009-03",), challenger=second, champion=first, promote=False)
    assert list_decisions(project) == [refused]
    client(project).set_registered_model_tag(NAME, f"{champion.DECISION}2020", "edited")
    other = refused.model_copy(update={"months": ("2009-04",), "champion": "a"})
    assert champion.count_decisions(client(project), NAME, other) == (0, 0)
    third = refused.model_copy(update={"months": ("2009-03", "2009-04"), "champion": "b", "promote": True})
    assert champion.count_decisions(client(project), NAME, third) == (2, 2)
    assert champion.count_decisions(client(project), NAME, refused) == (1, 0)
    assert list_decisions(project) == [refused, other, third]


def test_a_version_has_to_pass_against_the_best_champion_so_far(project: Paths, run_cli: RunCli) -> None:
    best = model_versions.read_files(client(project).get_model_version(NAME, "1"))
    assert run_cli(project.root, "promote", "2", "--force", "a step back")[0] == 0
    train_another(project, 0.001, "register")  # better than version 2, worse than version 1
    number = str(model_versions.list_versions(client(project), NAME)[0].version)
    code, printed = run_cli(project.root, "promote", number)
    assert (code, get_champion(project)) == (3, 2), printed
    assert "it may be worse than version 1, the best champion so far: its gain may be as low as -" in printed
    assert [decision.promote for decision in list_decisions(project)] == [False, False]
    for path in (project.root / "mlartifacts").rglob("estimator.skops"):
        if path.read_bytes() == best["estimator.skops"]:
            path.write_bytes(b"lost")
    code, printed = run_cli(project.root, "promote", number)
    assert (code, get_champion(project)) == (0, int(number)), printed


@pytest.mark.parametrize("arguments", [("2", "--force", ""), ("2", "--force", "  "), ("",), ("nobody",)])
def test_what_names_nothing_is_a_usage_error(project: Paths, run_cli: RunCli, arguments: tuple[str, ...]) -> None:
    assert run_cli(project.root, "promote", *arguments)[0] == 2
    assert get_champion(project) == 1


@pytest.mark.parametrize("number", ["3", "0", "-1"])
def test_a_version_that_does_not_exist_is_refused_with_those_that_do(
    project: Paths, run_cli: RunCli, number: str
) -> None:
    code, printed = run_cli(project.root, "promote", "--", number)
    assert code == 2, printed
    assert f"no version {number}. Versions: 2, 1." in printed


def test_a_name_of_two_runs_is_a_usage_error(project: Paths) -> None:
    experiment = client(project).get_experiment_by_name("tipline/train").experiment_id
    for run in client(project).search_runs([experiment]):
        client(project).set_tag(run.info.run_id, "dvc.exp", "twice")
    with pytest.raises(UsageError, match="runs with a model are called 'twice'"):
        promote.run(workbench.load_settings(project), project, "twice")


def test_the_default_is_the_model_in_models_challenger(project: Paths, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(project.champion, project.challenger, dirs_exist_ok=True)  # the workspace trained version 1 last
    promote.run(workbench.load_settings(project), project)
    assert "version 1 of tip-probability is the champion already" in caplog.text
    (project.challenger / workbench.CODE).write_text("not registered")
    with pytest.raises(UsageError, match="models/challenger is not registered yet"):
        promote.run(workbench.load_settings(project), project)


@pytest.mark.parametrize("arguments", [(), ("2",)])
def test_a_training_that_failed_does_not_stop_a_promotion(
    project: Paths, run_cli: RunCli, arguments: tuple[str, ...]
) -> None:
    shutil.rmtree(project.challenger)
    code, printed = run_cli(project.root, "promote", *arguments, "--force", "test")
    assert (code, get_champion(project)) == (0, 2), printed


@pytest.mark.parametrize("damage", ["missing", "cut off", "other columns"])
def test_what_cannot_be_read_is_a_refusal_that_can_be_overruled(project: Paths, run_cli: RunCli, damage: str) -> None:
    sample = project.sample("test", "2009-03")
    if damage == "missing":
        sample.unlink()
    elif damage == "cut off":
        sample.write_bytes(sample.read_bytes()[:5000])
    else:
        pq.write_table(pq.read_table(sample).drop_columns("tip_amount"), sample)
    code, printed = run_cli(project.root, "promote", "2")
    assert (code, get_champion(project), "defect" in printed) == (3, 1, False), printed
    code, printed = run_cli(project.root, "promote", "2", "--force", "we know")
    assert (code, get_champion(project)) == (0, 2), printed


def test_an_empty_registry_says_what_to_run(trained_project: Paths) -> None:
    for number in (None, "1"):
        with pytest.raises(UsageError, match="dvc repro register"):
            promote.run(workbench.load_settings(trained_project), trained_project, number)


def test_code_that_the_project_does_not_have_is_shown_and_has_to_be_trusted(
    registered_project: Paths, run_cli: RunCli, caplog: pytest.LogCaptureFixture
) -> None:
    project, file = registered_project, registered_project.root / "features.py"
    before = file.read_bytes()
    file.write_text(CODE)
    workbench.change_settings(project, model={"features": "doubled"})
    workbench.run(project, "train", "register")
    workbench.change_settings(project, model={"features": None})

    def assert_promoted(*option: str) -> None:
        client(project).set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
        code, printed = run_cli(project.root, "promote", "2", *option)
        assert (code, get_champion(project)) == (0, 2), printed

    assert_promoted()  # the workspace has the code
    for command in ("init -q", "add features.py", "-c user.name=a -c user.email=a commit -qm code"):
        subprocess.run(["git", *command.split()], cwd=project.root, check=True)  # noqa: S607
    file.write_bytes(before)
    assert_promoted()  # git has it
    shutil.rmtree(project.root / ".git")
    client(project).set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    for reason in ([], ["--force", "test"]):
        caplog.clear()
        code, printed = run_cli(project.root, "promote", "2", *reason)
        assert (code, get_champion(project)) == (2, 1), printed
        assert f"features.py of {NAME} version 2:\n{CODE}" in caplog.text
        assert "carries code that this project does not have: features.py" in printed
        assert "Read it, above. If it may run here and on the workers: tipline promote 2 --trust-code" in printed
    assert_promoted("--trust-code")
    workbench.run(project, "register")
    assert (project.champion / "features.py").read_text() == CODE


def test_an_external_version_passes_once_its_months_are_known_and_without_a_challenger(
    project: Paths, run_cli: RunCli
) -> None:
    promote.run(workbench.load_settings(project), project, "2", "test")  # the one that is much worse
    shutil.rmtree(project.challenger)
    model = fitted(project)
    number = str(add_version(project, model, SIGNATURE, pyfunc_predict_fn="predict_proba"))
    for months, words in ((None, "tipline.months"), ("2009-13", "'2009-13' is not a month"), ("2009-03", "2009-03")):
        if months:
            client(project).set_model_version_tag(NAME, number, "tipline.months", months)
        code, printed = run_cli(project.root, "promote", number)
        assert code == 3, printed
        assert words in printed
    client(project).set_model_version_tag(NAME, number, "tipline.months", "2009-01, 2009-02")
    workbench.change_settings(project, evaluate={"tolerance": 0.5})  # version 1, a champion before, is better
    code, printed = run_cli(project.root, "promote", number)
    assert (code, get_champion(project)) == (0, int(number)), printed
