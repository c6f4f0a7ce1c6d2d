"""The `tipline` command: one command a stage, and what a person needs beside them.

Modules are imported when their command runs: `tipline --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

MONTHLY_STAGES = {
    "prepare": "bring a month to the one schema of contract.yaml",
    "sample": "draw the rows that training, sizing or evaluation may use",
}
STAGES = {
    "params": "check params.yaml, before anything else runs",
    "learning_curve": "study how many rows the model needs",
    "train": "fit the model on the sample",
    "register": "put the model into MLflow and follow the champion",
    "evaluate": "compare challenger, champion and baseline",
    "score": "score every month out of core with the champion",
    "monitor": "say what the scores of each month were worth",
    "record": "mirror curve, evaluation and months into MLflow",
}
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tipline",
        description="Train on a sample, score every trip. `dvc repro` runs all stages that are out of date.",
        epilog="exit codes: 0 done, 1 failed, 2 usage, 4 some months failed, 5 a month is not published yet",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "fetch the published files of some months, each whole or not at all"
    download = commands.add_parser("download", help=text, description=text)
    download.add_argument("months", nargs="+", metavar="month", help="such as 2009-01")
    for name, text in MONTHLY_STAGES.items():
        commands.add_parser(name, help=text, description=text).add_argument("month", help="such as 2009-01")
    text = "say how months of a source would be understood, from their headers and footers alone"
    check = commands.add_parser("check", help=text, description=text)
    check.add_argument("source", help="a path, https:// or s3://, with {month} in it")
    check.add_argument("months", nargs="+", metavar="month", help="such as 2009-01")
    for name, text in STAGES.items():
        stage = commands.add_parser(name, help=text, description=text)
        if name == "score":
            stage.add_argument("--trips", default="", metavar="PLACE", help="of prepared months: a path or s3://…")
            stage.add_argument("--to", default="", metavar="PLACE", help="of predictions: a path or s3://…")
    text = "compare the scores of two versions over prepared months, before promoting one; writes no predictions"
    diff_arguments(commands.add_parser("diff-scores", help=text, description=text))
    text = "hold predictions against their receipts and prepared months: digests, rows, row numbers, counts"
    verify = commands.add_parser("verify", help=text, description=text)
    verify.add_argument("months", nargs="*", metavar="month", help="such as 2009-01; default: all of `months`")
    verify.add_argument("--trips", default="", metavar="PLACE", help="of prepared months: a path or s3://…")
    verify.add_argument("--predictions", default="", metavar="PLACE", help="a path or s3://…")
    text = "walk back from one prediction: contributions, model, prepared and published row, source"
    explain = commands.add_parser("explain", help=text, description=text)
    explain.add_argument("month", help="such as 2009-01")
    explain.add_argument("row", type=int, help="the row's number in the published month, from 0: the predictions' row")
    text = "make a version the champion; `dvc repro` then scores with it"
    promote = commands.add_parser("promote", help=text, description=text)
    promote.add_argument("version", nargs="?", type=int, help="its number in the registry; default: the newest")
    text = "show champion, challenger, months not scored yet, last figures"
    commands.add_parser("status", help=text, description=text)
    return top


def diff_arguments(differ: argparse.ArgumentParser) -> None:
    """What `diff-scores` is told."""
    for letter in "ab":
        differ.add_argument(letter, metavar=letter.upper(), help="a version's number in the registry, or champion")
    differ.add_argument("months", nargs="*", metavar="month", help="such as 2009-01; default: all of `months`")
    differ.add_argument("--threshold", type=float, default=0.5, metavar="P", help="a score is above it or not: 0.5")
    differ.add_argument("--movers", type=int, default=10, metavar="K", help="rows of the largest differences kept: 10")
    differ.add_argument("--trips", default="", metavar="PLACE", help="of prepared months: a path or s3://…")


def run(arguments: argparse.Namespace) -> None:
    """Read the settings and run the command."""
    from tipline import layout, params  # noqa: PLC0415

    project = layout.find()
    settings = params.load(project.params)
    command = arguments.command
    months = [params.month_argument(month) for month in getattr(arguments, "months", ())]
    if command == "download":
        module("stages.download").run_months(settings, project, months)
    elif command == "check":
        show(module(command).run(settings, project, arguments.source, months))
    elif command in MONTHLY_STAGES:
        module(f"stages.{command}").run(settings, project, params.month_argument(arguments.month))
    elif command == "score":
        module("stages.score").run(settings, project, arguments.trips, arguments.to)
    elif command in STAGES:
        module(f"stages.{command}").run(settings, project)
    elif command == "diff-scores":
        named, asked = (arguments.a, arguments.b), (arguments.threshold, arguments.movers, arguments.trips)
        show(module("diff_scores").run(settings, project, named, months, *asked))
    elif command == "verify":
        show(module(command).run(settings, project, months, arguments.trips, arguments.predictions))
    elif command == "explain":
        show(module(command).run(settings, project, params.month_argument(arguments.month), arguments.row))
    elif command == "promote":
        module(command).run(settings, project, arguments.version)
    else:
        show(module(command).run(settings, project))


def show(lines: Iterable[str]) -> None:
    """Print lines as they come."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def module(name: str) -> ModuleType:
    """A module of tipline, imported now."""
    return importlib.import_module(f"tipline.{name}")


def fail(arguments: argparse.Namespace, code: int, *lines: str) -> int:
    """Tell the user why the command ends."""
    sys.stderr.write(f"tipline {arguments.command}: " + "\n  ".join(lines) + "\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the one place where errors become messages and exit codes."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tipline").setLevel(logging.INFO)
    from tipline.errors import TiplineError  # noqa: PLC0415

    try:
        run(arguments)
    except TiplineError as error:
        return fail(arguments, error.exit_code, str(error))
    except KeyboardInterrupt:
        return fail(arguments, INTERRUPTED, "interrupted; what is finished is kept, run it again to go on")
    except OSError as error:
        # A full disk, a missing right: the system's words say what, and every file is published whole or not at all.
        todo = "to do: mend it and run the command again; nothing half-written is left"
        return fail(arguments, 1, str(error.strerror or error), f"where: {error.filename or 'no file named'}", todo)
    except Exception as error:
        if "TIPLINE_DEBUG" in os.environ:
            raise
        todo = "to do: this is a defect of tipline; run it with TIPLINE_DEBUG=1 and report what it prints"
        return fail(arguments, 1, f"{type(error).__name__}: {error}", f"where: {place(error)}", todo)
    return 0


def place(error: BaseException) -> str:
    """File and line that an error was raised in."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
