"""params: the check of params.yaml that runs before all other stages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline import files

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write a file that is always the same: the settings are checked where they are read, before this.

    Every other stage depends on the file through `download`, so a mistake in params.yaml stops `dvc repro` at once;
    and because its content never changes, no stage runs for it.
    """
    files.write_text(layout.params_checked, "params.yaml has been checked\n")
    log.info("params.yaml: %s months from %s", len(settings.months), settings.source)
