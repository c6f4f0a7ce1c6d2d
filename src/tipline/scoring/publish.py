"""Publish a month whose parts are all finished, and remove files that are no longer needed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import TiplineError
from tipline.monitoring.counts import Counts
from tipline.paths import month_name
from tipline.scoring import plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tipline.scoring.plan import Locations, Month
    from tipline.storage import Storage


def publish_month(month: Month, made: Mapping[str, Any]) -> None:
    """Publish a month, its manifest last; `made` are facts about this run that no later run compares.

    Another run may publish the same parts at the same time; whoever comes second finds the month published. Raises a
    TiplineError if parts are missing or do not have the rows of the month.
    """
    staged, predictions = month.locations.staged, month.locations.predictions
    parts = [month.done[block.name] for block in month.blocks]
    rows = sum(block.rows for block in month.blocks)
    if sum(part["rows"] for part in parts) != rows:
        raise TiplineError("The parts do not have the month's rows.", f"month {month.month}", "Run: dvc repro -f score")
    sizes = staged.list_sizes(month.staged)
    if all(sizes.get(part["name"]) == part["bytes"] for part in parts):
        # Left by a worker that was killed while it wrote.
        kept = {files.MANIFEST, *(part["name"] for part in parts)}
        staged.remove_files(f"{month.staged}/{name}" for name in sizes.keys() - kept)
        seconds = {phase: round(sum(part["seconds"][phase] for part in parts), 3) for phase in plan.PHASES}
        manifest = {
            "month": month.month,
            "key": month.key,
            "rows": rows,
            "parts": [{name: part[name] for name in ("name", "rows", "bytes", "sha256")} for part in parts],
            "counts": Counts.merge(Counts.from_json(part["counts"]) for part in parts).to_json(),
            "made": {**made, "worker_seconds": seconds},
        }
        staged.write(f"{month.staged}/{files.MANIFEST}", files.format_json(manifest).encode())
        with contextlib.suppress(FileNotFoundError):  # the other run has just removed the parts
            predictions.publish_folder(staged, month.staged, month_name(month.month))
    if not plan.is_published(predictions, month.month, month.key):
        todo = "Run it again, with a place that this machine and all workers share (--to)."
        raise TiplineError("Parts that workers wrote are missing.", staged.address(month.staged), todo)
    for folder in (month.staged, month.staged + plan.MARKERS):
        staged.remove_folder(folder)


def remove_stale_staging(locations: Locations, months: Sequence[Month], failed: Iterable[str]) -> None:
    """Remove parts of other models or other prepared rows that earlier runs have left unpublished."""
    kept = {name for month in months for name in (month.staged, month.staged + plan.MARKERS)}
    uncertain = tuple(f"{month_name(month)}." for month in failed)
    for name in locations.staged.list_folders():
        if name not in kept and not name.startswith(uncertain) and locations.staged.is_abandoned(name):
            locations.staged.remove_folder(name)


def remove_unlisted_months(predictions: Storage, months: Sequence[str]) -> list[str]:
    """Remove the folders of months that are not in `months` any more; return their names."""
    kept = {month_name(month) for month in months}
    removed = [name for name in predictions.list_folders() if name.startswith("month=") and name not in kept]
    for name in removed:
        predictions.remove_folder(name)
    return removed
