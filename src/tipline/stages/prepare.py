"""prepare@month: a published month brought to the one schema, in bounded memory, with no row lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import format_count
from tipline.ingest import prepare
from tipline.ingest.schema import format_names, load_schema

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Prepare one month into data/trips/, unless what is there was made from the same bytes with the same mapping."""
    started = time.perf_counter()
    schema = load_schema(paths.root / settings.schema_)
    path = prepare.find_published_file(paths.raw(month), month)
    if prepare.is_prepared(paths.prepared(month), path, schema, month):
        log.info("%s: kept, prepared before from the same bytes with the same mapping", month)
        return
    with files.replace_folder(paths.prepared(month), paths.staging / "trips") as folder:
        manifest = prepare.prepare_month(path, folder, schema, month)
    log.info("%s: %s, in %.1f s", month, summary(manifest), time.perf_counter() - started)


def summary(manifest: dict[str, Any]) -> str:
    """One line about a prepared month."""
    odd = sum(manifest["out_of_range"].values())
    text = f"{format_count(manifest['rows_in'], 'row')}, {manifest['quarantined']:,} set apart, {format_count(odd, 'odd value')} kept"
    if manifest["outside_month"]:
        text += f", {format_count(manifest['outside_month'], 'pick-up')} outside the month"
    if manifest["outside_month"] > manifest["rows_out"] / 2:
        text += " (IS THIS THE FILE OF ANOTHER MONTH?)"
    if manifest["unknown_aliases"]:
        text += f", new aliases: {format_names(list(manifest['unknown_aliases']))}"
    if manifest["unknown_columns"]:
        text += f", columns that the schema does not know: {format_names(manifest['unknown_columns'])}"
    return text
