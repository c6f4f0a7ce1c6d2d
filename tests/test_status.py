"""`tipline status`: where the project stands, and each problem with the command that fixes it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import yaml

from tests import servers, workbench
from tests.conftest import ROOT
from tests.test_registry import client as connect
from tests.test_registry import train_another
from tipline import files
from tipline.commands import promote
from tipline.errors import GateRefusedError
from tipline.model import artifact, pyfunc
from tipline.paths import Paths
from tipline.registry import model_versions

Run = Callable[..., tuple[int, str]]
pytestmark = workbench.MLFLOW_WARNINGS
NAME, MONTH = "tip-probability", "2009-02"
REGISTER = "dvc repro register", "register"


class Printed(NamedTuple):
    code: int
    lines: dict[str, str]  # by name
    wrong: list[str]
    output: str


@pytest.fixture
def complete(registered_project: Paths) -> Paths:
    """A project in which all stages have run and whose model is registered."""
    return registered_project


@pytest.fixture
def show_status(run_cli: Run) -> Callable[[Paths], Printed]:
    def run(paths: Paths) -> Printed:
        code, output = run_cli(paths.root, "status")
        pairs = [(line[:12].strip(), line[12:]) for line in output.splitlines() if not line.startswith(" ")]
        assert "Traceback" not in output
        return Printed(code, dict(pairs), [text for name, text in pairs if name == "wrong"], output)

    return run


def set_gate(paths: Paths, **values: Any) -> None:
    report = workbench.read_json(paths.evaluation)
    files.write_json(paths.evaluation, report | {"gate": report["gate"] | values})


# ---- where the project stands ----


def test_before_anything_ran_nothing_is_wrong(make_project: Callable[..., Paths], show_status: Any) -> None:
    paths = make_project()
    printed = show_status(paths)
    assert printed.code == 0
    nothing = dict.fromkeys(("champion", "challenger", "evaluation", "last month"), "none yet")
    assert printed.lines.items() >= (nothing | {"next": "dvc repro", "checks": "all passed"}).items()
    assert printed.lines["unscored"] == ", ".join(workbench.MONTHS)
    assert not (paths.root / "mlflow.db").exists()


def test_all_is_done_and_then_months_are_to_be_scored(complete: Paths, show_status: Any) -> None:
    printed = show_status(complete)
    assert (printed.code, len(printed.output.splitlines())) == (0, 12)
    name = workbench.read_json(complete.champion / artifact.TRAINING)["name"]
    assert printed.lines["champion"] == f"version 1: {name}"
    assert printed.lines["challenger"] == "the champion"
    assert printed.lines["months"] == "4, 4 scored with models/champion"
    assert printed.lines["unscored"] == "-"
    report = workbench.read_json(complete.evaluation)
    assert (printed.lines["evaluation"], printed.lines["gate"]) == (report["verdict"], report["gate"]["words"])
    last = workbench.read_json(complete.monitoring / "months.json")[-1]
    figures = f"2024-01: 5,000 rows, mean probability {last['mean_probability']:.4f}"
    assert printed.lines["last month"].startswith(figures)
    assert (printed.lines["next"], printed.lines["checks"]) == ("nothing", "all passed")
    # Only what is used is imported.
    unused = {"sklearn", "matplotlib", "dask", "distributed", "dvc", "aiohttp", "mlflow.pyfunc"}
    code = f"import sys; from tipline import cli; sys.exit(cli.main(['status']) or bool({unused} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=complete.root, check=False).returncode == 0
    # Months to score, and a champion that tipline did not make.
    shutil.rmtree(complete.predictions / f"month={MONTH}")
    workbench.change_settings(complete, months=[*workbench.MONTHS, "2024-02"])
    client, folder = connect(complete), (complete.root / "mlartifacts").as_uri()
    printed = show_status(complete)
    assert printed.lines["unscored"] == f"{MONTH}, 2024-02"
    assert printed.lines["months"] == "5, 3 scored with models/champion"
    assert printed.lines["next"] == "dvc repro (2 months to score)"
    assert not printed.wrong
    client.set_registered_model_alias(NAME, "champion", client.create_model_version(NAME, source=folder).version)
    assert show_status(complete).lines["champion"] == "version 2"


def test_the_advice_after_training_works_as_typed_until_nothing_is_left(complete: Paths, show_status: Any) -> None:
    """Neither the champion nor, if a version is pinned, any version is to be promoted."""
    train_another(complete, 0.01)
    printed = show_status(complete)
    assert printed.lines["challenger"].startswith("not registered: ")
    assert printed.lines["next"] == "dvc repro (reports are missing or out of date)"
    workbench.run(complete, "register", "evaluate")
    assert show_status(complete).lines["challenger"].startswith("version 2: ")
    set_gate(complete, promote=True)
    assert show_status(complete).lines["next"].startswith("tipline promote 2 (")
    set_gate(complete, promote=False)
    assert not show_status(complete).lines["next"].startswith("tipline promote")
    with pytest.raises(GateRefusedError):  # the report was made up
        promote.run(workbench.load_settings(complete), complete, "2")
    promote.run(workbench.load_settings(complete), complete, "2", "test")
    printed = show_status(complete)
    assert (printed.lines["champion"], printed.lines["challenger"]) == ("version 2", "the champion")
    assert printed.lines["next"] == "dvc repro (the champion is version 2, version 1 scored the months)"
    assert not printed.wrong
    workbench.change_settings(complete, score={"model": 1})
    assert show_status(complete).lines["next"] == "nothing"
    # The newest version need not be the challenger, and the report need not be about the champion of now.
    promote.run(workbench.load_settings(complete), complete, "1", "test")
    train_another(complete, 1.0)
    workbench.run(complete, "register", "evaluate")
    assert len(model_versions.list_versions(connect(complete), NAME)) == 2
    for promotes in (False, True):
        set_gate(complete, promote=promotes)
        printed = show_status(complete)
        assert (printed.lines["challenger"], printed.lines["next"]) == ("the champion", "nothing")


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("months", "words"),
    [("2009-01", "months has to be a list with one value per line"), (["2009-13"], "'2009-13' is not a month")],
)
def test_an_invalid_file_hides_nothing_else(complete: Paths, show_status: Any, months: Any, words: str) -> None:
    values = yaml.safe_load(complete.params.read_text())
    complete.params.write_text(yaml.safe_dump(values | {"months": months}))
    printed = show_status(complete)
    assert printed.code == 1
    assert words in printed.wrong[0]
    assert printed.lines["champion"].startswith("version 1: ")
    assert printed.lines["next"] == printed.wrong[0].partition("Fix: ")[2]


def test_a_store_that_does_not_answer_hides_nothing_else(
    complete: Paths, show_status: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://person:geheim@127.0.0.1:{servers.free_port()}")
    shutil.rmtree(complete.challenger)
    printed = show_status(complete)
    assert printed.code == 1
    assert printed.lines["champion"] == "version 1, according to models/champion"
    assert printed.lines["months"] == "4, 4 scored with models/champion"
    assert "cannot be reached" in printed.wrong[0]
    assert (printed.lines["challenger"], len(printed.wrong)) == ("none yet", 1)
    assert "geheim" not in printed.output


@pytest.mark.usefixtures("_on_cluster")
@pytest.mark.parametrize(
    ("damage", "words", "fix", "stage"),
    [
        (lambda paths: connect(paths).delete_registered_model_alias(NAME, "champion"), "no champion", *REGISTER),
        (lambda paths: (paths.champion / pyfunc.SPEC).unlink(), "models/champion/", *REGISTER),
        (lambda paths: (paths.champion / pyfunc.SPEC).write_text("{}"), "other files", *REGISTER),
    ],
)
def test_damage_and_its_fix(
    complete: Paths, show_status: Any, damage: Callable[[Paths], Any], words: str, fix: str, stage: str
) -> None:
    damage(complete)
    printed = show_status(complete)
    (wrong,) = printed.wrong
    assert words in wrong
    assert wrong.partition("Fix: ")[2] == printed.lines["next"] == fix
    workbench.run(complete, stage)
    assert not show_status(complete).wrong


def test_a_month_that_lost_more_than_the_others_is_wrong_unless_it_is_accepted(
    complete: Paths, show_status: Any
) -> None:
    path = complete.prepared(MONTH) / files.MANIFEST
    files.write_json(path, workbench.read_json(path) | {"quarantined": 200, "filled": {"extra": 3000}})
    (wrong,) = show_status(complete).wrong
    assert f"{MONTH} has 4.0% quarantined rows, " in wrong
    assert wrong.endswith(f"% filled values of extra. Fix: tipline check data/raw/{MONTH} {MONTH}")
    workbench.change_settings(complete, prepare={"accept": {MONTH: "the meter was broken"}})
    assert not show_status(complete).wrong


def test_a_merge_conflict_in_the_lock_file(complete: Paths, show_status: Any) -> None:
    lock, text = complete.root / "dvc.lock", (ROOT / "dvc.lock").read_text()
    lock.write_text(text)
    assert not show_status(complete).wrong
    lock.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n")
    printed = show_status(complete)
    fix = "git checkout --ours dvc.lock && dvc repro"
    assert printed.wrong == [f"dvc.lock has the markers of a merge conflict. Fix: {fix}"]
    assert printed.lines["next"] == fix
