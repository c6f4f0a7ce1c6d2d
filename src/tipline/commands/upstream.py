"""`tipline upstream`: ask the source which months were published again; fetch them and report what changed.

New scores are compared with a copy of the old ones in data/.staging, which a run that is killed leaves to the next one.
"""

import contextlib
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tipline import errors, files
from tipline.commands import compare
from tipline.commands.month import run_repro
from tipline.config import Settings
from tipline.errors import TiplineError, format_count, join_lines
from tipline.ingest import source
from tipline.paths import Paths, month_name
from tipline.scoring import plan
from tipline.stages import download
from tipline.storage import Storage, open_storage

REQUESTS = 4  # at the same time
FIGURES = ["month", "rows", "moved", "crossed_up", "crossed_down", "largest_difference", "added", "removed"]
PREPARED = "_prepared.json"  # the manifest of the prepared month that was scored
RESUME = "tipline upstream --fetch"


def run(
    settings: Settings, paths: Paths, months: Sequence[str] = (), threshold: float = 0.5, *, fetch: bool = False
) -> Iterator[str]:
    """Ask about all fetched months and yield a line per difference; with `fetch`, fetch, run `dvc repro`, and compare.

    Raises RepublishedError if months differ and are not fetched, MonthsFailedError if some cannot be asked or fetched.
    """
    compare.check_numbers(threshold)
    listed = [month for month in sorted(settings.months) if not months or month in months]
    fetched = [month for month in listed if paths.raw_manifest(month).is_file()]
    with ThreadPoolExecutor(REQUESTS) as threads:
        answers = dict(zip(fetched, threads.map(partial(ask_source, settings, paths), fetched), strict=True))
    changed = [month for month, answer in answers.items() if isinstance(answer, list) and answer]
    failed = [month for month, answer in answers.items() if isinstance(answer, Exception)]
    for month, answer in answers.items():
        lines = answer if isinstance(answer, list) else [f"not known: {join_lines(answer)}"]
        yield from (f"{month}: {line}" for line in lines)
    yield f"{format_count(len(fetched), 'month')}: {len(changed)} published again, {len(failed)} not known"
    if fetch:
        with files.hold_lock(paths.staging / "upstream.lock", "fetching months again"):
            failed += yield from restate_months(settings, paths, changed, threshold)
    elif changed:
        what = f"{format_count(len(changed), 'month')} changed at the source since they were fetched."
        raise errors.RepublishedError(what, ", ".join(changed), f"Fetch and score them again: {RESUME}")
    if failed:
        what = f"{format_count(len(failed), 'month')} could not be asked about or fetched."
        raise errors.MonthsFailedError(
            what, ", ".join(failed), "The reasons are printed above. Fix them, run it again."
        )


def ask_source(settings: Settings, paths: Paths, month: str) -> list[str] | Exception:
    """Return what differs at the source of a month and of its labels, or why that is not known."""
    known, home, address = files.try_read_json(paths.raw_manifest(month)) or {}, paths.workspace, settings.labels.source
    try:
        changes = source.find_changes(settings.source, month, home, known)
        if address and "labels" in known:
            changes += [f"labels: {line}" for line in source.find_changes(address, month, home, known["labels"])]
        elif address:
            with contextlib.suppress(errors.NotPublishedError):
                source.check_published(address, month, home)
                changes.append("labels: new")
    except (TiplineError, OSError) as error:
        return error
    return changes


def restate_months(
    settings: Settings, paths: Paths, months: Sequence[str], threshold: float
) -> Generator[str, None, list[str]]:
    """Fetch months again, run `dvc repro` and yield the report; return the months that could not be fetched."""
    locations, kept, failed = plan.Locations.resolve(settings, paths), paths.staging / "restatement", list[str]()
    for month in months:
        keep_month(locations, month, kept, paths.staging / "kept")
        try:
            download.run(settings, paths, [month])
        except TiplineError as error:
            failed.append(month)
            yield f"{month}: {join_lines(error)}"
    restated = [folder.name.removeprefix("month=") for folder in sorted(kept.glob("month=*"))]  # also a killed run's
    if months or restated:
        run_repro(paths, ", ".join(sorted({*months, *restated})), RESUME)
    reports = [compare_month(locations, open_storage(kept), month, threshold) for month in restated]
    yield from compare.format_table(pd.DataFrame(reports)[FIGURES]) if reports else ()
    for report in reports:
        yield f"{report['month']}: {report['because']}"
        name = f"{report['month']}-{files.hash_json(report)[:12]}.json"
        files.write_json(paths.root / "reports" / "restatements" / name, report)
        shutil.rmtree(kept / month_name(report["month"]))
    return failed


