"""`tipline month`: from a month's publication to what is to be committed, with the real `dvc repro`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests import mirror, workbench
from tests.conftest import ROOT, missing
from tipline.commands import month
from tipline.errors import NotPublishedError, UsageError
from tipline.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.story import Story

    Done = subprocess.CompletedProcess[str]

MONTHS = mirror.MONTHS
NEW, NEVER = "2009-04", "2010-01"
COMMENT = "# a comment of ours\n"
DOCS = ROOT / "docs/monthly.md"


@dataclass
class Life:
    """A project, and what each command in it has said."""

    story: Story
    told: dict[str, Done] = field(default_factory=dict)
    scored: dict[str, dict[str, str]] = field(default_factory=dict)
    killed: str = ""
    committed: list[str] = field(default_factory=list)

    def run(self, step: str, *command: str) -> Done:
        """Run a command and keep what it said, and the manifests of the predictions after it."""
        self.told[step] = done = self.story.run(*command)
        self.scored[step] = {
            path.parent.name.removeprefix("month="): path.read_text()
            for path in self.story.root.glob("data/predictions/month=*/_manifest.json")
        }
        return done


def begun(request: pytest.FixtureRequest, folder: Path) -> Life:
    """A project in a git with a remote, with a DVC remote."""
    lived = Life(mirror.lived(request, folder / "project"))
    settings = lived.story.root / "params.yaml"
    settings.write_text(COMMENT + settings.read_text())
    (folder / "remote").mkdir()
    for command in (
        "git init --quiet --bare ../origin.git",
        "git config user.name t",
        "git config user.email t@localhost",
        "git remote add origin ../origin.git",
        "dvc remote add --default kept ../remote",
        "git commit --quiet --all -m begin",
        "git push --quiet --set-upstream origin HEAD",
    ):
        done = lived.story.run(*command.split())
        assert done.returncode == 0, done.stderr
    return lived


@pytest.fixture(scope="module")
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A month of a project's life, which begins with a kill."""
    lived = begun(request, tmp_path_factory.mktemp("life"))
    lived.run("not published", "tipline", "month", NEVER)
    lived.run("unchanged", "git", "status", "--porcelain")
    lived.killed = kill_in_the_middle(lived)
    lived.run("gone on", "tipline", "month", NEW)
    lived.run("again", "tipline", "month", NEW)
    lived.run("diff", "git", "diff", "params.yaml")
    for command in commands(lived.told["again"].stdout.splitlines()):
        lived.run(command, "sh", "-c", command)
    lived.committed = list(month.to_commit(Paths(lived.story.root), NEW))
    return lived


def commands(lines: Sequence[str]) -> list[str]:
    """The commands that a run told to type."""
    return [line.strip() for line in lines if line.startswith(("  git", "  dvc"))]


def kill_in_the_middle(lived: Life) -> str:
    """Kill the command and all that it started once its month is fetched; return what it had printed."""
    command = [str(Path(sys.executable).with_name("tipline")), "month", NEW]
    printed = lived.story.root.parent / "printed"
    with (
        printed.open("wb") as out,
        subprocess.Popen(command, cwd=lived.story.root, start_new_session=True, stdout=out) as process,
    ):
        workbench.wait_for((lived.story.root / f"data/raw/{NEW}.json").exists)
        os.killpg(process.pid, signal.SIGKILL)
    return printed.read_text()


def test_a_month_that_is_not_published_ends_with_5_and_changes_nothing(life: Life) -> None:
    done = life.told["not published"]
    assert done.returncode == 5, done.stdout + done.stderr
    assert "Running stage" not in done.stdout
    assert life.told["unchanged"].stdout == ""
    assert set(life.scored["not published"]) == set(MONTHS)


