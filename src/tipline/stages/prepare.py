"""prepare@month: convert a published month to the schema."""

import logging
import time

from tipline import files
from tipline.config import Settings
from tipline.errors import format_count
from tipline.ingest import prepare
from tipline.ingest.schema import format_names, load_schema
from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Prepare a month into data/trips/, unless the same bytes have been prepared with the same mapping."""
    started, folder = time.perf_counter(), paths.prepared(month)
    schema = load_schema(paths.root / settings.schema_)
    path = prepare.find_published_file(paths.raw(month), month)
    if prepare.is_prepared(folder, path, schema, month):
        log.info("%s: kept; neither the published file nor the schema of its columns has changed", month)
        return
    with files.replace_folder(folder, paths.staging / "trips") as staged:
        manifest = prepare.prepare_month(path, staged, schema, month)
    odd, outside = sum(manifest["out_of_range"].values()), manifest["outside_month"]
    parts = [
        format_count(manifest["rows_in"], "row"),
        f"{manifest['quarantined']:,} quarantined",
        f"{format_count(odd, 'value')} out of range",
    ]
    if outside:
        wrong = " (IS THIS THE FILE OF ANOTHER MONTH?)" if outside > manifest["rows_out"] / 2 else ""
        parts.append(f"{format_count(outside, 'pick-up')} outside the month{wrong}")
    parts += [
        f"{name.replace('_', ' ')}: {format_names(list(manifest[name]))}"
        for name in ("unknown_aliases", "unknown_columns")
        if manifest[name]
    ]
    log.info("%s: %s, in %.1f s", month, ", ".join(parts), time.perf_counter() - started)
