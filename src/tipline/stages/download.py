"""download@month: the published bytes of a month, and a receipt that says where they came from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline import files, source

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout, month: str) -> None:
    """Fetch one month into data/raw/."""
    with files.replacing_folder(layout.raw(month), layout.staging / "raw") as folder:
        receipt = source.fetch(settings.source, month, folder, layout.home, settings.demo.model_dump())
    files.write_json(layout.raw_receipt(month), receipt)
    log.info("%s: %s bytes from %s", month, f"{receipt['bytes']:,}", receipt["address"])