def test_a_run_that_was_killed_is_gone_on_with(life: Life) -> None:
    assert life.killed.startswith(f"{NEW} is published, and in params.yaml now\n")
    done = life.told["gone on"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{NEW} is in params.yaml\n")
    assert set(life.scored["gone on"]) == {*MONTHS, NEW}


def test_the_month_is_judged_in_one_line(life: Life) -> None:
    judged = next(one for one in months_json(life.story.root) if one["month"] == NEW)
    (line,) = (line for line in life.told["gone on"].stdout.splitlines() if line.startswith(f"{NEW}: 2,000 rows"))
    assert re.match(rf"{NEW}: 2,000 rows, skill -?0\.\d{{4}}, {judged['verdict']}: \S", line)


def months_json(root: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((root / "reports/monitoring/months.json").read_text())
    return found


def test_the_months_line_is_all_that_changes_in_params(life: Life) -> None:
    changed = [line for line in life.told["diff"].stdout.splitlines() if re.match(r"[-+](?!--|\+\+)", line)]
    assert changed == [f"+- {NEW}"]


def test_a_second_run_says_the_same(life: Life) -> None:
    first, second = (life.told[step].stdout.splitlines() for step in ("gone on", "again"))
    end = next(number for number, line in enumerate(first) if line.startswith(f"{NEW}: 2,000 rows"))
    assert second[0] == first[0]
    assert second[second.index(first[end]) :] == first[end:]
    assert life.scored["again"] == life.scored["gone on"]


def test_the_commands_that_it_prints_commit_and_push_all(life: Life) -> None:
    told = commands(life.told["again"].stdout.splitlines())
    assert told == [
        "git add params.yaml dvc.lock",
        f'git commit -m "Score {NEW}"',
        "git push",
        "dvc push",
    ]
    assert {command: life.told[command].returncode for command in told} == dict.fromkeys(told, 0)
    assert life.committed == ["nothing to commit", "  git push", "  dvc push"]


def test_a_month_that_cannot_be_prepared_is_told_with_the_way_on(life: Life, tmp_path: Path) -> None:
    settings, other = life.story.root / "params.yaml", "2009-05"
    shutil.copyfile(settings, tmp_path / "params.yaml")
    in_the_way = life.story.root / f"data/trips/month={other}"
    in_the_way.write_text("a file")
    done = life.run("failed", "tipline", "month", other)
    shutil.copyfile(tmp_path / "params.yaml", settings)
    in_the_way.unlink()
    assert done.returncode == 1
    assert f"month={other}" in done.stdout + done.stderr
    assert done.stderr.rstrip().endswith(f"Mend it, then go on: tipline month {other}")
    assert "Traceback" not in done.stdout + done.stderr
    assert life.scored["failed"] == life.scored["again"]


@pytest.mark.parametrize("library", ["duckdb", "pandas", "dask"])
def test_the_page_shows_how_predictions_are_read(life: Life, library: str) -> None:
    if find_spec(library) is None:
        missing(f"{library} is not installed")
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    code = next(block for block in blocks if block.startswith(f"import {library}"))
    script = code + "\nprint(len(joined), float(joined['tip_probability'].mean()), joined['month'].nunique())\n"
    done = life.story.run(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    rows, mean, months = done.stdout.split()[-3:]
    manifests = life.scored["again"].values()
    assert int(rows) == sum(json.loads(manifest)["rows"] for manifest in manifests) == 2000 * 4
    assert 0 < float(mean) < 1
    assert int(months) == 4


# ---- without DVC ----


@pytest.mark.parametrize("name", ["2009-06", "2008-12", "2024-02", "2009-01"])
def test_a_months_line_goes_to_its_place_and_keeps_all_else(name: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    months = yaml.safe_load(text)["months"]
    line = re.compile(rf"""^ *- ["']?{name}["']?\n""", re.MULTILINE)
    without = line.sub("", text, count=1)
    changed = month.with_month(without, name, "params.yaml")
    assert line.sub("", changed, count=1) == without
    assert yaml.safe_load(changed)["months"] == sorted({*months, name})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("months:\n- '2009-01' # first\n- '2009-03'\n", "months:\n- '2009-01' # first\n- '2009-02'\n- '2009-03'\n"),
        ("a: 1\nmonths:\n    - 2009-01\n\n# b\nb: 2\n", "a: 1\nmonths:\n    - 2009-01\n    - 2009-02\n\n# b\nb: 2\n"),
        ("months:\r\n  - '2009-01'\r\n", "months:\r\n  - '2009-01'\r\n  - '2009-02'\r\n"),
        ('months:\n  - "2009-01"', 'months:\n  - "2009-01"\n  - "2009-02"\n'),
        ('months:\n  - "2009-05"\n', 'months:\n  - "2009-02"\n  - "2009-05"\n'),
    ],
)
def test_a_line_is_written_as_its_neighbour_is(text: str, expected: str) -> None:
    assert month.with_month(text, "2009-02", "params.yaml") == expected


@pytest.mark.parametrize(
    "text",
    [
        'months: ["2009-01", "2009-03"]\n',
        'months:\n  ["2009-01",\n   "2009-03"]\n',
        'months:\n  -\n    "2009-01"\n  - "2009-03"\n',
        'a: &a\n  - "2009-01"\nmonths: *a\n',
    ],
)
def test_a_list_in_another_form_is_left_alone_and_the_line_told(text: str) -> None:
    with pytest.raises(UsageError, match='as - "2009-02"'):
        month.with_month(text, "2009-02", "params.yaml")


def test_a_simulated_month_that_there_is_not_is_not_published(make_project: Callable[..., Paths]) -> None:
    paths = make_project(months=MONTHS)
    before = paths.params.read_bytes()
    with pytest.raises(NotPublishedError):
        list(month.run(workbench.load_settings(paths), paths, "2010-01"))
    assert paths.params.read_bytes() == before


def test_without_git_nothing_is_to_be_committed(make_project: Callable[..., Paths]) -> None:
    assert list(month.to_commit(make_project(), NEW)) == ["no git here: nothing to commit"]


def made(folder: Path, *arguments: str) -> Done:
    """Run make in a folder, with the project's Makefile, as if the environment were set up."""
    if shutil.which("make") is None:
        missing("no make")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_make_month_without_a_month_says_how_to_call_it(tmp_path: Path) -> None:
    done = made(tmp_path, "month")
    assert done.returncode == 2
    assert "make month M=2009-06" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_make_month_passes_on_what_the_command_says(make_project: Callable[..., Paths]) -> None:
    done = made(make_project().root, "month", "M=2010-01")
    assert done.returncode == 2  # make's own answer to whatever fails
    assert "2010-01" in done.stderr
    assert "Error 5" in done.stderr
