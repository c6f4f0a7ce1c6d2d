"""What is published is whole or missing, whatever goes wrong on the way."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests import workbench
from tipline import files
from tipline.errors import TiplineError
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

MONTH = "2009-01"


def publish(folder: Path, text: str) -> Path:
    with files.replace_folder(folder, folder.parent / "staging") as staged:
        (staged / "file").write_text(text)
    return folder


def write_file(path: Path, text: str) -> None:
    with files.replace_file(path) as temporary:
        temporary.write_text(text)
        assert temporary.parent == path.parent


def half_write(replacement: AbstractContextManager[Path], error: type[BaseException]) -> None:
    with replacement as temporary:
        (temporary / "file" if temporary.is_dir() else temporary).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, error: type[BaseException], before: str | None
) -> None:
    path = tmp_path / "new" / "file"
    if before:
        write_file(path, before)
    with pytest.raises(error):
        half_write(files.replace_file(path), error)
    assert workbench.read_tree(tmp_path) == ({"new/file": b"old"} if before else {})
    write_file(path, "new")
    assert workbench.read_tree(tmp_path) == {"new/file": b"new"}


def test_json_comes_back_and_what_is_missing_or_broken_says_what_to_do(tmp_path: Path) -> None:
    path, value = tmp_path / "file.json", {"b": [1, 2.5, None], "a": "é"}
    for text in ("", "{"):
        if text:
            path.write_text(text)
        with pytest.raises(TiplineError, match="is missing, or is not JSON") as raised:
            files.read_json(path, "Run: dvc repro")
        assert raised.value.parts[1:] == (str(path), "Run: dvc repro")
    files.write_json(path, value)
    assert files.read_json(path, "") == value
    assert list(files.read_json(path, "")) == ["b", "a"]
    assert files.hash_file(path) == files.hash_bytes(path.read_bytes()) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.hash_json(value) == files.hash_json(dict(reversed(value.items())))


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    folder, staging = tmp_path / "month", tmp_path / "staging"
    with files.replace_folder(folder, staging) as one, files.replace_folder(folder, staging) as two:
        for staged, text in ((one, "one"), (two, "two")):
            (staged / text).write_text(text)
    assert workbench.read_tree(folder) == {"one": b"one"}  # the one that ended last
    assert not [path for path in staging.iterdir() if path.is_dir()]


KILLED = """
import os, signal, sys
from pathlib import Path
from tipline import files
rename, calls = Path.rename, []
def dying(self, target):
    calls.append(target)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = dying
folder = Path(sys.argv[1])
with files.replace_folder(folder, folder.parent / "staging") as staged:
    (staged / "file").write_text("new")
"""


@pytest.mark.parametrize("rename", [1, 2])
def test_kill_during_a_swap_loses_nothing(tmp_path: Path, rename: int) -> None:
    (tmp_path / "month").mkdir()
    (tmp_path / "month" / "stale").touch()
    folder, staging = publish(tmp_path / "month", "old"), tmp_path / "staging"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(rename)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert folder.exists() == (rename == 1)
    files.recover_folders(staging, tmp_path)
    assert workbench.read_tree(folder) == {"file": b"old"}
    publish(folder, "newer")
    assert workbench.read_tree(folder) == {"file": b"newer"}
    assert not [path for path in staging.iterdir() if path.is_dir()]  # the dead process's folder is removed, too


def test_any_command_recovers_each_folder_that_is_swapped(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    folders = {
        "raw": paths.raw(MONTH),
        "trips": paths.prepared(MONTH),
        "predictions": paths.predictions / f"month={MONTH}",
        "models": paths.champion,
        "reports": paths.monitoring,
    }
    for staging, folder in folders.items():
        aside = paths.staging / staging / f"{folder.name}{files.REPLACED}"
        aside.mkdir(parents=True)
        (aside / "file").touch()
    run_cli(paths.root, "status")
    assert all((folder / "file").is_file() for folder in folders.values())


def test_a_file_where_a_folder_belongs_is_named(run_cli: Run, make_project: MakeProject) -> None:
    paths = make_project()
    (paths.root / "data").write_text("not a folder")
    code, printed = run_cli(paths.root, "download", MONTH)
    assert code == 1
    assert str(paths.root / "data") in printed
    assert "Traceback" not in printed
    assert (paths.root / "data").read_text() == "not a folder"
