"""Publish a month whose parts are all finished, and remove files that are no longer needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tipline import files
from tipline.errors import TiplineError
from tipline.monitoring.counts import Counts
from tipline.paths import month_name
from tipline.scoring import plan
from tipline.scoring.plan import Locations, Month
from tipline.storage import Storage


def publish_month(month: Month, made: Mapping[str, Any]) -> None:
    """Publish a month, its manifest last; `made` are facts about this run that no later run compares.

    Another run may publish the same parts at the same time; whoever comes second finds the month published. Raises a
    TiplineError if parts are missing or do not have the rows of the month.
    """
    staged, predictions = month.locations.staged, month.locations.predictions
    parts, rows = [month.done[block] for block in month.blocks], sum(block.rows for block in month.blocks)
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
    """Remove parts that earlier runs have left: of published months, and of other models or other prepared rows."""
    kept = (*(month.staged for month in months), *(f"{month_name(month)}." for month in failed))
    for name in locations.staged.list_folders():
        if name.startswith(kept):
            continue
        month = name.partition(".")[0].removeprefix("month=")
        manifest = locations.predictions.read_json(f"{month_name(month)}/{files.MANIFEST}")
        key = manifest.get("key") if isinstance(manifest, dict) else None
        if name.startswith(plan.name_staged_folder(month, key)) or locations.staged.is_abandoned(name):
            locations.staged.remove_folder(name)


def remove_unlisted_months(predictions: Storage, months: Sequence[str]) -> list[str]:
    """Remove the folders of months that are not in `months` any more; return their names."""
    kept = {month_name(month) for month in months}
    removed = [name for name in predictions.list_folders() if name.startswith("month=") and name not in kept]
    for name in removed:
        predictions.remove_folder(name)
    return removed
