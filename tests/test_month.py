"""`tipline month`: from a month's publication to what is to be committed, with the real `dvc repro`."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import stories, workbench
from tests.conftest import ROOT
from tipline.commands import month
from tipline.errors import UsageError

pytestmark = pytest.mark.in_order
MONTHS, NEW = stories.MONTHS, "2009-04"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> stories.Story:
    """A project after its first `dvc repro`, in git with a remote, with a DVC remote."""
    project = stories.copy_first(tmp_path_factory, tmp_path_factory.mktemp("month") / "project")
    settings = project.root / "params.yaml"
    text = settings.read_text().replace("notify: null", "notify: cat >> ../events.jsonl")
    settings.write_text("# a comment\n" + text)
    for command in (
        "git init --quiet --bare ../origin.git",
        "git config user.name t",
        "git config user.email t@localhost",
        "git remote add origin ../origin.git",
        "dvc remote add --default kept ../remote",
        "git commit --quiet --all -m comment",
        "git push --quiet --set-upstream origin HEAD",
    ):
        assert project.run(*command.split()).returncode == 0
    return project


def read_months(root: Path) -> list[str]:
    return sorted(path.parent.name.removeprefix("month=") for path in root.glob("data/predictions/*/_manifest.json"))


def test_a_month_that_is_not_published_ends_with_5_and_changes_nothing(project: stories.Story) -> None:
    done = project.run("tipline", "month", "2010-01")
    assert done.returncode == 5
    assert "Running stage" not in done.stdout
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_the_next_command_waits_for_what_a_killed_one_has_left_running(project: stories.Story) -> None:
    with workbench.running("tipline", "month", NEW, folder=project.root) as process:
        workbench.wait_for((project.root / f"data/raw/{NEW}.json").exists)
        process.kill()  # and not its DVC
        process.wait()
        done = project.run("tipline", "month", NEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for the `dvc repro` of another `tipline month` to end" in done.stderr
    assert done.stdout.startswith(f"{NEW} is in params.yaml\n")
    assert read_months(project.root) == [*MONTHS, NEW]


def test_a_second_run_runs_nothing_and_its_commands_commit_and_push_all(project: stories.Story) -> None:
    done = project.run("tipline", "month", NEW)
    assert re.findall(r"Running stage '(.+?)'", done.stdout) == ["register"]
    entry = json.loads((project.root / "reports/monitoring/months.json").read_text())[-1]
    assert f"last month  {NEW}: 5,000 rows, " in done.stdout
    assert f"verdict     {entry['verdict']}: {entry['reason']}\n" in done.stdout
    changed = project.run("git", "diff", "params.yaml").stdout.splitlines()
    assert [line for line in changed if re.match(r"[-+](?!--|\+\+)", line)] == [f"+- {NEW}"]
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith(("  git", "  dvc"))]
    assert commands == ["git add params.yaml dvc.lock", f'git commit -m "Score {NEW}"', "git push", "dvc push"]
    for command in commands:
        assert project.run("sh", "-c", command).returncode == 0


def test_a_month_that_cannot_be_prepared_says_how_to_resume(project: stories.Story) -> None:
    shutil.rmtree(project.root / "data/.staging/trips")
    (project.root / "data/.staging/trips").write_text("a file is in the way")
    for words in ("2009-05 is published", "2009-05 is in params.yaml"):
        done = project.run("tipline", "month", "next")
        assert done.returncode == 1
        assert done.stdout.startswith(words)
        assert done.stderr.rstrip().endswith("then resume: tipline month 2009-05")
        assert "Traceback" not in done.stdout + done.stderr
    assert read_months(project.root) == [*MONTHS, NEW]
    events = [json.loads(line) for line in (project.root / "../events.jsonl").read_text().splitlines()]
    told = [(event["kind"], event.get("month") or event["command"]) for event in events]
    # The reason of the stage, and not also that `dvc repro` failed.
    assert {*told} == {("published", NEW), ("verdict", NEW), ("failure", "prepare")}
    assert told.count(("published", NEW)) == told.count(("verdict", NEW)) == 1


@pytest.mark.parametrize("words", [("other", "repro"), ("dvc", "repro")])
def test_a_lock_of_dvc_is_removed_unless_dvc_holds_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE) as process:
        for text, is_held in ((f'{{"read": {{}}, "write": {{"a": {{"pid": {process.pid}, ', True), ('{"read', False)):
            lock.write_text(text)  # cut off by a kill
            month.remove_stale_lock(tmp_path)
            assert lock.exists() == (is_held and words[0] == "dvc")
        process.communicate(b"\n")


# ---- params.yaml ----


@pytest.mark.parametrize("name", ["2009-06", "2008-12", "2024-02"])
def test_the_line_of_a_month_is_all_that_changes(name: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    line = re.compile(rf"^ *- {name}\n", re.MULTILINE)
    without = line.sub("", text, count=1)
    changed = month.insert_month(without, name, "params.yaml")
    assert line.sub("", changed, count=1) == without
    assert yaml.safe_load(changed)["months"] == sorted({*yaml.safe_load(text)["months"], name})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("months:\n- '2009-01' # first\n- '2009-03'\n", "months:\n- '2009-01' # first\n- '2009-02'\n- '2009-03'\n"),
        ("a:\n- 1\nmonths:\n    - 2009-01\n\n# b\n", "a:\n- 1\nmonths:\n    - 2009-01\n    - 2009-02\n\n# b\n"),
        ("months:\r\n  - '2009-01'\r\n", "months:\r\n  - '2009-01'\r\n  - '2009-02'\r\n"),
        ('months:\n  - "2009-01"', 'months:\n  - "2009-01"\n  - "2009-02"'),
    ],
)
def test_a_line_is_written_like_its_neighbour(text: str, expected: str) -> None:
    assert month.insert_month(text, "2009-02", "params.yaml") == expected


@pytest.mark.parametrize(
    "text",
    [
        'months:\n  ["2009-01",\n   "2009-03"]\n',
        'months:\n  -\n    "2009-01"\n  - "2009-03"\n',
        'a: &a\n  - "2009-01"\nmonths: *a\n',
    ],
)
def test_a_list_in_another_form_is_left_alone(text: str) -> None:
    with pytest.raises(UsageError, match='as - "2009-02"'):
        month.insert_month(text, "2009-02", "params.yaml")
