"""The `tipline` command: one subcommand per stage of dvc.yaml, and the commands that a person needs beside them.

A subcommand's module is imported when it runs, so `tipline --help` answers at once.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import logging
import os
import pkgutil
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130

Argument = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Command:
    text: str  # what it does, as `tipline --help` prints it
    function: str  # `module:function` below `tipline`; called with the settings, the paths and the arguments
    arguments: tuple[Argument, ...] = ()


def argument(name: str, **options: Any) -> Argument:  # noqa: ANN401 (options of `add_argument`)
    return name, options


MONTH = argument("month", help="for example 2009-01")
OPTIONAL_MONTHS = argument("months", nargs="*", metavar="month", help="for example 2009-01; default: all of `months`")
DONE_AGAIN = "months to do again; default: all of `months` that are out of date"
AGAIN = argument("months", nargs="*", metavar="month", help=DONE_AGAIN)
PREPARED = "prepared months, a path or s3://, gs:// or abfs://...; default: `storage.prepared`"
TRIPS = argument("--trips", default="", metavar="LOCATION", help=PREPARED)
VERSION = "a version number, or the id, name or DVC experiment of a run; default: the challenger"
PREDICTIONS = "predictions, a path or s3://, gs:// or abfs://...; default: `storage.predictions`"
COMMANDS = {
    # The stages, in the order of dvc.yaml.
    "download": Command("fetch the published files of the months", "stages.download:run", (AGAIN,)),
    "prepare": Command("convert the months to the schema", "stages.prepare:run", (AGAIN,)),
    "sample": Command("draw the sample of a month that has a role", "stages.sample:run", (MONTH,)),
    "learning_curve": Command("study how many rows the model needs", "stages.learning_curve:run"),
    "train": Command("fit the model on the sample", "stages.train:run"),
    "register": Command("register the model in MLflow and follow the alias `champion`", "stages.register:run"),
    "evaluate": Command("compare challenger, champion and baseline on the test months", "stages.evaluate:run"),
    "score": Command(
        "score every month with the champion on a dask cluster",
        "stages.score:run",
        (TRIPS, argument("--to", default="", metavar="LOCATION", help=PREDICTIONS)),
    ),
    "monitor": Command("measure how good the scores of each month were", "stages.monitor:run"),
    "record": Command("log learning curve, evaluation and months to MLflow", "stages.record:run"),
    # Commands for people.
    "status": Command(
        "show champion, challenger, unscored months and the last figures; check the project", "commands.status:run"
    ),
    "month": Command(
        "add a published month to params.yaml, run `dvc repro`, print its verdict and what to commit",
        "commands.month:run",
        (argument("month", help="for example 2009-01; next: the month after the last one that has a verdict"),),
    ),
    "upstream": Command(
        "list months that were published again since they were fetched; fetch and score them again, report what moved",
        "commands.upstream:run",
        (
            OPTIONAL_MONTHS,
            argument("--fetch", action="store_true", help="fetch them, run `dvc repro`, compare with the old scores"),
            argument("--threshold", type=float, default=0.5, metavar="P", help="count scores that cross it: 0.5"),
        ),
    ),
    "check": Command(
        "show how the months of a source would be read, from their first rows; draft a schema from them",
        "commands.check:run",
        (
            argument("source", help="a path, https://, s3://, gs:// or abfs://, with {month} in it"),
            argument("months", nargs="+", metavar="month", help="for example 2009-01"),
            argument("--write", metavar="SCHEMA", help="draft a schema from the first month into this new file"),
        ),
    ),
    "promote": Command(
        "make a version the champion if the gate lets it pass; the next `dvc repro` scores with it",
        "commands.promote:run",
        (
            argument("version", nargs="?", metavar="version|run", help=VERSION),
            argument("--force", metavar="REASON", help="promote it whatever the gate says; the reason is recorded"),
            argument("--trust-code", action="store_true", help="promote it with code that this project does not have"),
        ),
    ),
    "rollback": Command(
        "make the previous champion the champion again; the next `dvc repro` scores with it",
        "commands.promote:roll_back",
        (argument("--reason", metavar="TEXT", help="why; recorded in MLflow"),),
    ),
    "compare": Command(
        "compare the scores of two versions on prepared months without writing predictions",
        "commands.compare:run",
        (
            argument("versions", nargs=2, metavar=("A", "B"), help="version numbers in MLflow, or `champion`"),
            OPTIONAL_MONTHS,
            argument("--threshold", type=float, default=0.5, metavar="P", help="count rows that cross it: 0.5"),
            argument("--largest", type=int, default=10, metavar="K", help="rows to list with the largest changes: 10"),
            TRIPS,
        ),
    ),
    "verify": Command(
        "check predictions against their manifests and the prepared months: hashes, sizes, rows",
        "commands.verify:run",
        (OPTIONAL_MONTHS, TRIPS, argument("--predictions", default="", metavar="LOCATION", help=PREDICTIONS)),
    ),
    "explain": Command(
        "trace one prediction: contributions, model, prepared row, published row, source",
        "commands.explain:run",
        (MONTH, argument("row", type=int, help="the number in the column `row` of the predictions")),
    ),
}

# What workers of a local cluster import while this process reads its settings.
PRELOADED = {
    "learning_curve": ["tipline.training.learning_curve"],
    "score": ["tipline.scoring.worker", "tipline.scoring.preload"],
    "compare": ["tipline.commands.compare"],
}
# The others change what is published; their events go to the command `notify` of params.yaml.
READING = {"status", "check", "compare", "verify", "explain"}
# These get `PartialSettings`, and so work with any params.yaml.
ACCEPTING_INVALID_SETTINGS = {"status", "check", "rollback", "verify"}


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tipline",
        description="Train on a sample, score every row. `dvc repro` runs all stages that are out of date.",
        epilog="exit codes: 0 done, 1 failed, 2 usage, 3 refused by the gate, 4 some months failed, "
        "5 month not published yet, 6 published again, 130 interrupted",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.text, description=command.text)
        for flag, options in command.arguments:
            subparser.add_argument(flag, **options)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Read the settings, then run the subcommand."""
    from tipline.paths import find_project  # noqa: PLC0415

    paths, command = find_project(), COMMANDS[arguments.command]
    if modules := PRELOADED.get(arguments.command):
        from tipline import processes  # noqa: PLC0415

        processes.set_kernel_cache(paths.root / "data" / ".numba")
        processes.start_forkserver(*modules)
    from tipline import config  # noqa: PLC0415

    is_partial = arguments.command in ACCEPTING_INVALID_SETTINGS
    settings = (config.load_partial_settings if is_partial else config.load_settings)(paths.params)
    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    if "month" in given and (arguments.command, given["month"]) != ("month", "next"):
        given["month"] = config.parse_month(given["month"])
    if "months" in given:
        given["months"] = [config.parse_month(month) for month in given["months"]]
    paths.recover_folders()
    function = pkgutil.resolve_name(f"tipline.{command.function}")
    if not gc.isenabled():  # see `start`
        gc.freeze()
        gc.enable()
    valid: Any = getattr(settings, "settings", settings)  # None for an invalid file
    events: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if valid and valid.notify and arguments.command not in READING and not paths.is_experiment_copy:
        events = pkgutil.resolve_name("tipline.commands.notify:Events")(valid, paths, arguments.command)
    with events:
        for line in function(settings, paths, **given) or ():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Errors become messages and exit codes here and nowhere else."""
    arguments = create_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tipline").setLevel(logging.INFO)
    from tipline.errors import TiplineError  # noqa: PLC0415

    try:
        run(arguments)
    except TiplineError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:
        # A second Ctrl-C would end this process by the signal, without the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        message, code = "interrupted; what is finished is kept, run it again to resume", INTERRUPTED
    except BrokenPipeError:  # the reader of the output, `head` for example, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where, todo = error.filename or "unknown", "Fix the cause and run it again; no half-written file is left."
        message, code = str(TiplineError(f"{error.strerror or error}.", str(where), todo)), 1
    except Exception as error:
        if "TIPLINE_DEBUG" in os.environ:
            raise
        origin = traceback.extract_tb(error.__traceback__)[-1]
        todo = "This is a defect of tipline. Run it with TIPLINE_DEBUG=1 and report the output."
        what, where = f"{type(error).__name__}: {error}", f"{origin.filename}:{origin.lineno}"
        message, code = str(TiplineError(what, where, todo)), 1
    else:
        return 0
    sys.stderr.write(f"tipline {arguments.command}: {message}\n")
    return code


def start() -> int:
    """Run the subcommand of this process, without a search for garbage among its modules.

    That would take up to a quarter of its time: during the imports, after them and when the process ends.
    """
    gc.disable()
    atexit.register(gc.freeze)
    return main()
