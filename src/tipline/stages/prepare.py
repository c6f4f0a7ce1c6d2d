"""prepare: convert the published months to the schema."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tipline import files
from tipline.config import Settings
from tipline.errors import format_count
from tipline.ingest import losses, prepare
from tipline.ingest.columns import PREPARED_FILE, QUARANTINE_FILE
from tipline.ingest.labels import LabelFiles
from tipline.ingest.readers import LABELS
from tipline.ingest.schema import Schema, format_names, load_schema
from tipline.ingest.target import parse_target
from tipline.months import refuse_experiment, run_months
from tipline.paths import Paths, month_name
from tipline.storage import Storage, open_place

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, months: Sequence[str] = ()) -> None:
    """Prepare the months that are not prepared from the same bytes with the same mapping, and `months` in any case.

    They are written to data/trips/, or to `storage.prepared`, and then data/trips/ has only their manifests.
    """
    schema = load_schema(paths.root / settings.schema_)
    trips = open_place(settings.storage.prepared, paths, paths.trips)
    for path in paths.trips.glob("month=*"):
        if path.name.removeprefix("month=") not in settings.months:
            shutil.rmtree(path)
    run_months(
        "prepare",
        settings.months,
        months,
        lambda month, force: prepare_month(settings, paths, schema, trips, month, force=force),
    )


def prepare_month(settings: Settings, paths: Paths, schema: Schema, trips: Storage, month: str, *, force: bool) -> bool:
    """Prepare a month unless it is prepared; return whether it was not."""
    started, raw, folder = time.perf_counter(), paths.raw(month), paths.prepared(month)
    is_own, limits, label_files = settings.storage.prepared is None, settings.prepare, None
    if settings.labels.source and (raw / LABELS).is_dir():
        label_files = LabelFiles(raw / LABELS, settings.labels.on, parse_target(settings.model.target).columns)
    if not force and (manifest := prepare.find_prepared(trips, raw, schema, month, label_files)):
        read_quarantine = partial(trips.read_table, f"{month_name(month)}/{QUARANTINE_FILE}")
        losses.check_losses(manifest, read_quarantine, schema, limits.max_quarantined, limits.accept)
        if not is_own:
            files.write_json(folder / files.MANIFEST, manifest)
            remove_data(folder)
        return False
    if not is_own:
        refuse_experiment(paths, trips.address(), month)
    with files.replace_folder(folder, paths.staging / "trips") as staged:
        manifest = prepare.prepare_month(raw, staged, schema, month, label_files)
        read_quarantine = partial(pq.read_table, staged / QUARANTINE_FILE)
        losses.check_losses(manifest, read_quarantine, schema, limits.max_quarantined, limits.accept)
        if not is_own:
            trips.upload_folder(staged, month_name(month))
            remove_data(staged)
    log.info("%s: %s, in %.1f s", month, describe_month(manifest, limits.accept), time.perf_counter() - started)
    return True


def remove_data(folder: Path) -> None:
    """Remove all but the manifest of a prepared month that `storage.prepared` has."""
    for name in (PREPARED_FILE, QUARANTINE_FILE):
        (folder / name).unlink(missing_ok=True)


def describe_month(manifest: Mapping[str, Any], accept: Mapping[str, str]) -> str:
    odd, outside = sum(manifest["out_of_range"].values()), manifest["outside_month"]
    parts = [format_count(manifest["rows_in"], "row"), f"{manifest['quarantined']:,} quarantined"]
    parts.append(f"{format_count(odd, 'value')} out of range")
    if outside:
        wrong = " (IS THIS THE FILE OF ANOTHER MONTH?)" if outside > manifest["rows_out"] / 2 else ""
        parts.append(f"{format_count(outside, 'pick-up')} outside the month{wrong}")
    if "labels" in manifest:
        parts.append(f"{manifest['labels']['matched']:,} labels joined")
    if reason := accept.get(manifest["month"]):
        parts.append(f"accepted because of {reason!r}")
    parts += [
        f"{name.replace('_', ' ')}: {format_names(list(manifest[name]))}"
        for name in ("unknown_aliases", "unknown_columns")
        if manifest[name]
    ]
    return ", ".join(parts)
