"""The `tipline` command: one command a stage, and what a person needs beside them.

Modules are imported when their command runs: `tipline --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A command: what it says of itself, the function that it calls, what that is given beside settings and project.

    Parameters
    ----------
    function
        `module:function`.
    interrupted
        What Ctrl-C is answered with.
    workers
        What workers of a local cluster run, of commands that have some: it is imported there while this process
        reads its settings.
    arguments
        As `add_argument` takes them; the name of each is that of the function's parameter.
    """

    text: str
    function: str
    arguments: tuple[tuple[str, dict[str, Any]], ...] = ()
    interrupted: str = "interrupted; nothing half-written is left, run it again"
    workers: str = ""


KEPT = "interrupted; what is finished is kept, run it again to go on"
MONTH = ("month", {"help": "such as 2009-01"})
MONTHS = ("months", {"nargs": "+", "metavar": "month", "help": "such as 2009-01"})
ANY_MONTHS = ("months", {"nargs": "*", "metavar": "month", "help": "such as 2009-01; default: all of `months`"})
PLACE: dict[str, Any] = {"default": "", "metavar": "PLACE"}
TRIPS = ("--trips", {**PLACE, "help": "where prepared months are, a path or s3://…; default: data/trips"})
TRIPS_PLACE = (TRIPS[0], {**TRIPS[1], "dest": "trips_place"})  # where `trips` is the module's name
COMMANDS = {
    # The stages, in the order of dvc.yaml.
    "params": Command("check params.yaml, before anything else runs", "stages.params:run"),
    "download": Command(
        "fetch the published files of some months, each whole or not at all",
        "stages.download:run_months",
        (MONTHS,),
        KEPT,
    ),
    "prepare": Command("bring a month to the one schema of contract.yaml", "stages.prepare:run", (MONTH,)),
    "sample": Command("draw the rows of a month that its role may use", "stages.sample:run", (MONTH,)),
    "learning_curve": Command(
        "study how many rows the model needs", "stages.learning_curve:run", workers="models.sizing"
    ),
    "train": Command("fit the model on the sample", "stages.train:run"),
    "register": Command("put the model into MLflow and follow the champion", "stages.register:run"),
    "evaluate": Command("compare challenger, champion and baseline", "stages.evaluate:run"),
    "score": Command(
        "score every month out of core with the champion",
        "stages.score:run",
        (TRIPS, ("--to", {**PLACE, "help": "where predictions go, a path or s3://…; default: data/predictions"})),
        KEPT,
        workers="scoring",
    ),
    "monitor": Command("say what the scores of each month were worth", "stages.monitor:run"),
    "record": Command("mirror curve, evaluation and months into MLflow", "stages.record:run"),
    # What a person needs beside them.
    "status": Command(
        "show champion, challenger, months not scored yet, last figures; check all, with the command that mends it",
        "commands.status:run",
    ),
    "month": Command(
        "add a month that is published, run `dvc repro`, say its verdict and what to commit",
        "commands.month:run",
        (MONTH,),
        KEPT,
    ),
    "check": Command(
        "say how months of a source would be read, from their headers and footers alone",
        "commands.check:run",
        (("address", {"metavar": "source", "help": "a path, https:// or s3://, with {month} in it"}), MONTHS),
    ),
    "promote": Command(
        "make a version the champion, if the gate lets it; `dvc repro` then scores with it",
        "commands.promote:run",
        (
            (
                "wanted",
                {
                    "nargs": "?",
                    "metavar": "version|run",
                    "help": "a version's number, or a run: its id, name or DVC experiment; default: the newest version",
                },
            ),
            ("--force", {"metavar": "REASON", "help": "promote it whatever the gate says; the reason is recorded"}),
        ),
    ),
    "rollback": Command(
        "make the champion before this one the champion again; `dvc repro` then scores with it",
        "commands.rollback:run",
        (("--reason", {"metavar": "TEXT", "help": "why; recorded in models/promotions.jsonl"}),),
    ),
    "diff-scores": Command(
        "compare the scores of two versions over prepared months, before promoting one; writes no predictions",
        "commands.diff_scores:run",
        (
            (
                "names",
                {"nargs": 2, "metavar": ("A", "B"), "help": "versions' numbers in the registry, or champion"},
            ),
            ANY_MONTHS,
            (
                "--threshold",
                {"type": float, "default": 0.5, "metavar": "P", "help": "what a score is above or not: 0.5"},
            ),
            (
                "--movers",
                {
                    "type": int,
                    "default": 10,
                    "metavar": "K",
                    "help": "rows to show, those that differ most: 10",
                },
            ),
            TRIPS_PLACE,
        ),
        workers="commands.diff_scores",
    ),
    "verify": Command(
        "hold predictions against their receipts and the prepared months: digests, rows, row numbers, counts",
        "commands.verify:run",
        (
            ANY_MONTHS,
            TRIPS_PLACE,
            ("--predictions", {**PLACE, "help": "their place, a path or s3://…"}),
        ),
    ),
    "explain": Command(
        "walk back from one prediction: contributions, model, prepared and published row, source",
        "commands.explain:run",
        (MONTH, ("row", {"type": int, "help": "the row's number, as it stands beside the prediction"})),
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tipline",
        description="Train on a sample, score every trip. `dvc repro` runs all stages that are out of date.",
        epilog="exit codes: 0 done, 1 failed, 2 usage, 3 the gate refused, 4 some months failed, "
        "5 a month is not published yet, 130 interrupted",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        described = commands.add_parser(name, help=command.text, description=command.text)
        for argument, options in command.arguments:
            described.add_argument(argument, **options)
    return top


def run(arguments: argparse.Namespace) -> None:
    """Read the settings and run the command."""
    from tipline import paths  # noqa: PLC0415

    project, command = paths.find_project(), COMMANDS[arguments.command]
    if command.workers:
        from tipline import forkserver  # noqa: PLC0415

        forkserver.start_forkserver(f"tipline.{command.workers}")
    from tipline import config  # noqa: PLC0415

    settings = config.load_settings(project.params)
    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    if "month" in given:
        given["month"] = config.parse_month(given["month"])
    if "months" in given:
        given["months"] = [config.parse_month(month) for month in given["months"]]
    module, _, function = command.function.partition(":")
    show(getattr(importlib.import_module(f"tipline.{module}"), function)(settings, project, **given) or ())


def show(lines: Iterable[str]) -> None:
    """Print lines as they come."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


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
        # A second one would end this process by the signal, not by its code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return fail(arguments, INTERRUPTED, COMMANDS[arguments.command].interrupted)
    except BrokenPipeError:  # whoever reads the output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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
