"""prepare@month: a published month brought to the one schema, in bounded memory, with no row lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import counted
from tipline.months import contract as contracts
from tipline.months import preparing

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout, month: str) -> None:
    """Prepare one month into data/trips/, unless what is there was made from the same bytes with the same mapping."""
    started = time.perf_counter()
    contract = contracts.load(layout.root / settings.contract)
    path = preparing.published(layout.raw(month), month)
    if preparing.is_prepared(layout.trips(month), path, contract, month):
        log.info("%s: kept, prepared before from the same bytes with the same mapping", month)
        return
    with files.replacing_folder(layout.trips(month), layout.staging / "trips") as folder:
        receipt = preparing.prepare(path, folder, contract, month)
    log.info("%s: %s, in %.1f s", month, summary(receipt), time.perf_counter() - started)


def summary(receipt: dict[str, Any]) -> str:
    """One line about a prepared month."""
    odd = sum(receipt["out_of_range"].values())
    text = (
        f"{counted(receipt['rows_in'], 'row')}, {receipt['quarantined']:,} set apart, {counted(odd, 'odd value')} kept"
    )
    if receipt["outside_month"]:
        text += f", {counted(receipt['outside_month'], 'pick-up')} outside the month"
    if receipt["outside_month"] > receipt["rows_out"] / 2:
        text += " (IS THIS THE FILE OF ANOTHER MONTH?)"
    if receipt["new_spellings"]:
        text += f", new spellings: {contracts.listed(list(receipt['new_spellings']))}"
    if receipt["unknown_columns"]:
        text += f", columns that the contract does not know: {contracts.listed(receipt['unknown_columns'])}"
    return text
