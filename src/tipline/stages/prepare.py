"""prepare@month: a published month brought to the one schema, in bounded memory, with no row lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import format_count
from tipline.ingest import prepare
from tipline.ingest import schema as contracts

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Prepare one month into data/trips/, unless what is there was made from the same bytes with the same mapping."""
    started = time.perf_counter()
    contract = contracts.load_schema(paths.root / settings.contract)
    path = prepare.find_published_file(paths.raw(month), month)
    if prepare.is_prepared(paths.trips(month), path, contract, month):
        log.info("%s: kept, prepared before from the same bytes with the same mapping", month)
        return
    with files.replace_folder(paths.trips(month), paths.staging / "trips") as folder:
        receipt = prepare.prepare_month(path, folder, contract, month)
    log.info("%s: %s, in %.1f s", month, summary(receipt), time.perf_counter() - started)


def summary(receipt: dict[str, Any]) -> str:
    """One line about a prepared month."""
    odd = sum(receipt["out_of_range"].values())
    text = f"{format_count(receipt['rows_in'], 'row')}, {receipt['quarantined']:,} set apart, {format_count(odd, 'odd value')} kept"
    if receipt["outside_month"]:
        text += f", {format_count(receipt['outside_month'], 'pick-up')} outside the month"
    if receipt["outside_month"] > receipt["rows_out"] / 2:
        text += " (IS THIS THE FILE OF ANOTHER MONTH?)"
    if receipt["new_spellings"]:
        text += f", new spellings: {contracts.format_names(list(receipt['new_spellings']))}"
    if receipt["unknown_columns"]:
        text += f", columns that the contract does not know: {contracts.format_names(receipt['unknown_columns'])}"
    return text
