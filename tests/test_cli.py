"""The command line: quick, complete, and never a stack trace."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from tests.conftest import ROOT
from tipline import cli, processes
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

SLOW = ("pandas", "numpy", "pyarrow", "pydantic", "yaml", "mlflow", "sklearn", "dask", "distributed")


def test_help_lists_every_stage_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")}
    assert ended.value.code == 0
    assert {*stages, "promote", "status"} <= listed


def test_every_module_and_function_of_a_command_exists() -> None:
    for command in cli.COMMANDS.values():
        assert callable(resolve_name(f"tipline.{command.function}"))


@pytest.mark.parametrize(("call", "slow"), [("cli.main(['--help'])", SLOW), ("config.load_settings(PARAMS)", SLOW[:1])])
def test_neither_help_nor_settings_import_what_is_slow(call: str, slow: tuple[str, ...]) -> None:
    module = call.partition(".")[0]
    code = (
        f"import pathlib, sys; from tipline import {module}; PARAMS = pathlib.Path('params.yaml')\n"
        f"try: {call}\n"
        f"finally: sys.exit(', '.join(m for m in {slow} if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_outside_a_project_the_message_says_where_to_go(run_cli: Run, tmp_path: Path) -> None:
    # The root, because a folder above the temporary one may be somebody's project.
    code, printed = run_cli(Path(tmp_path.anchor), "status")
    assert code == 2
    assert "not a tipline project" in printed


@pytest.mark.parametrize("month", ["2009-13", "2009-1", "January", "2009-01-01", "1999-01", "20٢٤-01"])
def test_a_month_written_wrongly_is_a_usage_error(run_cli: Run, make_project: MakeProject, month: str) -> None:
    code, printed = run_cli(make_project().root, "download", month)
    assert code == 2
    assert f"'{month}' is not a month written YYYY-MM" in printed


def test_a_stage_without_its_input_says_what_to_run(run_cli: Run, make_project: MakeProject) -> None:
    code, printed = run_cli(make_project().root, "score")
    assert code == 1
    assert "dvc repro register" in printed


def test_a_defect_of_ours_is_a_message_too(
    run_cli: Run, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        message = "no such thing"
        raise LookupError(message)

    monkeypatch.setattr(cli, "run", broken)
    code, printed = run_cli(make_project().root, "status")
    assert code == 1
    assert "LookupError: no such thing" in printed
    assert "Traceback" not in printed


def test_an_interruption_says_that_what_is_finished_is_kept(
    run_cli: Run, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    with processes.ignore_interrupts():
        code, printed = run_cli(make_project().root, "score")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a second one waits for the code, too
    assert code == 130
    assert "what is finished is kept" in printed
