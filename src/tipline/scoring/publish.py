"""Publish a month whose parts are all finished, and remove what is no longer needed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import TiplineError
from tipline.monitoring.counts import Counts
from tipline.paths import month_name
from tipline.scoring.plan import MARKERS, PHASES, Locations, Month

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


log = logging.getLogger(__name__)


def publish_month(month: Month, made: Mapping[str, Any]) -> None:
    """Put a month whose parts are all done in its place, the manifest written last.

    Parameters
    ----------
    made
        What is recorded of this run and not compared later: version, run, libraries, seconds.
    """
    parts = [month.done[block.name] for block in month.blocks]
    rows = sum(block.rows for block in month.blocks)
    if sum(part["rows"] for part in parts) != rows:
        raise TiplineError("The parts do not have the month's rows.", f"month {month.month}", "Run: dvc repro -f score")
    staged, sizes = month.locations.staged, month.locations.staged.list_sizes(month.staged)
    if any(sizes.get(part["name"]) != part["bytes"] for part in parts):
        todo = "Run it again, with a place that all workers and this machine share (--to)."
        raise TiplineError("Parts that workers wrote are not there.", staged.address(month.staged), todo)
    # What a worker that was killed had begun to write.
    staged.remove_files(f"{month.staged}/{name}" for name in sizes.keys() - {part["name"] for part in parts})
    manifest = {
        "month": month.month,
        "key": month.key,
        "rows": rows,
        "parts": [{name: part[name] for name in ("name", "rows", "bytes", "sha256")} for part in parts],
        "counts": Counts.merge(Counts.from_json(part["counts"]) for part in parts).to_json(),
        "made": {
            **made,
            "worker_seconds": {phase: round(sum(part["seconds"][phase] for part in parts), 3) for phase in PHASES},
            "peak_worker_bytes": max((part["peak_bytes"] for part in parts), default=0),
        },
    }
    staged.write_json(f"{month.staged}/{files.MANIFEST}", manifest)
    month.locations.predictions.publish_folder(staged, month.staged, month_name(month.month))
    # Last: after a crash in between, the next run finds all parts done and publishes them again.
    staged.remove_folder(month.staged + MARKERS)


def remove_stale_staging(locations: Locations, months: Sequence[Month], failed: Iterable[str]) -> None:
    """Remove what runs with other models or other prepared rows have left unfinished."""
    kept = {name for month in months for name in (month.staged, month.staged + MARKERS)}
    uncertain = tuple(f"{month_name(month)}." for month in failed)
    for name in locations.staged.list_folders():
        if name not in kept and not name.startswith(uncertain):
            locations.staged.remove_folder(name)


def remove_unlisted_months(locations: Locations, months: Sequence[str]) -> list[str]:
    """Remove the predictions of months that are scored no more; return their names."""
    kept = {month_name(month) for month in months}
    others = [name for name in locations.predictions.list_folders() if name.startswith("month=") and name not in kept]
    for name in others:
        locations.predictions.remove_folder(name)
    return [name.removeprefix("month=") for name in others]
