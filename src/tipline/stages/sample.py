"""sample@month: the rows of a month that its role may use."""

import logging

import pyarrow.parquet as pq

from tipline import files
from tipline.config import Settings
from tipline.errors import UsageError
from tipline.paths import Paths
from tipline.training import sampling

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    """Sample one month into the folder of its role."""
    role, rows = settings.sample.months.get(month), settings.sample.rows
    if role is None:
        todo = "Give it one of train, validation, test."
        raise UsageError(f"{month} has no role.", "params.yaml, sample.months", todo)
    sampling.remove_unlisted_samples(settings, paths)
    table = sampling.sample_month(paths.prepared_file(month), month, rows, settings.sample.seed)
    with files.replace_file(paths.sample(role, month)) as path:
        pq.write_table(table, path)
    shortfall = f", all that the month has; sample.rows asks for {rows:,}" if len(table) < rows else ""
    log.info("%s: %s rows for %s%s", month, f"{len(table):,}", role, shortfall)