def keep_month(locations: plan.Locations, month: str, kept: Path, staging: Path) -> None:
    """Copy the predictions of a month and its manifests, unless an earlier run has done so or it is not scored."""
    name, predictions = month_name(month), locations.predictions
    prepared, manifest = (one.read_json(f"{name}/{files.MANIFEST}") for one in (locations.trips, predictions))
    is_scored = prepared and manifest and plan.is_published(predictions, month, manifest["key"])
    if is_scored and not (kept / name).is_dir():
        with files.replace_folder(kept / name, staging) as folder:
            files.write_json(folder / PREPARED, prepared)
            files.write_json(folder / files.MANIFEST, manifest)
            for part in manifest["parts"]:
                (folder / part["name"]).write_bytes(predictions.read(f"{name}/{part['name']}") or b"")


def compare_month(locations: plan.Locations, kept: Storage, month: str, threshold: float) -> dict[str, Any]:
    """Return what became of the scores of a month and why.

    Rows are the same trip if they have the same identifiers, where predictions hold unique ones, or the same number.
    """
    name = month_name(month)
    was, now = kept.read_json(f"{name}/{PREPARED}"), locations.trips.read_json(f"{name}/{files.MANIFEST}")
    (old, a), (new, b) = (read_scores(storage, name) for storage in (kept, locations.predictions))
    ids = [column for column in a.column_names if column in b.column_names and column not in plan.SCHEMA.names]
    on = ids if ids and all(len(one.group_by(ids).aggregate([])) == len(one) for one in (a, b)) else ["row"]
    a, b = (one.select([*on, "probability"]) for one in (a, b))
    both = a.join(b, on, right_suffix="_new", join_type="inner")
    before, after = (both[column].to_numpy().astype(float) for column in ("probability", "probability_new"))
    counts = compare.sum_changes(before, after, threshold) | {"moved": np.count_nonzero(before != after)}
    counts |= {"added": len(b) - len(both), "removed": len(a) - len(both)}
    figures = {key: float(counts[key]) if key == "largest_difference" else int(counts[key]) for key in FIGURES[1:]}
    because = explain_change(old, new, was, now)
    return {"month": month, "threshold": threshold, **figures, "joined_by": on, "because": because}


def read_scores(storage: Storage, folder: str) -> tuple[dict[str, Any], pa.Table]:
    """Return the key of the predictions of a month, and the predictions."""
    manifest = storage.read_json(f"{folder}/{files.MANIFEST}")
    parts = [storage.read_table(f"{folder}/{part['name']}") for part in manifest["parts"]]
    return manifest["key"], pa.concat_tables(parts or [plan.SCHEMA.empty_table()])


def explain_change(
    old: Mapping[str, Any], new: Mapping[str, Any], was: Mapping[str, Any], now: Mapping[str, Any]
) -> str:
    """Say why scores changed, from the keys of the predictions and the manifests of the prepared months."""
    if old == new:
        return "no score was computed again, because no column that the model reads has changed"
    causes = {
        "data": was["published"] != now["published"],
        "schema": was["mapping"]["digest"] != now["mapping"]["digest"],
        "format": (was["format"], old["format"]) != (now["format"], new["format"]),
        f"model ({old['model'][:12]} -> {new['model'][:12]})": old["model"] != new["model"],
    }
    a, b = old["columns"], new["columns"]
    names = ", ".join(sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)))
    return f"because of {', '.join(cause for cause in causes if causes[cause])}; columns: {names or '-'}"
