"""prepare@month: convert a published month to the schema."""

import logging
import time

from tipline import files
from tipline.config import Settings
from tipline.errors import format_count
from tipline.ingest import losses, prepare
from tipline.ingest.labels import LabelFiles
from tipline.ingest.readers import LABELS
from tipline.ingest.schema import format_names, load_schema
from tipline.ingest.target import parse_target
from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Prepare a month into data/trips/, unless the same bytes have been prepared with the same mapping."""
    started, folder = time.perf_counter(), paths.prepared(month)
    schema = load_schema(paths.root / settings.schema_)
    limits, label_files, labels = settings.prepare, None, paths.raw(month) / LABELS
    if settings.labels.source and labels.is_dir():
        label_files = LabelFiles(labels, settings.labels.on, parse_target(settings.model.target).columns)
    if manifest := prepare.find_prepared(folder, paths.raw(month), schema, month, label_files):
        losses.check_losses(manifest, folder, schema, limits.max_quarantined, limits.accept)
        log.info("%s: kept; neither the published files nor the schema of their columns have changed", month)
        return
    with files.replace_folder(folder, paths.staging / "trips") as staged:
        manifest = prepare.prepare_month(paths.raw(month), staged, schema, month, label_files)
        losses.check_losses(manifest, staged, schema, limits.max_quarantined, limits.accept)
    odd, outside = sum(manifest["out_of_range"].values()), manifest["outside_month"]
    parts = [format_count(manifest["rows_in"], "row"), f"{manifest['quarantined']:,} quarantined"]
    parts.append(f"{format_count(odd, 'value')} out of range")
    if outside:
        wrong = " (IS THIS THE FILE OF ANOTHER MONTH?)" if outside > manifest["rows_out"] / 2 else ""
        parts.append(f"{format_count(outside, 'pick-up')} outside the month{wrong}")
    if "labels" in manifest:
        parts.append(f"{manifest['labels']['matched']:,} labels joined")
    if month in limits.accept:
        parts.append(f"accepted because of {limits.accept[month]!r}")
    parts += [
        f"{name.replace('_', ' ')}: {format_names(list(manifest[name]))}"
        for name in ("unknown_aliases", "unknown_columns")
        if manifest[name]
    ]
    log.info("%s: %s, in %.1f s", month, ", ".join(parts), time.perf_counter() - started)
