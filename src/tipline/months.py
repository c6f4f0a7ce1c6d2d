"""Run a stage for several months: one that fails does not stop the others."""

import logging
from collections.abc import Callable, Sequence

from tipline.errors import (
    MonthsFailedError,
    NotPublishedError,
    TemporaryError,
    TiplineError,
    UsageError,
    format_count,
    join_lines,
)
from tipline.paths import Paths

log = logging.getLogger(__name__)


def refuse_experiment(paths: Paths, address: str, month: str) -> None:
    """Refuse to write a month to an address from the copy of the project that an experiment runs in."""
    if paths.is_experiment_copy:
        what = f"This experiment would change {month} where the workspace has its months."
        todo = "Run it in the workspace (dvc repro), or give the experiment other places with -S storage.prepared=..."
        raise UsageError(what, address, todo)


def run_months(stage: str, listed: Sequence[str], named: Sequence[str], run: Callable[[str, bool], bool]) -> None:
    """Run a stage for the listed months, or for those `named`; one that fails does not stop the others.

    `run` gets the month and whether it was named, and returns whether there was something to do. Raises UsageError if a
    named month is not listed, the error of the month if one failed, or a MonthsFailedError.
    """
    if unlisted := [month for month in named if month not in listed]:
        todo = "Add it to `months` in params.yaml, or run: tipline month MONTH"
        raise UsageError(f"{unlisted[0]} is not in the list `months`.", "command line", todo)
    failed, kept = dict[str, TiplineError](), 0
    for month in named or listed:
        try:
            kept += not run(month, bool(named))
        except TiplineError as error:
            failed[month] = error
            if isinstance(error, TemporaryError) and not isinstance(error, NotPublishedError):
                break  # the source does not answer
    if kept and not named:
        log.info("%s kept", format_count(kept, "month"))
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        what = f"{len(failed)} of {len(named or listed)} months failed:"
        what = "\n  ".join([what, *(f"{month}: {join_lines(error)}" for month, error in failed.items())])
        raise MonthsFailedError(what, stage, f"The other months are done. Fix the cause and run: dvc repro {stage}")
