"""Events of `notify`: one for each thing that happened, at least once, and nothing of it disturbs the pipeline."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import workbench
from tipline.commands import notify
from tipline.paths import Paths

RunCli = Callable[..., tuple[int, str]]
pytestmark = [*workbench.MLFLOW_WARNINGS, pytest.mark.usefixtures("_on_cluster")]
RECEIVE = "cat >> events.jsonl"


def read_events(paths: Paths) -> list[dict[str, Any]]:
    path = paths.root / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def remove_month(paths: Paths, month: str) -> None:
    shutil.rmtree(paths.predictions / f"month={month}")


def test_what_happens_is_told_once(scored_project: Paths, run_cli: RunCli) -> None:
    paths = scored_project
    workbench.run(paths, "register")
    workbench.change_settings(paths, train={"params": {"C": 0.001}}, notify=RECEIVE)
    workbench.run(paths, "train")
    remove_month(paths, "2009-02")
    steps = [("register",), ("promote", "--force", "try it"), ("register",), ("score",), ("monitor",), ("rollback",)]
    steps += [("register",), ("score",), ("monitor",), ("record",)]
    told = list[list[tuple[Any, ...]]]()
    for step in steps:
        before = len(read_events(paths))
        code, printed = run_cli(paths.root, *step)
        assert code == 0, printed
        told.append([(one["kind"], one.get("month") or one.get("how")) for one in read_events(paths)[before:]])
    scored = [("published", month) for month in workbench.MONTHS]
    assert [sorted(one) for one in told[:4]] == [[], [("champion", "promote")], [], scored]
    assert [sorted(told[place]) for place in (5, 6, 7, 9)] == [[("champion", "rollback")], [], scored, []]
    events = read_events(paths)
    assert len({one["id"] for one in events}) == len(events)  # the model that came back is no repeat
    published = next(one for one in events if one["kind"] == "published")
    manifest = workbench.read_json(paths.predictions / "month=2009-01/_manifest.json")
    assert (published["rows"], published["digest"] != manifest["key"]["model"]) == (manifest["rows"], True)
    assert published["text"] == "2009-01: 5,000 rows scored with tip-probability version 2"
    changed = next(one for one in events if one.get("how") == "promote")
    assert (changed["from"]["version"], changed["to"]["version"], changed["reason"]) == (1, 2, "try it")


@pytest.mark.parametrize("command", ["exit 3", "echo no network >&2; exit 3", "sleep 60"])
def test_a_command_that_fails_or_hangs_disturbs_nothing_and_is_tried_again(
    scored_project: Paths,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: str,
) -> None:
    paths = scored_project
    monkeypatch.setattr(notify, "SECONDS", 0.5)
    workbench.change_settings(paths, notify=command)
    for month in ("2009-02", "2009-03"):
        remove_month(paths, month)
    code, _ = run_cli(paths.root, "score")
    why = "did not end within" if "sleep" in command else "ended with 3: no network" if "echo" in command else "with 3"
    assert code == 0
    (warning,) = (message for message in caplog.messages if message.startswith("notify:"))
    assert re.fullmatch(rf"notify: the command .*{why}.*; 2 events will be sent next time", warning)
    workbench.change_settings(paths, notify=RECEIVE)
    assert run_cli(paths.root, "monitor")[0] == 0
    assert sorted(one["month"] for one in read_events(paths)) == ["2009-02", "2009-03"]


def test_a_kill_repeats_events_with_their_ids(scored_project: Paths, run_cli: RunCli) -> None:
    paths = scored_project
    workbench.change_settings(paths, notify=f"{RECEIVE}; sleep 60")
    for month in ("2009-02", "2009-03"):
        remove_month(paths, month)
    with workbench.running("tipline", "score", folder=paths.root) as process:
        workbench.wait_for(lambda: read_events(paths))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (paths.staging / "seen.json").write_text(json.dumps({"published": {}}))  # as before the first command
    shutil.rmtree(paths.staging / "outbox")
    workbench.change_settings(paths, notify=RECEIVE)
    assert run_cli(paths.root, "score")[0] == 0
    first, *again = read_events(paths)
    assert sorted(one["month"] for one in again) == list(workbench.MONTHS)
    assert first["id"] in {one["id"] for one in again}


def test_a_failure_is_told_once_until_it_is_over(scored_project: Paths, run_cli: RunCli) -> None:
    paths = scored_project
    workbench.change_settings(paths, notify=RECEIVE)
    hidden, trips = paths.root / "hidden", paths.prepared("2009-02")
    for is_hidden in (True, True, False, True):
        if is_hidden and trips.exists():
            trips.rename(hidden)
        elif not is_hidden:
            hidden.rename(trips)
        assert run_cli(paths.root, "score")[0] == (4 if is_hidden else 0)
    events = read_events(paths)
    assert [one["command"] for one in events] == ["score", "score"]
    assert "2009-02: The month is not prepared" in events[0]["message"]
    assert events[0]["message"] == events[1]["message"]
    assert events[0]["id"] != events[1]["id"]


def test_a_copy_of_an_experiment_tells_nothing(
    scored_project: Paths, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.change_settings(scored_project, notify=RECEIVE)
    remove_month(scored_project, "2009-02")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    assert run_cli(scored_project.root, "score")[0] == 0
    assert read_events(scored_project) == []
    assert not (scored_project.staging / "seen.json").exists()
