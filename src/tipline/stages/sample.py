"""sample@month: the rows of a month that training, sizing or evaluation may use."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tipline import files
from tipline.errors import UsageError
from tipline.paths import ROLES
from tipline.training import sampling

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Sample one month into the folder of its role."""
    if month not in settings.sample.months:
        raise UsageError(f"{month} has no role.", "params.yaml, sample.months", "Give it one of fit, size, evaluate.")
    role = settings.sample.months[month]
    table = sampling.sample_month(paths.prepared_file(month), month, settings.sample.rows, settings.sample.seed)
    with files.replace_file(paths.sample(role, month)) as path:
        pq.write_table(table, path)
    for other in set(ROLES) - {role}:
        # DVC leaves an output where it was when a month changes its role.
        paths.sample(other, month).unlink(missing_ok=True)
    fewer = f", fewer than the {settings.sample.rows:,} asked for: the month has no more"
    log.info("%s: %s rows for %s%s", month, f"{len(table):,}", role, fewer if len(table) < settings.sample.rows else "")
